//! Mutation fuzzing of everything that reads text of Slurm or of a person for Slurm: no input makes it panic, and what it
//! reads it reads the same again. The corpus is `testdata/slurm`, one file per input, named by its parser.

use super::lines::{Script, sbatch_words};
use super::times::Limit;
use super::{hostlist, options, queue, submission, times};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What the inputs are made of.
const CHARACTERS: &[char] = &[
    '0', '1', '9', '-', ':', ',', '[', ']', '|', ' ', '\n', '\t', '=', '"', '\'', '\\', '#', 'a',
    'n', '\0', '\u{1b}', 'é', '１', '\u{202e}',
];

/// Feeds one input to its parser and checks what must hold for any input.
fn parse(parser: &str, input: &str) {
    match parser {
        "rows" => {
            for row in queue::parse(input).values() {
                assert!(!row.state.contains(['|', '\n']) && !row.nodes.contains(['|', '\n']));
            }
        }
        "hosts" => {
            if let Ok(names) = hostlist::expand(input) {
                assert!(names.iter().all(|name| !name.is_empty() && !name.contains(['[', ']'])));
            }
        }
        "time" => {
            if let Some(Limit::Seconds(seconds)) = times::parse(input) {
                let minutes = seconds / 60;
                let clock = format!("{}-{}:{}", minutes / 1440, minutes / 60 % 24, minutes % 60);
                assert_eq!(times::parse(&clock), Some(Limit::Seconds(seconds)), "{clock}");
            }
        }
        "option" => {
            if let Ok(words) = options::parse(input) {
                let mut script = Script::default();
                // What cannot be seen is refused here.
                if script.words("sbatch", &words).is_ok() {
                    let line = script.into_text();
                    let read = sbatch_words(line.strip_prefix("#SBATCH ").expect("one line"));
                    assert_eq!(read, words);
                    assert!(options::parse(line.trim_start_matches("#SBATCH ")).is_ok());
                }
            }
        }
        "number" => {
            if let Ok(number) = submission::number(input.into()) {
                assert!(input.contains(&number.to_string()));
            }
        }
        other => panic!("no parser {other}: corpus files are named PARSER-anything"),
    }
}

fn corpus() -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/slurm");
    let mut all: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            let parser = name.split('-').next().unwrap().to_string();
            (parser, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    all.sort();
    assert!(all.len() >= 10, "two inputs per parser at least");
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

fn mutate(input: &mut Vec<char>, other: &str, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        match random.below(6) {
            0 => input.truncate(at),
            1 if at < input.len() => {
                input.remove(at);
            }
            2 => {
                let end = (at + random.below(16)).min(input.len());
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            3 => {
                let cut = random.below(other.chars().count() + 1);
                input.truncate(at);
                input.extend(other.chars().skip(cut));
            }
            4 => drop(input.splice(at..at, "99999999999999999999".chars())),
            _ => input.insert(at, CHARACTERS[random.below(CHARACTERS.len())]),
        }
    }
}

fn fuzz(time: Duration) {
    let corpus = corpus();
    for (parser, input) in &corpus {
        parse(parser, input);
    }
    let seed = u64::from(std::process::id()) << 20 | 1;
    let mut random = Random(seed);
    let until = Instant::now() + time;
    while Instant::now() < until {
        for _ in 0..100 {
            let (parser, input) = &corpus[random.below(corpus.len())];
            let mut characters: Vec<char> = input.chars().collect();
            mutate(&mut characters, &corpus[random.below(corpus.len())].1, &mut random);
            let mutated: String = characters.into_iter().collect();
            let result = std::panic::catch_unwind(|| parse(parser, &mutated));
            assert!(result.is_ok(), "seed {seed}, parser {parser}, input {mutated:?}");
        }
    }
}

#[test]
fn parsers_survive_the_corpus_and_a_second_of_mutations() {
    fuzz(Duration::from_secs(1));
}

#[test]
#[ignore = "long: five minutes of mutations"]
fn parsers_survive_five_minutes_of_mutations() {
    fuzz(Duration::from_secs(300));
}
