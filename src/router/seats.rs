//! Who gets which of the connections that one server may have: pure bookkeeping, told what happens and when, and
//! answering what is to be done. Knows no connection, no budget and no task; a connection is a number here.
//!
//! The policy, and why:
//!
//! - **Whoever is back first.** A connection that comes back goes to its own tenant's callers first, in their order, so
//!   that one cold connect serves all who wait for it. While it is cleaned for the next caller, that caller wants no
//!   other.
//! - **Whom to evict.** When the budget is used up, the idle connection goes that is worth least: the one whose tenant
//!   asked least often of late ([`super::rate`]). A connect costs a server milliseconds and a statement microseconds, so
//!   the best that can be done is to keep one connection for each of the most frequent tenants, and let all others
//!   pass through the few places that are left; the least recently used would go round in circles instead. A tenant
//!   that stops asking decays and goes.
//! - **What a second connection is worth** is how often a caller came while the first was taken for long
//!   ([`super::party::LEASE_LONG`]): one that only waits for microseconds needs no second one. So a surplus connection of a busy
//!   tenant goes before the only one of a quiet one, and one that a long report needs beside it stays.
//! - **Spare places.** A few places of a large budget are kept free, so that a tenant without a connection need not wait
//!   for another's backend to end.
//! - **Growing.** While the budget has free places, every caller that waits may be worth a connection. When somebody
//!   else has to give one up for it, a tenant gets a first one at once and another only when a caller of its has waited
//!   for [`super::party::GROW_WAIT`], which the handing-on of its connections would have ended otherwise.
//! - **Turns.** Tenants that want a place take turns by weight ([`super::queue`]), each turn one connection. Eviction
//!   takes what idles, whatever it is worth, so nobody waits for ever for want of popularity.
//! - **Giving way.** When nothing idles and somebody waits for a place, a tenant that holds more by weight than the one
//!   that has least gives up the next connection that comes back, whosever turn it is to have it; one that does not
//!   hands it on to its own callers for [`HAND_ON_MAX`] and then gives it up if anybody has none. One connection is
//!   closed for each place that is waited for, though it takes a while until its backend has gone.

mod eviction;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::party::{Connection, ConnectionId, Party, PartyId, RANKS, Share, State, Waiter};
use super::queue::Turns;
use super::rate::Rate;
use crate::domain::tenant::TenantId;

/// How long a tenant's callers hand a connection on to each other while a tenant without any waits: several times what
/// a new connection costs.
pub(super) const HAND_ON_MAX: Duration = Duration::from_millis(50);
/// Tenants without a pool whose rates are remembered; the least recently used are forgotten.
const RATES_MAX: usize = 1 << 14;

/// What a caller does that asks for a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Takes the tenant's newest idle one.
    Idle,
    /// Waits. `held` are the connections that may come back.
    Wait { held: usize },
    /// As many wait as may.
    Full { queue_max: usize },
    /// The pool is no more.
    Closed,
}

/// What becomes of a connection that came back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Give<W> {
    HandOn(W),
    Idle,
    Close,
}

/// Whom to connect for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<S> {
    Connect(PartyId, S),
    /// Nobody before then.
    At(Instant),
    Nobody,
}

/// What a caller waits for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Why {
    Pool { connections_max: usize },
    Budget,
    Connect,
}

/// `S` is what stands for a tenant's pool, `W` for a caller that waits, `H` for whoever holds a lease, and `T` is what a
/// connection's statements are cancelled with.
#[derive(Debug)]
pub(super) struct Seats<S, W, H, T> {
    begun: Instant,
    parties: HashMap<PartyId, Party<S, W, H, T>>,
    /// Those of them that have connections, or for whom some are being made: no more than the budget, however many
    /// tenants have a pool.
    holding: BTreeSet<PartyId>,
    /// From the one that is worth least; of equals, the one that idles longest.
    idle: BTreeMap<(Rate, u64), (PartyId, ConnectionId)>,
    turns: Turns<PartyId>,
    rates: LruCache<TenantId, [Rate; RANKS]>,
    last_id: u64,
    /// Connectors that have somebody to connect for and no place.
    starving: usize,
    /// Connections that were closed for them, whose places they have not got yet.
    going: usize,
    /// Tenants of whose idle connections some are to be cleaned.
    unclean: BTreeSet<PartyId>,
    blocked_until: Option<Instant>,
    has_news: bool,
}

