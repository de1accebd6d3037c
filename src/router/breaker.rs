//! Fuses: what has failed for a reason that lasts is not tried again for a short, growing time, and then by one caller
//! first. Kept outside of pools, so that closing a pool does not heal what is broken. Does not know what it guards.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long the first failure blocks; each further one doubles it.
const BLOCK_MIN: Duration = Duration::from_millis(100);
/// A tenant's longest block. There may be a thousand of them, each with somebody who tries.
const TENANT_BLOCK_MAX: Duration = Duration::from_secs(10);
/// A server's longest block: one connect in so long is no burden, and all its tenants wait for it.
const SERVER_BLOCK_MAX: Duration = Duration::from_secs(2);

/// One fuse. `C` is why it blew.
#[derive(Debug)]
pub(super) struct Breaker<C> {
    state: Mutex<State<C>>,
    block_max: Duration,
}

#[derive(Debug)]
struct State<C> {
    failures: u32,
    blown: Option<Blown<C>>,
    probes: u64,
}

#[derive(Debug)]
struct Blown<C> {
    cause: C,
    until: Instant,
    /// The one caller that tries.
    probe: Option<u64>,
}

/// Why nothing is tried, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocked<C> {
    pub(super) cause: C,
    pub(super) retry_after: Duration,
}

/// The right to try first; another may when this is dropped.
#[derive(Debug)]
pub(super) struct Probe<'a, C> {
    breaker: &'a Breaker<C>,
    id: u64,
}

/// A tenant's.
impl<C> Default for Breaker<C> {
    fn default() -> Self {
        Self { state: Mutex::new(State { failures: 0, blown: None, probes: 0 }), block_max: TENANT_BLOCK_MAX }
    }
}

impl<C: Clone> Breaker<C> {
    /// Whether to try. `None` is a caller like all others, a probe is the first after a failure.
    pub(super) fn check(&self, now: Instant) -> Result<Option<Probe<'_, C>>, Blocked<C>> {
        let mut state = self.state();
        let State { blown, probes, .. } = &mut *state;
        let Some(blown) = blown else { return Ok(None) };
        if now < blown.until {
            return Err(Blocked { cause: blown.cause.clone(), retry_after: blown.until - now });
        }
        if blown.probe.is_some() {
            return Err(Blocked { cause: blown.cause.clone(), retry_after: BLOCK_MIN });
        }
        *probes += 1;
        blown.probe = Some(*probes);
        Ok(Some(Probe { breaker: self, id: *probes }))
    }

    /// It failed. Answers until when it is blocked, and whether it was whole before.
    pub(super) fn failed(&self, cause: C, now: Instant) -> (Instant, bool) {
        let mut state = self.state();
        // Those who tried together with the first say nothing new.
        if let Some(blown) = state.blown.as_ref().filter(|blown| now < blown.until) {
            return (blown.until, false);
        }
        let was_whole = state.blown.is_none();
        let until = now + BLOCK_MIN.saturating_mul(1 << state.failures.min(16)).min(self.block_max);
        state.failures = state.failures.saturating_add(1);
        state.blown = Some(Blown { cause, until, probe: None });
        (until, was_whole)
    }
}

impl<C> Breaker<C> {
    pub(super) fn of_server() -> Self {
        Self { block_max: SERVER_BLOCK_MAX, ..Self::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It works. Answers whether it did not before.
    pub(super) fn reset(&self) -> bool {
        let mut state = self.state();
        state.failures = 0;
        state.blown.take().is_some()
    }
}

impl<C> Drop for Probe<'_, C> {
    fn drop(&mut self) {
        if let Some(blown) = &mut self.breaker.state().blown
            && blown.probe == Some(self.id)
        {
            blown.probe = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_blocks_for_a_growing_time() {
        let mut now = Instant::now();
        let mut lengths = |breaker: &Breaker<&str>| {
            let mut length = || {
                let (until, _) = breaker.failed("gone", now);
                let length = until - now;
                now = until;
                length.as_millis()
            };
            [(); 9].map(|()| length())
        };
        assert_eq!(lengths(&Breaker::of_server()), [100, 200, 400, 800, 1600, 2_000, 2_000, 2_000, 2_000]);
        let breaker = Breaker::default();
        assert_eq!(lengths(&breaker), [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert!(breaker.reset() && !breaker.reset());
        assert_eq!(breaker.failed("gone", now), (now + BLOCK_MIN, true));
    }

    #[test]
    fn those_who_failed_together_count_once() {
        let breaker = Breaker::default();
        let now = Instant::now();
        let first = breaker.failed("gone", now).0;
        assert_eq!(breaker.failed("gone", now), (first, false));
        let blocked = breaker.check(now).err();
        assert_eq!(blocked, Some(Blocked { cause: "gone", retry_after: BLOCK_MIN }));
    }

    #[test]
    fn one_tries_first() {
        let breaker = Breaker::default();
        let now = Instant::now();
        let until = breaker.failed("gone", now).0;
        let probe = breaker.check(until);
        assert!(matches!(probe, Ok(Some(_))));
        assert!(breaker.check(until).is_err(), "the second caller does not wait for the first");
        drop(probe);
        let probe = breaker.check(until);
        assert!(matches!(probe, Ok(Some(_))), "a probe that was given up is another's");
        breaker.reset();
        drop(probe);
        assert!(matches!(breaker.check(until), Ok(None)));
    }

    #[test]
    fn a_probe_that_fails_blocks_for_longer() {
        let breaker = Breaker::default();
        let until = breaker.failed("gone", Instant::now()).0;
        let probe = breaker.check(until);
        let (longer, was_whole) = breaker.failed("still gone", until);
        drop(probe);
        assert!(longer - until == BLOCK_MIN * 2 && !was_whole);
        assert_eq!(breaker.check(until).err().map(|blocked| blocked.cause), Some("still gone"));
    }
}
