//! Files of a run directory. Whoever submitted the job owns the directory and may put anything there under any name, and
//! daemons may have more rights than that person: so no link is followed below the directory, nothing but a regular file of
//! the expected owner is opened, and a pipe or a device is waited for by nobody.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode, fstat, openat, renameat, unlinkat};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// To read what is there.
    Reading,
    /// To add to its end; made if it is not there.
    Appending,
    /// To change what is there.
    Changing,
}

impl For {
    fn flags(self) -> OFlags {
        match self {
            For::Reading => OFlags::RDONLY,
            For::Appending => OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE,
            For::Changing => OFlags::WRONLY,
        }
    }
}

/// Opens `name`, a path below `run_dir` such as `logs/rank-0.attempt-1.log`.
///
/// # Errors
/// Failures of the disk; a link on the way, or something that is no regular file of this user or of the owner of its
/// folder, in words.
pub fn open(run_dir: &Path, name: &str, what_for: For) -> io::Result<File> {
    let (folder, file) = folder_of(run_dir, name)?;
    open_in(&folder, file, what_for.flags(), 0o666)
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// As [`open`], or it is larger.
pub fn read(run_dir: &Path, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(run_dir, name, For::Reading)?.take(limit + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(io::Error::new(ErrorKind::InvalidData, format!("has more than {limit} bytes"))),
        false => Ok(bytes),
    }
}

/// Writes a file that is there whole or not at all, even after a power cut: under a temporary name first, then renamed.
/// `mode` are its permissions.
///
/// # Errors
/// As [`open`].
pub fn write(run_dir: &Path, name: &str, mode: RawMode, bytes: &[u8]) -> io::Result<()> {
    replace(run_dir, name, mode, &|file| {
        file.write_all(bytes)?;
        file.sync_all()
    })
}

/// The same for a file that is written again and again: a power cut may lose it.
///
/// # Errors
/// As [`open`].
pub(crate) fn write_often(run_dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    replace(run_dir, name, 0o666, &|file| file.write_all(bytes))
}

fn replace(
    run_dir: &Path,
    name: &str,
    mode: RawMode,
    fill: &dyn Fn(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let (folder, file) = folder_of(run_dir, name)?;
    // Of this process alone: two writers never share one.
    let temporary = format!("{}.{}.tmp", file.display(), std::process::id());
    // What lies there is of a process of before, or a link.
    unlinkat(&folder, &temporary, AtFlags::empty()).ok();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let write = || {
        let mut written = open_in(&folder, OsStr::new(&temporary), flags, mode)?;
        fill(&mut written)?;
        renameat(&folder, &temporary, &folder, file).map_err(io::Error::from)
    };
    write().inspect_err(|_| {
        unlinkat(&folder, &temporary, AtFlags::empty()).ok();
    })
}

/// The folder of a file below `run_dir`, opened, and the file's own name.
fn folder_of<'n>(run_dir: &Path, name: &'n str) -> io::Result<(OwnedFd, &'n OsStr)> {
    let folder = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    // The run directory itself is named by a person and may be reached through links.
    let mut at = openat(rustix::fs::CWD, run_dir, folder, Mode::empty())?;
    let outside = || io::Error::new(ErrorKind::InvalidInput, format!("{name} is not below it"));
    let mut parts = Path::new(name).components().peekable();
    while let Some(Component::Normal(part)) = parts.next() {
        if parts.peek().is_none() {
            return Ok((at, part));
        }
        let next = openat(&at, part, folder | OFlags::NOFOLLOW, Mode::empty());
        at = next.map_err(|error| in_words(error, "its folder"))?;
    }
    Err(outside())
}

fn open_in(folder: &OwnedFd, name: &OsStr, flags: OFlags, mode: RawMode) -> io::Result<File> {
    let safe = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(folder, name, flags | safe, Mode::from_raw_mode(mode))
        .map_err(|error| in_words(error, "it"))?;
    let found = fstat(&file)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(refused("it is no regular file"));
    }
    // A network disk may map this user to another one, in the folder as in the file.
    let owners = [rustix::process::geteuid().as_raw(), fstat(folder.as_fd())?.st_uid];
    if !owners.contains(&found.st_uid) {
        return Err(refused("it belongs to somebody else"));
    }
    Ok(File::from(file))
}

fn in_words(error: rustix::io::Errno, what: &str) -> io::Error {
    match error {
        rustix::io::Errno::LOOP => refused(&format!("{what} is a link")),
        // A folder that is a link, or a pipe that nobody reads.
        rustix::io::Errno::NOTDIR => refused(&format!("{what} is a link or no folder")),
        rustix::io::Errno::NXIO => refused(&format!("{what} is no regular file")),
        other => other.into(),
    }
}

fn refused(what: &str) -> io::Error {
    io::Error::new(
        ErrorKind::PermissionDenied,
        format!("{what}; a run directory holds plain files only"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, mknodat};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const ALL: [For; 3] = [For::Reading, For::Appending, For::Changing];

    fn run_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("logs")).unwrap();
        dir
    }

    #[test]
    fn links_pipes_and_folders_are_refused_for_every_use_and_nothing_waits() {
        let (dir, elsewhere) = (run_dir(), tempfile::tempdir().unwrap());
        let secret = elsewhere.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        symlink(&secret, dir.path().join("logs/link")).unwrap();
        symlink(elsewhere.path().join("new"), dir.path().join("logs/dangling")).unwrap();
        symlink(elsewhere.path(), dir.path().join("linked")).unwrap();
        fs::create_dir(dir.path().join("logs/folder")).unwrap();
        let fifo = dir.path().join("logs/fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for name in ["logs/link", "logs/dangling", "linked/secret", "logs/folder", "logs/fifo"] {
            for what_for in ALL {
                let error = open(dir.path(), name, what_for).unwrap_err();
                assert_ne!(error.kind(), ErrorKind::NotFound, "{name} {what_for:?}: {error}");
            }
        }
        for outside in ["../x", "/etc/passwd", "", "logs/../../x", "."] {
            let error = open(dir.path(), outside, For::Appending).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{outside}: {error}");
        }
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_written_whole_over_a_link_and_not_through_it() {
        let (dir, elsewhere) = (run_dir(), tempfile::tempdir().unwrap());
        let victim = elsewhere.path().join("victim");
        fs::write(&victim, "as it was").unwrap();
        let temporary = format!("logs/a.json.{}.tmp", std::process::id());
        symlink(&victim, dir.path().join(&temporary)).unwrap();
        symlink(&victim, dir.path().join("logs/a.json")).unwrap();
        write(dir.path(), "logs/a.json", 0o600, b"new").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");
        assert_eq!(read(dir.path(), "logs/a.json", 3).unwrap(), b"new");
        assert!(read(dir.path(), "logs/a.json", 2).is_err());
        let found = fs::symlink_metadata(dir.path().join("logs/a.json")).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path().join("logs")).unwrap().count(), 1);
        let error = write(dir.path(), "none/a.json", 0o600, b"new").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_file_of_somebody_else_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = run_dir();
        let file = dir.path().join("logs/theirs");
        fs::write(&file, "theirs").unwrap();
        std::os::unix::fs::chown(&file, Some(1234), None).unwrap();
        let error = open(dir.path(), "logs/theirs", For::Reading).unwrap_err();
        assert!(error.to_string().contains("somebody else"), "{error}");
        // Those of the folder's owner are what the folder is for.
        std::os::unix::fs::chown(dir.path().join("logs"), Some(1234), None).unwrap();
        assert!(open(dir.path(), "logs/theirs", For::Reading).is_ok());
    }
}
