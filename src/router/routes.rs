//! Where tenants are: from memory while the catalog announces its changes (see `feed`), otherwise from the catalog,
//! which concurrent callers ask once. A route that was read before it was forgotten is never used after.
//!
//! While the shared database is away, what is known is served as it was, flagged with its age, and who is not known is
//! refused with the cause. That is safe because no gate depends on what this daemon believes:
//! - A gate that is known to be paused or closed stays so; nothing here ever opens one by time.
//! - An operation of this daemon calls [`Routes::forget`], after which no older answer is given, stale or not.
//! - An operation of another daemon may pause a tenant that is open here. Its callers then still get connections, until
//!   the operation has the server itself refuse them: a suspension locks the tenant's logins, a swap or a drop has the
//!   database take no sessions, and then each ends the sessions that are there, and only then does what cannot be
//!   undone. Nothing that a caller was told is written is lost by that: a swap keeps the former database whole, and who
//!   comes after it finds another generation in the identity row, and is refused until the catalog has been read.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::error::Error;
pub use super::table::Fresh;
use super::table::{Look, Table};
use crate::catalog::{self, Catalog, RouteChange, Tenant, TenantRef};
use crate::config::Live;
use crate::domain::lifecycle::TenantState;
use crate::domain::route::Selector;
use crate::domain::tenant::{TenantCode, TenantId};

/// Callers whose tenants fall on the same lane ask the catalog one after the other.
const LANES: usize = 64;
/// How long the catalog is waited for on behalf of a tenant that is known, and of one that is not.
const PATIENCE_KNOWN: Duration = Duration::from_millis(500);
const PATIENCE_UNKNOWN: Duration = Duration::from_secs(5);
/// While the catalog is away, one caller asks it so often; the others do not wait for that.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Batches of changes that a watch may be behind; at more, it reads them from the catalog.
const BATCHES_MAX: usize = 256;
/// Tenants that wait to be read again.
const WANTED_MAX: usize = 1 << 12;

/// Changes that were applied together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) catalog_id: Uuid,
    /// They begin after this revision.
    pub(super) from: i64,
    pub(super) upto: i64,
    pub(super) changes: Vec<RouteChange>,
}

impl Batch {
    /// The feed has begun anew: whoever follows looks for itself what it has missed, and whether its catalog is the
    /// same.
    pub(super) fn is_gap(&self) -> bool {
        self.from == self.upto
    }
}

#[derive(Debug)]
pub(super) struct Routes {
    live: Live,
    pub(super) table: Table,
    lanes: [tokio::sync::Mutex<()>; LANES],
    hasher: RandomState,
    away: Mutex<Option<Away>>,
    /// Tenants that were forgotten, for the feed to read again before somebody has to wait for that.
    wanted: Mutex<Vec<TenantId>>,
    pub(super) wanted_some: Notify,
    pub(super) batches: broadcast::Sender<Arc<Batch>>,
}

/// The shared database does not answer.
#[derive(Debug)]
struct Away {
    cause: Arc<str>,
    probe_at: Instant,
}

impl Routes {
    pub(super) fn new(live: Live) -> Self {
        Self {
            live,
            table: Table::default(),
            lanes: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            hasher: RandomState::new(),
            away: Mutex::default(),
            wanted: Mutex::default(),
            wanted_some: Notify::new(),
            batches: broadcast::Sender::new(BATCHES_MAX),
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
        let mut probes = false;
        if let ControlFlow::Break(answer) = self.at_once(selector, &mut probes)? {
            return Ok(answer);
        }
        // Rare, and large: not part of each call's future.
        Box::pin(self.find_in_catalog(catalog, selector, probes)).await
    }

    async fn find_in_catalog(
        &self,
        catalog: &Catalog,
        selector: &Selector,
        mut probes: bool,
    ) -> Result<Option<Fresh>, Error> {
        let lane = usize::try_from(self.hasher.hash_one(selector)).unwrap_or_default() % LANES;
        let _turn = self.lanes[lane].lock().await;
        loop {
            // Whoever was before us may have asked already.
            if let ControlFlow::Break(answer) = self.at_once(selector, &mut probes)? {
                return Ok(answer);
            }
            let known = matches!(self.look(selector), Look::Old(_));
            let patience = if known { PATIENCE_KNOWN } else { PATIENCE_UNKNOWN };
            let (read_at, forgets) = (Instant::now(), self.table.forgets());
            let asked = timeout(patience, ask(catalog, selector)).await;
            probes = false;
            match asked {
                Ok(Ok(Some(tenant))) => {
                    self.back();
                    // Forgotten while it was being read: the answer may be the old one.
                    if let Some(fresh) = self.table.put(tenant.into_route(), read_at) {
                        return Ok(Some(fresh));
                    }
                }
                Ok(Ok(None)) => {
                    self.back();
                    self.gone(selector, read_at, forgets);
                    return Ok(None);
                }
                Ok(Err(error)) if !error.is_away() => return Err(error.into()),
                Ok(Err(error)) => self.away_since(&error.to_string()),
                Err(_elapsed) => self.away_since(&format!("the shared database gave no answer within {patience:?}")),
            }
        }
    }

    /// What a name in a request's address means. A name that was no tenant's when all were read is none, without a
    /// question: most addresses are the daemon's own.
    pub(super) async fn find_host(&self, catalog: &Catalog, selector: &Selector) -> Result<Option<Fresh>, Error> {
        match self.look(selector) {
            Look::Absent | Look::Unknown if self.table.is_complete() => Ok(None),
            _ => self.find(catalog, selector).await,
        }
    }

    /// Of these names those that are known tenants', with the tenants.
    pub(super) fn with_hosts<'a>(&self, hosts: impl Iterator<Item = &'a str>) -> BTreeSet<(TenantCode, String)> {
        let found = hosts.filter_map(|host| match self.look(&Selector::Host(host.to_owned())) {
            Look::Current(fresh) | Look::Old(fresh) => Some((fresh.route.code.clone(), host.to_owned())),
            Look::Absent | Look::Unknown => None,
        });
        found.collect()
    }

