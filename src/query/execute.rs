//! One statement over one session.
//!
//! Most statements take one round trip: plain reads, guarded or not ([`super::harmless`]), and changes that return no
//! rows, which PostgreSQL's implicit transaction covers. Everything else runs between BEGIN and COMMIT, so that a result
//! that is too large changes nothing; BEGIN travels together with the statement. A plain read that is a connection's
//! first statement is not prepared, and the connection is cleaned behind it, unless it is closed before anybody wants
//! it. One that turns out to write in its guard is run anew between BEGIN and COMMIT.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::try_join;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::Queries;
use super::convoy::Passenger;
use super::error::Error;
use super::harmless::{Known, QUICK_MAX, Reading};
use super::parameter::{Parameter, parameters, untyped};
use super::rows::{Bounds, Fetched, Output, columns, query, query_at_once};
use super::session::{READ_BEGIN, Session, read_end, refused_or};
use super::statement;
use crate::proto::v1;
use crate::router::{Fresh, Holder, Residue};

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

impl Queries {
    /// Runs the statement in a tenant's own database, at the end of a route that was located for this call.
    pub async fn execute_at(
        &self,
        holder: &Holder,
        located: &Fresh,
        input: Execute<'_>,
        deadline: tokio::time::Instant,
    ) -> Result<Output, Error> {
        if let Some(result) = self.execute_quick(holder, located, &input).await {
            return result;
        }
        let session = Box::pin(self.session_at(holder, located, deadline)).await?;
        Box::pin(self.execute(session, input)).await
    }

    /// A quick read, on a connection that idles or together with others; `None` when it is none, and when neither is to
    /// be had.
    async fn execute_quick(
        &self,
        holder: &Holder,
        located: &Fresh,
        input: &Execute<'_>,
    ) -> Option<Result<Output, Error>> {
        let tenant = located.route.tenant;
        // Whatever it is refused for, the ordinary way tells.
        let (known, bounds) = self.admit(input).ok().filter(|_| input.user.is_none())?;
        if !self.0.statements.is_quick(tenant, &known) {
            return None;
        }
        if !self.0.convoys.is_under_way(tenant)
            && let Some(lease) = self.0.router.acquire_idle(holder, located).await
        {
            return Some(self.run(lease.into(), input, &known, bounds, (Way::AsIs, Residue::Nothing)).await);
        }
        let passenger = Passenger { tenant, known: &known, values: input.parameters, bounds, holder };
        self.0.convoys.read(self, &passenger).await
    }

    /// Runs the statement and gives the session back.
    pub async fn execute(&self, session: Session, input: Execute<'_>) -> Result<Output, Error> {
        match self.0.statements.known(input.sql) {
            Ok(known) => self.execute_known(session, input, &known).await,
            Err(error) => {
                session.release(Residue::Nothing);
                Err(error)
            }
        }
    }

    /// As [`Queries::execute`], for a statement whose words were looked at before.
    pub(super) async fn execute_known(
        &self,
        mut session: Session,
        input: Execute<'_>,
        known: &Known,
    ) -> Result<Output, Error> {
        let bounds = match bounds(&input, known) {
            Ok(bounds) => bounds,
            Err(error) => {
                session.release(Residue::Nothing);
                return Err(error);
            }
        };
        // When it fails, the session ends: it did not answer a question of our own.
        let way = self.way(&mut session, known, input.user).await?;
        self.run(session, &input, known, bounds, way).await
    }

    /// Runs the statement in this way, with what that may leave in the session.
    async fn run(
        &self,
        mut session: Session,
        input: &Execute<'_>,
        known: &Known,
        bounds: Bounds,
        (mut way, mut residue): (Way, Residue),
    ) -> Result<Output, Error> {
        let started = Instant::now();
        let mut result = attempt(&mut session, input, way, bounds).await;
        if let Err(failure) = &result
            && failure.is_stale_statement()
        {
            // The tables changed under a statement that this session had prepared. Nothing ran yet.
            session.statements_forget();
            result = attempt(&mut session, input, way, bounds).await;
        }
        if let (Way::Guarded { user }, Err(failure), Some(tenant)) = (way, &result, session.tenant())
            && failure.is_read_only()
        {
            // It only reads by its words. Nothing of it has stayed.
            self.0.statements.changed(tenant, known);
            (way, residue) = (Way::Transaction { user }, Residue::Session);
            result = attempt(&mut session, input, way, bounds).await;
        }
        let elapsed = started.elapsed();
        if let (Way::AsIs, Some(tenant)) = (way, session.tenant())
            && (elapsed <= QUICK_MAX) != self.0.statements.is_quick(tenant, known)
        {
            self.0.statements.took(tenant, known, elapsed);
        }
        self.0.statements.ran(session.tenant(), residue);
        self.tell_if_slow(&session, input.sql, elapsed);
        let (result, state) = match result {
            Ok(output) => (Ok(output), SessionState::Idle),
            Err(Failure { error, state }) => (Err(session.told(error)), state),
        };
        match state {
            SessionState::Idle => session.release(residue),
            SessionState::Unknown => drop(session),
        }
        result
    }

