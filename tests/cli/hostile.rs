//! What others wrote does not become a command or an escape sequence: names and values with control characters in files of
//! runs, in recipes and on the command line, and paths that the shell or Slurm could read as something else.

use crate::desk::{Desk, Ended, shipped};
use lampyris_tests::program;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// As JSON and TOML write them: a title, a cleared screen, C1, a line break with a forged line, an override, no width.
const NASTY: &str = r"a\u001b]0;title\u0007\u001b[2J\u009b31m\nerror: forged\u007f\u202e\u200bb";

/// No byte of it could be obeyed by a terminal.
#[track_caller]
fn assert_text(text: &str) {
    let hidden = |c: &char| {
        (c.is_control() && *c != '\n') || "\u{202e}\u{2066}\u{200b}\u{200e}\u{2028}".contains(*c)
    };
    assert_eq!(text.chars().find(hidden), None, "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("error: forged")), "{text}");
}

#[track_caller]
fn assert_shown(ended: &Ended, part: &str) {
    assert_text(&ended.stdout);
    assert_text(&ended.stderr);
    let all = format!("{}{}", ended.stdout, ended.stderr);
    assert!(all.contains(part), "{part:?} in\n{all}");
}

/// A run whose plan and status somebody has filled with control characters.
fn damaged_run(desk: &Desk) {
    let made =
        desk.run(&["submit", &shipped("debug_moe"), "--cluster", "slurm", "--run-dir", "runs/x"]);
    assert!(made.stderr.contains("not submitted"), "{}", made.stderr);
    let run = desk.dir.path().join("runs/x");
    let plan = fs::read_to_string(run.join("plan.toml")).unwrap();
    fs::write(
        run.join("plan.toml"),
        plan.replace("name = \"debug_moe\"", &format!("name = \"{NASTY}\"")),
    )
    .unwrap();
    fs::create_dir(run.join("checkpoints")).unwrap();
    fs::write(run.join("lineage.jsonl"), "{\"attempt\":1,\"parent\":null}\n").unwrap();
    let status = format!(
        r#"{{"attempt":1,"world":1,"nodes":1,"node":0,"host":"{NASTY}","pid":1,"state":"failed","exit_code":1,
        "reason":"{NASTY}","written_ms":1,"ranks":[{{"rank":0,"node":0,"pid":1,"step":1,"total_steps":2,
        "operation":"{NASTY}","since_ms":1}}]}}"#
    );
    fs::write(run.join("status.json"), status).unwrap();
}

/// Two crates that may not know each other hold the list: what one shows escaped the other refuses in names and paths.
#[test]
fn what_is_escaped_on_a_screen_is_refused_in_a_name() {
    for c in (0..=0x10_ffff).filter_map(char::from_u32) {
        let refused = lampyris_proto::words::name_problem(&format!("a{c}b")).is_some();
        assert_eq!(lampyris_plan::visible::is_hidden(c), refused, "{c:?}");
    }
}

#[test]
fn names_and_reasons_in_files_of_a_run_are_shown_as_text() {
    let desk = Desk::new("").with("PATH", "/nowhere").with("LAMPYRIS_CONFIG", "none.toml");
    damaged_run(&desk);
    let seen = r"a\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\nerror: forged\u{7f}\u{202e}\u{200b}b";
    assert_shown(&desk.run(&["list", "--local", "runs", "--all"]), seen);
    assert_shown(&desk.run(&["show", "runs/x"]), seen);
    assert_shown(&desk.run(&["ranks", "runs/x"]), seen);
    let json = desk.run(&["ranks", "runs/x", "--json"]);
    assert_text(&json.stdout);
    let value: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(value[0]["host"], serde_json::from_str::<String>(&format!("\"{NASTY}\"")).unwrap());
}

#[test]
fn keys_values_and_arguments_in_errors_are_shown_as_text() {
    let desk = Desk::new("");
    let recipe = format!("\"{NASTY}\" = 1\n");
    desk.file("key.toml", &recipe);
    assert_shown(&desk.run(&["plan", "key.toml"]), r"unknown key `a\u{1b}]0;title");
    let forged = "a\u{1b}[2J\nerror: forged\u{9b}\u{202e}";
    assert_shown(&desk.run(&["plan", forged]), r"a\u{1b}[2J");
    assert_shown(&desk.run(&["show", forged]), r"a\u{1b}[2J");
    assert_shown(&desk.run(&["plan", "key.toml", "--set", forged]), r"a\u{1b}[2J\nerror: forged");
    let unknown = desk.run(&["plan", "--a\u{1b}[2J"]);
    assert_shown(&unknown, "unexpected argument");
    assert_eq!(unknown.code, 2);
}

