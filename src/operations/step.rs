//! One step: what it does, how it is undone, and what it may know while it runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Error, Parts};
use crate::catalog::Operation;
use crate::domain::operation::OperationId;
use crate::domain::tenant::TenantId;

/// A step of an operation. `act` may run again after it has acted, and `undo` after a step that never acted.
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) act: for<'a> fn(&'a Run) -> BoxFuture<'a, Result<Done, StepError>>,
    pub(super) undo: for<'a> fn(&'a Run) -> BoxFuture<'a, Result<(), StepError>>,
}

/// `step!("name", act)` for what needs no undoing, `step!("name", act, undo)` for the rest.
macro_rules! step {
    ($name:literal, $act:path) => {
        step!($name, $act, $crate::operations::step::nothing_to_undo)
    };
    ($name:literal, $act:path, $undo:path) => {
        $crate::operations::step::Step { name: $name, act: |run| Box::pin($act(run)), undo: |run| Box::pin($undo(run)) }
    };
}
pub(super) use step;

pub(super) async fn nothing_to_undo(_run: &Run) -> Result<(), StepError> {
    Ok(())
}

/// What a step leaves for the later ones, and for people.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) output: Value,
    pub(super) detail: Option<String>,
}

impl Done {
    pub(super) fn detail(detail: impl Into<String>) -> Self {
        Self { output: Value::Null, detail: Some(detail.into()) }
    }

    pub(super) fn output<T: serde::Serialize>(value: &T) -> Result<Self, StepError> {
        Ok(Self { output: to_value(value)?, detail: None })
    }

    pub(super) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

fn to_value<T: serde::Serialize>(value: &T) -> Result<Value, StepError> {
    serde_json::to_value(value).map_err(|error| StepError::internal(format!("a step's output is no JSON: {error}")))
}

/// One operation while it runs.
pub(super) struct Run {
    pub(super) parts: Arc<Parts>,
    pub(super) operation: Operation,
    fence: i64,
    /// How often the present step was begun, this time included.
    pub(super) attempts: i32,
    pub(super) outputs: BTreeMap<String, Value>,
}

impl Run {
    pub(super) fn new(parts: Arc<Parts>, operation: Operation, fence: i64, outputs: BTreeMap<String, Value>) -> Self {
        Self { parts, operation, fence, attempts: 0, outputs }
    }

    pub(super) fn id(&self) -> OperationId {
        self.operation.id
    }

    pub(super) fn fence(&self) -> i64 {
        self.fence
    }

    /// What the operation was asked to do.
    pub(super) fn input<T: DeserializeOwned>(&self) -> Result<T, StepError> {
        serde_json::from_value(self.operation.input.clone())
            .map_err(|error| StepError::internal(format!("the operation's input cannot be read: {error}")))
    }

    /// What an earlier step left.
    pub(super) fn output_of<T: DeserializeOwned>(&self, step: &str) -> Result<T, StepError> {
        let value = self.outputs.get(step).cloned().unwrap_or_default();
        serde_json::from_value(value)
            .map_err(|error| StepError::internal(format!("the result of step {step} cannot be read: {error}")))
    }

    /// The tenant that the operation is about.
    pub(super) fn tenant(&self) -> Result<TenantId, StepError> {
        self.operation.tenant.ok_or_else(|| StepError::internal("the operation names no tenant".to_owned()))
    }

    /// Before a step that cannot be taken back: makes sure that no other daemon has taken over.
    pub(super) async fn claim_check(&self) -> Result<(), StepError> {
        let lease = self.parts.config.operations.lease;
        match self.parts.catalog.operation_heartbeat(self.id(), self.fence, lease).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(StepError::Claim(Error::ClaimLost { id: self.id() })),
            Err(error) => Err(StepError::Claim(error.into())),
        }
    }
}

/// The reason that a full server's operator can do something about.
const NO_ROOM: &str = "SERVER_NO_ROOM";

/// There was no session, or it broke off.
const UNAVAILABLE: &str = "CONNECTION_UNAVAILABLE";
/// The server answered, and refused a statement; or what is in the tenant's database does not allow it.
const SQL: &str = "SQL";

/// Why a step did not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    /// The claim is gone or the catalog cannot be asked: nothing is undone here; whoever claims next goes on.
    #[error(transparent)]
    Claim(Error),
    #[error("{message}")]
    Failed { reason: &'static str, message: String },
}

impl StepError {
    /// `reason` is a name of the protobuf enum ErrorReason, without its prefix.
    pub(super) fn failed(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Failed { reason, message: message.into() }
    }

