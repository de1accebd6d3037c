//! The most connections that the daemon may hold on one server. A permit is held by the task that drives the
//! connection until the backend has gone, so that the server never sees more sessions than the budget.
//!
//! Does not know what a connection is. Lanes nest: tenants may use all but the reserve, migrations and backups leave
//! half of the reserve, administration leaves a quarter, and the catalog may use the whole, so that whoever waits
//! for the catalog while holding another connection does not wait for ever.
//!
//! Where several daemons share a server, the smaller of the configured number and the daemon's share counts. A daemon
//! that cannot be sure of its share any more is fenced: nothing new is opened until it is.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use super::errors::Error;
use super::lane::Lane;

/// One server's budget. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget {
    server: Arc<str>,
    /// From the narrowest to the widest; a permit holds one of each level from its lane's own upwards. Everybody
    /// takes them in this order, so nobody waits in a circle.
    levels: Arc<[Arc<Level>; 4]>,
    terms: Arc<Mutex<Terms>>,
    is_fenced: watch::Sender<bool>,
    /// Whether a smaller number has taken places away that are still in use: looked at whenever a connection comes back.
    is_owed: Arc<AtomicBool>,
    /// Rung when other numbers count.
    resized: Arc<Notify>,
    /// Who waits for a place that is not the tenants', while all are in use.
    pressing: Arc<Pressure>,
}

/// What a budget's numbers follow from.
#[derive(Debug, Clone, Copy)]
struct Terms {
    connections_max: u32,
    connections_reserved: u32,
    share: Option<u32>,
}

impl Terms {
    /// How many places each level has.
    fn sizes(self) -> [usize; 4] {
        let max = self.share.map_or(self.connections_max, |share| share.min(self.connections_max));
        // A daemon that has next to nothing yet still administers.
        let reserved = self.connections_reserved.min(max);
        [reserved, reserved / 2, reserved / 4, 0].map(|kept| (max - kept) as usize)
    }
}

/// The right to hold one connection.
#[derive(Debug)]
pub struct Permit {
    lane: Lane,
    _held: Vec<Place>,
}

impl Permit {
    pub fn lane(&self) -> Lane {
        self.lane
    }
}

impl Budget {
    /// `connections_reserved` of `connections_max` are out of the tenants' reach.
    pub fn new(server: &str, connections_max: u32, connections_reserved: u32) -> Self {
        let terms = Terms { connections_max, connections_reserved, share: None };
        Self {
            server: server.into(),
            levels: Arc::new(terms.sizes().map(|size| Arc::new(Level::new(size)))),
            terms: Arc::new(Mutex::new(terms)),
            is_fenced: watch::Sender::default(),
            is_owed: Arc::default(),
            resized: Arc::default(),
            pressing: Arc::default(),
        }
    }

    /// From now on other numbers count. Where more are held than the new ones allow, nothing is given out until enough
    /// have come back.
    pub fn resize(&self, connections_max: u32, connections_reserved: u32) {
        self.change(|terms| *terms = Terms { connections_max, connections_reserved, share: terms.share });
    }

    /// From now on no more than this counts, as the budget is shared with other daemons.
    pub fn share(&self, connections: u32) {
        self.change(|terms| terms.share = Some(connections));
    }

    fn change(&self, change: impl FnOnce(&mut Terms)) {
        let mut terms = self.terms();
        change(&mut terms);
        for (level, size) in self.levels.iter().zip(terms.sizes()) {
            level.resize(size);
        }
        self.look_for_owed(&terms);
        drop(terms);
        self.resized.notify_one();
    }

    /// Under the lock of the terms, which alone can take more places away.
    fn look_for_owed(&self, _terms: &Terms) {
        self.is_owed.store(self.levels.iter().any(|level| level.sizing().owed > 0), Ordering::SeqCst);
    }

    fn terms(&self) -> std::sync::MutexGuard<'_, Terms> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configured numbers, whatever the share is: all, and of these the reserve.
    pub fn configured(&self) -> (u32, u32) {
        let terms = self.terms();
        (terms.connections_max, terms.connections_reserved)
    }

    /// Whether nothing new may be opened.
    pub fn fence(&self, yes: bool) {
        self.is_fenced.send_replace(yes);
    }

