//! Slurm's time limits: `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes`,
//! `days-hours:minutes:seconds`, and the words for none.

/// A time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// Seconds, as Slurm counts them: whole minutes, rounded up.
    Seconds(u64),
    /// As long as the partition allows.
    None,
}

/// Most digits of a number, so that no sum overflows.
const MAX_DIGITS: usize = 7;

/// The limit that `text` writes; nothing if Slurm would not read it.
pub(super) fn parse(text: &str) -> Option<Limit> {
    if ["-1", "infinite", "unlimited"].contains(&text.to_ascii_lowercase().as_str()) {
        return Some(Limit::None);
    }
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (Some(number(days)?), clock),
        None => (None, text),
    };
    let parts: Vec<u64> = clock.split(':').map(number).collect::<Option<_>>()?;
    let seconds = match (days, parts.as_slice()) {
        (None, [minutes]) => minutes * 60,
        (None, [minutes, seconds]) => minutes * 60 + seconds,
        (None, [hours, minutes, seconds]) => hours * 3_600 + minutes * 60 + seconds,
        (Some(days), [hours]) => days * 86_400 + hours * 3_600,
        (Some(days), [hours, minutes]) => days * 86_400 + hours * 3_600 + minutes * 60,
        (Some(days), [hours, minutes, seconds]) => {
            days * 86_400 + hours * 3_600 + minutes * 60 + seconds
        }
        _ => return None,
    };
    // Slurm counts minutes in 32 bits.
    match u32::try_from(seconds.div_ceil(60)).ok()? {
        0 => Some(Limit::None),
        minutes => Some(Limit::Seconds(u64::from(minutes) * 60)),
    }
}

fn number(digits: &str) -> Option<u64> {
    let plain = (1..=MAX_DIGITS).contains(&digits.len());
    let plain = plain && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_as_slurm_reads_them() {
        for (text, seconds) in [
            ("1", 60),
            ("90", 5_400),
            ("0:30", 60),
            ("2:30", 180),
            ("4:00:00", 14_400),
            ("1-0", 86_400),
            ("1-12", 129_600),
            ("0-0:5", 300),
            ("1-00:00:01", 86_460),
            ("2000000-0", 172_800_000_000),
        ] {
            assert_eq!(parse(text), Some(Limit::Seconds(seconds)), "{text}");
        }
        for text in ["0", "0:00", "UNLIMITED", "infinite", "-1"] {
            assert_eq!(parse(text), Some(Limit::None), "{text}");
        }
        for text in [
            "",
            "-",
            "1-",
            "-5",
            "1:",
            ":1",
            "1:2:3:4",
            "1-1:1:1:1",
            "1h",
            "1 ",
            "+1",
            "99999999",
            "9999999-0",
            "１",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
