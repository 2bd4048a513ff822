//! Whether a node is fit to start what it is given, checked before anything is started: a job that would die in its first
//! minute is better placed elsewhere at once.

use super::machine;
use lampyris_proto::v1;
use lampyris_proto::v1::failure::Class;
use std::path::Path;

/// Bytes per second that one core must copy; a tenth of the slowest memory in use. Less means a broken or throttled node.
const MIN_MEMORY_BANDWIDTH: u64 = 200 << 20;

/// Free space without which no log and no request can be written.
const MIN_DISK_BYTES: u64 = 1 << 20;

/// What a check looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) memory_available: u64,
    /// None if the run directory cannot be seen.
    pub(super) disk_free: Option<u64>,
    pub(super) memory_bandwidth: u64,
    pub(super) dataset_there: bool,
    pub(super) rank_program_there: bool,
}

impl Condition {
    /// As it is now. Takes a few milliseconds of memory copies.
    pub(super) fn now(run: &v1::RunSpec, rank_program: &Path) -> Condition {
        let run_dir = Path::new(&run.run_dir);
        let planned = run_dir.join("plan.toml").exists();
        Condition {
            // Where there are accelerators, the plan's memory is theirs.
            memory_available: match machine::has_devices() {
                true => u64::MAX,
                false => machine::memory_available(),
            },
            disk_free: machine::disk_free(run_dir).filter(|_| planned),
            memory_bandwidth: machine::memory_bandwidth(),
            dataset_there: Path::new(&run.dataset).is_dir(),
            rank_program_there: rank_program.exists(),
        }
    }

    /// Why `run` must not be started here, if so.
    pub(super) fn refuse(&self, run: &v1::RunSpec, rank_program: &Path) -> Option<v1::Failure> {
        let mib = |bytes: u64| bytes >> 20;
        // The node's own fault, and that of a job that is not for it: only the first takes the node out of service.
        let unfit = |message: String| Some(failure(Class::NodeUnfit, message));
        let unsuited = |message: String| Some(failure(Class::Unsuited, message));
        let Some(disk_free) = self.disk_free else {
            return unsuited(format!("{} is no run directory on this node", run.run_dir));
        };
        if !self.dataset_there {
            return unsuited(format!("{} is not on this node", run.dataset));
        }
        if !self.rank_program_there {
            return unfit(format!("there is no {} on this node", rank_program.display()));
        }
        if self.memory_available < run.memory_bytes {
            let (needs, has) = (mib(run.memory_bytes), mib(self.memory_available));
            return unsuited(format!(
                "its ranks need {needs} MiB of memory, {has} MiB are available"
            ));
        }
        if self.memory_bandwidth < MIN_MEMORY_BANDWIDTH {
            let has = mib(self.memory_bandwidth);
            return unfit(format!("a core copies {has} MiB/s of memory: broken or throttled"));
        }
        if disk_free < run.disk_bytes.max(MIN_DISK_BYTES) {
            let (needs, has) = (mib(run.disk_bytes.max(MIN_DISK_BYTES)), mib(disk_free));
            let what = format!("{} has {has} MiB free, a checkpoint needs {needs}", run.run_dir);
            // The run directory is shared: another node would find the same.
            return Some(failure(Class::Infrastructure, what));
        }
        None
    }
}

/// A failure without an exit code.
pub(super) fn failure(class: Class, message: String) -> v1::Failure {
    v1::Failure { class: class.into(), exit_code: None, rank: None, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lack_is_named_with_its_figures() {
        let (mib, program) = (1_u64 << 20, Path::new("/bin/rank"));
        let run = v1::RunSpec {
            run_dir: "/runs/a".into(),
            memory_bytes: 100 * mib,
            disk_bytes: 50 * mib,
            ..Default::default()
        };
        let good = Condition {
            memory_available: 100 * mib,
            disk_free: Some(50 * mib),
            memory_bandwidth: 1 << 30,
            dataset_there: true,
            rank_program_there: true,
        };
        assert_eq!(good.refuse(&run, program), None);
        let why = |change: &dyn Fn(&mut Condition)| {
            let mut condition = good.clone();
            change(&mut condition);
            let failure = condition.refuse(&run, program).unwrap();
            (failure.class(), failure.message)
        };
        let (class, message) = why(&|condition| condition.memory_available -= mib);
        assert_eq!(class, Class::Unsuited);
        assert_eq!(message, "its ranks need 100 MiB of memory, 99 MiB are available");
        let (class, message) = why(&|condition| condition.disk_free = Some(49 * mib));
        assert_eq!(class, Class::Infrastructure);
        assert_eq!(message, "/runs/a has 49 MiB free, a checkpoint needs 50");
        let (class, message) = why(&|condition| condition.disk_free = None);
        assert!(class == Class::Unsuited && message.contains("no run directory"), "{message}");
        assert_eq!(why(&|condition| condition.dataset_there = false).0, Class::Unsuited);
        let (class, message) = why(&|condition| condition.memory_bandwidth = mib);
        assert!(class == Class::NodeUnfit && message.contains("throttled"), "{message}");
        let (class, message) = why(&|condition| condition.rank_program_there = false);
        assert!(class == Class::NodeUnfit && message.contains("/bin/rank"), "{message}");
    }
}
