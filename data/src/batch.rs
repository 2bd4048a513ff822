//! Token rows for one micro-batch and which predictions in them count. Plain numbers, no tensors.

/// Rows of tokens. Row r, position i: the input is token i, the target of the next-token loss is token i + 1, the target of
/// multi-token prediction at depth k is token i + 1 + k (DeepSeek-V3, section 2.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `[rows, sequence_length + 1 + lookahead]`, row by row.
    pub tokens: Vec<i64>,
    /// Inputs of a row.
    pub sequence_length: usize,
    /// Tokens of a row beyond the last next-token target.
    pub lookahead: usize,
    /// The token that ends every document.
    pub end_of_document: i64,
    /// Tokens of each row that are text; the rest is padding, in the last validation window.
    pub filled: Vec<usize>,
}

impl Batch {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.filled.len()
    }

    /// Tokens of a row.
    pub fn width(&self) -> usize {
        self.sequence_length + 1 + self.lookahead
    }

    /// The tokens of row `row`.
    pub fn row(&self, row: usize) -> &[i64] {
        &self.tokens[row * self.width()..(row + 1) * self.width()]
    }

    /// `[rows, sequence_length]`: whether the prediction at `depth` (0: the next token) counts at each position. It does not
    /// when its target is padding, or belongs to another document than the tokens it is predicted from: when an end of
    /// document stands after the input and before the target. At depth 0 there is nothing between them, so every token of
    /// the text is predicted, the first of a document from the end of the one before. Panics if depth exceeds `lookahead`.
    pub fn target_valid(&self, depth: usize) -> Vec<bool> {
        assert!(
            depth <= self.lookahead,
            "depth {depth} needs more lookahead than {}",
            self.lookahead
        );
        let mut valid = Vec::with_capacity(self.rows() * self.sequence_length);
        for (row, &filled) in self.filled.iter().enumerate() {
            let tokens = self.row(row);
            // The last end of document at or before each token decides in one pass.
            let mut last_end = None;
            let mut at = 0;
            for input in 0..self.sequence_length {
                let target = input + 1 + depth;
                while at < target {
                    if tokens[at] == self.end_of_document {
                        last_end = Some(at);
                    }
                    at += 1;
                }
                valid.push(target < filled && last_end.is_none_or(|end| end <= input));
            }
        }
        valid
    }

    /// Predictions at `depth` that count.
    pub fn valid_targets(&self, depth: usize) -> usize {
        self.target_valid(depth).into_iter().filter(|&valid| valid).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word by word.
    fn reference(batch: &Batch, depth: usize) -> Vec<bool> {
        let mut valid = Vec::new();
        for row in 0..batch.rows() {
            for i in 0..batch.sequence_length {
                let target = i + 1 + depth;
                let between = &batch.row(row)[i + 1..target];
                valid.push(target < batch.filled[row] && !between.contains(&batch.end_of_document));
            }
        }
        valid
    }

    #[test]
    fn targets_of_the_next_document_do_not_count() {
        let batch = Batch {
            tokens: vec![1, 2, 9, 3, 4, 5, 6],
            sequence_length: 4,
            lookahead: 2,
            end_of_document: 9,
            filled: vec![7],
        };
        assert_eq!(batch.target_valid(0), [true, true, true, true]);
        // From 1: end of document itself. From 2: the next document's 3. From 9: 4 after 3. From 3: 5 after 4.
        assert_eq!(batch.target_valid(1), [true, false, true, true]);
        assert_eq!(batch.target_valid(2), [false, false, true, true]);
        assert_eq!(batch.valid_targets(2), 2);
    }

    proptest! {
        #[test]
        fn masks_follow_the_definition(
            rows in prop::collection::vec((prop::collection::vec(0i64..4, 9), 0usize..=9), 1..4),
            depth in 0usize..=2,
        ) {
            let batch = Batch {
                tokens: rows.iter().flat_map(|r| r.0.clone()).collect(),
                sequence_length: 6,
                lookahead: 2,
                end_of_document: 0,
                filled: rows.iter().map(|r| r.1).collect(),
            };
            prop_assert_eq!(batch.target_valid(depth), reference(&batch, depth));
        }
    }
}
