//! Slurm as a home: a job is one readable batch script in the run directory, one shim per node under `srun`, and no daemon
//! of ours. docs/slurm.md is the manual.
//!
//! | file | what |
//! |---|---|
//! | `hostlist` | `n[01-03,7]` to names (pure) |
//! | `lines` | values in a script: the one place where they are quoted (pure) |
//! | `times`, `options` | Slurm's time limits and a person's options of sbatch, read (pure) |
//! | `settings` | flags over `[cluster.slurm]` of the user's configuration over defaults |
//! | `script` | the batch script, rendered (pure) |
//! | `submission` | `sbatch`, and the record of it in the run directory |
//! | `allocation` | inside a job: attempt, secret and address before `srun`, one shim per node under it |
//! | `pilot` | the batch script whose nodes become workers of a scheduler |
//! | `standing` | how a run stands, from its directory and the queue (pure) |
//! | `queue` | what `squeue` and `scontrol` say, as a hint (parsing is pure) |

pub(crate) mod allocation;
#[cfg(test)]
mod fuzz;
pub(crate) mod hostlist;
pub(crate) mod lines;
mod options;
pub(crate) mod pilot;
pub(crate) mod queue;
pub(crate) mod script;
pub(crate) mod settings;
pub(crate) mod standing;
pub(crate) mod submission;
mod times;
