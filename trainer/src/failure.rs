//! How a rank fails: a typed cause for the shim, a hint for the person, an exit code for whoever decides about another
//! start.

use crate::Error;
use crate::link::Link;
use lampyris_proto::rank::{Failed, failed::Cause, from_rank::Body};
use rustix::process::{Signal, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGTERM, SIGUSR2};
use signal_hook::flag::register;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Exit code: another start may succeed.
const TRY_AGAIN: u8 = 75;
/// Exit code: recipe, plan or data are wrong; never retry.
const BAD_PLAN: u8 = 78;

/// Asks the kernel to kill this process when its shim dies, and leaves the signals that ask for a checkpoint to the shim:
/// Slurm sends them to every process of a node, a closed terminal to every process of its session.
pub fn die_with_parent() {
    // Best effort: end-of-file on the socket ends an orphan as well.
    set_parent_process_death_signal(Some(Signal::KILL)).ok();
    for signal in [SIGTERM, SIGUSR2, SIGHUP] {
        // A flag that nobody reads: the signal is caught and does nothing.
        register(signal, Arc::new(AtomicBool::new(false))).ok();
    }
}

/// Tells the shim that the deadline has passed; returns the exit code.
pub fn deadline(link: &mut Link) -> u8 {
    send(link, Cause::Deadline, "the deadline passed at a step boundary".into(), "");
    TRY_AGAIN
}

/// Tells the shim why the rank fails; returns the exit code.
pub fn report(link: &mut Link, error: &anyhow::Error) -> u8 {
    let (cause, hint, code) = classify(error);
    send(link, cause, format!("{error:#}"), hint);
    code
}

fn send(link: &mut Link, cause: Cause, message: String, hint: &str) {
    link.send(Body::Failed(Failed { cause: cause.into(), message, hint: hint.to_string() }));
}

fn classify(error: &anyhow::Error) -> (Cause, &'static str, u8) {
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<Error>() {
            return match error {
                Error::NotFinite { .. } => (
                    Cause::NotFinite,
                    "resume from the last checkpoint with a lower learning rate",
                    1,
                ),
                Error::Model(lampyris_model::Error::Unsupported(_)) => {
                    (Cause::BadPlan, "choose an architecture that this release trains", BAD_PLAN)
                }
                Error::Model(_) => (Cause::Device, "", 1),
                Error::Peer(error) => peer(error),
                Error::Reduction(_) => (
                    Cause::BadPlan,
                    "choose a layout with equally many ranks on every node",
                    BAD_PLAN,
                ),
            };
        }
        if let Some(error) = cause.downcast_ref::<lampyris_comm::Error>() {
            return peer(error);
        }
        if cause.is::<lampyris_data::Error>() {
            // Its messages say what to do themselves.
            return (Cause::Data, "", BAD_PLAN);
        }
        if let Some(error) = cause.downcast_ref::<lampyris_checkpoint::Error>() {
            use lampyris_checkpoint::Error as E;
            match error {
                E::OtherRank { .. } => return (Cause::PeerLost, OTHERS, TRY_AGAIN),
                E::Ranks { .. } => continue, // what came between them is next in the chain
                E::OtherOptimizer { .. } => return (Cause::BadPlan, "", BAD_PLAN),
                _ => {}
            }
            let storage =
                matches!(error, E::DiskFull { .. } | E::NotWritable { .. } | E::Io { .. });
            return match storage {
                true => (Cause::Storage, "free space or mend the disk, then resume", TRY_AGAIN),
                false => (Cause::Checkpoint, "", 1),
            };
        }
        if cause.is::<std::io::Error>() {
            return (Cause::Storage, "free space or mend the disk, then resume", TRY_AGAIN);
        }
    }
    (Cause::Internal, "", 1)
}

const OTHERS: &str = "look at the rank that failed first";

/// A peer that died or vanished is named by its own shim; whoever loses it only stops.
fn peer(error: &lampyris_comm::Error) -> (Cause, &'static str, u8) {
    use lampyris_comm::Error as E;
    match error {
        E::Invalid(_) | E::Mismatch { .. } => (Cause::Internal, "", 1),
        _ => (Cause::PeerLost, OTHERS, TRY_AGAIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn causes_are_found_below_their_context() {
        let full = std::io::Error::from_raw_os_error(28);
        let error = Err::<(), _>(full).context("writing metrics").expect_err("an error");
        assert_eq!(classify(&error).0, Cause::Storage);
        assert_eq!(classify(&error).2, 75);
        let error = anyhow::Error::from(Error::NotFinite { step: 3, what: "loss".into() });
        assert_eq!(classify(&error).0, Cause::NotFinite);
    }
}
