//! Reads columns into domain types, and says which row is damaged when the domain refuses a value.

use std::error::Error as StdError;
use std::fmt::Display;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde_json::Value;
use time::{OffsetDateTime, PrimitiveDateTime};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type, accepts};

use crate::domain::tenant::DatabaseName;

/// Moments that PostgreSQL has and calendars do not, `infinity` among them, are taken for the last and the first that
/// everybody can write.
const LATEST: OffsetDateTime = PrimitiveDateTime::MAX.assume_utc();
const EARLIEST: OffsetDateTime = match OffsetDateTime::from_unix_timestamp(-62_135_596_800) {
    Ok(moment) => moment,
    Err(_) => OffsetDateTime::UNIX_EPOCH,
};
/// When PostgreSQL's own count of microseconds begins, since 1970.
const EPOCH_MICROSECONDS: i128 = 946_684_800_000_000;

/// A `timestamptz` of any value.
struct Moment(OffsetDateTime);

impl<'a> FromSql<'a> for Moment {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(moment(i64::from_be_bytes(raw.try_into()?))))
    }

    accepts!(TIMESTAMPTZ);
}

/// From microseconds as PostgreSQL counts them, of which the greatest and the least stand for no moment at all.
fn moment(microseconds: i64) -> OffsetDateTime {
    let nanoseconds = (i128::from(microseconds) + EPOCH_MICROSECONDS) * 1_000;
    let beyond = if microseconds > 0 { LATEST } else { EARLIEST };
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap_or(beyond).max(EARLIEST)
}

/// A value that the domain refuses: somebody has changed the database by hand, or a newer daemon has written it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{table}.{column} of {id} is damaged: {problem}")]
pub struct Corrupt {
    pub table: &'static str,
    pub column: &'static str,
    pub id: String,
    pub problem: String,
}

/// One row of one table. `key` is the column that names the row in errors.
#[derive(Debug)]
pub struct Reader<'a> {
    pub table: &'static str,
    pub key: &'static str,
    pub row: &'a Row,
}

impl<'a> Reader<'a> {
    pub fn new(table: &'static str, row: &'a Row) -> Self {
        Self { table, key: "id", row }
    }

    /// A column whose SQL type is all that there is to check.
    pub fn get<T: FromSql<'a>>(&self, column: &'static str) -> Result<T, Corrupt> {
        self.row.try_get(column).map_err(|error| self.corrupt(column, &error))
    }

    /// A moment. What lies beyond the years 1 to 9999, infinity included, is the nearest moment in them.
    pub fn moment(&self, column: &'static str) -> Result<OffsetDateTime, Corrupt> {
        Ok(self.get::<Moment>(column)?.0)
    }

    /// As [`Reader::moment`], or NULL.
    pub fn moment_option(&self, column: &'static str) -> Result<Option<OffsetDateTime>, Corrupt> {
        Ok(self.get::<Option<Moment>>(column)?.map(|moment| moment.0))
    }

    /// Until when something is good; `None` for ever, which NULL means, and infinity, and a year after 9999.
    pub fn expiry(&self, column: &'static str) -> Result<Option<OffsetDateTime>, Corrupt> {
        Ok(self.moment_option(column)?.filter(|at| *at < LATEST))
    }

    /// A text that the domain parses.
    pub fn parse<T>(&self, column: &'static str) -> Result<T, Corrupt>
    where
        T: FromStr,
        T::Err: Display,
    {
        self.get::<&str>(column)?.parse().map_err(|error| self.corrupt(column, &error))
    }

    /// A text that the domain parses, or NULL.
    pub fn parse_option<T>(&self, column: &'static str) -> Result<Option<T>, Corrupt>
    where
        T: FromStr,
        T::Err: Display,
    {
        let text: Option<&str> = self.get(column)?;
        text.map(str::parse).transpose().map_err(|error| self.corrupt(column, &error))
    }

    /// An array of texts that the domain parses.
    pub fn parse_all<T, C>(&self, column: &'static str) -> Result<C, Corrupt>
    where
        T: FromStr,
        T::Err: Display,
        C: FromIterator<T>,
    {
        let texts: Vec<&str> = self.get(column)?;
        texts.into_iter().map(|text| text.parse().map_err(|error| self.corrupt(column, &error))).collect()
    }

    pub fn database(&self, column: &'static str) -> Result<DatabaseName, Corrupt> {
        DatabaseName::new(self.get::<String>(column)?).map_err(|error| self.corrupt(column, &error))
    }

    /// A JSON document of a known shape.
    pub fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, Corrupt> {
        let value: Value = self.get(column)?;
        serde_json::from_value(value).map_err(|error| self.corrupt(column, &error))
    }

    /// A JSON document of a known shape, or NULL.
    pub fn json_option<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, Corrupt> {
        let value: Option<Value> = self.get(column)?;
        value.map(serde_json::from_value).transpose().map_err(|error| self.corrupt(column, &error))
    }

    pub fn corrupt(&self, column: &'static str, problem: &dyn Display) -> Corrupt {
        let id = self.row.try_get::<_, uuid::Uuid>(self.key).map_or_else(|_| "a row".to_owned(), |id| id.to_string());
        Corrupt { table: self.table, column, id, problem: problem.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_of_postgresql_is_one_of_the_calendars() {
        let second = 1_000_000;
        assert_eq!(moment(0).unix_timestamp(), 946_684_800);
        assert_eq!(moment(-946_684_800 * second), OffsetDateTime::UNIX_EPOCH);
        let last = (253_402_300_799 - 946_684_800) * second;
        assert_eq!(moment(last).unix_timestamp(), 253_402_300_799);
        assert!(moment(last) < LATEST);
        for beyond in [last + second, i64::MAX - 1, i64::MAX] {
            assert_eq!(moment(beyond), LATEST, "{beyond}");
        }
        let first = (-62_135_596_800 - 946_684_800) * second;
        assert_eq!(moment(first), EARLIEST);
        for before in [first - second, i64::MIN + 1, i64::MIN] {
            assert_eq!(moment(before), EARLIEST, "{before}");
        }
        assert_eq!((LATEST.year(), EARLIEST.year()), (9999, 1));
    }
}
