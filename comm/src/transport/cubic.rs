//! Tcp sockets that use cubic congestion control from their first packet.
//!
//! With the host's default, often BBR, one stream of a veth pair reached less than half of it. To change a socket that is
//! connected already is too late: BBR has switched it to pacing by timer then, nothing switches that off again, and two
//! streams of 8 Gbit/s spent a fifth of two cores in those timers. So both ends are set before they connect; what a
//! listener accepts inherits its choice.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Listens at an address.
///
/// # Errors
/// When the address is in use or not of this host.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    choose(&listener);
    Ok(listener)
}

/// A connected, blocking socket.
///
/// # Errors
/// When nobody listens there, or does not answer in time.
pub fn connect(address: SocketAddr, timeout: Duration) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(family, SocketType::STREAM, flags, None)?;
    choose(&fd);
    match rustix::net::connect(&fd, &address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => connected(&fd, Instant::now() + timeout)?,
        Err(errno) => return Err(errno),
    }
    rustix::io::ioctl_fionbio(&fd, false)?;
    Ok(fd)
}

fn connected(fd: &OwnedFd, deadline: Instant) -> rustix::io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(fd, PollFlags::OUT)], Some(&left)) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) => return sockopt::socket_error(fd)?,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn choose(fd: &impl AsFd) {
    if let Err(error) = sockopt::set_tcp_congestion(fd, "cubic") {
        tracing::debug!(%error, "no cubic congestion control here: keeping the host's default");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn both_ends_use_cubic() {
        let listener = listen("127.0.0.1:0".parse().expect("an address")).expect("listens");
        let address = listener.local_addr().expect("bound");
        let fd = connect(address, Duration::from_secs(5)).expect("connects");
        let (mut accepted, _) = listener.accept().expect("a connection");
        for end in [fd.as_fd(), accepted.as_fd()] {
            assert_eq!(sockopt::tcp_congestion(end).expect("a name"), "cubic");
        }
        TcpStream::from(fd).write_all(b"words").expect("blocking");
        let mut words = String::new();
        accepted.read_to_string(&mut words).expect("blocking");
        assert_eq!(words, "words");
    }

    #[test]
    fn nobody_there_is_an_error() {
        let free = TcpListener::bind("127.0.0.1:0").expect("listens").local_addr().expect("bound");
        let error = connect(free, Duration::from_secs(5)).expect_err("nobody listens");
        assert_eq!(error, Errno::CONNREFUSED);
    }
}
