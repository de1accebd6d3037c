//! The session that a statement runs on: a lease of a tenant's pool, or one of the few on the daemon's own databases.
//! Given back by [`Session::release`]; dropped otherwise, which ends it and cancels what it runs.

use futures_util::try_join;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use super::error::Error;
use super::targets::Seat;
use crate::domain::tenant::TenantId;
use crate::postgres::types::{self, Unprepared};
use crate::router::{Lease, Residue};

/// Begins a plain read. What changes something after all is told by its refusal, instead of being undone unseen.
pub(super) const READ_BEGIN: &str = "BEGIN READ ONLY";

/// Lets go of what outlives a rollback, and tells what it cannot let go of.
const REST_END: &str = "SELECT pg_catalog.pg_advisory_unlock_all(), \
                        EXISTS (SELECT FROM pg_catalog.pg_prepared_statement() WHERE from_sql)";

/// Ends a plain read's transaction: nothing of a session survives it.
///
/// # Errors
/// As [`rest_end`].
pub(super) async fn read_end(client: &Client) -> Result<(), Error> {
    rest_none(&client.simple_query(&format!("ROLLBACK; {REST_END}")).await?)
}

/// Ends what outlives a plain read's transaction.
///
/// # Errors
/// When there are statements that were prepared by SQL, perhaps under the names of the daemon's own: no rollback undoes
/// them, and the session is not to be used again.
pub(super) async fn rest_end(client: &Client) -> Result<(), Error> {
    rest_none(&client.simple_query(REST_END).await?)
}

fn rest_none(answers: &[SimpleQueryMessage]) -> Result<(), Error> {
    let has_rest =
        |answer: &SimpleQueryMessage| matches!(answer, SimpleQueryMessage::Row(row) if row.get(1) == Some("t"));
    if answers.iter().any(has_rest) { Err(Error::prepared_by_sql()) } else { Ok(()) }
}

/// A refusal, so that what was sent behind it is waited for nevertheless.
pub(super) fn refused_or<T>(result: Result<T, Error>) -> Result<Result<T, Error>, Error> {
    match result {
        Err(error @ Error::Sql(_)) => Ok(Err(error)),
        Err(error) => Err(error),
        Ok(value) => Ok(Ok(value)),
    }
}

/// A session outside a transaction, with nothing running.
#[derive(Debug)]
pub enum Session {
    /// In a tenant's own database.
    Tenant(Lease),
    /// In the shared or the auth database.
    Own(Seat),
}

impl Session {
    /// Whose database it is in, when it is a tenant's own.
    pub(super) fn tenant(&self) -> Option<TenantId> {
        match self {
            Self::Tenant(lease) => Some(lease.tenant()),
            Self::Own(_) => None,
        }
    }

    /// A statement's error, as its caller hears of it: one that was cancelled for an operation has met the tenant's gate.
    /// Nothing of it has stayed. And one that has met a session's end hears what a tenant's code has done.
    pub(super) fn told(&self, error: Error) -> Error {
        match self {
            Self::Tenant(lease) if matches!(error, Error::Connection(_)) && lease.has_changed_encoding() => {
                Error::EncodingChanged
            }
            Self::Tenant(lease) if error.is_cancelled() => lease.interrupted().map_or(error, Error::from),
            Self::Tenant(_) | Self::Own(_) => error,
        }
    }

    /// Whether nobody has had it before.
    pub(super) fn is_new(&self) -> bool {
        match self {
            Self::Tenant(lease) => lease.is_new(),
            Self::Own(_) => true,
        }
    }

    /// For the log.
    pub(super) fn place(&self) -> &str {
        match self {
            Self::Tenant(lease) => lease.code().as_str(),
            Self::Own(seat) => seat.place(),
        }
    }

    pub(super) fn client(&self) -> &Client {
        match self {
            Self::Tenant(lease) => lease,
            Self::Own(seat) => seat.client(),
        }
    }

    pub(super) fn client_mut(&mut self) -> &mut Client {
        match self {
            Self::Tenant(lease) => lease,
            Self::Own(seat) => seat.client_mut(),
        }
    }

    /// Has the server cancel the statement of which nobody wants the rest; what is sent behind it need not wait for it.
    ///
    /// # Errors
    /// When it may still run, or be cancelled late: the session is not to be used again.
    pub(super) async fn rest_cancel(&self) -> Result<(), Error> {
        let cancelled = match self {
            Self::Tenant(lease) => lease.cancel().await,
            Self::Own(seat) => seat.cancel().await,
        };
        cancelled.map_err(|error| Error::NotCancelled(Box::new(error)))
    }

    /// The statement, prepared once per connection of a tenant's while it is among the most recently used.
    pub(super) async fn prepare(&mut self, sql: &str) -> Result<Statement, Unprepared> {
        match self {
            Self::Tenant(lease) => lease.prepare(sql).await,
            Self::Own(seat) => Box::pin(types::prepare(seat.client(), sql)).await,
        }
    }

    /// As [`Session::prepare`], for a plain read whose names may stand for a tenant's own code: where a literal of a
    /// composite type is read, a domain's check runs, and that is while the statement is parsed. Nothing of it stays;
    /// what was prepared does.
    pub(super) async fn prepare_guarded(&mut self, sql: &str) -> Result<Statement, Error> {
        let Self::Tenant(lease) = self else { return Ok(self.prepare(sql).await?) };
        if let Some(statement) = lease.prepared(sql) {
            return Ok(statement);
        }
        let client: &Client = lease;
        // All of it is sent before any of it is awaited.
        let begin = async { Ok(client.batch_execute(READ_BEGIN).await?) };
        let prepare = async { refused_or(types::prepare(client, sql).await.map_err(Error::from)) };
        let ((), statement, ()) = Box::pin(async { try_join!(begin, prepare, read_end(client)) }).await?;
        let statement = statement?;
        lease.keep_prepared(sql, &statement);
        Ok(statement)
    }

    /// Prepares every statement anew from now on.
    pub(super) fn statements_forget(&mut self) {
        match self {
            Self::Tenant(lease) => lease.statements_forget(),
            Self::Own(_) => {}
        }
    }

    /// Gives the session back.
    pub(super) fn release(self, residue: Residue) {
        match self {
            Self::Tenant(lease) => lease.release(residue),
            // It ends.
            Self::Own(seat) => drop(seat),
        }
    }
}

impl From<Lease> for Session {
    fn from(lease: Lease) -> Self {
        Self::Tenant(lease)
    }
}
