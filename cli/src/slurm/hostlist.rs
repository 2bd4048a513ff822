//! Slurm's host lists: `a[01-03,5]-ib[0-1],login` names eight hosts and one. Several brackets multiply, the last runs
//! fastest; a bound with leading zeros keeps its width. As `scontrol show hostnames`, which a test compares it with.

/// Most names of one list: ten times the largest machine there is, so that a mistyped bound does not fill memory.
const MAX_HOSTS: usize = 100_000;

/// Why a text is no host list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostListError {
    /// A bracket that is not closed, not opened, or inside another.
    #[error("unbalanced brackets in {0:?}")]
    Brackets(String),
    /// Something between brackets that is no number and no range upwards.
    #[error("{range:?} is no range of numbers in {list:?}")]
    Range {
        /// The text between commas.
        range: String,
        /// The whole list.
        list: String,
    },
    /// Too many names.
    #[error("more than {MAX_HOSTS} hosts in {0:?}")]
    TooMany(String),
}

/// All names of `list`, in order, repeated ones included.
pub(crate) fn expand(list: &str) -> Result<Vec<String>, HostListError> {
    let mut names = Vec::new();
    for part in split_outside_brackets(list)? {
        names.extend(expand_part(part, list)?);
        if names.len() > MAX_HOSTS {
            return Err(HostListError::TooMany(list.into()));
        }
    }
    Ok(names)
}

/// The parts between commas that are not in brackets, empty ones left out.
fn split_outside_brackets(list: &str) -> Result<Vec<&str>, HostListError> {
    let (mut parts, mut begin, mut inside) = (Vec::new(), 0, false);
    for (at, character) in list.char_indices() {
        match character {
            '[' if !inside => inside = true,
            ']' if inside => inside = false,
            '[' | ']' => return Err(HostListError::Brackets(list.into())),
            ',' if !inside => {
                parts.push(&list[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(HostListError::Brackets(list.into()));
    }
    parts.push(&list[begin..]);
    parts.retain(|part| !part.is_empty());
    Ok(parts)
}

/// One part: text and brackets in turn, multiplied out.
fn expand_part(part: &str, list: &str) -> Result<Vec<String>, HostListError> {
    let mut names = vec![String::new()];
    for piece in part.split_inclusive(']') {
        let (text, ranges) = match piece.strip_suffix(']').and_then(|piece| piece.split_once('[')) {
            Some((text, ranges)) => (text, Some(ranges)),
            None => (piece, None),
        };
        let numbers = match ranges {
            Some(ranges) => numbers(ranges, list)?,
            None => vec![String::new()],
        };
        if names.len() * numbers.len() > MAX_HOSTS {
            return Err(HostListError::TooMany(list.into()));
        }
        let mut longer = Vec::with_capacity(names.len() * numbers.len());
        for name in &names {
            longer.extend(numbers.iter().map(|number| format!("{name}{text}{number}")));
        }
        names = longer;
    }
    Ok(names)
}

/// The numbers of `01-03,5`, each as wide as its lower bound is written.
fn numbers(ranges: &str, list: &str) -> Result<Vec<String>, HostListError> {
    let mut all = Vec::new();
    for range in ranges.split(',') {
        let wrong = || HostListError::Range { range: range.into(), list: list.into() };
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| -> Result<usize, HostListError> {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten().ok_or_else(wrong)
        };
        let (from, to) = (number(low)?, number(high)?);
        if to < from {
            return Err(wrong());
        }
        if to - from >= MAX_HOSTS {
            return Err(HostListError::TooMany(list.into()));
        }
        all.extend((from..=to).map(|number| format!("{number:0width$}", width = low.len())));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_as_slurm_reads_them() {
        for (list, names) in [
            ("a[1-2]b[3-4]", "a1b3 a1b4 a2b3 a2b4"),
            ("a[01-03,5]-ib[0-1]", "a01-ib0 a01-ib1 a02-ib0 a02-ib1 a03-ib0 a03-ib1 a5-ib0 a5-ib1"),
            ("n[9-11]", "n9 n10 n11"),
            ("n[08-10]", "n08 n09 n10"),
            ("n[1,1,2]", "n1 n1 n2"),
            ("a,b[1-2],c", "a b1 b2 c"),
            ("n[001]", "n001"),
            ("n[1-02]", "n1 n2"),
            ("a[1-2][3-4]", "a13 a14 a23 a24"),
            (",n-1,", "n-1"),
            ("", ""),
        ] {
            assert_eq!(expand(list).unwrap().join(" "), names, "{list}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for list in ["n[3-1]", "n[]", "n[1-2", "n1]", "a[b[1-2]]", "n[a-b]", "n[1-2-3]", "n[ 1]"] {
            assert!(expand(list).is_err(), "{list}");
        }
        assert!(matches!(expand("n[1-999999999]"), Err(HostListError::TooMany(_))));
        assert!(matches!(expand("n[1-999][1-999]"), Err(HostListError::TooMany(_))));
        assert!(expand("n[1-99999999999999999999999]").is_err());
    }
}
