//! Files and folders that are nobody else's: state of daemons, secrets.

use lampyris_proto::words::token_problem;
use rustix::fs::{Mode, OFlags};
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest file with a secret: keys of certificates have a few KiB.
const SECRET_BYTES: u64 = 64 << 10;

/// Why a secret is not taken from a file.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Not a file, or a large one.
    #[error("{} is not a file of at most 64 KiB", .path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// Whoever reads it can run programs here.
    #[error("others can read {0}: chmod 600 {0}", .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// A token that anybody could guess or nobody could send.
    #[error("{}: {what}", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// The text of a file that only its owner can read.
///
/// # Errors
/// [`SecretError`].
pub fn read_secret(path: &Path) -> Result<String, SecretError> {
    let failed = |source| SecretError::Read { path: path.to_owned(), source };
    // A FIFO must not hold us up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let file = File::from(file);
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() || found.len() > SECRET_BYTES {
        return Err(SecretError::NotAFile { path: path.to_owned() });
    }
    if found.mode() & 0o077 != 0 {
        return Err(SecretError::Exposed { path: path.to_owned() });
    }
    let mut text = String::new();
    file.take(SECRET_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// The bearer token of a file: its text without the end of the line.
///
/// # Errors
/// [`SecretError`].
pub fn read_token(path: &Path) -> Result<String, SecretError> {
    let text = read_secret(path)?;
    let token = text.trim_end_matches(['\n', '\r']);
    match token_problem(token) {
        Some(what) => Err(SecretError::Token { path: path.to_owned(), what }),
        None => Ok(token.to_owned()),
    }
}

/// Makes a folder that only its owner can enter, whatever the umask; one that is there stays as it is.
///
/// # Errors
/// When it cannot be made, or something else lies there.
pub fn make_folder(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Makes a file, or empties it, that only its owner can read.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(true).write(true).mode(0o600).open(path)
}

/// What tells the worker of a state directory from all others: made once, at random.
///
/// # Errors
/// When it cannot be read or made.
pub(crate) fn instance(state_dir: &Path) -> io::Result<String> {
    const DIGITS: usize = 16;
    let path = state_dir.join("instance");
    let known = File::open(&path).and_then(|file| {
        let mut text = String::new();
        file.take(64).read_to_string(&mut text)?;
        Ok(text.trim_end().to_owned())
    });
    let is_one = |text: &str| text.len() == DIGITS && text.bytes().all(|c| c.is_ascii_hexdigit());
    match known {
        Ok(known) if is_one(&known) => return Ok(known),
        // Torn by a crash before anybody knew it.
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let bytes = lampyris_comm::Secret::random_bytes().map_err(io::Error::other)?;
    let made: String = bytes.iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
    let temporary = state_dir.join("instance.tmp");
    let mut file = create_file(&temporary)?;
    file.write_all(made.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn written(folder: &Path, text: &str, mode: u32) -> PathBuf {
        let path = folder.join("token");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_token_is_long_plain_and_private() {
        let home = tempfile::tempdir().unwrap();
        let refused = |text: &str, mode| {
            read_token(&written(home.path(), text, mode)).unwrap_err().to_string()
        };
        let good = written(home.path(), "0123456789abcdef\n", 0o600);
        assert_eq!(read_token(&good).unwrap(), "0123456789abcdef");
        for bad in
            ["", "\n", "short", "0123456789 abcdef", "0123456789abcdef\nx", " 0123456789abcdef"]
        {
            assert!(refused(bad, 0o600).contains("a token has"), "{bad:?}");
        }
        for mode in [0o644, 0o640, 0o602, 0o604] {
            let message = refused("0123456789abcdef", mode);
            assert!(message.contains("others can read") && message.contains("chmod 600"));
        }
        assert!(matches!(read_token(home.path()), Err(SecretError::NotAFile { .. })));
        assert!(matches!(read_token(&home.path().join("no")), Err(SecretError::Read { .. })));
    }

    #[test]
    fn an_instance_stays_the_same_and_two_differ() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = instance(one.path()).unwrap();
        assert_eq!(first.len(), 16);
        assert_eq!(instance(one.path()).unwrap(), first);
        assert_ne!(instance(two.path()).unwrap(), first);
        fs::write(one.path().join("instance"), "torn").unwrap();
        assert_ne!(instance(one.path()).unwrap(), first);
    }

    #[test]
    fn a_folder_is_private_and_one_that_is_there_stays() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        make_folder(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        make_folder(&path).unwrap();
        fs::write(path.join("c"), "").unwrap();
        assert!(make_folder(&path.join("c")).is_err());
    }
}
