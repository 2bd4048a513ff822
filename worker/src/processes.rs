//! Processes by number and start time: whether one lives, and ending those that a dead shim has left.

use crate::launch::{Process, Processes};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// The kernel's name for this boot; empty where it has none.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}

impl Process {
    /// The process `pid`, if it lives.
    pub fn of(pid: u32) -> Option<Process> {
        let (state, started) = stat(pid)?;
        (!matches!(state, 'Z' | 'X')).then_some(Process { pid, started })
    }

    /// Whether it still lives; a zombie does not.
    pub fn is_alive(self) -> bool {
        Process::of(self.pid) == Some(self)
    }
}

/// State and start time of a process.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

impl Processes {
    /// Kills the shim if it lives, and every rank with its group, and waits until none lives. `false` if one still does
    /// after `limit`: a process that the kernel cannot end (a disk that hangs).
    pub fn end(&self, limit: Duration) -> bool {
        if self.boot_id != boot_id() {
            return true;
        }
        let until = Instant::now() + limit;
        if self.shim.is_alive() {
            signal(self.shim.pid, kill_process);
        }
        for rank in &self.ranks {
            // The group outlives its leader while children of it live; a number that another process has now is not it.
            if Process::of(rank.pid).is_none_or(|now| now == *rank) {
                signal(rank.pid, kill_process_group);
            }
        }
        while self.ranks.iter().chain([&self.shim]).any(|process| process.is_alive()) {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

fn signal(pid: u32, send: impl Fn(Pid, Signal) -> rustix::io::Result<()>) {
    // Not 1: as a group that would be every process of the machine.
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Gone already is as good.
        send(pid, Signal::KILL).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn a_process_is_itself_until_it_ends_and_no_other() {
        let mut child = Command::new("sleep").arg("100").process_group(0).spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.is_alive());
        assert!(!Process { started: process.started + 1, ..process }.is_alive());
        let own = Process::of(std::process::id()).unwrap();
        let gone = Process { started: own.started + 1, ..own };
        let all = Processes { boot_id: boot_id(), shim: gone, ranks: vec![process] };
        let other = Processes { boot_id: "another".into(), ..all.clone() };
        assert!(other.end(Duration::ZERO) && process.is_alive());
        assert!(all.end(Duration::from_secs(10)));
        assert!(!process.is_alive(), "a zombie is not alive");
        child.wait().unwrap();
    }
}
