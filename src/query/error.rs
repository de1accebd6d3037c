//! Why a statement gave no result.

use std::time::Duration;

use tokio_postgres::error::{DbError, ErrorPosition};

use crate::domain::tenant::TenantCode;
use crate::postgres::types::Unprepared;
use crate::{catalog, postgres, router};

/// What no statement begins with, and a function may run.
const PREPARED_BY_SQL: &str = "PREPARE in a function";

/// What went wrong, and whose it is to mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the statement is empty")]
    Empty,
    #[error("there are several statements in one text, and nothing was run; send each one by itself")]
    Several,
    #[error("{word} is not taken here: {reason}")]
    Refused { word: &'static str, reason: &'static str },
    #[error(
        "{word} is not taken here: the daemon's own databases are read only, by SELECT, WITH, VALUES, TABLE, SHOW and EXPLAIN"
    )]
    NotReading { word: String },
    #[error("the statement has a NUL character, which PostgreSQL's texts cannot have")]
    Nul,
    #[error("a statement has at most {max} parameters ($1, $2 …)")]
    ParametersMax { max: usize },
    #[error("the statement has {wanted} parameters ($1, $2 …), and {given} values were given")]
    ParameterCount { wanted: usize, given: usize },
    #[error("${number} cannot be given as {wanted}: {reason}")]
    Parameter { number: usize, wanted: String, reason: &'static str },
    #[error(
        "the types of the statement's parameters or columns are too deep within each other, or too many; cast them to text in the statement"
    )]
    TypesMax,
    #[error("max_rows is {requested}; 0 to 10,000 are taken (0 means 1,000)")]
    RowsMax { requested: i32 },
    #[error("batch_rows is {requested}; 0 to 10,000 are taken (0 means 1,000)")]
    BatchRows { requested: i32 },
    #[error("a request of the transaction has failed; roll it back, to a savepoint or as a whole")]
    TransactionFailed,
    #[error("the transaction has no savepoint {savepoint}, or no longer")]
    SavepointUnknown { savepoint: i32 },
    #[error("a transaction has at most {max} savepoints at the same moment; release some")]
    SavepointsMax { max: usize },
    #[error("the transaction has begun already, and was rolled back; a stream has one")]
    BegunAlready,
    #[error("the first request begins the transaction, and every one has an action; nothing was changed")]
    NoAction,
    #[error("the caller was silent for {idle_max:?}, and the transaction was rolled back")]
    CallerSilent { idle_max: Duration },
    /// Seen by nobody.
    #[error("the caller has gone")]
    CallerGone,
    #[error("column {column:?} has type {type_name}, which has no form here; cast it to text in the statement")]
    Unsupported { column: String, type_name: String },
    #[error(
        "the type {type_name} of column {column:?} was altered since it was read, and nothing was changed; run the statement again"
    )]
    TypeChanged { column: String, type_name: String },
    #[error(
        "the statement's tables or types were altered since it was prepared, and the transaction has to be rolled back; run it again"
    )]
    Stale,
    #[error(
        "the statement turned out to write after its first rows were sent, and nothing of what it wrote has stayed; call again, and it is run as one that writes"
    )]
    WroteLate,
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
    #[error(
        "a function or a procedure has changed client_encoding, and the session was ended: texts travel in UTF-8 in both directions; a transaction was rolled back, a statement by itself may or may not have taken effect; take the change out of that code, or use convert_to and convert_from for single values"
    )]
    EncodingChanged,
    #[error(
        "the result could not be taken, and the rest of its statement not be cancelled, so that the transaction was rolled back: {0}"
    )]
    NotCancelled(#[source] Box<postgres::Error>),
    #[error(
        "no session for this target was free in time: at most {max} of {whose} use it at the same moment; try again"
    )]
    TargetBusy { max: usize, whose: &'static str },
    #[error("the tenant {tenant} is on the server {server}, and its login is unknown on the shared database's")]
    SharedElsewhere { tenant: TenantCode, server: String },
    #[error(transparent)]
    Router(Box<router::Error>),
    #[error(transparent)]
    Open(Box<postgres::Error>),
    #[error(transparent)]
    Catalog(Box<catalog::Error>),
    /// In a database that is not in UTF-8, or after a change of how texts are sent, which is a tenant's to make.
    #[error(
        "the server sent a value of column {column:?} that its type {type_name} does not allow: texts are in UTF-8; cast it to bytea in the statement, or mend it"
    )]
    Malformed { column: String, type_name: String },
}

