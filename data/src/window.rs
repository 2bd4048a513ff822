//! Windows of the token stream: samples for training, every held-out token once for validation.

use crate::batch::Batch;
use crate::error::Error;
use crate::order::SampleId;
use crate::shard::Part;
use std::ops::Range;
use std::sync::Arc;

/// The training text as samples of S = `sequence_length` inputs. Sample i has the inputs `[i*S, (i+1)*S)` of the stream; its
/// row goes on for the shifted targets. An epoch has floor(tokens / S) samples: the up to S - 1 tokens left over are not
/// read as inputs. Behind the end the stream begins anew, so the last row may end with the first tokens of the text.
#[derive(Debug, Clone)]
pub struct TrainingWindows {
    part: Arc<Part>,
    end_of_document: u32,
    sequence_length: usize,
    lookahead: usize,
}

impl TrainingWindows {
    pub(crate) fn new(
        part: Arc<Part>,
        end_of_document: u32,
        sequence_length: usize,
        lookahead: usize,
    ) -> Result<Self, Error> {
        assert!(sequence_length > 0, "a sequence has at least one token");
        let (needed, tokens) = ((sequence_length + 1 + lookahead) as u64, part.tokens());
        if tokens < needed {
            return Err(Error::TooShort { needed, tokens });
        }
        Ok(Self { part, end_of_document, sequence_length, lookahead })
    }

    /// Samples of one epoch: the domain of a [`crate::SampleOrder`].
    pub fn samples(&self) -> u64 {
        self.part.tokens() / self.sequence_length as u64
    }

    /// The tokens of the training text that sample `index` has as inputs; [`crate::Dataset::locate`] names their documents.
    pub fn inputs(&self, index: u64) -> Range<u64> {
        let length = self.sequence_length as u64;
        index * length..(index + 1) * length
    }

    /// The rows of `samples`, in this order. Panics on an index beyond the epoch.
    pub fn batch(&self, samples: &[SampleId]) -> Batch {
        let width = self.sequence_length + 1 + self.lookahead;
        let mut tokens = vec![0; samples.len() * width];
        for (row, sample) in tokens.chunks_exact_mut(width).zip(samples) {
            let Range { start, end } = self.inputs(sample.index);
            assert!(end <= self.part.tokens(), "sample {} of {}", sample.index, self.samples());
            let until_end = (self.part.tokens() - start).min(width as u64) as usize;
            let (here, anew) = row.split_at_mut(until_end);
            self.part.read(start, here);
            self.part.read(0, anew);
        }
        Batch {
            tokens,
            sequence_length: self.sequence_length,
            lookahead: self.lookahead,
            end_of_document: i64::from(self.end_of_document),
            filled: vec![width; samples.len()],
        }
    }
}

/// Held-out text as windows of `sequence_length` targets. An end-of-document token is put in front of the text, so that its
/// first token is predicted too; window w predicts the tokens `[w*S, (w+1)*S)` and sees nothing before them but the token
/// that its first input is. Every token is predicted exactly once; the last window is padded with end of document, masked.
///
/// Bits per byte of the text are the summed loss of all windows / ln 2 / `bytes()`: end-of-document targets are a cost,
/// only bytes of text are counted.
#[derive(Debug, Clone)]
pub struct ValidationWindows {
    part: Arc<Part>,
    end_of_document: u32,
    sequence_length: usize,
    tokens: u64,
    bytes: u64,
}

impl ValidationWindows {
    pub(crate) fn new(
        part: Arc<Part>,
        end_of_document: u32,
        sequence_length: usize,
        (tokens, bytes): (u64, u64),
    ) -> Self {
        assert!(sequence_length > 0, "a sequence has at least one token");
        Self { part, end_of_document, sequence_length, tokens, bytes }
    }

    /// Windows.
    pub fn count(&self) -> u64 {
        self.tokens.div_ceil(self.sequence_length as u64)
    }

    /// Tokens predicted, all windows together.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Bytes of text that these tokens stand for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The rows of `windows`, as far as they exist, with `lookahead` tokens more than the next-token loss needs.
    pub fn batch(&self, windows: Range<u64>, lookahead: usize) -> Batch {
        let width = self.sequence_length + 1 + lookahead;
        let end_of_document = i64::from(self.end_of_document);
        let (mut tokens, mut filled) = (Vec::new(), Vec::new());
        for window in windows.start..windows.end.min(self.count()) {
            // In the stream with end of document in front, the row starts at this token and has so many.
            let start = window * self.sequence_length as u64;
            let text = (self.tokens + 1 - start).min(width as u64) as usize;
            let mut row = vec![end_of_document; width];
            if start == 0 {
                self.part.read(0, &mut row[1..text]);
            } else {
                self.part.read(start - 1, &mut row[..text]);
            }
            tokens.extend(row);
            filled.push(text);
        }
        Batch { tokens, sequence_length: self.sequence_length, lookahead, end_of_document, filled }
    }
}
