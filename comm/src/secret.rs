//! The shared secret of an attempt: 32 random bytes made by whoever starts the job.
//!
//! It comes by an inherited descriptor or a file only its owner can read, never as an argument or an environment
//! variable, and is never printed.

use crate::error::{Error, Result};
use std::fmt;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Secret of one attempt.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// Fresh random bytes.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn random() -> Result<Self> {
        random_bytes().map(Self)
    }

    /// Fresh random bytes for a starter that passes them on by its own way (a pipe) before it makes a secret of them.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn random_bytes() -> Result<[u8; 32]> {
        random_bytes()
    }

    /// A known secret, for tests.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for a starter that read them from a file and passes them on through a pipe.
    pub fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Reads it from a descriptor inherited from the starter.
    ///
    /// # Errors
    /// When it does not hold exactly 32 bytes.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Self::read(std::fs::File::from(fd), "the inherited secret")
    }

    /// Reads it from a file that only its owner can read.
    ///
    /// # Errors
    /// When others can read it, or when it does not hold exactly 32 bytes.
    pub fn from_file(path: &Path) -> Result<Self> {
        let what = format!("the secret in {}", path.display());
        let file =
            std::fs::File::open(path).map_err(|e| Error::io(format!("opening {what}"), e))?;
        let mode = file.metadata().map_err(|e| Error::io(format!("checking {what}"), e))?.mode();
        if mode & 0o077 != 0 {
            let path = path.display();
            return Err(Error::Invalid(format!("others can read {path}: chmod 600 {path}")));
        }
        Self::read(file, &what)
    }

    /// Writes it to a new file that only its owner can read.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn write_file(&self, path: &Path) -> Result<()> {
        let failed = |e| Error::io(format!("writing the secret to {}", path.display()), e);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options.open(path).and_then(|mut file| file.write_all(&self.0)).map_err(failed)
    }

    fn read(mut file: std::fs::File, what: &str) -> Result<Self> {
        let mut bytes = Vec::new();
        let mut limited = Read::by_ref(&mut file).take(33);
        limited.read_to_end(&mut bytes).map_err(|e| Error::io(format!("reading {what}"), e))?;
        let bytes = <[u8; 32]>::try_from(bytes).map_err(|bytes| {
            Error::Invalid(format!("{what} has {} bytes instead of 32", bytes.len()))
        })?;
        Ok(Self(bytes))
    }

    /// Keyed hash over a role and two messages of fixed length.
    pub(crate) fn mac(&self, role: &[u8], first: &[u8], second: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.0).update(role).update(first).update(second).finalize()
    }

    /// Keyed hash of one message, for naming things that strangers must not guess.
    pub(crate) fn name(&self, what: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, what)
    }
}

/// 32 random bytes of the system.
pub(crate) fn random_bytes() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let mut file = std::fs::File::open("/dev/urandom")
        .map_err(|source| Error::io("opening /dev/urandom", source))?;
    file.read_exact(&mut bytes).map_err(|source| Error::io("reading /dev/urandom", source))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_others_can_read_is_refused() {
        let path = std::env::temp_dir().join(format!("lampyris-secret-{}", std::process::id()));
        let secret = Secret::random().expect("randomness");
        secret.write_file(&path).expect("new file");
        assert_eq!(Secret::from_file(&path).expect("private").0, secret.0);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(Secret::from_file(&path), Err(Error::Invalid(_))));
        std::fs::remove_file(&path).expect("remove");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
