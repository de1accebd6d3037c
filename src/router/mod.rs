//! Tenants' connections: resolves a tenant to its route, keeps a pool per tenant that is in use, under one budget per
//! server, and guards each tenant's gate. Who gets a connection and who gives one up is decided in [`seats`], where the
//! policy is written down; [`connector`] makes connections, [`checkout`] waits for them.
//!
//! Knows nothing of SQL that callers run, and holds no SQL of the catalog's. Always holds: a connection is given out
//! only after its database's identity row named the tenant; a lease that was not given back in order is never given
//! out again; the server never sees more sessions than the budget, because the permit is the session's.

mod breaker;
mod checkout;
mod clean;
mod connector;
pub mod credentials;
mod drain;
mod error;
mod feed;
mod gate;
mod holder;
mod lease;
mod leases;
mod long;
mod overview;
mod party;
mod place;
mod pool;
mod prepared;
mod queue;
mod rate;
mod reaper;
mod resolve;
mod routes;
mod seats;
mod slot;
mod slots;
mod stats;
mod table;
pub mod url;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OnceCell};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

pub use error::{Cause, Error, TimeoutCause};
pub use holder::Holder;
pub use lease::{Lease, Residue};
pub use long::{Crowded, Long, LongBounds, LongGate, LongPass};
pub use overview::PoolView;
pub use routes::Fresh;
pub use stats::TenantStats;
pub use watch::{Mark, RouteEvent, RouteWatch};

use crate::catalog::Catalog;
use crate::config::{Limits, Live};
use crate::domain::route::{Gate, Route};
use crate::domain::tenant::{Naming, TenantId};
use crate::postgres::Server;
use crate::secrets::Envelope;
use crate::shutdown::Tasks;
use place::Place;
use routes::Routes;
use slot::Ticket;
use slots::{Refused, Slots};
use stats::Accounts;

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
    servers: BTreeMap<String, Arc<Place>>,
    accounts: Accounts,
    catalog: Catalog,
    catalog_id: OnceCell<Uuid>,
    envelope: Arc<Envelope>,
    kept: credentials::Kept,
    tasks: Tasks,
}

impl Shared {
    fn limits(&self) -> Arc<Limits> {
        self.live.current()
    }

