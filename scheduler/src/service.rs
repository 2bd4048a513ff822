//! The daemon around the core: gRPC, clock, database.
//!
//! One thread decides (`engine.rs`): it takes what has happened from a bounded queue, steps the core, commits all steps
//! of a batch in one transaction, and only then answers and speaks to workers. Everything else is gRPC: `api.rs` for
//! people, `workers.rs` for nodes, `check.rs` and `convert.rs` between messages and the core's types. `accept.rs` and
//! `door.rs` say who may be connected; [`crate::limits`] has every bound.

// What others send must not panic here.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod accept;
mod accounts;
mod api;
mod auth;
mod check;
mod clock;
mod convert;
mod door;
mod effects;
mod engine;
mod filter;
mod link;
mod listen;
mod logs;
mod pages;
mod queues;
mod refusals;
mod refuse;
#[cfg(test)]
mod tests;
mod view;
mod watch;
mod workers;

use crate::core::Policy;
use crate::error::Error;
use crate::limits;
use crate::store::Store;
use accept::Listen;
use auth::Bearer;
use door::{Door, Places};
use engine::Engine;
use lampyris_proto::v1;
use lampyris_proto::v1::scheduler_service_server::SchedulerServiceServer;
use lampyris_proto::v1::worker_service_server::WorkerServiceServer;
use lampyris_proto::words::token_problem;
use link::EngineLink;
use listen::Listener;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Router;
use tonic::transport::{Identity, Server, ServerTlsConfig};

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
    /// Where both came from, for messages.
    pub files: String,
}

impl Tls {
    fn config(&self) -> Result<ServerTlsConfig, Error> {
        let identity = Identity::from_pem(&self.certificate, &self.key);
        let config = ServerTlsConfig::new().identity(identity).timeout(limits::FIRST_REQUEST);
        let refused = |what: String| Error::Tls { path: self.files.clone(), what };
        for (what, text, word) in
            [("certificate", &self.certificate, "CERTIFICATE"), ("key", &self.key, "PRIVATE KEY")]
        {
            if !text.contains("-----BEGIN ") || !text.contains(&format!("{word}-----")) {
                return Err(refused(format!("the {what} is not PEM: there is no `{word}` in it")));
            }
        }
        match Server::builder().tls_config(config.clone()) {
            Ok(_) => Ok(config),
            Err(error) => Err(refused(listen::innermost(&error).to_string())),
        }
    }
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

    /// Opens the database and binds the address. Raises this process's limit of open files as far as it may.
    pub fn build(self) -> Result<Service, Error> {
        let places = Places::for_files(listen::raise_file_limit());
        self.build_with(places)
    }

    pub(crate) fn build_with(self, places: Places) -> Result<Service, Error> {
        self.policy.check().map_err(|what| Error::Policy { what })?;
        self.check_protection()?;
        let tls = self.tls.as_ref().map(Tls::config).transpose()?;
        let store = Store::open(&self.state_dir)?;
        let (listener, address) = listen::bind(&self.listen)?;
        let engine = Engine::new(self.policy.clone(), store, self.fail_point.clone())?;
        Ok(Service { options: self, listener, address, engine, tls, door: Door::new(places) })
    }

    fn check_protection(&self) -> Result<(), Error> {
        if let Some(what) = self.token.as_deref().and_then(token_problem) {
            return Err(Error::Token { what });
        }
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

/// A scheduler that is ready to run.
pub struct Service {
    options: Options,
    listener: Listener,
    address: Address,
    engine: Engine,
    tls: Option<ServerTlsConfig>,
    door: Door,
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
        let Service { options, listener, address, engine, tls, door } = self;
        let (link, mut ended) = engine.spawn();
        let router = router(&options, tls, &link).await?;
        tokio::spawn(refusals::report(Arc::downgrade(door.refusals())));
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let address = address.to_string().replacen("http", scheme, 1);
        tracing::info!(address, state_dir = %options.state_dir.display(), "scheduler listens");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let until = async {
            stopped.await.ok();
        };
        let server = serve(router, (listener, door), until);
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
        let served = tokio::time::timeout(limits::SHUTDOWN_GRACE, &mut server).await;
        if let Ok(Err(error)) = served {
            tracing::warn!(%error, "while stopping");
        }
        result
    }
}

async fn router(
    options: &Options,
    tls: Option<ServerTlsConfig>,
    link: &EngineLink,
) -> Result<Router, Error> {
    let mut server = Server::builder()
        .timeout(limits::CALL_DEADLINE)
        .http2_keepalive_interval(Some(limits::KEEPALIVE))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE))
        .max_concurrent_streams(Some(limits::CALLS_PER_CONNECTION));
    if let Some(tls) = tls {
        server = server.tls_config(tls)?;
    }
    let bearer = Bearer::new(options.token.as_deref());
    let api = SchedulerServiceServer::new(api::Api::new(link.clone()))
        .max_decoding_message_size(limits::MESSAGE_BYTES);
    let workers = WorkerServiceServer::new(workers::Workers::new(link.clone()))
        .max_decoding_message_size(limits::MESSAGE_BYTES);
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
        .add_service(InterceptedService::new(reflection, bearer.clone()))
        .add_service(InterceptedService::new(health_service, bearer.letting_strangers_in())))
}

async fn serve(
    router: Router,
    (listener, door): (Listener, Door),
    until: impl Future<Output = ()>,
) -> Result<(), Error> {
    let failed = |source| Error::Bind { address: "the bound address".to_owned(), source };
    match listener {
        Listener::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
            serve_on(router, listener, door, until).await
        }
        Listener::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
            serve_on(router, listener, door, until).await
        }
    }
}

async fn serve_on<L: Listen>(
    router: Router,
    listener: L,
    door: Door,
    until: impl Future<Output = ()>,
) -> Result<(), Error> {
    let connections = accept::connections(listener, door);
    Ok(router.serve_with_incoming_shutdown(connections, until).await?)
}
