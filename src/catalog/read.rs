//! Reads columns into domain types, and says which row is damaged when the domain refuses a value.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use super::errors::Error;
use crate::domain::tenant::DatabaseName;

/// One row of one table. `key` is the column that names the row in errors.
pub(super) struct Reader<'a> {
    pub(super) table: &'static str,
    pub(super) key: &'static str,
    pub(super) row: &'a Row,
}

impl<'a> Reader<'a> {
    pub(super) fn new(table: &'static str, row: &'a Row) -> Self {
        Self { table, key: "id", row }
    }

    /// A column whose SQL type is all that there is to check.
    pub(super) fn get<T: FromSql<'a>>(&self, column: &'static str) -> Result<T, Error> {
        self.row.try_get(column).map_err(|error| self.corrupt(column, &error))
    }

    /// A text that the domain parses.
    pub(super) fn parse<T>(&self, column: &'static str) -> Result<T, Error>
    where
        T: FromStr,
        T::Err: Display,
    {
        self.get::<&str>(column)?.parse().map_err(|error| self.corrupt(column, &error))
    }

    /// A text that the domain parses, or NULL.
    pub(super) fn parse_option<T>(&self, column: &'static str) -> Result<Option<T>, Error>
    where
        T: FromStr,
        T::Err: Display,
    {
        let text: Option<&str> = self.get(column)?;
        text.map(str::parse).transpose().map_err(|error| self.corrupt(column, &error))
    }

    pub(super) fn database(&self, column: &'static str) -> Result<DatabaseName, Error> {
        DatabaseName::new(self.get::<String>(column)?).map_err(|error| self.corrupt(column, &error))
    }

    /// A JSON document of a known shape.
    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, Error> {
        let value: Value = self.get(column)?;
        serde_json::from_value(value).map_err(|error| self.corrupt(column, &error))
    }

    /// A JSON document of a known shape, or NULL.
    pub(super) fn json_option<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, Error> {
        let value: Option<Value> = self.get(column)?;
        value.map(serde_json::from_value).transpose().map_err(|error| self.corrupt(column, &error))
    }

    pub(super) fn corrupt(&self, column: &'static str, problem: &dyn Display) -> Error {
        let id = self.row.try_get::<_, uuid::Uuid>(self.key).map_or_else(|_| "a row".to_owned(), |id| id.to_string());
        Error::Corrupt { table: self.table, column, id, problem: problem.to_string() }
    }
}
