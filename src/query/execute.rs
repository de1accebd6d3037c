//! One statement over one session.
//!
//! Most statements take one round trip: plain reads, guarded or not ([`super::harmless`]), and changes that return no
//! rows, which PostgreSQL's implicit transaction covers. Everything else runs between BEGIN and COMMIT, so that a result
//! that is too large changes nothing; BEGIN travels together with the statement.

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::try_join;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::Queries;
use super::error::Error;
use super::harmless::{Known, Reading};
use super::parameter::{Parameter, parameters};
use super::rows::{Bounds, Fetched, collect, columns};
use super::session::Session;
use super::statement;
use crate::proto::v1;
use crate::router::Residue;

/// Rows of a result when the caller does not say.
pub const ROWS_DEFAULT: usize = 1_000;
/// The most rows that a caller may ask for.
pub const ROWS_MAX: usize = 10_000;
/// The most bytes of values in one result.
pub const BYTES_MAX: usize = 16 << 20;

/// A statement to run.
#[derive(Debug, Clone, Copy)]
pub struct Execute<'a> {
    pub sql: &'a str,
    pub parameters: &'a [v1::Value],
    /// At most [`ROWS_MAX`]; 0 means [`ROWS_DEFAULT`].
    pub rows_max: i32,
    /// At most [`BYTES_MAX`].
    pub bytes_max: usize,
    /// Seen as `app.current_user_id` while the statement runs.
    pub user: Option<Uuid>,
}

/// Its result.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    pub columns: Vec<v1::Column>,
    pub rows: Vec<v1::Row>,
    /// Rows returned or changed.
    pub row_count: u64,
}

impl Queries {
    /// Runs the statement and gives the session back.
    pub async fn execute(&self, mut session: Session, input: Execute<'_>) -> Result<Output, Error> {
        let started = Instant::now();
        let (known, bounds) = match self.admit(&input) {
            Ok(admitted) => admitted,
            Err(error) => {
                session.release(Residue::Nothing);
                return Err(error);
            }
        };
        let way = match self.way(&mut session, &known, input.user).await {
            Ok(way) => way,
            // The session ends: it did not answer a question of our own.
            Err(error) => return Err(error),
        };
        let mut result = attempt(&mut session, &input, way, bounds).await;
        if let Err(failure) = &result
            && failure.is_stale_statement()
        {
            // The tables changed under a statement that this session had prepared. Nothing ran yet.
            session.statements_forget();
            result = attempt(&mut session, &input, way, bounds).await;
        }
        self.tell_if_slow(&session, input.sql, started.elapsed());
        let (result, state) = match result {
            Ok(output) => (Ok(output), SessionState::Idle),
            Err(Failure { error, state }) => (Err(error), state),
        };
        match state {
            SessionState::Idle => session.release(known.analysis.residue),
            SessionState::Unknown => drop(session),
        }
        result
    }

    async fn way(&self, session: &mut Session, known: &Known, user: Option<Uuid>) -> Result<Way, Error> {
        Ok(match known.analysis.residue {
            Residue::Nothing if user.is_some() => Way::Guarded { user },
            Residue::Nothing => match self.0.statements.reading(session, known).await? {
                Reading::AsIs => Way::AsIs,
                Reading::Guarded => Way::Guarded { user: None },
            },
            _ if user.is_none() && known.analysis.is_change => Way::Change,
            Residue::Session | Residue::Anything => Way::Transaction { user },
        })
    }

    fn admit(&self, input: &Execute<'_>) -> Result<(Arc<Known>, Bounds), Error> {
        let known = self.0.statements.known(input.sql)?;
        if known.analysis.is_cursor {
            let reason = "a cursor ends with its transaction; use StreamQuery, Transact, or LIMIT";
            return Err(Error::Refused { word: "a statement about a cursor", reason });
        }
        Ok((known, Bounds { rows_max: rows_max(input.rows_max)?, bytes_max: input.bytes_max.min(BYTES_MAX) }))
    }

    pub(super) fn tell_if_slow(&self, session: &Session, sql: &str, elapsed: Duration) {
        if elapsed >= self.0.live.current().router.slow_statement_threshold {
            let (tenant, statement) = (session.place(), statement::without_values(sql));
            tracing::info!(%tenant, milliseconds = elapsed.as_millis(), statement, "slow statement");
        }
    }
}

pub(super) fn rows_max(requested: i32) -> Result<usize, Error> {
    match usize::try_from(requested) {
        Ok(0) => Ok(ROWS_DEFAULT),
        Ok(rows) if rows <= ROWS_MAX => Ok(rows),
        Ok(_) | Err(_) => Err(Error::RowsMax { requested }),
    }
}

