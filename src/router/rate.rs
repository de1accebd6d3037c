//! How often something happened of late, as a number that stays comparable: forward decay (Cormode and others, 2009).
//! An event at time t counts exp(λt), and nothing has to be counted down later: of two rates the greater one is greater
//! for ever, until one of them is hit again. Kept as a logarithm, so that no time is too late for it.

use std::cmp::Ordering;
use std::time::Duration;

/// After this time an event counts half.
pub(super) const HALF_LIFE: Duration = Duration::from_secs(30);
/// A difference of logarithms beyond which the smaller number adds nothing to the greater.
const NEGLIGIBLE: f64 = 36.0;

/// The logarithm of the decayed number of events.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate(f64);

impl Rate {
    /// Of what never happened.
    pub(super) const NONE: Self = Self(f64::NEG_INFINITY);

    /// So many more events, `at` after a beginning that is the same for all rates that are compared.
    pub(super) fn hit(&mut self, at: Duration, count: u32) {
        if count == 0 {
            return;
        }
        let event = at.as_secs_f64() * std::f64::consts::LN_2 / HALF_LIFE.as_secs_f64() + f64::from(count).ln();
        let (greater, smaller) = if self.0 > event { (self.0, event) } else { (event, self.0) };
        let distance = greater - smaller;
        self.0 = if distance > NEGLIGIBLE { greater } else { greater + (-distance).exp().ln_1p() };
    }
}

impl PartialEq for Rate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rate {}

impl PartialOrd for Rate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(seconds: impl IntoIterator<Item = f64>) -> Rate {
        let mut rate = Rate::NONE;
        for at in seconds {
            rate.hit(Duration::from_secs_f64(at), 1);
        }
        rate
    }

    #[test]
    fn the_more_often_the_greater() {
        let seldom = rate((0..10).map(|n| f64::from(n) * 10.0));
        let often = rate((0..100).map(f64::from));
        assert!(often > seldom && seldom > Rate::NONE);
    }

    #[test]
    fn many_at_once_count_as_much_as_one_by_one() {
        let (mut together, mut apart) = (rate([1.0]), rate([1.0]));
        together.hit(Duration::from_secs(2), 3);
        (0..3).for_each(|_| apart.hit(Duration::from_secs(2), 1));
        assert!((together.0 - apart.0).abs() < 1e-9);
        let before = together;
        together.hit(Duration::from_secs(3), 0);
        assert_eq!(together, before);
        let mut never = Rate::NONE;
        never.hit(Duration::from_secs(3), 0);
        assert_eq!(never, Rate::NONE);
    }

    #[test]
    fn what_was_hot_cools_down() {
        let hot_once = rate((0..1000).map(|n| f64::from(n) / 100.0));
        let lukewarm = |until: i32| rate((0..until).map(f64::from));
        assert!(lukewarm(60) < hot_once, "fifty seconds do not outweigh a thousand events");
        assert!(lukewarm(300) > hot_once, "ten half-lives do");
    }

    #[test]
    fn after_ten_years_an_event_still_counts() {
        let ten_years = 10.0 * 365.0 * 86_400.0;
        let mut once = rate([ten_years]);
        let before = once;
        once.hit(Duration::from_secs_f64(ten_years), 1);
        assert!(once > before);
    }
}
