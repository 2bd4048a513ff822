//! Mutation fuzzing of everything that reads text of Slurm or of a person for Slurm: no input makes it panic, and what it
//! reads it reads the same again. The corpus is `testdata/slurm`, one file per input, named by its parser.

use super::lines::{Script, sbatch_words};
use super::times::Limit;
use super::{hostlist, options, queue, submission, times};
use lampyris_fuzz::fuzz;
use std::path::Path;
use std::time::Duration;

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

fn run(time: Duration) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/slurm");
    fuzz(&folder, time, None, |parser, input| parse(parser, &String::from_utf8_lossy(input)));
}

#[test]
fn parsers_survive_the_corpus_and_a_second_of_mutations() {
    run(Duration::from_secs(1));
}

#[test]
#[ignore = "long: five minutes of mutations"]
fn parsers_survive_five_minutes_of_mutations() {
    run(Duration::from_secs(300));
}
