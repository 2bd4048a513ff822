//! Where the ranks of a job under a worker find each other: node 0's shim serves the rendezvous and leaves address and
//! secret in the run directory, in a file that only its owner can read; the others wait for it.

use crate::launch::Launch;
use crate::shim::Rendezvous;
use lampyris_comm::{self as comm, Secret, Server};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long nodes and ranks wait for the others: reading a large model's libraries from a cold network disk takes
/// minutes.
const JOIN_TIMEOUT: Duration = Duration::from_secs(300);

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
    let path = launch.run_dir.join(format!("control/meeting.attempt-{}.json", launch.run_attempt));
    match (launch.nodes * launch.ranks_per_node, launch.node) {
        (1, _) => Ok(None),
        (_, 0) => serve(launch, path).map(Some),
        _ => wait_for(&path, given_up).map(Some),
    }
}

fn serve(launch: &Launch, path: PathBuf) -> Result<Meeting, String> {
    let secret = Secret::random_bytes().map_err(|e| e.to_string())?;
    let number = u32::try_from(launch.run_attempt.0).map_err(|e| e.to_string())?;
    let at = SocketAddr::new(launch.host, 0);
    let key = Secret::from_bytes(secret);
    let server = Server::start(at, key, comm::Attempt(number), JOIN_TIMEOUT)
        .map_err(|error| error.to_string())?;
    let address = server.address();
    let word = serde_json::to_vec(&Word { address, secret }).map_err(|e| e.to_string())?;
    let temporary = path.with_extension("json.tmp");
    let write = || {
        let mut options = OpenOptions::new();
        let mut file =
            options.create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(&word)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok(Meeting { rendezvous: Rendezvous { address, secret }, server: Some((server, path)) })
}

fn wait_for(path: &Path, given_up: &dyn Fn() -> bool) -> Result<Meeting, String> {
    let until = Instant::now() + JOIN_TIMEOUT;
    loop {
        match fs::read(path) {
            Ok(bytes) => {
                let word: Word = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
                let Word { address, secret } = word;
                return Ok(Meeting { rendezvous: Rendezvous { address, secret }, server: None });
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(format!("cannot read {}: {error}", path.display()));
            }
            Err(_) if given_up() || Instant::now() >= until => {
                return Err(format!("node 0 has not written {}", path.display()));
            }
            Err(_) => thread::sleep(LOOK_PERIOD),
        }
    }
}
