//! The tenants that have a pool. A slot is one tenant's pool for one epoch of its route; whoever uses it holds a ticket,
//! and a slot is closed only by whoever has taken it out of the table under the lock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::error::Error;
use super::leases::Leases;
use super::party::Share;
use super::place::Slot;
use super::pool::pool;
use super::routes::{Fresh, Routes};
use super::slot::Ticket;
use crate::config::Limits;
use crate::domain::route::Route;
use crate::domain::tenant::TenantId;

/// Why there is no ticket.
#[derive(Debug)]
pub(super) enum Refused {
    /// The route is older than the slot.
    Stale,
    /// The route was read before somebody said to forget it.
    Forgotten,
    /// The tenant is being drained.
    Draining,
    Server(Error),
}

/// All slots, the least recently used last.
#[derive(Debug)]
pub(super) struct Slots {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    slots: LruCache<TenantId, Used>,
    /// Leases of tenants whose slot was replaced or drained while they were held.
    orphans: HashMap<TenantId, Arc<Leases>>,
    /// By how many at the same moment.
    draining: HashMap<TenantId, usize>,
}

#[derive(Debug)]
struct Used {
    slot: Arc<Slot>,
    at: Instant,
    /// Those that the slot's share was taken from.
    limits: Arc<Limits>,
}

impl Used {
    /// Takes the slot's share from these limits, if it was taken from others.
    fn follow(&mut self, limits: &Arc<Limits>) {
        if !Arc::ptr_eq(&self.limits, limits) {
            self.slot.share_set(Share::of(limits, &self.slot.route.tier));
            self.limits = Arc::clone(limits);
        }
    }
}

impl Default for Slots {
    fn default() -> Self {
        let table = Table { slots: LruCache::unbounded(), orphans: HashMap::new(), draining: HashMap::new() };
        Self { table: Mutex::new(table) }
    }
}

impl Slots {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket for the tenant's slot, which is made when there is none or it is of an older epoch.
    pub(super) fn ticket(&self, shared: &Arc<Shared>, routes: &Routes, fresh: &Fresh) -> Result<Ticket, Refused> {
        let route = &fresh.route;
        let mut closing = Vec::new();
        let ticket = {
            let mut table = self.table();
            // Under the table's lock: a drain that begins after this sees the ticket.
            if !routes.is_valid(fresh) {
                return Err(Refused::Forgotten);
            }
            table.ticket(shared, route, &mut closing)
        };
        // Outside the lock: closing a pool drops its connections.
        for slot in closing {
            slot.close();
        }
        ticket
    }

    /// From now on nobody gets a ticket, until the guard is dropped. The pool is closed, and its leases are returned.
    pub(super) fn drain(&self, tenant: TenantId) -> Draining<'_> {
        let (slot, leases) = {
            let mut table = self.table();
            *table.draining.entry(tenant).or_default() += 1;
            let slot = table.slots.pop(&tenant);
            let leases = slot.as_ref().map(|used| Arc::clone(&used.slot.leases));
            let leases = leases.or_else(|| table.orphans.get(&tenant).cloned()).unwrap_or_default();
            table.orphans.insert(tenant, Arc::clone(&leases));
            (slot, leases)
        };
        if let Some(used) = slot {
            used.slot.close();
        }
        Draining { slots: self, tenant, leases }
    }

    /// Closes the tenant's pool. Answers whether there was one.
    pub(super) fn evict(&self, tenant: TenantId) -> bool {
        let evicted = {
            let mut table = self.table();
            let evicted = table.slots.pop(&tenant);
            if let Some(used) = &evicted {
                // A drain must still see who holds a connection.
                table.orphans.insert(tenant, Arc::clone(&used.slot.leases));
            }
            evicted
        };
        let Some(used) = evicted else { return false };
        used.slot.close();
        true
    }

    /// What has changed in the limits counts for those who wait, too.
    pub(super) fn limits_follow(&self, limits: &Arc<Limits>) {
        for (_, used) in &mut self.table().slots {
            used.follow(limits);
        }
    }

    /// Closes every pool, as [`Slots::evict`] does.
    pub(super) fn evict_all(&self) {
        let tenants: Vec<TenantId> = self.table().slots.iter().map(|(tenant, _)| *tenant).collect();
        for tenant in tenants {
            self.evict(tenant);
        }
    }

    /// Closes the pools that nobody has used since before `then`.
    pub(super) fn close_before(&self, then: Instant) {
        let mut closing = Vec::new();
        {
            let mut table = self.table();
            while let Some((tenant, used)) = table.slots.peek_lru()
                && used.at < then
            {
                let tenant = *tenant;
                if used.slot.leases.is_empty() {
                    closing.extend(table.slots.pop(&tenant));
                } else if let Some(used) = table.slots.get_mut(&tenant) {
                    // In use all the time since.
                    used.at = Instant::now();
                }
            }
            table.orphans.retain(|_, leases| !leases.is_empty());
        }
        for used in closing {
            used.slot.close();
        }
    }

    /// Closes every pool.
    pub(super) fn close_all(&self) {
        let slots: Vec<_> = {
            let mut table = self.table();
            std::iter::from_fn(|| table.slots.pop_lru()).map(|(_, used)| used.slot).collect()
        };
        for slot in slots {
            slot.close();
        }
    }

    /// Pools, and connections in them.
    pub(super) fn count(&self) -> (usize, usize) {
        let table = self.table();
        (table.slots.len(), table.slots.iter().map(|(_, used)| used.slot.pool.status().size).sum())
    }
}

