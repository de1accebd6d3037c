//! Long leases: those of transactions and streams, which last as long as their callers like. One tenant has at most so
//! many of a server's places and of its pool's connections for them, and all tenants together so many; whoever comes
//! then waits for its turn, as for a place ([`super::queue`]), unless as many of its tenant's callers wait already as may.
//! So there are always places for statements, which end by themselves.
//!
//! Knows no connection: what is counted here is a [`LongPass`], which is held as long as the lease.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::party::Share;
use super::queue::{Turn, Turns};
use crate::domain::tenant::TenantId;

/// How many may be held at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongBounds {
    /// By one tenant.
    pub own: usize,
    /// By all together.
    pub all: usize,
}

impl LongBounds {
    /// Half of the places for one tenant, three quarters for all; of two or more, one is always left.
    pub(super) fn of(places: usize) -> Self {
        Self { own: (places / 2).max(1), all: (places * 3 / 4).max(1) }
    }
}

/// What a tenant may have of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Long {
    pub weight: u32,
    /// Beside [`LongBounds::own`].
    pub own_max: usize,
    /// Its callers that may wait.
    pub queue_max: usize,
}

impl Long {
    /// Of a pool with so many connections: it keeps one of two or more for statements, and nobody holds a pass who waits
    /// for a connection of a pool that is used up by those who have one.
    pub(super) fn of_pool(share: Share) -> Self {
        let Share { connections_max, queue_max, weight } = share;
        Self { weight, own_max: connections_max.saturating_sub(1).max(1), queue_max }
    }
}

/// What there was no room in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crowded {
    /// The tenant's own part.
    Own { max: usize },
    /// The part of all.
    All { max: usize },
    /// The tenant's queue, at once.
    Queue { max: usize },
}

/// Where long leases are counted. It may have fewer places at any time than are held.
pub struct LongGate {
    bounds: Box<dyn Fn() -> LongBounds + Send + Sync>,
    state: Mutex<State>,
}

/// The right to a long lease.
#[derive(Debug)]
pub struct LongPass {
    gate: Arc<LongGate>,
    tenant: TenantId,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    /// Of those who hold any or wait.
    tenants: HashMap<TenantId, Own>,
    turns: Turns<TenantId>,
    last_id: u64,
}

#[derive(Debug)]
struct Own {
    held: usize,
    share: Long,
    /// In the order in which they came, and of their ids.
    waiting: VecDeque<(u64, oneshot::Sender<LongPass>)>,
    turn: Turn,
}

impl fmt::Debug for LongGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LongGate").field("bounds", &(self.bounds)()).finish_non_exhaustive()
    }
}