    /// The answer, when the catalog need not or cannot be asked for it. Whoever `probes` asks one that is away.
    fn at_once(&self, selector: &Selector, probes: &mut bool) -> Result<ControlFlow<Option<Fresh>>, Error> {
        match self.look(selector) {
            Look::Current(fresh) => Ok(ControlFlow::Break(Some(fresh))),
            Look::Absent => Ok(ControlFlow::Break(None)),
            Look::Old(fresh) if self.away(probes).is_some() => Ok(ControlFlow::Break(Some(fresh))),
            Look::Old(_) => Ok(ControlFlow::Continue(())),
            Look::Unknown => match self.away(probes) {
                Some(cause) => Err(Error::CatalogAway { cause: cause.to_string() }),
                None => Ok(ControlFlow::Continue(())),
            },
        }
    }

    /// The catalog knows no such tenant.
    fn gone(&self, selector: &Selector, read_at: Instant, forgets: u64) {
        if let Look::Current(fresh) | Look::Old(fresh) = self.look(selector) {
            match selector {
                Selector::Id(_) => self.table.remove(fresh.route.tenant, Instant::now()),
                // Known under another name by now, or not at all.
                Selector::Code(_) | Selector::Host(_) => self.forget(fresh.route.tenant),
            }
        }
        self.table.put_absent(selector, read_at, forgets);
    }

    fn look(&self, selector: &Selector) -> Look {
        self.table.look(selector, self.age_max(), Instant::now())
    }

    /// How old a route may be that no announcement confirms.
    fn age_max(&self) -> Duration {
        self.live.current().router.route_age_max
    }

    /// Whether nobody has said to forget the route since its reading began.
    pub(super) fn is_valid(&self, fresh: &Fresh) -> bool {
        self.table.is_valid(fresh)
    }

    pub(super) fn forget(&self, tenant: TenantId) {
        {
            // As one step: who takes what is wanted knows for which calls of this.
            let mut wanted = lock(&self.wanted);
            self.table.forget(tenant, Instant::now());
            if wanted.len() >= WANTED_MAX {
                self.table.incomplete();
            } else if !wanted.contains(&tenant) {
                wanted.push(tenant);
            }
        }
        self.wanted_some.notify_one();
    }

    /// The tenants that were forgotten since the last call, and [`Table::forgets`] with them.
    pub(super) fn wanted(&self) -> (Vec<TenantId>, u64) {
        let mut wanted = lock(&self.wanted);
        (std::mem::take(&mut *wanted), self.table.forgets())
    }

    /// Drops marks that no route can be older than.
    pub(super) fn sweep(&self) {
        self.table.sweep(Instant::now());
    }

    /// Why the catalog should not be asked now. Once in a while a caller becomes the one who does.
    fn away(&self, probes: &mut bool) -> Option<Arc<str>> {
        let mut away = lock(&self.away);
        let away = away.as_mut().filter(|_| !*probes)?;
        let now = Instant::now();
        if now < away.probe_at {
            return Some(Arc::clone(&away.cause));
        }
        away.probe_at = now + PROBE_INTERVAL;
        *probes = true;
        None
    }

    pub(super) fn away_since(&self, cause: &str) {
        *lock(&self.away) = Some(Away { cause: cause.into(), probe_at: Instant::now() + PROBE_INTERVAL });
    }

    /// The catalog answers.
    pub(super) fn back(&self) {
        *lock(&self.away) = None;
    }
}

/// Asks again at once when the session broke, because it may have been an old one.
async fn ask(catalog: &Catalog, selector: &Selector) -> Result<Option<Tenant>, catalog::Error> {
    let answer = match ask_once(catalog, selector).await {
        Err(error @ catalog::Error::Statement(_)) if error.is_transient() => ask_once(catalog, selector).await,
        answer => answer,
    };
    match answer {
        Ok(tenant) => Ok((tenant.state != TenantState::Purged).then_some(tenant)),
        Err(catalog::Error::TenantUnknown { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn ask_once(catalog: &Catalog, selector: &Selector) -> Result<Tenant, catalog::Error> {
    match selector {
        Selector::Id(id) => catalog.tenant_get(&TenantRef::Id(*id)).await,
        Selector::Code(code) => catalog.tenant_get(&TenantRef::Code(code.clone())).await,
        Selector::Host(host) => catalog.tenant_by_host(host).await,
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