    pub fn is_fenced(&self) -> bool {
        *self.is_fenced.borrow()
    }

    /// Resolves when nothing new may be opened.
    pub(super) async fn fenced(&self) {
        let mut fence = self.is_fenced.subscribe();
        // The sender is our own.
        let _fenced = fence.wait_for(|is_fenced| *is_fenced).await;
    }

    /// How many connections are still to be closed, because less counts than is in use.
    pub fn surplus(&self) -> usize {
        self.levels.iter().map(|level| level.sizing().surplus()).max().unwrap_or_default()
    }

    /// Whether one that is about to be closed, or kept, belongs to the surplus. Then it must be closed, and is not
    /// counted again while its backend goes.
    pub fn condemn(&self) -> bool {
        if !self.is_owed.load(Ordering::SeqCst) {
            return false;
        }
        let mut is_any = false;
        for level in self.levels.iter() {
            let mut sizing = level.sizing();
            let is_surplus = sizing.surplus() > 0;
            sizing.condemned += usize::from(is_surplus);
            is_any |= is_surplus;
        }
        if !is_any {
            self.look_for_owed(&self.terms());
        }
        is_any
    }

    /// Resolves when other numbers count: a smaller one may have left a surplus, and a greater one have room for who waits.
    pub fn resized(&self) -> Notified<'_> {
        self.resized.notified()
    }

    /// Waits for a free connection, first come first served among those who wait for the same.
    ///
    /// # Errors
    /// [`Error::BudgetExhausted`] at the deadline, [`Error::ShareUncertain`] while the daemon is fenced.
    pub async fn acquire(&self, lane: Lane, deadline: Instant) -> Result<Permit, Error> {
        let mut held = Vec::with_capacity(self.levels.len());
        for level in &self.levels[lane.level()..] {
            if let Some(place) = level.try_acquire() {
                held.push(place);
                continue;
            }
            let is_whole = Arc::ptr_eq(level, &self.levels[3]);
            let _pressing = (is_whole && lane != Lane::Tenant).then(|| Pressing::new(&self.pressing));
            match timeout_at(deadline, level.acquire()).await {
                Ok(Some(place)) => held.push(place),
                Ok(None) | Err(_) => return Err(self.exhausted(lane)),
            }
        }
        // Only now, so that whoever asks again and again waits in between.
        if self.is_fenced() { Err(self.uncertain()) } else { Ok(Permit { lane, _held: held }) }
    }

    /// Whether somebody waits for what others may keep without need: the catalog, administration, a migration, a backup.
    pub fn is_pressed(&self) -> bool {
        self.pressing.waiting.load(Ordering::SeqCst) > 0
    }

    /// How many of those who press would get a place that comes back: none, while a smaller budget takes it.
    pub fn pressing(&self) -> usize {
        let is_owed = self.levels[3].sizing().owed > 0;
        if is_owed { 0 } else { self.pressing.waiting.load(Ordering::SeqCst) }
    }

    /// Changes whenever somebody begins to press.
    pub fn pressure(&self) -> watch::Receiver<()> {
        self.pressing.begun.subscribe()
    }

    /// A free connection, if there is one at this moment.
    pub fn try_acquire(&self, lane: Lane) -> Option<Permit> {
        let mut held = Vec::with_capacity(self.levels.len());
        for level in &self.levels[lane.level()..] {
            held.push(level.try_acquire()?);
        }
        Some(Permit { lane, _held: held })
    }

    pub fn connections_max(&self) -> u32 {
        u32::try_from(self.levels[3].size()).unwrap_or(u32::MAX)
    }

    /// How many connections a lane may have, together with those that are narrower.
    pub fn size(&self, lane: Lane) -> usize {
        self.levels[lane.level()].size()
    }

    /// How many connections a lane could have at this moment.
    pub fn free(&self, lane: Lane) -> usize {
        let free = |level: &Arc<Level>| level.size().saturating_sub(level.in_use.load(Ordering::SeqCst));
        self.levels[lane.level()..].iter().map(free).min().unwrap_or_default()
    }

    /// Permits given out, over all lanes.
    pub fn in_use(&self) -> usize {
        self.levels[3].in_use.load(Ordering::SeqCst)
    }

    pub(super) fn uncertain(&self) -> Error {
        Error::ShareUncertain { server: self.server.to_string() }
    }

    /// Permits given out or promised to somebody who waits: no more than so many connections can be open.
    pub fn held(&self) -> u32 {
        u32::try_from(self.levels[3].held()).unwrap_or(u32::MAX)
    }

    fn exhausted(&self, lane: Lane) -> Error {
        Error::BudgetExhausted { server: self.server.to_string(), lane, connections_max: self.connections_max() }
    }
}

