//! Why a tenant cannot be reached.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::PoolError;
use uuid::Uuid;

use crate::domain::lifecycle::TenantState;
use crate::domain::route::{Route, SelectError};
use crate::domain::tenant::{TenantCode, TenantId};
use crate::postgres::Kind;
use crate::{catalog, postgres, secrets};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Select(#[from] SelectError),
    /// Only for callers who may reach every tenant; the others cannot tell it from one that is not theirs.
    #[error("there is no tenant {tenant}")]
    TenantUnknown { tenant: String },
    #[error("the tenant is not in this caller's scope, or does not exist")]
    NotPermitted {
        /// As the caller named it, and not to be told.
        tenant: String,
    },
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
    Connect { tenant: TenantCode, server: String, source: Arc<postgres::Error> },
    #[error(
        "the tenant {tenant} cannot be reached, and it is not tried again for {retry_after:?}, because it has just failed: {source}"
    )]
    Blocked { tenant: TenantCode, server: String, source: Arc<postgres::Error>, retry_after: Duration },
    #[error(
        "{queue_max} callers wait for a connection to the tenant {tenant} on the server {server}, and no more may; try again"
    )]
    QueueFull { tenant: TenantCode, server: String, queue_max: usize },
    #[error("the pool cannot be made: {0}")]
    Pool(String),
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
    /// The tenant has as many transactions and streams open as it may.
    LongOfTenant { max: usize },
    /// All tenants together have.
    Long { max: usize },
}

impl TimeoutCause {
    /// A word for machines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pool { .. } => "pool",
            Self::Budget => "budget",
            Self::Connect => "connect",
            Self::LongOfTenant { .. } => "long_leases_of_tenant",
            Self::Long { .. } => "long_leases",
        }
    }
}

impl fmt::Display for TimeoutCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool { connections_max } => write!(f, "all {connections_max} connections of its pool are in use"),
            Self::Budget => f.write_str("the server's budget of connections is used up"),
            Self::Connect => f.write_str("the server is slow to open a connection"),
            Self::LongOfTenant { max } => write!(
                f,
                "the tenant's transactions (Transact) and streams (StreamQuery) hold {max} connections, and no more may, so that statements and other tenants find some"
            ),
            Self::Long { max } => write!(
                f,
                "all tenants' transactions (Transact) and streams (StreamQuery) hold {max} connections, and the others are kept for statements"
            ),
        }
    }
}

/// Why callers got no connection, or lost it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// All connections of the tenant's pool were in use.
    Pool,
    /// The server's budget was used up.
    Budget,
    /// Too many callers waited.
    Queue,
    /// The server was too slow to open a connection.
    Slow,
    /// The tenant's database, role, password or limit.
    Tenant,
    /// The server was full, down or starting.
    Server,
    /// Not tried, because it had just failed.
    Blocked,
    /// The database was not the tenant's.
    Identity,
    /// Anything else.
    Other,
}

impl Cause {
    pub const ALL: [Self; 9] = [
        Self::Pool,
        Self::Budget,
        Self::Queue,
        Self::Slow,
        Self::Tenant,
        Self::Server,
        Self::Blocked,
        Self::Identity,
        Self::Other,
    ];

    /// A word for machines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::Budget => "budget",
            Self::Queue => "queue",
            Self::Slow => "slow_connect",
            Self::Tenant => "tenant",
            Self::Server => "server",
            Self::Blocked => "blocked",
            Self::Identity => "identity",
            Self::Other => "other",
        }
    }
}

impl Error {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Paused { .. }
            | Self::Timeout { .. }
            | Self::Blocked { .. }
            | Self::QueueFull { .. }
            | Self::CatalogSlow
            | Self::CatalogAway { .. }
            | Self::PoolClosed => true,
            Self::Connect { source, .. } => source.is_transient(),
            Self::Drain { source, .. } => source.is_transient(),
            Self::Catalog(source) => source.is_transient(),
            _ => false,
        }
    }

    /// Whether the server has let the tenant's login not in, now or a moment ago.
    pub(super) fn is_login_refused(&self) -> bool {
        match self {
            Self::Connect { source, .. } | Self::Blocked { source, .. } => source.kind() == Kind::Authentication,
            _ => false,
        }
    }

    /// What it counts as; `None` for what never was the pool's.
    pub(super) fn cause(&self) -> Option<Cause> {
        match self {
            Self::Timeout { cause: TimeoutCause::Pool { .. } | TimeoutCause::LongOfTenant { .. }, .. } => {
                Some(Cause::Pool)
            }
            Self::Timeout { cause: TimeoutCause::Budget | TimeoutCause::Long { .. }, .. } => Some(Cause::Budget),
            Self::Timeout { cause: TimeoutCause::Connect, .. } => Some(Cause::Slow),
            Self::QueueFull { .. } => Some(Cause::Queue),
            Self::Blocked { .. } => Some(Cause::Blocked),
            Self::IdentityMismatch { .. } => Some(Cause::Identity),
            Self::Connect { source, .. } => Some(match source.kind() {
                Kind::DatabaseMissing | Kind::Authentication | Kind::Permission | Kind::LimitReached => Cause::Tenant,
                Kind::ServerFull | Kind::Shutdown | Kind::Unreachable => Cause::Server,
                _ => Cause::Other,
            }),
            Self::PoolClosed => None,
            _ => Some(Cause::Other),
        }
    }

    /// When a transient failure is worth another try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Paused { retry_after, .. } | Self::Blocked { retry_after, .. } => Some(*retry_after),
            error => error.is_transient().then_some(Duration::from_secs(1)),
        }
    }
}

/// Why a connection was not made, for all who wait for it.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Connect(Arc<postgres::Error>),
    #[error("the database is not the tenant's: {found}")]
    Identity { found: Arc<str> },
    /// The pool is closed or has nothing to make a connection with: whoever asked asks again.
    #[error("the pool was closed")]
    Closed,
}

impl Failure {
    pub(super) fn into_error(self, route: &Route) -> Error {
        let tenant = route.code.clone();
        match self {
            Self::Connect(source) => Error::Connect { tenant, server: route.server.clone(), source },
            Self::Identity { found } => {
                Error::IdentityMismatch { tenant, database: route.database.to_string(), found: found.to_string() }
            }
            Self::Closed => Error::PoolClosed,
        }
    }

    /// For other tenants' callers as well, who are not to hear whose connect it was.
    pub(super) fn of_server(&self) -> Self {
        match self {
            Self::Connect(error) => Self::Connect(error.of_server()),
            other => other.clone(),
        }
    }

    /// As [`Failure::into_error`], when nothing was tried.
    pub(super) fn into_blocked(self, route: &Route, retry_after: Duration) -> Error {
        match self {
            Self::Connect(source) => {
                Error::Blocked { tenant: route.code.clone(), server: route.server.clone(), source, retry_after }
            }
            other => other.into_error(route),
        }
    }
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Self {
        Self::Connect(Arc::new(error))
    }
}

impl From<PoolError<Self>> for Failure {
    fn from(error: PoolError<Self>) -> Self {
        match error {
            PoolError::Backend(failure) => failure,
            // The pools have no time-outs of their own and no hooks.
            PoolError::Closed
            | PoolError::NoRuntimeSpecified
            | PoolError::PostCreateHook(_)
            | PoolError::Timeout(_) => Self::Closed,
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
