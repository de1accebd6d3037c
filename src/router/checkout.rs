//! How a caller gets one of its tenant's connections: one that idles, or whichever comes first of those that are given
//! back and those that are made. A caller only waits; it may go away at any moment, and nothing goes with it.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::breaker::{Blocked, Probe};
use super::clean::clean;
use super::error::{Error, Failure, TimeoutCause};
use super::holder::Holder;
use super::long::{Crowded, Long, LongPass};
use super::party::Share;
use super::place::{Offer, Seat, Slot};
use super::pool::PooledObject;
use super::seats::{Ask, Why};
use crate::config::Limits;

type Answer = oneshot::Receiver<Result<Offer, Failure>>;

/// What a caller finds.
#[expect(clippy::large_enum_variant, reason = "it is on the stack for a moment, and a box would cost every call one")]
enum Found {
    Idle(PooledObject, Seat),
    /// Nothing, and the caller has not joined the queue. So many connections may come back.
    Nothing {
        held: usize,
    },
    /// It has.
    Waits {
        waiter: u64,
        answer: Answer,
    },
}

/// Who joins the queue when nothing idles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joins {
    /// Only who can wait for a connection that comes back, while it is known how to make another.
    IfSomeComeBack,
    Always,
    /// Nobody; and who gets nothing has not come either.
    Never,
}

impl Slot {
    /// A connection, until the deadline.
    pub(super) async fn checkout(
        self: &Arc<Self>,
        holder: &Holder,
        deadline: Instant,
    ) -> Result<(PooledObject, Seat), Error> {
        let begun = Instant::now();
        let result = match self.look(holder, Joins::IfSomeComeBack, begun) {
            Ok(Found::Idle(object, seat)) => Ok((object, seat)),
            Ok(Found::Waits { waiter, answer }) => self.answered(waiter, answer, begun, deadline).await,
            // Rare, and large: not part of each call's future.
            Ok(Found::Nothing { held }) => Box::pin(self.make_ready(holder, held, begun, deadline)).await,
            Err(error) => Err(error),
        };
        match result {
            Ok((object, seat)) => self.taken(object, seat).await,
            Err(error) => {
                self.account.refused(&error);
                Err(error)
            }
        }
    }

    /// The right to a lease that lasts as long as its holder likes.
    pub(super) async fn pass_long(&self, limits: &Limits, deadline: Instant) -> Result<LongPass, Error> {
        let (begun, route) = (Instant::now(), &self.route);
        let share = Long::of_pool(Share::of(limits, &route.tier));
        let passed = tokio::select! {
            passed = self.place.long.pass(route.tenant, share, deadline) => passed,
            () = self.closed.cancelled() => return Err(Error::PoolClosed),
        };
        passed.map_err(|crowded| {
            let (tenant, server) = (route.code.clone(), route.server.clone());
            let timeout = |tenant, server, cause| Error::Timeout { tenant, server, waited: begun.elapsed(), cause };
            let error = match crowded {
                Crowded::Own { max } => timeout(tenant, server, TimeoutCause::LongOfTenant { max }),
                Crowded::All { max } => timeout(tenant, server, TimeoutCause::Long { max }),
                Crowded::Queue { max: queue_max } => Error::QueueFull { tenant, server, queue_max },
            };
            self.account.refused(&error);
            error
        })
    }

    /// A connection that idles, if there is one.
    pub(super) async fn checkout_idle(self: &Arc<Self>, holder: &Holder) -> Option<(PooledObject, Seat)> {
        match self.look(holder, Joins::Never, Instant::now()) {
            Ok(Found::Idle(object, seat)) => self.taken(object, seat).await.ok(),
            _none => None,
        }
    }

    /// What every connection goes through on its way into a caller's hands.
    async fn taken(self: &Arc<Self>, object: PooledObject, seat: Seat) -> Result<(PooledObject, Seat), Error> {
        // Dropped in this order, as a lease is.
        let mut taken = (object, seat);
        taken.0.is_clean = false;
        if taken.0.residue_perhaps {
            // Rare, and large: not part of each call's future.
            if !Box::pin(clean(&taken.0.client)).await {
                self.end(taken.0, taken.1);
                return Err(Error::PoolClosed);
            }
            taken.0.residue_perhaps = false;
        }
        self.account.acquired();
        taken.0.uses_left = taken.0.uses_left.saturating_sub(1);
        Ok(taken)
    }

