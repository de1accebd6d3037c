//! What a tenant's pool makes and keeps: connections of the tenant's own router role, within the server's budget, whose
//! database has been asked whose it is.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, Object, Pool, PoolConfig, QueueMode, RecycleError, RecycleResult, Timeouts};
use deadpool_postgres::ClientWrapper;
use lru::LruCache;
use tokio::sync::{Notify, OnceCell, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::idle::Key;
use super::{Place, Shared};
use crate::config::RoleLogin;
use crate::domain::route::Route;
use crate::domain::tenant::TenantRole;
use crate::postgres::identity::{Identity, identity_read};
use crate::postgres::{self, ConnectRequest, Lane, Permit, SessionOptions};

/// Statements that a connection keeps prepared.
const STATEMENTS_MAX: NonZeroUsize = NonZeroUsize::new(100).unwrap();

/// Makes one tenant's connections.
#[derive(Debug)]
pub(super) struct TenantConnections {
    shared: Arc<Shared>,
    place: Place,
    route: Arc<Route>,
    login: OnceCell<RoleLogin>,
    /// Connections that idle in the pool.
    idle_count: AtomicUsize,
    /// Callers who would take one that is given back.
    waiting: AtomicUsize,
    returned: Notify,
    /// Whose turn it is to make a connection.
    turn: Semaphore,
    /// What the next connection is made with.
    permit: Mutex<Option<Permit>>,
    closed: CancellationToken,
}

/// A connection in a pool.
#[derive(Debug)]
pub(super) struct Pooled {
    pub(super) client: ClientWrapper,
    /// Bounded: a caller's statements are endless.
    pub(super) statements: LruCache<String, Statement>,
    /// While it idles.
    pub(super) idle: Option<Key>,
    /// Since when it goes from caller to caller although another tenant wants its place.
    handed_on_since: Option<Instant>,
}

pub(super) type TenantPool = Pool<TenantConnections>;
pub(super) type PooledObject = Object<TenantConnections>;

/// An empty pool; connections are made when they are asked for. The newest is used first, so that the others age.
pub(super) fn pool(shared: &Arc<Shared>, place: &Place, route: &Arc<Route>) -> TenantPool {
    const CONNECTIONS_MAX_DEFAULT: u32 = 10;
    let limits = shared.limits();
    let tier = limits.tiers.get(&route.tier);
    let connections_max = tier.map_or(CONNECTIONS_MAX_DEFAULT, |tier| tier.pool_connections_max).max(1);
    let manager = TenantConnections {
        shared: Arc::clone(shared),
        place: place.clone(),
        route: Arc::clone(route),
        login: OnceCell::new(),
        idle_count: AtomicUsize::new(0),
        waiting: AtomicUsize::new(0),
        returned: Notify::new(),
        turn: Semaphore::new(1),
        permit: Mutex::new(None),
        closed: CancellationToken::new(),
    };
    let mut config = PoolConfig::new(connections_max as usize);
    config.queue_mode = QueueMode::Lifo;
    config.timeouts = Timeouts::default();
    match Pool::builder(manager).config(config).build() {
        Ok(pool) => pool,
        // The one error is about time-outs, of which there are none.
        Err(error) => unreachable!("{error}"),
    }
}

/// How long a tenant's callers hand a connection on to each other while another tenant waits for the budget: several
/// times what a new connection costs.
const HAND_ON_MAX: Duration = Duration::from_millis(50);

/// One caller who waits for a connection.
pub(super) struct Waiting<'a>(&'a TenantConnections);

impl Waiting<'_> {
    /// Resolves when a connection was given back.
    pub(super) async fn returned(&self) {
        self.0.returned.notified().await;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to make the tenant's next connection.
pub(super) struct Turn<'a> {
    makers: &'a TenantConnections,
    _turn: SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // The pool had a connection after all.
        drop(self.makers.permit().take());
    }
}

