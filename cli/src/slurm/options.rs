//! Options of sbatch that a person adds (`--sbatch`, `sbatch` of the configuration). Those that a script of ours depends on
//! are refused: docs/slurm.md "Options of your own" says why for each.

use super::lines::sbatch_words;

/// Options that the script sets itself or that would break what it promises, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("account", "give --account, or account in [cluster.slurm]"),
    ("array", "a run has one job at a time: submit once per run"),
    ("clusters", "submit on a login node of that cluster, where its jobs are looked for"),
    ("comment", "the comment names the run directory"),
    ("cpus-per-task", "give --cpus-per-node"),
    ("error", "the log of a job is one file, which `lampyris logs` and people look for"),
    ("export", "name variables in export of [cluster.slurm]"),
    ("export-file", "name variables in export of [cluster.slurm]"),
    ("gpus-per-node", "give --gpus-per-node to lampyris itself"),
    ("help", "`man sbatch` lists the options"),
    ("job-name", "a job is named like its recipe: set name there"),
    ("no-kill", "a job that has lost a node must end, so that Slurm starts it again on others"),
    ("no-requeue", "the script requeues itself: set max_requeues = 0 in [cluster.slurm]"),
    ("nodes", "give --nodes to lampyris itself"),
    ("ntasks", "one task per node starts that node's ranks: give --ranks-per-node"),
    ("ntasks-per-core", "one task per node starts that node's ranks: give --ranks-per-node"),
    ("ntasks-per-gpu", "one task per node starts that node's ranks: give --ranks-per-node"),
    ("ntasks-per-node", "one task per node starts that node's ranks: give --ranks-per-node"),
    ("ntasks-per-socket", "one task per node starts that node's ranks: give --ranks-per-node"),
    ("open-mode", "a requeued job goes on with its log"),
    ("output", "the log of a job lies in its run directory"),
    ("partition", "give --partition, or partition in [cluster.slurm]"),
    ("qos", "give --qos, or qos in [cluster.slurm]"),
    ("requeue", "the script says whether it may be requeued"),
    ("signal", "set grace_s in [cluster.slurm]"),
    ("tasks-per-node", "one task per node starts that node's ranks: give --ranks-per-node"),
    ("test-only", "--dry-run prints the script; `sbatch --test-only` takes it"),
    ("time", "give --time, or time in [cluster.slurm]"),
    ("time-min", "a job that Slurm shortens may end before its checkpoint: give --time"),
    ("usage", "`man sbatch` lists the options"),
    ("version", "`sbatch --version` says it"),
    ("wait", "`lampyris ranks RUN --follow` waits"),
    ("wrap", "the script is what is submitted"),
];

/// Options whose name is the beginning of a refused one.
const ALLOWED: &[&str] = &["gpus"];

/// Short options that may be given, which take a value or none.
const SHORT_WITH_VALUE: &str = "BCDFGLSbdiwxm";
const SHORT: &str = "HIOQsv";

/// An option that may not be given.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) line: String,
    /// What may be given instead.
    pub(super) expected: String,
}

/// The words of an option that may be given; sbatch reads `line` as it reads a line after `#SBATCH`.
pub(super) fn parse(line: &str) -> Result<Vec<String>, Wrong> {
    let words = sbatch_words(line);
    match expected_instead(&words) {
        Some(expected) => Err(Wrong { line: line.into(), expected }),
        None => Ok(words),
    }
}

/// What is expected instead of these words, if they may not be given.
fn expected_instead(words: &[String]) -> Option<String> {
    const FORM: &str = "one option of sbatch, e.g. --constraint=ib";
    let (option, value) = match words {
        [option] => (option, None),
        [option, value] if !value.starts_with('-') => (option, Some(value)),
        _ => return Some(FORM.into()),
    };
    if let Some(long) = option.strip_prefix("--") {
        let name = long.split_once('=').map_or(long, |(name, _)| name);
        let two_values = long.contains('=') && value.is_some();
        return if name.is_empty() || two_values { Some(FORM.into()) } else { refusal(name) };
    }
    match option.strip_prefix('-') {
        Some(letters) if is_allowed_short(letters, value.is_some()) => None,
        Some(_) => Some("the long name of an option of sbatch, e.g. --constraint=ib".into()),
        None => Some(FORM.into()),
    }
}

/// Why the option of this name may not be given. sbatch takes the beginning of a name for the name.
fn refusal(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase().replace('_', "-");
    if ALLOWED.contains(&name.as_str()) {
        return None;
    }
    let (refused, instead) = REFUSED.iter().find(|(refused, _)| refused.starts_with(&name))?;
    let see = "see \"Options of your own\" in docs/slurm.md";
    Some(format!("an option other than --{refused} ({instead}; {see})"))
}

fn is_allowed_short(letters: &str, value_follows: bool) -> bool {
    let mut rest = letters.chars();
    let first = rest.next();
    let value_within = !rest.as_str().is_empty();
    match first {
        Some(letter) if SHORT_WITH_VALUE.contains(letter) => value_within != value_follows,
        Some(letter) if SHORT.contains(letter) => !value_within && !value_follows,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_site_are_taken() {
        for line in [
            "--constraint=ib",
            "--constraint ib",
            "--constraint='ib&x y'",
            "--nice",
            "--gpus=8",
            "--gres=gpu:8",
            "--exclusive=user",
            "--mem=0",
            "--hint=nomultithread",
            "--reservation=a",
            "--nodelist=n[1-2]",
            "--wait-all-nodes=1",
            "-C ib",
            "-Cib",
            "-H",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
        }
    }

    #[test]
    fn options_that_break_a_script_are_refused_however_they_are_written() {
        for line in [
            "--array=0-2",
            "--array 0-2",
            "--arr=0-2",
            "\"--array=0-2\"",
            "--ar\\ray=0-2",
            "--ARRAY=0-2",
            "-a 0-2",
            "-a0-2",
            "-Ha0-2",
            "--nice --array=0-2",
            "--requeue",
            "--no-requeue",
            "--signal=TERM@5",
            "--open-mode=truncate",
            "--open_mode=truncate",
            "--output=x",
            "-o x",
            "--job-name=x",
            "--nodes=3",
            "-N3",
            "--ntasks=3",
            "-n 3",
            "--ntasks-per-node=2",
            "--export=ALL",
            "--time=1",
            "-t1",
            "--t=1",
            "--wrap=id",
            "--wait",
            "-W",
            "--comment=x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        let Wrong { line, expected } = parse("--array=0-2").unwrap_err();
        assert_eq!(line, "--array=0-2");
        assert!(expected.contains("--array") && expected.contains("docs/slurm.md"), "{expected}");
        for line in ["", "rm -r x", "--", "--=x", "x", "--a=b c", "# --nice", "-"] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
