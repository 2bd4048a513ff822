//! An even sample of the training text, for training a tokenizer.

/// Text is taken or left in pieces of about this many bytes.
const PIECE_BYTES: usize = 1 << 14;

/// Takes about `budget` of `total` bytes of text that passes by, evenly spread: a piece is taken whenever fewer bytes were
/// taken than the share of those that passed. No random numbers, no second look.
pub(crate) struct Sampler {
    budget: u64,
    total: u64,
    passed: u64,
    taken: u64,
    sample: Vec<String>,
}

impl Sampler {
    /// A sample of `budget` bytes out of `total`.
    pub(crate) fn new(budget: u64, total: u64) -> Self {
        Self { budget, total, passed: 0, taken: 0, sample: Vec::new() }
    }

    /// Lets a document pass.
    pub(crate) fn pass(&mut self, text: &str) {
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(rest.ceil_char_boundary(PIECE_BYTES));
            let due = u128::from(self.passed) * u128::from(self.budget) / u128::from(self.total);
            if u128::from(self.taken) <= due {
                let left = self.budget.saturating_sub(self.taken);
                let end = piece.floor_char_boundary(usize::try_from(left).unwrap_or(usize::MAX));
                if end > 0 {
                    self.sample.push(piece[..end].to_owned());
                    self.taken += end as u64;
                }
            }
            self.passed += piece.len() as u64;
            rest = later;
        }
    }

    /// Bytes passed so far.
    pub(crate) fn passed(&self) -> u64 {
        self.passed
    }

    /// The sample.
    pub(crate) fn finish(self) -> Vec<String> {
        self.sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(budget: u64, documents: &[&str]) -> Vec<String> {
        let mut sampler = Sampler::new(budget, documents.iter().map(|d| d.len() as u64).sum());
        documents.iter().for_each(|d| sampler.pass(d));
        sampler.finish()
    }

    #[test]
    fn small_corpora_are_taken_whole() {
        assert_eq!(sample(1000, &["abc", "défg"]).concat(), "abcdéfg");
    }

    #[test]
    fn large_corpora_are_sampled_evenly() {
        let long: Vec<String> =
            (0..100).map(|i| char::from(b' ' + i % 90).to_string().repeat(40_000)).collect();
        let documents: Vec<&str> = long.iter().map(String::as_str).collect();
        let sample = sample(1_000_000, &documents);
        let bytes: usize = sample.iter().map(String::len).sum();
        assert!((980_000..=1_000_000).contains(&bytes), "{bytes}");
        let mut letters: Vec<u8> = sample.iter().map(|s| s.as_bytes()[0]).collect();
        letters.sort_unstable();
        letters.dedup();
        assert!(letters.len() > 50, "from {} of 90 kinds of document", letters.len());
    }

    #[test]
    fn one_document_gives_a_sample_too() {
        let text = "é".repeat(100_000);
        let bytes: usize = sample(1001, &[&text]).iter().map(String::len).sum();
        assert_eq!(bytes, 1000);
    }
}