    /// Takes an idle connection. Without one, the caller joins the queue if it may.
    fn look(self: &Arc<Self>, holder: &Holder, joins: Joins, now: Instant) -> Result<Found, Error> {
        let mut ended = Vec::new();
        let is_sure = |held: usize| match joins {
            Joins::IfSomeComeBack => held > 0 && self.pool.manager().is_prepared(),
            Joins::Always => true,
            Joins::Never => false,
        };
        let found = self.place.change(|floor| {
            if joins == Joins::IfSomeComeBack {
                floor.came(self.id, now);
            }
            loop {
                match floor.ask(self.id) {
                    Ask::Idle => {
                        let before = ended.len();
                        if let Some((object, seat)) = self.pop(floor, holder, now, &mut ended) {
                            if joins == Joins::Never {
                                floor.came(self.id, now);
                            }
                            return Ok(Found::Idle(object, seat));
                        }
                        // Nobody goes round for ever under the lock, should the seats and the pool ever disagree.
                        if ended.len() == before {
                            return Err(Error::PoolClosed);
                        }
                    }
                    Ask::Wait { held } if !is_sure(held) => return Ok(Found::Nothing { held }),
                    Ask::Wait { .. } => {
                        let (caller, answer) = oneshot::channel();
                        let waiter = floor.wait(self.id, caller, holder.clone(), now);
                        return Ok(Found::Waits { waiter, answer });
                    }
                    Ask::Full { queue_max } => {
                        let (tenant, server) = (self.route.code.clone(), self.route.server.clone());
                        return Err(Error::QueueFull { tenant, server, queue_max });
                    }
                    Ask::Closed => return Err(Error::PoolClosed),
                }
            }
        });
        // Without the lock: what has ended is closed.
        drop(ended);
        found
    }

    /// Joins the queue once it is known how a connection is made, unless it is known that none can be.
    async fn make_ready(
        self: &Arc<Self>,
        holder: &Holder,
        held: usize,
        begun: Instant,
        deadline: Instant,
    ) -> Result<(PooledObject, Seat), Error> {
        let prepared = timeout_at(deadline, self.pool.manager().prepare()).await;
        prepared.unwrap_or_else(|_elapsed| Err(Error::CatalogSlow))?;
        // One that may come back can be waited for, whatever has happened to new ones.
        let _probes = if held == 0 { self.check_breakers(begun)? } else { [None, None] };
        match self.look(holder, Joins::Always, Instant::now())? {
            Found::Idle(object, seat) => Ok((object, seat)),
            Found::Waits { waiter, answer } => self.answered(waiter, answer, begun, deadline).await,
            Found::Nothing { .. } => Err(Error::PoolClosed),
        }
    }

    /// Waits in the queue.
    async fn answered(
        self: &Arc<Self>,
        waiter: u64,
        answer: Answer,
        begun: Instant,
        deadline: Instant,
    ) -> Result<(PooledObject, Seat), Error> {
        let mut waiting = Waiting { slot: self, waiter, is_over: false };
        let answer = timeout_at(deadline, answer).await;
        waiting.is_over = answer.is_ok();
        self.account.waited(begun.elapsed());
        match answer {
            Ok(Ok(Ok(offer))) => offer.claim().ok_or(Error::PoolClosed),
            Ok(Ok(Err(failure))) => Err(failure.into_error(&self.route)),
            Ok(Err(_gone)) => Err(Error::PoolClosed),
            Err(_elapsed) => {
                waiting.is_over = true;
                let error = self.timed_out(begun);
                self.place.change(|floor| floor.leave(self.id, waiter));
                Err(error)
            }
        }
    }

    /// Whether a new connection may be tried, and whether by this caller first.
    fn check_breakers(&self, now: Instant) -> Result<[Option<Probe<'_, Failure>>; 2], Error> {
        let blocked = |blocked: Blocked<Failure>| blocked.cause.into_blocked(&self.route, blocked.retry_after);
        let servers = self.place.breaker.check(now).map_err(blocked)?;
        let tenants = self.account.breaker.check(now).map_err(blocked)?;
        Ok([servers, tenants])
    }

    fn timed_out(&self, begun: Instant) -> Error {
        let cause = match self.place.why(self.id) {
            Why::Pool { connections_max } => TimeoutCause::Pool { connections_max },
            Why::Budget => TimeoutCause::Budget,
            Why::Connect => TimeoutCause::Connect,
        };
        let (tenant, server) = (self.route.code.clone(), self.route.server.clone());
        Error::Timeout { tenant, server, waited: begun.elapsed(), cause }
    }
}

/// A caller in the queue, until it goes away.
struct Waiting<'a> {
    slot: &'a Slot,
    waiter: u64,
    is_over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.slot.account.cancelled();
            self.slot.place.change(|floor| floor.leave(self.slot.id, self.waiter));
        }
    }
}