impl Table {
    fn ticket(
        &mut self,
        shared: &Arc<Shared>,
        route: &Arc<Route>,
        closing: &mut Vec<Arc<Slot>>,
    ) -> Result<Ticket, Refused> {
        if self.draining.contains_key(&route.tenant) {
            return Err(Refused::Draining);
        }
        if let Some(used) = self.slots.get_mut(&route.tenant) {
            if used.slot.fits(route) {
                used.at = Instant::now();
                used.follow(&shared.limits());
                return Ok(Ticket::new(Arc::clone(&used.slot)));
            }
            if used.slot.route.epoch > route.epoch {
                return Err(Refused::Stale);
            }
        }
        let place = shared.place(route).map_err(Refused::Server)?;
        let former = self.slots.pop(&route.tenant).map(|used| used.slot);
        let former_epoch = former.as_ref().map(|slot| slot.route.epoch);
        let leases = former.as_ref().map(|slot| Arc::clone(&slot.leases));
        let leases = leases.or_else(|| self.orphans.remove(&route.tenant)).unwrap_or_default();
        closing.extend(former);
        let limits = shared.limits();
        self.make_room(limits.router.pools_max, closing);
        let account = shared.accounts.of(route.tenant);
        if former_epoch.is_some_and(|epoch| epoch < route.epoch) {
            account.breaker.reset();
        }
        let share = Share::of(&limits, &route.tier);
        let pool = pool(shared, &place.server, route, share.connections_max).map_err(Refused::Server)?;
        let id = place.change(super::seats::Seats::new_id);
        let slot = Arc::new(Slot {
            id,
            route: Arc::clone(route),
            place: Arc::clone(place),
            pool,
            leases,
            account,
            closed: CancellationToken::new(),
        });
        place.change(|floor| floor.open(id, route.tenant, Arc::clone(&slot), share));
        let ticket = Ticket::new(Arc::clone(&slot));
        self.slots.put(route.tenant, Used { slot, at: Instant::now(), limits });
        Ok(ticket)
    }

    /// Takes out the least recently used pools without leases. More than `pools_max` are kept only while all are in
    /// use, because nobody is refused for that.
    fn make_room(&mut self, pools_max: usize, closing: &mut Vec<Arc<Slot>>) {
        while self.slots.len() >= pools_max.max(1) {
            let unused = self.slots.iter().rev().find(|(_, used)| used.slot.leases.is_empty()).map(|(id, _)| *id);
            let Some(used) = unused.and_then(|tenant| self.slots.pop(&tenant)) else { return };
            closing.push(used.slot);
        }
    }
}

/// A tenant without a pool, as long as this lives.
#[derive(Debug)]
pub(super) struct Draining<'a> {
    slots: &'a Slots,
    tenant: TenantId,
    leases: Arc<Leases>,
}

impl Draining<'_> {
    pub(super) fn leases(&self) -> &Leases {
        &self.leases
    }
}

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        let draining = &mut self.slots.table().draining;
        if let Some(count) = draining.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                draining.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_no_pool_until_the_last_drain_is_over() {
        let (slots, tenant) = (Slots::default(), TenantId(uuid::Uuid::nil()));
        let (first, second) = (slots.drain(tenant), slots.drain(tenant));
        drop(first);
        assert!(slots.table().draining.contains_key(&tenant));
        drop(second);
        assert!(slots.table().draining.is_empty());
    }
}
