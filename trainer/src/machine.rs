//! What a rank runs on: device, threads, numerics fingerprint, memory, peak speed.

use anyhow::{Result, bail};
use lampyris_plan::train_plan::{self, Compute, TrainPlan};
use std::collections::BTreeMap;
use std::time::Instant;
use tch::{Cuda, Device, Kind, Tensor};

/// The share of cores of which the shim has told this rank.
fn share() -> Option<usize> {
    std::env::var("OMP_NUM_THREADS").ok()?.parse().ok()
}

/// What to tell a person whose plan has more threads than this rank was given cores, if so. Up to the cores that the process
/// may use, the plan's number stays: bits of matrix products may depend on it.
pub fn crowded(plan: &TrainPlan) -> Option<String> {
    let (threads, cores) = (plan.parallel.threads_per_rank, share()?);
    (threads > cores).then(|| {
        format!(
            "parallel.threads_per_rank = {threads}, but this rank was given {cores} cores: it will be slow; \
             0 takes as many threads as there are cores"
        )
    })
}

/// The device of a rank and its threads, set up for this process.
pub fn set_up(plan: &TrainPlan, local_rank: usize, local_ranks: usize) -> Result<Device> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    // The shim names the share of a rank, and may have pinned it to that.
    let asked = match plan.parallel.threads_per_rank {
        0 => share().unwrap_or(cores / local_ranks.max(1)),
        threads => threads,
    };
    tch::set_num_threads(i32::try_from(threads(asked, cores))?);
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

/// The threads to compute with. More than there are cores only wait for each other, and from 16 on MKL cuts small sums of
/// matrix products into parts, which would make bits depend on a number that no hardware stands behind.
fn threads(asked: usize, cores: usize) -> usize {
    asked.clamp(1, cores.max(1))
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

    #[test]
    fn no_more_threads_than_cores_and_at_least_one() {
        let cases = [(0, 2, 1), (1, 2, 1), (2, 2, 2), (16, 2, 2), (1_000_000, 8, 8), (4, 0, 1)];
        for (asked, cores, expected) in cases {
            assert_eq!(threads(asked, cores), expected, "{asked} threads on {cores} cores");
        }
    }
}