impl LongGate {
    pub fn new(bounds: impl Fn() -> LongBounds + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { bounds: Box::new(bounds), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place among the long leases. Tenants take turns by their weights.
    ///
    /// # Errors
    /// What there was no room in until the deadline, or for waiting.
    pub async fn pass(self: &Arc<Self>, tenant: TenantId, share: Long, deadline: Instant) -> Result<LongPass, Crowded> {
        let (waiter, answer) = self.state().join(tenant, share)?;
        let _waiting = Waiting { gate: self, tenant, waiter };
        self.serve();
        match timeout_at(deadline, answer).await {
            Ok(Ok(pass)) => Ok(pass),
            Ok(Err(_)) | Err(_) => Err(self.state().why(tenant, (self.bounds)())),
        }
    }

    /// From now on the tenant may have so many, and so may its callers that wait.
    pub(super) fn share_set(self: &Arc<Self>, tenant: TenantId, share: Long) {
        if let Some(own) = self.state().tenants.get_mut(&tenant) {
            own.share = share;
        }
        self.serve();
    }

    /// Lets in whose turn it is, as long as there is room: to be called when there is more.
    pub fn serve(self: &Arc<Self>) {
        loop {
            let next = self.state().next((self.bounds)());
            let Some((tenant, caller)) = next else { return };
            // Without the lock: of a caller that has gone, the pass is given back here.
            drop(caller.send(LongPass { gate: Arc::clone(self), tenant }));
        }
    }
}

impl Own {
    fn new(share: Long) -> Self {
        Self { held: 0, share, waiting: VecDeque::new(), turn: Turn::default() }
    }

    /// How many it may hold.
    fn max(&self, bounds: LongBounds) -> usize {
        bounds.own.min(self.share.own_max)
    }
}

impl State {
    fn join(&mut self, tenant: TenantId, share: Long) -> Result<(u64, oneshot::Receiver<LongPass>), Crowded> {
        let (caller, answer) = oneshot::channel();
        let own = self.tenants.entry(tenant).or_insert_with(|| Own::new(share));
        own.share = share;
        // One that is alone waits for no longer than this call, if there is room.
        if own.waiting.len() >= share.queue_max.max(1) {
            return Err(Crowded::Queue { max: share.queue_max });
        }
        self.last_id += 1;
        own.waiting.push_back((self.last_id, caller));
        self.turns.join(tenant, &mut own.turn, share.weight);
        Ok((self.last_id, answer))
    }

    fn next(&mut self, bounds: LongBounds) -> Option<(TenantId, oneshot::Sender<LongPass>)> {
        if self.held >= bounds.all {
            return None;
        }
        let has_room = |tenant: &TenantId| self.tenants.get(tenant).is_some_and(|own| own.held < own.max(bounds));
        let tenant = self.turns.iter().find(has_room)?;
        let own = self.tenants.get_mut(&tenant)?;
        let (_, caller) = own.waiting.pop_front()?;
        self.turns.take(tenant, &mut own.turn);
        if !own.waiting.is_empty() {
            self.turns.join(tenant, &mut own.turn, own.share.weight);
        }
        own.held += 1;
        self.held += 1;
        Some((tenant, caller))
    }

    fn why(&self, tenant: TenantId, bounds: LongBounds) -> Crowded {
        match self.tenants.get(&tenant) {
            Some(own) if own.held >= own.max(bounds) => Crowded::Own { max: own.max(bounds) },
            Some(_) | None => Crowded::All { max: bounds.all },
        }
    }

    /// A caller waits no longer, if it still does.
    fn leave(&mut self, tenant: TenantId, waiter: u64) {
        let Some(own) = self.tenants.get_mut(&tenant) else { return };
        if let Ok(index) = own.waiting.binary_search_by_key(&waiter, |(id, _)| *id) {
            own.waiting.remove(index);
        }
        self.tidy(tenant);
    }

    fn release(&mut self, tenant: TenantId) {
        self.held -= 1;
        if let Some(own) = self.tenants.get_mut(&tenant) {
            own.held -= 1;
        }
        self.tidy(tenant);
    }

    /// Forgets who waits no longer, and who holds nothing either: its last turn is behind everybody's next.
    fn tidy(&mut self, tenant: TenantId) {
        let Some(own) = self.tenants.get_mut(&tenant) else { return };
        if own.waiting.is_empty() {
            self.turns.leave(tenant, &mut own.turn);
            if own.held == 0 {
                self.tenants.remove(&tenant);
            }
        }
    }
}

impl Drop for LongPass {
    fn drop(&mut self) {
        self.gate.state().release(self.tenant);
        self.gate.serve();
    }
}

/// A caller that waits, until it goes.
struct Waiting<'a> {
    gate: &'a LongGate,
    tenant: TenantId,
    waiter: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.gate.state().leave(self.tenant, self.waiter);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use uuid::Uuid;

    use super::*;

    fn tenant(number: u128) -> TenantId {
        TenantId(Uuid::from_u128(number))
    }

    fn gate(places: usize) -> Arc<LongGate> {
        LongGate::new(move || LongBounds::of(places))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    const PLENTY: Long = Long { weight: 1, own_max: usize::MAX, queue_max: 100 };

    fn of_pool(connections_max: usize) -> Long {
        Long::of_pool(Share { connections_max, queue_max: 100, weight: 1 })
    }

    /// A pass that can be had at once.
    fn at_once(gate: &Arc<LongGate>, of: TenantId) -> Option<LongPass> {
        gate.pass(of, PLENTY, soon()).now_or_never()?.ok()
    }

    #[test]
    fn there_is_always_a_place_left() {
        for (places, own, all) in [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 2), (4, 2, 3), (5, 2, 3), (40, 20, 30)] {
            assert_eq!(LongBounds::of(places), LongBounds { own, all }, "{places}");
        }
    }

    #[tokio::test]
    async fn a_tenant_has_its_part_and_all_have_theirs() {
        let gate = gate(5);
        let (alpha, beta, gamma) = (tenant(1), tenant(2), tenant(3));
        let first = at_once(&gate, alpha).unwrap();
        let _second = at_once(&gate, alpha).unwrap();
        assert_eq!(gate.pass(alpha, PLENTY, soon()).await.unwrap_err(), Crowded::Own { max: 2 });
        let third = at_once(&gate, beta).unwrap();
        assert_eq!(gate.pass(gamma, PLENTY, soon()).await.unwrap_err(), Crowded::All { max: 3 });
        drop(first);
        let fourth = at_once(&gate, gamma).unwrap();
        drop((third, fourth));
        let state = gate.state();
        assert_eq!((state.held, state.tenants.len(), state.turns.len()), (1, 1, 0));
    }

    #[tokio::test]
    async fn who_waits_for_its_own_pool_takes_no_place_from_others() {
        let gate = gate(40);
        let (alpha, beta) = (tenant(1), tenant(2));
        let share = of_pool(3);
        let held = [gate.pass(alpha, share, soon()).await.unwrap(), gate.pass(alpha, share, soon()).await.unwrap()];
        let waiting = (0..40).map(|_| gate.pass(alpha, share, soon()));
        for refused in futures_util::future::join_all(waiting).await {
            assert_eq!(refused.unwrap_err(), Crowded::Own { max: 2 });
        }
        assert!(at_once(&gate, beta).is_some());
        drop(held);
        assert_eq!([1, 2, 10].map(|connections_max| of_pool(connections_max).own_max), [1, 1, 9]);
    }

    #[tokio::test]
    async fn who_waits_hears_of_more_room() {
        let places = Arc::new(AtomicUsize::new(2));
        let measured = Arc::clone(&places);
        let gate = LongGate::new(move || LongBounds::of(measured.load(Ordering::Relaxed)));
        let (alpha, narrow) = (tenant(1), of_pool(2));
        let _first = gate.pass(alpha, PLENTY, soon()).await.unwrap();
        let mut waiting = Box::pin(gate.pass(alpha, narrow, soon()));
        assert!((&mut waiting).now_or_never().is_none());
        places.store(8, Ordering::Relaxed);
        gate.serve();
        assert!((&mut waiting).now_or_never().is_none(), "its pool is as narrow as before");
        gate.share_set(alpha, of_pool(3));
        drop(waiting.now_or_never().expect("it is woken").unwrap());
    }

    #[tokio::test]
    async fn no_more_wait_than_may() {
        let gate = gate(2);
        let (alpha, share) = (tenant(1), Long { queue_max: 2, ..PLENTY });
        let held = gate.pass(alpha, share, soon()).await.unwrap();
        let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(gate.pass(alpha, share, soon()))).collect();
        assert!(waiting.iter_mut().all(|waiter| waiter.now_or_never().is_none()));
        let refused = gate.pass(alpha, share, soon()).now_or_never().expect("it does not wait");
        assert_eq!(refused.unwrap_err(), Crowded::Queue { max: 2 });
        drop(held);
        for waiter in waiting {
            drop(waiter.await.unwrap());
        }
        assert!(gate.state().tenants.is_empty());
    }

