//! Why an operation could not be submitted or driven.

use crate::domain::lifecycle::IllegalTransition;
use crate::domain::operation::{OperationId, OperationState};
use crate::domain::tenant::NameError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every bad field with what is wrong with it.
    #[error("the request has {} bad field(s): {}", .0.len(), join(.0))]
    Invalid(Vec<BadField>),
    #[error(transparent)]
    State(#[from] IllegalTransition),
    #[error("the operation {id} is {state}; only one that is {} is tried again or given up", OperationState::Stuck)]
    NotStuck { id: OperationId, state: OperationState },
    #[error("the operation {id} is driven by another daemon now")]
    ClaimLost { id: OperationId },
    #[error("the catalog names the server {name:?}, which this daemon's configuration does not have")]
    ServerUnknown { name: String },
    #[error(
        "the role or database {name:?} is on the server already and was not made by this operation; remove it or choose another code"
    )]
    NameTaken { name: String },
    #[error(
        "{concurrency_max} backups are being verified, and no more may be at the same moment; try again, or raise backup.verify_concurrency_max"
    )]
    VerificationsFull { concurrency_max: usize },
    #[error(transparent)]
    Catalog(#[from] crate::catalog::Error),
    #[error(transparent)]
    Session(#[from] crate::postgres::sessions::Error),
    #[error(transparent)]
    Accounts(#[from] crate::accounts::Error),
    #[error(transparent)]
    Postgres(#[from] crate::postgres::Error),
    #[error(transparent)]
    Router(#[from] crate::router::Error),
    #[error(transparent)]
    Secrets(#[from] crate::secrets::Error),
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    #[error(transparent)]
    Backup(#[from] crate::backup::Error),
    #[error(transparent)]
    Directory(#[from] crate::migrator::GateError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("an operation's input or output is no JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// One field of a request that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadField {
    /// As in the protobuf message.
    pub field: &'static str,
    pub problem: String,
}

impl BadField {
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

fn join(fields: &[BadField]) -> String {
    fields.iter().map(|bad| format!("{}: {}", bad.field, bad.problem)).collect::<Vec<_>>().join("; ")
}
