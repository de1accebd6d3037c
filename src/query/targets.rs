//! Sessions on the daemon's own databases: the shared one as a tenant's login, which row-level security keeps to the
//! tenant's rows, and the shared and the auth database as the role that dumps are taken by, which reads everything and
//! can do nothing else. One session per statement or transaction, few at the same moment.
//!
//! A tenant's login is let in when it is first needed: the catalog notes whose it is, and then it joins the role that
//! may read. Both go with the login.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

use super::error::Error;
use crate::catalog::Catalog;
use crate::config::{Live, RoleLogin};
use crate::domain::route::Route;
use crate::domain::tenant::{DatabaseName, Naming, RoleName, TenantId, TenantRole};
use crate::postgres::{self, ConnectRequest, Connection, Kind, Lane, Server, SessionOptions, readers};
use crate::router::{Crowded, Long, LongBounds, LongGate, LongPass, Router};

/// Sessions of tenants on the shared database: of all together, and of one.
const TENANTS: LongBounds = LongBounds { own: 1, all: 2 };
const TENANT: Long = Long { weight: 1, own_max: TENANTS.own, queue_max: TENANT_QUEUE_MAX };
/// Callers of one tenant that wait for it.
const TENANT_QUEUE_MAX: usize = 100;
/// Sessions of administrators.
const ADMINISTRATORS_MAX: usize = 2;
/// How long a caller waits for one of them, and then for the server.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Tenants whose login is known to be let in.
const ADMITTED_MAX: usize = 1 << 16;

/// Which of the daemon's own databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    Shared,
    Auth,
}

/// A session on one of the daemon's own databases; it ends when it is given back.
#[derive(Debug)]
pub struct Seat {
    server: Server,
    connection: Connection,
    place: String,
    _held: Held,
}

impl Seat {
    /// For the log.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// As [`crate::router::Lease::cancel`].
    pub(super) async fn cancel(&self) -> Result<(), postgres::Error> {
        self.server.cancel_query(&self.connection.cancel_token()).await
    }

    pub(super) fn client(&self) -> &Client {
        &self.connection
    }

    pub(super) fn client_mut(&mut self) -> &mut Client {
        &mut self.connection
    }
}

/// A place among those who may have one.
#[derive(Debug)]
enum Held {
    Tenant { _pass: LongPass },
    Administrator { _permit: OwnedSemaphorePermit },
}

/// Opens them.
#[derive(Debug)]
pub(super) struct Targets {
    server: Server,
    naming: Naming,
    catalog: Catalog,
    router: Router,
    live: Live,
    tenants: Arc<LongGate>,
    administrators: Arc<Semaphore>,
    admitted: Mutex<HashSet<TenantId>>,
}

impl Targets {
    pub(super) fn new(live: Live, naming: Naming, server: Server, catalog: Catalog, router: Router) -> Self {
        Self {
            server,
            naming,
            catalog,
            router,
            live,
            tenants: LongGate::new(|| TENANTS),
            administrators: Arc::new(Semaphore::new(ADMINISTRATORS_MAX)),
            admitted: Mutex::default(),
        }
    }

    /// The whole database, read only.
    pub(super) async fn whole(&self, which: Whole, deadline: Instant) -> Result<Seat, Error> {
        let database = match which {
            Whole::Shared => self.naming.shared_database(),
            Whole::Auth => self.naming.auth_database(),
        };
        let deadline = deadline.min(Instant::now() + WAIT_MAX);
        let waiting = timeout_at(deadline, Arc::clone(&self.administrators).acquire_owned());
        let Ok(Ok(permit)) = waiting.await else {
            return Err(Error::TargetBusy { max: ADMINISTRATORS_MAX, whose: "administrators" });
        };
        let connection = self.connect(self.server.dump(), &database, deadline).await?;
        Ok(Seat {
            server: self.server.clone(),
            connection,
            place: database.to_string(),
            _held: Held::Administrator { _permit: permit },
        })
    }

    /// The shared database as the tenant's own login.
    pub(super) async fn tenant(&self, route: &Route, deadline: Instant) -> Result<Seat, Error> {
        if route.server != self.server.name() {
            return Err(Error::SharedElsewhere { tenant: route.code.clone(), server: route.server.clone() });
        }
        let deadline = deadline.min(Instant::now() + WAIT_MAX);
        let pass = self.tenants.pass(route.tenant, TENANT, deadline).await.map_err(|crowded| match crowded {
            Crowded::Own { max } => Error::TargetBusy { max, whose: "the tenant's callers" },
            Crowded::Queue { .. } => Error::TargetBusy { max: TENANTS.own, whose: "the tenant's callers" },
            Crowded::All { max } => Error::TargetBusy { max, whose: "all tenants' callers" },
        })?;
        let login = self.router.route_login(route, TenantRole::Router).await?;
        let database = self.naming.shared_database();
        self.admit(route.tenant, &login.role).await?;
        let connected = match self.connect(&login, &database, deadline).await {
            // The login was made anew since.
            Err(Error::Open(error)) if error.kind() == Kind::Permission => {
                self.admitted().remove(&route.tenant);
                self.admit(route.tenant, &login.role).await?;
                self.connect(&login, &database, deadline).await
            }
            other => other,
        };
        Ok(Seat {
            server: self.server.clone(),
            connection: connected?,
            place: route.code.to_string(),
            _held: Held::Tenant { _pass: pass },
        })
    }

    fn admitted(&self) -> std::sync::MutexGuard<'_, HashSet<TenantId>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the login in: first whose it is, then the right to read.
    async fn admit(&self, tenant: TenantId, login: &RoleName) -> Result<(), Error> {
        if self.admitted().contains(&tenant) {
            return Ok(());
        }
        self.catalog.tenant_login_put(tenant, login).await?;
        let client = self.server.connect_admin(self.server.maintenance_database()).await?;
        readers::shared_reader_add(&client, &self.naming.shared_readers(), login).await?;
        let mut admitted = self.admitted();
        if admitted.len() >= ADMITTED_MAX {
            admitted.clear();
        }
        admitted.insert(tenant);
        Ok(())
    }

    async fn connect(
        &self,
        login: &RoleLogin,
        database: &DatabaseName,
        deadline: Instant,
    ) -> Result<Connection, Error> {
        let settings =
            [("default_transaction_read_only", "on"), ("TimeZone", "UTC"), ("lc_monetary", "C"), ("array_nulls", "on")];
        let request = ConnectRequest {
            lane: Lane::Administration,
            login,
            database,
            application_name: &self.server.session_name("query"),
            options: SessionOptions {
                statement_timeout: Some(self.live.current().router.statement_timeout),
                settings: settings.map(|(name, value)| (name, value.to_owned())).into(),
                ..SessionOptions::default()
            },
            deadline,
        };
        Ok(self.server.connect(&request).await?)
    }
}
