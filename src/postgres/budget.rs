//! The most connections that the daemon may hold on one server. A permit is held by the task that drives the
//! connection until the backend has gone, so that the server never sees more sessions than the budget.
//!
//! Does not know what a connection is. Lanes nest: tenants may use all but the reserve, migrations and backups leave
//! half of the reserve, administration leaves a quarter, and the catalog may use the whole, so that whoever waits
//! for the catalog while holding another connection does not wait for ever.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
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
        let sizes = sizes(connections_max, connections_reserved);
        Self { server: server.into(), levels: Arc::new(sizes.map(|size| Arc::new(Level::new(size)))) }
    }

    /// From now on other numbers count. Where more are held than the new ones allow, nothing is given out until enough
    /// have come back.
    pub fn resize(&self, connections_max: u32, connections_reserved: u32) {
        for (level, size) in self.levels.iter().zip(sizes(connections_max, connections_reserved)) {
            level.resize(size);
        }
    }

    /// Waits for a free connection, first come first served among those who wait for the same.
    ///
    /// # Errors
    /// [`Error::BudgetExhausted`] at the deadline.
    pub async fn acquire(&self, lane: Lane, deadline: Instant) -> Result<Permit, Error> {
        let mut held = Vec::with_capacity(self.levels.len());
        for level in &self.levels[lane.level()..] {
            match timeout_at(deadline, level.acquire()).await {
                Ok(Some(place)) => held.push(place),
                Ok(None) | Err(_) => return Err(self.exhausted(lane)),
            }
        }
        Ok(Permit { lane, _held: held })
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

    /// Permits given out, over all lanes.
    pub fn in_use(&self) -> usize {
        self.levels[3].in_use.load(Ordering::SeqCst)
    }

    fn exhausted(&self, lane: Lane) -> Error {
        Error::BudgetExhausted { server: self.server.to_string(), lane, connections_max: self.connections_max() }
    }
}

/// How many places each level has.
fn sizes(connections_max: u32, connections_reserved: u32) -> [usize; 4] {
    [connections_reserved, connections_reserved / 2, connections_reserved / 4, 0]
        .map(|kept| connections_max.saturating_sub(kept) as usize)
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
}

impl Level {
    fn new(size: usize) -> Self {
        Self { free: Semaphore::new(size), in_use: AtomicUsize::new(0), sizing: Mutex::new(Sizing { size, owed: 0 }) }
    }

    fn sizing(&self) -> std::sync::MutexGuard<'_, Sizing> {
        self.sizing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size(&self) -> usize {
        self.sizing().size
    }

    fn resize(&self, size: usize) {
        let mut sizing = self.sizing();
        let (more, less) = (size.saturating_sub(sizing.size), sizing.size.saturating_sub(size));
        let paid = more.min(sizing.owed);
        sizing.owed -= paid;
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
}