    /// How the statement is sent, and what it may leave in the session then.
    async fn way(&self, session: &mut Session, known: &Known, user: Option<Uuid>) -> Result<(Way, Residue), Error> {
        let residue = known.analysis.residue;
        if residue != Residue::Nothing {
            let is_change = user.is_none() && known.analysis.is_change;
            return Ok((if is_change { Way::Change } else { Way::Transaction { user } }, residue));
        }
        let changing = (Way::Transaction { user }, Residue::Session);
        if user.is_some() {
            let changes = session.tenant().is_some_and(|tenant| self.0.statements.changes(tenant, known));
            return Ok(if changes { changing } else { (Way::Guarded { user }, Residue::Nothing) });
        }
        Ok(match self.0.statements.reading(session, known).await? {
            Reading::Changes => changing,
            Reading::AsIs => (Way::AsIs, Residue::Nothing),
            Reading::Guarded if session.is_new() => (Way::Guarded { user: None }, Residue::Perhaps),
            Reading::Guarded => (Way::Guarded { user: None }, Residue::Nothing),
        })
    }

    fn admit(&self, input: &Execute<'_>) -> Result<(Arc<Known>, Bounds), Error> {
        let known = self.0.statements.known(input.sql)?;
        let bounds = bounds(input, &known)?;
        Ok((known, bounds))
    }

    pub(super) fn tell_if_slow(&self, session: &Session, sql: &str, elapsed: Duration) {
        if elapsed >= self.0.live.current().router.slow_statement_threshold {
            let (tenant, statement) = (session.place(), statement::without_values(sql));
            tracing::info!(%tenant, milliseconds = elapsed.as_millis(), statement, "slow statement");
        }
    }
}

/// How much of the result is taken; an error when the statement has none of this kind.
fn bounds(input: &Execute<'_>, known: &Known) -> Result<Bounds, Error> {
    if known.analysis.is_cursor {
        let reason = "a cursor ends with its transaction; use StreamQuery, Transact, or LIMIT";
        return Err(Error::Refused { word: "a statement about a cursor", reason });
    }
    Ok(Bounds { rows_max: rows_max(input.rows_max)?, bytes_max: input.bytes_max.min(BYTES_MAX) })
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
    /// Between BEGIN READ ONLY and ROLLBACK.
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
        let state = if error.ends_session() { SessionState::Unknown } else { SessionState::Idle };
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

    fn is_read_only(&self) -> bool {
        self.state == SessionState::Idle && self.error.is_read_only()
    }
}

async fn attempt(session: &mut Session, input: &Execute<'_>, way: Way, bounds: Bounds) -> Result<Output, Failure> {
    if session.is_new()
        && matches!(way, Way::AsIs | Way::Guarded { user: None })
        && let Some(output) = Box::pin(at_once(session, input, way, bounds)).await?
    {
        return Ok(output);
    }
    let statement = match way {
        Way::Guarded { .. } => session.prepare_guarded(input.sql).await,
        _ => session.prepare(input.sql).await.map_err(Error::from),
    }
    .map_err(Failure::idle)?;
    let columns = columns(statement.columns()).map_err(Failure::idle)?;
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

/// A plain read that is a connection's first statement, in one round trip and without being prepared: most such
/// connections have nothing to do but this. `None` when nothing of it has run and it has to be prepared after all, as
/// when it is refused by its words: then that is said of it as of any.
async fn at_once(
    session: &mut Session,
    input: &Execute<'_>,
    way: Way,
    bounds: Bounds,
) -> Result<Option<Output>, Failure> {
    let Some(parameters) = untyped(input.parameters) else { return Ok(None) };
    let client = session.client();
    let read = query_at_once(client, input.sql, &parameters, bounds);
    let answered = if way == Way::AsIs {
        read.await
    } else {
        // What else stays in the session is cleaned behind it.
        let begin = async { Ok(client.batch_execute(READ_BEGIN).await?) };
        let end = async { Ok(client.batch_execute("ROLLBACK").await?) };
        let read = async { refused_or(read.await) };
        try_join!(begin, read, end).and_then(|((), answered, ())| answered)
    };
    let Some((columns, result)) = answered.map_err(Failure::of_query)? else { return Ok(None) };
    let columns = if let Some(columns) = columns {
        columns
    } else {
        let statement = session.prepare(input.sql).await.map_err(Failure::idle)?;
        super::rows::columns(statement.columns()).map_err(Failure::idle)?
    };
    Ok(Some(Output { columns, rows: result.rows, row_count: result.count }))
}

/// A plain read of which nothing stays in the session. All of it is sent before any of it is awaited.
pub(super) async fn guarded(
    client: &Client,
    statement: &Statement,
    parameters: &[Parameter],
    bounds: Bounds,
    user: Option<Uuid>,
) -> Result<Fetched, Error> {
    let begin = async { Ok(client.batch_execute(&begin_as(READ_BEGIN, user)).await?) };
    let read = async { refused_or(query(client, statement, parameters, bounds).await) };
    let ((), rows, ()) = try_join!(begin, read, read_end(client))?;
    rows
}

async fn in_transaction(
    client: &Client,
    statement: &Statement,
    parameters: &[Parameter],
    bounds: Bounds,
    user: Option<Uuid>,
) -> Result<Fetched, Failure> {
    let begin = async { Ok(client.batch_execute(&begin_as("BEGIN", user)).await?) };
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

fn begin_as(begin: &'static str, user: Option<Uuid>) -> Cow<'static, str> {
    user.map_or(Cow::Borrowed(begin), |user| format!("{begin}; {}", user_set(user)).into())
}

/// Says for the rest of the transaction who the user is. A UUID has nothing in it to be quoted.
pub(super) fn user_set(user: Uuid) -> String {
    format!("SET LOCAL app.current_user_id = '{user}'")
}
