//! refinery's engine over one session, in 2 + N messages: the lock and the history in the first, each file in one of
//! its own, and the caller's last word in the last. refinery decides what is pending; how it gets there is decided
//! here.
//!
//! A file finds the session as a new one would be, whatever the file before has left on it: otherwise a tenant that is
//! several files behind would be migrated differently from one that got them one by one.
//!
//! Always holds: the tenant's advisory lock is taken before anything is read, and a file, its history row and, the
//! first time, the history table are one transaction. The lock is polled, never waited for inside the server, because
//! a waiting session holds a snapshot.

use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use refinery_core::Migration;
use refinery_core::traits::r#async::{AsyncMigrate, AsyncQuery, AsyncTransaction};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::{DbError, ErrorPosition};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::error::{Cause, is_lock_conflict};
use super::files_hash::FilesHash;
use super::history::{self, Applied};
use super::statements;
use crate::config::MigratorConfig;
use crate::domain::migration::MigrationFile;

/// How often a file is tried whose locks are not to be had, each time waiting for them twice as long as before. Few
/// and longer attempts, because each one holds up whoever queues behind it.
const ATTEMPTS_MAX: u32 = 3;
const ATTEMPT_PAUSE_FIRST: Duration = Duration::from_millis(250);
const POLL_INTERVAL_FIRST: Duration = Duration::from_millis(25);
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(500);
/// How long the last word after a failure may take, on a session that may be broken.
const ABANDON_MAX: Duration = Duration::from_secs(5);

/// What makes the session as it was at its login, sent ahead of a file in the same message. `DISCARD ALL` would do the
/// same and give the tenant's lock back as well. The role comes back to the one that the database prescribes. It is a
/// transaction of its own: the file's one must be the first to take a snapshot, or its isolation could not be chosen.
const RESET: &str = "BEGIN;\nCLOSE ALL;\nRESET SESSION AUTHORIZATION;\nRESET ALL;\nRESET ROLE;\nDEALLOCATE ALL;\n\
                     UNLISTEN *;\nDISCARD PLANS;\nDISCARD SEQUENCES;\nDISCARD TEMP;\nCOMMIT;\n";

/// A driver's method has failed, and the driver knows why.
#[derive(Debug, thiserror::Error)]
#[error("the session failed")]
pub(super) struct Failed;

