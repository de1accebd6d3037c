//! What a tenant's pool keeps, and how a connection is made: as the tenant's own router role, with a pass of the connect
//! gate and a permit of the server's budget, and only in a database that was asked whose it is. Decides nothing: when
//! to connect and for whom is [`super::seats`]'s.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, Object, Pool, PoolConfig, QueueMode, RecycleError, RecycleResult, Timeouts};
use deadpool_postgres::ClientWrapper;
use rand::RngExt as _;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::error::{Error, Failure};
use super::party::{ConnectionId, Share};
use super::prepared::Prepared;
use crate::config::{Limits, RoleLogin};
use crate::domain::route::Route;
use crate::domain::tenant::TenantRole;
use crate::postgres::identity::{Identity, identity_read};
use crate::postgres::{self, ConnectRequest, Encoding, Lane, Pass, Permit, Server, SessionOptions};

/// By how much connections' lifetimes differ, so that those made together do not end together.
const LIFETIME_JITTER: f64 = 0.2;

/// Makes one tenant's connections.
#[derive(Debug)]
pub(super) struct TenantConnections {
    shared: Arc<Shared>,
    server: Server,
    route: Arc<Route>,
    access: tokio::sync::Mutex<Option<Arc<Access>>>,
    /// What the next connection is made with.
    given: Mutex<Option<Given>>,
}

/// How to get in, and what must be found there.
#[derive(Debug)]
struct Access {
    login: RoleLogin,
    identity: Identity,
}

/// The right to make one connection.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) pass: Pass,
    pub(super) permit: Permit,
    pub(super) connection: ConnectionId,
}

/// A connection in a pool.
#[derive(Debug)]
pub(super) struct Pooled {
    pub(super) id: ConnectionId,
    pub(super) client: ClientWrapper,
    pub(super) encoding: Encoding,
    /// Bounded: a caller's statements are endless.
    pub(super) statements: Prepared,
    pub(super) retires_at: Instant,
    pub(super) uses_left: u32,
    /// Whether it came back in order. It is not while it is in a caller's hands, so that one which is dropped there is
    /// never given out again.
    pub(super) is_clean: bool,
    /// Nobody but the daemon itself has used it.
    pub(super) is_new: bool,
    /// It is clean in the sense above, and its session may hold something of its last user.
    pub(super) residue_perhaps: bool,
}

pub(super) type TenantPool = Pool<TenantConnections>;
pub(super) type PooledObject = Object<TenantConnections>;

impl Share {
    /// What the tier says; tiers may lack in the configuration that tenants still have.
    pub(super) fn of(limits: &Limits, tier: &str) -> Self {
        const DEFAULT: Share = Share { connections_max: 10, queue_max: 1_000, weight: 1 };
        limits.tiers.get(tier).map_or(DEFAULT, |tier| Self {
            connections_max: tier.pool_connections_max.max(1) as usize,
            queue_max: tier.queue_max as usize,
            weight: tier.weight,
        })
    }
}

/// An empty pool. The newest connection is used first, so that the others age.
pub(super) fn pool(
    shared: &Arc<Shared>,
    server: &Server,
    route: &Arc<Route>,
    connections_max: usize,
) -> Result<TenantPool, Error> {
    let manager = TenantConnections {
        shared: Arc::clone(shared),
        server: server.clone(),
        route: Arc::clone(route),
        access: tokio::sync::Mutex::default(),
        given: Mutex::default(),
    };
    let mut config = PoolConfig::new(connections_max);
    config.queue_mode = QueueMode::Lifo;
    config.timeouts = Timeouts::default();
    Pool::builder(manager).config(config).build().map_err(|error| Error::Pool(error.to_string()))
}

/// A statement whose daemon was killed ends within these milliseconds, and leaves its place to the next daemon.
const CLIENT_CHECK_INTERVAL: &str = "1000";

impl TenantConnections {
    /// Whether it is known what a connection is made with.
    pub(super) fn is_prepared(&self) -> bool {
        self.access.try_lock().is_ok_and(|access| access.is_some())
    }

    /// Reads what a connection is made with, if that is not known.
    pub(super) async fn prepare(&self) -> Result<(), Error> {
        self.access().await.map(drop)
    }

    async fn access(&self) -> Result<Arc<Access>, Error> {
        let mut access = self.access.lock().await;
        if let Some(known) = &*access {
            return Ok(Arc::clone(known));
        }
        let route = &self.route;
        let identity =
            Identity { tenant: route.tenant, catalog: self.shared.catalog_id().await?, generation: route.generation };
        let login = self.shared.route_login(route, TenantRole::Router).await?;
        Ok(Arc::clone(access.insert(Arc::new(Access { login, identity }))))
    }

    /// The password was refused: another may be in the catalog by now.
    pub(super) async fn access_forget(&self) {
        *self.access.lock().await = None;
        self.shared.login_forget(&self.route, TenantRole::Router);
    }

    /// What the connection is made with that the pool makes next.
    pub(super) fn give(&self, given: Given) {
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = Some(given);
    }

