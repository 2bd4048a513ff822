//! Which text is for training and which is held out.

use crate::error::Error;
use crate::options::Split;

impl Split {
    /// Refuses what is not a share.
    pub(crate) fn check(self) -> Result<(), Error> {
        let fraction = self.fraction();
        if (0.0..1.0).contains(&fraction) { Ok(()) } else { Err(Error::BadFraction { fraction }) }
    }

    /// Cuts a document with content hash `hash` into (training, held out); either may be empty.
    pub(crate) fn cut<'t>(self, hash: &blake3::Hash, text: &'t str) -> (&'t str, &'t str) {
        match self {
            Split::Hash { fraction } => {
                let head = hash.as_bytes().first_chunk::<8>().expect("a hash has 32 bytes");
                // 53 bits: exact in an f64, and below 1.
                let share = (u64::from_le_bytes(*head) >> 11) as f64 / (1u64 << 53) as f64;
                if share < fraction { ("", text) } else { (text, "") }
            }
            Split::Tail { fraction } => {
                let cut = (text.len() as f64 * (1.0 - fraction)).round() as usize;
                text.split_at(text.floor_char_boundary(cut))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_split_holds_out_its_share_and_whole_documents() {
        let split = Split::Hash { fraction: 0.25 };
        let held_out = (0..4000)
            .map(|i| format!("document {i}"))
            .filter(|text| {
                let (training, validation) = split.cut(&blake3::hash(text.as_bytes()), text);
                assert!(training.is_empty() != validation.is_empty());
                !validation.is_empty()
            })
            .count();
        assert!((900..1100).contains(&held_out), "{held_out}");
    }

    #[test]
    fn tail_split_cuts_at_a_character() {
        let text = "ééééé"; // ten bytes
        let (training, validation) =
            Split::Tail { fraction: 0.5 }.cut(&blake3::hash(text.as_bytes()), text);
        assert_eq!((training, validation), ("éé", "ééé"));
    }

    #[test]
    fn fraction_zero_holds_out_nothing() {
        for split in [Split::Hash { fraction: 0.0 }, Split::Tail { fraction: 0.0 }] {
            assert_eq!(split.cut(&blake3::hash(b"abc"), "abc"), ("abc", ""));
        }
    }

    #[test]
    fn fractions_that_are_no_shares_are_refused() {
        for fraction in [-0.1, 1.0, f64::NAN] {
            let error = Split::Tail { fraction }.check().unwrap_err();
            assert!(matches!(error, Error::BadFraction { .. }), "{error}");
        }
    }
}
