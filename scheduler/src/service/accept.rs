//! The accept loop: a connection gets a place or is closed, and none of them can stop the loop.

use super::door::{Admission, Door, Origin, Peer};
use crate::limits;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Accepted connections that wait to be served.
const ACCEPTED: usize = 16;
/// A trouble that goes on is said again after this.
const SAID_FOR: Duration = Duration::from_secs(60);

/// What connections come from.
pub(super) trait Listen: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Origin)>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Origin)> {
        let (stream, address) = TcpListener::accept(self).await?;
        // Heartbeats are small and waited for; a connection that has just closed cannot be set, and shows that itself.
        stream.set_nodelay(true).ok();
        Ok((stream, Origin::of_machine(address.ip())))
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Origin)> {
        let (stream, _) = UnixListener::accept(self).await?;
        let uid = stream.peer_cred()?.uid();
        Ok((stream, Origin::User(uid)))
    }
}

/// Connections with a place, for the server. Ends when the server does.
pub(super) fn connections<L: Listen>(
    listener: L,
    door: Door,
) -> ReceiverStream<io::Result<Visit<L::Stream>>> {
    let (sender, receiver) = mpsc::channel(ACCEPTED);
    tokio::spawn(async move {
        let mut full = Sparingly::default();
        let mut failed = Sparingly::default();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (stream, origin) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    if failed.is_due() {
                        tracing::error!(%error, "cannot take in connections; trying again");
                    }
                    tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(admission) = door.admit(origin) else {
                if full.is_due() {
                    tracing::warn!(%origin, "closed a connection: all places are taken");
                }
                continue;
            };
            if sender.send(Ok(Visit::new(stream, admission))).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// The connection is at fault, and is gone.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::BrokenPipe
            | Kind::Interrupted
            | Kind::NotConnected
            | Kind::TimedOut
    )
}

/// What is said once a minute at most.
#[derive(Debug, Default)]
struct Sparingly {
    said: Option<Instant>,
}

impl Sparingly {
    fn is_due(&mut self) -> bool {
        let due = self.said.is_none_or(|said| said.elapsed() >= SAID_FOR);
        if due {
            self.said = Some(Instant::now());
        }
        due
    }
}

/// Of a stranger: how long it may stay one.
struct Patience {
    known: oneshot::Receiver<()>,
    until: Pin<Box<Sleep>>,
}

/// A connection with its place.
pub(super) struct Visit<S> {
    stream: S,
    peer: Peer,
    patience: Option<Patience>,
}

impl<S> Visit<S> {
    fn new(stream: S, admission: Admission) -> Visit<S> {
        let Admission { peer, known, first_request } = admission;
        let until = Box::pin(tokio::time::sleep(first_request));
        Visit { stream, peer, patience: Some(Patience { known, until }) }
    }

    /// An error once it has to go.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(patience) = &mut self.patience else { return Ok(()) };
        let gone = |why| Err(io::Error::new(io::ErrorKind::TimedOut, why));
        match Pin::new(&mut patience.known).poll(context) {
            Poll::Ready(Ok(())) => {
                self.patience = None;
                Ok(())
            }
            Poll::Ready(Err(_)) => gone("others wait for the place of a silent connection"),
            Poll::Pending => match patience.until.as_mut().poll(context) {
                Poll::Ready(()) => gone("no call with a token in time"),
                Poll::Pending => Ok(()),
            },
        }
    }
}

impl<S> Connected for Visit<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Visit<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Visit<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