impl<S: Clone, W, H, T> Seats<S, W, H, T> {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: now,
            parties: HashMap::new(),
            holding: BTreeSet::new(),
            idle: BTreeMap::new(),
            turns: Turns::default(),
            rates: LruCache::unbounded(),
            last_id: 0,
            starving: 0,
            going: 0,
            unclean: BTreeSet::new(),
            blocked_until: None,
            has_news: false,
        }
    }

    /// A number that was never given before.
    pub(super) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn open(&mut self, id: PartyId, tenant: TenantId, handle: S, share: Share) {
        let rates = self.rates.pop(&tenant).unwrap_or([Rate::NONE; RANKS]);
        self.parties.insert(id, Party::new(tenant, handle, share, rates));
    }

    /// A caller came, and needs a connection.
    pub(super) fn came(&mut self, id: PartyId, now: Instant) {
        if let Some(party) = self.parties.get_mut(&id) {
            party.came(party.rank(now), 1, now.duration_since(self.begun));
        }
    }

    /// So many callers more were served by this connection, which does not count as taken before them.
    pub(super) fn came_with(&mut self, id: PartyId, connection: ConnectionId, count: u32, now: Instant) {
        if let Some(party) = self.parties.get_mut(&id) {
            party.came(party.rank_without(connection, now), count, now.duration_since(self.begun));
        }
    }

    /// Where a caller of the tenant can get one.
    pub(super) fn ask(&self, id: PartyId) -> Ask {
        let Some(party) = self.parties.get(&id).filter(|party| !party.is_closed) else { return Ask::Closed };
        if party.has_idle() {
            Ask::Idle
        } else if party.waiting.len() >= party.share.queue_max {
            Ask::Full { queue_max: party.share.queue_max }
        } else {
            Ask::Wait { held: party.connections.len() }
        }
    }

    /// The caller took this one, which idled. False when it did not, and must be closed.
    pub(super) fn take(&mut self, id: PartyId, connection: ConnectionId, holder: H, now: Instant) -> bool {
        let Some(found) = self.parties.get_mut(&id).and_then(|party| party.connection(connection)) else {
            return false;
        };
        let State::Idle { key, .. } = found.state else { return false };
        self.idle.remove(&key);
        found.state = State::Leased { since: now, holder: Some(holder), is_warned: false };
        true
    }

    /// The connection will be back in a moment, and nobody needs another one instead; or it takes longer after all.
    pub(super) fn returning(&mut self, id: PartyId, connection: ConnectionId, yes: bool) {
        if let Some(found) = self.parties.get_mut(&id).and_then(|party| party.connection(connection)) {
            found.is_returning = yes;
            self.requeue(id);
        }
    }

    /// The caller waits.
    pub(super) fn wait(&mut self, id: PartyId, caller: W, holder: H, now: Instant) -> u64 {
        let waiter = self.new_id();
        if let Some(party) = self.parties.get_mut(&id) {
            party.waiting.push_back(Waiter { id: waiter, since: now, caller, holder });
        }
        self.requeue(id);
        waiter
    }

    /// The caller waits no longer.
    pub(super) fn leave(&mut self, id: PartyId, waiter: u64) {
        let Some(party) = self.parties.get_mut(&id) else { return };
        if let Ok(index) = party.waiting.binary_search_by_key(&waiter, |waiter| waiter.id) {
            party.waiting.remove(index);
            self.requeue(id);
        }
    }

    /// A connection came back, fit for another caller.
    pub(super) fn give(&mut self, id: PartyId, connection: ConnectionId, now: Instant) -> Give<W> {
        if self.gives_way(id, now) {
            self.lose(id, connection);
            return Give::Close;
        }
        self.seat(id, connection, now)
    }

    /// To the caller that waits longest, or to idle.
    fn seat(&mut self, id: PartyId, connection: ConnectionId, now: Instant) -> Give<W> {
        let Some(party) = self.parties.get_mut(&id) else { return Give::Close };
        if self.turns.is_empty() {
            party.hands_on_since = None;
        }
        let surplus = party.connections.len() > party.share.connections_max;
        if party.is_closed || surplus || party.connection(connection).is_none() {
            self.lose(id, connection);
            return Give::Close;
        }
        if let Some(found) = party.connection(connection) {
            found.is_returning = false;
        }
        let Some(waiter) = party.waiting.pop_front() else {
            self.idles(id, connection, now);
            return Give::Idle;
        };
        if let Some(found) = party.connection(connection) {
            found.state = State::Leased { since: now, holder: Some(waiter.holder), is_warned: false };
        }
        self.requeue(id);
        Give::HandOn(waiter.caller)
    }

    /// The connection is no more.
    pub(super) fn lose(&mut self, id: PartyId, connection: ConnectionId) {
        let Some(party) = self.parties.get_mut(&id) else { return };
        if let Some(index) = party.connections.iter().position(|found| found.id == connection)
            && let State::Idle { key, .. } = party.connections.swap_remove(index).state
        {
            self.idle.remove(&key);
        }
        // Who waited for its own connections to come back needs one now.
        self.has_news |= !party.holds() && !party.waiting.is_empty();
        self.requeue(id);
    }

    /// A connection of the tenant's idles that is to be cleaned.
    pub(super) fn unclean(&mut self, id: PartyId) {
        self.unclean.insert(id);
    }

    /// The pools of which that was said since the last call.
    pub(super) fn take_unclean(&mut self) -> Vec<S> {
        let unclean = std::mem::take(&mut self.unclean);
        unclean.iter().filter_map(|id| self.parties.get(id)).map(|party| party.handle.clone()).collect()
    }

    /// Whom to connect for, whose turn it is then. `free` says that nobody has to give up a connection for it.
    pub(super) fn next(&mut self, now: Instant, free: bool) -> Next<S> {
        let (id, at) = match self.due(now, free) {
            Ok(id) => (id, None),
            Err(at) => (0, at),
        };
        if let Some(party) = self.parties.get_mut(&id) {
            party.connecting += 1;
            self.holding.insert(id);
            self.turns.take(id, &mut party.turn);
            let handle = party.handle.clone();
            self.requeue(id);
            return Next::Connect(id, handle);
        }
        at.map_or(Next::Nobody, Next::At)
    }

    /// Whose turn it is, or when it is somebody's.
    fn due(&self, now: Instant, free: bool) -> Result<PartyId, Option<Instant>> {
        if let Some(until) = self.blocked_until.filter(|until| *until > now) {
            return Err((!self.turns.is_empty()).then_some(until));
        }
        let mut soonest: Option<Instant> = None;
        for id in self.turns.iter() {
            match self.parties.get(&id).and_then(|party| party.ready_at(free)) {
                Some(at) if at > now => soonest = Some(soonest.map_or(at, |soonest| soonest.min(at))),
                _ready => return Ok(id),
            }
        }
        Err(soonest)
    }

    /// Whether [`Seats::next`] would name somebody, and if not, when.
    pub(super) fn is_due(&self, now: Instant, free: bool) -> Next<()> {
        match self.due(now, free) {
            Ok(id) => Next::Connect(id, ()),
            Err(at) => at.map_or(Next::Nobody, Next::At),
        }
    }

    /// A connector waits for a place (`true`), or no longer.
    pub(super) fn starves(&mut self, yes: bool) {
        if yes {
            self.starving += 1;
        } else {
            self.starving = self.starving.saturating_sub(1);
            self.going = self.going.saturating_sub(1);
        }
    }

    /// Whether something is to be closed for connectors: one connection for each, however many could go meanwhile.
    pub(super) fn is_starving(&self) -> bool {
        self.starving > self.going
    }

    /// What was closed has left no place for long: its backend is slow to go, or somebody else had the place.
    pub(super) fn starves_on(&mut self) {
        if !self.is_starving() {
            self.going = self.going.saturating_sub(1);
        }
    }

    /// The connection is there, and goes to the caller that waits longest.
    pub(super) fn made(
        &mut self,
        id: PartyId,
        connection: ConnectionId,
        (retires_at, token): (Instant, T),
        now: Instant,
    ) -> Give<W> {
        let Some(party) = self.parties.get_mut(&id) else { return Give::Close };
        party.connecting -= 1;
        party.not_before = None;
        party.hands_on_since = None;
        let state = State::Leased { since: now, holder: None, is_warned: false };
        party.connections.push(Connection { id: connection, retires_at, token, state, is_returning: false });
        self.seat(id, connection, now)
    }

    /// There is no connection to be had before `not_before`. Answers with the callers that are to be told: all, or when
    /// `only_new` those of a tenant that has no connection which might come back.
    pub(super) fn failed(&mut self, id: PartyId, only_new: bool, not_before: Option<Instant>) -> VecDeque<W> {
        let Some(party) = self.parties.get_mut(&id) else { return VecDeque::new() };
        party.connecting -= 1;
        party.not_before = not_before;
        let spared = only_new && !party.connections.is_empty();
        let told = if spared { VecDeque::new() } else { party.callers() };
        self.requeue(id);
        told
    }

    /// The server takes no new connections until then. Answers with the callers that have nothing else to wait for.
    pub(super) fn block(&mut self, until: Instant) -> VecDeque<W> {
        self.blocked_until = Some(until);
        let waiting: Vec<PartyId> = self.turns.iter().collect();
        let mut told = VecDeque::new();
        for id in waiting {
            if let Some(party) = self.parties.get_mut(&id).filter(|party| party.connections.is_empty()) {
                told.append(&mut party.callers());
                self.requeue(id);
            }
        }
        told
    }

    /// The server takes connections again.
    pub(super) fn unblock(&mut self) {
        self.has_news |= self.blocked_until.take().is_some() && !self.turns.is_empty();
    }

    /// Nobody gets a connection of this pool any more; those that idle are forgotten, those in use when they come back.
    /// Answers with the callers that wait.
    pub(super) fn close(&mut self, id: PartyId) -> VecDeque<W> {
        let Some(party) = self.parties.get_mut(&id) else { return VecDeque::new() };
        party.is_closed = true;
        let told = party.callers();
        let idle = &mut self.idle;
        party.connections.retain(|found| match &found.state {
            State::Idle { key, .. } => {
                idle.remove(key);
                false
            }
            State::Leased { .. } => true,
        });
        self.requeue(id);
        told
    }

    /// Keeps the order of turns true after a change, and forgets a pool that is no more.
    fn requeue(&mut self, id: PartyId) {
        let Some(party) = self.parties.get_mut(&id) else { return };
        if party.wants_more() {
            self.has_news |= self.turns.join(id, &mut party.turn, party.share.weight);
        } else {
            self.turns.leave(id, &mut party.turn);
        }
        if !party.holds() {
            self.holding.remove(&id);
        }
        if party.is_over()
            && let Some(party) = self.parties.remove(&id)
        {
            self.unclean.remove(&id);
            self.rates.put(party.tenant, party.rates);
            if self.rates.len() > RATES_MAX {
                self.rates.pop_lru();
            }
        }
    }

    /// Whether a tenant has begun to want a place since this was asked last.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Whether tenants wait for a place.
    pub(super) fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Whether more tenants wait than one connector and the starving ones will serve.
    pub(super) fn has_work_for_more(&self) -> bool {
        self.turns.len() > self.starving + 1
    }

    /// Connections that there are, and those being made.
    pub(super) fn connection_count(&self) -> usize {
        self.holding().map(|party| party.connections.len() + party.connecting).sum()
    }

    pub(super) fn share_set(&mut self, id: PartyId, share: Share) {
        if let Some(party) = self.parties.get_mut(&id) {
            party.share = share;
            self.requeue(id);
        }
    }

    /// What a caller of the tenant waits for.
    pub(super) fn why(&self, id: PartyId) -> Why {
        match self.parties.get(&id) {
            Some(party) if party.connections.len() >= party.share.connections_max => {
                Why::Pool { connections_max: party.share.connections_max }
            }
            Some(party) if party.connecting == 0 && self.starving > 0 => Why::Budget,
            Some(_) | None => Why::Connect,
        }
    }

    pub(super) fn parties(&self) -> impl Iterator<Item = &Party<S, W, H, T>> {
        self.parties.values()
    }

    /// The tenants that hold connections; what idles without any costs nothing to look at.
    fn holding(&self) -> impl Iterator<Item = &Party<S, W, H, T>> {
        self.holding.iter().filter_map(|id| self.parties.get(id))
    }

    /// Looks at each of them.
    pub(super) fn each_holding(&mut self, mut look: impl FnMut(&mut Party<S, W, H, T>)) {
        for id in &self.holding {
            if let Some(party) = self.parties.get_mut(id) {
                look(party);
            }
        }
    }

    pub(super) fn party(&self, id: PartyId) -> Option<&Party<S, W, H, T>> {
        self.parties.get(&id)
    }
}
