//! Whose turn it is among tenants that wait for a place on a server: virtual time, as in self-clocked fair queueing
//! (Golestani, 1994). Each turn costs a tenant one stride, which is shorter the more it weighs, and who comes back joins
//! where the queue is now. So turns are shared in proportion to the weights among those who wait, a tenant gains nothing
//! by having more callers, and nobody is passed by more than a bounded number of turns.
//!
//! Does not know what a place is, or how many callers a tenant has.

use std::collections::BTreeSet;

/// What a turn costs a tenant of weight 1. Divisible by every weight up to 16.
const STRIDE: u64 = 720_720;

/// A tenant's own part of the order.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// When its last turn ended, in virtual time.
    ended: u64,
    queued: Option<Tag>,
}

/// A place in the order: the virtual time at which the turn ends, then who came first.
type Tag = (u64, u64);

/// Those who wait, by their turns.
#[derive(Debug)]
pub(super) struct Turns<K> {
    order: BTreeSet<(Tag, K)>,
    now: u64,
    arrivals: u64,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { order: BTreeSet::new(), now: 0, arrivals: 0 }
    }
}

impl<K: Copy + Ord> Turns<K> {
    /// Waits, if it does not already. Answers whether it is new.
    pub(super) fn join(&mut self, key: K, turn: &mut Turn, weight: u32) -> bool {
        if turn.queued.is_some() {
            return false;
        }
        self.arrivals += 1;
        let tag = (turn.ended.max(self.now) + STRIDE / u64::from(weight.max(1)), self.arrivals);
        turn.queued = Some(tag);
        self.order.insert((tag, key))
    }

    /// Waits no longer; its turn is still to come.
    pub(super) fn leave(&mut self, key: K, turn: &mut Turn) {
        if let Some(tag) = turn.queued.take() {
            self.order.remove(&(tag, key));
        }
    }

    /// Has its turn now.
    pub(super) fn take(&mut self, key: K, turn: &mut Turn) {
        if let Some(tag) = turn.queued {
            self.leave(key, turn);
            turn.ended = tag.0;
            self.now = self.now.max(tag.0);
        }
    }

    /// Those who wait, whose turn is next first.
    pub(super) fn iter(&self) -> impl Iterator<Item = K> {
        self.order.iter().map(|(_, key)| *key)
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves `count` turns among tenants that always want another.
    fn served(weights: &[u32], count: usize) -> Vec<usize> {
        let mut turns = Turns::default();
        let mut own: Vec<Turn> = weights.iter().map(|_| Turn::default()).collect();
        let mut had = vec![0; weights.len()];
        for _ in 0..count {
            for (key, turn) in own.iter_mut().enumerate() {
                turns.join(key, turn, weights[key]);
            }
            let next = turns.iter().next().unwrap();
            turns.take(next, &mut own[next]);
            had[next] += 1;
        }
        had
    }

    #[test]
    fn turns_are_in_proportion_to_the_weights() {
        assert_eq!(served(&[1, 1, 1], 300), [100, 100, 100]);
        assert_eq!(served(&[1, 2, 4, 8], 1500), [100, 200, 400, 800]);
    }

    #[test]
    fn equals_are_first_come_first_served() {
        let mut turns = Turns::default();
        let mut own: Vec<Turn> = (0..5).map(|_| Turn::default()).collect();
        for key in [3, 1, 4, 0, 2] {
            turns.join(key, &mut own[key], 2);
        }
        assert_eq!(turns.iter().collect::<Vec<_>>(), [3, 1, 4, 0, 2]);
    }

    #[test]
    fn a_stream_of_newcomers_does_not_starve_who_waits() {
        let mut turns = Turns::default();
        let mut waiting = Turn::default();
        turns.join(0, &mut waiting, 1);
        // Every newcomer weighs eight times as much, and none comes twice.
        let mut passed_by = 0;
        for key in 1.. {
            let mut turn = Turn::default();
            turns.join(key, &mut turn, 8);
            let next = turns.iter().next().unwrap();
            if next == 0 {
                break;
            }
            assert_eq!(next, key);
            turns.take(next, &mut turn);
            passed_by += 1;
        }
        assert!(passed_by <= 8, "{passed_by}");
    }

    #[test]
    fn who_leaves_has_not_had_its_turn() {
        let mut turns = Turns::default();
        let (mut first, mut second) = (Turn::default(), Turn::default());
        turns.join(1, &mut first, 1);
        turns.join(2, &mut second, 1);
        turns.leave(1, &mut first);
        assert_eq!(turns.iter().collect::<Vec<_>>(), [2]);
        turns.take(2, &mut second);
        assert!(turns.is_empty());
        turns.join(2, &mut second, 1);
        turns.join(1, &mut first, 1);
        assert_eq!(turns.iter().collect::<Vec<_>>(), [2, 1], "both begin at the queue's present");
    }
}
