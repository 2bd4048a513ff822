//! The help texts, word for word.

use crate::desk::Desk;
use lampyris_tests::assert_golden;

const SUB_COMMANDS: &[&str] = &[
    "plan",
    "train",
    "resume",
    "submit",
    "suspend",
    "ranks",
    "replay",
    "run",
    "up",
    "submit",
    "adopt",
    "list",
    "show",
    "logs",
    "top",
    "stop",
    "nodes",
    "drain",
    "events",
    "scheduler",
    "worker",
    "completions",
    "man",
    "checkpoint",
    "checkpoint list",
    "checkpoint show",
    "checkpoint verify",
    "checkpoint diff",
    "checkpoint prune",
    "checkpoint repair",
    "export",
    "import",
    "bench",
    "bench allreduce",
    "bench table",
];

#[test]
fn help_texts_are_as_committed() {
    let desk = Desk::new("");
    let mut all = desk.run(&["--help"]).stdout;
    for sub_command in SUB_COMMANDS {
        let words: Vec<&str> = sub_command.split(' ').chain(["--help"]).collect();
        let help = desk.run(&words);
        assert_eq!(help.code, 0);
        all.push_str(&format!("\n----- {sub_command} -----\n{}", help.stdout));
    }
    assert_golden("tests/cli/golden/help.txt", &all);
}

#[test]
fn the_version_names_the_build_that_both_programs_share() {
    let ours = Desk::new("").run(&["--version"]).stdout;
    let build_id = lampyris_proto::build_id(lampyris_plan::train_plan::SCHEMA);
    assert_eq!(ours, format!("lampyris {} (build {build_id})\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn what_computes_is_handed_to_the_rank_program_with_its_exit_code() {
    let desk = Desk::new("").with("FAKE_EXIT", "3");
    for sub_command in ["generate", "parity", "bench"] {
        let ended = desk.run(&[sub_command, "a b", "--prompt", "--help", "-x"]);
        assert_eq!(ended.stdout, format!("{sub_command} a b --prompt --help -x\n"));
        assert_eq!(ended.code, 3);
    }
}
