//! Why a tenant was not migrated: told apart, in words, with the file and the line, and with the version that the
//! tenant stands at now. Never quotes the server's DETAIL, which holds rows' values.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::postgres::errors::{Kind, describe, kind};

/// A tenant was not brought to the directory's newest version. The file that failed left no trace.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct TenantError {
    pub cause: Cause,
    /// What the tenant stands at now: files before the failing one stay applied. `None` when it was not learnt.
    pub version: Option<i64>,
    /// What it stood at before; `None` when it was not learnt.
    pub from: Option<i64>,
    /// Of the files up to `version`.
    pub files_hash: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("{}{}: {message} (SQLSTATE {sqlstate}){}", .file, at(*.line), tried(*.attempts))]
    Statement {
        file: String,
        /// In the file, from 1; `None` when the server refused at COMMIT.
        line: Option<usize>,
        sqlstate: String,
        /// The server's message, with its hint.
        message: String,
        attempts: u32,
        retryable: bool,
    },
    #[error(
        "another migration of this tenant is running{}; waited {waited:?} for it; run again when it has ended", holder(.pid.as_deref())
    )]
    Locked { waited: Duration, pid: Option<String> },
    #[error(
        "{file} differs from what was applied to this tenant as V{version}__{applied_name}; bring the file back as it was, and write the change as a new migration"
    )]
    Divergent { file: String, version: i64, applied_name: String },
    #[error("V{version}__{name} was applied to this tenant, and the directory has no such file; bring the file back")]
    Missing { version: i64, name: String },
    #[error(
        "{file} was not applied to this tenant, which is at version {current} already; give it a version above all others"
    )]
    OutOfOrder { file: String, current: i64 },
    #[error(
        "the history table public.refinery_schema_history {}, and version {known} was applied to this tenant before; nothing was run, because files would run a second time; put the lost rows back, or restore the tenant from a backup", ends_at(*.found)
    )]
    HistoryLost { known: i64, found: i64 },
    #[error("the history table public.refinery_schema_history cannot be used: {reason}")]
    History { reason: String },
    #[error("the session with the tenant's database failed: {}", describe(.0))]
    Session(#[source] tokio_postgres::Error),
}

impl TenantError {
    pub fn sqlstate(&self) -> Option<&str> {
        match &self.cause {
            Cause::Statement { sqlstate, .. } => Some(sqlstate),
            Cause::Session(error) => error.code().map(SqlState::code),
            _ => None,
        }
    }

    /// The file that failed.
    pub fn file(&self) -> Option<&str> {
        match &self.cause {
            Cause::Statement { file, .. } | Cause::Divergent { file, .. } | Cause::OutOfOrder { file, .. } => {
                Some(file)
            }
            _ => None,
        }
    }

    /// Whether the same call may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        match &self.cause {
            Cause::Statement { retryable, .. } => *retryable,
            Cause::Locked { .. } => true,
            Cause::Session(error) => kind(error).is_transient(),
            _ => false,
        }
    }
}

impl TenantError {
    /// Nothing is known of the tenant.
    pub(super) fn unknown(cause: Cause) -> Self {
        Self { cause, version: None, from: None, files_hash: None }
    }
}

impl From<tokio_postgres::Error> for Cause {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Session(error)
    }
}

/// Whether a lock was not to be had, which a later attempt may cure.
pub(super) fn is_lock_conflict(error: &tokio_postgres::Error) -> bool {
    matches!(kind(error), Kind::LockTimeout | Kind::Deadlock)
}

fn at(line: Option<usize>) -> String {
    line.map_or_else(|| " at its end".to_owned(), |line| format!(":{line}"))
}

fn ends_at(found: i64) -> String {
    if found == 0 { "is empty or gone (version 0)".to_owned() } else { format!("ends at version {found}") }
}

fn tried(attempts: u32) -> String {
    if attempts > 1 { format!(", tried {attempts} times") } else { String::new() }
}

fn holder(pid: Option<&str>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (the server's process {pid})"))
}
