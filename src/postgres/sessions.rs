//! A small pool of sessions on one of the daemon's own databases, and transactions on them. Must not know any table.
//!
//! A session that was dropped in the middle of a statement (its future was cancelled) is closed instead of being given
//! to the next caller; a transaction that was not committed is rolled back, however it ended. While somebody waits for a
//! place, sessions that nobody uses are closed, and so are those that come back: several pools share what the tenants
//! leave, and one that was busy for a moment keeps none of the others waiting.

use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult, WeakPool};
use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Notification};

use super::connect::{ConnectRequest, Connection, SessionOptions};
use super::errors;
use super::lane::Lane;
use super::server::Server;
use super::statement::{self, Flags, Run};
use crate::domain::tenant::DatabaseName;

/// How long a caller waits for a session, and a session for its server.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// The daemon's own statements touch single rows; one that takes longer waits for a lock that somebody has left behind.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a transaction may stand still. A daemon that hangs in one holds rows, and with the counter of revisions
/// every change of every other daemon.
const TRANSACTION_IDLE_MAX: Duration = Duration::from_secs(10);
/// The same for a transaction on the daemons' shares.
const SHARE_IDLE_MAX: Duration = Duration::from_secs(5);

/// A session that nobody has used for so long is closed: the budget's reserved part belongs to others as well.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// One that came back in the moment in which somebody began to wait is idle without having heard of it.
const PRESSED_INTERVAL: Duration = Duration::from_millis(50);

/// A cheap handle on the pool.
#[derive(Debug, Clone)]
pub struct Sessions {
    pool: Pool<Opener>,
}

/// Why there is no session, or no commit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no session on the daemon's own database was free within {} s: all are in use; try again", WAIT_MAX.as_secs())]
    Timeout,
    #[error("the daemon's own database: {0}")]
    Connect(#[source] errors::Error),
    #[error("a transaction on the daemon's own database may or may not have been committed: {0}")]
    Commit(#[source] errors::Error),
    #[error("a statement of the transaction had failed, so that it was rolled back instead of committed")]
    Failed,
    #[error("the daemon is going down")]
    Closed,
    #[error("the pool of sessions on the daemon's own database failed: {0}")]
    Pool(String),
}

impl Error {
    /// Whether the same call may succeed later. A commit of unknown outcome may only be repeated by who can tell.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout => true,
            Self::Connect(error) => error.is_transient(),
            Self::Commit(_) | Self::Failed | Self::Closed | Self::Pool(_) => false,
        }
    }

    /// Whether there was no session to begin with, so that nothing was done.
    pub fn is_of_connecting(&self) -> bool {
        matches!(self, Self::Timeout | Self::Connect(_) | Self::Closed | Self::Pool(_))
    }
}

/// Opens sessions as the daemon's role, for the pool.
#[derive(Debug)]
struct Opener {
    server: Server,
    lane: Lane,
    database: DatabaseName,
    name: String,
}

impl Opener {
    async fn open(&self) -> Result<Connection, errors::Error> {
        // A backend whose daemon was killed notices within this time, even while it waits for a lock.
        let client_check = ("client_connection_check_interval", "1000".to_owned());
        let request = ConnectRequest {
            lane: self.lane,
            login: self.server.daemon(),
            database: &self.database,
            application_name: &self.name,
            options: SessionOptions {
                statement_timeout: Some(STATEMENT_TIMEOUT),
                // A daemon that stands still keeps nobody else from going on.
                idle_in_transaction_session_timeout: Some(match self.lane {
                    Lane::Share => SHARE_IDLE_MAX,
                    _ => TRANSACTION_IDLE_MAX,
                }),
                settings: vec![client_check],
                ..SessionOptions::default()
            },
            deadline: Instant::now() + WAIT_MAX,
        };
        self.server.connect(&request).await
    }
}

impl managed::Manager for Opener {
    type Type = Connection;
    type Error = errors::Error;

    async fn create(&self) -> Result<Connection, errors::Error> {
        self.open().await
    }

    async fn recycle(&self, connection: &mut Connection, _metrics: &Metrics) -> RecycleResult<errors::Error> {
        // Sessions come back clean by construction, so no query is spent on checking them.
        if connection.is_closed() { Err(RecycleError::message("the server has closed the session")) } else { Ok(()) }
    }
}

/// Closes what is idle whenever somebody waits for a place that would come free by it.
async fn give_way(server: Server, lane: Lane, pool: WeakPool<Opener>) {
    let budget = server.budget_of(lane);
    let mut pressure = budget.pressure();
    loop {
        tokio::select! {
            () = server.tasks().token().cancelled() => return,
            changed = pressure.changed() => if changed.is_err() { return },
        }
        while budget.is_pressed() {
            // Nothing more is known of it when nobody has the pool any more.
            let Some(pool) = pool.upgrade() else { return };
            let mut wanted = budget.pressing();
            drop(pool.retain(|_session, _metrics| {
                let is_kept = wanted == 0;
                wanted = wanted.saturating_sub(1);
                is_kept
            }));
            sleep(PRESSED_INTERVAL).await;
        }
    }
}

