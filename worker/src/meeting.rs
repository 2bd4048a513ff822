//! Where the ranks of a job under a worker find each other: node 0's shim serves the rendezvous and leaves address and
//! secret in the run directory, in a file that only its owner can read; the others wait for it.

use crate::launch::Launch;
use crate::run_file;
use crate::shim::Rendezvous;
use lampyris_comm::{self as comm, Secret, Server};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How long nodes and ranks wait for the others: reading a large model's libraries from a cold network disk takes
/// minutes.
const JOIN_TIMEOUT: Duration = Duration::from_secs(300);

/// Longest file that is read: an address and 32 numbers.
const WORD_LIMIT: u64 = 4096;

/// How often a node looks for node 0's word; a shared folder has nothing to wait on.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Where to meet, and on node 0 the server.
pub(crate) struct Meeting {
    pub(crate) rendezvous: Rendezvous,
    server: Option<(Server, PathBuf)>,
}

#[derive(Serialize, Deserialize)]
struct Word {
    address: SocketAddr,
    secret: [u8; 32],
}

/// The file in which the word waits.
struct WordFile {
    run_dir: PathBuf,
    name: String,
}

impl WordFile {
    fn path(&self) -> PathBuf {
        self.run_dir.join(&self.name)
    }
}

/// What the file says.
pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Rendezvous> {
    let Word { address, secret } = serde_json::from_slice(bytes)?;
    Ok(Rendezvous { address, secret })
}

impl Drop for Meeting {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.server {
            fs::remove_file(path).ok();
        }
    }
}

/// The meeting of `launch`, none for a single rank. Waits for node 0 until `given_up`.
///
/// # Errors
/// In words: the port, the file, or node 0 that does not come.
pub(crate) fn of(launch: &Launch, given_up: &dyn Fn() -> bool) -> Result<Option<Meeting>, String> {
    if launch.nodes == 1 && launch.ranks_per_node == 1 {
        return Ok(None);
    }
    let file = WordFile {
        run_dir: launch.run_dir.clone(),
        name: format!("control/meeting.attempt-{}.json", launch.run_attempt),
    };
    match launch.node {
        0 => serve(launch, file).map(Some),
        _ => wait_for(&file, given_up).map(Some),
    }
}

fn serve(launch: &Launch, file: WordFile) -> Result<Meeting, String> {
    let secret = Secret::random_bytes().map_err(|e| e.to_string())?;
    let number = u32::try_from(launch.run_attempt.0).map_err(|e| e.to_string())?;
    let at = SocketAddr::new(launch.host, 0);
    let key = Secret::from_bytes(secret);
    let server = Server::start(at, key, comm::Attempt(number), JOIN_TIMEOUT)
        .map_err(|error| error.to_string())?;
    let address = server.address();
    let word = serde_json::to_vec(&Word { address, secret }).map_err(|e| e.to_string())?;
    run_file::write(&file.run_dir, &file.name, 0o600, &word)
        .map_err(|error| format!("cannot write {}: {error}", file.path().display()))?;
    Ok(Meeting { rendezvous: Rendezvous { address, secret }, server: Some((server, file.path())) })
}

fn wait_for(file: &WordFile, given_up: &dyn Fn() -> bool) -> Result<Meeting, String> {
    let until = Instant::now() + JOIN_TIMEOUT;
    loop {
        match run_file::read(&file.run_dir, &file.name, WORD_LIMIT) {
            Ok(bytes) => {
                let rendezvous = parse(&bytes)
                    .map_err(|error| format!("{} is damaged: {error}", file.path().display()))?;
                return Ok(Meeting { rendezvous, server: None });
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(format!("cannot read {}: {error}", file.path().display()));
            }
            Err(_) if given_up() || Instant::now() >= until => {
                return Err(format!("node 0 has not written {}", file.path().display()));
            }
            Err(_) => thread::sleep(LOOK_PERIOD),
        }
    }
}
