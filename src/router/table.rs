//! The routes that this daemon knows, by id, with codes and hosts as an index into them. Asks nobody, not even the
//! clock: `routes` and `feed` fill it.
//!
//! What always holds: a route never makes room for an older one; what was read before its tenant was forgotten is not
//! kept, and not valid any more. The index is a hint: a name counts only while the route that it leads to has it.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::domain::route::{Route, Selector};
use crate::domain::tenant::TenantId;

/// Parts that are locked by themselves, so that callers seldom meet.
const SHARDS: usize = 16;
/// Routes of each shard, 65,536 together; the least recently used make room.
const ROUTES_MAX: NonZeroUsize = NonZeroUsize::new(1 << 12).unwrap();
/// Codes and hosts of each shard.
const NAMES_MAX: NonZeroUsize = NonZeroUsize::new(1 << 13).unwrap();
/// Names of each shard that are nobody's.
const ABSENT_MAX: NonZeroUsize = NonZeroUsize::new(1 << 10).unwrap();
/// A route is never in a caller's hands for so long between its reading and its use.
const FORGOTTEN_KEPT: Duration = Duration::from_mins(10);
/// How old a route may be while the catalog announces its changes.
const FOLLOWED_AGE_MAX: Duration = Duration::from_mins(1);

/// A route, and what is known about its age.
#[derive(Debug, Clone)]
pub struct Fresh {
    pub route: Arc<Route>,
    /// When its reading began.
    read_at: Instant,
    /// Set when the catalog could not be asked: how long ago it last confirmed the route.
    pub stale: Option<Duration>,
}

/// What the table has to say.
#[derive(Debug)]
pub(super) enum Look {
    Current(Fresh),
    /// Too old to be used while the catalog can be asked.
    Old(Fresh),
    /// A moment ago there was no such tenant.
    Absent,
    Unknown,
}

#[derive(Debug)]
pub(super) struct Table {
    routes: [Mutex<Routes>; SHARDS],
    names: [Mutex<Names>; SHARDS],
    hasher: RandomState,
    /// Milliseconds from here.
    base: Instant,
    /// When the catalog last said that nothing else has changed, on a clock that begins at 1 with `base`.
    confirmed: AtomicU64,
    is_followed: AtomicBool,
    /// Every tenant has been read, and none was dropped for want of room.
    is_loaded: AtomicBool,
    /// How often somebody has said to forget a tenant, and how many of those have been read again.
    forgets: AtomicU64,
    settled: AtomicU64,
}

