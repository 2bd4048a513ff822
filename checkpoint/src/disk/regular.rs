//! Opens what lies in a run directory as what it must be: a regular file, of a size that fits its purpose.
//!
//! Other programs, and other people, can put anything under the name of a file: a pipe on which `open` waits for ever, a
//! link to a file elsewhere, a file with holes that is longer than all memory. Everything that is read from a run directory
//! goes through here, so that each of those is an error in words. Only the file itself is checked: folders on the way to it
//! may be links, as where scratch disks are linked into a home.
//!
//! An error about what was found is of kind [`io::ErrorKind::InvalidData`]: the disk works, and its content is wrong.

use rustix::fs::OFlags;
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens the regular file `path` for reading. Never waits for another process, and follows no link in the last part of the
/// path.
///
/// # Errors
/// `InvalidData` for a link, a folder, a pipe, a socket or a device; failures of the disk.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true), path, OFlags::NOFOLLOW)
}

/// The same where the last part of the path may be a link, as in a cache of Hugging Face.
///
/// # Errors
/// As [`open`], links aside.
pub fn open_linked(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true), path, OFlags::empty())
}

/// Opens the regular file `path`, which exists, for reading and for writes at its end.
///
/// # Errors
/// As [`open`].
pub fn open_append(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true).append(true), path, OFlags::NOFOLLOW)
}

/// Opens the regular file `path` for writing and makes it if it is missing; what is in it stays.
///
/// # Errors
/// As [`open`].
pub fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    open_with(options.write(true).create(true).truncate(false), path, OFlags::NOFOLLOW)
}

/// Opens the regular file `path` for writes at its end, and makes it if it is missing.
///
/// # Errors
/// As [`open`].
pub fn append_or_create(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().append(true).create(true), path, OFlags::NOFOLLOW)
}

/// Makes the regular file `path` anew for writing. What has its name is removed, so that what a link leads to stays as it is.
///
/// # Errors
/// Failures of the disk, a folder of that name among them.
pub fn create(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::create_new(path),
    }
}

/// Reads the regular file `path` of at most `most_bytes` bytes.
///
/// # Errors
/// As [`open`]; `InvalidData` if the file is longer.
pub fn read(path: &Path, most_bytes: u64) -> io::Result<Vec<u8>> {
    read_open(open(path)?, most_bytes)
}

/// Reads the regular file `path` of at most `most_bytes` bytes of UTF-8.
///
/// # Errors
/// As [`read`]; `InvalidData` if it is no text.
pub fn read_text(path: &Path, most_bytes: u64) -> io::Result<String> {
    text(read(path, most_bytes)?)
}

/// The same where the last part of the path may be a link.
///
/// # Errors
/// As [`read_text`], links aside.
pub fn read_linked_text(path: &Path, most_bytes: u64) -> io::Result<String> {
    text(read_open(open_linked(path)?, most_bytes)?)
}

/// A length in bytes that fits into memory and below `most_bytes`.
pub(crate) fn bounded(length: u64, most_bytes: u64) -> io::Result<usize> {
    match usize::try_from(length) {
        Ok(bytes) if length <= most_bytes => Ok(bytes),
        _ => Err(invalid(format!("it has {length} bytes, at most {most_bytes} are expected"))),
    }
}

fn open_with(options: &mut OpenOptions, path: &Path, flags: OFlags) -> io::Result<File> {
    // Without NONBLOCK, opening a pipe waits until somebody opens its other end. A regular file does not care.
    let flags = (flags | OFlags::NONBLOCK).bits();
    let file = options.custom_flags(flags.cast_signed()).open(path).map_err(|error| {
        // The system's words for a link (too many levels of links) or a pipe (no such device) are riddles.
        let follows = flags & OFlags::NOFOLLOW.bits() == 0;
        let found = if follows { path.metadata() } else { path.symlink_metadata() };
        match found.map(|found| found.file_type()) {
            Ok(found) if !found.is_file() => unfit(found),
            _ => error,
        }
    })?;
    let found = file.metadata()?.file_type();
    if found.is_file() { Ok(file) } else { Err(unfit(found)) }
}

fn read_open(file: File, most_bytes: u64) -> io::Result<Vec<u8>> {
    let length = bounded(file.metadata()?.len(), most_bytes)?;
    let mut bytes = Vec::with_capacity(length);
    // It may have grown since.
    file.take(most_bytes + 1).read_to_end(&mut bytes)?;
    bounded(bytes.len() as u64, most_bytes)?;
    Ok(bytes)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| invalid("it is no text in UTF-8".to_string()))
}

fn unfit(found: FileType) -> io::Error {
    let what = match found {
        _ if found.is_symlink() => "a symbolic link",
        _ if found.is_dir() => "a folder",
        _ if found.is_fifo() => "a named pipe",
        _ if found.is_socket() => "a socket",
        _ => "a device",
    };
    invalid(format!("it is {what}, a regular file is expected"))
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType as Made, Mode, mknodat};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_regular_files_within_the_bound_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("good"), "text").unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        symlink(path("good"), path("link")).unwrap();
        symlink(path("folder"), path("linked-folder")).unwrap();
        std::fs::write(path("folder/inside"), "inside").unwrap();
        mknodat(CWD, path("pipe"), Made::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        symlink(path("pipe"), path("linked-pipe")).unwrap();
        let _socket = UnixListener::bind(path("socket")).unwrap();
        let sparse = File::create(path("sparse")).unwrap();
        sparse.set_len(200 << 30).unwrap();

        assert_eq!(read(&path("good"), 4).unwrap(), b"text");
        assert_eq!(read_text(&path("linked-folder/inside"), 100).unwrap(), "inside");
        assert_eq!(read_linked_text(&path("link"), 4).unwrap(), "text");
        let refused = [
            ("link", "a symbolic link"),
            ("folder", "a folder"),
            ("pipe", "a named pipe"),
            ("socket", "a socket"),
            ("sparse", "214748364800 bytes, at most 4"),
        ];
        for (name, words) in refused {
            let error = read(&path(name), 4).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{name}: {error}");
            assert!(error.to_string().contains(words), "{name}: {error}");
        }
        for (name, words) in [("linked-pipe", "a named pipe"), ("sparse", "at most 4")] {
            let error = read_linked_text(&path(name), 4).unwrap_err().to_string();
            assert!(error.contains(words), "{name}: {error}");
        }
        assert_eq!(read(&path("good"), 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(&path("absent"), 3).unwrap_err().kind(), io::ErrorKind::NotFound);
        for name in ["pipe", "link", "folder", "socket"] {
            for opened in [open_append(&path(name)), open_or_create(&path(name))] {
                assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::InvalidData, "{name}");
            }
        }
        open_or_create(&path("good")).unwrap();
        open_or_create(&path("new")).unwrap();
        assert_eq!(read(&path("good"), 4).unwrap(), b"text", "it is not cut");
        std::fs::write(path("latin1"), [0xe9]).unwrap();
        assert!(read_text(&path("latin1"), 9).unwrap_err().to_string().contains("UTF-8"));
    }
}
