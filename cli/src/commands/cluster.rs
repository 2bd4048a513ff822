//! Which scheduler a command asks.

use super::Environment;
use crate::backend::scheduler::Scheduler;
use crate::error::CliError;
use lampyris_worker::client::Target;
use std::path::{Path, PathBuf};

/// Where the scheduler is.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Scheduler")]
pub(crate) struct ClusterArgs {
    /// unix:/PATH, http://HOST:PORT or https://HOST:PORT [default: $LAMPYRIS_SCHEDULER, else the one of `lampyris up`]
    #[arg(long, value_name = "ADDRESS")]
    scheduler: Option<String>,
    /// Certificate of the authority that signed the scheduler's, for https [default: $LAMPYRIS_CA]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// File with the bearer token [default: $LAMPYRIS_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl ClusterArgs {
    /// The scheduler at `address`, without credentials.
    pub(crate) fn at(address: String) -> ClusterArgs {
        ClusterArgs { scheduler: Some(address), ..ClusterArgs::default() }
    }

    /// The scheduler that is named, and no credentials.
    pub(crate) fn address_only(&self) -> Target {
        Target { address: self.scheduler.clone().unwrap_or_default(), ..Target::default() }
    }

    /// What is asked for, else the environment's, else that of `lampyris up`.
    pub(crate) fn target(&self, environment: &Environment) -> Target {
        let named = self.scheduler.clone().or_else(|| environment.scheduler.clone());
        let address = named.unwrap_or_else(|| socket_address(&environment.cluster_dir()));
        let usual_ca = environment.ca.clone().filter(|_| address.starts_with("https://"));
        Target {
            address,
            ca_file: self.ca.clone().or(usual_ca),
            token_file: self.token_file.clone().or_else(|| environment.token_file.clone()),
        }
    }

    /// Connects.
    pub(crate) fn connect(&self, environment: &Environment) -> Result<Scheduler, CliError> {
        Scheduler::connect(&self.target(environment))
    }
}

/// Socket of a scheduler whose state is in `dir`.
pub(crate) fn socket_path(dir: &Path) -> PathBuf {
    dir.join("scheduler.sock")
}

/// The same as an address.
pub(crate) fn socket_address(dir: &Path) -> String {
    format!("unix:{}", socket_path(dir).display())
}
