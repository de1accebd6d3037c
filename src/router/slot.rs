//! One tenant's pool for one epoch of its route: takes connections out, and takes them back. What becomes of them is
//! decided by [`super::seats`] under the lock of the server's place; here is only the carrying.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::{Object, Timeouts};
use futures_util::FutureExt as _;
use tokio::time::{Instant, timeout};

use super::clean::clean;
use super::error::Failure;
use super::holder::Holder;
use super::long::Long;
use super::party::{ConnectionId, LEASE_LONG, Share};
use super::place::{Caller, Floor, Offer, Seat, Slot};
use super::pool::{Pooled, PooledObject};
use super::seats::Give;
use crate::domain::route::Route;

/// Asks the pool for what it has now. A get that may wait goes through tokio's budget of its task, and so may be told to
/// wait although a connection idles; this one is told nothing but the truth.
pub(super) const AT_ONCE: Timeouts = Timeouts { wait: Some(Duration::ZERO), create: None, recycle: None };

impl Slot {
    /// Whether the pool's connections lead to where `route` says.
    pub(super) fn fits(&self, route: &Arc<Route>) -> bool {
        let own = &self.route;
        Arc::ptr_eq(own, route)
            || (own.epoch == route.epoch
                && own.generation == route.generation
                && own.tier == route.tier
                && own.database == route.database
                && own.server == route.server)
    }

    pub(super) fn share_set(&self, share: Share) {
        // The pool itself refuses nothing that the seats allow.
        if self.pool.status().max_size < share.connections_max {
            self.pool.resize(share.connections_max);
        }
        self.place.change(|floor| floor.share_set(self.id, share));
        self.place.long.share_set(self.route.tenant, Long::of_pool(share));
    }

    /// Ends what idles and what is being made; leased connections end when they come back.
    pub(super) fn close(&self) {
        let callers = self.place.change(|floor| floor.close(self.id));
        self.closed.cancel();
        self.pool.close();
        for caller in callers {
            let _gone = caller.send(Err(Failure::Closed));
        }
    }

    /// The newest idle connection that still works. Ended ones are put into `ended`, to be dropped without the lock.
    pub(super) fn pop(
        self: &Arc<Self>,
        floor: &mut Floor,
        holder: &Holder,
        now: Instant,
        ended: &mut Vec<PooledObject>,
    ) -> Option<(PooledObject, Seat)> {
        // Nothing in it waits: the pool has an idle one or nothing at all.
        while let Some(Ok(mut object)) = self.pool.timeout_get(&AT_ONCE).now_or_never() {
            object.is_clean = false;
            if floor.take(self.id, object.id, holder.clone(), now) && !object.client.is_closed() {
                let seat = Seat { slot: Arc::clone(self), connection: object.id, is_over: false };
                return Some((object, seat));
            }
            floor.lose(self.id, object.id);
            ended.push(object);
        }
        None
    }

    /// A connection that was just made.
    pub(super) fn seat(self: &Arc<Self>, connection: ConnectionId) -> Seat {
        Seat { slot: Arc::clone(self), connection, is_over: false }
    }

    /// The connection is fit for the next caller.
    pub(super) fn give_back(self: &Arc<Self>, object: PooledObject, seat: Seat) {
        let now = Instant::now();
        // Nobody's turn, when the budget has become smaller than what is in use.
        let is_over = object.client.is_closed()
            || object.uses_left == 0
            || object.retires_at <= now
            || self.place.server.budget().condemn();
        let ended = self.place.change(|floor| {
            let given = if is_over {
                floor.lose(self.id, seat.connection);
                Give::Close
            } else {
                floor.give(self.id, seat.connection, now)
            };
            self.settle(floor, given, object, seat, now)
        });
        // Without the lock: its session ends.
        drop(ended);
    }

    /// Cleans what idles and may hold something of its last user.
    pub(super) fn clean_idle(self: &Arc<Self>) {
        let (now, mut ended) = (Instant::now(), Vec::new());
        let holder = Holder { principal: None, method: "cleaning" };
        let idle: Vec<_> =
            self.place.change(|floor| std::iter::from_fn(|| self.pop(floor, &holder, now, &mut ended)).collect());
        // Without the lock: what has ended is closed.
        drop(ended);
        // The newest last, as it was.
        for (object, seat) in idle.into_iter().rev() {
            if !object.residue_perhaps {
                self.give_back(object, seat);
                continue;
            }
            self.give_back_clean(object, seat, Ticket::new(Arc::clone(self)));
        }
    }

