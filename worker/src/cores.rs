//! The cores of a machine, and who has them.
//!
//! A worker has a list of cores, an attempt gets a share of them, its shim divides the share among its ranks. Compute
//! threads wait for each other by spinning, so two programs with a thread per core on the same cores are many times
//! slower than one after the other: nobody uses more threads than the cores that it was given.
//!
//! Programs that know nothing of each other (two runs started by hand, a run beside a worker) agree by a lock per core, in
//! a folder of the host's memory that belongs to the user. The kernel frees the locks of a process that dies. Other users
//! and other programs are not seen.

use rustix::thread::{CpuSet, sched_getaffinity};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A file system in memory, on every Linux.
const MEMORY: &str = "/dev/shm";

/// Numbers of cores as the kernel counts them, each once, in rising order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CoreList(Vec<usize>);

/// Why a text is no list of cores that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreListError {
    /// Not a list.
    #[error("{text:?} is not a list of cores such as 0-3,8")]
    Malformed {
        /// As given.
        text: String,
    },
    /// The kernel does not let this process run there.
    #[error("core {core} is not among those that this process may use ({allowed})")]
    NotAllowed {
        /// The first such core.
        core: usize,
        /// What it may use.
        allowed: CoreList,
    },
}

impl CoreList {
    /// Those that this process may run on; empty where the kernel does not say.
    pub fn allowed() -> CoreList {
        let set = sched_getaffinity(None);
        set.map(|set| (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
            .unwrap_or_default()
    }

    /// The same list, if `allowed` has all of it.
    ///
    /// # Errors
    /// [`CoreListError::NotAllowed`] names the first core that is not there.
    pub fn within(self, allowed: &CoreList) -> Result<CoreList, CoreListError> {
        match self.0.iter().find(|core| !allowed.0.contains(core)) {
            None => Ok(self),
            Some(core) => Err(CoreListError::NotAllowed { core: *core, allowed: allowed.clone() }),
        }
    }

    /// Lists for `parts` users side by side, next to each other and as equal as can be. Where there are fewer cores than
    /// users each has one, which it shares with others in turn.
    pub fn divide(&self, parts: usize) -> Vec<CoreList> {
        let cores = self.0.len();
        let part = |index: usize| match cores {
            0 => CoreList::default(),
            _ if cores < parts => CoreList(vec![self.0[index % cores]]),
            _ => CoreList(self.0[index * cores / parts..(index + 1) * cores / parts].to_vec()),
        };
        (0..parts).map(part).collect()
    }

    /// Those that are in `other` too.
    pub fn intersection(&self, other: &CoreList) -> CoreList {
        self.0.iter().copied().filter(|core| other.0.contains(core)).collect()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().copied()
    }
}

impl FromIterator<usize> for CoreList {
    fn from_iter<I: IntoIterator<Item = usize>>(cores: I) -> CoreList {
        let mut cores: Vec<usize> = cores.into_iter().collect();
        cores.sort_unstable();
        cores.dedup();
        CoreList(cores)
    }
}

impl FromStr for CoreList {
    type Err = CoreListError;

    /// `0-3,8`, as `taskset` and the kernel write it.
    fn from_str(text: &str) -> Result<CoreList, CoreListError> {
        let malformed = || CoreListError::Malformed { text: text.into() };
        let number = |word: &str| {
            word.parse().ok().filter(|core| *core < CpuSet::MAX_CPU).ok_or_else(malformed)
        };
        let mut cores = Vec::new();
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (usize, usize) = (number(first)?, number(last)?);
            if first > last {
                return Err(malformed());
            }
            cores.extend(first..=last);
        }
        Ok(cores.into_iter().collect())
    }
}

impl fmt::Display for CoreList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &self.0[..];
        while let Some(first) = rest.first() {
            let run = rest.iter().zip(*first..).take_while(|(core, next)| *core == next).count();
            let comma = if rest.len() == self.0.len() { "" } else { "," };
            match run {
                1 => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}-{}", rest[run - 1])?,
            }
            rest = &rest[run..];
        }
        Ok(())
    }
}

/// The cores that a start may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// Which; none means all that the process may run on.
    pub cores: CoreList,
    /// Others compute on them too: one thread per rank.
    pub shared: bool,
}

