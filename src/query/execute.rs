//! One statement over one lease.
//!
//! A query that only reads and calls nothing unknown is sent as it is: PostgreSQL's implicit transaction is its own,
//! and it costs one round trip. Everything else runs between BEGIN and COMMIT through a portal that stops one row
//! beyond the bound, so that a result that is too large changes nothing.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use postgres_types::{FromSql, Type};
use tokio_postgres::{Row, RowStream, Statement};

use super::decode;
use super::error::Error;
use super::parameter::{Parameter, parameters};
use super::statement;
use crate::proto::v1;
use crate::router::{Lease, Residue};

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
    /// Longer statements are logged, without their values.
    pub slow_threshold: Duration,
}

/// Its result.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    pub columns: Vec<v1::Column>,
    pub rows: Vec<v1::Row>,
    /// Rows returned or changed.
    pub row_count: u64,
}

/// Runs the statement and gives the connection back.
pub async fn execute(mut lease: Lease, input: Execute<'_>) -> Result<Output, Error> {
    let started = Instant::now();
    let (residue, rows_max) =
        match statement::residue(input.sql).and_then(|residue| Ok((residue, rows_max(input.rows_max)?))) {
            Ok(checked) => checked,
            Err(error) => {
                lease.release(Residue::Nothing);
                return Err(error);
            }
        };
    let mut result = attempt(&mut lease, &input, residue, rows_max).await;
    if let Err(failure) = &result
        && failure.is_stale_statement()
    {
        // The tables changed under a statement that this session had prepared. Nothing ran yet.
        lease.statements_forget();
        result = attempt(&mut lease, &input, residue, rows_max).await;
    }
    let elapsed = started.elapsed();
    if elapsed >= input.slow_threshold {
        let (tenant, statement) = (lease.code(), statement::without_values(input.sql));
        tracing::info!(%tenant, milliseconds = elapsed.as_millis(), statement, "slow statement");
    }
    match result {
        Ok(output) => {
            lease.release(residue);
            Ok(output)
        }
        Err(Failure { error, session: Session::Idle }) => {
            lease.release(residue);
            Err(error)
        }
        Err(Failure { error, session: Session::Unknown }) => {
            drop(lease);
            Err(error)
        }
    }
}

fn rows_max(requested: i32) -> Result<usize, Error> {
    match usize::try_from(requested) {
        Ok(0) => Ok(ROWS_DEFAULT),
        Ok(rows) if rows <= ROWS_MAX => Ok(rows),
        Ok(_) | Err(_) => Err(Error::RowsMax { requested }),
    }
}

/// Whether a failure left the session without a statement and outside a transaction.
enum Session {
    Idle,
    Unknown,
}

struct Failure {
    error: Error,
    session: Session,
}

impl Failure {
    fn idle(error: impl Into<Error>) -> Self {
        let error = error.into();
        let session = if matches!(error, Error::Connection(_)) { Session::Unknown } else { Session::Idle };
        Self { error, session }
    }

    fn unknown(error: impl Into<Error>) -> Self {
        Self { error: error.into(), session: Session::Unknown }
    }

    /// A statement prepared earlier no longer fits the tables, or a tenant's function has dropped it.
    fn is_stale_statement(&self) -> bool {
        let Error::Sql(error) = &self.error else { return false };
        let replanned = error.sqlstate == "0A000" && error.message.contains("cached plan must not change result type");
        let dropped = error.sqlstate == "26000" && error.message.starts_with("prepared statement \"s");
        (replanned || dropped) && matches!(self.session, Session::Idle)
    }
}

async fn attempt(lease: &mut Lease, input: &Execute<'_>, residue: Residue, rows_max: usize) -> Result<Output, Failure> {
    let statement = lease.prepare(input.sql).await.map_err(Failure::idle)?;
    let columns = columns(&statement).map_err(Failure::idle)?;
    let parameters = parameters(statement.params(), input.parameters).map_err(Failure::idle)?;
    let result = if residue == Residue::Nothing {
        reading(lease, &statement, parameters, rows_max).await
    } else {
        in_transaction(lease, &statement, &parameters, rows_max).await
    };
    result.map(|(rows, row_count)| Output { columns, rows, row_count })
}

