//! Mutation fuzzing of parsers, on stable Rust and for tests only: a committed corpus, one file per input, named
//! `PARSER-anything`, is replayed, and then its inputs are mutated. It finds inputs that panic; it does not look for inputs that
//! reach new code.

mod mutate;

pub use mutate::{Dice, mutate};

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// The name of the parser of every input in `folder`, and the input, in the order of both.
///
/// # Panics
/// The folder or a file in it cannot be read.
pub fn corpus(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .expect("the corpus is committed")
        .map(|entry| {
            let path = entry.expect("a file").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let parser = name.split('-').next().expect("a first part").to_string();
            (parser, std::fs::read(path).expect("readable"))
        })
        .collect();
    all.sort();
    assert!(!all.is_empty(), "{} holds no input", folder.display());
    all
}

/// Feeds every input in `folder` to `parse`, with the name of its parser, and mutations of them until `time` has passed. Equal
/// seeds give equal inputs; without one the clock gives it.
///
/// # Panics
/// When `parse` does: the message names seed, parser and input.
pub fn fuzz(folder: &Path, time: Duration, seed: Option<u64>, mut parse: impl FnMut(&str, &[u8])) {
    let corpus = corpus(folder);
    for (parser, input) in &corpus {
        parse(parser, input);
    }
    let clock = || UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
    let seed = seed.unwrap_or_else(clock);
    let mut dice = Dice::new(seed);
    let until = Instant::now() + time;
    while Instant::now() < until {
        let (parser, input) = &corpus[dice.below(corpus.len())];
        let mut mutated = input.clone();
        mutate(&mut mutated, &corpus[dice.below(corpus.len())].1, &mut dice);
        let result = catch_unwind(AssertUnwindSafe(|| parse(parser, &mutated)));
        let text = String::from_utf8_lossy(&mutated);
        assert!(
            result.is_ok(),
            "seed {seed}, parser {parser}, input {mutated:02x?}, as text: {text}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_names_its_seed_and_input() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let result = catch_unwind(|| {
            let mut fed = 0;
            fuzz(&folder, Duration::from_secs(60), Some(7), |parser, _| {
                fed += 1;
                assert!(fed < 50, "{parser}");
            });
        });
        let message = result.unwrap_err().downcast::<String>().expect("a message");
        assert!(message.starts_with("seed 7, parser "), "{message}");
    }

    #[test]
    fn equal_seeds_give_equal_inputs_and_others_give_others() {
        let mutated = |seed| {
            let mut dice = Dice::new(seed);
            let mut input = b"{\"steps\": 12}".to_vec();
            mutate(&mut input, b"other", &mut dice);
            input
        };
        assert!((0..100).all(|seed| mutated(seed) == mutated(seed)));
        let odd = (0..1000).map(|n| mutated(2 * n + 1));
        let different = odd.collect::<std::collections::BTreeSet<Vec<u8>>>().len();
        assert!(different > 500, "{different}");
        let mut empty = Vec::new();
        let mut dice = Dice::new(3);
        (0..1000).for_each(|_| mutate(&mut empty, &[], &mut dice));
    }
}