#[derive(Debug)]
struct Routes {
    known: LruCache<TenantId, Known>,
    forgotten: HashMap<TenantId, Instant>,
    /// Nothing that was read before counts: the catalog is another one.
    cleared_at: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Known {
    route: Arc<Route>,
    read_at: Instant,
}

#[derive(Debug)]
struct Names {
    known: LruCache<Selector, TenantId>,
    absent: LruCache<Selector, Instant>,
}

impl Default for Table {
    fn default() -> Self {
        let routes = || Routes { known: LruCache::new(ROUTES_MAX), forgotten: HashMap::new(), cleared_at: None };
        let names = || Names { known: LruCache::new(NAMES_MAX), absent: LruCache::new(ABSENT_MAX) };
        Self {
            routes: std::array::from_fn(|_| Mutex::new(routes())),
            names: std::array::from_fn(|_| Mutex::new(names())),
            hasher: RandomState::new(),
            base: Instant::now(),
            confirmed: AtomicU64::new(0),
            is_followed: AtomicBool::new(false),
            is_loaded: AtomicBool::new(false),
            forgets: AtomicU64::new(0),
            settled: AtomicU64::new(0),
        }
    }
}

impl Table {
    fn shard<'a, T>(&self, shards: &'a [Mutex<T>; SHARDS], key: &impl Hash) -> MutexGuard<'a, T> {
        let number = usize::try_from(self.hasher.hash_one(key)).unwrap_or_default() % SHARDS;
        lock(&shards[number])
    }

    fn routes_of(&self, tenant: TenantId) -> MutexGuard<'_, Routes> {
        self.shard(&self.routes, &tenant)
    }

    /// `age_max` is for a catalog that announces nothing.
    pub(super) fn look(&self, selector: &Selector, age_max: Duration, now: Instant) -> Look {
        let known = match selector {
            Selector::Id(id) => self.routes_of(*id).known.get(id).cloned(),
            name => {
                let id = self.shard(&self.names, name).known.get(name).copied();
                let known = id.and_then(|id| self.routes_of(id).known.get(&id).cloned());
                known.filter(|known| has(&known.route, name))
            }
        };
        let Some(known) = known else {
            let absent_at = self.shard(&self.names, selector).absent.get(selector).copied();
            return match absent_at {
                Some(at) if now.saturating_duration_since(at) <= age_max => Look::Absent,
                _ => Look::Unknown,
            };
        };
        let age = now.saturating_duration_since(self.confirmed().map_or(known.read_at, |at| at.max(known.read_at)));
        let age_max = if self.is_followed() { FOLLOWED_AGE_MAX.max(age_max) } else { age_max };
        let fresh = Fresh { route: known.route, read_at: known.read_at, stale: None };
        if age <= age_max { Look::Current(fresh) } else { Look::Old(Fresh { stale: Some(age), ..fresh }) }
    }

    /// Keeps what was read, unless something newer is known; answers with what is known then. `None` when the tenant
    /// was forgotten since the reading began: the answer may be the old one.
    pub(super) fn put(&self, route: Route, read_at: Instant) -> Option<Fresh> {
        let mut names = vec![Selector::Code(route.code.clone())];
        names.extend(route.hosts.iter().cloned().map(Selector::Host));
        let id = route.tenant;
        let known = {
            let mut routes = self.routes_of(id);
            if !routes.may_keep(id, read_at) {
                return None;
            }
            let newer = routes.known.peek(&id).filter(|known| known.route.revision > route.revision).cloned();
            newer.unwrap_or_else(|| {
                let known = Known { route: Arc::new(route), read_at };
                if routes.known.push(id, known.clone()).is_some_and(|(other, _)| other != id) {
                    self.is_loaded.store(false, Ordering::Relaxed);
                }
                known
            })
        };
        for name in names.into_iter().filter(|name| has(&known.route, name)) {
            let mut shard = self.shard(&self.names, &name);
            shard.absent.pop(&name);
            shard.known.put(name, id);
        }
        Some(Fresh { route: known.route, read_at: known.read_at, stale: None })
    }

    /// There is no such tenant, as of a reading before which [`Table::forgets`] was `forgets`.
    pub(super) fn put_absent(&self, selector: &Selector, read_at: Instant, forgets: u64) {
        let mut names = self.shard(&self.names, selector);
        if self.forgets() == forgets {
            names.absent.put(selector.clone(), read_at);
        }
    }

    /// Nothing that was read of the tenant before now counts, and no name is nobody's any more.
    pub(super) fn forget(&self, tenant: TenantId, now: Instant) {
        self.forgets.fetch_add(1, Ordering::SeqCst);
        self.remove(tenant, now);
        for shard in &self.names {
            lock(shard).absent.clear();
        }
    }

    /// There is no such tenant any more.
    pub(super) fn remove(&self, tenant: TenantId, now: Instant) {
        let mut routes = self.routes_of(tenant);
        routes.known.pop(&tenant);
        routes.forgotten.insert(tenant, now);
    }

    /// How often [`Table::forget`] was called.
    pub(super) fn forgets(&self) -> u64 {
        self.forgets.load(Ordering::SeqCst)
    }

    /// The tenants of so many calls of [`Table::forget`] have been read again.
    pub(super) fn settle(&self, forgets: u64) {
        self.settled.store(forgets, Ordering::SeqCst);
    }

    /// Not every tenant will be read again.
    pub(super) fn incomplete(&self) {
        self.is_loaded.store(false, Ordering::Relaxed);
    }

    /// Whether the route may still be used: nobody has said to forget it, and nothing newer is known.
    pub(super) fn is_valid(&self, fresh: &Fresh) -> bool {
        let tenant = fresh.route.tenant;
        let routes = self.routes_of(tenant);
        routes.may_keep(tenant, fresh.read_at)
            && routes.known.peek(&tenant).is_none_or(|known| known.route.revision <= fresh.route.revision)
    }

    /// Forgets everything: the catalog is another one.
    pub(super) fn clear(&self, now: Instant) {
        self.is_loaded.store(false, Ordering::Relaxed);
        for shard in &self.routes {
            let mut routes = lock(shard);
            routes.known.clear();
            routes.cleared_at = Some(now);
        }
    }

    /// Every tenant has been read since `begun`: what has not come by is gone.
    pub(super) fn loaded(&self, begun: Instant) {
        self.is_loaded.store(true, Ordering::Relaxed);
        for shard in &self.routes {
            let mut routes = lock(shard);
            if routes.known.len() >= ROUTES_MAX.get() {
                self.is_loaded.store(false, Ordering::Relaxed);
            }
            let gone: Vec<_> =
                routes.known.iter().filter(|(_, known)| known.read_at < begun).map(|(id, _)| *id).collect();
            for tenant in gone {
                routes.known.pop(&tenant);
                routes.forgotten.insert(tenant, begun);
            }
        }
    }

    /// As of `at`, nothing has changed but what was put here.
    pub(super) fn confirm(&self, at: Instant) {
        let milliseconds = at.saturating_duration_since(self.base).as_millis() + 1;
        self.confirmed.store(u64::try_from(milliseconds).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.is_followed.store(true, Ordering::Relaxed);
    }

    /// Changes are not announced any more.
    pub(super) fn unfollow(&self) {
        self.is_followed.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_followed(&self) -> bool {
        self.is_followed.load(Ordering::Relaxed)
    }

    /// Whether a name that is not here was no tenant's when the catalog was last heard of. Not while a tenant that was
    /// forgotten waits to be read again: the name may be that one's.
    pub(super) fn is_complete(&self) -> bool {
        self.is_loaded.load(Ordering::Relaxed) && self.forgets() == self.settled.load(Ordering::SeqCst)
    }

    fn confirmed(&self) -> Option<Instant> {
        let milliseconds = self.confirmed.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.base + Duration::from_millis(milliseconds))
    }

    /// Drops marks that no route can be older than.
    pub(super) fn sweep(&self, now: Instant) {
        for shard in &self.routes {
            lock(shard).forgotten.retain(|_, at| now.saturating_duration_since(*at) < FORGOTTEN_KEPT);
        }
    }
}

