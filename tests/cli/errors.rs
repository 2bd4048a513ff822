//! What is wrong is said before anything starts, with the place, what to do and the exit code: 78 for a recipe that can
//! never work, 1 otherwise.

use crate::desk::{Desk, Ended, shipped};
use std::os::unix::fs::PermissionsExt;

fn train(desk: &Desk, arguments: &[&str]) -> Ended {
    let mut all = vec!["train"];
    all.extend(arguments);
    let ended = desk.run(&all);
    assert!(!desk.dir.path().join("runs").exists(), "nothing was started");
    ended
}

#[test]
fn a_misspelt_key_is_shown_with_its_line_and_the_nearest_key() {
    let desk = Desk::new("");
    let text = std::fs::read_to_string(shipped("debug_llama")).unwrap();
    desk.file("typo.toml", &text.replace("micro_batch", "micro_bach"));
    let ended = train(&desk, &["typo.toml"]);
    assert_eq!(ended.code, 78);
    for part in ["error: ", "micro_bach", "typo.toml:", "did you mean `batch.micro_batch`?"] {
        assert!(ended.stderr.contains(part), "{part:?} in\n{}", ended.stderr);
    }
    assert!(!ended.stderr.contains("error: error"), "{}", ended.stderr);
}

#[test]
fn a_wrong_set_is_shown_as_it_was_typed() {
    let desk = Desk::new("");
    for (set, part) in [
        ("batch.micro_bach=2", "did you mean `batch.micro_batch`?"),
        ("batch.micro_batch=two", "--set batch.micro_batch=two"),
        ("batch.leaves=3", "--set batch.leaves=3"),
        ("nonsense", "--set nonsense"),
    ] {
        let ended = train(&desk, &[&shipped("debug_llama"), "--set", set]);
        assert_eq!(ended.code, 78, "{set}: {}", ended.stderr);
        assert!(ended.stderr.contains(part), "{part:?} in\n{}", ended.stderr);
    }
}

#[test]
fn a_missing_recipe_is_named() {
    let ended = train(&Desk::new(""), &["nowhere.toml"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.starts_with("error: cannot read the recipe nowhere.toml"));
    assert!(ended.stderr.contains("\nhint: "), "{}", ended.stderr);
}

#[test]
fn a_plan_that_this_release_cannot_train_is_refused() {
    let ended = train(&Desk::new(""), &[&shipped("deepseek_v3")]);
    assert_eq!(ended.code, 78);
    assert!(ended.stderr.contains("error: not trainable: "), "{}", ended.stderr);
}

#[test]
fn text_that_does_not_fit_the_recipe_is_refused() {
    let desk = Desk::new("");
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(desk.dir.path().join(name), bytes).unwrap();
        format!("data.path={name}")
    };
    let empty = write("empty.txt", b"");
    let short = write("short.txt", b"too short for a sequence of 64 tokens");
    let latin1 = write("latin1.txt", b"caf\xe9 and so on");
    let llama = shipped("debug_llama");
    let cases: [(&[&str], &str); 5] = [
        (&["--set", "data.path=nowhere.txt"], "nowhere.txt"),
        (&["--set", &empty], "empty"),
        (&["--set", &short], "shorten batch.sequence_length or add text"),
        (&["--set", &latin1], "is not UTF-8"),
        (&["--set", "model.vocab_size=100"], "vocab"),
    ];
    for (sets, part) in cases {
        let mut arguments = vec![llama.as_str()];
        arguments.extend(sets);
        let ended = train(&desk, &arguments);
        assert_eq!(ended.code, 78, "{sets:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(part), "{part:?} in\n{}", ended.stderr);
    }
}

#[test]
fn a_rank_program_that_is_missing_broken_or_of_another_build_is_refused() {
    let desk = Desk::new("").with("LAMPYRIS_RANK", "/nowhere/lampyris-rank");
    let ended = train(&desk, &[&shipped("debug_llama")]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.starts_with("error: there is no lampyris-rank at /nowhere/lampyris-rank"));

    let desk = Desk::new("").with("FAKE_BUILD_ID", "0123456789abcdef");
    let ended = train(&desk, &[&shipped("debug_llama")]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("is of build 0123456789abcdef, this program of "));
    assert!(ended.stderr.contains("hint: build both together: `make build`"), "{}", ended.stderr);

    let desk = Desk::new("");
    let path = desk.file("broken", "#!/bin/sh\necho libtorch_cpu.so: cannot open >&2\nexit 127\n");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let desk = desk.with("LAMPYRIS_RANK", path.to_str().unwrap());
    let ended = train(&desk, &[&shipped("debug_llama")]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("libtorch_cpu.so: cannot open"), "{}", ended.stderr);
}

#[test]
fn a_folder_that_is_no_run_is_refused() {
    let desk = Desk::new("");
    for (folder, part) in [("nowhere", "it does not exist"), (".", "it has no plan.toml")] {
        let ended = desk.run(&["suspend", folder]);
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains("is not a run directory"), "{}", ended.stderr);
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
}

#[test]
fn an_existing_run_directory_is_not_touched() {
    let desk = Desk::new("");
    let ended = train(&desk, &[&shipped("debug_llama"), "--run-dir", "."]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("error: . exists already"), "{}", ended.stderr);
}
