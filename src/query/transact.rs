//! One transaction over a stream of requests, each with one answer. Whatever ends it before its commit rolls it back:
//! the end of the requests, a caller that is silent for too long, a reader that has gone.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::Statement;
use uuid::Uuid;

use super::Queries;
use super::error::Error;
use super::execute::{BYTES_MAX, rows_max, user_set};
use super::parameter::parameters;
use super::rows::{Bounds, columns, query};
use super::session::Session;
use super::statement::{only_reads, sets_access_mode};
use crate::domain::tenant::TenantId;
use crate::proto::v1::transact_request::Action;
use crate::proto::v1::transact_response::Outcome;
use crate::proto::v1::{self, TransactRequest, TransactResponse};
use crate::router::Residue;

/// Savepoints that a transaction may have at the same moment.
const SAVEPOINTS_MAX: usize = 1_000;
/// The server ends a transaction that even the daemon has left alone for so much longer than it should.
const SERVER_GRACE: Duration = Duration::from_secs(5);

/// How a transaction begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    pub isolation: v1::IsolationLevel,
    pub read_only: bool,
    /// Seen as `app.current_user_id` in the transaction.
    pub user: Option<Uuid>,
}

impl Begin {
    fn sql(self, idle_max: Duration) -> String {
        let isolation = match self.isolation {
            v1::IsolationLevel::Unspecified | v1::IsolationLevel::ReadCommitted => "READ COMMITTED",
            v1::IsolationLevel::RepeatableRead => "REPEATABLE READ",
            v1::IsolationLevel::Serializable => "SERIALIZABLE",
        };
        let access = if self.read_only { ", READ ONLY" } else { "" };
        let server_max = (idle_max + SERVER_GRACE).as_millis().clamp(1, i32::MAX as u128);
        let user = self.user.map(user_set).unwrap_or_default();
        format!(
            "BEGIN ISOLATION LEVEL {isolation}{access}; \
             SET LOCAL idle_in_transaction_session_timeout = {server_max}; {user}"
        )
    }
}

/// What the requests came to.
enum End {
    /// Committed or rolled back; the session is idle.
    Over,
    /// To be rolled back.
    Left(Result<(), Error>),
    /// The session is not to be used again.
    Broken(Error),
}

/// How a transaction was begun.
struct Begun {
    sql: String,
    /// By its caller's wish.
    is_read_only: bool,
}

/// One transaction, begun.
struct Transaction<'a> {
    queries: &'a Queries,
    session: &'a mut Session,
    residue: Residue,
    begun: Begun,
    /// Something was done in it that would be lost if it began again.
    has_run: bool,
    /// A request failed: only a rollback helps.
    failed: bool,
    /// Committed or rolled back.
    over: bool,
    savepoints: Vec<i32>,
    savepoint_next: i32,
}

impl Queries {
    /// Runs one transaction and gives the session back. `explain` says in the API's words why a request failed.
    ///
    /// # Errors
    /// What ends the stream; a request that fails is answered instead.
    pub async fn transact<E: Send>(
        &self,
        mut session: Session,
        begin: Begin,
        mut requests: impl Stream<Item = Result<TransactRequest, E>> + Unpin + Send,
        answers: &mpsc::Sender<Result<TransactResponse, E>>,
        explain: fn(Error) -> v1::StatementError,
    ) -> Result<(), Error> {
        let idle_max = self.0.live.current().query.transaction_idle_max;
        let begun = Begun { is_read_only: begin.read_only, sql: begin.sql(idle_max) };
        session.client().batch_execute(&begun.sql).await?;
        let mut transaction = Transaction {
            queries: self,
            session: &mut session,
            residue: Residue::Nothing,
            begun,
            has_run: false,
            failed: false,
            over: false,
            savepoints: Vec::new(),
            savepoint_next: 1,
        };
        let end = transaction.run(&mut requests, answers, explain).await;
        let (residue, is_over) = (transaction.residue, transaction.over);
        self.0.statements.ran(session.tenant(), residue);
        let result = match end {
            End::Over => Ok(()),
            End::Left(result) => {
                session.client().batch_execute("ROLLBACK").await?;
                result
            }
            End::Broken(error) => {
                let (tenant, error) = (session.tenant().filter(|_| !is_over), session.told(error));
                drop(session);
                return Err(self.why_broken(tenant, error).await);
            }
        };
        session.release(residue);
        result
    }
}

