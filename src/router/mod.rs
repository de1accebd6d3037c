//! Tenants' connections: resolves a tenant to its route, keeps a pool per tenant that is in use, under one budget per
//! server, and guards each tenant's gate.
//!
//! Knows nothing of SQL that callers run, and holds no SQL of the catalog's. Always holds: a connection is given out
//! only after its database's identity row named the tenant; a lease that was not given back in order is never given
//! out again; the server never sees more sessions than the budget, because the permit is the session's.

mod checkout;
pub mod credentials;
mod drain;
mod error;
mod feed;
mod gate;
mod idle;
mod lease;
mod pool;
mod reaper;
mod resolve;
mod routes;
mod slots;
mod table;
pub mod url;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Notify, OnceCell};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

pub use error::{Error, TimeoutCause};
pub use lease::{Lease, Residue};
pub use routes::Fresh;
pub use watch::{Mark, RouteEvent, RouteWatch};

use crate::catalog::Catalog;
use crate::config::{Limits, Live};
use crate::domain::route::{Gate, Route};
use crate::domain::tenant::{Naming, TenantId};
use crate::postgres::{self, Lane, Server};
use crate::secrets::Envelope;
use crate::shutdown::Tasks;
use idle::Idle;
use routes::Routes;
use slots::{Refused, Slots, Ticket};

/// A cheap handle.
#[derive(Debug, Clone)]
pub struct Router(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    routes: Routes,
    slots: Slots,
    /// Told whenever a gate may have opened.
    gates: Notify,
}

/// What pools and leases need of the router; it does not hold them.
#[derive(Debug)]
struct Shared {
    live: Live,
    naming: Naming,
    servers: BTreeMap<String, Place>,
    catalog: Catalog,
    catalog_id: OnceCell<Uuid>,
    envelope: Arc<Envelope>,
    kept: credentials::Kept,
    tasks: Tasks,
}

/// A server with the connections that idle on it.
#[derive(Debug, Clone)]
struct Place {
    server: Server,
    idle: Arc<Idle>,
}

impl Shared {
    fn limits(&self) -> Arc<Limits> {
        self.live.current()
    }

    fn place(&self, route: &Route) -> Result<&Place, Error> {
        self.servers
            .get(&route.server)
            .ok_or_else(|| Error::ServerUnknown { tenant: route.code.clone(), server: route.server.clone() })
    }
}

impl Router {
    /// Opens nothing; begins to close what idles.
    pub fn new(
        live: Live,
        naming: Naming,
        servers: BTreeMap<String, Server>,
        catalog: Catalog,
        envelope: impl Into<Arc<Envelope>>,
        tasks: &Tasks,
    ) -> Self {
        let place = |server| Place { server, idle: Arc::default() };
        let servers = servers.into_iter().map(|(name, server)| (name, place(server))).collect();
        let envelope = envelope.into();
        let shared = Shared {
            live,
            naming,
            servers,
            catalog,
            catalog_id: OnceCell::new(),
            envelope,
            kept: credentials::Kept::default(),
            tasks: tasks.clone(),
        };
        let inner = Arc::new(Inner {
            routes: Routes::new(shared.live.clone()),
            shared: Arc::new(shared),
            slots: Slots::default(),
            gates: Notify::new(),
        });
        tasks.spawn("router reaper", reaper::run(Arc::clone(&inner)));
        tasks.spawn("catalog feed", feed::run(Arc::clone(&inner)));
        Self(inner)
    }

    /// A connection to the tenant's database, until `deadline` and never longer than `acquire_timeout` after the gate
    /// was open. Whether the caller may reach the tenant was decided by [`Router::resolve`].
    pub async fn acquire(&self, tenant: TenantId, deadline: Instant) -> Result<Lease, Error> {
        let inner = &self.0;
        let mut was_mismatched = false;
        loop {
            let fresh = self.pass_gate(tenant, deadline).await?;
            let ticket = match inner.slots.ticket(&inner.shared, &inner.routes, &fresh) {
                Ok(ticket) => ticket,
                // Somebody forgot the route since it was read, or closes the pool: look again.
                Err(Refused::Stale) => {
                    inner.routes.forget(tenant);
                    continue;
                }
                Err(Refused::Forgotten) => continue,
                Err(Refused::Draining) => {
                    self.wait_at_gate(&fresh.route, deadline).await?;
                    continue;
                }
                Err(Refused::Server(error)) => return Err(error),
            };
            match self.connection(ticket, deadline).await {
                Err(Error::PoolClosed) => {}
                // The database was replaced since the route was read, or it is not the tenant's.
                Err(Error::IdentityMismatch { .. }) if !was_mismatched => {
                    was_mismatched = true;
                    inner.routes.forget(tenant);
                }
                other => return other,
            }
        }
    }

