//! Ends or stops this process at a chosen disk operation, so that tests can kill a real rank wherever they like. Debug
//! builds alone hold it; a release has nothing to arm.

use rustix::process::{Signal, getpid, kill_process};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The environment variable that a rank reads: `RANK OPERATION NTH SIGNAL`, for instance `0 rename 2 kill`. OPERATION is
/// that of [`super::Disk`] or [`super::DiskFile`], or `any`; NTH counts them from 1; SIGNAL is `kill` or `stop`.
pub const VARIABLE: &str = "LAMPYRIS_FAIL_POINT";

/// How long the kernel may take to stop the other threads of a process.
const STOPPING: Duration = Duration::from_millis(200);

#[derive(Debug, PartialEq, Eq)]
struct FailPoint {
    operation: String,
    nth: usize,
    signal: Signal,
}

static ARMED: OnceLock<FailPoint> = OnceLock::new();
static REACHED: AtomicUsize = AtomicUsize::new(0);

/// Arms the point that [`VARIABLE`] names, if that is one of `rank`.
///
/// # Errors
/// A text that is no fail point.
pub fn arm_from_environment(rank: u64) -> Result<(), String> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
    let (of, point) = parse(&text).ok_or_else(|| format!("{VARIABLE}={text} is no fail point"))?;
    if of == rank {
        ARMED.get_or_init(|| point);
    }
    Ok(())
}

fn parse(text: &str) -> Option<(u64, FailPoint)> {
    let words: Vec<&str> = text.split(' ').collect();
    let [rank, operation, nth, signal] = words.as_slice() else { return None };
    let signal = match *signal {
        "kill" => Signal::KILL,
        "stop" => Signal::STOP,
        _ => return None,
    };
    let point = FailPoint { operation: operation.to_string(), nth: nth.parse().ok()?, signal };
    Some((rank.parse().ok()?, point))
}

/// Called before every operation that changes something.
pub(super) fn reached(operation: &str) {
    let Some(point) = ARMED.get() else { return };
    let here = point.operation == "any" || point.operation == operation;
    if here && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == point.nth {
        kill_process(getpid(), point.signal).ok();
        // A kill ends this thread before the call returns. A stop reaches it within moments; it must not go on to the
        // operation before that.
        std::thread::sleep(STOPPING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_parsed_and_anything_else_is_refused() {
        let point = |signal| FailPoint { operation: "rename".to_string(), nth: 2, signal };
        assert_eq!(parse("0 rename 2 kill"), Some((0, point(Signal::KILL))));
        assert_eq!(parse("3 rename 2 stop"), Some((3, point(Signal::STOP))));
        for text in ["", "0 rename 2", "0 rename two kill", "0 rename 2 term", "0 rename 2 kill x"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