    pub(super) fn internal(message: String) -> Self {
        Self::Failed { reason: "INTERNAL", message }
    }

    pub(super) fn gave_up(step: &str, attempts: i32) -> Self {
        Self::internal(format!("step {step} was begun {attempts} times and never ended; see the daemons' logs"))
    }

    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Claim(_) => "INTERNAL",
            Self::Failed { reason, .. } => reason,
        }
    }

    /// As the catalog keeps it and [`super::Failure`] reads it.
    pub(super) fn to_record(&self, step: &str) -> Value {
        serde_json::json!({ "reason": self.reason(), "message": self.to_string(), "step": step })
    }
}

impl From<crate::catalog::Error> for StepError {
    fn from(error: crate::catalog::Error) -> Self {
        if error.is_transient() || matches!(error, crate::catalog::Error::ClaimLost { .. }) {
            return Self::Claim(error.into());
        }
        let reason = if error.is_no_room() { NO_ROOM } else { "INTERNAL" };
        Self::failed(reason, format!("the catalog refused: {error}"))
    }
}

impl From<crate::postgres::sessions::Error> for StepError {
    fn from(error: crate::postgres::sessions::Error) -> Self {
        crate::catalog::Error::from(error).into()
    }
}

impl From<crate::accounts::Error> for StepError {
    fn from(error: crate::accounts::Error) -> Self {
        let reason = if error.is_no_room() { NO_ROOM } else { "INTERNAL" };
        Self::failed(reason, format!("the auth database refused: {error}"))
    }
}

impl From<crate::postgres::Error> for StepError {
    fn from(error: crate::postgres::Error) -> Self {
        use crate::postgres::Kind;
        let reason = match error.kind() {
            Kind::NoRoom => NO_ROOM,
            Kind::Unreachable | Kind::Shutdown | Kind::ServerFull | Kind::LimitReached => UNAVAILABLE,
            _ if error.refused_session() => UNAVAILABLE,
            _ if error.code().is_some() => SQL,
            _ => UNAVAILABLE,
        };
        Self::failed(reason, error.to_string())
    }
}

impl From<crate::secrets::Error> for StepError {
    fn from(error: crate::secrets::Error) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<crate::store::Error> for StepError {
    fn from(error: crate::store::Error) -> Self {
        Self::failed("OBJECT_STORE", error.to_string())
    }
}

impl From<crate::backup::Error> for StepError {
    fn from(error: crate::backup::Error) -> Self {
        use crate::backup::Error as E;
        let reason = match &error {
            error if error.is_damage() => "BACKUP_CORRUPT",
            E::Spool { .. } => "SPOOL",
            E::Extensions(_) => "EXTENSION_UNAVAILABLE",
            E::Stalled { .. } => "OBJECT_STORE",
            E::Program(program) if program.is_session_lost() => UNAVAILABLE,
            E::Program(program) if program.is_statement_refused() => SQL,
            E::TableLeftOut { .. } | E::TablesChanged => SQL,
            _ => "INTERNAL",
        };
        match error {
            E::Store(error) if reason == "INTERNAL" => error.into(),
            E::Postgres(error) => error.into(),
            error => Self::failed(reason, error.to_string()),
        }
    }
}

impl From<crate::router::Error> for StepError {
    fn from(error: crate::router::Error) -> Self {
        Self::failed(UNAVAILABLE, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::Error;
    use crate::postgres::programs;

    #[test]
    fn how_a_program_failed_is_told_apart() {
        let reason = |output: &str| {
            let (program, status) = ("pg_dump".to_owned(), "exit status: 1".to_owned());
            let failed = programs::Error::Failed { program, status, output: output.to_owned() };
            StepError::from(Error::Program(failed)).reason()
        };
        let refused = "pg_dump: error: query failed: ERROR:  no such function\npg_dump: detail: Query was: SELECT 1";
        assert_eq!(reason(refused), "SQL");
        let gone = "pg_dump: error: connection to server at \"db\", port 5432 failed: FATAL:  sorry";
        assert_eq!(reason(gone), "CONNECTION_UNAVAILABLE");
        let ended =
            "pg_dump: detail: Error message from server: FATAL:  terminating connection due to administrator command";
        assert_eq!(reason(ended), "CONNECTION_UNAVAILABLE");
        assert_eq!(reason("pg_dump: error: out of memory"), "INTERNAL");
        assert_eq!(StepError::from(Error::TablesChanged).reason(), "SQL");
    }
}
