//! Why the daemon did not start, or ended badly.

use std::net::SocketAddr;
use std::path::Path;

use crate::{api, config, postgres};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(
        "cannot listen on {address}: {source}; is another daemon running there? choose another address with --listen or in the configuration"
    )]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the PostgreSQL server {name:?} ({host}:{port}): {source}")]
    Server { name: String, host: String, port: u16, source: Box<postgres::Error> },
    #[error("the shared database: {0}")]
    Catalog(#[from] crate::catalog::Error),
    #[error(transparent)]
    Shares(#[from] crate::shares::Error),
    #[error("the auth database: {0}")]
    Accounts(#[from] crate::accounts::Error),
    #[error("the object store: {0}")]
    Store(#[from] crate::store::Error),
    #[error(transparent)]
    Backup(#[from] crate::backup::Error),
    #[error(transparent)]
    Secrets(#[from] crate::secrets::Error),
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error(transparent)]
    Operations(#[from] crate::operations::Error),
    #[error("the client for issuers' keys cannot be made: {0}")]
    Access(String),
    #[error("the listener's TLS: {0}")]
    Tls(String),
    #[error(transparent)]
    Api(#[from] api::Error),
    #[error(transparent)]
    Cluster(#[from] crate::embedded::ClusterError),
    #[error(transparent)]
    ObjectServer(#[from] crate::embedded::S3Error),
    #[error("signals cannot be heard: {0}")]
    Signals(#[source] std::io::Error),
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// Whether the one who started the daemon can put it right: a setting or an argument.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Config(_) | Self::Usage(_) => true,
            Self::Shares(error) => error.is_usage(),
            _ => false,
        }
    }

    pub(super) fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File { path: path.display().to_string(), source }
    }
}
