//! `lampyris scheduler`: the daemon that decides which job runs where.

use super::Environment;
use super::cluster::{check_socket, new_socket};
use super::daemon::{log_to_stderr, make_dir, run_daemon, stop_signal};
use crate::error::CliError;
use lampyris_scheduler::core::Policy;
use lampyris_scheduler::service::{Address, FailPoint, Options, Tls};
use lampyris_worker::private::{read_secret, read_token};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// unix:/PATH or IP:PORT; addresses that others reach need TLS and a token [default: a socket in $LAMPYRIS_CACHE]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Folder of the database, on a local disk [default: in $LAMPYRIS_CACHE]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Certificate chain, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// Key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// File with the token that every call must bring
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Listen without TLS and token where others reach it: whoever does can run programs here
    #[arg(long)]
    insecure: bool,
    /// Die at the first line of history with this reason; `:after` once it is durable
    #[arg(long, value_name = "REASON[:after]", hide = true)]
    fail_point: Option<String>,
}

/// The scheduler's settings.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PolicyArgs {
    /// Settings as a TOML file: lease_ms, min_quantum_ms, suspend_grace_ms and others
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

impl PolicyArgs {
    /// With the settings of a file.
    #[cfg(test)]
    pub(crate) fn of(path: &Path) -> PolicyArgs {
        PolicyArgs { policy: Some(path.to_path_buf()) }
    }

    /// The file's, or `default`.
    pub(crate) fn read(&self, default: Policy) -> Result<Policy, CliError> {
        let Some(path) = &self.policy else { return Ok(default) };
        let text = read(path)?;
        toml::from_str(&text)
            .map_err(|error| CliError::Policy { path: path.clone(), what: error.to_string() })
    }
}

fn read(path: &Path) -> Result<String, CliError> {
    fs::read_to_string(path).map_err(|source| CliError::read(path, source))
}

/// `unix:/PATH` or `IP:PORT`, with or without `http://`.
fn address(text: &str) -> Result<Address, CliError> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        check_socket(&path)?;
        return Ok(Address::Unix(path));
    }
    let bare = text.trim_start_matches("http://").trim_start_matches("https://");
    bare.parse().map(Address::Tcp).map_err(|_| CliError::Listen { address: text.into() })
}

impl Args {
    fn options(&self, environment: &Environment) -> Result<Options, CliError> {
        let cluster = environment.cluster_dir();
        let state_dir = self.state_dir.clone().unwrap_or_else(|| cluster.join("scheduler"));
        make_dir(&state_dir)?;
        let listen = match &self.listen {
            Some(text) => address(text)?,
            None => {
                make_dir(&cluster)?;
                Address::Unix(new_socket(&cluster)?)
            }
        };
        let tls = match (&self.tls_certificate, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(Tls {
                certificate: read(certificate)?,
                key: read_secret(key)?,
                files: format!("{}, {}", certificate.display(), key.display()),
            }),
            _ => None,
        };
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        let fail_point = self.fail_point.as_ref().map(|text| FailPoint {
            reason: text.trim_end_matches(":after").into(),
            after_commit: text.ends_with(":after"),
        });
        Ok(Options {
            tls,
            token,
            insecure: self.insecure,
            policy: self.policy.read(Policy::default())?,
            fail_point,
            ..Options::new(state_dir, listen)
        })
    }
}

pub(crate) fn run(args: &Args, environment: &Environment) -> Result<u8, CliError> {
    log_to_stderr();
    let options = args.options(environment)?;
    run_daemon(async {
        options.build()?.run(stop_signal()).await?;
        Ok(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sockets_or_ports() {
        assert_eq!(address("unix:/a/b").unwrap(), Address::Unix("/a/b".into()));
        let tcp = Address::Tcp(([127, 0, 0, 1], 80).into());
        assert_eq!(address("127.0.0.1:80").unwrap(), tcp);
        assert_eq!(address("http://127.0.0.1:80").unwrap(), tcp);
        assert!(address("somewhere").is_err());
    }
}
