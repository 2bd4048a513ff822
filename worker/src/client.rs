//! How a worker or a person reaches a scheduler: its address, and what proves who asks.

use crate::private::{self, SecretError};
use lampyris_proto::v1::scheduler_service_client::SchedulerServiceClient;
use lampyris_proto::v1::worker_service_client::WorkerServiceClient;
use std::net::IpAddr;
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
    /// Send the token over plain http to another machine.
    pub insecure: bool,
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
    /// The token's file.
    #[error("{0}")]
    Token(#[from] SecretError),
    /// A certificate that is none.
    #[error("{}: {what}", .path.display())]
    Certificate {
        /// File.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Nobody vouches for the scheduler.
    #[error(
        "{address} needs --ca FILE or LAMPYRIS_CA: the certificate of the authority that signed the scheduler's"
    )]
    NeedsAuthority {
        /// Where.
        address: String,
    },
    /// Whoever listens on the way would have the token.
    #[error(
        "the token is not sent to {address}: anybody on the way could read it and run programs; use https://, \
         or say --insecure if the network is yours alone"
    )]
    PlainToken {
        /// Where.
        address: String,
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

/// Whether a host is this machine whatever a name server says.
fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
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
        let endpoint = self.with_authority(endpoint)?;
        let bearer = self.bearer(&endpoint)?;
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|source| ClientError::Connect { address, source })?;
        Ok((channel, bearer))
    }

    /// By TLS, if the address asks for it.
    fn with_authority(&self, endpoint: Endpoint) -> Result<Endpoint, ClientError> {
        let Some(path) = &self.ca_file else {
            let address = self.address.clone();
            return match address.starts_with("https://") {
                true => Err(ClientError::NeedsAuthority { address }),
                false => Ok(endpoint),
            };
        };
        let pem = std::fs::read(path)
            .map_err(|source| ClientError::Read { path: path.clone(), source })?;
        let refused = |what: String| ClientError::Certificate { path: path.clone(), what };
        if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
            return Err(refused("there is no PEM certificate in it".to_owned()));
        }
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        endpoint.tls_config(tls).map_err(|error| refused(innermost(&error).to_string()))
    }

    fn bearer(&self, endpoint: &Endpoint) -> Result<Bearer, ClientError> {
        let Some(path) = &self.token_file else { return Ok(Bearer(None)) };
        let token = private::read_token(path)?;
        let is_plain = self.address.starts_with("http://");
        if is_plain && !self.insecure && !is_loopback(endpoint.uri().host().unwrap_or_default()) {
            return Err(ClientError::PlainToken { address: self.address.clone() });
        }
        let value = format!("Bearer {token}").parse();
        let unsent = |_| SecretError::Token { path: path.clone(), what: "cannot be sent" };
        Ok(Bearer(Some(value.map_err(unsent)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    async fn refused(target: Target) -> String {
        target.scheduler().await.expect_err("refused").to_string()
    }

    #[tokio::test]
    async fn a_token_goes_to_this_machine_or_by_tls() {
        let home = tempfile::tempdir().unwrap();
        let token = home.path().join("token");
        std::fs::write(&token, "0123456789abcdef").unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
        let to = |address: &str| Target {
            address: address.into(),
            token_file: Some(token.clone()),
            ..Target::default()
        };
        // Nothing listens on port 1 of these: who gets as far as to connect was not refused for the token.
        for plain in
            ["http://192.0.2.1:1", "http://127.0.0.1@192.0.2.1:1", "http://localhost.example:1"]
        {
            assert!(refused(to(plain)).await.contains("--insecure"), "{plain}");
        }
        for here in ["http://127.0.0.1:1", "http://[::1]:1"] {
            assert!(refused(to(here)).await.starts_with("no scheduler answers"), "{here}");
        }
        let insecure = Target { insecure: true, ..to("http://127.0.0.2:1") };
        assert!(refused(insecure).await.starts_with("no scheduler answers"));
    }

    #[tokio::test]
    async fn https_needs_an_authority_in_words() {
        let target = Target { address: "https://127.0.0.1:1".into(), ..Target::default() };
        assert!(refused(target.clone()).await.contains("needs --ca"));
        let home = tempfile::tempdir().unwrap();
        let ca = home.path().join("ca.pem");
        std::fs::write(&ca, "no certificate").unwrap();
        let message = refused(Target { ca_file: Some(ca.clone()), ..target }).await;
        assert!(message.starts_with(&ca.display().to_string()), "{message}");
    }
}
