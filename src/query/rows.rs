//! Rows as the server sends them to rows of the API, bounded in number and bytes.

use std::pin::Pin;

use futures_util::TryStreamExt as _;
use postgres_types::{FromSql, Type};
use tokio_postgres::{Row, RowStream, Statement};

use super::decode;
use super::error::Error;
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
pub(super) fn columns(statement: &Statement) -> Result<Vec<v1::Column>, Error> {
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

/// A result.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) rows: Vec<v1::Row>,
    /// Returned or changed.
    pub(super) count: u64,
    /// Of the values, about.
    pub(super) bytes: usize,
}

/// Every row.
pub(super) async fn collect(
    mut stream: Pin<&mut RowStream>,
    statement: &Statement,
    bounds: Bounds,
) -> Result<Fetched, Error> {
    let mut rows = Vec::new();
    let mut bytes = 0;
    while let Some(row) = stream.try_next().await? {
        if rows.len() == bounds.rows_max {
            return Err(Error::TooManyRows { rows_max: bounds.rows_max });
        }
        rows.push(decoded(&row, statement, &mut bytes)?);
        if bytes > bounds.bytes_max {
            return Err(Error::TooManyBytes { bytes_max: bounds.bytes_max });
        }
    }
    let returned = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    Ok(Fetched { rows, count: stream.rows_affected().unwrap_or(returned), bytes })
}

/// One row. Adds what it takes to `bytes`.
pub(super) fn decoded(row: &Row, statement: &Statement, bytes: &mut usize) -> Result<v1::Row, Error> {
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
