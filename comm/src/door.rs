//! Where strangers knock: accepts connections and lets through those that know the attempt's secret.
//!
//! Many connections are in their handshake at once, each with a fixed number of bytes to read and a deadline, so one
//! that sends nothing, sends slowly or sends garbage delays nobody. When too many are pending the oldest is dropped.

use crate::error::{Error, Result};
use crate::secret::{Secret, random_bytes};
use crate::wire::handshake::{self, HELLO_BYTES, Hello, PROOF_BYTES};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Handshakes in progress. An honest rank needs milliseconds.
const PENDING: usize = 256;

/// What an honest rank never needs for its three messages.
const PATIENCE: Duration = Duration::from_secs(3);

/// A connection whose other side knows the secret.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) hello: Hello,
    /// Blocking.
    pub(crate) fd: OwnedFd,
    pub(crate) local: bool,
}

/// The door.
#[derive(Debug)]
pub(crate) struct Door {
    /// With whether it is a Unix socket.
    listeners: Vec<(OwnedFd, bool)>,
    secret: Secret,
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct Pending {
    fd: OwnedFd,
    local: bool,
    since: Instant,
    read: Vec<u8>,
    hello: Option<(Hello, [u8; 32])>,
}

enum Step {
    Wait,
    Through(Hello),
    Drop(String),
}

impl Door {
    pub(crate) fn new(listeners: Vec<(OwnedFd, bool)>, secret: Secret) -> Result<Self> {
        for (fd, _) in &listeners {
            rustix::io::ioctl_fionbio(fd, true)
                .map_err(|source| Error::io("preparing a listener", source))?;
        }
        Ok(Self { listeners, secret, pending: Vec::new() })
    }

    /// Waits until somebody is through or the time is over.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<Vec<Guest>> {
        let deadline = Instant::now() + timeout;
        loop {
            let guests = self.poll(deadline)?;
            if !guests.is_empty() || Instant::now() >= deadline {
                return Ok(guests);
            }
        }
    }

    fn poll(&mut self, deadline: Instant) -> Result<Vec<Guest>> {
        let now = Instant::now();
        self.pending.retain(|pending| now - pending.since < PATIENCE);
        let mut fds: Vec<PollFd<'_>> =
            self.listeners.iter().map(|(fd, _)| PollFd::new(fd, PollFlags::IN)).collect();
        fds.extend(self.pending.iter().map(|pending| PollFd::new(&pending.fd, PollFlags::IN)));
        let left = deadline.saturating_duration_since(now).min(PATIENCE);
        let left = Timespec::try_from(left).expect("seconds at most");
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(source) => return Err(Error::io("waiting for connections", source)),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let (listening, talking) = ready.split_at(self.listeners.len());
        let guests = self.talk(talking);
        for (at, _) in listening.iter().enumerate().filter(|(_, ready)| **ready) {
            self.accept(at);
        }
        Ok(guests)
    }

    fn accept(&mut self, at: usize) {
        let (listener, local) = &self.listeners[at];
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(fd) = accept_with(listener.as_fd(), flags) {
            if self.pending.len() >= PENDING {
                self.pending.remove(0);
            }
            let since = Instant::now();
            self.pending.push(Pending { fd, local: *local, since, read: Vec::new(), hello: None });
        }
    }

    fn talk(&mut self, ready: &[bool]) -> Vec<Guest> {
        let mut guests = Vec::new();
        let mut still = Vec::new();
        for (at, mut pending) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            let step = if ready.get(at).copied().unwrap_or(false) {
                pending.step(&self.secret)
            } else {
                Step::Wait
            };
            match step {
                Step::Wait => still.push(pending),
                Step::Through(hello) => match rustix::io::ioctl_fionbio(&pending.fd, false) {
                    Ok(()) => guests.push(Guest { hello, fd: pending.fd, local: pending.local }),
                    Err(error) => tracing::warn!(%error, "an accepted connection was lost"),
                },
                Step::Drop(why) => tracing::warn!(why, "turned a stranger away"),
            }
        }
        self.pending = still;
        guests
    }
}

