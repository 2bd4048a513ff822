//! The little of a file system that checkpoints need, as a trait, so that a test can stand in for the disk and cut the
//! power between any two operations.
//!
//! The contract is POSIX at its meanest: what a file holds is safe only after [`DiskFile::sync`], that a name exists (or
//! no longer exists) only after [`Disk::sync_dir`] of the folder that holds it.

#[cfg(debug_assertions)]
pub mod fail_point;
pub mod regular;

#[cfg(not(debug_assertions))]
mod fail_point {
    pub(super) fn reached(_operation: &str) {}
}

use fail_point::reached;
use rustix::fs::renameat_with;
use rustix::fs::{CWD, FallocateFlags, OFlags, RenameFlags, fallocate, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Offsets, lengths and addresses of [`Access::Bulk`] transfers are multiples of this many bytes.
pub const ALIGN_BYTES: usize = 4096;

/// How a file will be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Any offset and length, through the page cache.
    Plain,
    /// Large transfers, all aligned to [`ALIGN_BYTES`]. They bypass the page cache where the file system can: measured
    /// 1.2-1.5 GB/s against 0.3 GB/s for buffered writes with fsync, and training keeps its memory.
    Bulk,
}

/// File-system operations.
pub trait Disk: Send + Sync + Debug {
    /// Makes one folder; `AlreadyExists` if the name is taken.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a file; `AlreadyExists` if the name is taken.
    fn create(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading; `InvalidData` if something else than a regular file has that name.
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file for [`DiskFile::append`].
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames a file or folder inside its folder; `AlreadyExists` if the target is there.
    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Names in a folder, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}

/// An open file. Offsets and lengths are in bytes.
pub trait DiskFile: Send + Sync {
    /// Length of the file.
    fn length(&self) -> io::Result<u64>;
    /// Reserves room for `bytes` bytes, so that a full disk shows before anything is written. May do nothing.
    fn reserve(&self, bytes: u64) -> io::Result<()>;
    /// Fills `out` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Writes all of `data` at the end, whoever else appends.
    fn append(&self, data: &[u8]) -> io::Result<()>;
    /// Makes the contents durable.
    fn sync(&self) -> io::Result<()>;
}

/// Reads a whole file of at most `most_bytes` bytes.
///
/// # Errors
/// `InvalidData` if it is longer, or no regular file; failures of the disk.
pub fn read_whole(disk: &dyn Disk, path: &Path, most_bytes: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Access::Plain)?;
    let mut bytes = vec![0; regular::bounded(file.length()?, most_bytes)?];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        reached("create_dir");
        std::fs::create_dir(path)
    }

    fn create(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        reached("create");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = options.open(path)?;
        if access == Access::Bulk {
            set_direct(&file, true);
        }
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let file = regular::open(path)?;
        if access == Access::Bulk {
            set_direct(&file, true);
        }
        Ok(Box::new(file))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(regular::open_append(path)?))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        reached("sync_dir");
        File::open(path)?.sync_all()
    }

    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        reached("rename");
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // NFS and some other network file systems know no flags.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => rename_by_hand(from, to),
            other => Ok(other?),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        reached("remove_file");
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        reached("remove_dir");
        std::fs::remove_dir(path)
    }
}

/// Turns O_DIRECT on or off; file systems without it stay buffered.
fn set_direct(file: &File, on: bool) {
    if let Ok(flags) = fcntl_getfl(file) {
        let flags = if on { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
        fcntl_setfl(file, flags).ok();
    }
}

/// Repeats a transfer through the page cache where the file system took O_DIRECT but not this alignment.
fn or_buffered(file: &File, mut transfer: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    match transfer() {
        Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            set_direct(file, false);
            transfer()
        }
        other => other,
    }
}

/// Without flags, `rename` still refuses a folder that is not empty (ours never are), and `link` refuses a taken name.
fn rename_by_hand(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        return std::fs::rename(from, to).map_err(|e| match e.kind() {
            io::ErrorKind::DirectoryNotEmpty => io::ErrorKind::AlreadyExists.into(),
            _ => e,
        });
    }
    std::fs::hard_link(from, to)?;
    std::fs::remove_file(from)
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        reached("reserve");
        match fallocate(self, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::NOTSUP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        or_buffered(self, || self.read_exact_at(out, offset))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        reached("write");
        or_buffered(self, || self.write_all_at(data, offset))
    }

    fn append(&self, data: &[u8]) -> io::Result<()> {
        reached("append");
        // One write call: with O_APPEND two appenders never mix their bytes.
        let mut file = self;
        file.write_all(data)
    }

    fn sync(&self) -> io::Result<()> {
        reached("sync");
        self.sync_all()
    }
}