impl TenantConnections {
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn idle_count(&self) -> usize {
        self.idle_count.load(Ordering::Relaxed)
    }

    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// Nobody gets a connection any more.
    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Waits until no other caller makes a connection, and then for the budget.
    pub(super) async fn turn(&self, deadline: Instant) -> Result<Turn<'_>, Error> {
        let turn = self.turn.acquire().await.map_err(|_closed| Error::PoolClosed)?;
        let permit = self.budget_permit(deadline).await?;
        *self.permit() = Some(permit);
        Ok(Turn { makers: self, _turn: turn })
    }

    /// Whether a connection that comes back makes room for another tenant's.
    pub(super) fn gives_way(&self, pooled: &mut Pooled) -> bool {
        let idle = &self.place.idle;
        if self.waiting.load(Ordering::Relaxed) > 0 && idle.has_wishes() {
            let since = *pooled.handed_on_since.get_or_insert_with(Instant::now);
            return since.elapsed() > HAND_ON_MAX && idle.is_wanted();
        }
        pooled.handed_on_since = None;
        idle.is_wanted()
    }

    /// The connection is about to idle in the pool.
    pub(super) fn idles(&self) {
        self.idle_count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn idles_no_more(&self) {
        self.idle_count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wakes one who waits, if a connection idles.
    pub(super) fn wake(&self) {
        if self.idle_count() > 0 && self.waiting.load(Ordering::Relaxed) > 0 {
            self.returned.notify_one();
        }
    }

    fn permit(&self) -> std::sync::MutexGuard<'_, Option<Permit>> {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn budget_permit(&self, deadline: Instant) -> Result<Permit, Error> {
        let Place { server, idle } = &self.place;
        let permit = idle.permit(server.budget(), self.route.tenant, deadline).await;
        permit.map_err(|error| self.failed(error))
    }

    async fn login(&self) -> Result<&RoleLogin, Error> {
        self.login.get_or_try_init(|| self.shared.route_login(&self.route, TenantRole::Router)).await
    }

    fn failed(&self, source: postgres::Error) -> Error {
        Error::Connect { tenant: self.route.code.clone(), server: self.route.server.clone(), source: source.into() }
    }

    /// Refuses a database that is not this tenant's.
    async fn identity_check(&self, client: &tokio_postgres::Client) -> Result<(), Error> {
        let route = &self.route;
        let wanted =
            Identity { tenant: route.tenant, catalog: self.shared.catalog_id().await?, generation: route.generation };
        let found = match identity_read(client).await {
            Ok(found) if found == wanted => return Ok(()),
            Ok(found) if found.tenant == wanted.tenant && found.catalog == wanted.catalog => {
                format!("its generation is {}, and the catalog's is {}", found.generation, wanted.generation)
            }
            Ok(found) => format!("it is that of the tenant {} of the catalog {}", found.tenant, found.catalog),
            Err(error @ postgres::Error::IdentityMissing) => error.to_string(),
            Err(error) => return Err(self.failed(error)),
        };
        Err(Error::IdentityMismatch { tenant: route.code.clone(), database: route.database.to_string(), found })
    }
}

impl Manager for TenantConnections {
    type Type = Pooled;
    type Error = Error;

    async fn create(&self) -> Result<Pooled, Error> {
        let config = &self.shared.limits().router;
        let login = self.login().await?;
        let given = self.permit().take();
        let permit = match given {
            Some(permit) => permit,
            None => self.budget_permit(Instant::now() + config.acquire_timeout).await?,
        };
        let request = ConnectRequest {
            lane: Lane::Tenant,
            login,
            database: &self.route.database,
            application_name: &format!("{}_{}", self.shared.naming.prefix(), self.route.code),
            options: SessionOptions {
                statement_timeout: Some(config.statement_timeout),
                settings: vec![("TimeZone", "UTC".to_owned())],
                ..SessionOptions::default()
            },
            deadline: Instant::now() + config.connect_timeout,
        };
        let (client, sign) =
            self.place.server.connect_raw(Some(permit), &request).await.map_err(|error| self.failed(error))?;
        let client = ClientWrapper::new(client, sign);
        self.identity_check(&client).await?;
        Ok(Pooled { client, statements: LruCache::new(STATEMENTS_MAX), idle: None, handed_on_since: None })
    }

    async fn recycle(&self, pooled: &mut Pooled, _metrics: &Metrics) -> RecycleResult<Error> {
        if let Some(key) = pooled.idle.take() {
            self.place.idle.remove(key);
            self.idles_no_more();
        }
        if pooled.client.is_closed() {
            return Err(RecycleError::message("the server has ended the connection"));
        }
        Ok(())
    }
}
