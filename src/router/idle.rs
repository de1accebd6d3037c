//! The connections that idle on one server, over all tenants, from the one that idles longest: what is closed first
//! when the budget is used up, and when its time is over. Costs nothing per tenant.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::domain::tenant::TenantId;
use crate::postgres::{Budget, Error, Lane, Permit};

/// How often a caller who waits for the budget looks for a connection that idles since.
const EVICT_INTERVAL: Duration = Duration::from_millis(20);

/// Since when, and which connection.
pub(super) type Key = (Instant, u64);

/// Whatever keeps idle connections.
pub(super) trait Keeper: std::fmt::Debug + Send + Sync {
    fn tenant(&self) -> TenantId;

    /// Closes one connection; false when it does not idle any more.
    fn idle_close(&self, key: Key) -> bool;
}

#[derive(Debug, Default)]
pub(super) struct Idle {
    order: Mutex<BTreeMap<Key, Entry>>,
    next: AtomicU64,
    /// Callers who wait for the budget and found nothing to evict: so many connections are closed instead of idling.
    wanted: AtomicUsize,
}

#[derive(Debug)]
struct Entry {
    tenant: TenantId,
    keeper: Weak<dyn Keeper>,
}

impl Idle {
    /// Counts a connection as idle and gives it back by `put`, as one step: whoever finds the entry finds the
    /// connection in its pool, unless it is in use again.
    pub(super) fn put(&self, keeper: &Arc<impl Keeper + 'static>, put: impl FnOnce(Key)) {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Instant::now(), self.next.fetch_add(1, Ordering::Relaxed));
        let entry = Entry { tenant: keeper.tenant(), keeper: Arc::downgrade(keeper) as Weak<dyn Keeper> };
        order.insert(key, entry);
        put(key);
    }

    /// The connection is in use.
    pub(super) fn remove(&self, key: Key) {
        self.order.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// Whether somebody waits for a place in the budget.
    pub(super) fn has_wishes(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > 0
    }

    /// Whether somebody waits for a place in the budget that this connection could make free. Asking takes the wish.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1)).is_ok()
    }

    /// A permit for a connection of `tenant`; closes the connection that idles longest when there is none.
    pub(super) async fn permit(&self, budget: &Budget, tenant: TenantId, deadline: Instant) -> Result<Permit, Error> {
        if let Some(permit) = budget.try_acquire(Lane::Tenant) {
            return Ok(permit);
        }
        let mut acquire = std::pin::pin!(budget.acquire(Lane::Tenant, deadline));
        let mut wish = None;
        loop {
            if !self.evict(tenant) && wish.is_none() {
                wish = Some(Wish::new(&self.wanted));
            }
            tokio::select! {
                biased;
                permit = &mut acquire => return permit,
                () = sleep(EVICT_INTERVAL) => {}
            }
        }
    }

    /// Closes the connection that idles longest, another tenant's if there is one.
    fn evict(&self, tenant: TenantId) -> bool {
        loop {
            let oldest = {
                let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
                let another = order.iter().find(|(_, entry)| entry.tenant != tenant);
                another.or_else(|| order.first_key_value()).map(|(key, _)| *key)
            };
            let Some(key) = oldest else { return false };
            if self.close(key) {
                return true;
            }
        }
    }

    /// Closes what has idled since before `then`.
    pub(super) fn close_before(&self, then: Instant) {
        loop {
            let oldest = {
                let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
                order.first_key_value().map(|(key, _)| *key).filter(|(since, _)| *since < then)
            };
            let Some(key) = oldest else { return };
            self.close(key);
        }
    }

    /// Whether the connection was still idle.
    fn close(&self, key: Key) -> bool {
        let entry = self.order.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        entry.and_then(|entry| entry.keeper.upgrade()).is_some_and(|keeper| keeper.idle_close(key))
    }
}

/// Somebody waits; taken back at the end unless a returned connection has fulfilled it.
struct Wish<'a>(&'a AtomicUsize);

impl<'a> Wish<'a> {
    fn new(wanted: &'a AtomicUsize) -> Self {
        wanted.fetch_add(1, Ordering::Relaxed);
        Self(wanted)
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        // One that was fulfilled already takes another's back: that one looks again at its next interval.
        let _none_left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
    }
}
