//! Connections and streams without end: who has the token gets in beside them.

use super::*;
use crate::limits;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};
use tokio_stream::StreamExt;

fn few() -> Places {
    Places {
        strangers: 8,
        strangers_per_address: 8,
        first_request: Duration::from_millis(300),
        streams_per_connection: 3,
        ..Places::for_files(1_024)
    }
}

async fn raw(daemon: &Daemon) -> TcpStream {
    let address = daemon.address.trim_start_matches("http://").to_owned();
    TcpStream::connect(address).await.expect("connects")
}

/// Reads until the other side closes.
async fn closed(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes));
    // A reset is an end as well.
    drop(read.await.expect("is closed"));
}

#[tokio::test]
async fn silent_connections_are_closed_and_hold_up_nobody() {
    let home = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start_with(options(home.path()), few());
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(raw(&daemon).await);
    }
    let mut worker = Worker::join(&daemon.address, Vec::new()).await;
    let mut client = daemon.client().await;
    client.list_jobs(v1::ListJobsRequest::default()).await.expect("is let in");
    for stream in silent {
        closed(stream).await;
    }
    // Those who have shown who they are stay.
    client.list_jobs(v1::ListJobsRequest::default()).await.expect("the same connection");
    worker.say(Up::Heartbeat(v1::Heartbeat { sequence: 3, attempts: Vec::new() })).await;
    assert!(matches!(worker.hear().await, Down::HeartbeatAck(ack) if ack.sequence == 3));
    daemon.stop().await;
}

#[tokio::test]
async fn streams_of_one_connection_have_an_end() {
    let home = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start_with(options(home.path()), few());
    let mut client = daemon.client().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(client.watch_jobs(v1::WatchJobsRequest::default()).await.expect("opens"));
    }
    let refused = client.watch_events(v1::WatchEventsRequest::default()).await.expect_err("full");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    client.list_jobs(v1::ListJobsRequest::default()).await.expect("calls go on");
    let mut other = daemon.client().await;
    other.watch_events(v1::WatchEventsRequest::default()).await.expect("has its own");
    daemon.stop().await;
}

/// A listener without files, three times.
struct OutOfFiles {
    tries: Arc<AtomicUsize>,
}

impl accept::Listen for OutOfFiles {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, door::Origin)> {
        match self.tries.fetch_add(1, Ordering::Relaxed) {
            0..3 => Err(rustix::io::Errno::MFILE.into()),
            3 => Ok((UnixStream::pair()?.0, door::Origin::User(1))),
            _ => std::future::pending().await,
        }
    }
}

#[tokio::test]
async fn without_open_files_the_loop_waits_and_goes_on() {
    let tries = Arc::new(AtomicUsize::new(0));
    let begun = std::time::Instant::now();
    let door = Door::new(few());
    let mut taken_in = accept::connections(OutOfFiles { tries: Arc::clone(&tries) }, door);
    assert!(taken_in.next().await.expect("goes on").is_ok());
    assert!(begun.elapsed() >= 3 * limits::ACCEPT_PAUSE, "it does not spin");
    assert!(tries.load(Ordering::Relaxed) <= 5);
}

#[tokio::test]
async fn the_kernel_says_who_speaks_on_a_unix_socket() {
    let home = tempfile::tempdir().expect("a folder");
    let socket = home.path().join("socket");
    let daemon = Daemon::start(Options { listen: Address::Unix(socket), ..options(home.path()) });
    let mut client = daemon.client().await;
    let job = client.submit_job(wish("a")).await.expect("accepted").into_inner();
    let own = accounts::name_of(rustix::process::getuid().as_raw());
    assert_eq!(job.spec.expect("set").user, own);
    daemon.stop().await;
    let home = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(options(home.path()));
    let job = daemon.client().await.submit_job(wish("a")).await.expect("accepted").into_inner();
    assert_eq!(job.spec.expect("set").user, "ann");
    daemon.stop().await;
}
