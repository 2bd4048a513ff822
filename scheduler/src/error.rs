//! What can go wrong around the core.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A failure of the scheduler daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database's disk is full. Nothing of the request was done.
    #[error("the disk of {path} is full: nothing was changed; free some space and try again")]
    DiskFull {
        /// Database file.
        path: PathBuf,
    },
    /// The database does not do what it should.
    #[error("database {path}: {source}")]
    Database {
        /// Database file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A row that this release cannot read.
    #[error("database {path}, table {table}: {source}")]
    Row {
        /// Database file.
        path: PathBuf,
        /// Table.
        table: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Rows that do not fit each other.
    #[error(
        "database {path}, table {table}: {what}; restore the file from a copy, or start with a new state directory"
    )]
    Rows {
        /// Database file.
        path: PathBuf,
        /// Table.
        table: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Written by a newer release.
    #[error(
        "database {path} has layout {found}, this release reads up to {known}: use the newer release"
    )]
    Newer {
        /// Database file.
        path: PathBuf,
        /// Layout of the file.
        found: i64,
        /// Newest layout known here.
        known: i64,
    },
    /// Another scheduler has the state directory.
    #[error("another scheduler runs on {path}: stop it, or give this one a directory of its own")]
    Locked {
        /// State directory.
        path: PathBuf,
    },
    /// SQLite's locks do not hold on network file systems.
    #[error("{path} is on a network file system: keep the scheduler's state on a local disk")]
    NetworkFileSystem {
        /// State directory.
        path: PathBuf,
    },
    /// A file or socket.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Settings with which nothing works.
    #[error("policy: {what}")]
    Policy {
        /// Which, and what it may be.
        what: String,
    },
    /// A token that anybody could guess or nobody could send.
    #[error("the token is refused: {what}")]
    Token {
        /// Why.
        what: &'static str,
    },
    /// A certificate or a key that cannot be used.
    #[error("{path}: {what}")]
    Tls {
        /// File, or files.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// Something lies where the socket should be.
    #[error("cannot listen on unix:{path}: {what}")]
    Occupied {
        /// Path of the socket.
        path: PathBuf,
        /// What lies there, and what to do.
        what: String,
    },
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Address.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Anybody who can reach the address could run programs here.
    #[error(
        "{address} can be reached from other machines: give a certificate, a key and a token, or \
         say insecure if the network is yours alone"
    )]
    Unprotected {
        /// Address.
        address: SocketAddr,
    },
    /// A certificate or key is refused, or the server failed.
    #[error("gRPC: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The reflection service does not accept our own descriptor.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The thread that decides has ended.
    #[error("the deciding thread has ended: {0}")]
    Engine(String),
}
