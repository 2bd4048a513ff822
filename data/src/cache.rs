//! The folder of prepared folders: finding one without reading the sources, one maker at a time, publishing by rename.
//!
//!     <fingerprint>/           a prepared folder, never written after it appears
//!     <fingerprint>.lock       held (flock) by the process that makes it
//!     making-<fingerprint>-*   a folder being made; left over only after a kill
//!     requests/<hash>          the fingerprint that these options and file stamps gave

use crate::error::Error;
use crate::options::{Options, TokenizerSpec};
use crate::source::{SourceFile, Stamp};
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::{NamedTempFile, TempDir};

/// A file that changed this recently may change again without its stamp changing: such readings are not remembered.
const SETTLE: Duration = Duration::from_secs(2);

/// The cache as one preparation sees it.
pub(crate) struct Cache<'a> {
    root: &'a Path,
    /// Where the answer to this request is remembered.
    request: PathBuf,
    /// Whether the stamps are old enough to stand for the contents.
    settled: bool,
}

impl<'a> Cache<'a> {
    /// The cache for these options and the files they mean, listed at `now`.
    pub(crate) fn new(
        options: &'a Options,
        files: &[SourceFile],
        now: SystemTime,
    ) -> Result<Self, Error> {
        let root = options.cache_dir.as_path();
        let requests = root.join("requests");
        std::fs::create_dir_all(&requests).map_err(Error::write(&requests))?;
        let mut stamps: Vec<(&Path, Stamp)> =
            files.iter().map(|f| (f.path.as_path(), f.stamp)).collect();
        if let TokenizerSpec::File { path, .. } = &options.tokenizer {
            stamps.push((path, Stamp::read(path)?));
        }
        let mut hasher = blake3::Hasher::new();
        let wanted = (crate::manifest::FORMAT, &options.sources, options.max_bytes);
        let wanted = (wanted, &options.validation, &options.tokenizer);
        hasher.update(&serde_json::to_vec(&wanted).expect("options become JSON"));
        for (path, stamp) in &stamps {
            hasher.update(path.as_os_str().as_encoded_bytes());
            hasher.update(&[0]);
            hasher.update(&stamp.size.to_le_bytes());
            hasher.update(&stamp.modified_ns.to_le_bytes());
            hasher.update(&stamp.changed_ns.to_le_bytes());
        }
        let request = requests.join(&hasher.finalize().to_hex()[..32]);
        let newest = stamps.iter().map(|(_, s)| s.changed_ns.max(s.modified_ns)).max().unwrap_or(0);
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let settled = newest + (SETTLE.as_nanos() as i128) < now.as_nanos() as i128;
        Ok(Self { root, request, settled })
    }

    /// Where the folder with this fingerprint is or will be.
    pub(crate) fn folder(&self, fingerprint: &str) -> PathBuf {
        self.root.join(fingerprint)
    }

    /// The fingerprint that this request had the last time.
    pub(crate) fn remembered(&self) -> Option<String> {
        let fingerprint = std::fs::read_to_string(&self.request).ok()?;
        self.folder(&fingerprint).is_dir().then_some(fingerprint)
    }

    /// Remembers the fingerprint of this request, if its stamps prove anything.
    pub(crate) fn remember(&self, fingerprint: &str) -> Result<(), Error> {
        if !self.settled {
            return Ok(());
        }
        let folder = self.request.parent().unwrap_or(self.root);
        let mut file = NamedTempFile::new_in(folder).map_err(Error::write(folder))?;
        file.write_all(fingerprint.as_bytes()).map_err(Error::write(&self.request))?;
        file.persist(&self.request).map_err(|e| Error::write(&self.request)(e.error))?;
        Ok(())
    }

    /// Waits until nobody else makes this folder; `waiting` is called if somebody does. The lock ends with the file, and
    /// with the process. Where locks do not work there is none: the work may then be done twice, and the first rename wins.
    pub(crate) fn lock(
        &self,
        fingerprint: &str,
        waiting: impl FnOnce(),
    ) -> Result<Option<File>, Error> {
        let path = self.root.join(format!("{fingerprint}.lock"));
        let file = File::create(&path).map_err(Error::write(&path))?;
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => waiting(),
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(Error::write(&path)(e)),
        }
        file.lock().map_err(Error::write(&path))?;
        Ok(Some(file))
    }

    /// Removes what killed makers of any folder left behind: nobody holds its lock. What cannot be removed is no reason not
    /// to go on, and neither is a file system without locks, on which nobody can tell a maker that lives.
    pub(crate) fn remove_leftovers(&self) {
        for entry in std::fs::read_dir(self.root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(fingerprint) = name.to_str().and_then(made) else { continue };
            let lock = File::create(self.root.join(format!("{fingerprint}.lock")));
            let Ok(lock) = lock else { continue };
            if lock.try_lock().is_ok() {
                std::fs::remove_dir_all(entry.path()).ok();
            }
        }
    }

    /// A new folder to make `fingerprint` in; removed when dropped.
    pub(crate) fn make(&self, fingerprint: &str) -> Result<TempDir, Error> {
        tempfile::Builder::new()
            .prefix(&making(fingerprint))
            .tempdir_in(self.root)
            .map_err(Error::write(self.root))
    }

    /// Moves a damaged folder out of the way; readers that have it mapped keep it.
    pub(crate) fn discard(&self, fingerprint: &str) -> Result<(), Error> {
        let grave = self.make(fingerprint)?;
        let folder = self.folder(fingerprint);
        std::fs::rename(&folder, grave.path().join("damaged")).map_err(Error::write(&folder))
    }

    /// Gives a finished folder its name. If another process was first, theirs stays.
    pub(crate) fn publish(&self, made: TempDir, fingerprint: &str) -> Result<(), Error> {
        let folder = self.folder(fingerprint);
        sync_folder(made.path())?;
        match std::fs::rename(made.path(), &folder) {
            Ok(()) => {
                drop(made.keep()); // it has moved: nothing to remove
                sync_folder(self.root)
            }
            Err(e)
                if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) =>
            {
                Ok(())
            }
            Err(e) => Err(Error::write(&folder)(e)),
        }
    }
}

fn making(fingerprint: &str) -> String {
    format!("making-{fingerprint}-")
}

/// The fingerprint in the name of a folder that is, or was, being made.
fn made(name: &str) -> Option<&str> {
    name.strip_prefix("making-")?.rsplit_once('-').map(|(fingerprint, _)| fingerprint)
}

/// Makes the entries of a folder durable.
fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(Error::write(folder))
}
