//! Why an operation was not begun, and what its directory, its backup or the bucket has to do with that, as a status.

use tonic::{Code, Status};

use super::{RETRY_AFTER, Refusal, away, internal, invalid};
use crate::proto::v1::ErrorReason as Reason;
use crate::{backup, migrator, operations, store};

impl From<operations::Error> for Status {
    fn from(error: operations::Error) -> Self {
        use operations::Error as E;
        match error {
            E::Invalid(fields) => invalid(fields.into_iter().map(|bad| (bad.field, bad.problem)).collect()),
            E::State(error) => error.into(),
            E::Catalog(error) => error.into(),
            E::Accounts(error) => error.into(),
            E::Postgres(error) => error.into(),
            E::Router(error) => error.into(),
            E::Store(error) => error.into(),
            E::Backup(error) => error.into(),
            E::Directory(error) => error.into(),
            E::Name(error) => invalid(vec![("code", error.to_string())]),
            E::VerificationsFull { .. } => {
                Refusal::new(Code::ResourceExhausted, Reason::Spool, error).retry_after(RETRY_AFTER).status()
            }
            E::NotStuck { state, .. } => {
                Refusal::new(Code::FailedPrecondition, Reason::OperationState, &error).meta("state", state).status()
            }
            E::NameTaken { .. } => Refusal::new(Code::AlreadyExists, Reason::TenantAlreadyExists, error).status(),
            E::Session(session) if session.is_transient() => away("the shared database", &session),
            E::Session(_) | E::ClaimLost { .. } | E::ServerUnknown { .. } | E::Secrets(_) | E::Json(_) => {
                internal(&error)
            }
        }
    }
}

impl From<migrator::GateError> for Status {
    fn from(error: migrator::GateError) -> Self {
        let refusal = Refusal::new(Code::FailedPrecondition, Reason::MigrationDirectoryInvalid, &error);
        let violation = |problem: &migrator::Problem| {
            tonic_types::PreconditionViolation::new("MIGRATION_FILE", &problem.file, problem.to_string())
        };
        let violations: Vec<_> = error.problems().iter().map(violation).collect();
        refusal.with(|details| {
            details.set_precondition_failure(violations);
        })
    }
}

impl From<backup::Error> for Status {
    fn from(error: backup::Error) -> Self {
        match error {
            damage if damage.is_damage() => Refusal::new(Code::DataLoss, Reason::BackupCorrupt, damage).status(),
            backup::Error::Store(error) => error.into(),
            backup::Error::Postgres(error) => error.into(),
            full @ backup::Error::Spool { .. } => Refusal::new(Code::FailedPrecondition, Reason::Spool, full).status(),
            refused @ backup::Error::Extensions(_) => {
                Refusal::new(Code::FailedPrecondition, Reason::ExtensionUnavailable, refused).status()
            }
            other => internal(&other),
        }
    }
}

impl From<store::Error> for Status {
    fn from(error: store::Error) -> Self {
        let code = match &error {
            store::Error::NotFound { .. } => Code::DataLoss,
            error if error.is_retryable() => Code::Unavailable,
            _ => Code::FailedPrecondition,
        };
        Refusal::new(code, Reason::ObjectStore, error).status()
    }
}
