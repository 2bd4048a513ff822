//! How a worker or a person reaches a scheduler: its address, and what proves who asks.

use lampyris_proto::v1::scheduler_service_client::SchedulerServiceClient;
use lampyris_proto::v1::worker_service_client::WorkerServiceClient;
use std::path::PathBuf;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a quiet connection is tried, and how long its answer may take: a peer that is gone is noticed after both.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest message: a page of 1,000 jobs is about 1 MB.
const MESSAGE_BYTES: usize = 4 << 20;

/// Where a scheduler is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// `unix:/path/of/socket`, `http://host:port` or `https://host:port`.
    pub address: String,
    /// File with the certificate of the authority that has signed the scheduler's, for `https`.
    pub ca_file: Option<PathBuf>,
    /// File with the bearer token.
    pub token_file: Option<PathBuf>,
}

/// Why a scheduler cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address.
    #[error("{address:?} is not unix:/PATH, http://HOST:PORT or https://HOST:PORT")]
    Address {
        /// As given.
        address: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A token with bytes that cannot be sent.
    #[error("{} holds no token", .path.display())]
    Token {
        /// File.
        path: PathBuf,
    },
    /// Nobody answers there.
    #[error("no scheduler answers at {address}: {}", innermost(source))]
    Connect {
        /// Where.
        address: String,
        /// Cause.
        source: tonic::transport::Error,
    },
}

/// The cause of a failure behind all that only passed it on: a refused connection, an unknown authority.
fn innermost<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error)
}

/// Adds the bearer token to every call.
#[derive(Debug, Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A connection with its token.
pub type Authorized = InterceptedService<Channel, Bearer>;

impl Target {
    /// Connects for what a person asks.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn scheduler(&self) -> Result<SchedulerServiceClient<Authorized>, ClientError> {
        let (channel, bearer) = self.connect().await?;
        let client = SchedulerServiceClient::with_interceptor(channel, bearer);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES))
    }

    /// Connects for what a worker says.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn worker(&self) -> Result<WorkerServiceClient<Authorized>, ClientError> {
        let (channel, bearer) = self.connect().await?;
        let client = WorkerServiceClient::with_interceptor(channel, bearer);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES))
    }

    async fn connect(&self) -> Result<(Channel, Bearer), ClientError> {
        let address = self.address.clone();
        if !["unix:", "http://", "https://"].iter().any(|scheme| address.starts_with(scheme)) {
            return Err(ClientError::Address { address });
        }
        let endpoint = Endpoint::from_shared(address.clone())
            .map_err(|_| ClientError::Address { address: address.clone() })?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_PERIOD)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let endpoint = match &self.ca_file {
            None => endpoint,
            Some(path) => {
                let pem = std::fs::read(path)
                    .map_err(|source| ClientError::Read { path: path.clone(), source })?;
                let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
                endpoint
                    .tls_config(tls)
                    .map_err(|source| ClientError::Connect { address: address.clone(), source })?
            }
        };
        let bearer = self.bearer()?;
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|source| ClientError::Connect { address, source })?;
        Ok((channel, bearer))
    }

    fn bearer(&self) -> Result<Bearer, ClientError> {
        let Some(path) = &self.token_file else { return Ok(Bearer(None)) };
        let token = std::fs::read_to_string(path)
            .map_err(|source| ClientError::Read { path: path.clone(), source })?;
        let value = format!("Bearer {}", token.trim()).parse();
        value
            .map(|value| Bearer(Some(value)))
            .map_err(|_| ClientError::Token { path: path.clone() })
    }
}
