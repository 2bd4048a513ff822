//! Ends, stops or slows this process at a chosen disk operation, so that tests can kill a real rank wherever they like and
//! give it a slow disk. Debug builds alone hold it; a release has nothing to arm.

use rustix::process::{Signal, getpid, kill_process};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The environment variable that a rank reads: `RANK OPERATION NTH ACTION`, for instance `0 rename 2 kill`. OPERATION is
/// that of [`super::Disk`] or [`super::DiskFile`], or `any`; NTH counts them from 1; ACTION is `kill`, `stop`, or `slow`:
/// from that one on they take [`SLOWER`] longer.
pub const VARIABLE: &str = "LAMPYRIS_FAIL_POINT";

/// How long the kernel may take to stop the other threads of a process.
const STOPPING: Duration = Duration::from_millis(200);

/// What a slow disk adds to each operation: a save of a small model then takes as long as dozens of its steps.
const SLOWER: Duration = Duration::from_millis(300);

#[derive(Debug, PartialEq, Eq)]
struct FailPoint {
    operation: String,
    nth: usize,
    action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Send(Signal),
    Slow,
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
    let [rank, operation, nth, action] = words.as_slice() else { return None };
    let action = match *action {
        "kill" => Action::Send(Signal::KILL),
        "stop" => Action::Send(Signal::STOP),
        "slow" => Action::Slow,
        _ => return None,
    };
    let point = FailPoint { operation: operation.to_string(), nth: nth.parse().ok()?, action };
    Some((rank.parse().ok()?, point))
}

/// Called before every operation that changes something.
pub(super) fn reached(operation: &str) {
    let Some(point) = ARMED.get() else { return };
    let here = point.operation == "any" || point.operation == operation;
    if !here {
        return;
    }
    let nth = REACHED.fetch_add(1, Ordering::Relaxed) + 1;
    match point.action {
        Action::Send(signal) if nth == point.nth => {
            kill_process(getpid(), signal).ok();
            // A kill ends this thread before the call returns. A stop reaches it within moments; it must not go on to the
            // operation before that.
            std::thread::sleep(STOPPING);
        }
        Action::Slow if nth >= point.nth => std::thread::sleep(SLOWER),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_parsed_and_anything_else_is_refused() {
        let point = |action| FailPoint { operation: "rename".to_string(), nth: 2, action };
        assert_eq!(parse("0 rename 2 kill"), Some((0, point(Action::Send(Signal::KILL)))));
        assert_eq!(parse("3 rename 2 stop"), Some((3, point(Action::Send(Signal::STOP)))));
        assert_eq!(parse("1 rename 2 slow"), Some((1, point(Action::Slow))));
        for text in ["", "0 rename 2", "0 rename two kill", "0 rename 2 term", "0 rename 2 kill x"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
