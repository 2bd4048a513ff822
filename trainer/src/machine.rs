//! What a rank runs on: device, threads, numerics fingerprint, memory, peak speed.

use anyhow::{Result, bail};
use lampyris_plan::train_plan::{self, Compute, Reduction, TrainPlan};
use std::collections::BTreeMap;
use std::time::Instant;
use tch::{Cuda, Device, Kind, Tensor};

/// Most threads of a rank under canonical reduction, whose bits no layout changes: from 16 on, MKL sums some matrix products of
/// fp32 in parts; up to 8 it does not, whatever the machine.
const CANONICAL_THREADS: usize = 8;

/// The cores of this rank: those that its process may use, and no more than the shim, or a person, has given it.
fn cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    match std::env::var("OMP_NUM_THREADS").ok().and_then(|given| given.parse().ok()) {
        Some(given) => allowed.min(given).max(1),
        None => allowed,
    }
}

/// What to tell a person whose plan asks for more threads than are started, if so.
pub fn crowded(plan: &TrainPlan) -> Option<String> {
    let (asked, cores) = (plan.parallel.threads_per_rank, cores());
    let started = threads(asked, cores, plan.batch.reduction);
    (asked > started).then(|| match started == cores {
        true => format!(
            "parallel.threads_per_rank = {asked}, but this rank was given {cores} cores: \
             it computes with {started} threads"
        ),
        false => format!(
            "parallel.threads_per_rank = {asked}: with more than {started} threads the bits of canonical \
             reduction would depend on their number, so this rank computes with {started}; \
             train with more ranks, or with batch.reduction = \"fast\""
        ),
    })
}

/// The device of a rank and its threads, set up for this process.
pub fn set_up(plan: &TrainPlan, local_rank: usize, local_ranks: usize) -> Result<Device> {
    // The shim may have told each rank its cores; where nobody has, the ranks of a machine share them evenly.
    let asked = match plan.parallel.threads_per_rank {
        0 if std::env::var_os("OMP_NUM_THREADS").is_none() => cores() / local_ranks.max(1),
        0 => cores(),
        threads => threads,
    };
    let threads = threads(asked, cores(), plan.batch.reduction);
    tch::set_num_threads(i32::try_from(threads)?);
    if tch::get_num_interop_threads() != 1 {
        // Nothing here runs several operators side by side.
        tch::set_num_interop_threads(1);
    }
    match plan.device {
        train_plan::Device::Cpu => Ok(Device::Cpu),
        train_plan::Device::Cuda if Cuda::is_available() => Ok(Device::Cuda(local_rank)),
        train_plan::Device::Cuda => bail!(
            "the plan says device = \"cuda\" but this libtorch sees no CUDA device; \
             build with LIBTORCH pointing at a CUDA libtorch, or use --set device=cpu"
        ),
    }
}

/// The threads to compute with. More than there are cores only wait for each other.
fn threads(asked: usize, cores: usize, reduction: Reduction) -> usize {
    let most = match reduction {
        Reduction::Canonical => cores.min(CANONICAL_THREADS),
        Reduction::Fast => cores,
    };
    asked.clamp(1, most.max(1))
}

/// The device in words.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => format!("cpu ({})", lampyris_torch::kernel_name()),
        other => format!("{other:?}"),
    }
}

/// Everything outside the recipe that may change a bit.
pub fn fingerprint(device: Device) -> BTreeMap<String, String> {
    let pair = |k: &str, v: String| (k.to_string(), v);
    BTreeMap::from([
        pair("device", device_name(device)),
        pair("cpu", cpu_model()),
        pair("libtorch", "2.11.0".to_string()),
        pair("threads_per_rank", tch::get_num_threads().to_string()),
    ])
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split(':').nth(1)).map_or("unknown", str::trim).to_string()
    };
    format!("{} family {} model {}", value("model name"), value("cpu family"), value("model\t"))
}

/// Largest resident memory of this process so far, bytes.
pub fn peak_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Speed of a large matrix product here and now, FLOP/s: what MFU is measured against. The best of a few, after one to
/// warm up.
pub fn peak_flops(compute: Compute, device: Device) -> f64 {
    let size = if device == Device::Cpu { 1024 } else { 8192 };
    let kind = if compute == Compute::Bf16 { Kind::BFloat16 } else { Kind::Float };
    let a = Tensor::ones([size, size], (kind, device));
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let started = Instant::now();
        let product = a.matmul(&a);
        // Reading a value waits for the device.
        let _value = product.double_value(&[0, 0]);
        best = best.min(started.elapsed().as_secs_f64());
    }
    2.0 * (size as f64).powi(3) / best
}

#[cfg(test)]
mod tests {
    use super::threads;
    use lampyris_plan::train_plan::Reduction::{Canonical, Fast};

    #[test]
    fn no_more_threads_than_cores_nor_than_keep_bits_and_at_least_one() {
        let cases = [(0, 2, 1, 1), (1, 2, 1, 1), (2, 2, 2, 2), (16, 2, 2, 2), (4, 0, 1, 1)];
        let wide = [(8, 64, 8, 8), (16, 64, 8, 16), (1_000_000, 12, 8, 12)];
        for (asked, cores, canonical, fast) in cases.into_iter().chain(wide) {
            let found = (threads(asked, cores, Canonical), threads(asked, cores, Fast));
            assert_eq!(found, (canonical, fast), "{asked} threads on {cores} cores");
        }
    }
}
