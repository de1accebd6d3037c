//! One step: what it does, how it is undone, and what it may know while it runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Error, Failure, Parts};
use crate::catalog::Operation;
use crate::domain::operation::OperationId;
use crate::domain::tenant::TenantId;

/// A step of an operation. `act` may run again after it has acted, and `undo` after a step that never acted.
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) act: for<'a> fn(&'a Run) -> BoxFuture<'a, Result<Done, StepError>>,
    pub(super) undo: for<'a> fn(&'a Run) -> BoxFuture<'a, Result<(), StepError>>,
    /// What it meets and what passes is waited for, instead of undoing everything.
    pub(super) waits: bool,
}

impl Step {
    /// A step that rather waits than be undone.
    pub(super) const fn waiting(self) -> Self {
        Self { waits: true, ..self }
    }
}

/// `step!("name", act)` for what needs no undoing, `step!("name", act, undo)` for the rest.
macro_rules! step {
    ($name:literal, $act:path) => {
        step!($name, $act, $crate::operations::step::nothing_to_undo)
    };
    ($name:literal, $act:path, $undo:path) => {
        $crate::operations::step::Step {
            name: $name,
            act: |run| Box::pin($act(run)),
            undo: |run| Box::pin($undo(run)),
            waits: false,
        }
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
    /// Whether the present step was begun before, and may have done a part.
    pub(super) is_repeated: bool,
    pub(super) outputs: BTreeMap<String, Value>,
}

impl Run {
    pub(super) fn new(parts: Arc<Parts>, operation: Operation, fence: i64, outputs: BTreeMap<String, Value>) -> Self {
        Self { parts, operation, fence, is_repeated: false, outputs }
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
/// A role or a database of the tenant's name is on the server.
pub(super) const NAME_TAKEN: &str = "TENANT_ALREADY_EXISTS";

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
    Failed {
        reason: &'static str,
        message: String,
        /// Whether it passes without anybody's help: a server or a store that is away or has no room.
        passes: bool,
    },
}

impl StepError {
    /// `reason` is a name of the protobuf enum ErrorReason, without its prefix.
    pub(super) fn failed(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Failed { reason, message: message.into(), passes: false }
    }

    pub(super) fn internal(message: String) -> Self {
        Self::failed("INTERNAL", message)
    }

    pub(super) fn gave_up(step: &str, attempts: i32) -> Self {
        Self::internal(format!("step {step} was begun {attempts} times and never ended; see the daemons' logs"))
    }

    /// The failure passes by itself, if `passes`.
    fn passing_if(self, passes: bool) -> Self {
        match self {
            Self::Failed { reason, message, .. } => Self::Failed { reason, message, passes },
            claim @ Self::Claim(_) => claim,
        }
    }

    /// Whether the same may succeed later without anybody's help.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Claim(_) => true,
            Self::Failed { passes, .. } => *passes,
        }
    }

    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Claim(_) => "INTERNAL",
            Self::Failed { reason, .. } => reason,
        }
    }

    pub(super) fn failure(&self, step: &str) -> Failure {
        Failure {
            reason: self.reason().to_owned(),
            message: self.to_string(),
            step: step.to_owned(),
            ..Failure::default()
        }
    }
}

impl From<crate::catalog::Error> for StepError {
    fn from(error: crate::catalog::Error) -> Self {
        if error.is_transient() || matches!(error, crate::catalog::Error::ClaimLost { .. }) {
            return Self::Claim(error.into());
        }
        let is_full = error.is_no_room();
        let reason = if is_full { NO_ROOM } else { "INTERNAL" };
        Self::failed(reason, format!("the catalog refused: {error}")).passing_if(is_full)
    }
}

impl From<crate::postgres::sessions::Error> for StepError {
    fn from(error: crate::postgres::sessions::Error) -> Self {
        crate::catalog::Error::from(error).into()
    }
}

impl From<crate::accounts::Error> for StepError {
    fn from(error: crate::accounts::Error) -> Self {
        let is_full = error.is_no_room();
        let reason = if is_full { NO_ROOM } else { "INTERNAL" };
        Self::failed(reason, format!("the auth database refused: {error}")).passing_if(is_full || error.is_away())
    }
}

impl From<crate::postgres::Error> for StepError {
    fn from(error: crate::postgres::Error) -> Self {
        use crate::postgres::Kind;
        let passes = error.kind().is_transient() || error.is_silent();
        let (reason, passes) = match error.kind() {
            Kind::NoRoom => (NO_ROOM, true),
            Kind::Duplicate => (NAME_TAKEN, false),
            Kind::Unreachable | Kind::Shutdown | Kind::ServerFull | Kind::LimitReached => (UNAVAILABLE, passes),
            _ if error.refused_session() || error.code().is_none() => (UNAVAILABLE, passes),
            _ => (SQL, passes),
        };
        Self::failed(reason, error.to_string()).passing_if(passes)
    }
}

impl From<crate::secrets::Error> for StepError {
    fn from(error: crate::secrets::Error) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<crate::store::Error> for StepError {
    fn from(error: crate::store::Error) -> Self {
        Self::failed("OBJECT_STORE", error.to_string()).passing_if(error.is_retryable())
    }
}

impl From<crate::backup::Error> for StepError {
    fn from(error: crate::backup::Error) -> Self {
        use crate::backup::Error as E;
        let reason = match &error {
            error if error.is_damage() => "BACKUP_CORRUPT",
            E::Spool { .. } => "SPOOL",
            E::Extensions(_) => "EXTENSION_UNAVAILABLE",
            E::Program(program) if program.is_unfit() => "PROGRAMS_UNAVAILABLE",
            E::Stalled { .. } => "OBJECT_STORE",
            E::Program(program) if program.is_session_lost() => UNAVAILABLE,
            E::Program(program) if program.is_statement_refused() => SQL,
            E::TableLeftOut { .. } | E::TablesChanged => SQL,
            _ => "INTERNAL",
        };
        match error {
            E::Store(error) if reason == "INTERNAL" => error.into(),
            E::Postgres(error) => error.into(),
            error => Self::failed(reason, error.to_string()).passing_if(error.is_retryable()),
        }
    }
}

impl From<crate::router::Error> for StepError {
    fn from(error: crate::router::Error) -> Self {
        Self::failed(UNAVAILABLE, error.to_string()).passing_if(error.is_transient())
    }
}

/// What operations share with those who submit them.
impl From<Error> for StepError {
    fn from(error: Error) -> Self {
        match error {
            Error::Catalog(error) => error.into(),
            Error::Session(error) => error.into(),
            Error::Accounts(error) => error.into(),
            Error::Postgres(error) => error.into(),
            Error::Router(error) => error.into(),
            Error::Store(error) => error.into(),
            Error::Backup(error) => error.into(),
            error => Self::internal(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::StepError;
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
        let too_old = programs::Error::ServerTooOld { dump: 18, server: 15 };
        assert_eq!(StepError::from(Error::Program(too_old)).reason(), "PROGRAMS_UNAVAILABLE");
    }
}
