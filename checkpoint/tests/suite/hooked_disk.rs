//! A disk that asks a hook before every operation that changes something: the hook may fail it, hold it up, or kill the
//! process.

use lampyris_checkpoint::disk::{Access, Disk, DiskFile};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Gets the operation's name and path.
pub(crate) type Hook = Arc<dyn Fn(&'static str, &Path) -> io::Result<()> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct HookedDisk {
    pub(crate) inner: Arc<dyn Disk>,
    pub(crate) hook: Hook,
}

impl fmt::Debug for HookedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hooked {:?}", self.inner)
    }
}

impl HookedDisk {
    fn file(&self, path: &Path, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(HookedFile { inner, path: path.to_path_buf(), hook: Arc::clone(&self.hook) })
    }
}

impl Disk for HookedDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        (self.hook)("create_dir", path)?;
        self.inner.create_dir(path)
    }

    fn create(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        (self.hook)("create", path)?;
        Ok(self.file(path, self.inner.create(path, access)?))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        self.inner.open(path, access)
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(path, self.inner.open_append(path)?))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        (self.hook)("sync_dir", path)?;
        self.inner.sync_dir(path)
    }

    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        (self.hook)("rename", to)?;
        self.inner.rename_noreplace(from, to)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.inner.list(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        (self.hook)("remove_file", path)?;
        self.inner.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        (self.hook)("remove_dir", path)?;
        self.inner.remove_dir(path)
    }
}

struct HookedFile {
    inner: Box<dyn DiskFile>,
    path: PathBuf,
    hook: Hook,
}

impl DiskFile for HookedFile {
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        (self.hook)("reserve", &self.path)?;
        self.inner.reserve(bytes)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, out)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        (self.hook)("write", &self.path)?;
        self.inner.write_at(offset, data)
    }

    fn append(&self, data: &[u8]) -> io::Result<()> {
        (self.hook)("append", &self.path)?;
        self.inner.append(data)
    }

    fn sync(&self) -> io::Result<()> {
        (self.hook)("sync", &self.path)?;
        self.inner.sync()
    }
}
