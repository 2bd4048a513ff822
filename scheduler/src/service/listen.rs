//! Where the daemon listens: a port, or a Unix socket that only its owner can use.

use super::Address;
use crate::error::Error;
use crate::limits;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Listens on `address`; gives it with the port that was taken.
pub(super) fn bind(address: &Address) -> Result<(Listener, Address), Error> {
    let failed = |source| Error::Bind { address: address.to_string(), source };
    match address {
        Address::Tcp(wished) => {
            let listener = TcpListener::bind(wished).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            // The standard library asks for 128 waiting connections: too few for a cluster that comes back at once.
            rustix::net::listen(&listener, limits::BACKLOG).map_err(|e| failed(e.into()))?;
            let bound = Address::Tcp(listener.local_addr().map_err(failed)?);
            Ok((Listener::Tcp(listener), bound))
        }
        Address::Unix(path) => {
            clear(path)?;
            let listener = bind_unix(path).map_err(|errno| failed(errno.into()))?;
            Ok((Listener::Unix(listener), address.clone()))
        }
    }
}

/// The socket has its mode before it has a name: nobody can come in between.
fn bind_unix(path: &Path) -> Result<UnixListener, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, 0o600.into())?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmod(path, 0o600.into())?;
    rustix::net::listen(&socket, limits::BACKLOG)?;
    Ok(socket.into())
}

/// Makes room for a socket: takes away one that nobody listens on any more, and nothing else.
fn clear(path: &Path) -> Result<(), Error> {
    let occupied = |what: String| Error::Occupied { path: path.to_owned(), what };
    let io = |source: io::Error| Error::Io { path: path.to_owned(), source };
    let kind = match rustix::fs::lstat(path) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(io(errno.into())),
    };
    if kind != FileType::Socket {
        let is = match kind {
            FileType::RegularFile => "a file",
            FileType::Directory => "a folder",
            FileType::Symlink => "a symbolic link",
            _ => "something that is not a socket",
        };
        return Err(occupied(format!("{is} lies there; move it away, or give another path")));
    }
    match connects(path) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(io),
        Err(Errno::NOENT) => Ok(()),
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => {
            Err(occupied("another program listens there; stop it, or give another path".to_owned()))
        }
        Err(errno) => Err(occupied(format!("a socket lies there that cannot be tried: {errno}"))),
    }
}

/// Whether somebody listens; never waits.
fn connects(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

/// Raises the limit of open files as far as it goes; gives what it is then.
pub(super) fn raise_file_limit() -> usize {
    /// Below this nothing works.
    const LEAST: u64 = 128;
    /// Where there is no limit: more than there will ever be connections.
    const NO_LIMIT: u64 = 1 << 20;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let files = match raised {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, ?current, "cannot raise the limit of open files");
            current
        }
    };
    let files = files.unwrap_or(NO_LIMIT).max(LEAST);
    usize::try_from(files).unwrap_or(usize::MAX)
}

/// The cause of a failure behind all that only passed it on.
pub(super) fn innermost<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn refused(path: &Path) -> String {
        let refused = bind(&Address::Unix(path.to_owned()));
        refused.err().expect("refused").to_string()
    }

    #[test]
    fn only_a_socket_that_nobody_listens_on_makes_room() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("socket");
        std::fs::write(&path, "precious").expect("written");
        assert!(refused(&path).contains("a file lies there"));
        assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
        std::fs::remove_file(&path).expect("gone");

        let (first, _) = bind(&Address::Unix(path.clone())).expect("binds");
        assert!(refused(&path).contains("another program listens there"));
        drop(first);
        let (_second, _) = bind(&Address::Unix(path.clone())).expect("takes the dead one's place");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let link = home.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).expect("linked");
        assert!(refused(&link).contains("a symbolic link"));
        assert!(refused(home.path()).contains("a folder"));
    }

    #[test]
    fn places_fit_the_open_files_and_leave_some_to_workers() {
        use super::super::door::Places;
        for files in [64, 1_024, 65_536, 1 << 20] {
            let places = Places::for_files(files);
            assert!(places.connections < files);
            assert!(
                places.strangers + places.people <= places.connections - places.connections / 4
            );
        }
        assert!(raise_file_limit() >= 128);
    }
}
