//! Routes as the catalog told them, none older than `route_age_max`. Concurrent callers for one tenant ask the catalog
//! once. A route that was read before it was forgotten is never used after.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::error::Error;
use crate::catalog::{self, Catalog, Tenant, TenantRef};
use crate::config::Live;
use crate::domain::lifecycle::TenantState;
use crate::domain::route::{Route, Selector};
use crate::domain::tenant::TenantId;

/// Routes and names that are kept; the least recently used make room.
const ROUTES_MAX: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();
/// Callers whose tenants fall on the same lane ask the catalog one after the other.
const LANES: usize = 64;
/// A route is never in a caller's hands for so long between its reading and its use.
const FORGOTTEN_KEPT: Duration = Duration::from_mins(10);

/// A route, and when its reading began.
#[derive(Debug, Clone)]
pub(super) struct Fresh {
    pub(super) route: Arc<Route>,
    read_at: Instant,
}

#[derive(Debug)]
pub(super) struct Routes {
    live: Live,
    known: Mutex<Known>,
    lanes: [tokio::sync::Mutex<()>; LANES],
    hasher: RandomState,
}

#[derive(Debug)]
struct Known {
    routes: LruCache<TenantId, Fresh>,
    /// Codes and hosts.
    names: LruCache<Selector, (TenantId, Instant)>,
    forgotten: HashMap<TenantId, Instant>,
}

impl Routes {
    pub(super) fn new(live: Live) -> Self {
        let known =
            Known { routes: LruCache::new(ROUTES_MAX), names: LruCache::new(ROUTES_MAX), forgotten: HashMap::new() };
        Self {
            live,
            known: Mutex::new(known),
            lanes: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            hasher: RandomState::new(),
        }
    }

    pub(super) async fn of_tenant(&self, catalog: &Catalog, tenant: TenantId) -> Result<Fresh, Error> {
        match self.find(catalog, &Selector::Id(tenant)).await? {
            Some(fresh) => Ok(fresh),
            None => Err(Error::TenantUnknown { tenant: tenant.to_string() }),
        }
    }

    /// `None` when there is no such tenant, or no longer.
    pub(super) async fn find(&self, catalog: &Catalog, selector: &Selector) -> Result<Option<Fresh>, Error> {
        if let Some(fresh) = self.cached(selector) {
            return Ok(Some(fresh));
        }
        let lane = usize::try_from(self.hasher.hash_one(selector)).unwrap_or_default() % LANES;
        let _turn = self.lanes[lane].lock().await;
        loop {
            // Whoever was before us may have asked already.
            if let Some(fresh) = self.cached(selector) {
                return Ok(Some(fresh));
            }
            let read_at = Instant::now();
            let found = match selector {
                Selector::Id(id) => catalog.tenant_get(&TenantRef::Id(*id)).await,
                Selector::Code(code) => catalog.tenant_get(&TenantRef::Code(code.clone())).await,
                Selector::Host(host) => catalog.tenant_by_host(host).await,
            };
            let tenant = match found {
                Ok(tenant) if tenant.state != TenantState::Purged => tenant,
                Ok(_) | Err(catalog::Error::TenantUnknown { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            // Forgotten while it was being read: the answer may be the old one.
            if let Some(fresh) = self.keep(selector, &tenant, read_at) {
                return Ok(Some(fresh));
            }
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, selector: &Selector) -> Option<Fresh> {
        let now = Instant::now();
        let age_max = self.live.current().router.route_age_max;
        let is_young = |read_at: Instant| now.duration_since(read_at) <= age_max;
        let mut known = self.known();
        let id = match selector {
            Selector::Id(id) => *id,
            name => {
                let (id, read_at) = *known.names.get(name)?;
                is_young(read_at).then_some(id)?
            }
        };
        known.routes.get(&id).filter(|fresh| is_young(fresh.read_at)).cloned()
    }

    fn keep(&self, selector: &Selector, tenant: &Tenant, read_at: Instant) -> Option<Fresh> {
        let fresh = Fresh { route: Arc::new(tenant.route()), read_at };
        let mut known = self.known();
        if !known.is_valid(&fresh) {
            return None;
        }
        if !matches!(selector, Selector::Id(_)) {
            known.names.put(selector.clone(), (tenant.id, read_at));
        }
        known.routes.put(tenant.id, fresh.clone());
        Some(fresh)
    }

    /// Whether nobody has said to forget the route since its reading began.
    pub(super) fn is_valid(&self, fresh: &Fresh) -> bool {
        self.known().is_valid(fresh)
    }

    pub(super) fn forget(&self, tenant: TenantId) {
        let mut known = self.known();
        known.routes.pop(&tenant);
        known.forgotten.insert(tenant, Instant::now());
    }

    /// Drops marks that no route can be older than.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.known().forgotten.retain(|_, at| now.duration_since(*at) < FORGOTTEN_KEPT);
    }
}

impl Known {
    fn is_valid(&self, fresh: &Fresh) -> bool {
        self.forgotten.get(&fresh.route.tenant).is_none_or(|at| fresh.read_at > *at)
    }
}