/// The session as refinery sees it.
pub(super) struct Driver<'a> {
    client: &'a Client,
    files: &'a [MigrationFile],
    settings: &'a MigratorConfig,
    lock_key: i64,
    locked: bool,
    /// The server has given up the transaction that the session is in; the next message ends it first.
    in_failed_transaction: bool,
    /// A file was sent, and may have left something on the session.
    is_used: bool,
    /// Makes the history table; goes along with the first file when there is none.
    table_create: Option<String>,
    history: Vec<Applied>,
    files_hash: FilesHash,
    /// What the history must have reached.
    version_known: i64,
    version_before: i64,
    version: Option<i64>,
    failure: Option<Cause>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        client: &'a Client,
        files: &'a [MigrationFile],
        settings: &'a MigratorConfig,
        lock_key: i64,
        version_known: i64,
    ) -> Self {
        Self {
            client,
            files,
            settings,
            lock_key,
            locked: false,
            in_failed_transaction: false,
            is_used: false,
            table_create: None,
            history: Vec::new(),
            files_hash: FilesHash::default(),
            version_known,
            version_before: 0,
            version: None,
            failure: None,
        }
    }

    /// The newest applied version, 0 for none; `None` until the history has been read.
    pub(super) fn version(&self) -> Option<i64> {
        self.version
    }

    pub(super) fn version_before(&self) -> i64 {
        self.version_before
    }

    /// Of what is applied now.
    pub(super) fn files_hash(&self) -> String {
        self.files_hash.value()
    }

    pub(super) fn failure_take(&mut self) -> Option<Cause> {
        self.failure.take()
    }

    /// Asks `last` and gives the lock back, in one message. Answers with the first column of `last`'s first row.
    pub(super) async fn finish(&mut self, last: &str) -> Result<Option<String>, Cause> {
        let unlock = if self.locked {
            format!("SELECT pg_catalog.pg_advisory_unlock({})", self.lock_key)
        } else {
            String::new()
        };
        let message = format!("{}{last};\n{unlock}", self.clean());
        let messages = self.client.simple_query(&message).await?;
        self.in_failed_transaction = false;
        self.locked = false;
        Ok(messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten().map(str::to_owned),
            _ => None,
        }))
    }

    /// Gives the lock back after a failure. If even that fails, the session's end gives it back.
    pub(super) async fn abandon(&mut self) {
        if !matches!(timeout(ABANDON_MAX, self.finish("SELECT")).await, Ok(Ok(_))) {
            tracing::debug!("the tenant's migration lock goes with its session");
        }
    }

    fn rollback(&self) -> &'static str {
        if self.in_failed_transaction { "ROLLBACK;\n" } else { "" }
    }

    /// What comes before everything else in a message: the end of a failed transaction, and of what a file has left.
    fn clean(&self) -> String {
        format!("{}{}", self.rollback(), if self.is_used { RESET } else { "" })
    }

    /// Takes the tenant's lock and reads the history, in one message when nobody else has the lock.
    async fn begin(&mut self, table_create: &str) -> Result<(), Cause> {
        let started = Instant::now();
        let mut interval = POLL_INTERVAL_FIRST;
        loop {
            self.lock_and_read().await?;
            if self.locked {
                break;
            }
            let waited = started.elapsed();
            let Some(left) = self.settings.advisory_lock_wait_max.checked_sub(waited).filter(|left| !left.is_zero())
            else {
                return Err(Cause::Locked { waited, pid: self.lock_holder().await });
            };
            sleep(interval.min(left)).await;
            interval = (interval * 2).min(POLL_INTERVAL_MAX);
        }
        self.version_before = self.history.last().map_or(0, |applied| applied.version);
        if self.version_before < self.version_known {
            return Err(Cause::HistoryLost { known: self.version_known, found: self.version_before });
        }
        self.version = Some(self.version_before);
        self.files_hash = history::files_hash(&self.history);
        // An error in this message means that there is no table; every other error has been returned.
        self.table_create = self.in_failed_transaction.then(|| table_create.to_owned());
        Ok(())
    }

    async fn lock_and_read(&mut self) -> Result<(), Cause> {
        // READ COMMITTED, whatever the tenant's default is, so that the history is read as of after the lock.
        let message = format!(
            "{}BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY;\nSELECT pg_catalog.pg_try_advisory_lock({});\n{};\nCOMMIT",
            self.rollback(),
            self.lock_key,
            history::READ,
        );
        self.history.clear();
        let mut answer = pin!(self.client.simple_query_raw(&message).await?);
        loop {
            match answer.try_next().await {
                Ok(Some(SimpleQueryMessage::Row(row))) if row.len() == 1 => self.locked = row.get(0) == Some("t"),
                Ok(Some(SimpleQueryMessage::Row(row))) => self.history.push(Applied::from_row(&row)?),
                Ok(Some(_)) => {}
                Ok(None) => {
                    self.in_failed_transaction = false;
                    return Ok(());
                }
                Err(error) => {
                    self.in_failed_transaction = error.as_db_error().is_some();
                    return if history::is_table_missing(&error) { Ok(()) } else { Err(error.into()) };
                }
            }
        }
    }

    /// The process that has the lock, as far as this session may see.
    async fn lock_holder(&mut self) -> Option<String> {
        let key = self.lock_key.cast_unsigned();
        let ask = format!(
            "SELECT pid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND \
             classid = {} AND objid = {} AND database = \
             (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
            key >> 32,
            key & 0xffff_ffff,
        );
        self.finish(&ask).await.ok().flatten()
    }

    /// Applies the next file together with its history row, trying again while only locks stand in the way.
    async fn apply(&mut self, sql: &str, insert: &str) -> Result<(), Cause> {
        let file = self.files.iter().find(|file| Some(file.version) > self.version);
        let mut lock_timeout = self.settings.lock_timeout;
        let mut pause = ATTEMPT_PAUSE_FIRST;
        let mut attempts = 1;
        loop {
            let head = self.head(lock_timeout);
            let mut completed = 0;
            let message = format!("{head}{sql}\n;\nRESET search_path;\n{insert};\nCOMMIT");
            self.is_used = true;
            let Err(error) = self.send(&message, &mut completed).await else { break };
            self.in_failed_transaction = true;
            if attempts < ATTEMPTS_MAX && is_lock_conflict(&error) {
                // The locks that this file did get are given back before the pause.
                self.client.batch_execute("ROLLBACK").await?;
                self.in_failed_transaction = false;
                sleep(pause + pause.mul_f64(rand::random())).await;
                (attempts, pause, lock_timeout) = (attempts + 1, pause * 4, lock_timeout * 2);
                continue;
            }
            let Some(db) = error.as_db_error() else { return Err(error.into()) };
            return Err(Cause::Statement {
                file: file.map(MigrationFile::file_name).unwrap_or_default(),
                line: line(db, &head, sql, completed),
                sqlstate: db.code().code().to_owned(),
                message: db.hint().map_or_else(|| db.message().to_owned(), |hint| format!("{}; {hint}", db.message())),
                attempts,
                retryable: crate::postgres::errors::kind(&error).is_transient(),
            });
        }
        self.in_failed_transaction = false;
        self.table_create = None;
        if let Some(file) = file {
            self.version = Some(file.version);
            self.files_hash.add_file(file);
        }
        Ok(())
    }

    /// Everything before the file's text.
    fn head(&self, lock_timeout: Duration) -> String {
        format!(
            "{}BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\nSET LOCAL lock_timeout = {};\n\
             SET LOCAL statement_timeout = {};\n{}\n",
            self.clean(),
            milliseconds(lock_timeout),
            milliseconds(self.settings.statement_timeout),
            self.table_create.as_deref().unwrap_or_default(),
        )
    }

    /// Sends one message and counts the statements that the server has completed.
    async fn send(&self, message: &str, completed: &mut usize) -> Result<(), tokio_postgres::Error> {
        let mut answer = pin!(self.client.simple_query_raw(message).await?);
        while let Some(message) = answer.try_next().await? {
            *completed += usize::from(matches!(message, SimpleQueryMessage::CommandComplete(_)));
        }
        Ok(())
    }

    fn note<T>(&mut self, outcome: Result<T, Cause>) -> Result<T, Failed> {
        outcome.map_err(|cause| {
            self.failure = Some(cause);
            Failed
        })
    }
}