#[derive(Debug, Default)]
struct Pressure {
    waiting: AtomicUsize,
    begun: watch::Sender<()>,
}

/// Somebody who waits.
struct Pressing(Arc<Pressure>);

impl Pressing {
    fn new(pressure: &Arc<Pressure>) -> Self {
        pressure.waiting.fetch_add(1, Ordering::SeqCst);
        pressure.begun.send_replace(());
        Self(Arc::clone(pressure))
    }
}

impl Drop for Pressing {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One of the nested limits.
#[derive(Debug)]
struct Level {
    free: Semaphore,
    in_use: AtomicUsize,
    sizing: Mutex<Sizing>,
}

#[derive(Debug)]
struct Sizing {
    size: usize,
    /// Places that a smaller size has taken away while they were in use.
    owed: usize,
    /// Of these, places of connections that are being closed.
    condemned: usize,
}

impl Sizing {
    fn surplus(&self) -> usize {
        self.owed.saturating_sub(self.condemned)
    }
}

impl Level {
    fn new(size: usize) -> Self {
        Self {
            free: Semaphore::new(size),
            in_use: AtomicUsize::new(0),
            sizing: Mutex::new(Sizing { size, owed: 0, condemned: 0 }),
        }
    }

    fn sizing(&self) -> std::sync::MutexGuard<'_, Sizing> {
        self.sizing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size(&self) -> usize {
        self.sizing().size
    }

    fn held(&self) -> usize {
        let sizing = self.sizing();
        (sizing.size + sizing.owed).saturating_sub(self.free.available_permits())
    }

    fn resize(&self, size: usize) {
        let mut sizing = self.sizing();
        let (more, less) = (size.saturating_sub(sizing.size), sizing.size.saturating_sub(size));
        let paid = more.min(sizing.owed);
        sizing.owed -= paid;
        sizing.condemned = sizing.condemned.min(sizing.owed);
        self.free.add_permits(more - paid);
        sizing.owed += less - self.free.forget_permits(less);
        sizing.size = size;
    }

    /// `None` never comes: nobody closes a level.
    async fn acquire(self: &Arc<Self>) -> Option<Place> {
        self.free.acquire().await.ok()?.forget();
        Some(Place::taken(self))
    }

    fn try_acquire(self: &Arc<Self>) -> Option<Place> {
        self.free.try_acquire().ok()?.forget();
        Some(Place::taken(self))
    }
}

/// One place at one level.
#[derive(Debug)]
struct Place(Arc<Level>);

impl Place {
    fn taken(level: &Arc<Level>) -> Self {
        level.in_use.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(level))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let level = &self.0;
        level.in_use.fetch_sub(1, Ordering::SeqCst);
        let mut sizing = level.sizing();
        if sizing.owed > 0 {
            sizing.owed -= 1;
            sizing.condemned = sizing.condemned.saturating_sub(1);
        } else {
            level.free.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn all(budget: &Budget, lane: Lane) -> Vec<Permit> {
        std::iter::from_fn(|| budget.try_acquire(lane)).collect()
    }

    #[test]
    fn each_lane_leaves_its_part_to_the_more_urgent_ones() {
        let budget = Budget::new("main", 20, 8);
        let tenants = all(&budget, Lane::Tenant);
        assert_eq!(tenants.len(), 12);
        let backups = all(&budget, Lane::Backup);
        assert_eq!(backups.len(), 4);
        assert!(budget.try_acquire(Lane::Migration).is_none());
        let administration = all(&budget, Lane::Administration);
        assert_eq!(administration.len(), 2);
        let catalog = all(&budget, Lane::Catalog);
        assert_eq!(catalog.len(), 2);
        assert_eq!(budget.in_use(), 20);

        drop(tenants);
        assert_eq!(budget.in_use(), 8);
        assert_eq!(all(&budget, Lane::Migration).len(), 12);
    }

    #[test]
    fn all_lanes_together_never_exceed_the_budget() {
        for lanes in [Lane::ALL.to_vec(), Lane::ALL.into_iter().rev().collect()] {
            let budget = Budget::new("main", 9, 4);
            let held: Vec<Permit> = lanes.into_iter().flat_map(|lane| all(&budget, lane)).collect();
            assert_eq!(held.len(), 9);
        }
    }

    #[tokio::test]
    async fn whoever_waits_gets_the_next_free_one_or_is_told_at_the_deadline() {
        let budget = Budget::new("main", 5, 4);
        let held = budget.try_acquire(Lane::Tenant).unwrap();
        let deadline = Instant::now() + Duration::from_millis(10);
        let error = budget.acquire(Lane::Tenant, deadline).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "no connection to the server main is free for tenants: its budget of 5 is used up; try again, or raise servers.main.connections_max"
        );
        assert!(Instant::now() >= deadline);

        let waiting = budget.acquire(Lane::Tenant, Instant::now() + Duration::from_mins(1));
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(held);
        assert!(waiting.await.is_ok());
    }

