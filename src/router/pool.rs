//! What a tenant's pool makes and keeps: connections of the tenant's own router role, within the server's budget, whose
//! database has been asked whose it is.

use std::num::NonZeroUsize;
use std::sync::Arc;

use deadpool::managed::{Manager, Metrics, Object, Pool, PoolConfig, QueueMode, RecycleError, RecycleResult, Timeouts};
use deadpool_postgres::ClientWrapper;
use lru::LruCache;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_postgres::Statement;

use super::error::Error;
use super::idle::Key;
use super::{Place, Shared};
use crate::config::RoleLogin;
use crate::domain::route::Route;
use crate::domain::tenant::TenantRole;
use crate::postgres::identity::{Identity, identity_read};
use crate::postgres::{self, ConnectRequest, Lane, SessionOptions};

/// Statements that a connection keeps prepared.
const STATEMENTS_MAX: NonZeroUsize = NonZeroUsize::new(100).unwrap();

/// Makes one tenant's connections.
#[derive(Debug)]
pub(super) struct TenantConnections {
    shared: Arc<Shared>,
    place: Place,
    route: Arc<Route>,
    login: OnceCell<RoleLogin>,
}

/// A connection in a pool.
#[derive(Debug)]
pub(super) struct Pooled {
    pub(super) client: ClientWrapper,
    /// Bounded: a caller's statements are endless.
    pub(super) statements: LruCache<String, Statement>,
    /// While it idles.
    pub(super) idle: Option<Key>,
}

pub(super) type TenantPool = Pool<TenantConnections>;
pub(super) type PooledObject = Object<TenantConnections>;

/// An empty pool; connections are made when they are asked for. The newest is used first, so that the others age.
pub(super) fn pool(shared: &Arc<Shared>, place: &Place, route: &Arc<Route>) -> TenantPool {
    const CONNECTIONS_MAX_DEFAULT: u32 = 10;
    let tier = shared.tiers.get(&route.tier);
    let connections_max = tier.map_or(CONNECTIONS_MAX_DEFAULT, |tier| tier.pool_connections_max).max(1);
    let manager = TenantConnections {
        shared: Arc::clone(shared),
        place: place.clone(),
        route: Arc::clone(route),
        login: OnceCell::new(),
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

impl TenantConnections {
    pub(super) fn place(&self) -> &Place {
        &self.place
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
        let config = &self.shared.config;
        let login = self.login().await?;
        let Place { server, idle } = &self.place;
        let wait_until = Instant::now() + config.acquire_timeout;
        let permit =
            idle.permit(server.budget(), self.route.tenant, wait_until).await.map_err(|error| self.failed(error))?;
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
        let (client, sign) = server.connect_raw(Some(permit), &request).await.map_err(|error| self.failed(error))?;
        let client = ClientWrapper::new(client, sign);
        self.identity_check(&client).await?;
        Ok(Pooled { client, statements: LruCache::new(STATEMENTS_MAX), idle: None })
    }

    async fn recycle(&self, pooled: &mut Pooled, _metrics: &Metrics) -> RecycleResult<Error> {
        if let Some(key) = pooled.idle.take() {
            self.place.idle.remove(key);
        }
        if pooled.client.is_closed() {
            return Err(RecycleError::message("the server has ended the connection"));
        }
        Ok(())
    }
}
