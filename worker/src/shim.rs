//! The shim: one supervisor per job and node. It starts the rank processes of its node, listens to each over an inherited
//! Unix socket, relays suspend requests, holds the deadline, and turns the way the ranks end into one [`Outcome`].
//!
//! `Options -> build() -> Service::run(events)`, with a [`Handle`] to speak to it meanwhile. The decisions are in
//! `supervisor` (pure: no clock, files or processes), the doing in `service` and `rank_process`. One thread, no network,
//! no tokio. Starting a job, choosing an attempt and drawing progress are the caller's.
//!
//! What the ranks are at is written to `status.json` of the run directory ([`status`]) for `lampyris ranks` and for
//! whoever asks later how the attempt ended.
//!
//! Suspend is a contract, not a kill (docs/architecture.md, "Control"):
//!
//! | what happens | what the ranks are told | exit code |
//! |---|---|---|
//! | SIGTERM, SIGUSR2, SIGHUP | suspend, wants to go on | 85 |
//! | SIGINT, `control/suspend.json` | suspend, stay stopped | 86 |
//! | second SIGINT | nothing, they are killed | 130 |
//! | deadline passed | nothing, they are killed | 75 |
//! | a rank fails | nothing; the others are killed after 0.5 s | 75 or 78 as the rank's, else 1 |

pub mod control;
mod cores;
mod outcome;
mod rank_process;
mod service;
pub mod status;
mod supervisor;

pub use outcome::{Event, Exit, Failure, FailureCause, Outcome, SuspendReason};
pub use rank_process::log_name;
pub use service::{Handle, Options, Rendezvous, Service, ShimError, boottime};
