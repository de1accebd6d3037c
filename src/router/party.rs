//! One tenant's part of [`super::seats`]: the connections it has, those being made, and its callers that wait.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::queue::Turn;
use super::rate::Rate;
use crate::domain::tenant::TenantId;

/// How many connections of one tenant are worth something by themselves.
pub(super) const RANKS: usize = 4;

/// A lease that lasts so long will not be back in a moment.
pub(super) const LEASE_LONG: Duration = Duration::from_millis(20);
/// How long a caller waits before its tenant gets another connection at somebody else's expense.
pub(super) const GROW_WAIT: Duration = Duration::from_millis(20);
pub(super) type PartyId = u64;
pub(super) type ConnectionId = u64;

/// What a tenant may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) connections_max: usize,
    pub(super) queue_max: usize,
    pub(super) weight: u32,
}

#[derive(Debug)]
pub(super) struct Party<S, W, H, T> {
    pub(super) tenant: TenantId,
    pub(super) handle: S,
    pub(super) share: Share,
    /// How often callers came while so many connections were taken for long.
    pub(super) rates: [Rate; RANKS],
    pub(super) connections: Vec<Connection<H, T>>,
    pub(super) connecting: usize,
    /// In the order in which they came, and of their ids.
    pub(super) waiting: VecDeque<Waiter<W, H>>,
    pub(super) turn: Turn,
    /// No connection beside those that it has before then.
    pub(super) not_before: Option<Instant>,
    /// Since when connections go from caller to caller although another tenant wants a place.
    pub(super) hands_on_since: Option<Instant>,
    pub(super) is_closed: bool,
}

#[derive(Debug)]
pub(super) struct Connection<H, T> {
    pub(super) id: ConnectionId,
    /// When it has lived for long enough.
    pub(super) retires_at: Instant,
    /// What its statements are cancelled with.
    pub(super) token: T,
    pub(super) state: State<H>,
    /// Its caller is done with it, and it will be fit for the next one in a moment.
    pub(super) is_returning: bool,
}

impl<H, T> Connection<H, T> {
    fn is_long(&self, now: Instant) -> bool {
        match self.state {
            State::Leased { since, .. } => now.duration_since(since) >= LEASE_LONG,
            State::Idle { .. } => false,
        }
    }
}

#[derive(Debug)]
pub(super) enum State<H> {
    Idle { since: Instant, key: (Rate, u64) },
    Leased { since: Instant, holder: Option<H>, is_warned: bool },
}

#[derive(Debug)]
pub(super) struct Waiter<W, H> {
    pub(super) id: u64,
    pub(super) since: Instant,
    pub(super) caller: W,
    pub(super) holder: H,
}

impl<S, W, H, T> Party<S, W, H, T> {
    pub(super) fn new(tenant: TenantId, handle: S, share: Share, rates: [Rate; RANKS]) -> Self {
        Self {
            tenant,
            handle,
            share,
            rates,
            connections: Vec::new(),
            connecting: 0,
            waiting: VecDeque::new(),
            turn: Turn::default(),
            not_before: None,
            hands_on_since: None,
            is_closed: false,
        }
    }

    pub(super) fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection<H, T>> {
        self.connections.iter_mut().find(|found| found.id == id)
    }

    pub(super) fn has_idle(&self) -> bool {
        self.connections.iter().any(|found| matches!(found.state, State::Idle { .. }))
    }

    /// The idle one that is used next.
    pub(super) fn newest_idle(&self) -> Option<ConnectionId> {
        let idle = self.connections.iter().filter_map(|found| match found.state {
            State::Idle { key: (_, seq), since } => Some((since, seq, found.id)),
            State::Leased { .. } => None,
        });
        idle.max().map(|(_, _, id)| id)
    }

    /// How many of its connections are taken for long.
    pub(super) fn rank(&self, now: Instant) -> usize {
        self.connections.iter().filter(|found| found.is_long(now)).count()
    }

    /// How many of the others are.
    pub(super) fn rank_without(&self, connection: ConnectionId, now: Instant) -> usize {
        self.connections.iter().filter(|found| found.id != connection && found.is_long(now)).count()
    }

    /// So many callers came while so many connections were taken for long.
    pub(super) fn came(&mut self, rank: usize, callers: u32, at: Duration) {
        self.rates[rank.min(RANKS - 1)].hit(at, callers);
    }

    /// What a connection is worth when so many others are taken before it.
    pub(super) fn worth(&self, rank: usize) -> Rate {
        self.rates.get(rank).copied().unwrap_or(Rate::NONE)
    }

    /// Whether it takes up any places.
    pub(super) fn holds(&self) -> bool {
        !self.connections.is_empty() || self.connecting > 0
    }

    pub(super) fn wants_more(&self) -> bool {
        let returning = self.connections.iter().filter(|found| found.is_returning).count();
        !self.is_closed
            && self.waiting.len() > self.connecting + returning
            && self.connections.len() + self.connecting < self.share.connections_max
    }

    /// When it may have another connection; `None` means at once.
    pub(super) fn ready_at(&self, free: bool) -> Option<Instant> {
        if self.connections.is_empty() && self.connecting == 0 {
            return None;
        }
        let grows_at = self.waiting.front().filter(|_| !free).map(|first| first.since + GROW_WAIT);
        grows_at.max(self.not_before)
    }

    /// Whether nothing is left of a pool that was closed.
    pub(super) fn is_over(&self) -> bool {
        self.is_closed && self.connections.is_empty() && self.connecting == 0
    }

    pub(super) fn callers(&mut self) -> VecDeque<W> {
        std::mem::take(&mut self.waiting).into_iter().map(|waiter| waiter.caller).collect()
    }
}
