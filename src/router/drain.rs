//! Empties a tenant's database of sessions, for an operation that holds its gate. Waiting, cancelling and ending each
//! have a bound; the last word is the server's own list of sessions.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::Router;
use super::error::Error;
use crate::domain::route::Gate;
use crate::domain::tenant::TenantId;
use crate::postgres::admin;

/// How long the catalog may take to say where the tenant is.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long cancelled statements may take to end.
const CANCEL_WAIT_MAX: Duration = Duration::from_secs(3);

impl Router {
    /// Gives nobody a connection while it runs, waits up to `wait_max` for leases, cancels their statements, and ends
    /// whatever sessions are left in the tenant's database, until the server has none. The gate is paused or closed in
    /// the catalog by now, and keeps callers out afterwards; direct clients' logins are locked by now.
    pub async fn drain(&self, tenant: TenantId, wait_max: Duration) -> Result<(), Error> {
        let inner = &self.0;
        inner.routes.forget(tenant);
        let draining = inner.slots.drain(tenant);
        let route = self.route(tenant, Instant::now() + ROUTE_TIMEOUT).await?.route;
        let place = inner.shared.place(&route)?;
        let server = &place.server;
        let leases = draining.leases();
        if timeout(wait_max, leases.none()).await.is_err() {
            leases.interrupt(match route.gate {
                Gate::Paused { operation } => Some(operation),
                Gate::Closed { operation } => operation,
                Gate::Open => None,
            });
            let tokens = place.cancel_tokens(tenant);
            let cancels = join_all(tokens.iter().map(|token| async move {
                if let Err(error) = server.cancel_query(token).await {
                    tracing::debug!(%error, "a statement could not be cancelled; its session is ended next");
                }
            }));
            // What is not cancelled by then, and whoever holds a lease longer, loses its session below.
            let _in_time = timeout(CANCEL_WAIT_MAX, async { tokio::join!(cancels, leases.none()) }).await;
        }
        let ended = async {
            let client = server.connect_admin(server.maintenance_database()).await?;
            admin::sessions_end(&client, &route.database).await
        };
        ended.await.map_err(|source| Error::Drain { tenant: route.code.clone(), source: Box::new(source) })?;
        drop(draining);
        inner.gates.notify_waiters();
        Ok(())
    }
}
