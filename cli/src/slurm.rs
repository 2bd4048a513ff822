//! Slurm as a home: a job is one readable batch script in the run directory, one shim per node under `srun`, and no daemon
//! of ours. docs/slurm.md is the manual.
//!
//! | file | what |
//! |---|---|
//! | `hostlist` | `n[01-03,7]` to names (pure) |
//! | `settings` | flags over `[cluster.slurm]` of the user's configuration over defaults |
//! | `script` | the batch script, rendered (pure) |
//! | `submission` | `sbatch`, and the record of it in the run directory |
//! | `allocation` | inside a job: attempt, secret and address before `srun`, one shim per node under it |
//! | `pilot` | the batch script whose nodes become workers of a scheduler |
//! | `standing` | how a run stands, from its directory and the queue (pure) |
//! | `queue` | what `squeue` and `scontrol` say, as a hint (parsing is pure) |

pub(crate) mod allocation;
pub(crate) mod hostlist;
pub(crate) mod pilot;
pub(crate) mod queue;
pub(crate) mod script;
pub(crate) mod settings;
pub(crate) mod standing;
pub(crate) mod submission;
