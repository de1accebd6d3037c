//! What can go wrong between the daemon and the auth database.

use uuid::Uuid;

use crate::domain::page::BadToken;
use crate::postgres::read::Corrupt;
use crate::postgres::{self, embedded_migrations, sessions};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no API key {id}")]
    ApiKeyUnknown { id: Uuid },
    #[error("there is no role {role:?} for people in tenants")]
    RoleUnknown { role: &'static str },
    #[error("{0:?} is no e-mail address")]
    EmailInvalid(String),
    #[error(transparent)]
    PageToken(#[from] BadToken),
    #[error("the auth database's {0}")]
    Corrupt(#[from] Corrupt),
    #[error("the auth database: {0}")]
    Statement(#[from] postgres::Error),
    #[error("the auth database: {0}")]
    Session(#[from] sessions::Error),
    #[error("the auth database's schema is not up to date: {0}")]
    Migrate(#[from] embedded_migrations::Error),
}

impl Error {
    /// Whether the same call may succeed when it is repeated.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Statement(error) => error.is_transient() || error.kind() == postgres::Kind::Cancelled,
            Self::Session(error) => error.is_transient(),
            _ => false,
        }
    }

    /// Whether the auth database cannot be asked, for whatever reason: refused, renamed, full, silent.
    pub fn is_away(&self) -> bool {
        self.is_transient() || matches!(self, Self::Session(error) if error.is_of_connecting())
    }

    /// Whether the server can keep nothing more.
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Statement(error) if error.kind() == postgres::Kind::NoRoom)
    }
}

/// The rows that can be used. One that cannot is told of and passed over, so that it is nobody else's trouble.
pub(super) fn sound<T>(rows: impl Iterator<Item = Result<T, Corrupt>>) -> Vec<T> {
    let tell = |error: Corrupt| tracing::error!(%error, "a row of the auth database is passed over");
    rows.filter_map(|row| row.map_err(tell).ok()).collect()
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Statement(error.into())
    }
}
