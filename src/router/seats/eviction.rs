//! Which connections go: those that are worth least when the budget is used up, those that idle for too long, and those
//! that a tenant holds beyond its share while another has none.

use tokio::time::Instant;

use super::{HAND_ON_MAX, Seats};
use crate::router::party::{ConnectionId, PartyId, State};
use crate::router::rate::Rate;

impl<S: Clone, W, H, T> Seats<S, W, H, T> {
    /// The connection idles from now on, and may be evicted.
    pub(super) fn idles(&mut self, id: PartyId, connection: ConnectionId, now: Instant) {
        self.last_id += 2;
        let (seq, below_seq) = (self.last_id, self.last_id - 1);
        let Some(party) = self.parties.get_mut(&id) else { return };
        let below = party.newest_idle();
        if let Some(found) = party.connection(connection) {
            // No longer leased, so that its own lease does not count.
            found.state = State::Idle { since: now, key: (Rate::NONE, seq) };
        }
        let rank = party.rank(now);
        let (worth, worth_below) = (party.worth(rank), party.worth(rank + 1));
        let mut set = |connection: ConnectionId, key: (Rate, u64)| {
            if let Some(State::Idle { key: kept, .. }) = party.connection(connection).map(|found| &mut found.state) {
                self.idle.remove(kept);
                *kept = key;
                self.idle.insert(key, (id, connection));
            }
        };
        // The newest is used first, so what lies below it is needed only when it is taken.
        if let Some(below) = below {
            set(below, (worth_below, below_seq));
        }
        set(connection, (worth, seq));
    }

    /// Whether a connection that comes back makes room for another tenant's.
    pub(super) fn gives_way(&mut self, id: PartyId, now: Instant) -> bool {
        if !self.is_starving() || self.blocked_until.is_some_and(|until| until > now) {
            return false;
        }
        let others = || {
            let others = self.turns.iter().filter(|other| *other != id).filter_map(|other| self.parties.get(&other));
            others
                .filter(|other| other.ready_at(false).is_none_or(|at| at <= now))
                .map(|other| ((other.connections.len() + other.connecting) as u64, u64::from(other.share.weight)))
        };
        // Whoever has none, or least for its weight, whosever turn it is: those who want more and hold equally many
        // might look at each other and give nothing up for ever, and then nobody has another turn. No more of them than
        // there are connections are looked at.
        let least =
            |(a, a_weight): &(u64, u64), (b, b_weight): &(u64, u64)| ((a + 1) * b_weight).cmp(&((b + 1) * a_weight));
        let other = others().find(|(theirs, _)| *theirs == 0).or_else(|| others().min_by(least));
        let Some(party) = self.parties.get_mut(&id) else { return false };
        let Some((theirs, their_weight)) = other else {
            party.hands_on_since = None;
            return false;
        };
        let (mine, weight) = (party.connections.len() as u64, u64::from(party.share.weight));
        let over_share = mine * their_weight > (theirs + 1) * weight;
        let gives_way = if party.waiting.is_empty() {
            // It idles, and goes as the one that is worth least does. If it is the only one it goes at once: whoever
            // had it may take it again before anybody sees that it idles.
            party.hands_on_since = None;
            self.idle.is_empty() && (over_share || theirs == 0)
        } else {
            let since = *party.hands_on_since.get_or_insert(now);
            over_share || (theirs == 0 && now.duration_since(since) >= HAND_ON_MAX)
        };
        if gives_way {
            party.hands_on_since = None;
            self.going += 1;
        }
        gives_way
    }

    /// Takes away the idle connection that is worth least, for a connector that has no place.
    pub(in crate::router) fn evict_for_starving(&mut self) -> Option<(S, ConnectionId)> {
        if !self.is_starving() {
            return None;
        }
        let evicted = self.evict()?;
        self.going += 1;
        Some(evicted)
    }

    /// Takes away the idle connection that is worth least.
    pub(in crate::router) fn evict(&mut self) -> Option<(S, ConnectionId)> {
        let (_, (id, connection)) = self.idle.pop_first()?;
        let party = self.parties.get_mut(&id)?;
        party.connections.retain(|found| found.id != connection);
        if !party.holds() {
            self.holding.remove(&id);
        }
        Some((party.handle.clone(), connection))
    }

    /// Takes away what has idled since before `then`, and idle ones whose time is over.
    pub(in crate::router) fn expire(&mut self, then: Option<Instant>, now: Instant) -> Vec<(S, ConnectionId)> {
        let mut expired = Vec::new();
        for (id, connection) in self.idle.values() {
            let Some(party) = self.parties.get_mut(id) else { continue };
            let Some(found) = party.connection(*connection) else { continue };
            let State::Idle { since, key } = found.state else { continue };
            if then.is_some_and(|then| since < then) || found.retires_at <= now {
                expired.push((party.handle.clone(), *id, *connection, key));
            }
        }
        for (_, id, connection, key) in &expired {
            self.idle.remove(key);
            if let Some(party) = self.parties.get_mut(id) {
                party.connections.retain(|found| found.id != *connection);
                if !party.holds() {
                    self.holding.remove(id);
                }
            }
        }
        expired.into_iter().map(|(handle, _, connection, _)| (handle, connection)).collect()
    }
}