impl Routes {
    fn may_keep(&self, tenant: TenantId, read_at: Instant) -> bool {
        self.forgotten.get(&tenant).is_none_or(|at| read_at > *at) && self.cleared_at.is_none_or(|at| read_at > at)
    }
}

fn has(route: &Route, name: &Selector) -> bool {
    match name {
        Selector::Id(id) => route.tenant == *id,
        Selector::Code(code) => route.code == *code,
        Selector::Host(host) => route.hosts.contains(host),
    }
}

fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::lifecycle::TenantState;
    use crate::domain::route::Gate;
    use crate::domain::tenant::DatabaseName;

    const AGE_MAX: Duration = Duration::from_secs(1);

    fn route(number: u128, code: &str, revision: i64) -> Route {
        Route {
            tenant: TenantId(uuid::Uuid::from_u128(number)),
            code: code.parse().unwrap(),
            state: TenantState::Active,
            tier: "standard".to_owned(),
            server: "main".to_owned(),
            database: DatabaseName::new(code).unwrap(),
            generation: 1,
            schema_version: 0,
            epoch: 1,
            gate: Gate::Open,
            suspend_reason: None,
            hosts: vec![format!("{code}.example.com")],
            revision,
        }
    }

    fn current(look: Look) -> Option<i64> {
        match look {
            Look::Current(fresh) => Some(fresh.route.revision),
            _ => None,
        }
    }

    const STEP: Duration = Duration::from_millis(1);

    #[test]
    fn a_route_never_makes_room_for_an_older_one() {
        let (table, now) = (Table::default(), Instant::now());
        let newer = table.put(route(1, "acme", 7), now).unwrap();
        assert_eq!(table.put(route(1, "acme", 5), now).unwrap().route.revision, 7);
        assert!(table.is_valid(&newer));
        table.put(route(1, "acme", 8), now).unwrap();
        assert!(!table.is_valid(&newer), "something newer is known");
    }

    #[test]
    fn what_was_read_before_it_was_forgotten_is_not_kept() {
        let (table, now) = (Table::default(), Instant::now());
        let held = table.put(route(1, "acme", 1), now).unwrap();
        table.forget(held.route.tenant, now + STEP);
        assert!(!table.is_valid(&held));
        assert!(table.put(route(1, "acme", 2), now).is_none());
        assert!(matches!(table.look(&Selector::Id(held.route.tenant), AGE_MAX, now + STEP), Look::Unknown));
        assert!(table.put(route(1, "acme", 2), now + STEP * 2).is_some());
        table.clear(now + STEP * 3);
        assert!(table.put(route(1, "acme", 2), now + STEP * 2).is_none());
    }

    #[test]
    fn names_lead_to_who_has_them_now() {
        let (table, now) = (Table::default(), Instant::now());
        let host = Selector::host("acme.example.com").unwrap();
        let look = |selector: &Selector| table.look(selector, AGE_MAX, now);
        assert!(matches!(look(&host), Look::Unknown));
        table.put_absent(&host, now, table.forgets() + 1);
        assert!(matches!(look(&host), Look::Unknown), "somebody was forgotten since");
        table.put_absent(&host, now, table.forgets());
        assert!(matches!(look(&host), Look::Absent));
        table.put(route(1, "acme", 1), now);
        assert_eq!(current(look(&host)), Some(1));
        assert_eq!(current(look(&Selector::code("acme").unwrap())), Some(1));
        // The host moves to another tenant.
        table.put(Route { hosts: Vec::new(), ..route(1, "acme", 2) }, now);
        assert!(matches!(look(&host), Look::Unknown));
        let hosts = vec!["acme.example.com".to_owned()];
        table.put(Route { hosts, ..route(2, "beta", 3) }, now);
        assert_eq!(current(look(&host)), Some(3));
    }

    #[test]
    fn age_counts_from_the_last_word_of_the_catalog() {
        let (table, now) = (Table::default(), Instant::now());
        let id = Selector::Id(table.put(route(1, "acme", 1), now).unwrap().route.tenant);
        let later = now + AGE_MAX * 2;
        assert!(matches!(table.look(&id, AGE_MAX, later), Look::Old(fresh) if fresh.stale == Some(AGE_MAX * 2)));
        table.confirm(later);
        assert_eq!(current(table.look(&id, AGE_MAX, later + AGE_MAX * 30)), Some(1), "changes are announced");
        assert!(
            matches!(table.look(&id, AGE_MAX, later + AGE_MAX * 90), Look::Old(_)),
            "for so long, nothing was heard"
        );
        table.unfollow();
        assert!(matches!(table.look(&id, AGE_MAX, later + AGE_MAX * 30), Look::Old(_)));
    }

    #[test]
    fn who_does_not_come_by_when_all_are_read_is_gone() {
        let (table, now) = (Table::default(), Instant::now());
        let gone = table.put(route(1, "acme", 1), now).unwrap();
        let begun = now + AGE_MAX;
        table.put(route(2, "beta", 2), begun);
        assert!(!table.is_complete());
        table.loaded(begun);
        assert!(table.is_complete() && !table.is_valid(&gone));
        // A name may be that of a tenant that was forgotten and not read again yet.
        table.forget(TenantId(uuid::Uuid::from_u128(2)), begun);
        assert!(!table.is_complete());
        table.put(route(2, "beta", 2), begun + STEP);
        table.settle(table.forgets());
        assert!(table.is_complete());
        assert!(matches!(table.look(&Selector::Id(gone.route.tenant), AGE_MAX, begun), Look::Unknown));
        assert_eq!(current(table.look(&Selector::code("beta").unwrap(), AGE_MAX, begun)), Some(2));
    }
}