/// `script` of util-linux gives a program a terminal.
#[test]
fn a_log_is_raw_in_a_pipe_and_text_on_a_terminal() {
    let desk = Desk::new("").with("PATH", "/nowhere").with("LAMPYRIS_CONFIG", "none.toml");
    damaged_run(&desk);
    let log = b"tab\there\n\x1b]0;title\x07\x9b31m \xe7\x95\x8c end\n";
    fs::create_dir_all(desk.dir.path().join("runs/x/logs")).unwrap();
    fs::write(desk.dir.path().join("runs/x/logs/rank-0.attempt-1.log"), log).unwrap();
    let piped = desk.command(&["logs", "runs/x", "--attempt", "1"]).output().unwrap();
    assert_eq!(piped.stdout, log);
    let command = format!("'{}' logs runs/x --attempt 1", program("lampyris").display());
    let mut terminal = Command::new("script");
    terminal.args(["-q", "-e", "-c", &command, "/dev/null"]).current_dir(desk.dir.path());
    let Ok(output) = terminal.output() else {
        return eprintln!("there is no `script`: not checked");
    };
    let shown = String::from_utf8(output.stdout).unwrap().replace("\r\n", "\n");
    assert_eq!(shown, "tab\there\n\\u{1b}]0;title\\u{7}\u{fffd}31m 界 end\n");
}

/// A folder with an `sbatch` that notes its arguments and runs the script it is given.
fn with_sbatch(folder: &Path) -> Desk {
    let program = |name: &str, text: &str| {
        fs::write(folder.join(name), text).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    let text = format!(
        "#!/bin/bash\nprintf '%s\\n' \"$@\" >'{0}/arguments'\ncd '{0}' || exit\n\
         SLURM_JOB_ID=1 SLURM_CPUS_ON_NODE=1 bash \"$2\" >/dev/null 2>&1\necho 7\n",
        folder.display()
    );
    program("sbatch", &text);
    // It says of no job that it runs.
    program("scontrol", "#!/bin/bash\n");
    let path = format!("{}:/usr/bin:/bin", folder.display());
    Desk::new("").with("PATH", &path).with("LAMPYRIS_CONFIG", "none.toml")
}

#[test]
fn a_line_break_in_a_path_never_reaches_a_script() {
    let slurm = tempfile::tempdir().unwrap();
    let desk = with_sbatch(slurm.path());
    let recipe = shipped("debug_moe");
    let submit = |more: &[&str]| {
        let words = ["submit", recipe.as_str(), "--cluster", "slurm"];
        desk.run(&[&words[..], more].concat())
    };
    let cases: [(&[&str], &str); 4] = [
        (
            &["--set", "output.runs_dir=\"x\\ntouch PWNED\""],
            r#"output.runs_dir = "x\ntouch PWNED" has a character that cannot be seen"#,
        ),
        (&["--run-dir", "x\ntouch PWNED"], r#"x\ntouch PWNED" cannot stand in a batch script"#),
        (&["--run-dir", "x\ntouch PWNED", "--dry-run"], r"x\ntouch PWNED"),
        (&["--run-dir", "x", "--partition", "a\ntouch PWNED"], r#"partition = "a\ntouch PWNED""#),
    ];
    for (more, part) in cases {
        let ended = submit(more);
        assert_ne!(ended.code, 0);
        assert_shown(&ended, part);
    }
    assert!(!slurm.path().join("arguments").exists(), "nothing was submitted");
    assert!(!desk.dir.path().join("x").exists(), "nothing was made");
    // The current folder is a part of every relative path.
    let folder = desk.dir.path().join("a\ntouch PWNED");
    fs::create_dir(&folder).unwrap();
    let cases: [(&[&str], &str); 2] = [
        (&["train", &recipe, "--run-dir", "x"], "has a character that cannot be seen"),
        (&["submit", &recipe, "--cluster", "slurm"], "cannot stand in a batch script"),
    ];
    for (words, part) in cases {
        let output = desk.command(words).current_dir(&folder).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(part), "{said}");
        assert_text(&said);
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn a_run_directory_is_no_option_of_sbatch_and_no_command_to_paste() {
    let slurm = tempfile::tempdir().unwrap();
    let desk = with_sbatch(slurm.path());
    let name = "--wrap=$(touch PWNED)";
    let run_dir = format!("--run-dir={name}");
    let ended = desk.run(&["submit", &shipped("debug_moe"), "--cluster", "slurm", &run_dir]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "slurm:7\n"), "{}", ended.stderr);
    let script = desk.dir.path().join(name).join("job.sbatch");
    let arguments = fs::read_to_string(slurm.path().join("arguments")).unwrap();
    assert_eq!(arguments, format!("--parsable\n{}\n", script.display()));
    assert!(!slurm.path().join("PWNED").exists());
    assert!(ended.stderr.contains("`lampyris ranks '--wrap=$(touch PWNED)'`"), "{}", ended.stderr);
}

#[test]
fn what_breaks_a_job_of_slurm_is_refused_with_figures_or_a_place_to_read() {
    let desk = Desk::new("").with("LAMPYRIS_CONFIG", "none.toml");
    let submit = |more: &[&str]| {
        let recipe = shipped("debug_moe");
        let words = ["submit", recipe.as_str(), "--cluster", "slurm", "--dry-run"];
        desk.run(&[&words[..], more].concat())
    };
    let short = submit(&["--time", "1"]);
    assert_shown(&short, "more than 180 seconds instead of 60");
    let array = submit(&["--sbatch=--array=0-2"]);
    assert_shown(&array, "see \"Options of your own\" in docs/slurm.md");
    assert_eq!((short.code, array.code), (1, 1));
    assert_eq!(submit(&["--time", "1-12", "--sbatch=--constraint=ib"]).code, 0);
}
