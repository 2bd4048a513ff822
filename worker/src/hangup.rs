//! SIGHUP, the signal of a terminal that was closed or an ssh connection that was lost. It asks for a checkpoint as SIGTERM
//! does, unless whoever started the program said that it must not matter (`nohup`).

use std::fs;

/// Whether this process ignores SIGHUP. To be asked before a handler is installed: a handler replaces that wish.
pub fn is_ignored() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status))
}

/// Whether a process with this `/proc/PID/status` ignores SIGHUP, signal 1: the lowest bit of the mask.
fn ignores(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bit_of_the_ignored_signals_is_the_hangup() {
        let status = |mask: &str| format!("Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(ignores(&status("0000000000001001")));
        assert!(!ignores(&status("0000000000001000")));
        assert!(!ignores("Name:\tx\n"));
    }
}
