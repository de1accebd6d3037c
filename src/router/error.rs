//! Why a tenant cannot be reached.

use std::fmt;
use std::time::Duration;

use deadpool::managed::{PoolError, TimeoutType};
use uuid::Uuid;

use crate::domain::lifecycle::TenantState;
use crate::domain::route::SelectError;
use crate::domain::tenant::{TenantCode, TenantId};
use crate::{catalog, postgres, secrets};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Select(#[from] SelectError),
    /// Only for callers who may reach every tenant; the others cannot tell it from one that is not theirs.
    #[error("there is no tenant {tenant}")]
    TenantUnknown { tenant: String },
    #[error("the tenant is not in this caller's scope, or does not exist")]
    NotPermitted,
    #[error("the tenant {tenant} is {state}{}; it can be reached when it is {}", because(.reason.as_deref()), names(.allowed))]
    State { tenant: TenantCode, state: TenantState, reason: Option<String>, allowed: Vec<TenantState> },
    #[error("the tenant {tenant} is paused by an operation for a moment; try again")]
    Paused { tenant: TenantCode, operation: Option<Uuid>, retry_after: Duration },
    #[error("the tenant {tenant} is closed")]
    Closed { tenant: TenantCode, operation: Option<Uuid> },
    #[error("no connection to the tenant {tenant} on the server {server} within {waited:?}: {cause}; try again")]
    Timeout { tenant: TenantCode, server: String, waited: Duration, cause: TimeoutCause },
    #[error(
        "the database {database} is not that of the tenant {tenant}: {found}. No statement was run in it; a person must find out who exchanged it"
    )]
    IdentityMismatch { tenant: TenantCode, database: String, found: String },
    #[error("the tenant {tenant} is on the server {server}, which this daemon is not configured for")]
    ServerUnknown { tenant: TenantCode, server: String },
    #[error("the tenant {tenant} cannot be reached: {source}")]
    Connect { tenant: TenantCode, server: String, source: Box<postgres::Error> },
    #[error("the catalog did not answer in time; try again")]
    CatalogSlow,
    /// Tenants that are known are still served.
    #[error("the shared database is away, and this cannot be answered without it; try again ({cause})")]
    CatalogAway { cause: String },
    #[error(transparent)]
    Catalog(Box<catalog::Error>),
    #[error("the secret {field} of the tenant {tenant} cannot be opened: {source}")]
    Secret { tenant: TenantId, field: String, source: secrets::Error },
    #[error("the tenant {tenant} has no role of that kind: {source}")]
    Role { tenant: TenantCode, source: crate::domain::tenant::NameError },
    #[error("the tenant {tenant} was not emptied of sessions: {source}")]
    Drain { tenant: TenantCode, source: Box<postgres::Error> },
    /// Seen by nobody: the pool was replaced, and the caller takes the new one.
    #[error("the pool was closed")]
    PoolClosed,
}

/// What the time went into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeoutCause {
    /// All connections of the tenant's pool are in use.
    Pool { connections_max: usize },
    /// The server's budget is used up by statements of other tenants.
    Budget,
    /// The server is slow to open a connection.
    Connect,
}

impl TimeoutCause {
    /// A word for machines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pool { .. } => "pool",
            Self::Budget => "budget",
            Self::Connect => "connect",
        }
    }
}

impl fmt::Display for TimeoutCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool { connections_max } => write!(f, "all {connections_max} connections of its pool are in use"),
            Self::Budget => f.write_str("the server's budget of connections is used up"),
            Self::Connect => f.write_str("the server is slow to open a connection"),
        }
    }
}

impl Error {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Paused { .. }
            | Self::Timeout { .. }
            | Self::CatalogSlow
            | Self::CatalogAway { .. }
            | Self::PoolClosed => true,
            Self::Connect { source, .. } | Self::Drain { source, .. } => source.is_transient(),
            Self::Catalog(source) => source.is_transient(),
            _ => false,
        }
    }

    /// When a transient failure is worth another try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Paused { retry_after, .. } => Some(*retry_after),
            error => error.is_transient().then_some(Duration::from_secs(1)),
        }
    }
}

impl From<PoolError<Error>> for Error {
    fn from(error: PoolError<Error>) -> Self {
        match error {
            PoolError::Backend(error) => error,
            // The pools have no time-outs of their own and no hooks.
            PoolError::Closed
            | PoolError::NoRuntimeSpecified
            | PoolError::PostCreateHook(_)
            | PoolError::Timeout(TimeoutType::Wait | TimeoutType::Create | TimeoutType::Recycle) => Self::PoolClosed,
        }
    }
}

impl From<catalog::Error> for Error {
    fn from(error: catalog::Error) -> Self {
        Self::Catalog(Box::new(error))
    }
}

fn because(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(" ({reason})"))
}

fn names(states: &[TenantState]) -> String {
    states.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}
