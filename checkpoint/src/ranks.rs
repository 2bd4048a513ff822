//! What the ranks of a run tell each other about a save or a load: a few words each, by an all-gather that the trainer
//! lends. Values never travel this way; every rank reads and writes its own.
//!
//! A save of several ranks, all on the savers' threads:
//!
//! 1. Every rank writes and syncs its files, then gives the checksum of its index, or what went wrong.
//! 2. Rank 0 reads the other indexes, commits and prunes; all others wait for its word. So when a save has ended
//!    anywhere, it is committed everywhere or nowhere, and no rank begins the next one while rank 0 removes files.
//!
//! A load ([`Run::load_latest`](crate::Run::load_latest)): rank 0 names a checkpoint, every rank loads its part and says
//! whether that was whole; unless all say yes, rank 0 sets the checkpoint aside and names the one before.

use crate::error::{Error, Result};
use crate::format::{CheckpointId, ShardEntry};
use lampyris_plan::Rank;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes that every rank gives to an [`AllGather`]: room for a message with a path.
pub const WORD_BYTES: usize = 1024;

/// Gets [`WORD_BYTES`] bytes of this rank and returns those of all ranks end to end, in rank order. It waits for the
/// slowest rank to write its part of the state, so its deadline must be that of a save, and it is called from the
/// saver's thread: it needs a communication group of its own.
pub type AllGather = Box<
    dyn FnMut(&[u8]) -> std::result::Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>
        + Send,
>;

/// This rank among the ranks of the run.
pub struct Ranks {
    rank: Rank,
    world: usize,
    /// None where this rank is alone.
    all_gather: Option<AllGather>,
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.world)
    }
}

/// What a rank says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Word {
    /// Its files of this checkpoint are safe.
    Written(CheckpointId, ShardEntry),
    /// All is well, or there is nothing to say.
    Good,
    /// Rank 0: load this one; none is left.
    Load(Option<CheckpointId>),
    /// The checkpoint is not what was written.
    Damaged(String),
    /// The newest snapshot in this host's memory that is worth restoring.
    Holds(Option<CheckpointId>),
    /// Anything else went wrong.
    Failed(String),
}

impl Word {
    /// What is damaged.
    pub(crate) fn damage(self) -> Option<String> {
        match self {
            Word::Damaged(problem) => Some(problem),
            _ => None,
        }
    }
}

impl Ranks {
    /// The only rank of a run.
    pub fn alone() -> Ranks {
        Ranks { rank: Rank(0), world: 1, all_gather: None }
    }

    /// Rank `rank` of `world`. Every rank must save and load in the same order.
    pub fn new(rank: Rank, world: usize, all_gather: AllGather) -> Ranks {
        Ranks { rank, world, all_gather: Some(all_gather) }
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// How many there are.
    pub(crate) fn world(&self) -> usize {
        self.world
    }

    /// Whether this is the rank that commits, prunes and quarantines.
    pub fn leads(&self) -> bool {
        self.rank == Rank(0)
    }

    /// Gives this rank's word and returns those of all, in rank order.
    pub(crate) fn exchange(&mut self, word: Word) -> Result<Vec<Word>> {
        let Some(all_gather) = &mut self.all_gather else { return Ok(vec![word]) };
        let all = all_gather(&encode(word)).map_err(|source| Error::Ranks { source })?;
        if all.len() != self.world * WORD_BYTES {
            let problem = format!("{} bytes came from {} ranks", all.len(), self.world);
            return Err(Error::Ranks { source: problem.into() });
        }
        let words = all.chunks_exact(WORD_BYTES).map(serde_json::from_slice);
        words.collect::<serde_json::Result<_>>().map_err(|e| Error::Ranks { source: e.into() })
    }
}

/// The first failure among the words of all ranks.
pub(crate) fn first_failure(words: &[Word]) -> Option<Error> {
    let ranks = (0..).map(Rank);
    ranks.zip(words).find_map(|(rank, word)| match word {
        Word::Failed(problem) => Some(Error::OtherRank { rank, problem: problem.clone() }),
        _ => None,
    })
}

/// JSON, filled up with blanks. A text that is too long loses its end.
fn encode(mut word: Word) -> Vec<u8> {
    loop {
        let mut bytes = serde_json::to_vec(&word).expect("a word has a JSON form");
        if bytes.len() <= WORD_BYTES {
            bytes.resize(WORD_BYTES, b' ');
            return bytes;
        }
        match &mut word {
            Word::Damaged(text) | Word::Failed(text) => {
                *text = text.chars().take(text.chars().count() / 2).chain("...".chars()).collect();
            }
            _ => unreachable!("numbers fit"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_any_length_fit() {
        for text in ["", "disk full", "\"\\\u{1}".repeat(2000).as_str(), "é".repeat(900).as_str()]
        {
            let bytes = encode(Word::Failed(text.to_string()));
            assert_eq!(bytes.len(), WORD_BYTES);
            let Word::Failed(back) = serde_json::from_slice(&bytes).unwrap() else { panic!() };
            assert!(text.starts_with(back.trim_end_matches("...")));
            assert!(text.len() > 500 || back == text);
        }
    }

    #[test]
    fn an_all_gather_of_the_wrong_length_is_an_error() {
        let mut ranks = Ranks::new(Rank(0), 2, Box::new(|word| Ok(word.to_vec())));
        let error = ranks.exchange(Word::Good).unwrap_err().to_string();
        assert!(error.contains("agree"), "{error}");
        assert_eq!(Ranks::alone().exchange(Word::Good).unwrap(), [Word::Good]);
    }
}
