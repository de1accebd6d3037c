//! One server, as the router sees it: the seats under their lock, the breaker, and the bells that wake connectors. And
//! what is in the seats: tenants' pools, and connections on their way.

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_postgres::CancelToken;
use tokio_util::sync::CancellationToken;

use super::breaker::Breaker;
use super::error::Failure;
use super::holder::Holder;
use super::leases::Leases;
use super::long::{LongBounds, LongGate};
use super::party::{ConnectionId, PartyId, State};
use super::pool::{PooledObject, TenantPool};
use super::seats::{Next, Seats, Why};
use super::stats::Account;
use crate::domain::route::Route;
use crate::domain::tenant::TenantId;
use crate::postgres::{Lane, Server};

/// One of so many of the tenants' places is kept free, for tenants without a connection.
const SPARE_PART: usize = 50;

/// A caller that waits.
pub(super) type Caller = oneshot::Sender<Result<Offer, Failure>>;
pub(super) type Floor = Seats<Arc<Slot>, Caller, Holder, CancelToken>;

pub(super) struct Place {
    pub(super) server: Server,
    floor: Mutex<Floor>,
    /// Rung when a tenant begins to want a connection.
    pub(super) wanted: Notify,
    /// Rung when a place was taken, so that another may have to come free.
    pub(super) spare: Notify,
    /// Rung when a connection idles while connectors wait for one.
    pub(super) idled: Notify,
    /// Where long leases are counted.
    pub(super) long: Arc<LongGate>,
    pub(super) breaker: Breaker<Failure>,
    /// Connects in a row that failed for a reason that may be theirs alone.
    pub(super) doubts: AtomicU32,
}

/// One tenant's pool.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: PartyId,
    pub(super) route: Arc<Route>,
    pub(super) place: Arc<Place>,
    pub(super) pool: TenantPool,
    pub(super) leases: Arc<Leases>,
    pub(super) account: Arc<Account>,
    /// Cancelled when nobody gets a connection any more.
    pub(super) closed: CancellationToken,
}

/// A connection's place, while it is out of the pool. Dropped with a connection that was not given back, it ends it.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) slot: Arc<Slot>,
    pub(super) connection: ConnectionId,
    pub(super) is_over: bool,
}

/// A connection on its way to a caller that waits. Goes on to the next one when nobody takes it.
#[derive(Debug)]
pub(super) struct Offer(pub(super) Option<(PooledObject, Seat)>);

/// Without its floor: pools and places hold each other.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("server", &self.server.name()).finish_non_exhaustive()
    }
}

impl Place {
    pub(super) fn new(server: Server) -> Self {
        let measured = server.clone();
        Self {
            server,
            long: LongGate::new(move || LongBounds::of(measured.budget().size(Lane::Tenant))),
            floor: Mutex::new(Seats::new(Instant::now())),
            wanted: Notify::new(),
            spare: Notify::new(),
            idled: Notify::new(),
            breaker: Breaker::of_server(),
            doubts: AtomicU32::new(0),
        }
    }

    fn floor(&self) -> MutexGuard<'_, Floor> {
        self.floor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the seats, and rings whatever is to be rung then. Pools are touched only in here, so that what the seats
    /// say of them is so.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Floor) -> T) -> T {
        let (result, has_news, is_starving) = {
            let mut floor = self.floor();
            let result = change(&mut floor);
            (result, floor.take_news(), floor.is_starving())
        };
        if has_news {
            self.wanted.notify_one();
        }
        if is_starving {
            self.idled.notify_one();
        }
        result
    }

    /// Whether somebody is to be connected for; if nobody is, when to look again.
    pub(super) fn is_due(&self, free: bool) -> Next<()> {
        self.floor().is_due(Instant::now(), free)
    }

    /// Whether tenants wait for a connection of their own.
    pub(super) fn has_callers_without(&self) -> bool {
        self.floor().has_turns()
    }

    /// Whether more tenants want a connection than this and the starving connectors will serve.
    pub(super) fn has_work_for_more(&self) -> bool {
        self.floor().has_work_for_more()
    }

    /// What a caller of the pool waits for.
    pub(super) fn why(&self, id: PartyId) -> Why {
        self.floor().why(id)
    }

    /// Whether there are more places than those that are kept for tenants without a connection.
    pub(super) fn has_room(&self) -> bool {
        let budget = self.server.budget();
        budget.free(Lane::Tenant) > budget.size(Lane::Tenant) / SPARE_PART
    }

    /// Lets idle connections go before their places are wanted: a backend takes its time to end, and the next tenant
    /// without a connection need not wait for that.
    pub(super) fn keep_spare(&self) {
        let size = self.server.budget().size(Lane::Tenant);
        let kept_max = size - size / SPARE_PART;
        // What has been closed is no longer on the floor, though its backend may still be there.
        while self.floor().connection_count() > kept_max && self.evict() {}
    }

    /// Closes the idle connection that is worth least, if one idles.
    pub(super) fn evict(&self) -> bool {
        self.close_one(Floor::evict)
    }

    /// The same for a connector that has no place, unless enough is closed for all of them already.
    pub(super) fn evict_for_starving(&self) {
        self.close_one(Floor::evict_for_starving);
    }

    fn close_one(&self, which: impl FnOnce(&mut Floor) -> Option<(Arc<Slot>, ConnectionId)>) -> bool {
        let evicted = {
            let mut floor = self.floor();
            which(&mut floor).map(|(slot, connection)| (slot.remove(&mut floor, connection), slot))
        };
        // Sessions end without the lock.
        let Some((_ended, slot)) = evicted else { return false };
        slot.account.evicted();
        true
    }

    /// Closes what idles, as far as the budget has become smaller than what is in use.
    pub(super) fn evict_surplus(&self) {
        for _ in 0..self.server.budget().surplus() {
            if !self.evict() {
                return;
            }
            self.server.budget().condemn();
        }
    }

    /// Closes what has idled since before `then`, and what is too old.
    pub(super) fn expire(&self, then: Option<Instant>) {
        let ended: Vec<_> = self.change(|floor| {
            let expired = floor.expire(then, Instant::now());
            expired.iter().map(|(slot, connection)| slot.remove(floor, *connection)).collect()
        });
        // Sessions end without the lock.
        drop(ended);
    }

    /// Has the connections cleaned that idle and were not cleaned when they came back.
    pub(super) fn clean(&self) {
        let unclean = self.floor().take_unclean();
        for slot in unclean {
            slot.clean_idle();
        }
    }

    /// What would cancel the statements that run for one tenant.
    pub(super) fn cancel_tokens(&self, tenant: TenantId) -> Vec<CancelToken> {
        let floor = self.floor();
        let own = floor.parties().filter(|party| party.tenant == tenant);
        let leased = own.flat_map(|party| &party.connections);
        leased
            .filter(|connection| matches!(connection.state, State::Leased { .. }))
            .map(|connection| connection.token.clone())
            .collect()
    }

    /// Leases that have been held since before `then`, each told once: whose tenant's, by whom, since when.
    pub(super) fn overdue(&self, then: Instant) -> Vec<(Arc<Slot>, Holder, Instant)> {
        let mut overdue = Vec::new();
        self.floor().each_holding(|party| {
            for connection in &mut party.connections {
                if let State::Leased { since, holder, is_warned } = &mut connection.state
                    && *since < then
                    && !*is_warned
                {
                    *is_warned = true;
                    overdue.push((Arc::clone(&party.handle), holder.clone().unwrap_or_default(), *since));
                }
            }
        });
        overdue
    }
}