/// How a statement is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// In PostgreSQL's implicit transaction.
    AsIs,
    /// Between BEGIN and ROLLBACK.
    Guarded { user: Option<Uuid> },
    /// As it is when it returns no rows, and in a transaction otherwise.
    Change,
    /// Between BEGIN and COMMIT.
    Transaction { user: Option<Uuid> },
}

/// Whether a failure left the session without a statement and outside a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionState {
    Idle,
    Unknown,
}

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) state: SessionState,
}

impl Failure {
    pub(super) fn idle(error: impl Into<Error>) -> Self {
        let error = error.into();
        let state = if matches!(error, Error::Connection(_)) { SessionState::Unknown } else { SessionState::Idle };
        Self { error, state }
    }

    fn unknown(error: impl Into<Error>) -> Self {
        Self { error: error.into(), state: SessionState::Unknown }
    }

    /// After a query without a transaction around it: rows may still be on their way.
    pub(super) fn of_query(error: Error) -> Self {
        let state = if matches!(error, Error::Sql(_)) { SessionState::Idle } else { SessionState::Unknown };
        Self { error, state }
    }

    fn is_stale_statement(&self) -> bool {
        self.state == SessionState::Idle && self.error.is_stale_statement()
    }
}

async fn attempt(session: &mut Session, input: &Execute<'_>, way: Way, bounds: Bounds) -> Result<Output, Failure> {
    let statement = session.prepare(input.sql).await.map_err(Failure::idle)?;
    let columns = columns(&statement).map_err(Failure::idle)?;
    let parameters = parameters(statement.params(), input.parameters).map_err(Failure::idle)?;
    let client = session.client();
    let result = match way {
        Way::AsIs => query(client, &statement, &parameters, bounds).await.map_err(Failure::of_query)?,
        Way::Guarded { user } => {
            Box::pin(guarded(client, &statement, &parameters, bounds, user)).await.map_err(Failure::of_query)?
        }
        Way::Change if columns.is_empty() => {
            query(client, &statement, &parameters, bounds).await.map_err(Failure::of_query)?
        }
        Way::Change => Box::pin(in_transaction(client, &statement, &parameters, bounds, None)).await?,
        Way::Transaction { user } => Box::pin(in_transaction(client, &statement, &parameters, bounds, user)).await?,
    };
    Ok(Output { columns, rows: result.rows, row_count: result.count })
}

pub(super) async fn query(
    client: &Client,
    statement: &Statement,
    parameters: &[Parameter],
    bounds: Bounds,
) -> Result<Fetched, Error> {
    let mut stream = pin!(client.query_raw(statement, parameters).await?);
    collect(stream.as_mut(), statement, bounds).await
}

/// A plain read of which nothing stays in the session. All of it is sent before any of it is awaited.
pub(super) async fn guarded(
    client: &Client,
    statement: &Statement,
    parameters: &[Parameter],
    bounds: Bounds,
    user: Option<Uuid>,
) -> Result<Fetched, Error> {
    let begin = async { Ok(client.batch_execute(&begin_as(user)).await?) };
    let end = async { Ok(client.batch_execute(READ_END).await?) };
    let ((), rows, ()) = try_join!(begin, query(client, statement, parameters, bounds), end)?;
    Ok(rows)
}

async fn in_transaction(
    client: &Client,
    statement: &Statement,
    parameters: &[Parameter],
    bounds: Bounds,
    user: Option<Uuid>,
) -> Result<Fetched, Failure> {
    let begin = async { Ok(client.batch_execute(&begin_as(user)).await?) };
    // In this order on the connection: both are sent before either is awaited.
    match try_join!(begin, query(client, statement, parameters, bounds)) {
        Ok(((), rows)) => {
            client.batch_execute("COMMIT").await.map_err(Failure::idle)?;
            Ok(rows)
        }
        Err(error @ Error::Sql(_)) => {
            client.batch_execute("ROLLBACK").await.map_err(Failure::unknown)?;
            Err(Failure::idle(error))
        }
        // Rows may still be on their way; the end of the session is a rollback.
        Err(error) => Err(Failure::unknown(error)),
    }
}

/// Lets go of what outlives a rollback.
pub(super) const LOCKS_END: &str = "SELECT pg_catalog.pg_advisory_unlock_all()";

/// Ends a plain read: nothing of a session survives it.
pub(super) const READ_END: &str = "ROLLBACK; SELECT pg_catalog.pg_advisory_unlock_all()";

fn begin_as(user: Option<Uuid>) -> Cow<'static, str> {
    user.map_or(Cow::Borrowed("BEGIN"), |user| format!("BEGIN; {}", user_set(user)).into())
}

/// Says for the rest of the transaction who the user is. A UUID has nothing in it to be quoted.
pub(super) fn user_set(user: Uuid) -> String {
    format!("SET LOCAL app.current_user_id = '{user}'")
}