async fn reading(
    lease: &Lease,
    statement: &Statement,
    parameters: Vec<Parameter>,
    rows_max: usize,
) -> Result<(Vec<v1::Row>, u64), Failure> {
    let stream = lease.query_raw(statement, parameters).await.map_err(Failure::idle)?;
    collect(stream, statement, rows_max).await.map_err(|error| match error {
        Error::Sql(_) => Failure::idle(error),
        // Rows are still on their way.
        other => Failure::unknown(other),
    })
}

async fn in_transaction(
    lease: &mut Lease,
    statement: &Statement,
    parameters: &[Parameter],
    rows_max: usize,
) -> Result<(Vec<v1::Row>, u64), Failure> {
    // One beyond the bound tells a result that fits from one that does not.
    let rows_fetched = i32::try_from(rows_max + 1).unwrap_or(i32::MAX);
    let transaction = lease.transaction().await.map_err(Failure::unknown)?;
    let result = async {
        let values: Vec<&(dyn postgres_types::ToSql + Sync)> =
            parameters.iter().map(|value| value as &(dyn postgres_types::ToSql + Sync)).collect();
        let portal = transaction.bind(statement, &values).await?;
        let stream = transaction.query_portal_raw(&portal, rows_fetched).await?;
        collect(stream, statement, rows_max).await
    }
    .await;
    match result {
        Ok(result) => {
            transaction.commit().await.map_err(Failure::idle)?;
            Ok(result)
        }
        Err(error @ (Error::Sql(_) | Error::TooManyRows { .. } | Error::Malformed { .. })) => {
            transaction.rollback().await.map_err(Failure::unknown)?;
            Err(Failure::idle(error))
        }
        Err(error) => Err(Failure::unknown(error)),
    }
}

fn columns(statement: &Statement) -> Result<Vec<v1::Column>, Error> {
    let column = |column: &tokio_postgres::Column| match decode::unsupported(column.type_()) {
        Some(type_name) => Err(Error::Unsupported { column: column.name().to_owned(), type_name }),
        None => Ok(v1::Column {
            name: column.name().to_owned(),
            type_name: column.type_().name().to_owned(),
            type_oid: column.type_().oid(),
        }),
    };
    statement.columns().iter().map(column).collect()
}

async fn collect(stream: RowStream, statement: &Statement, rows_max: usize) -> Result<(Vec<v1::Row>, u64), Error> {
    let mut stream = pin!(stream);
    let mut rows = Vec::new();
    let mut bytes = 0;
    while let Some(row) = stream.try_next().await? {
        if rows.len() == rows_max {
            return Err(Error::TooManyRows { rows_max });
        }
        rows.push(decoded(&row, statement, &mut bytes)?);
        if bytes > BYTES_MAX {
            return Err(Error::TooManyBytes { bytes_max: BYTES_MAX });
        }
    }
    let returned = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    Ok((rows, stream.rows_affected().unwrap_or(returned)))
}

fn decoded(row: &Row, statement: &Statement, bytes: &mut usize) -> Result<v1::Row, Error> {
    /// What a value takes beside its bytes.
    const VALUE_BYTES: usize = 8;
    let decode = |(index, column): (usize, &tokio_postgres::Column)| {
        let malformed =
            || Error::Malformed { column: column.name().to_owned(), type_name: column.type_().name().to_owned() };
        let Raw(raw) = row.try_get(index)?;
        *bytes += VALUE_BYTES + raw.map_or(0, <[u8]>::len);
        decode::value(column.type_(), raw).map_err(|_undecodable| malformed())
    };
    let values = statement.columns().iter().enumerate().map(decode).collect::<Result<_, Error>>()?;
    Ok(v1::Row { values })
}

/// A value's bytes as the server sent them.
struct Raw<'a>(Option<&'a [u8]>);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(raw)))
    }

    fn from_sql_null(_ty: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_ty: &Type) -> bool {
        true
    }
}
