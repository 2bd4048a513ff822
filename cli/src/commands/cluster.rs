//! Which scheduler a command asks.

use super::Environment;
use crate::backend::scheduler::Scheduler;
use crate::error::CliError;
use lampyris_worker::client::Target;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the scheduler is.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Scheduler")]
pub(crate) struct ClusterArgs {
    /// unix:/PATH, http://HOST:PORT or https://HOST:PORT [default: $LAMPYRIS_SCHEDULER, else the one of `lampyris up`]
    #[arg(long, value_name = "ADDRESS")]
    scheduler: Option<String>,
    /// Certificate of the authority that signed the scheduler's, for https [default: $LAMPYRIS_CA]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// File with the bearer token [default: $LAMPYRIS_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Send the token over plain http to another machine: whoever listens on the way can run programs there
    #[arg(long)]
    insecure: bool,
}

impl ClusterArgs {
    /// The scheduler at `address`, without credentials.
    pub(crate) fn at(address: String) -> ClusterArgs {
        ClusterArgs { scheduler: Some(address), ..ClusterArgs::default() }
    }

    /// The scheduler that is named, and no credentials.
    pub(crate) fn address_only(&self) -> Target {
        Target { address: self.scheduler.clone().unwrap_or_default(), ..Target::default() }
    }

    /// What is asked for, else the environment's, else that of `lampyris up`.
    pub(crate) fn target(&self, environment: &Environment) -> Target {
        let named = self.scheduler.clone().or_else(|| environment.scheduler.clone());
        let address = named.unwrap_or_else(|| socket_address(&environment.cluster_dir()));
        let usual_ca = environment.ca.clone().filter(|_| address.starts_with("https://"));
        Target {
            address,
            ca_file: self.ca.clone().or(usual_ca),
            token_file: self.token_file.clone().or_else(|| environment.token_file.clone()),
            insecure: self.insecure,
        }
    }

    /// Connects.
    pub(crate) fn connect(&self, environment: &Environment) -> Result<Scheduler, CliError> {
        let target = self.target(environment);
        if let Some(path) = target.address.strip_prefix("unix:").map(Path::new) {
            check_socket(path)?;
            if path.starts_with(short_sockets()) && path.exists() {
                let folder = short_sockets();
                check_owner(&folder).map_err(|error| CliError::read(&folder, error))?;
            }
        }
        Scheduler::connect(&target)
    }
}

/// Longest path that the kernel takes for a Unix socket (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Socket of a scheduler whose state is in `dir`. Where that path is too long for a socket it is a short one that follows
/// from it, in a folder of this user's, so that everybody finds the same one.
fn socket_path(dir: &Path) -> PathBuf {
    let path = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let path = path.join("scheduler.sock");
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return path;
    }
    let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
    short_sockets().join(format!("{}.sock", &name[..32]))
}

/// Where this user's sockets with short paths lie.
fn short_sockets() -> PathBuf {
    PathBuf::from(format!("/tmp/lampyris-{}", rustix::process::getuid().as_raw()))
}

/// The socket of a scheduler that is to be started with its state in `dir`: its folder exists.
pub(crate) fn new_socket(dir: &Path) -> Result<PathBuf, CliError> {
    let path = socket_path(dir);
    let folder = short_sockets();
    if path.starts_with(&folder) {
        let made = fs::DirBuilder::new().mode(0o700).create(&folder);
        let made = made.or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        });
        made.and_then(|()| check_owner(&folder)).map_err(|e| CliError::write(&folder, e))?;
    }
    Ok(path)
}

/// Removes the socket of a scheduler that has ended.
pub(crate) fn remove_socket(dir: &Path) {
    // Gone already is as good.
    fs::remove_file(socket_path(dir)).ok();
}

/// Refuses a folder that others may write to: they could put their own socket there.
fn check_owner(folder: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(folder)?;
    let own = found.is_dir() && found.uid() == rustix::process::getuid().as_raw();
    if own && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let what = "it is not a folder of this user's alone: remove it";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}

/// Refuses a path that a person has named and that is too long for a socket.
pub(crate) fn check_socket(path: &Path) -> Result<(), CliError> {
    let length = path.as_os_str().len();
    match length > MAX_SOCKET_PATH {
        true => Err(CliError::SocketPath { path: path.into(), length, most: MAX_SOCKET_PATH }),
        false => Ok(()),
    }
}

/// The same as an address.
pub(crate) fn socket_address(dir: &Path) -> String {
    format!("unix:{}", socket_path(dir).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_has_a_short_socket_that_everybody_finds() {
        let short = Path::new("/cache/cluster");
        assert_eq!(socket_path(short), short.join("scheduler.sock"));
        let long = PathBuf::from(format!("/{}", "long/".repeat(40)));
        let socket = socket_path(&long);
        assert!(socket.as_os_str().len() <= MAX_SOCKET_PATH, "{}", socket.display());
        assert_eq!(socket_path(&long), socket);
        assert_ne!(socket_path(&long.join("other")), socket);
        assert!(check_socket(&socket).is_ok());
        let error = check_socket(&long).unwrap_err().to_string();
        assert!(error.contains("has 201 bytes") && error.contains("107"), "{error}");
    }
}