impl Error {
    /// Whether the same call may succeed a little later, and how long to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            // Serialization failures and deadlocks: the transaction was rolled back, and another took its place.
            Self::Sql(error) if matches!(error.sqlstate.as_str(), "40001" | "40P01") => Some(Duration::from_millis(50)),
            // On a connection that reads the type anew, and as a statement that writes.
            Self::TypeChanged { .. } | Self::Stale | Self::WroteLate => Some(Duration::from_millis(50)),
            _other => None,
        }
    }

    /// The result was given up in its middle.
    pub(super) fn leaves_rows(&self) -> bool {
        matches!(
            self,
            Self::TooManyRows { .. }
                | Self::TooManyBytes { .. }
                | Self::Unsupported { .. }
                | Self::TypeChanged { .. }
                | Self::Malformed { .. }
        ) || self.ends_session()
    }

    /// The session is not to be used again, wherever in a statement it was found out.
    pub(super) fn ends_session(&self) -> bool {
        matches!(
            self,
            Self::Connection(_)
                | Self::EncodingChanged
                | Self::NotCancelled(_)
                | Self::TypesMax
                | Self::Refused { word: PREPARED_BY_SQL, .. }
        )
    }

    /// A plain read left statements behind that were prepared by SQL.
    pub(super) fn prepared_by_sql() -> Self {
        let reason =
            "statements are prepared by the daemon, whose names for them are not a function's; nothing was changed";
        Self::Refused { word: PREPARED_BY_SQL, reason }
    }

    /// PostgreSQL refused to change something in a transaction that only reads.
    pub(super) fn is_read_only(&self) -> bool {
        const READ_ONLY_SQL_TRANSACTION: &str = "25006";
        matches!(self, Self::Sql(error) if error.sqlstate == READ_ONLY_SQL_TRANSACTION)
    }

    /// Somebody has cancelled the statement, or its time was up.
    pub(super) fn is_cancelled(&self) -> bool {
        const QUERY_CANCELED: &str = "57014";
        matches!(self, Self::Sql(error) if error.sqlstate == QUERY_CANCELED)
    }

    /// A statement prepared earlier no longer fits the tables, or a tenant's function has dropped it. Nothing ran.
    pub(super) fn is_stale_statement(&self) -> bool {
        let Self::Sql(error) = self else { return false };
        match (error.sqlstate.as_str(), error.routine.as_deref()) {
            // Its result would have other columns.
            ("0A000", Some("RevalidateCachedQuery")) => true,
            ("26000", Some("FetchPreparedStatement")) => names_prepared(&error.message),
            _other => false,
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
    /// The function of PostgreSQL's source that refused: the same in every language of its messages (`lc_messages`).
    pub(super) routine: Option<String>,
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
            routine: owned(error.routine()),
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) if is_several(refusal) => Self::Several,
            Some(refusal) => Self::Sql(Box::new(SqlError::new(refusal))),
            None => Self::Connection(error),
        }
    }
}

impl From<Unprepared> for Error {
    fn from(error: Unprepared) -> Self {
        match error {
            Unprepared::Driver(error) => error.into(),
            Unprepared::TypesMax => Self::TypesMax,
        }
    }
}

impl From<router::Error> for Error {
    fn from(error: router::Error) -> Self {
        Self::Router(Box::new(error))
    }
}

impl From<postgres::Error> for Error {
    fn from(error: postgres::Error) -> Self {
        Self::Open(Box::new(error))
    }
}

impl From<catalog::Error> for Error {
    fn from(error: catalog::Error) -> Self {
        Self::Catalog(Box::new(error))
    }
}

/// A text that is prepared has several statements.
fn is_several(refusal: &DbError) -> bool {
    refusal.code().code() == "42601" && refusal.routine() == Some("exec_parse_message")
}

/// Whether the message names a statement as the driver does: `s`, and a number. The quotes are its language's.
fn names_prepared(message: &str) -> bool {
    let mut words = message.split(|c: char| !c.is_alphanumeric());
    words.any(|word| word.strip_prefix('s').is_some_and(|number| number.parse::<u64>().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_statements_are_known_in_every_language() {
        for message in ["prepared statement \"s7\" does not exist", "vorbereitete Anweisung »s12« existiert nicht"] {
            assert!(names_prepared(message), "{message}");
        }
        assert!(!names_prepared("prepared statement \"sums\" does not exist"));
    }
}
