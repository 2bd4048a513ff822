//! What a job asks Slurm for: flags over `[cluster.slurm]` of the user's configuration over defaults.

use super::options::{self, Wrong};
use super::times::{self, Limit};
use crate::error::CliError;
use serde::Deserialize;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Seconds before the time limit at which Slurm asks for a checkpoint.
const GRACE_S: u64 = 120;

/// How much earlier than that Slurm may ask.
const EARLY_S: u64 = 60;

/// Requeues after which a job is left to a person: ten weeks of daily time limits, and an end to a job that is preempted
/// all day long.
const MAX_REQUEUES: u64 = 50;

/// Starts after a failure within one allocation.
const MAX_RETRIES: u64 = 1;

/// Flags that say what a job asks Slurm for.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct SlurmArgs {
    /// Partition
    #[arg(long, value_name = "NAME", help_heading = "Slurm")]
    partition: Option<String>,
    /// Account
    #[arg(long, value_name = "NAME", help_heading = "Slurm")]
    account: Option<String>,
    /// Quality of service
    #[arg(long, value_name = "NAME", help_heading = "Slurm")]
    qos: Option<String>,
    /// Time limit, as Slurm writes it: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS
    #[arg(long, value_name = "TIME", help_heading = "Slurm")]
    time: Option<String>,
    /// GPUs of each node
    #[arg(long, value_name = "N", help_heading = "Slurm")]
    gpus_per_node: Option<u64>,
    /// Cores of each node; whole nodes if not given
    #[arg(long, value_name = "N", help_heading = "Slurm")]
    cpus_per_node: Option<u64>,
    /// Another line of the batch script, e.g. --sbatch=--constraint=ib; may be repeated
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true, help_heading = "Slurm")]
    sbatch: Vec<String>,
}

/// `[cluster.slurm]` of the user's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SlurmConfig {
    partition: Option<String>,
    account: Option<String>,
    qos: Option<String>,
    time: Option<String>,
    gpus_per_node: Option<u64>,
    cpus_per_node: Option<u64>,
    grace_s: Option<u64>,
    max_requeues: Option<u64>,
    max_retries: Option<u64>,
    /// Lines of sbatch options, before those of the command line.
    sbatch: Vec<String>,
    /// Shell lines before the ranks start, e.g. `module load cuda`.
    setup: Vec<String>,
    /// Environment variables that a job takes over from the submitting shell.
    export: Vec<String>,
}

/// Nothing is left to default here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) partition: Option<String>,
    pub(crate) account: Option<String>,
    pub(crate) qos: Option<String>,
    pub(crate) time: Option<String>,
    pub(crate) gpus_per_node: Option<u64>,
    /// None: all cores of whole nodes.
    pub(crate) cpus_per_node: Option<u64>,
    pub(crate) grace_s: u64,
    pub(crate) max_requeues: u64,
    pub(crate) max_retries: u64,
    pub(crate) sbatch: Vec<String>,
    pub(crate) setup: Vec<String>,
    pub(crate) export: Vec<String>,
}

impl SlurmConfig {
    /// Reads the configuration at `path`; a missing file is an empty one.
    pub(crate) fn read(path: &Path) -> Result<SlurmConfig, CliError> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(SlurmConfig::default()),
            other => other.map_err(|error| CliError::read(path, error))?,
        };
        let bad = |error: &toml::de::Error| CliError::Configuration {
            path: path.to_path_buf(),
            what: error.message().to_string(),
        };
        /// The part of the file that this module knows.
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct File {
            cluster: Clusters,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Clusters {
            slurm: SlurmConfig,
        }
        toml::from_str::<File>(&text).map(|file| file.cluster.slurm).map_err(|error| bad(&error))
    }
}

