//! Mutation fuzzing of the files of a run directory, and of a person's configuration, as the commands read them: whatever the
//! bytes are, a command has an answer or an error that names the file. The corpus is `testdata/run_dir`, one file per input,
//! named by its parser. Checkpoints, lineages and records of attempts are fuzzed in `checkpoint`.

use crate::backend::local;
use crate::commands::scheduler::PolicyArgs;
use crate::commands::trace;
use crate::imported;
use crate::launch::{LaunchArgs, await_word};
use crate::memory;
use crate::run_dir::RunDir;
use crate::screen;
use crate::slurm::allocation::Launch;
use crate::slurm::settings::{Settings, SlurmArgs, SlurmConfig};
use crate::slurm::submission;
use crate::trace_summary::table;
use lampyris_data::PartSummary;
use lampyris_fuzz::fuzz;
use lampyris_plan::digest::{Digests, changes};
use lampyris_worker::report::Report;
use lampyris_worker::shim::status;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/run_dir")
}

/// Where the input of each parser lies in a run directory.
const FILES: [(&str, &str); 11] = [
    ("plan", "plan.toml"),
    ("dataset", "dataset.json"),
    ("imported", "imported.json"),
    ("status", "status.json"),
    ("report", "report.json"),
    ("slurm", "slurm.jsonl"),
    ("word", "control/launch.json"),
    ("launch", "control/launch.attempt-3.json"),
    ("trace", "traces/rank-0.attempt-3.json"),
    ("policy", "policy.toml"),
    ("config", "config.toml"),
];

/// A run directory with a plan and nothing else.
struct Desk {
    dir: tempfile::TempDir,
    run: RunDir,
}

