//! What can go wrong with a server, told apart by SQLSTATE, in words. `tokio_postgres` hides the server's message
//! behind "db error"; nothing here does.
//!
//! A message never quotes the server's DETAIL: it holds rows' values.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::error::{DbError, SqlState};

use super::lane::Lane;

/// Causes that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 3D000: there is no such database.
    DatabaseMissing,
    /// 28P01, 28000: wrong password, unknown role, or a role that may not log in.
    Authentication,
    /// 42501: the role may not do that, as entering a database.
    Permission,
    /// 53300 or the daemon's own budget: no connection is left on the server.
    ServerFull,
    /// 53300 by the role's or the database's own limit.
    LimitReached,
    /// 55P03.
    LockTimeout,
    /// 40P01.
    Deadlock,
    /// 40001.
    Serialization,
    /// 57P01, 57P02, 57P03: the session was ended, or the server is going down or coming up. 25P03: it was ended because
    /// its transaction stood still.
    Shutdown,
    /// 57014: cancelled, or the statement took too long.
    Cancelled,
    /// 55006 or, from a connect, 55000: somebody uses the object, or it takes no sessions at the moment.
    InUse,
    /// 53100, 53200: the server's disk is full, or it has no memory left.
    NoRoom,
    /// 42P04, 42710, 42P06, 23505: there is one already. Also one that was made by something else.
    Duplicate,
    /// The server cannot be reached, or the session broke off.
    Unreachable,
    /// Anything else.
    Other,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no connection to the server {server} is free for {lane}: its budget of {connections_max} is used up; try again, or raise servers.{server}.connections_max"
    )]
    BudgetExhausted { server: String, lane: Lane, connections_max: u32 },
    #[error(
        "no connection to the server {server} is opened: this daemon has lost the session there that stands for its share of the budget; try again when it has it back"
    )]
    ShareUncertain { server: String },
    #[error("the server {server} did not open a session in the database {database} in time; try again")]
    ConnectTimeout { server: String, database: String },
    #[error("the server {server} cannot be reached at {address}: {cause}; check that it runs there")]
    Unreachable { server: String, address: String, cause: io::Error },
    #[error("the role {role} gets no session in the database {database} on the server {server}: {}", describe(.cause))]
    Connect { server: String, database: String, role: String, cause: tokio_postgres::Error },
    /// See [`Error::of_server`].
    #[error("the server {server} opens no sessions: {}", anonymous(.cause))]
    ServerRefused { server: String, cause: Arc<Self> },
    #[error("TLS towards the server {server} cannot be set up: {reason}")]
    Tls { server: String, reason: String },
    #[error("{}", describe(.0))]
    Sql(tokio_postgres::Error),
    #[error("the database {database} is not there")]
    DatabaseMissing { database: String },
    #[error(
        "the database {database} still has {count} sessions after {waited:?}, although they were ended; see pg_stat_activity"
    )]
    SessionsRemain { database: String, count: i64, waited: Duration },
    #[error("the server {server} gave no answer within {waited:?}")]
    Silent { server: String, waited: Duration },
    #[error("a statement was not answered within {waited:?}")]
    Unanswered { waited: Duration },
    #[error("{count} sessions of the ended daemon {instance} are still there after {waited:?}; see pg_stat_activity")]
    InstanceRemains { instance: String, count: i64, waited: Duration },
    #[error(
        "the database has no identity row that this login may read: it is another tenant's, or no tenant's, or has lost its identity because somebody changed the schema tenantd in it"
    )]
    IdentityMissing,
    #[error("the role {role} is there already, made by something else; it was left alone")]
    ForeignRole { role: String },
    #[error("the database {database} is there already, and belongs to {owner}; it was left alone")]
    ForeignDatabase { database: String, owner: String },
    #[error("the role {role} cannot prepare this server, because {reason}; log in as a superuser for this once")]
    NotBootstrapper { role: String, reason: &'static str },
    #[error("the server runs PostgreSQL {version}, and {major_min} is the oldest that works")]
    ServerTooOld { version: String, major_min: i32 },
}

impl From<tokio_postgres::Error> for Error {
    fn from(cause: tokio_postgres::Error) -> Self {
        Self::Sql(cause)
    }
}

impl Error {
    /// The server's error, when it is one.
    pub fn as_db_error(&self) -> Option<&DbError> {
        match self {
            Self::Connect { cause, .. } | Self::Sql(cause) => cause.as_db_error(),
            Self::ServerRefused { cause, .. } => cause.as_db_error(),
            _ => None,
        }
    }