    /// Waits for a connection of the pool.
    async fn connection(&self, ticket: Ticket, deadline: Instant) -> Result<Lease, Error> {
        let begun = Instant::now();
        let deadline = deadline.min(begun + self.0.shared.limits().router.acquire_timeout);
        let slot = ticket.slot();
        let timeout = |cause| {
            let (tenant, server) = (slot.route().code.clone(), slot.route().server.clone());
            Err(Error::Timeout { tenant, server, waited: begun.elapsed(), cause })
        };
        match timeout_at(deadline, slot.checkout(deadline)).await {
            Ok(Ok(object)) => Ok(Lease::new(object, ticket)),
            Ok(Err(Error::Connect { source, .. })) if matches!(*source, postgres::Error::BudgetExhausted { .. }) => {
                timeout(TimeoutCause::Budget)
            }
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => {
                let status = slot.pool().status();
                if status.size >= status.max_size && slot.pool().manager().idle_count() == 0 {
                    timeout(TimeoutCause::Pool { connections_max: status.max_size })
                } else if slot.place().server.budget().try_acquire(Lane::Tenant).is_none() {
                    timeout(TimeoutCause::Budget)
                } else {
                    timeout(TimeoutCause::Connect)
                }
            }
        }
    }

    /// The tenant's route once it may be passed. Waits at a paused gate.
    async fn pass_gate(&self, tenant: TenantId, deadline: Instant) -> Result<Fresh, Error> {
        let begun = Instant::now();
        let until = deadline.min(begun + self.0.shared.limits().router.pause_wait_max);
        loop {
            let fresh = self.route(tenant, deadline).await?;
            match gate::check(&fresh.route)? {
                Gate::Open => return Ok(fresh),
                Gate::Paused { .. } | Gate::Closed { .. } => self.wait_at_gate(&fresh.route, until).await?,
            }
        }
    }

    /// Waits until a gate may have opened.
    async fn wait_at_gate(&self, route: &Route, until: Instant) -> Result<(), Error> {
        if Instant::now() >= until {
            let operation = match route.gate {
                Gate::Paused { operation } => Some(operation),
                Gate::Open | Gate::Closed { .. } => None,
            };
            let retry_after = self.0.shared.limits().router.route_age_max;
            return Err(Error::Paused { tenant: route.code.clone(), operation, retry_after });
        }
        // Another daemon may open the gate, which only the catalog tells.
        let look_again = until.min(Instant::now() + self.0.shared.limits().router.route_age_max);
        // Whether it was told or the time was up, the route says how things stand.
        let _told = timeout_at(look_again, self.0.gates.notified()).await;
        Ok(())
    }

    async fn route(&self, tenant: TenantId, deadline: Instant) -> Result<Fresh, Error> {
        timeout_at(deadline, self.0.routes.of_tenant(&self.0.shared.catalog, tenant))
            .await
            .unwrap_or_else(|_elapsed| Err(Error::CatalogSlow))
    }

    /// Makes every later call read the tenant's route from the catalog again. To be called after each change of it.
    pub fn route_forget(&self, tenant: TenantId) {
        self.0.routes.forget(tenant);
        self.0.gates.notify_waiters();
    }

    /// Lets waiting callers look at the gate again, which is open in the catalog by now.
    pub fn reopen(&self, tenant: TenantId) {
        self.route_forget(tenant);
    }

    /// How many tenants have a pool, and how many connections those hold.
    pub fn pool_count(&self) -> (usize, usize) {
        self.0.slots.count()
    }
}