    #[test]
    fn a_smaller_budget_counts_once_enough_has_come_back() {
        let budget = Budget::new("main", 10, 4);
        let mut held = all(&budget, Lane::Tenant);
        assert_eq!(held.len(), 6);
        budget.resize(7, 4);
        assert_eq!((budget.connections_max(), budget.in_use()), (7, 6));
        held.truncate(3);
        assert!(budget.try_acquire(Lane::Tenant).is_none(), "3 are in use, and 3 are allowed");
        assert_eq!(all(&budget, Lane::Catalog).len(), 4);
        held.truncate(2);
        assert_eq!(all(&budget, Lane::Tenant).len(), 1);
    }

    #[test]
    fn a_larger_budget_counts_at_once_even_while_places_are_owed() {
        let budget = Budget::new("main", 10, 4);
        let held = all(&budget, Lane::Tenant);
        budget.resize(6, 4);
        budget.resize(9, 4);
        assert!(budget.try_acquire(Lane::Tenant).is_none(), "5 are allowed, and 6 are in use");
        budget.resize(12, 4);
        let more = all(&budget, Lane::Tenant);
        assert_eq!(more.len(), 2);
        drop((held, more));
        assert_eq!(all(&budget, Lane::Tenant).len(), 8);
    }

    #[test]
    fn the_smaller_of_share_and_configuration_counts() {
        let budget = Budget::new("main", 10, 4);
        budget.share(1);
        assert_eq!(all(&budget, Lane::Tenant).len(), 0);
        assert_eq!(all(&budget, Lane::Administration).len(), 1, "before it has a share, a daemon still administers");
        budget.share(7);
        assert_eq!(all(&budget, Lane::Tenant).len(), 3);
        budget.resize(6, 4);
        assert_eq!((budget.connections_max(), budget.configured()), (6, (6, 4)));
        budget.resize(20, 4);
        assert_eq!((budget.connections_max(), budget.configured()), (7, (20, 4)));
    }

    #[tokio::test]
    async fn what_a_smaller_share_leaves_over_is_told() {
        let budget = Budget::new("main", 10, 4);
        let mut held = all(&budget, Lane::Tenant);
        budget.share(7);
        budget.resized().await;
        assert_eq!((budget.surplus(), budget.held()), (3, 6));
        assert!(budget.condemn());
        assert_eq!((budget.surplus(), budget.held()), (2, 6), "one is on its way");
        held.truncate(5);
        assert_eq!((budget.surplus(), budget.held()), (2, 5));
        held.truncate(3);
        assert_eq!((budget.surplus(), budget.held(), budget.condemn()), (0, 3, false));
    }

    #[tokio::test]
    async fn nobody_gets_a_permit_while_the_share_is_uncertain() {
        let budget = Budget::new("main", 10, 4);
        budget.fence(true);
        let error = budget.acquire(Lane::Catalog, Instant::now()).await.unwrap_err();
        assert!(matches!(error, Error::ShareUncertain { .. }) && error.is_transient(), "{error}");
        assert_eq!(budget.in_use(), 0);
        budget.fence(false);
        assert!(budget.acquire(Lane::Catalog, Instant::now()).await.is_ok());
    }
}
