//! Rows as the server sends them to rows of the API, bounded in number and bytes.

use std::pin::pin;

use futures_util::TryStreamExt as _;
use postgres_types::{FromSql, Type};
use tokio_postgres::{Client, Column, Row, Statement};

use super::decode::{self, Undecodable};
use super::error::Error;
use super::parameter::Parameter;
use crate::postgres::types;
use crate::proto::v1;

/// How much of a result is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) rows_max: usize,
    pub(super) bytes_max: usize,
}

/// The columns of a statement's result.
///
/// # Errors
/// When one has a type whose values have no form here.
pub(super) fn columns(columns: &[Column]) -> Result<Vec<v1::Column>, Error> {
    let column = |column: &Column| match decode::unsupported(column.type_()) {
        Some(type_name) => Err(Error::Unsupported { column: column.name().to_owned(), type_name }),
        None => Ok(v1::Column {
            name: column.name().to_owned(),
            type_name: column.type_().name().to_owned(),
            type_oid: column.type_().oid(),
        }),
    };
    columns.iter().map(column).collect()
}

/// A result.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) rows: Vec<v1::Row>,
    /// Returned or changed.
    pub(super) count: u64,
    /// Of the values, about.
    pub(super) bytes: usize,
}

/// A statement's result.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    pub columns: Vec<v1::Column>,
    pub rows: Vec<v1::Row>,
    /// Rows returned or changed.
    pub row_count: u64,
}

/// Runs a prepared statement.
pub(super) async fn query(
    client: &Client,
    statement: &Statement,
    parameters: &[Parameter],
    bounds: Bounds,
) -> Result<Fetched, Error> {
    let mut stream = pin!(client.query_raw(statement, parameters).await?);
    let mut gathered = Gathered::new(bounds);
    while let Some(row) = stream.as_mut().try_next().await? {
        gathered.add(&row)?;
    }
    Ok(gathered.end(stream.rows_affected()))
}

/// Runs a statement that is not prepared, with parameters of which only PostgreSQL knows the types. The columns are
/// known only with a row.
pub(super) async fn query_at_once(
    client: &Client,
    sql: &str,
    parameters: &[Parameter],
    bounds: Bounds,
) -> Result<Option<(Option<Vec<v1::Column>>, Fetched)>, Error> {
    let parameters = parameters.iter().map(|parameter| (parameter, Type::UNKNOWN));
    let stream = match types::query_typed(client, sql, parameters).await.map_err(Error::from) {
        // It comes once the statement is parsed and its parameters are read.
        Ok(stream) => stream,
        Err(Error::Sql(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut stream = pin!(stream);
    let (mut known, mut gathered) = (None, Gathered::new(bounds));
    while let Some(row) = stream.as_mut().try_next().await? {
        if known.is_none() {
            types::checked(client, row.columns().iter().map(Column::type_))?;
            known = Some(columns(row.columns())?);
        }
        gathered.add(&row)?;
    }
    Ok(Some((known, gathered.end(stream.rows_affected()))))
}

/// The rows so far.
struct Gathered {
    rows: Vec<v1::Row>,
    bytes: usize,
    bounds: Bounds,
}

impl Gathered {
    fn new(bounds: Bounds) -> Self {
        Self { rows: Vec::new(), bytes: 0, bounds }
    }

    fn add(&mut self, row: &Row) -> Result<(), Error> {
        let Bounds { rows_max, bytes_max } = self.bounds;
        if self.rows.len() == rows_max {
            return Err(Error::TooManyRows { rows_max });
        }
        self.rows.push(decoded(row, &mut self.bytes)?);
        if self.bytes > bytes_max { Err(Error::TooManyBytes { bytes_max }) } else { Ok(()) }
    }

    fn end(self, affected: Option<u64>) -> Fetched {
        let returned = u64::try_from(self.rows.len()).unwrap_or(u64::MAX);
        // SHOW and EXPLAIN return rows and count none.
        Fetched { rows: self.rows, count: affected.unwrap_or_default().max(returned), bytes: self.bytes }
    }
}

/// One row. Adds what it takes to `bytes`.
pub(super) fn decoded(row: &Row, bytes: &mut usize) -> Result<v1::Row, Error> {
    /// What a value takes beside its bytes.
    const VALUE_BYTES: usize = 8;
    let decode = |(index, column): (usize, &Column)| {
        let Raw(raw) = row.try_get(index)?;
        let value = decode::value(column.type_(), raw).map_err(|why| undecodable(column, why))?;
        *bytes += VALUE_BYTES + raw.map_or(0, <[u8]>::len).max(decode::text_bytes(&value));
        Ok(value)
    };
    let values = row.columns().iter().enumerate().map(decode).collect::<Result<_, Error>>()?;
    Ok(v1::Row { values })
}

fn undecodable(column: &Column, why: Undecodable) -> Error {
    let (column, type_name) = (column.name().to_owned(), column.type_().name().to_owned());
    match why {
        Undecodable::Malformed(_) => Error::Malformed { column, type_name },
        Undecodable::Long => Error::TooManyBytes { bytes_max: decode::TEXT_BYTES_MAX },
        Undecodable::Changed => Error::TypeChanged { column, type_name },
        // Only a row that says by itself what is in it has one.
        Undecodable::Type(inner) => {
            Error::Unsupported { column, type_name: format!("{type_name} with a field of type {inner}") }
        }
    }
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