impl Settings {
    /// Flags over configuration over defaults; refuses what cannot stand in a batch script.
    pub(crate) fn new(args: &SlurmArgs, config: &SlurmConfig) -> Result<Settings, CliError> {
        let text = |arg: &Option<String>, config: &Option<String>| arg.clone().or(config.clone());
        let settings = Settings {
            partition: text(&args.partition, &config.partition),
            account: text(&args.account, &config.account),
            qos: text(&args.qos, &config.qos),
            time: text(&args.time, &config.time),
            gpus_per_node: args.gpus_per_node.or(config.gpus_per_node),
            cpus_per_node: args.cpus_per_node.or(config.cpus_per_node),
            grace_s: config.grace_s.unwrap_or(GRACE_S),
            max_requeues: config.max_requeues.unwrap_or(MAX_REQUEUES),
            max_retries: config.max_retries.unwrap_or(MAX_RETRIES),
            sbatch: config.sbatch.iter().chain(&args.sbatch).cloned().collect(),
            setup: config.setup.clone(),
            export: config.export.clone(),
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), CliError> {
        let named =
            [("partition", &self.partition), ("account", &self.account), ("qos", &self.qos)];
        for (key, value) in named {
            if let Some(value) = value.as_ref().filter(|value| !is_name(value)) {
                return refuse(key, value, "letters, digits and any of _ . , : @ + -");
            }
        }
        for line in &self.sbatch {
            options::parse(line)?;
        }
        if let Some(name) = self.export.iter().find(|name| !is_variable(name)) {
            return refuse("export", name, "the name of an environment variable");
        }
        // Below that the request could come before the first step.
        if self.grace_s < 30 || self.grace_s > 65_535 {
            return refuse("grace_s", &self.grace_s.to_string(), "30 to 65535 seconds");
        }
        self.time.as_ref().map_or(Ok(()), |time| self.check_time(time))
    }

    /// Refuses a limit that is not one of Slurm's, or that leaves no time to train before the checkpoint is asked for.
    fn check_time(&self, time: &str) -> Result<(), CliError> {
        let least = self.grace_s + EARLY_S;
        match times::parse(time) {
            None => refuse("time", time, "minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"),
            Some(Limit::Seconds(seconds)) if seconds <= least => {
                let what = format!(
                    "more than {least} seconds instead of {seconds}, since the checkpoint is asked for {} \
                     seconds before the end (grace_s in [cluster.slurm], 30 or more) and Slurm may ask \
                     {EARLY_S} seconds early",
                    self.grace_s
                );
                refuse("time", time, &what)
            }
            Some(_) => Ok(()),
        }
    }
}

impl From<Wrong> for CliError {
    fn from(wrong: Wrong) -> CliError {
        CliError::SlurmSetting { key: "sbatch".into(), value: wrong.line, what: wrong.expected }
    }
}

fn refuse(key: &str, value: &str, what: &str) -> Result<(), CliError> {
    Err(CliError::SlurmSetting { key: key.into(), value: value.into(), what: what.into() })
}

fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.,:@+-".contains(c);
    !text.is_empty() && text.chars().all(plain)
}

fn is_variable(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.chars().all(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<SlurmConfig, CliError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        SlurmConfig::read(&path)
    }

    #[test]
    fn flags_win_over_the_configuration() {
        let text = "[cluster.slurm]\npartition = \"gpu\"\naccount = \"ml\"\ngrace_s = 300\n\
                    sbatch = [\"--constraint=ib\"]\n[cluster.other]\nurl = \"x\"\n";
        let config = config(text).unwrap();
        let args = SlurmArgs {
            partition: Some("debug".into()),
            sbatch: vec!["--nice".into()],
            ..SlurmArgs::default()
        };
        let settings = Settings::new(&args, &config).unwrap();
        assert_eq!(settings.partition.as_deref(), Some("debug"));
        assert_eq!(settings.account.as_deref(), Some("ml"));
        assert_eq!(settings.sbatch, ["--constraint=ib", "--nice"]);
        assert_eq!((settings.grace_s, settings.max_retries), (300, MAX_RETRIES));
    }

    #[test]
    fn a_missing_configuration_is_empty_and_a_wrong_one_is_named() {
        let none = SlurmConfig::read(Path::new("/nowhere/config.toml")).unwrap();
        assert_eq!(none, SlurmConfig::default());
        let error = config("[cluster.slurm]\npartitoin = \"gpu\"\n").unwrap_err().to_string();
        assert!(error.contains("partitoin"), "{error}");
    }

    #[test]
    fn what_cannot_stand_in_a_script_is_refused() {
        let with = |text: &str| {
            let text = format!("[cluster.slurm]\n{text}\n");
            Settings::new(&SlurmArgs::default(), &config(&text).unwrap())
        };
        for text in [
            "partition = \"a b\"",
            "account = \"$(id)\"",
            "time = \"1 hour\"",
            "time = \"1:2:3:4\"",
            "time = \"3\"",
            "time = \"0:30\"",
            "time = \"6\"\ngrace_s = 300",
            "sbatch = [\"rm -r x\"]",
            "sbatch = [\"--array=0-2\"]",
            "export = [\"A=B\"]",
            "grace_s = 5",
        ] {
            assert!(with(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_that_leaves_no_time_to_train_is_refused_with_its_figures() {
        let with = |time: &str| {
            let args = SlurmArgs { time: Some(time.into()), ..SlurmArgs::default() };
            Settings::new(&args, &SlurmConfig::default())
        };
        let error = with("1").unwrap_err().to_string();
        for part in ["time = \"1\"", "more than 180 seconds instead of 60", "120 seconds before"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        for time in ["4", "3:01", "1:00:00", "0-1", "1-12:30", "UNLIMITED", "0"] {
            assert!(with(time).is_ok(), "{time}");
        }
    }
}
