//! Reads columns into domain types, and says which row is damaged when the domain refuses a value.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::domain::tenant::DatabaseName;

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