impl Pending {
    fn step(&mut self, secret: &Secret) -> Step {
        loop {
            let wanted = if self.hello.is_none() { HELLO_BYTES } else { PROOF_BYTES };
            let mut buffer = [0u8; HELLO_BYTES];
            let missing = wanted - self.read.len();
            match recv(&self.fd, &mut buffer[..missing], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Step::Drop("it hung up".into()),
                Ok((_, n)) => self.read.extend(&buffer[..n]),
                Err(Errno::AGAIN) => return Step::Wait,
                Err(Errno::INTR) => continue,
                Err(errno) => return Step::Drop(errno.to_string()),
            }
            if self.read.len() < wanted {
                continue;
            }
            let read = std::mem::take(&mut self.read);
            match self.message(&read, secret) {
                Step::Wait => {}
                end => return end,
            }
        }
    }

    /// One complete message: the hello is answered, the proof decides.
    fn message(&mut self, read: &[u8], secret: &Secret) -> Step {
        match self.hello {
            None => {
                let bytes = read.try_into().expect("HELLO_BYTES were read");
                let hello = match Hello::decode(read) {
                    Ok(hello) => hello,
                    Err(error) => return Step::Drop(error.to_string()),
                };
                let nonce = match random_bytes() {
                    Ok(nonce) => nonce,
                    Err(error) => return Step::Drop(error.to_string()),
                };
                let answer = handshake::challenge(secret, bytes, nonce);
                // 64 bytes into an empty socket buffer: all or nothing.
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                if send(&self.fd, &answer, flags) != Ok(answer.len()) {
                    return Step::Drop("it does not read".into());
                }
                self.hello = Some((hello, nonce));
                Step::Wait
            }
            Some((hello, nonce)) => {
                let proof = read.try_into().expect("PROOF_BYTES were read");
                if handshake::verify(secret, &hello.encode(), &nonce, proof) {
                    Step::Through(hello)
                } else {
                    Step::Drop(format!("rank {} has another secret", hello.from))
                }
            }
        }
    }
}

/// The other side of the door: proves itself over a connected, blocking socket with a read timeout.
pub(crate) fn knock(fd: &OwnedFd, secret: &Secret, hello: &Hello) -> Result<()> {
    let failed =
        |what: &str, errno| Error::io(format!("handshake with rank {}: {what}", hello.to), errno);
    let hello_bytes = hello.encode();
    let mut file = Blocking(fd);
    file.send(&hello_bytes).map_err(|e| failed("sending", e))?;
    let mut challenge = [0; handshake::CHALLENGE_BYTES];
    file.receive(&mut challenge).map_err(|e| failed("no answer", e))?;
    let proof = handshake::prove(secret, &hello_bytes, &challenge).ok_or_else(|| {
        Error::Invalid(format!(
            "whoever listens at rank {}'s address does not know this attempt's secret",
            hello.to
        ))
    })?;
    file.send(&proof).map_err(|e| failed("sending", e))
}

/// Whole messages over a blocking socket.
pub(crate) struct Blocking<'a>(pub(crate) &'a OwnedFd);

impl Blocking<'_> {
    pub(crate) fn send(&mut self, mut bytes: &[u8]) -> rustix::io::Result<()> {
        while !bytes.is_empty() {
            match send(self.0, bytes, SendFlags::NOSIGNAL) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    pub(crate) fn receive(&mut self, mut bytes: &mut [u8]) -> rustix::io::Result<()> {
        while !bytes.is_empty() {
            match recv(self.0, &mut *bytes, RecvFlags::empty()) {
                Ok((_, 0)) => return Err(Errno::CONNRESET),
                Ok((_, n)) => bytes = &mut bytes[n..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    pub(crate) fn send_message(&mut self, body: &[u8]) -> rustix::io::Result<()> {
        let length = u32::try_from(body.len()).expect("bounded messages");
        self.send(&length.to_le_bytes())?;
        self.send(body)
    }

    pub(crate) fn receive_message(&mut self, limit: usize) -> rustix::io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.receive(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > limit {
            return Err(Errno::MSGSIZE);
        }
        let mut body = vec![0; length];
        self.receive(&mut body)?;
        Ok(body)
    }
}
