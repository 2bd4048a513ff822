//! Files of a run directory that others may have written: read whole, but only as regular files and up to a bound, so that
//! neither a pipe nor a giant can hold up whoever looks. (`lampyris_checkpoint::disk::regular` does the same for crates
//! that know checkpoints; this one does not.)

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The bytes of the file at `path`.
///
/// # Errors
/// It cannot be read, is no regular file, or has more than `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let unfit = |what: String| io::Error::new(ErrorKind::InvalidData, what);
    // Without waiting: opening a pipe would wait for its writer.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(unfit("it is something else, a regular file is expected".into()));
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(unfit(format!(
            "it has more than {limit} bytes, and cannot be what it should be"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_folder_a_pipe_and_a_giant_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("small"), "four").unwrap();
        assert_eq!(read(&path("small"), 4).unwrap(), b"four");
        let error = |name: &str| read(&path(name), 3).unwrap_err().to_string();
        assert!(error("small").contains("more than 3 bytes"));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert_eq!(error("pipe"), "it is something else, a regular file is expected");
        fs::create_dir(path("folder")).unwrap();
        assert_eq!(error("folder"), "it is something else, a regular file is expected");
        assert_eq!(read(&path("none"), 3).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
