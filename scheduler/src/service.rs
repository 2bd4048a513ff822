//! The daemon around the core: gRPC, clock, database.
//!
//! One thread decides (`engine.rs`): it takes what has happened from a bounded queue, steps the core, commits all steps
//! of a batch in one transaction, and only then answers and speaks to workers. Everything else is gRPC: `api.rs` for
//! people, `workers.rs` for nodes, `convert.rs` between messages and the core's types.

mod api;
mod auth;
mod clock;
mod convert;
mod effects;
mod engine;
mod link;
mod logs;
mod refuse;
#[cfg(test)]
mod tests;
mod view;
mod watch;
mod workers;

use crate::core::Policy;
use crate::error::Error;
use crate::store::Store;
use auth::Bearer;
use engine::Engine;
use lampyris_proto::v1;
use lampyris_proto::v1::scheduler_service_server::SchedulerServiceServer;
use lampyris_proto::v1::worker_service_server::WorkerServiceServer;
use link::EngineLink;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Router;
use tonic::transport::{Identity, Server, ServerTlsConfig};

/// Largest message that is accepted; a registration of a node with 1,000 attempts has 100 KiB.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Calls without a deadline of their own end after this.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// A dead connection is noticed after this and as much again.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Streams of one connection.
const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// What open streams may take to end when the daemon stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Where the scheduler listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An IP address and port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket; only its owner may use it.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "http://{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Certificate and key, PEM.
#[derive(Clone)]
pub struct Tls {
    /// Certificate chain of this server.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// Where a test wants the daemon to die, as by `kill -9`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailPoint {
    /// Code of a reason, e.g. `placed`: dies in the first batch that has such a line of history.
    pub reason: String,
    /// After the commit and before anybody hears of it, instead of before the commit.
    pub after_commit: bool,
}

/// Settings of the daemon.
#[derive(Clone)]
pub struct Options {
    /// Database and lock; on a local disk.
    pub state_dir: PathBuf,
    /// Where to listen.
    pub listen: Address,
    /// TLS; demanded for addresses that other machines can reach.
    pub tls: Option<Tls>,
    /// Every call but for health must bring `authorization: Bearer TOKEN`; demanded like TLS.
    pub token: Option<String>,
    /// Listen without TLS and token on an address that other machines can reach.
    pub insecure: bool,
    /// The core's settings.
    pub policy: Policy,
    /// For tests.
    pub fail_point: Option<FailPoint>,
}

impl Options {
    /// Settings for one machine: loopback, no token.
    pub fn new(state_dir: PathBuf, listen: Address) -> Options {
        Options {
            state_dir,
            listen,
            tls: None,
            token: None,
            insecure: false,
            policy: Policy::default(),
            fail_point: None,
        }
    }

    /// Opens the database and binds the address.
    pub fn build(self) -> Result<Service, Error> {
        self.check_protection()?;
        let store = Store::open(&self.state_dir)?;
        let (listener, address) = bind(&self.listen)?;
        let engine = Engine::new(self.policy.clone(), store, self.fail_point.clone())?;
        Ok(Service { options: self, listener, address, engine })
    }

    fn check_protection(&self) -> Result<(), Error> {
        let Address::Tcp(address) = &self.listen else { return Ok(()) };
        if address.ip().is_loopback() || (self.tls.is_some() && self.token.is_some()) {
            return Ok(());
        }
        if !self.insecure {
            return Err(Error::Unprotected { address: *address });
        }
        tracing::warn!(%address, "insecure: anybody who can reach this address can run programs here");
        Ok(())
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

fn bind(address: &Address) -> Result<(Listener, Address), Error> {
    let failed = |source| Error::Bind { address: address.to_string(), source };
    match address {
        Address::Tcp(wished) => {
            let listener = TcpListener::bind(wished).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            let bound = Address::Tcp(listener.local_addr().map_err(failed)?);
            Ok((Listener::Tcp(listener), bound))
        }
        Address::Unix(path) => {
            // The lock on the state directory is ours: a socket that lies there is of a dead one.
            if let Err(error) = std::fs::remove_file(path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(failed(error));
            }
            let listener = UnixListener::bind(path).map_err(failed)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(path, mode).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            Ok((Listener::Unix(listener), address.clone()))
        }
    }
}

/// A scheduler that is ready to run.
pub struct Service {
    options: Options,
    listener: Listener,
    address: Address,
    engine: Engine,
}

/// What others need of a running scheduler.
#[derive(Debug, Clone)]
pub struct Handle {
    address: Address,
}

impl Handle {
    /// Where it listens, with the port that was taken.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Service {
    /// For those who want to reach it.
    pub fn handle(&self) -> Handle {
        Handle { address: self.address.clone() }
    }

    /// Serves until `shutdown` resolves. Jobs go on: workers keep them, and a scheduler that starts again finds them.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), Error> {
        let Service { options, listener, address, engine } = self;
        let (link, mut ended) = engine.spawn();
        let router = router(&options, &link).await?;
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let address = address.to_string().replacen("http", scheme, 1);
        tracing::info!(address, state_dir = %options.state_dir.display(), "scheduler listens");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let until = async {
            stopped.await.ok();
        };
        let server = serve(router, listener, until);
        tokio::pin!(server);
        let result = tokio::select! {
            result = &mut server => return result,
            result = &mut ended => Err(Error::Engine(result.unwrap_or_else(|_| "it panicked".into()))),
            () = shutdown => Ok(()),
        };
        link.close();
        drop(stop);
        // Streams end with the engine; a client that does not read is not waited for.
        ended.await.ok();
        let served = tokio::time::timeout(SHUTDOWN_GRACE, &mut server).await;
        if let Ok(Err(error)) = served {
            tracing::warn!(%error, "while stopping");
        }
        result
    }
}

async fn router(options: &Options, link: &EngineLink) -> Result<Router, Error> {
    let mut server = Server::builder()
        .timeout(CALL_DEADLINE)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(Some(MAX_STREAMS_PER_CONNECTION))
        .tcp_nodelay(true);
    if let Some(tls) = &options.tls {
        let identity = Identity::from_pem(&tls.certificate, &tls.key);
        server = server.tls_config(ServerTlsConfig::new().identity(identity))?;
    }
    let bearer = Bearer::new(options.token.as_deref());
    let api = SchedulerServiceServer::new(api::Api::new(link.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let workers = WorkerServiceServer::new(workers::Workers::new(link.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let (health, health_service) = tonic_health::server::health_reporter();
    tokio::spawn(watch::report_health(health, link.serving()));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTOR)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    // Health is for whoever watches over the daemon, and says nothing else.
    Ok(server
        .add_service(InterceptedService::new(api, bearer.clone()))
        .add_service(InterceptedService::new(workers, bearer.clone()))
        .add_service(InterceptedService::new(reflection, bearer))
        .add_service(health_service))
}

async fn serve(
    router: Router,
    listener: Listener,
    until: impl Future<Output = ()>,
) -> Result<(), Error> {
    let failed = |source| Error::Bind { address: "the bound address".to_owned(), source };
    match listener {
        Listener::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
            router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), until).await?;
        }
        Listener::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
            router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), until).await?;
        }
    }
    Ok(())
}