    /// Takes back what no connection was made with.
    pub(super) fn given(&self) -> Option<Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Refuses a database that is not this tenant's, or does not say in time whose it is.
    async fn identity_check(
        &self,
        client: &tokio_postgres::Client,
        wanted: &Identity,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let too_slow = |_elapsed| {
            let (server, database) = (self.server.name().to_owned(), self.route.database.to_string());
            Err(postgres::Error::ConnectTimeout { server, database })
        };
        let found = match timeout_at(deadline, identity_read(client)).await.unwrap_or_else(too_slow) {
            Ok(found) if found == *wanted => return Ok(()),
            Ok(found) if found.tenant == wanted.tenant && found.catalog == wanted.catalog => {
                format!("its generation is {}, and the catalog's is {}", found.generation, wanted.generation)
            }
            Ok(found) => format!("it is that of the tenant {} of the catalog {}", found.tenant, found.catalog),
            Err(error @ postgres::Error::IdentityMissing) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        Err(Failure::Identity { found: found.into() })
    }
}

impl Manager for TenantConnections {
    type Type = Pooled;
    type Error = Failure;

    async fn create(&self) -> Result<Pooled, Failure> {
        // Nobody has asked for a new one: the pool has nothing that idles.
        let Given { pass, permit, connection } = self.given().ok_or(Failure::Closed)?;
        // Callers have prepared it; when it was forgotten since, they come again and hear why it cannot be had.
        let access = self.access().await.map_err(|_told_to_callers| Failure::Closed)?;
        let config = &self.shared.limits().router;
        let request = ConnectRequest {
            lane: Lane::Tenant,
            login: &access.login,
            database: &self.route.database,
            application_name: &self.server.session_name_of_tenant(&format!(
                "{}_{}",
                self.shared.naming.prefix(),
                self.route.code
            )),
            options: SessionOptions {
                statement_timeout: Some(config.statement_timeout),
                // What decides how values are read, whatever the tenant's own settings say.
                settings: vec![
                    ("TimeZone", "UTC".to_owned()),
                    ("lc_monetary", "C".to_owned()),
                    ("array_nulls", "on".to_owned()),
                    ("client_connection_check_interval", CLIENT_CHECK_INTERVAL.to_owned()),
                ],
                ..SessionOptions::default()
            },
            deadline: Instant::now() + config.connect_timeout,
        };
        let (client, sign, encoding) = self.server.connect_raw(Some((pass, permit)), &request).await?;
        let client = ClientWrapper::new(client, sign);
        self.identity_check(&client, &access.identity, request.deadline).await?;
        let lifetime = lifetime(config.connection_lifetime_max, rand::rng().random());
        Ok(Pooled {
            id: connection,
            client,
            encoding,
            statements: Prepared::new(),
            retires_at: Instant::now() + lifetime,
            uses_left: config.connection_uses_max,
            is_clean: true,
            is_new: true,
            residue_perhaps: false,
        })
    }

    async fn recycle(&self, pooled: &mut Pooled, _metrics: &Metrics) -> RecycleResult<Failure> {
        if pooled.is_clean { Ok(()) } else { Err(RecycleError::message("a caller has dropped it")) }
    }
}

/// How long a connection may live, by a draw between 0 and 1.
fn lifetime(max: Duration, draw: f64) -> Duration {
    max.mul_f64(1.0 - LIFETIME_JITTER + 2.0 * LIFETIME_JITTER * draw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CallerLimits, QueryConfig, RouterConfig};
    use crate::domain::host::OwnHosts;
    use crate::domain::tier::{self, Tier, Tiers};

    fn limits(tiers: Tiers) -> Limits {
        let time = Duration::from_secs(1);
        Limits {
            router: RouterConfig {
                acquire_timeout: time,
                connect_timeout: time,
                statement_timeout: time,
                connection_idle_timeout: time,
                pool_idle_timeout: time,
                connection_lifetime_max: time,
                connection_uses_max: 1,
                pools_max: 1,
                pause_wait_max: time,
                route_age_max: time,
                slow_statement_threshold: time,
                lease_warn_after: time,
            },
            query: QueryConfig { transaction_idle_max: time, stream_idle_max: time },
            tiers,
            callers: CallerLimits { calls_per_second_max: 1 },
            own_hosts: OwnHosts::default(),
        }
    }

    #[test]
    fn a_tenant_has_the_share_that_its_tier_says() {
        let mut tiers = tier::defaults();
        let narrow = Tier { pool_connections_max: 0, queue_max: 3, weight: 7, ..tiers["free"].clone() };
        tiers.insert("narrow".to_owned(), narrow);
        let limits = limits(tiers);
        for (tier, connections_max, queue_max, weight) in [
            ("free", 2, 1_000, 1),
            ("standard", 10, 2_000, 2),
            ("premium", 20, 4_000, 4),
            ("enterprise", 40, 8_000, 8),
            // Nobody is left without any.
            ("narrow", 1, 3, 7),
            ("one that was taken out", 10, 1_000, 1),
        ] {
            assert_eq!(Share::of(&limits, tier), Share { connections_max, queue_max, weight }, "{tier}");
        }
    }

    #[test]
    fn connections_that_are_made_together_do_not_end_together() {
        let minutes = |draw| lifetime(Duration::from_mins(100), draw).as_secs_f64() / 60.0;
        for (draw, expected) in [(0.0, 80.0), (0.5, 100.0), (1.0, 120.0)] {
            assert!((minutes(draw) - expected).abs() < 0.01, "{draw}: {}", minutes(draw));
        }
    }
}
