//! Mutation fuzzing on stable Rust, for the parsers of several crates: a committed corpus, one file per input, named
//! `PARSER-anything`, is replayed, and then its inputs are mutated: bits, bytes, cuts, repeats, splices, extreme numbers. The short
//! run is the same every time; the long one is not, and prints its seed.

use std::path::Path;
use std::time::{Duration, Instant};

/// Feeds one input to the parser of this name; panics if something does not hold.
pub(crate) type Parse = dyn Fn(&str, &[u8]) + std::panic::RefUnwindSafe;

/// Replays and mutates the corpus in `folder` for `time`, at least once through. Without a `seed` the clock gives one.
pub(crate) fn fuzz(folder: &Path, time: Duration, seed: Option<u64>, parse: &Parse) {
    let corpus = corpus(folder);
    for (parser, input) in &corpus {
        parse(parser, input);
    }
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64 | 1);
    let seed = seed.unwrap_or_else(clock);
    let mut random = Random(seed);
    let until = Instant::now() + time;
    while Instant::now() < until {
        let (parser, input) = &corpus[random.below(corpus.len())];
        let mut mutated = input.clone();
        mutate(&mut mutated, &corpus[random.below(corpus.len())].1, &mut random);
        let result = std::panic::catch_unwind(|| parse(parser, &mutated));
        let shown = String::from_utf8_lossy(&mutated);
        assert!(
            result.is_ok(),
            "seed {seed}, parser {parser}, input {mutated:02x?}, as text: {shown}"
        );
    }
}

fn corpus(folder: &Path) -> Vec<(String, Vec<u8>)> {
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
    all
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

/// Numbers as texts have them, at the ends of ranges.
const NUMBERS: [&str; 9] = [
    "0",
    "-1",
    "1e999",
    "2147483648",
    "4294967295",
    "9007199254740993",
    "9223372036854775807",
    "18446744073709551615",
    "0.5",
];

fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len());
        match random.below(8) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => {
                input[at] = [0, b'"', b'{', b'[', b'\\', 0xff][random.below(6)]
            }
            2 => input.truncate(at),
            3 => {
                let end = (at + random.below(16)).min(input.len());
                let piece = input[at.min(end)..end].to_vec();
                input.splice(at..at, piece);
            }
            4 => {
                let cut = random.below(other.len());
                input.truncate(at);
                input.extend(&other[cut..]);
            }
            5 | 6 => replace_number(input, at, random),
            _ => input.insert(at, random.below(256) as u8),
        }
    }
}

/// Puts an extreme number in place of the first one behind `at`.
fn replace_number(input: &mut Vec<u8>, at: usize, random: &mut Random) {
    let Some(start) = input[at..].iter().position(u8::is_ascii_digit) else { return };
    let start = at + start;
    let digits = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    input.splice(start..start + digits, NUMBERS[random.below(NUMBERS.len())].bytes());
}
