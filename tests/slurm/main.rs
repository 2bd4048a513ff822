//! Runs on a real Slurm of four nodes in network namespaces, brought up here and torn down at the end: one case after the
//! other, since they share the nodes. `cargo test -p lampyris-tests --test slurm -- NAME` runs those whose name contains
//! NAME. Needs root and the packages of `scripts/slurm_local.sh install`; without them it says so and does nothing, but
//! fails where CI=true.

#![allow(clippy::unwrap_used, reason = "a test program: what is unexpected must panic")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test program")]

mod cases;
mod cluster;
mod hostlists;
mod job;
mod pilot;

use cluster::Cluster;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

type Case = (&'static str, fn(&Cluster));

const CASES: &[Case] = &[
    ("host lists are read as Slurm reads them", hostlists::as_scontrol_reads_them),
    ("a wrong partition is refused in Slurm's words", cases::wrong_partition),
    ("a wrong account is refused in Slurm's words", cases::wrong_account),
    ("preempted, requeued, resumed, same weights", cases::preempted),
    ("the time limit is a suspend, same weights", cases::time_limit),
    ("suspended, stays stopped, resumed, same weights", cases::suspended),
    ("stopped in the queue, continued", cases::stopped_in_the_queue),
    ("cancelled, checkpointed, not requeued", cases::cancelled),
    ("a killed rank is named and the job goes on", cases::killed_rank),
    ("a node that vanishes is replaced", cases::vanished_node),
    ("submitted from inside an allocation", cases::from_inside),
    ("nodes are lent to a scheduler and taken back", pilot::lent_and_taken_back),
    // Last: the nodes take a minute to find their controller again.
    ("the controller is away for a while", cases::controller_away),
];

fn main() -> ExitCode {
    if let Err(what) = Cluster::possible() {
        println!("slurm: skipped: {what}");
        let in_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        return if in_ci { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |case: &&Case| filter.as_ref().is_none_or(|filter| case.0.contains(filter));
    let cluster = Cluster::up();
    let mut failed = Vec::new();
    for (index, (name, case)) in CASES.iter().filter(wanted).enumerate() {
        if index > 0 {
            cluster.clear();
        }
        let began = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(|| case(&cluster))).is_ok();
        let word = if passed { "ok" } else { "FAILED" };
        println!("slurm: {name} ... {word} ({:.0} s)", began.elapsed().as_secs_f64());
        if !passed {
            failed.push(*name);
            cluster.show();
        }
    }
    drop(cluster);
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