impl Desk {
    fn new() -> Desk {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["control", "traces", "checkpoints"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        fs::copy(corpus().join("plan-debug_moe"), dir.path().join("plan.toml")).unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        Desk { dir, run }
    }

    /// Puts the input where its command looks for it, and reads it.
    fn parse(&self, parser: &str, input: &[u8]) {
        let file = FILES.iter().find(|(of, _)| *of == parser);
        let (_, file) = file.unwrap_or_else(|| panic!("no parser {parser}: see FILES"));
        let path = self.dir.path().join(file);
        let before = fs::read(&path);
        fs::write(&path, input).unwrap();
        self.read(parser, &path);
        match before {
            Ok(before) => fs::write(&path, before).unwrap(),
            Err(_) => fs::remove_file(&path).unwrap(),
        }
    }

    fn read(&self, parser: &str, path: &Path) {
        let run = &self.run;
        match parser {
            "plan" => plan(run),
            "dataset" => {
                if let Ok(record) = run.dataset() {
                    let fingerprint = record.expect("the file is there").fingerprint;
                    assert!(!fingerprint.contains(['/', '.']), "it names a folder of the cache");
                }
            }
            "imported" => {
                let before = run.plan().unwrap();
                let taken = imported::take_sizes(run, &before, &mut before.clone());
                assert!(!matches!(taken, Ok(None)), "the file is there");
            }
            "status" => {
                if let Ok(nodes) = status::read(run.path()) {
                    screen::ranks(&nodes, status::unix_ms());
                    let details = local::details(run).expect("the plan is whole");
                    screen::jobs::job(&details, 80);
                }
            }
            "report" => {
                if let Ok(said) = Report::read(run.path()) {
                    screen::report(run.path(), &said, &PartSummary::default(), &[]);
                }
            }
            "slurm" => {
                submission::handed(run).expect("lines that are no records are passed over");
            }
            "word" => drop(await_word(run.path(), &LaunchArgs::default())),
            "launch" => {
                if let Ok(launch) = Launch::read(path) {
                    launch.layout.world();
                }
            }
            "trace" => drop(table(&trace::summary(run).expect("other lines are passed over"))),
            "policy" => {
                if let Ok(policy) = PolicyArgs::of(path).read(Default::default()) {
                    policy.check().ok();
                }
            }
            "config" => {
                let config = SlurmConfig::read(path);
                config.and_then(|config| Settings::new(&SlurmArgs::default(), &config)).ok();
            }
            other => panic!("{other} has a file and no parser"),
        }
    }
}

/// Any plan can be compared with another; one that breaks no rule can be started.
fn plan(run: &RunDir) {
    let Ok(plan) = run.plan() else { return };
    let changed = changes(&plan, &plan);
    assert!(changed.is_empty(), "{changed:?}");
    Digests::of(&plan);
    local::details(run).expect("it was never started");
    if run.valid_plan().is_ok() {
        let layout = LaunchArgs::default().layout(&plan).expect("on one node");
        memory::check(&plan, layout, None).ok();
    }
}

fn run(time: Duration, seed: Option<u64>) {
    let desk = Desk::new();
    fuzz(&corpus(), time, seed, |parser, input| desk.parse(parser, input));
}

#[test]
fn whatever_lies_in_a_run_directory_has_an_answer() {
    run(Duration::from_millis(800), Some(0x5eed));
}

#[test]
#[ignore = "long: ten minutes of mutations"]
fn whatever_lies_in_a_run_directory_has_an_answer_for_ten_minutes() {
    run(Duration::from_secs(600), None);
}

/// The mutations begin from files that are read: an input that is refused teaches little.
#[test]
fn good_inputs_of_the_corpus_are_read() {
    let desk = Desk::new();
    let run = &desk.run;
    for (parser, file) in FILES {
        let good = fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().path());
        let mut good: Vec<PathBuf> = good
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(parser))
            .filter(|path| !path.to_string_lossy().ends_with("_can_be"))
            .filter(|path| !path.ends_with("dataset-elsewhere"))
            .collect();
        good.sort();
        for input in &good {
            fs::copy(input, desk.dir.path().join(file)).unwrap();
            let path = desk.dir.path().join(file);
            match parser {
                "plan" => drop(run.valid_plan().unwrap()),
                "dataset" => assert!(run.dataset().unwrap().is_some()),
                "imported" => assert!(run.imported().unwrap().is_some()),
                "status" => assert_eq!(status::read(run.path()).unwrap().len(), 1),
                "report" => drop(Report::read(run.path()).unwrap()),
                "slurm" => assert!(submission::handed(run).unwrap().is_some()),
                "word" => drop(await_word(run.path(), &LaunchArgs::default()).unwrap()),
                "launch" => drop(Launch::read(&path).unwrap()),
                "policy" => {
                    PolicyArgs::of(&path).read(Default::default()).unwrap().check().unwrap()
                }
                "config" => drop(SlurmConfig::read(&path).unwrap()),
                _ => {}
            }
        }
        assert!(!good.is_empty(), "{parser}");
        fs::copy(corpus().join("plan-debug_moe"), desk.dir.path().join("plan.toml")).unwrap();
    }
}

/// A run that goes on with fewer ranks keeps the traces of those that it had.
#[test]
fn a_trace_of_a_rank_that_the_plan_no_longer_has_is_summed_without_a_bound() {
    let desk = Desk::new();
    for rank in [0, 5] {
        let path = desk.dir.path().join(format!("traces/rank-{rank}.attempt-1.json"));
        fs::copy(corpus().join("trace-step"), path).unwrap();
    }
    let ranks = trace::summary(&desk.run).unwrap();
    assert_eq!(ranks.len(), 2);
    assert!(ranks[0].bound.is_some() && ranks[1].bound.is_none());
    assert!(ranks.iter().all(|rank| rank.step_s == Some(1.0)));
}

#[test]
fn a_plan_that_breaks_a_rule_is_refused_by_name_before_anything_is_computed() {
    let desk = Desk::new();
    let text = fs::read_to_string(desk.run.plan_path()).unwrap();
    fs::write(desk.run.plan_path(), text.replace("heads = 4", "heads = 0")).unwrap();
    let error = trace::summary(&desk.run).unwrap_err().to_string();
    assert!(error.contains("model.heads = 0"), "{error}");
}