impl Queries {
    /// What broke the connection of a transaction that was not being committed, if its tenant was taken out of service.
    async fn why_broken(&self, tenant: Option<TenantId>, error: Error) -> Error {
        match tenant {
            Some(tenant) if matches!(error, Error::Connection(_)) => {
                self.0.router.out_of_reach(tenant).await.map_or(error, Error::from)
            }
            _other => error,
        }
    }
}

impl Transaction<'_> {
    async fn run<E: Send>(
        &mut self,
        requests: &mut (impl Stream<Item = Result<TransactRequest, E>> + Unpin + Send),
        answers: &mpsc::Sender<Result<TransactResponse, E>>,
        explain: fn(Error) -> v1::StatementError,
    ) -> End {
        let idle_max = self.queries.0.live.current().query.transaction_idle_max;
        let mut outcome = Outcome::Begun(v1::TransactionBegun {});
        loop {
            let answer = TransactResponse { outcome: Some(outcome) };
            let sent = timeout(idle_max, answers.send(Ok(answer))).await;
            match sent {
                _ if self.over => return End::Over,
                Ok(Ok(())) => {}
                Ok(Err(_gone)) => return End::Left(Ok(())),
                Err(_elapsed) => return End::Left(Err(Error::CallerSilent { idle_max })),
            }
            let request = tokio::select! {
                request = timeout(idle_max, requests.next()) => request,
                () = answers.closed() => return End::Left(Ok(())),
            };
            let action = match request {
                Ok(Some(Ok(request))) => request.action,
                // A caller that broke off, or what it sent is no request.
                Ok(Some(Err(error))) => {
                    let _told = answers.try_send(Err(error));
                    return End::Left(Ok(()));
                }
                // The end without a commit.
                Ok(None) => return End::Left(Ok(())),
                Err(_elapsed) => return End::Left(Err(Error::CallerSilent { idle_max })),
            };
            let Some(action) = action else { return End::Left(Err(Error::NoAction)) };
            if matches!(action, Action::Begin(_)) {
                return End::Left(Err(Error::BegunAlready));
            }
            let answered = tokio::select! {
                answered = self.answer(action) => answered,
                // The statement is cancelled with its session.
                () = answers.closed() => return End::Broken(Error::CallerGone),
            };
            outcome = match answered {
                Ok(outcome) => outcome,
                Err(error) if error.ends_session() => return End::Broken(error),
                Err(error) => {
                    self.failed = true;
                    Outcome::Error(explain(self.session.told(error)))
                }
            };
        }
    }

    async fn answer(&mut self, action: Action) -> Result<Outcome, Error> {
        match action {
            Action::Execute(statement) => {
                if self.failed {
                    return Err(Error::TransactionFailed);
                }
                Ok(Outcome::Result(self.execute(&statement).await?))
            }
            Action::SetSavepoint(_) => self.savepoint_set().await,
            Action::RollbackToSavepoint(to) => {
                self.savepoints_cut(to.savepoint, true)?;
                self.batch(&format!("ROLLBACK TO SAVEPOINT tenantd_{}", to.savepoint)).await?;
                self.failed = false;
                if self.residue == Residue::Anything {
                    self.look_anew();
                }
                Ok(Outcome::SavepointRolledBack(v1::SavepointRolledBack {}))
            }
            Action::ReleaseSavepoint(to) => {
                if self.failed {
                    return Err(Error::TransactionFailed);
                }
                self.savepoints_cut(to.savepoint, false)?;
                self.batch(&format!("RELEASE SAVEPOINT tenantd_{}", to.savepoint)).await?;
                Ok(Outcome::SavepointReleased(v1::SavepointReleased {}))
            }
            Action::Commit(_) => {
                self.over = true;
                if self.failed {
                    self.batch("ROLLBACK").await?;
                    return Err(Error::TransactionFailed);
                }
                self.batch("COMMIT").await?;
                Ok(Outcome::Committed(v1::TransactionCommitted {}))
            }
            Action::Rollback(_) => {
                self.over = true;
                self.batch("ROLLBACK").await?;
                Ok(Outcome::RolledBack(v1::TransactionRolledBack {}))
            }
            Action::Begin(_) => Err(Error::BegunAlready),
        }
    }

    async fn batch(&self, sql: &str) -> Result<(), Error> {
        Ok(self.session.client().batch_execute(sql).await?)
    }

    async fn savepoint_set(&mut self) -> Result<Outcome, Error> {
        if self.failed {
            return Err(Error::TransactionFailed);
        }
        if self.savepoints.len() == SAVEPOINTS_MAX {
            return Err(Error::SavepointsMax { max: SAVEPOINTS_MAX });
        }
        let savepoint = self.savepoint_next;
        self.batch(&format!("SAVEPOINT tenantd_{savepoint}")).await?;
        self.has_run = true;
        self.savepoint_next += 1;
        self.savepoints.push(savepoint);
        Ok(Outcome::SavepointSet(v1::SavepointSet { savepoint }))
    }

    /// Forgets the savepoints after this one, and this one too unless it is to be kept.
    fn savepoints_cut(&mut self, savepoint: i32, keep: bool) -> Result<(), Error> {
        let place = self.savepoints.iter().position(|known| *known == savepoint);
        let place = place.ok_or(Error::SavepointUnknown { savepoint })?;
        self.savepoints.truncate(place + usize::from(keep));
        Ok(())
    }

    async fn execute(&mut self, input: &v1::TransactionStatement) -> Result<v1::ExecuteResponse, Error> {
        let started = std::time::Instant::now();
        let known = self.queries.0.statements.known(&input.sql)?;
        if self.session.tenant().is_none() {
            only_reads(&input.sql)?;
        }
        if self.begun.is_read_only && sets_access_mode(&input.sql) {
            let reason = "the transaction was begun as one that only reads, and stays so";
            return Err(Error::Refused { word: "SET TRANSACTION", reason });
        }
        // What a plain read's names may have done is committed with the rest.
        self.residue = match (self.residue, known.analysis.residue) {
            (Residue::Anything, _) | (_, Residue::Anything) => Residue::Anything,
            _ => Residue::Session,
        };
        let bounds = Bounds { rows_max: rows_max(input.max_rows)?, bytes_max: BYTES_MAX };
        let mut result = self.prepared(input, bounds).await;
        if let Err(error) = &result
            && (error.is_stale_statement() || matches!(error, Error::TypeChanged { .. }))
        {
            self.look_anew();
            result = if self.has_run {
                Err(Error::Stale)
            } else {
                // Nothing is lost, and nobody sees it.
                self.batch("ROLLBACK").await?;
                self.batch(&self.begun.sql).await?;
                self.prepared(input, bounds).await
            };
        }
        self.has_run = true;
        if known.analysis.residue == Residue::Anything {
            // It may have changed what statements are about that were prepared before.
            self.look_anew();
        }
        self.queries.tell_if_slow(self.session, &input.sql, started.elapsed());
        result
    }

    /// Prepares every statement anew from now on, and reads its types anew.
    fn look_anew(&mut self) {
        self.session.statements_forget();
        self.session.client().clear_type_cache();
    }

    async fn prepared(
        &mut self,
        input: &v1::TransactionStatement,
        bounds: Bounds,
    ) -> Result<v1::ExecuteResponse, Error> {
        let statement: Statement = self.session.prepare(&input.sql).await?;
        let columns = columns(statement.columns())?;
        let values = parameters(statement.params(), &input.parameters)?;
        let result = match query(self.session.client(), &statement, &values, bounds).await {
            Err(error) if error.leaves_rows() && !error.ends_session() => {
                self.session.rest_cancel().await?;
                return Err(error);
            }
            result => result?,
        };
        let row_count = i64::try_from(result.count).unwrap_or(i64::MAX);
        Ok(v1::ExecuteResponse { columns, rows: result.rows, row_count })
    }
}