impl Sessions {
    /// At most `sessions_max` sessions, opened when they are needed; `purpose` is part of their name.
    pub fn new(server: &Server, database: &DatabaseName, purpose: &str, sessions_max: usize) -> Result<Self, Error> {
        Self::in_lane(Lane::Catalog, server, database, purpose, sessions_max)
    }

    /// As [`Sessions::new`], within another part of the budget than the catalog's.
    pub fn in_lane(
        lane: Lane,
        server: &Server,
        database: &DatabaseName,
        purpose: &str,
        sessions_max: usize,
    ) -> Result<Self, Error> {
        let name = server.session_name(purpose);
        let opener = Opener { server: server.clone(), lane, database: database.clone(), name };
        let pool = Pool::builder(opener)
            .max_size(sessions_max)
            // The newest first, so that the others can age.
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(WAIT_MAX))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| Error::Pool(error.to_string()))?;
        server.tasks().spawn("idle sessions", give_way(server.clone(), lane, pool.weak()));
        Ok(Self { pool })
    }

    pub async fn session(&self) -> Result<Session, Error> {
        // At most a handful of sessions, so that looking at all of them costs nothing.
        drop(self.pool.retain(|_session, metrics| metrics.last_used() < IDLE_MAX));
        let object = self.pool.get().await.map_err(|error| match error {
            PoolError::Timeout(_) => Error::Timeout,
            PoolError::Backend(source) => Error::Connect(source),
            PoolError::Closed => Error::Closed,
            other => Error::Pool(other.to_string()),
        })?;
        Ok(Session { object: Some(object), flags: Flags::default() })
    }

    /// A transaction of its own session, at READ COMMITTED.
    pub async fn begin(&self) -> Result<Txn, Error> {
        let session = self.session().await?;
        statement::batch(&session, "BEGIN").await.map_err(Error::Connect)?;
        Ok(Txn { session, open: true })
    }

    /// A session outside of the pool, for whoever keeps it: to listen, for example.
    pub async fn dedicated(&self) -> Result<Dedicated, Error> {
        let connection = self.pool.manager().open().await.map_err(Error::Connect)?;
        Ok(Dedicated { connection, flags: Flags::default() })
    }

    /// Closes the pool: sessions in use are closed when they come back.
    pub fn close(&self) {
        self.pool.close();
    }
}

/// One session that is nobody else's.
#[derive(Debug)]
pub struct Dedicated {
    connection: Connection,
    flags: Flags,
}

impl Dedicated {
    /// What `LISTEN` brings, once; see [`Connection::notifications`].
    pub fn notifications(&mut self) -> Option<mpsc::Receiver<Notification>> {
        self.connection.notifications()
    }
}

impl Run for Dedicated {
    fn client(&self) -> &Client {
        &self.connection
    }

    fn flags(&self) -> &Flags {
        &self.flags
    }
}

/// One session, back in the pool when dropped.
#[derive(Debug)]
pub struct Session {
    /// `None` only inside of drop.
    object: Option<Object<Opener>>,
    flags: Flags,
}

impl Run for Session {
    fn client(&self) -> &Client {
        match &self.object {
            Some(object) => object,
            None => unreachable!("only drop takes the session out"),
        }
    }

    fn flags(&self) -> &Flags {
        &self.flags
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let is_wanted = |object: &Object<Opener>| {
            Object::pool(object).is_some_and(|pool| {
                let Opener { server, lane, .. } = pool.manager();
                server.budget_of(*lane).pressing() > 0
            })
        };
        if let Some(object) = self.object.take_if(|object| self.flags.is_busy() || is_wanted(object)) {
            drop(Object::take(object));
        }
    }
}

/// A transaction that owns its session. Dropped without [`Txn::commit`], it is rolled back.
#[derive(Debug)]
pub struct Txn {
    session: Session,
    open: bool,
}

impl Txn {
    /// # Errors
    /// Also when a statement of the transaction has failed: PostgreSQL would answer such a COMMIT with a silent rollback.
    pub async fn commit(mut self) -> Result<(), Error> {
        if self.session.flags.has_failed() {
            return Err(Error::Failed);
        }
        statement::batch(&self.session, "COMMIT").await.map_err(Error::Commit)?;
        self.open = false;
        Ok(())
    }
}

impl Run for Txn {
    fn client(&self) -> &Client {
        self.session.client()
    }

    fn flags(&self) -> &Flags {
        self.session.flags()
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        // The first poll queues the statement ahead of whatever the session's next user sends, and nobody needs the
        // answer. A busy session is closed instead, which rolls back as well.
        if self.open && !self.session.flags.is_busy() {
            let _queued = self.client().batch_execute("ROLLBACK").now_or_never();
        }
    }
}