    fn place(&self, route: &Route) -> Result<&Arc<Place>, Error> {
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
        let servers: BTreeMap<_, _> =
            servers.into_iter().map(|(name, server)| (name, Arc::new(Place::new(server)))).collect();
        for place in servers.values() {
            let keep = |name, run: fn(Arc<Place>, Tasks) -> BoxFuture<'static, ()>| {
                let (place, own) = (Arc::clone(place), tasks.clone());
                tasks.keep(name, move || run(Arc::clone(&place), own.clone()));
            };
            keep("router spare", |place, tasks| Box::pin(reaper::spare(place, tasks)));
            keep("router budget", |place, tasks| Box::pin(reaper::resize(place, tasks)));
            for _ in 0..place.server.config().connects_parallel_max.max(1) {
                keep("router connector", |place, tasks| Box::pin(connector::run(place, tasks)));
            }
        }
        let shared = Shared {
            live,
            naming,
            servers,
            accounts: Accounts::default(),
            catalog,
            catalog_id: OnceCell::new(),
            envelope: envelope.into(),
            kept: credentials::Kept::default(),
            tasks: tasks.clone(),
        };
        let inner = Arc::new(Inner {
            routes: Routes::new(shared.live.clone()),
            shared: Arc::new(shared),
            slots: Slots::default(),
            gates: Notify::new(),
        });
        let (reaped, fed) = (Arc::clone(&inner), Arc::clone(&inner));
        tasks.keep("router reaper", move || reaper::run(Arc::clone(&reaped)));
        tasks.keep("catalog feed", move || feed::run(Arc::clone(&fed)));
        Self(inner)
    }

    /// A connection to the tenant's database, until `deadline` and never longer than `acquire_timeout` after the gate
    /// was open. Whether the caller may reach the tenant was decided by [`Router::resolve`].
    pub async fn acquire(&self, tenant: TenantId, deadline: Instant) -> Result<Lease, Error> {
        self.acquire_as(&Holder::default(), tenant, deadline).await
    }

    /// As [`Router::acquire`], for somebody whom the log names when the lease is held for long.
    pub async fn acquire_as(&self, holder: &Holder, tenant: TenantId, deadline: Instant) -> Result<Lease, Error> {
        self.lease(holder, tenant, None, deadline, false).await
    }

    /// As [`Router::acquire_as`], in the database at the end of a route that was located for this call.
    pub async fn acquire_at(&self, holder: &Holder, located: &Fresh, deadline: Instant) -> Result<Lease, Error> {
        self.lease(holder, located.route.tenant, Some(located), deadline, false).await
    }

    /// As [`Router::acquire_at`], for as long as the caller likes: of these a tenant has at most half of a server's
    /// places, and all tenants together three quarters.
    pub async fn acquire_long_at(&self, holder: &Holder, located: &Fresh, deadline: Instant) -> Result<Lease, Error> {
        self.lease(holder, located.route.tenant, Some(located), deadline, true).await
    }

    /// A connection that idles, if the route's tenant has one and its gate is open.
    pub async fn acquire_idle(&self, holder: &Holder, located: &Fresh) -> Option<Lease> {
        if !matches!(gate::check(&located.route), Ok(Gate::Open)) {
            return None;
        }
        let inner = &self.0;
        let ticket = inner.slots.ticket(&inner.shared, &inner.routes, located).ok()?;
        let taken = ticket.slot().checkout_idle(holder).await?;
        Some(Lease::new(taken, ticket, None))
    }

    async fn lease(
        &self,
        holder: &Holder,
        tenant: TenantId,
        located: Option<&Fresh>,
        deadline: Instant,
        is_long: bool,
    ) -> Result<Lease, Error> {
        let inner = &self.0;
        let (mut was_mismatched, mut was_stale) = (false, false);
        // One for all pools that are closed on the way, from when the gate was open.
        let mut until = None;
        let mut located = located.filter(|fresh| matches!(gate::check(&fresh.route), Ok(Gate::Open)));
        loop {
            let fresh = match located.take() {
                Some(fresh) => fresh.clone(),
                // Rare, and large: not part of each call's future.
                None => Box::pin(self.pass_gate(tenant, deadline, &mut until)).await?,
            };
            let told = inner.gates.notified();
            let ticket = match inner.slots.ticket(&inner.shared, &inner.routes, &fresh) {
                Ok(ticket) => ticket,
                // Somebody forgot the route since it was read, or closes the pool: look again.
                Err(Refused::Stale) => {
                    // Read anew it is as old: the catalog is one from before the pool was made.
                    if was_stale {
                        inner.slots.evict(tenant);
                    }
                    was_stale = true;
                    inner.routes.forget(tenant);
                    continue;
                }
                Err(Refused::Forgotten) => continue,
                Err(Refused::Draining) => {
                    Box::pin(self.wait_at_gate(&fresh.route, deadline, told)).await?;
                    until = None;
                    continue;
                }
                Err(Refused::Server(error)) => return Err(error),
            };
            let limits = inner.shared.limits();
            let until = *until.get_or_insert_with(|| deadline.min(Instant::now() + limits.router.acquire_timeout));
            match self.connection(ticket, holder, until, &limits, is_long).await {
                Err(Error::PoolClosed) => {}
                // The database was replaced since the route was read, or it is not the tenant's.
                Err(Error::IdentityMismatch { .. }) if !was_mismatched => {
                    was_mismatched = true;
                    inner.routes.forget(tenant);
                }
                // Another daemon's operation has locked the login, after the gate was passed here: what it says counts.
                Err(error) if error.is_login_refused() && Box::pin(self.is_shut(tenant, &error, deadline)).await => {
                    // As in `pass_gate`.
                    inner.shared.accounts.breaker_reset(tenant);
                }
                other => return other,
            }
        }
    }

    /// Whether the tenant's gate was shut before its login refused somebody. Who was there first reads the route anew;
    /// those who come while it is known go by what that has brought.
    async fn is_shut(&self, tenant: TenantId, refusal: &Error, deadline: Instant) -> bool {
        if !matches!(refusal, Error::Blocked { .. }) {
            self.0.routes.forget(tenant);
        }
        let fresh = self.route(tenant, deadline).await;
        fresh.is_ok_and(|fresh| !matches!(gate::check(&fresh.route), Ok(Gate::Open)))
    }

    /// Waits for a connection of the pool.
    async fn connection(
        &self,
        ticket: Ticket,
        holder: &Holder,
        deadline: Instant,
        limits: &Limits,
        is_long: bool,
    ) -> Result<Lease, Error> {
        // Rare, and large: not part of each call's future.
        let pass = if is_long { Some(Box::pin(ticket.slot().pass_long(limits, deadline)).await?) } else { None };
        let taken = ticket.slot().checkout(holder, deadline).await?;
        Ok(Lease::new(taken, ticket, pass))
    }

    /// The tenant's route once it may be passed. Waits at a paused gate, and then the time for a connection begins anew.
    async fn pass_gate(
        &self,
        tenant: TenantId,
        deadline: Instant,
        connect_until: &mut Option<Instant>,
    ) -> Result<Fresh, Error> {
        let begun = Instant::now();
        let until = deadline.min(begun + self.0.shared.limits().router.pause_wait_max);
        loop {
            // From before the look, so that an opening after it is not missed.
            let told = self.0.gates.notified();
            let fresh = self.route(tenant, deadline).await?;
            match gate::check(&fresh.route)? {
                Gate::Open => return Ok(fresh),
                Gate::Paused { .. } | Gate::Closed { .. } => self.wait_at_gate(&fresh.route, until, told).await?,
            }
            // What failed at logins that were locked says nothing of those that are open again.
            self.0.shared.accounts.breaker_reset(tenant);
            *connect_until = None;
        }
    }

    /// Waits until a gate may have opened.
    async fn wait_at_gate(&self, route: &Route, until: Instant, told: Notified<'_>) -> Result<(), Error> {
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
        let _told = timeout_at(look_again, told).await;
        Ok(())
    }

    /// Why nobody gets a connection to the tenant at this moment, if nobody does.
    pub async fn out_of_reach(&self, tenant: TenantId) -> Option<Error> {
        /// What is asked is for a message only.
        const ANSWER_MAX: Duration = Duration::from_secs(1);
        let (now, told) = (Instant::now(), self.0.gates.notified());
        let fresh = self.route(tenant, now + ANSWER_MAX).await.ok()?;
        match gate::check(&fresh.route) {
            Ok(Gate::Open) => None,
            Ok(Gate::Paused { .. } | Gate::Closed { .. }) => self.wait_at_gate(&fresh.route, now, told).await.err(),
            Err(error) => Some(error),
        }
    }

    async fn route(&self, tenant: TenantId, deadline: Instant) -> Result<Fresh, Error> {
        timeout_at(deadline, self.0.routes.of_tenant(&self.0.shared.catalog, tenant))
            .await
            .unwrap_or_else(|_elapsed| Err(Error::CatalogSlow))
    }

    /// Makes every later call read the tenant's route from the catalog again. To be called after each change of it.
    pub fn route_forget(&self, tenant: TenantId) {
        self.0.routes.forget(tenant);
        self.0.shared.accounts.breaker_reset(tenant);
        self.0.gates.notify_waiters();
    }

    /// Lets waiting callers look at the gate again, which is open in the catalog by now.
    pub fn reopen(&self, tenant: TenantId) {
        self.route_forget(tenant);
    }

    /// What happened to a tenant's callers since the daemon began.
    pub fn stats(&self, tenant: TenantId) -> TenantStats {
        self.0.shared.accounts.stats(tenant)
    }

    /// How many tenants have a pool, and how many connections those hold.
    pub fn pool_count(&self) -> (usize, usize) {
        self.0.slots.count()
    }
}