    /// Gives the connection back once it is cleaned. Whoever comes meanwhile waits for it, but not for long.
    pub(super) fn give_back_clean(self: &Arc<Self>, object: PooledObject, seat: Seat, ticket: Ticket) {
        let slot = Arc::clone(self);
        slot.returning(&seat, true);
        // Dropped in this order, as a lease is.
        let held = (object, seat, ticket);
        self.place.server.tasks().spawn("lease cleaning", async move {
            let held = held;
            let is_clean = {
                let (object, seat, _) = &held;
                let mut cleaning = pin!(clean(&object.client));
                match timeout(LEASE_LONG, &mut cleaning).await {
                    Ok(is_clean) => is_clean,
                    Err(_elapsed) => {
                        slot.returning(seat, false);
                        cleaning.await
                    }
                }
            };
            let (mut object, seat, _ticket) = held;
            if is_clean {
                object.is_new = false;
                object.residue_perhaps = false;
                slot.give_back(object, seat);
            } else {
                slot.end(object, seat);
            }
        });
    }

    fn returning(&self, seat: &Seat, yes: bool) {
        self.place.change(|floor| floor.returning(self.id, seat.connection, yes));
    }

    /// Does what was decided. Answers with a connection that is to be dropped without the lock.
    pub(super) fn settle(
        self: &Arc<Self>,
        floor: &mut Floor,
        mut given: Give<Caller>,
        mut object: PooledObject,
        mut seat: Seat,
        now: Instant,
    ) -> Option<Pooled> {
        loop {
            match given {
                Give::HandOn(caller) => {
                    let Err(Ok(refused)) = caller.send(Ok(Offer::new(object, seat))) else { return None };
                    // The caller has gone.
                    (object, seat) = refused.claim()?;
                    given = floor.give(self.id, seat.connection, now);
                }
                Give::Idle => {
                    if object.residue_perhaps {
                        floor.unclean(self.id);
                    }
                    seat.is_over = true;
                    object.is_clean = true;
                    drop(object);
                    return None;
                }
                Give::Close => {
                    seat.is_over = true;
                    return Some(Object::take(object));
                }
            }
        }
    }

    /// The connection is not to be used again.
    pub(super) fn end(&self, object: PooledObject, mut seat: Seat) {
        seat.is_over = true;
        let ended = self.place.change(|floor| {
            let ended = Object::take(object);
            floor.lose(self.id, seat.connection);
            ended
        });
        drop(ended);
    }

    /// Closes one connection that idles, which the seats have forgotten by now.
    pub(super) fn remove(&self, _floor: &mut Floor, connection: ConnectionId) -> Vec<Pooled> {
        self.pool.retain(|pooled, _| pooled.id != connection).removed
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let slot = &self.slot;
        slot.account.cancelled();
        // The connection is in the pool by now, marked as not to be used; nobody can have taken it.
        let ended = slot.place.change(|floor| {
            let ended = slot.pool.retain(|pooled, _| pooled.is_clean).removed;
            floor.lose(slot.id, self.connection);
            ended
        });
        drop(ended);
    }
}

impl Offer {
    fn new(object: PooledObject, seat: Seat) -> Self {
        Self(Some((object, seat)))
    }

    /// `None` never comes: only the one who has the offer can claim it, once.
    pub(super) fn claim(mut self) -> Option<(PooledObject, Seat)> {
        self.0.take()
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let Some((object, seat)) = self.0.take() {
            let slot = Arc::clone(&seat.slot);
            slot.give_back(object, seat);
        }
    }
}

/// The right to use a slot.
#[derive(Debug)]
pub(super) struct Ticket {
    slot: Arc<Slot>,
}

impl Ticket {
    pub(super) fn new(slot: Arc<Slot>) -> Self {
        slot.leases.begin();
        Self { slot }
    }

    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.slot.leases.end();
    }
}
