//! What can go wrong between the daemon and the shared database.

use uuid::Uuid;

use crate::domain::lifecycle::{IllegalTransition, TenantState};
use crate::domain::operation::{OperationId, OperationKind};
use crate::domain::page::BadToken;
use crate::domain::route::Position;
use crate::domain::tenant::{TenantCode, TenantId};
use crate::postgres::read::Corrupt;
use crate::postgres::{self, embedded_migrations, sessions};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no tenant {tenant}")]
    TenantUnknown { tenant: String },
    #[error("the code {code} is taken by the tenant {id}, which is {state}")]
    TenantExists { code: TenantCode, id: TenantId, state: TenantState },
    #[error("the database {database} on the server {server} belongs to another tenant")]
    DatabaseTaken { server: String, database: String },
    #[error("the host {host} resolves to another tenant already")]
    HostTaken { host: String },
    #[error("{0:?} is no host name; write it whole, as acme.example.com")]
    HostInvalid(String),
    #[error("the server {server} is not registered in the catalog")]
    ServerUnknown { server: String },
    #[error(transparent)]
    Transition(#[from] IllegalTransition),
    #[error("the tenant {tenant} is paused by the operation {operation}, which alone may reopen it")]
    GateHeld { tenant: TenantId, operation: Uuid },
    #[error("the secret {field} of the tenant {tenant} does not exist")]
    SecretUnknown { tenant: TenantId, field: String },

    #[error(
        "revision {revision} cannot be gone on from: the catalog keeps those from {} to {}, and a caller goes on only with the tenants that it had there; take a new snapshot",
        .position.compacted_revision, .position.revision
    )]
    RevisionUnknown { revision: i64, position: Position },
    #[error("the shared database gave no answer within {waited:?}")]
    Silent { waited: std::time::Duration },

    #[error("there is no operation {id}")]
    OperationUnknown { id: OperationId },
    #[error("the operation {id} ({kind}) works on this tenant; wait until it has ended, or see what it is doing")]
    OperationConflict { id: OperationId, kind: OperationKind },
    #[error("the request id {request_id} was used for another request; use a new one")]
    RequestIdReused { request_id: Uuid },
    #[error("the request {request_id} met others on the same tenant again and again; repeat it")]
    OperationContended { request_id: Uuid },
    #[error("the claim on the operation {id} was lost to another daemon")]
    ClaimLost { id: OperationId },

    #[error("there is no rollout {id}")]
    RolloutUnknown { id: OperationId },
    #[error("there is no backup {id}")]
    BackupUnknown { id: Uuid },
    #[error(transparent)]
    PageToken(#[from] BadToken),

    #[error("the catalog's {0}")]
    Corrupt(#[from] Corrupt),
    #[error("the catalog: {0}")]
    Statement(#[from] postgres::Error),
    #[error("the catalog: {0}")]
    Session(#[from] sessions::Error),
    #[error("the catalog's schema is not up to date: {0}")]
    Migrate(#[from] embedded_migrations::Error),
}

impl Error {
    /// Whether the same call may succeed when it is repeated: the session broke off, or two transactions met.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Statement(error) => error.is_transient() || error.kind() == postgres::Kind::Cancelled,
            Self::Session(error) => error.is_transient(),
            Self::OperationContended { .. } | Self::Silent { .. } => true,
            _ => false,
        }
    }

    /// Whether the shared database cannot be asked, for whatever reason: refused, renamed, full, silent.
    pub fn is_away(&self) -> bool {
        self.is_transient() || matches!(self, Self::Session(error) if error.is_of_connecting())
    }

    /// Whether the server can keep nothing more.
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Statement(error) if error.kind() == postgres::Kind::NoRoom)
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Statement(error.into())
    }
}
