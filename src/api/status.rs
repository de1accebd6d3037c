//! Where errors become statuses, and nowhere else. Each carries `ErrorInfo` with a reason of `ErrorReason`, and the
//! details that fit. What nobody expected becomes a neutral INTERNAL with an id; its causes go to the log under that
//! id. A caller never sees a password, a key, or another tenant's name.

mod bounds;
pub(super) mod denials;
pub(super) mod queries;
mod refusal;
pub(super) mod undecodable;

use std::error::Error as StdError;
use std::fmt::Display;
use std::time::Duration;

use http::Response;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::QuotaViolation;

use self::refusal::Refusal;

use super::called::{method, refused_for};
use crate::domain::host::HostError;
use crate::domain::lifecycle::{IllegalTransition, TenantState};
use crate::domain::route::SelectError;
use crate::proto::v1::ErrorReason as Reason;
use crate::{access, accounts, backup, catalog, migrator, operations, postgres, router, store};

/// When to try again what a daemon or a server that restarts could not do.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A field of a request, and what is wrong with it.
pub(super) type BadField = (&'static str, String);

/// Every field that is not usable, at once.
pub(super) fn invalid(fields: Vec<(impl Into<String>, String)>) -> Status {
    Refusal::invalid(fields)
}

/// The caller may not do this.
pub(super) fn denied(message: impl Display) -> Status {
    Refusal::new(Code::PermissionDenied, Reason::PermissionDenied, message).status()
}

/// The same answer for a tenant that does not exist and for one that is not the caller's.
pub(super) fn out_of_scope() -> Status {
    denied("the tenant is not in this caller's scope, or does not exist")
}

/// The call's deadline has passed.
pub(super) fn deadline_exceeded() -> Status {
    let message = "the call's deadline has passed; what it began may or may not have taken effect";
    Refusal::new(Code::DeadlineExceeded, Reason::DeadlineExceeded, message).status()
}

/// The call was begun, and its message did not come.
pub(super) fn message_slow(waited: Duration) -> Status {
    let message = format!("the call's message did not come within {waited:?}; nothing was done");
    Refusal::new(Code::DeadlineExceeded, Reason::DeadlineExceeded, message).status()
}

/// The daemon goes down, and has not stopped for this call: it may have taken effect, so that nobody is told to repeat it.
pub(super) fn cut_off() -> Status {
    let message = "the daemon went down before the call had ended; what it began may or may not have taken effect";
    Refusal::new(Code::Unavailable, Reason::Cancelled, message).status()
}

/// The daemon goes down, and has not begun with the call.
pub(super) fn draining() -> Status {
    let message = "the daemon is going down; call again";
    Refusal::new(Code::Unavailable, Reason::Cancelled, message).retry_after(RETRY_AFTER).status()
}

/// Nobody reads the stream.
pub(super) fn reader_slow(waited: Duration) -> Status {
    let message = format!("nothing was read from this stream for {waited:?}; call again, and go on where it ended");
    Refusal::new(Code::Aborted, Reason::Cancelled, message).status()
}

/// The stream has lasted for as long as one may.
pub(super) fn watch_over() -> Status {
    let message = "this watch has lasted long enough; call again, and go on where it ended";
    Refusal::new(Code::Unavailable, Reason::Cancelled, message).retry_after(Duration::ZERO).status()
}

/// The caller may see tenants that this watch does not show.
pub(super) fn scope_grown() -> Status {
    let message = "this caller reaches more tenants than when the watch began; take a new snapshot";
    Refusal::new(Code::OutOfRange, Reason::RevisionUnknown, message).status()
}

/// What nobody expected. The caller gets an id, the log gets the causes.
pub(super) fn internal(error: &(dyn StdError + 'static)) -> Status {
    Refusal::internal(error)
}

/// The status as the answer of a call.
pub(super) fn answer(status: Status) -> Response<Body> {
    status.into_http()
}

fn not_found(reason: Reason, kind: &str, name: impl Display, message: impl Display) -> Status {
    Refusal::new(Code::NotFound, reason, message).resource(kind, name)
}

impl From<access::Error> for Status {
    fn from(error: access::Error) -> Self {
        use access::Error as E;
        match error {
            E::Missing | E::Malformed | E::Refused { .. } | E::Mismatch => {
                Refusal::new(Code::Unauthenticated, Reason::Unauthenticated, error).status()
            }
            E::TooManyFailures { retry_after } => {
                Refusal::new(Code::ResourceExhausted, Reason::RateLimited, &error).retry_after(retry_after).status()
            }
            E::TooManyCalls { ref whose, retry_after, .. } => {
                let subject = match whose {
                    access::Whose::Principal(name) => format!("principal:{name}"),
                    access::Whose::Tenant(code) => format!("tenant:{code}"),
                };
                let violation = QuotaViolation::new(subject, error.to_string());
                Refusal::new(Code::ResourceExhausted, Reason::RateLimited, &error).retry_after(retry_after).with(
                    |details| {
                        details.set_quota_failure(vec![violation]);
                    },
                )
            }
            E::Away { .. } => {
                Refusal::new(Code::Unavailable, Reason::ConnectionUnavailable, error).retry_after(RETRY_AFTER).status()
            }
            E::Catalog(error) => (*error).into(),
            E::Denied { .. } | E::Withdrawn { .. } => denied(error),
            E::MethodUnknown { .. } => Refusal::new(Code::Unimplemented, Reason::InvalidArgument, error).status(),
            E::Accounts(error) => (*error).into(),
        }
    }
}

impl From<SelectError> for Status {
    fn from(error: SelectError) -> Self {
        let field = match &error {
            SelectError::Id(_) | SelectError::Nothing => "tenant_id",
            SelectError::Code(_) => "code",
            SelectError::Host(_) => "host",
        };
        invalid(vec![(field, error.to_string())])
    }
}

impl From<HostError> for Status {
    fn from(error: HostError) -> Self {
        invalid(vec![("host", error.to_string())])
    }
}

impl From<IllegalTransition> for Status {
    fn from(error: IllegalTransition) -> Self {
        state(&error, error.state, &error.allowed)
    }
}

fn state(error: &dyn Display, state: TenantState, allowed: &[TenantState]) -> Status {
    let names: Vec<_> = allowed.iter().map(|state| state.name()).collect();
    let message = error.to_string();
    Refusal::new(Code::FailedPrecondition, Reason::TenantState, &message)
        .meta("state", state)
        .meta("allowed_states", names.join(","))
        .with(|details| {
            details.set_precondition_failure(vec![tonic_types::PreconditionViolation::new("STATE", "tenant", message)]);
        })
}

impl From<catalog::Error> for Status {
    fn from(error: catalog::Error) -> Self {
        use catalog::Error as E;
        match &error {
            E::TenantUnknown { tenant } => not_found(Reason::TenantNotFound, "tenant", tenant, &error),
            E::TenantExists { code, .. } => {
                Refusal::new(Code::AlreadyExists, Reason::TenantAlreadyExists, &error).resource("tenant", code)
            }
            E::DatabaseTaken { database, .. } => {
                Refusal::new(Code::AlreadyExists, Reason::TenantAlreadyExists, &error).resource("database", database)
            }
            E::HostTaken { host } => {
                Refusal::new(Code::AlreadyExists, Reason::TenantAlreadyExists, &error).resource("host", host)
            }
            E::HostInvalid(_) => invalid(vec![("hosts", error.to_string())]),
            E::PageToken { .. } => invalid(vec![("page_token", error.to_string())]),
            E::Transition(transition) => state(&error, transition.state, &transition.allowed),
            E::GateHeld { operation, .. } => Refusal::new(Code::Aborted, Reason::OperationConflict, &error)
                .meta("operation_id", operation)
                .retry_after(RETRY_AFTER)
                .status(),
            E::OperationConflict { id, kind } => Refusal::new(Code::Aborted, Reason::OperationConflict, &error)
                .meta("operation_id", id)
                .meta("operation_kind", kind)
                .retry_after(RETRY_AFTER)
                .status(),
            E::OperationUnknown { id } => not_found(Reason::OperationNotFound, "operation", id, &error),
            E::RequestIdReused { request_id } => {
                Refusal::new(Code::AlreadyExists, Reason::RequestIdReused, &error).resource("request_id", request_id)
            }
            E::RolloutUnknown { id } => not_found(Reason::RolloutNotFound, "rollout", id, &error),
            E::BackupUnknown { id } => not_found(Reason::BackupNotFound, "backup", id, &error),
            E::OperationContended { .. } => {
                Refusal::new(Code::Aborted, Reason::OperationConflict, &error).retry_after(RETRY_AFTER).status()
            }
            E::RevisionUnknown { position, .. } => Refusal::new(Code::OutOfRange, Reason::RevisionUnknown, &error)
                .meta("catalog_id", position.catalog_id)
                .meta("revision", position.revision)
                .meta("compacted_revision", position.compacted_revision)
                .status(),
            _ if error.is_away() => away("the shared database", &error),
            _ if error.is_no_room() => no_room("the shared database", &error),
            E::ServerUnknown { .. }
            | E::SecretUnknown { .. }
            | E::ClaimLost { .. }
            | E::Corrupt { .. }
            | E::Statement(_)
            | E::Session(_)
            | E::Silent { .. }
            | E::Migrate(_) => internal(&error),
        }
    }
}

/// The server of a database can keep nothing more; nothing was done. What it says of its files is for the log.
fn no_room(what: &str, error: &(dyn StdError + 'static)) -> Status {
    tracing::warn!(method = method(), error = %error, "{what} has no room");
    let message = format!("{what} has no room: its server's disk or memory is full; free some there, and try again");
    Refusal::new(Code::ResourceExhausted, Reason::ServerNoRoom, message).status()
}

/// Something that the daemon needs does not answer; nothing was done.
fn away(what: &str, error: &(dyn StdError + 'static)) -> Status {
    tracing::warn!(method = method(), error = %error, "{what} does not answer");
    let message = format!("{what} does not answer; try again");
    Refusal::new(Code::Unavailable, Reason::ConnectionUnavailable, message).retry_after(RETRY_AFTER).status()
}

impl From<router::Error> for Status {
    fn from(error: router::Error) -> Self {
        use router::Error as E;
        let retry_after = error.retry_after();
        let unavailable = |server: &str, cause: &dyn Display| {
            Refusal::new(Code::Unavailable, Reason::ConnectionUnavailable, &error)
                .meta("server", server)
                .meta("cause", cause)
                .retry_after(retry_after)
                .status()
        };
        match &error {
            E::Select(select) => select.clone().into(),
            E::TenantUnknown { tenant } => not_found(Reason::TenantNotFound, "tenant", tenant, &error),
            E::NotPermitted { tenant } => {
                refused_for(tenant);
                denied(&error)
            }
            E::State { state: found, allowed, .. } => state(&error, *found, allowed),
            E::Closed { operation, .. } => Refusal::new(Code::FailedPrecondition, Reason::TenantState, &error)
                .meta_if("operation_id", *operation)
                .status(),
            E::Paused { operation, .. } => Refusal::new(Code::Unavailable, Reason::TenantPaused, &error)
                .meta_if("operation_id", *operation)
                .retry_after(retry_after)
                .status(),
            E::Timeout { server, cause, .. } => match cause {
                router::TimeoutCause::Connect => unavailable(server, &cause.name()),
                full => Refusal::new(Code::ResourceExhausted, Reason::ConnectionUnavailable, &error)
                    .meta("server", server)
                    .meta("cause", full.name())
                    .retry_after(retry_after)
                    .status(),
            },
            E::CatalogAway { cause } => unavailable("", cause),
            E::QueueFull { server, queue_max, .. } => {
                Refusal::new(Code::ResourceExhausted, Reason::ConnectionUnavailable, &error)
                    .meta("server", server)
                    .meta("cause", "queue")
                    .meta("queue_max", queue_max)
                    .retry_after(retry_after)
                    .status()
            }
            E::Connect { server, source, .. } | E::Blocked { server, source, .. } if is_known(source) => {
                Refusal::new(Code::Unavailable, Reason::ConnectionUnavailable, &error)
                    .meta("server", server)
                    .meta("cause", source)
                    .meta_if("sqlstate", source.code().map(tokio_postgres::error::SqlState::code))
                    .retry_after(retry_after)
                    .status()
            }
            E::CatalogSlow | E::PoolClosed => unavailable("", &error),
            E::IdentityMismatch { .. } => {
                tracing::error!(method = method(), error = %error, "a database is not the tenant's");
                Refusal::new(Code::FailedPrecondition, Reason::IdentityMismatch, &error).status()
            }
            E::Connect { .. }
            | E::Blocked { .. }
            | E::Pool(_)
            | E::ServerUnknown { .. }
            | E::Secret { .. }
            | E::Role { .. }
            | E::Drain { .. } => internal(&error),
            E::Catalog(_) => match error {
                E::Catalog(error) => (*error).into(),
                other => internal(&other),
            },
        }
    }
}

/// Whether the cause is one that a caller can be told: it passes, or the server refuses the session.
fn is_known(error: &postgres::Error) -> bool {
    error.is_transient() || error.refused_session()
}

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

impl From<accounts::Error> for Status {
    fn from(error: accounts::Error) -> Self {
        use accounts::Error as E;
        match &error {
            E::ApiKeyUnknown { id } => not_found(Reason::ApiKeyNotFound, "api_key", id, &error),
            E::PageToken(_) => invalid(vec![("page_token", error.to_string())]),
            E::EmailInvalid(_) => invalid(vec![("administrator.email", error.to_string())]),
            E::Statement(statement) if statement.kind() == postgres::Kind::Duplicate => {
                let message =
                    "a key was made with this request id before; its secret was in that answer and nowhere else";
                Refusal::new(Code::AlreadyExists, Reason::RequestIdReused, message).status()
            }
            error if error.is_away() => away("the auth database", error),
            error if error.is_no_room() => no_room("the auth database", error),
            error => internal(error),
        }
    }
}

impl From<postgres::Error> for Status {
    fn from(error: postgres::Error) -> Self {
        match error.kind() {
            kind if kind.is_transient() || error.refused_session() => away("a PostgreSQL server", &error),
            postgres::Kind::NoRoom => no_room("a database", &error),
            _ => internal(&error),
        }
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
            backup::Error::Program(unfit) if unfit.is_unfit() => {
                Refusal::new(Code::FailedPrecondition, Reason::ProgramsUnavailable, unfit).status()
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

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;
    use uuid::Uuid;

    use super::*;
    use crate::domain::lifecycle::Transition;

    fn reason(status: &Status) -> String {
        status.get_error_details().error_info().map_or_else(String::new, |info| info.reason.clone())
    }

    #[test]
    fn a_state_comes_with_those_that_would_do() {
        let status = Status::from(TenantState::Suspended.after(Transition::Suspend).unwrap_err());
        let details = status.get_error_details();
        let metadata = &details.error_info().unwrap().metadata;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "TENANT_STATE"));
        assert_eq!((metadata["state"].as_str(), metadata["allowed_states"].as_str()), ("SUSPENDED", "ACTIVE"));
        assert_eq!(details.precondition_failure().unwrap().violations.len(), 1);
    }

    #[test]
    fn the_unexpected_says_nothing_but_an_id() {
        let secret = std::io::Error::other("the password is hunter2");
        let status = internal(&secret);
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Internal, "INTERNAL"));
        assert!(!status.message().contains("hunter2"));
        let details = status.get_error_details();
        assert!(status.message().contains(&details.error_info().unwrap().metadata["error_id"]));
    }

    #[test]
    fn a_holder_is_named_and_may_be_waited_for() {
        use crate::domain::operation::{OperationId, OperationKind};
        let id = OperationId(Uuid::nil());
        let status = Status::from(catalog::Error::OperationConflict { id, kind: OperationKind::Backup });
        let details = status.get_error_details();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, "OPERATION_CONFLICT"));
        assert_eq!(details.error_info().unwrap().metadata["operation_kind"], "backup");
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(RETRY_AFTER));
    }
}
