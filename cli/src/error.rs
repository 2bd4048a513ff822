//! Everything that can end a command, as facts: the message says what is wrong, the hint what to try, the exit code
//! whether trying again can help.

use crate::launch::Layout;
use crate::screen;
use crate::slurm::hostlist::HostListError;
use crate::slurm::queue::SlurmError;
use lampyris_comm as comm;
use lampyris_data as data;
use lampyris_plan::digest::Change;
use lampyris_plan::validate::{Invalid, Unsupported};
use lampyris_recipes::RecipeError;
use lampyris_worker::shim::{Failure, Outcome, ShimError};
use std::io;
use std::path::{Path, PathBuf};

/// Exit code of a bad recipe or plan: never retry.
const BAD_PLAN: u8 = 78;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Carries its own layout: places, lines, help.
    #[error("{0}")]
    Recipe(#[from] RecipeError),
    #[error("{0}")]
    Untrainable(#[from] Unsupported),
    #[error("{0}")]
    Data(#[from] data::Error),
    #[error("output.sample_prompt = {prompt:?}: {source}")]
    Prompt { prompt: String, source: data::Error },
    #[error(
        "the held-out text has {tokens} tokens, and one batch of an evaluation needs {} \
         (batch.micro_batch {rows} x batch.sequence_length {length})",
        rows * length
    )]
    HeldOut { tokens: u64, rows: u64, length: u64 },
    #[error(
        "{} about {} on this machine, which has {}",
        if *ranks == 1 { "1 rank needs".into() } else { format!("{ranks} ranks need") },
        gib(*needed),
        gib(*there)
    )]
    Memory { ranks: u64, needed: u64, there: u64 },
    #[error("{0}")]
    Shim(#[from] ShimError),
    #[error("{0}")]
    Checkpoint(#[from] lampyris_checkpoint::Error),
    #[error("{0}")]
    Comm(#[from] comm::Error),
    #[error("{0}")]
    Bench(#[from] lampyris_bench::Error),
    #[error("{ranks} ranks (parallel.data) do not fill {nodes} nodes evenly")]
    Layout { ranks: usize, nodes: usize },
    #[error("the rendezvous {address} cannot be resolved: {what}")]
    Rendezvous { address: String, what: String },
    #[error("--node-rank {node} is not one of {nodes} nodes, which are numbered from 0")]
    NodeRank { node: usize, nodes: usize },
    #[error("node 0 has not started {}", .path.display())]
    NotLaunched { path: PathBuf },
    #[error("node 0 runs {}, this host {}", theirs.text(), ours.text())]
    OtherLayout { ours: Layout, theirs: Layout },
    #[error("ranks on several hosts need a run directory that all of them see")]
    RunDirNeeded,
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Invalid>),
    #[error("{0}")]
    Slurm(#[from] SlurmError),
    #[error("{0}")]
    HostList(#[from] HostListError),
    #[error("{} is not a configuration: {what}", .path.display())]
    Configuration { path: PathBuf, what: String },
    #[error("{key} = {value:?} cannot stand in a batch script: expected {what}")]
    SlurmSetting { key: String, value: String, what: String },
    #[error("{variable} is not set: this is for the batch script of a Slurm job")]
    OutsideSlurm { variable: &'static str },
    #[error("job {job} of this run is still in the queue: {state}")]
    Queued { job: u64, state: String },
    #[error("cannot find the run directory of {job}: {what}")]
    SlurmJob { job: String, what: String },
    #[error("{} was never handed to Slurm", .path.display())]
    NotOfSlurm { path: PathBuf },
    #[error("the number of the attempt is too large")]
    Attempts,
    /// The rank process failed; the shim knows the exit code.
    #[error("{failure}")]
    Rank { failure: Box<Failure>, exit_code: u8 },
    #[error("{} is not a run directory: {what}", .path.display())]
    NotARun { path: PathBuf, what: String },
    #[error("--cores: {0}")]
    Cores(#[from] lampyris_worker::cores::CoreListError),
    #[error("{0}")]
    Status(#[from] lampyris_worker::shim::status::ReadError),
    #[error("{0}")]
    Client(#[from] lampyris_worker::client::ClientError),
    #[error("{0}")]
    Worker(#[from] lampyris_worker::daemon::WorkerError),
    #[error("the scheduler at {address} does not answer: {what}")]
    SchedulerLost { address: String, what: String },
    /// The scheduler has said no, in its words.
    #[error("{what}")]
    Refused { what: String },
    #[error("job {job} has failed: {what}")]
    JobFailed { job: u64, what: String },
    #[error("{0}")]
    Scheduler(#[from] lampyris_scheduler::Error),
    #[error("{0}")]
    Secret(#[from] lampyris_worker::private::SecretError),
    #[error("{} is no policy: {what}", .path.display())]
    Policy { path: PathBuf, what: String },
    #[error("{address:?} is neither unix:/PATH nor IP:PORT")]
    Listen { address: String },
    #[error(
        "the path of the socket {} has {length} bytes, and the system takes {most} at most",
        .path.display()
    )]
    SocketPath { path: PathBuf, length: usize, most: usize },
    #[error("a daemon of this process has ended: {what}")]
    Daemon { what: String },
    #[error("{word:?} is no priority")]
    Priority { word: String },
    #[error("{} is run by no scheduler", .path.display())]
    NotInBackground { path: PathBuf },
    #[error("cannot start a runtime: {source}")]
    Runtime { source: io::Error },
    #[error("the run directory {path:?} has a character that cannot be seen, such as a line break")]
    HiddenInPath { path: PathBuf },
    #[error("{} exists already", .path.display())]
    RunExists { path: PathBuf },
    #[error("{} is running on this machine", .path.display())]
    Running { path: PathBuf },
    #[error("{} is running on {host}", .path.display())]
    RunningThere { path: PathBuf, host: String },
    #[error("this run was made with other values{}", screen::changes(changes))]
    Changed { changes: Vec<Change> },
    #[error(
        "the recipe updates by optimizer.kind = {wanted:?}, and the checkpoints of {} hold the state of {found:?}",
        .run.display()
    )]
    OtherOptimizer { run: PathBuf, found: &'static str, wanted: &'static str },
    #[error("the text of {} is not the text it has read so far", .run.display())]
    OtherText { run: PathBuf },
    #[error("{} has no checkpoint{}", .run.display(), at_step(*step))]
    NoCheckpoint { run: PathBuf, step: Option<u64> },
    #[error("{} has no step {step}", .run.display())]
    NoStep { run: PathBuf, step: u64 },
    #[error("the text {fingerprint} is no longer in the cache, and its files have changed since")]
    TextGone { fingerprint: String },
    #[error("{damaged} of {of} checkpoints are damaged")]
    Damaged { damaged: usize, of: usize },
    #[error("the recipe does not fit the model in {}: {}", .folder.display(), .problems.join("; "))]
    Mismatch { folder: PathBuf, problems: Vec<String> },
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot compress the held-out text: {source}")]
    Compress { source: io::Error },
    #[error("cannot find the path of this program: {source}")]
    OwnPath { source: io::Error },
    #[error("there is no lampyris-rank at {}", .path.display())]
    NoRankProgram { path: PathBuf },
    #[error("{} does not run: {what}", .path.display())]
    RankProgram { path: PathBuf, what: String },
    #[error("{} is of build {theirs}, this program of {ours}", .path.display())]
    BuildId { path: PathBuf, theirs: String, ours: String },
}

impl CliError {
    pub(crate) fn read(path: &Path, source: io::Error) -> CliError {
        CliError::Read { path: path.to_path_buf(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> CliError {
        CliError::Write { path: path.to_path_buf(), source }
    }

    /// What to try; empty where the message says it already.
    pub(crate) fn hint(&self) -> String {
        match self {
            CliError::Recipe(RecipeError::Read { .. }) => {
                "give the path of a recipe, e.g. recipes/quickstart.toml".into()
            }
            CliError::Rank { failure, .. } => failure.hint(),
            CliError::NotARun { .. } => {
                "name a folder that `lampyris train` made, e.g. runs/quickstart-20261123-190000"
                    .into()
            }
            CliError::Client(lampyris_worker::client::ClientError::Connect { .. }) => {
                "`lampyris up` starts one on this machine; --scheduler or LAMPYRIS_SCHEDULER names another"
                    .into()
            }
            CliError::SchedulerLost { .. } => {
                "jobs go on without it; try again when it is back".into()
            }
            CliError::JobFailed { job, .. } => {
                format!("`lampyris show {job}` and `lampyris logs {job}` say more")
            }
            CliError::Priority { .. } => {
                "low, below_normal, normal, above_normal, high, very_high or extreme_high".into()
            }
            CliError::NotInBackground { path } => format!(
                "`lampyris resume {0}` continues it here, `lampyris adopt {0}` gives it to the scheduler",
                screen::word(path)
            ),
            CliError::HiddenInPath { .. } => {
                "it would become a part of scripts and messages: name another folder with --run-dir, or \
                 rename the folder it lies in"
                    .into()
            }
            CliError::RunExists { path } => format!(
                "`lampyris resume {}` continues it; --run-dir names another place",
                screen::word(path)
            ),
            CliError::Running { path } => {
                format!("wait for it, or stop it with `lampyris suspend {}`", screen::word(path))
            }
            CliError::RunningThere { .. } => {
                "stop it there first; one that was killed counts as ended after 15 seconds".into()
            }
            CliError::Changed { changes } => {
                let keys: Vec<&str> = changes.iter().map(|change| change.key.as_str()).collect();
                format!("--allow-change {} continues with the new ones", keys.join(","))
            }
            CliError::OtherOptimizer { found, .. } => {
                format!("go on with optimizer.kind = {found:?}, or start a new run")
            }
            CliError::OtherText { .. } => {
                "put the old files back, or accept the new text with --allow-change data".into()
            }
            CliError::NoCheckpoint { run, .. } => {
                format!("`lampyris checkpoint list {}` shows those there are", screen::word(run))
            }
            CliError::NoStep { .. } => {
                "steps are counted from 1; a run that has not started yet has none".into()
            }
            CliError::Damaged { .. } => {
                "a resume sets damaged ones aside and takes the newest good one".into()
            }
            CliError::Slurm(error) => error.hint(),
            CliError::SlurmJob { .. } => "name the run directory instead".into(),
            CliError::NotOfSlurm { path } => {
                format!("`lampyris resume {} --cluster slurm` hands it over", screen::word(path))
            }
            _ => self.start_hint(),
        }
    }

    /// What to try when a run cannot be started here.
    fn start_hint(&self) -> String {
        match self {
            CliError::SocketPath { .. } => {
                "name a shorter path, or a relative one from the folder it is in".into()
            }
            CliError::Prompt { .. } => {
                "write it with characters of the text, or set output.sample_tokens = 0 for no sample"
                    .into()
            }
            CliError::HeldOut { .. } => {
                "raise data.validation_fraction, or set it to 0 to evaluate nothing".into()
            }
            CliError::Memory { .. } => {
                "`lampyris plan` shows what takes it; make the model, batch.micro_batch or \
                 parallel.data smaller"
                    .into()
            }
            CliError::TextGone { .. } => "put the files of that time back".into(),
            CliError::Queued { job, .. } => {
                format!("wait for it, or end it with `scancel {job}`")
            }
            CliError::RunDirNeeded => "name it with --run-dir, the same on all hosts".into(),
            CliError::Layout { .. } => {
                "name both: --nodes N --ranks-per-node R trains with N x R ranks".into()
            }
            CliError::NotLaunched { .. } => {
                "start it there with --node-rank 0; all hosts must see the same run directory"
                    .into()
            }
            CliError::OtherLayout { .. } => {
                "give all hosts the same --nodes and --ranks-per-node".into()
            }
            CliError::NoRankProgram { .. } => {
                "`make build` builds both programs into one folder; LAMPYRIS_RANK names another one"
                    .into()
            }
            CliError::RankProgram { .. } => {
                "`make build` builds it for the libtorch of this machine".into()
            }
            CliError::BuildId { .. } => "build both together: `make build`".into(),
            CliError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some space or name another folder".into()
            }
            _ => String::new(),
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            CliError::Recipe(RecipeError::Invalid { .. })
            | CliError::Untrainable(_)
            | CliError::Prompt { .. }
            | CliError::HeldOut { .. }
            | CliError::Memory { .. }
            | CliError::Layout { .. }
            | CliError::Invalid(_)
            | CliError::HiddenInPath { .. }
            | CliError::Changed { .. }
            | CliError::OtherOptimizer { .. }
            | CliError::OtherText { .. }
            | CliError::Mismatch { .. } => BAD_PLAN,
            CliError::Data(
                data::Error::Read { .. } | data::Error::Write { .. } | data::Error::Cargo { .. },
            ) => 1,
            // All others say that recipe and text do not fit together.
            CliError::Data(_) => BAD_PLAN,
            CliError::Rank { exit_code, .. } => *exit_code,
            _ => 1,
        }
    }
}

/// Bytes as people read memory: `7.5 GiB`.
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1_u64 << 30) as f64)
}

fn at_step(step: Option<u64>) -> String {
    step.map_or(String::new(), |step| format!(" of step {step} in its lineage"))
}

/// The code of an outcome that is no failure, or the failure.
pub(crate) fn exit_code(outcome: Outcome) -> Result<u8, CliError> {
    let exit_code = outcome.exit_code();
    match outcome {
        Outcome::Failed(failure) => Err(CliError::Rank { failure, exit_code }),
        Outcome::Finished | Outcome::Suspended { .. } => Ok(exit_code),
    }
}
