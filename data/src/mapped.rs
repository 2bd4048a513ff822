//! Files of a prepared folder, mapped read-only and seen as numbers. The only unsafe code of this crate.
#![allow(unsafe_code, reason = "a memory map is shared with whoever may write the file")]

use crate::error::Error;
use bytemuck::Pod;
use memmap2::Mmap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A whole file in memory, paged in as it is read. An empty file has no map.
#[derive(Debug)]
pub(crate) struct Mapped {
    path: PathBuf,
    map: Option<Mmap>,
}

impl Mapped {
    /// Maps `path`, which must have exactly `bytes` bytes.
    pub(crate) fn open(path: &Path, bytes: u64) -> Result<Self, Error> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::corrupt(path, "the file is missing"));
            }
            Err(e) => return Err(Error::read(path)(e)),
        };
        let found = file.metadata().map_err(Error::read(path))?.len();
        if found != bytes {
            return Err(Error::corrupt(path, format!("has {found} bytes instead of {bytes}")));
        }
        let map = if bytes == 0 {
            None
        } else {
            // SAFETY: a prepared folder is never written after its rename into place, only unlinked, which leaves maps
            // alone. Somebody else's truncation would end the process with SIGBUS, not corrupt it silently.
            Some(unsafe { Mmap::map(&file) }.map_err(Error::read(path))?)
        };
        Ok(Self { path: path.to_owned(), map })
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// The file as little-endian numbers. Panics if its length is no multiple of theirs, which `open` has excluded.
    pub(crate) fn as_slice<T: Pod>(&self) -> &[T] {
        // An empty file has no map, and so no alignment.
        self.map.as_deref().map_or(&[], bytemuck::cast_slice)
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
