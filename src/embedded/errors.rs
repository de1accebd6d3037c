//! Why a private cluster cannot be had, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::postgres::programs;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Programs(#[from] programs::Error),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("another tenantd (process {owner}) is running with the data directory {}; stop it, or choose another --data-dir", dir.display())]
    InUse { dir: PathBuf, owner: String },
    #[error(
        "PostgreSQL does not run as root, and this machine has neither a user postgres nor a user nobody; install PostgreSQL's package, or start tenantd as another user"
    )]
    NoUser,
    #[error("the cluster in {} belongs to the user {owner}; start tenantd as that user or as root, or choose another --data-dir", dir.display())]
    Owner { dir: PathBuf, owner: String },
    #[error("{} is there already and is not the cluster's; remove it, or choose another --data-dir", dir.display())]
    Foreign { dir: PathBuf },
    #[error("there is a cluster in {}, but its superuser's password file {} is gone; bring the file back, or remove both to start anew", data_dir.display(), password_file.display())]
    PasswordGone { data_dir: PathBuf, password_file: PathBuf },
    #[error("{} is not a PostgreSQL cluster's ({reason}); move it away, or choose another --data-dir", data_dir.display())]
    NotACluster { data_dir: PathBuf, reason: String },
    #[error("the server that ran in {} before (process {pid}) does not end; stop it with: kill -QUIT {pid}", data_dir.display())]
    PredecessorStuck { data_dir: PathBuf, pid: u32 },
    #[error("PostgreSQL did not start in {} ({ended}); the end of its log {}: {log}", data_dir.display(), log_file.display())]
    NotStarted { data_dir: PathBuf, ended: String, log_file: PathBuf, log: String },
    #[error("a name in the cluster's settings: {0}")]
    Name(String),
}

/// An error with the path that it is about.
pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}
