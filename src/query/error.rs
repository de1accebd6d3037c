//! Why a statement gave no result.

use std::time::Duration;

use tokio_postgres::error::{DbError, ErrorPosition};

/// What went wrong, and whose it is to mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the statement is empty")]
    Empty,
    #[error("{word} is not taken here: {reason}")]
    Refused { word: &'static str, reason: &'static str },
    #[error("the statement has {wanted} parameters ($1, $2 …), and {given} values were given")]
    ParameterCount { wanted: usize, given: usize },
    #[error("${number} cannot be given as {wanted}: {reason}")]
    Parameter { number: usize, wanted: String, reason: &'static str },
    #[error("max_rows is {requested}; 0 to 10,000 are taken (0 means 1,000)")]
    RowsMax { requested: i32 },
    #[error("column {column:?} has type {type_name}, which has no form here; cast it to text in the statement")]
    Unsupported { column: String, type_name: String },
    #[error(
        "the result has more than {rows_max} rows, and nothing was changed; ask for less by LIMIT, or raise max_rows (at most 10,000)"
    )]
    TooManyRows { rows_max: usize },
    #[error("the result has more than {bytes_max} bytes, and nothing was changed; ask for fewer rows or columns")]
    TooManyBytes { bytes_max: usize },
    #[error(transparent)]
    Sql(Box<SqlError>),
    #[error("the connection broke while the statement ran, so that it may or may not have taken effect: {0}")]
    Connection(#[source] tokio_postgres::Error),
    #[error("the server sent a value of column {column:?} that its type {type_name} does not allow")]
    Malformed { column: String, type_name: String },
}

impl Error {
    /// Whether the same call may succeed a little later, and how long to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            // Serialization failures and deadlocks: the transaction was rolled back, and another took its place.
            Self::Sql(error) if matches!(error.sqlstate.as_str(), "40001" | "40P01") => Some(Duration::from_millis(50)),
            _other => None,
        }
    }
}

/// PostgreSQL's refusal, with everything that it says about the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {sqlstate})")]
pub struct SqlError {
    pub sqlstate: String,
    pub message: String,
    /// In characters from the beginning of the statement, counted from 1.
    pub position: Option<u32>,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub constraint: Option<String>,
    pub schema: Option<String>,
    pub table: Option<String>,
    pub column: Option<String>,
}

impl SqlError {
    fn new(error: &DbError) -> Self {
        const ACTIVE_SQL_TRANSACTION: &str = "25001";
        let sqlstate = error.code().code().to_owned();
        let daemons_hint = (sqlstate == ACTIVE_SQL_TRANSACTION).then(|| {
            "Each statement runs in a transaction here; run this one by a migration or with a direct client.".to_owned()
        });
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Self {
            sqlstate,
            message: error.message().to_owned(),
            position: match error.position() {
                Some(ErrorPosition::Original(position)) => Some(*position),
                Some(ErrorPosition::Internal { .. }) | None => None,
            },
            detail: owned(error.detail()),
            hint: owned(error.hint()).or(daemons_hint),
            constraint: owned(error.constraint()),
            schema: owned(error.schema()),
            table: owned(error.table()),
            column: owned(error.column()),
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) => Self::Sql(Box::new(SqlError::new(refusal))),
            None => Self::Connection(error),
        }
    }
}