    /// The same failure to open a session, told to those who wanted another one: without whose session and role it was.
    pub fn of_server(self: &Arc<Self>) -> Arc<Self> {
        match &**self {
            Self::Connect { server, .. } | Self::ConnectTimeout { server, .. } => {
                Arc::new(Self::ServerRefused { server: server.clone(), cause: Arc::clone(self) })
            }
            _ => Arc::clone(self),
        }
    }

    /// The SQLSTATE, when the server gave one.
    pub fn code(&self) -> Option<&SqlState> {
        self.as_db_error().map(DbError::code)
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Connect { cause, .. } | Self::Sql(cause) => kind(cause),
            Self::ServerRefused { cause, .. } => cause.kind(),
            Self::BudgetExhausted { .. } => Kind::ServerFull,
            Self::ConnectTimeout { .. }
            | Self::Unreachable { .. }
            | Self::Unanswered { .. }
            | Self::ShareUncertain { .. } => Kind::Unreachable,
            Self::DatabaseMissing { .. } => Kind::DatabaseMissing,
            Self::SessionsRemain { .. } | Self::InstanceRemains { .. } => Kind::InUse,
            Self::ForeignRole { .. } | Self::ForeignDatabase { .. } => Kind::Duplicate,
            _ => Kind::Other,
        }
    }

    /// Whether the same call may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        self.kind().is_transient()
    }

    /// Whether the server was asked, and did not answer in time.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Silent { .. })
    }

    /// Whether the server answered, and gave no session: to this role, in this database, or to nobody.
    pub fn refused_session(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::ServerRefused { .. }) && self.as_db_error().is_some()
    }
}

impl Kind {
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::ServerFull
                | Self::LimitReached
                | Self::LockTimeout
                | Self::Deadlock
                | Self::Serialization
                | Self::Shutdown
                | Self::InUse
                | Self::Unreachable
        )
    }
}

/// The cause of a raw client error.
pub fn kind(error: &tokio_postgres::Error) -> Kind {
    let Some(db) = error.as_db_error() else {
        let broken = error.is_closed()
            || std::error::Error::source(error).is_some_and(|source| source.downcast_ref::<io::Error>().is_some());
        return if broken { Kind::Unreachable } else { Kind::Other };
    };
    kind_of(db.code(), db.routine())
}

fn kind_of(code: &SqlState, routine: Option<&str>) -> Kind {
    match code.code() {
        "3D000" => Kind::DatabaseMissing,
        "28P01" | "28000" => Kind::Authentication,
        "42501" => Kind::Permission,
        // The same code for a full server and for a limit of the role or the database: only the routine differs.
        "53300" => match routine {
            Some("InitializeSessionUserId" | "CheckMyDatabase") => Kind::LimitReached,
            _ => Kind::ServerFull,
        },
        "55P03" => Kind::LockTimeout,
        "40P01" => Kind::Deadlock,
        "40001" => Kind::Serialization,
        "57P01" | "57P02" | "57P03" | "25P03" => Kind::Shutdown,
        "57014" => Kind::Cancelled,
        "55006" => Kind::InUse,
        // Many things have this code; from here it says that the database takes no sessions.
        "55000" if routine == Some("CheckMyDatabase") => Kind::InUse,
        "53100" | "53200" => Kind::NoRoom,
        "42P04" | "42710" | "42P06" | "23505" => Kind::Duplicate,
        code if code.starts_with("08") => Kind::Unreachable,
        _ => Kind::Other,
    }
}

/// A raw client error in words: the server's message with SQLSTATE and hint, or the chain of causes.
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
        if let Some(hint) = db.hint() {
            let _infallible = write!(text, "; {hint}");
        }
        return text;
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _infallible = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What is said of a session that was not opened, but for its database and role.
fn anonymous(error: &Error) -> String {
    match error {
        Error::Connect { cause, .. } => describe(cause),
        Error::ConnectTimeout { .. } => "it did not open one in time; try again".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_server_is_told_from_a_role_at_its_limit() {
        let full = |routine| kind_of(&SqlState::TOO_MANY_CONNECTIONS, routine);
        assert_eq!(full(Some("InitProcess")), Kind::ServerFull);
        assert_eq!(full(None), Kind::ServerFull);
        assert_eq!(full(Some("InitializeSessionUserId")), Kind::LimitReached);
        assert_eq!(full(Some("CheckMyDatabase")), Kind::LimitReached);
    }

    #[test]
    fn what_time_heals_is_transient_and_nothing_else() {
        let transient = |code: &str| kind_of(&SqlState::from_code(code), None).is_transient();
        for code in ["53300", "55P03", "40P01", "40001", "57P01", "57P03", "08006"] {
            assert!(transient(code), "{code}");
        }
        for code in ["3D000", "28P01", "42501", "57014", "42601", "23505", "55000", "53100"] {
            assert!(!transient(code), "{code}");
        }
    }
}