    #[tokio::test]
    async fn who_waits_has_its_turn_before_who_came_with_more() {
        let gate = gate(2);
        let (alpha, beta) = (tenant(1), tenant(2));
        let held = at_once(&gate, alpha).unwrap();
        let (mut more, mut one) =
            (Box::pin(gate.pass(alpha, PLENTY, soon())), Box::pin(gate.pass(beta, PLENTY, soon())));
        let mut last = Box::pin(gate.pass(alpha, PLENTY, soon()));
        let gone = Box::pin(gate.pass(beta, PLENTY, soon()));
        assert!((&mut more).now_or_never().is_none() && (&mut one).now_or_never().is_none());
        assert!((&mut last).now_or_never().is_none());
        drop(gone);
        drop(held);
        let second = more.await.unwrap();
        drop(second);
        let third = one.now_or_never().expect("it is beta's turn").unwrap();
        drop(third);
        drop(last.now_or_never().unwrap().unwrap());
        assert!(gate.state().tenants.is_empty());
    }

    /// Who had so many turns, one pass at a time: two tenants of these weights, of each of which always so many wait.
    async fn turns(weights: [u32; 2], callers: usize, count: usize) -> [usize; 2] {
        let gate = gate(2);
        let mut held = at_once(&gate, tenant(9)).unwrap();
        let come = |of: usize| {
            let share = Long { weight: weights[of], ..PLENTY };
            let mut pass = Box::pin(gate.pass(tenant(of as u128), share, Instant::now() + Duration::from_hours(1)));
            assert!((&mut pass).now_or_never().is_none());
            (of, pass)
        };
        let mut waiting: Vec<_> = (0..2 * callers).map(|caller| come(caller % 2)).collect();
        let mut had = [0; 2];
        for _ in 0..count {
            // Each time with a task's whole turn before it.
            tokio::task::yield_now().await;
            drop(held);
            let next = waiting.iter_mut().enumerate();
            let mut next = next.filter_map(|(index, (_, pass))| Some((index, pass.now_or_never()?)));
            let (index, pass) = next.next().expect("it is somebody's turn");
            let (of, _) = waiting.remove(index);
            had[of] += 1;
            waiting.push(come(of));
            held = pass.unwrap();
        }
        had
    }

    #[tokio::test]
    async fn tenants_have_turns_in_proportion_to_their_weights() {
        // Each caller is its tenant's first to wait, or behind others.
        for callers in [1, 3] {
            assert_eq!(turns([4, 1], callers, 50).await, [40, 10], "{callers}");
            assert_eq!(turns([1, 1], callers, 50).await, [25, 25], "{callers}");
        }
    }
}
