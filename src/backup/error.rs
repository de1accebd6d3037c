//! What can go wrong with a backup or a restore.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::domain::backup::Difference;
use crate::postgres::{self, Kind, programs};
use crate::store;

/// Differences that are spelled out; the others are counted.
const DIFFERENCES_SHOWN_MAX: usize = 10;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error(transparent)]
    Program(#[from] programs::Error),
    #[error("the manifest in the bucket is refused: {reason}; nothing of this backup can be trusted, use another one")]
    Manifest { reason: String },
    #[error("the archive failed the check \"{}\": {reason}; it cannot be restored, use another backup", .check.name())]
    Archive { check: Check, reason: String },
    #[error("the server cannot take the backup's extensions: {}", .0.join("; "))]
    Extensions(Vec<String>),
    #[error("the restored database is not what was backed up: {}", list(.0))]
    Differences(Vec<Difference>),
    #[error("the server names a kind of object that this daemon does not know: {object}")]
    Privilege { object: String },
    #[error("the rows of the table {schema}.{name} could not be counted: the server's answer broke off")]
    DigestAnswer { schema: String, name: String },
    #[error("the tables were made, dropped or renamed while they were backed up; try again when no migration runs")]
    TablesChanged,
    #[error(
        "the table {table} was made a part of the extension {extension}, and PostgreSQL dumps no rows of those; take it out (ALTER EXTENSION {extension} DROP TABLE {table}) and back up again"
    )]
    TableLeftOut { table: String, extension: String },
    #[error("{what} stood still for {timeout:?} and was given up, so that it does not hold the snapshot for ever")]
    Stalled { what: &'static str, timeout: Duration },
    #[error("a recipient of the archive is unusable: {reason}; look at escrow_recipient in the keys file")]
    Recipient { reason: &'static str },
    #[error("compressing and encrypting the dump failed: {0}")]
    Seal(io::Error),
    #[error("the spool file {}: {cause}; check spool_dir and its free space", .path.display())]
    Spool { path: PathBuf, cause: io::Error },
    #[error("spool_dir {} is in use by another daemon; give each one its own", .path.display())]
    SpoolTaken { path: PathBuf },
    #[error("the catalog did not let the backup go on, so nothing was uploaded: {0}")]
    Persist(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{what} broke off: {cause}")]
    Transfer { what: &'static str, cause: io::Error },
    #[error("a thread of the backup's ended before its work was done: {0}")]
    Thread(tokio::task::JoinError),
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error.into())
    }
}

impl Error {
    /// Whether the same call may succeed later without anyone's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Postgres(error) => error.is_transient(),
            Self::Program(error) => error.is_lock_wait(),
            Self::Stalled { .. } | Self::Transfer { .. } | Self::Persist(_) | Self::TablesChanged => true,
            _ => false,
        }
    }

    /// Whether somebody else works on the tables: it may be over once he had his turn.
    pub(super) fn is_in_the_way(&self) -> bool {
        match self {
            Self::Postgres(error) => matches!(error.kind(), Kind::LockTimeout | Kind::Deadlock),
            Self::Program(error) => error.is_lock_wait(),
            Self::TablesChanged => true,
            _ => false,
        }
    }

    /// Whether something that a statement names is not there any more.
    pub(super) fn is_missing(&self) -> bool {
        let codes = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
        matches!(self, Self::Postgres(error) if error.code().is_some_and(|code| codes.contains(code)))
    }

    /// Whether the backup itself is damaged, so that no repetition helps.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Manifest { .. } | Self::Archive { .. } | Self::Differences(_) => true,
            Self::Store(error) => error.is_damage(),
            _ => false,
        }
    }
}

/// The checks of an archive, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    Size,
    Sha256,
    Encryption,
    Compression,
    Header,
    DumpSize,
    Decode,
}

impl Check {
    pub const ALL: [Self; 7] =
        [Self::Size, Self::Sha256, Self::Encryption, Self::Compression, Self::Header, Self::DumpSize, Self::Decode];

    pub fn name(self) -> &'static str {
        match self {
            Self::Size => "archive size",
            Self::Sha256 => "archive SHA-256",
            Self::Encryption => "age decryption to the final chunk",
            Self::Compression => "zstd decompression with checksum",
            Self::Header => "custom-format header",
            Self::DumpSize => "dump size",
            Self::Decode => "full decode by pg_restore",
        }
    }
}

fn list(differences: &[Difference]) -> String {
    let mut texts: Vec<_> = differences.iter().take(DIFFERENCES_SHOWN_MAX).map(ToString::to_string).collect();
    if differences.len() > DIFFERENCES_SHOWN_MAX {
        texts.push(format!("and {} more", differences.len() - DIFFERENCES_SHOWN_MAX));
    }
    texts.join("; ")
}
