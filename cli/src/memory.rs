//! Whether the ranks of a start fit this machine: what the plan says they hold, beside all memory that there is. A plan that
//! cannot fit is refused with both figures; one that fits may still find the memory taken.

use crate::error::CliError;
use crate::launch::{Layout, Place};
use lampyris_plan::memory::RankMemory;
use lampyris_plan::train_plan::Device;
use lampyris_plan::{Shares, TrainPlan};
use std::fs;

/// What a rank's process holds without a model, libtorch above all: a lower bound.
const PROCESS_BYTES: u64 = 64 << 20;

/// Refuses ranks of `plan` that need more memory than this machine has. `place` is none if all of them run here.
pub(crate) fn check(
    plan: &TrainPlan,
    layout: Layout,
    place: Option<&Place>,
) -> Result<(), CliError> {
    // A device has memory of its own, which this program cannot see.
    if plan.device != Device::Cpu {
        return Ok(());
    }
    let ranks = match place {
        None => layout.world(),
        Some(_) => layout.ranks_per_node,
    } as u64;
    let rank = RankMemory::of(plan, &Shares::of(plan), plan.batch.reduction).total();
    let needed = rank.saturating_add(PROCESS_BYTES).saturating_mul(ranks);
    match there() {
        Some(there) if needed > there => Err(CliError::Memory { ranks, needed, there }),
        _ => Ok(()),
    }
}

/// Bytes that programs here can have: memory and swap, or less where a container is given less; none if unknown.
fn there() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let machine = field(&meminfo, "MemTotal:")?.saturating_add(field(&meminfo, "SwapTotal:")?);
    let container = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = container.and_then(|limit| limit.trim().parse().ok());
    Some(container.map_or(machine, |limit: u64| limit.min(machine)))
}

/// A line of /proc/meminfo, in bytes.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read() {
        let meminfo = "MemTotal:        8 kB\nMemFree: 1 kB\nSwapTotal:       2 kB\n";
        assert_eq!(field(meminfo, "MemTotal:"), Some(8192));
        assert_eq!(field(meminfo, "SwapTotal:"), Some(2048));
        assert_eq!(field(meminfo, "Missing:"), None);
        assert!(there().unwrap() > 64 << 20);
    }
}
