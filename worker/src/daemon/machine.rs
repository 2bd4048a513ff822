//! What a node is made of, from /proc and /sys; what the kernel does not say is left empty.

use lampyris_proto::v1::{Hardware, hardware};
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Buffer of the bandwidth measurement: far more than caches hold.
const COPY_BYTES: usize = 64 << 20;

/// Everything; `state_dir` is where the disk is looked at.
pub(super) fn hardware(state_dir: &Path) -> Hardware {
    Hardware {
        cpu: cpu_name(),
        cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
        numa_nodes: numa_nodes(),
        memory_bytes: memory("MemTotal"),
        memory_available_bytes: memory_available(),
        disk_free_bytes: disk_free(state_dir).unwrap_or(0),
        memory_bandwidth: memory_bandwidth(),
        networks: networks(),
        devices: devices(),
        kernel: line("/proc/sys/kernel/osrelease"),
    }
}

/// Bytes of memory that could be used without swapping.
pub(super) fn memory_available() -> u64 {
    memory("MemAvailable")
}

/// Whether there is any accelerator.
pub(super) fn has_devices() -> bool {
    !devices().is_empty()
}

/// Bytes free to an ordinary user where `path` is.
pub(super) fn disk_free(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes per second of one core copying memory: the best of three copies.
pub(super) fn memory_bandwidth() -> u64 {
    let from = vec![1_u8; COPY_BYTES];
    let mut to = vec![0_u8; COPY_BYTES];
    let mut best = 0.0_f64;
    for _ in 0..3 {
        let began = Instant::now();
        to.copy_from_slice(black_box(&from));
        black_box(&to);
        best = best.max(COPY_BYTES as f64 / began.elapsed().as_secs_f64());
    }
    best as u64
}

fn line(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

fn cpu_name() -> String {
    let text = line("/proc/cpuinfo");
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map(|(_, name)| name.to_string()).unwrap_or_default()
}

/// A field of /proc/meminfo, in bytes.
fn memory(field: &str) -> u64 {
    let text = line("/proc/meminfo");
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn entries(folder: &str) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = read.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn numbered(path: &Path, prefix: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let digits = name.strip_prefix(prefix).unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn numa_nodes() -> u32 {
    let nodes = entries("/sys/devices/system/node");
    nodes.iter().filter(|path| numbered(path, "node")).count().max(1) as u32
}

fn numa_node(path: PathBuf) -> Option<u32> {
    // -1 where the kernel does not know.
    line(path).parse().ok()
}

fn networks() -> Vec<hardware::Network> {
    let mut found: Vec<hardware::Network> = entries("/sys/class/net")
        .into_iter()
        .filter(|path| matches!(line(path.join("operstate")).as_str(), "up" | "unknown"))
        .map(|path| hardware::Network {
            name: path.file_name().unwrap_or_default().to_string_lossy().into(),
            // -1, or an error, where the speed is not known.
            mbit_per_s: line(path.join("speed")).parse().unwrap_or(0),
            numa_node: numa_node(path.join("device/numa_node")),
        })
        .collect();
    found.sort_by_key(|network| network.name == "lo");
    found
}

fn devices() -> Vec<hardware::Device> {
    let mut infos = entries("/proc/driver/nvidia/gpus").into_iter();
    let files = entries("/dev").into_iter().filter(|path| numbered(path, "nvidia"));
    let device = |path: PathBuf| {
        let info = infos.next();
        let text = info.as_ref().map(|info| line(info.join("information"))).unwrap_or_default();
        let model = text.lines().find_map(|line| line.strip_prefix("Model:"));
        let slot = info.as_ref().and_then(|info| info.file_name());
        let numa = slot.map(|slot| Path::new("/sys/bus/pci/devices").join(slot).join("numa_node"));
        hardware::Device {
            path: path.to_string_lossy().into(),
            name: model.unwrap_or_default().trim().into(),
            numa_node: numa.and_then(numa_node),
        }
    };
    files.map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let hardware = hardware(Path::new("/"));
        assert!(hardware.cores >= 1 && hardware.numa_nodes >= 1);
        assert!(hardware.memory_bytes > 64 << 20, "{hardware:?}");
        assert!(hardware.memory_available_bytes <= hardware.memory_bytes);
        assert!(hardware.memory_bandwidth > 10 << 20, "{hardware:?}");
        assert!(hardware.disk_free_bytes > 0 && !hardware.kernel.is_empty());
    }
}