/// PostgreSQL takes 32 bits, and 0 would mean for ever.
fn milliseconds(time: Duration) -> u128 {
    time.as_millis().clamp(1, i32::MAX as u128)
}

/// The line of the file that the error belongs to: by the position that the server names, else by the statement that
/// it did not complete.
fn line(error: &DbError, head: &str, sql: &str, completed: usize) -> Option<usize> {
    if let Some(ErrorPosition::Original(position)) = error.position() {
        let position = (*position as usize).checked_sub(head.chars().count())?;
        return (position <= sql.chars().count()).then(|| statements::line_of_character(sql, position));
    }
    let before = statements::split(head).all.len();
    statements::split(sql).all.get(completed.checked_sub(before)?).map(statements::Statement::line)
}

impl AsyncTransaction for Driver<'_> {
    type Error = Failed;

    /// refinery sends one query to make the history table, and two for each file: its text and its history row.
    async fn execute<'q, T: Iterator<Item = &'q str> + Send + 'q>(&'q mut self, queries: T) -> Result<usize, Failed> {
        let queries: Vec<_> = queries.collect();
        let outcome = match *queries.as_slice() {
            [table_create] => self.begin(table_create).await,
            [sql, insert] => self.apply(sql, insert).await,
            _ => Err(Cause::History { reason: "refinery asks for something unforeseen".to_owned() }),
        };
        self.note(outcome.map(|()| queries.len()))
    }
}

impl AsyncQuery<Vec<Migration>> for Driver<'_> {
    /// The history was read together with the lock.
    async fn query(&mut self, _query: &str) -> Result<Vec<Migration>, Failed> {
        Ok(std::mem::take(&mut self.history).into_iter().map(Applied::into_migration).collect())
    }
}

impl AsyncMigrate for Driver<'_> {}
