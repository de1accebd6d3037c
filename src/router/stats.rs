//! What happened to each tenant's callers since the daemon began, and the tenant's breaker. Kept outside of pools, so
//! that it survives their end, in a table with a bound. Counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;

use super::breaker::Breaker;
use super::error::{Cause, Error, Failure};
use crate::domain::tenant::TenantId;

/// Tenants whose numbers are kept; the least recently used make room.
const TENANTS_MAX: usize = 1 << 14;

/// One tenant's numbers since the daemon began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantStats {
    /// Leases given out.
    pub acquires: u64,
    /// Of these, those that had to wait for a connection, and how long all of them waited.
    pub waits: u64,
    pub wait_time: Duration,
    /// Callers without a lease of their own: they were served together with the one that had it.
    pub shared: u64,
    /// Connections made, and how long all of them took.
    pub connects: u64,
    pub connect_time: Duration,
    /// Idle connections that were closed because another tenant needed their place.
    pub evictions: u64,
    /// Callers that went away while they waited, and leases that were dropped in the middle.
    pub cancels: u64,
    /// Refusals by cause; causes without any are left out.
    pub errors: Vec<(Cause, u64)>,
}

/// What is kept for one tenant.
#[derive(Debug, Default)]
pub(super) struct Account {
    acquires: AtomicU64,
    shared: AtomicU64,
    waits: AtomicU64,
    wait_micros: AtomicU64,
    connects: AtomicU64,
    connect_micros: AtomicU64,
    evictions: AtomicU64,
    cancels: AtomicU64,
    errors: [AtomicU64; Cause::ALL.len()],
    pub(super) breaker: Breaker<Failure>,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Account {
    pub(super) fn acquired(&self) {
        self.acquires.fetch_add(1, Ordering::Relaxed);
    }

    /// So many callers were served by one lease.
    pub(super) fn served(&self, callers: u32) {
        self.shared.fetch_add(u64::from(callers.saturating_sub(1)), Ordering::Relaxed);
    }

    pub(super) fn waited(&self, time: Duration) {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.wait_micros.fetch_add(micros(time), Ordering::Relaxed);
    }

    pub(super) fn connected(&self, time: Duration) {
        self.connects.fetch_add(1, Ordering::Relaxed);
        self.connect_micros.fetch_add(micros(time), Ordering::Relaxed);
    }

    pub(super) fn evicted(&self) {
        self.evictions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn cancelled(&self) {
        self.cancels.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, error: &Error) {
        if let Some(cause) = error.cause() {
            self.errors[cause as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn stats(&self) -> TenantStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let time = |counter: &AtomicU64| Duration::from_micros(count(counter));
        let errors = Cause::ALL.into_iter().map(|cause| (cause, count(&self.errors[cause as usize])));
        TenantStats {
            acquires: count(&self.acquires),
            shared: count(&self.shared),
            waits: count(&self.waits),
            wait_time: time(&self.wait_micros),
            connects: count(&self.connects),
            connect_time: time(&self.connect_micros),
            evictions: count(&self.evictions),
            cancels: count(&self.cancels),
            errors: errors.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// All tenants' accounts.
#[derive(Debug)]
pub(super) struct Accounts {
    table: Mutex<LruCache<TenantId, Arc<Account>>>,
}

impl Default for Accounts {
    fn default() -> Self {
        Self { table: Mutex::new(LruCache::unbounded()) }
    }
}

impl Accounts {
    /// The tenant's account, a new one when there is none.
    pub(super) fn of(&self, tenant: TenantId) -> Arc<Account> {
        let mut table = self.table();
        let account = Arc::clone(table.get_or_insert(tenant, Arc::default));
        // Those of pools that are there stay, unless all are.
        let mut passed_by = 0;
        while table.len() > TENANTS_MAX
            && let Some((tenant, account)) = table.pop_lru()
        {
            if Arc::strong_count(&account) > 1 && passed_by < TENANTS_MAX {
                passed_by += 1;
                table.put(tenant, account);
            }
        }
        account
    }

    pub(super) fn stats(&self, tenant: TenantId) -> TenantStats {
        self.table().peek(&tenant).map(|account| account.stats()).unwrap_or_default()
    }

    /// Lets the tenant be tried again.
    pub(super) fn breaker_reset(&self, tenant: TenantId) {
        if let Some(account) = self.table().peek(&tenant) {
            account.breaker.reset();
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, LruCache<TenantId, Arc<Account>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::TimeoutCause;
    use uuid::Uuid;

    fn timeout(cause: TimeoutCause) -> Error {
        let tenant = "acme".parse().unwrap();
        Error::Timeout { tenant, server: "main".to_owned(), waited: Duration::ZERO, cause }
    }

    #[test]
    fn what_is_counted_is_told() {
        let accounts = Accounts::default();
        let tenant = TenantId(Uuid::from_u128(1));
        assert_eq!(accounts.stats(tenant), TenantStats::default());
        let account = accounts.of(tenant);
        account.acquired();
        account.served(0);
        account.served(5);
        account.waited(Duration::from_millis(3));
        account.refused(&timeout(TimeoutCause::Budget));
        account.refused(&timeout(TimeoutCause::Budget));
        account.refused(&timeout(TimeoutCause::Connect));
        account.refused(&Error::PoolClosed);
        let stats = accounts.stats(tenant);
        assert_eq!((stats.acquires, stats.shared), (1, 4));
        assert_eq!((stats.waits, stats.wait_time), (1, Duration::from_millis(3)));
        assert_eq!(stats.errors, [(Cause::Budget, 2), (Cause::Slow, 1)]);
    }

    #[test]
    fn each_cause_has_its_own_counter() {
        for (index, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, index);
        }
    }

    #[test]
    fn the_table_has_a_bound() {
        let accounts = Accounts::default();
        let tenant = |number| TenantId(Uuid::from_u128(number));
        let in_use = accounts.of(tenant(0));
        in_use.cancelled();
        for number in 1..=TENANTS_MAX as u128 {
            accounts.of(tenant(number));
        }
        assert_eq!(accounts.table().len(), TENANTS_MAX);
        assert_eq!((accounts.stats(tenant(0)).cancels, accounts.table().contains(&tenant(1))), (1, false));
        // Nothing goes round in a circle when all are in use.
        let all: Vec<_> = (0..=TENANTS_MAX as u128).map(|number| accounts.of(tenant(number))).collect();
        assert_eq!((accounts.table().len(), all.len()), (TENANTS_MAX, TENANTS_MAX + 1));
    }
}