/// The locks of cores. They are held while this value lives.
#[derive(Debug)]
pub struct Claim {
    own: CoreList,
    _locks: Vec<File>,
}

impl Claim {
    /// Takes at most `wanted` of `offered`, those first that nobody has.
    pub fn take(offered: &CoreList, wanted: usize) -> Claim {
        match folder() {
            Ok(folder) => Claim::take_in(&folder, offered, wanted),
            Err(error) => {
                tracing::warn!(%error, "cannot see which cores other runs have");
                Claim { own: offered.iter().take(wanted).collect(), _locks: Vec::new() }
            }
        }
    }

    fn take_in(folder: &Path, offered: &CoreList, wanted: usize) -> Claim {
        let (mut own, mut locks) = (Vec::new(), Vec::new());
        for core in offered.iter() {
            if own.len() == wanted {
                break;
            }
            match lock(&folder.join(core.to_string())) {
                Ok(Some(lock)) => {
                    own.push(core);
                    locks.push(lock);
                }
                Ok(None) => {}
                Err(error) => {
                    // Placement is a matter of speed: a core that cannot be asked for counts as free.
                    tracing::warn!(%error, core, "cannot see who has this core");
                    own.push(core);
                }
            }
        }
        Claim { own: own.into_iter().collect(), _locks: locks }
    }

    /// The cores that are this one's alone.
    pub fn own(&self) -> &CoreList {
        &self.own
    }

    /// What a start may use that must stay on its own cores: these, or, where it has got none, `offered` with others.
    pub fn given(&self, offered: &CoreList) -> Given {
        match self.own.is_empty() {
            true => Given { cores: offered.clone(), shared: true },
            false => Given { cores: self.own.clone(), shared: false },
        }
    }
}

/// A lock that is free; none if somebody holds it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let mut options = File::options();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(no_link);
    let file = options.open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The folder of the locks. Everybody may write beside it, so it must be this user's.
fn folder() -> io::Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let base = PathBuf::from(MEMORY).join(format!("lampyris-{user}"));
    let folder = base.join("cores");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let found = base.symlink_metadata()?;
    if found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0 {
        return Ok(folder);
    }
    let what = format!("{} must be a folder that only this user can enter", base.display());
    Err(io::Error::other(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> CoreList {
        text.parse().unwrap()
    }

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for text in ["0", "0-3", "0-1,4-5,9", "7,9,11"] {
            assert_eq!(list(text).to_string(), text);
        }
        assert_eq!(list("3,1,2,2-3,0"), list("0-3"));
        for wrong in ["", ",", "1,", "a", "3-1", "-1", "1-", "0-99999999", "18446744073709551615"] {
            let error = wrong.parse::<CoreList>().unwrap_err().to_string();
            assert!(error.contains("is not a list of cores"), "{error}");
        }
        let error = list("1-6").within(&list("0-3,5")).unwrap_err().to_string();
        assert_eq!(error, "core 4 is not among those that this process may use (0-3,5)");
    }

    #[test]
    fn users_side_by_side_get_equal_parts_or_one_core_each() {
        let parts = |text: &str, parts| {
            let parts = list(text).divide(parts);
            parts.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(parts("0-7", 2), ["0-3", "4-7"]);
        assert_eq!(parts("0-1,4-6", 2), ["0-1", "4-6"]);
        assert_eq!(parts("0-1", 3), ["0", "1", "0"]);
        assert_eq!(parts("5", 1), ["5"]);
        assert_eq!(CoreList::default().divide(2), [CoreList::default(), CoreList::default()]);
    }

    #[test]
    fn free_cores_are_taken_first_and_freed_with_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let take = |offered: &str, wanted| Claim::take_in(dir.path(), &list(offered), wanted);
        let first = take("0-3", 3);
        assert_eq!(first.given(&list("0-3")), Given { cores: list("0-2"), shared: false });
        let second = take("0-3", usize::MAX);
        assert_eq!(second.own(), &list("3"));
        let third = take("0-1", usize::MAX);
        assert_eq!(third.given(&list("0-1")), Given { cores: list("0-1"), shared: true });
        drop(first);
        assert_eq!(take("0-3", usize::MAX).own(), &list("0-2"));
    }
}
