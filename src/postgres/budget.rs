//! The most connections that the daemon may hold on one server. A permit is held by the task that drives the
//! connection until the backend has gone, so that the server never sees more sessions than the budget.
//!
//! Does not know what a connection is. Lanes nest: tenants may use all but the reserve, migrations and backups leave
//! half of the reserve, administration leaves a quarter, and the catalog may use the whole, so that whoever waits
//! for the catalog while holding another connection does not wait for ever.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::errors::Error;
use super::lane::Lane;

/// One server's budget. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget {
    server: Arc<str>,
    connections_max: u32,
    /// From the narrowest to the widest; a permit holds one of each level from its lane's own upwards. Everybody
    /// takes them in this order, so nobody waits in a circle.
    levels: Arc<[Arc<Semaphore>; 4]>,
}

/// The right to hold one connection.
#[derive(Debug)]
pub struct Permit {
    lane: Lane,
    _held: Vec<OwnedSemaphorePermit>,
}

impl Permit {
    pub fn lane(&self) -> Lane {
        self.lane
    }
}

impl Budget {
    /// `connections_reserved` of `connections_max` are out of the tenants' reach.
    pub fn new(server: &str, connections_max: u32, connections_reserved: u32) -> Self {
        let level = |kept: u32| Arc::new(Semaphore::new(connections_max.saturating_sub(kept) as usize));
        let levels =
            [level(connections_reserved), level(connections_reserved / 2), level(connections_reserved / 4), level(0)];
        Self { server: server.into(), connections_max, levels: Arc::new(levels) }
    }

    /// Waits for a free connection, first come first served among those who wait for the same.
    ///
    /// # Errors
    /// [`Error::BudgetExhausted`] at the deadline.
    pub async fn acquire(&self, lane: Lane, deadline: Instant) -> Result<Permit, Error> {
        let mut held = Vec::with_capacity(self.levels.len());
        for level in &self.levels[lane.level()..] {
            match timeout_at(deadline, Arc::clone(level).acquire_owned()).await {
                Ok(Ok(permit)) => held.push(permit),
                Ok(Err(_)) | Err(_) => return Err(self.exhausted(lane)),
            }
        }
        Ok(Permit { lane, _held: held })
    }

    /// A free connection, if there is one at this moment.
    pub fn try_acquire(&self, lane: Lane) -> Option<Permit> {
        let mut held = Vec::with_capacity(self.levels.len());
        for level in &self.levels[lane.level()..] {
            held.push(Arc::clone(level).try_acquire_owned().ok()?);
        }
        Some(Permit { lane, _held: held })
    }

    pub fn connections_max(&self) -> u32 {
        self.connections_max
    }

    /// Permits given out, over all lanes.
    pub fn in_use(&self) -> usize {
        (self.connections_max as usize).saturating_sub(self.levels[3].available_permits())
    }

    fn exhausted(&self, lane: Lane) -> Error {
        Error::BudgetExhausted { server: self.server.to_string(), lane, connections_max: self.connections_max }
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
}
