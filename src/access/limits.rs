//! How often something may happen: token buckets in one atomic each (the generic cell rate algorithm of ATM Forum
//! TM 4.0), and a bounded table of them. A bucket that was forgotten begins full.

use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

/// One in `interval`, and `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) interval: Duration,
    pub(super) burst: u32,
}

impl Rate {
    /// So many per second, a second's worth at once. Zero is taken as one.
    pub(super) fn per_second(count: u32) -> Self {
        let count = count.max(1);
        Self { interval: Duration::from_secs(1) / count, burst: count }
    }
}

/// One bucket: the moment, in nanoseconds since the start of the process, at which it would be full again.
#[derive(Debug, Default)]
pub(super) struct Bucket(AtomicU64);

impl Bucket {
    /// Takes one, or says how long to wait for it.
    pub(super) fn take(&self, rate: Rate) -> Result<(), Duration> {
        self.take_at(nanoseconds(), rate)
    }

    /// Whether there is none to take, and how long that lasts.
    pub(super) fn empty_for(&self, rate: Rate) -> Option<Duration> {
        let (now, full_at) = (nanoseconds(), self.0.load(Ordering::Relaxed));
        next(now, full_at, rate).err()
    }

    fn take_at(&self, now: u64, rate: Rate) -> Result<(), Duration> {
        let mut full_at = self.0.load(Ordering::Relaxed);
        loop {
            let after = next(now, full_at, rate)?;
            match self.0.compare_exchange_weak(full_at, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => full_at = other,
            }
        }
    }
}

/// When the bucket is full again after one was taken at `now`.
fn next(now: u64, full_at: u64, rate: Rate) -> Result<u64, Duration> {
    let interval = u64::try_from(rate.interval.as_nanos()).unwrap_or(u64::MAX);
    let after = full_at.max(now).saturating_add(interval);
    let latest = now.saturating_add(interval.saturating_mul(rate.burst.max(1).into()));
    if after <= latest { Ok(after) } else { Err(Duration::from_nanos(after - latest)) }
}

fn nanoseconds() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A bucket for each key, the least recently used forgotten first.
#[derive(Debug)]
pub(super) struct Buckets<K: Hash + Eq>(Mutex<LruCache<K, Arc<Bucket>>>);

impl<K: Hash + Eq> Buckets<K> {
    pub(super) fn new(keys_max: NonZeroUsize) -> Self {
        Self(Mutex::new(LruCache::new(keys_max)))
    }

    pub(super) fn of(&self, key: K) -> Arc<Bucket> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(buckets.get_or_insert(key, Arc::default))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let rate = Rate::per_second(10);
        let bucket = Bucket::default();
        let second = 1_000_000_000;
        let start = 5 * second;
        for _ in 0..10 {
            assert!(bucket.take_at(start, rate).is_ok());
        }
        assert_eq!(bucket.take_at(start, rate), Err(Duration::from_millis(100)));
        assert!(bucket.take_at(start + second / 10, rate).is_ok());
        assert!(bucket.take_at(start + second / 10, rate).is_err());
        // Full again, and not fuller.
        let later = start + 60 * second;
        assert_eq!((0..100).filter(|_| bucket.take_at(later, rate).is_ok()).count(), 10);
    }

    #[test]
    fn a_smaller_limit_counts_at_once() {
        let bucket = Bucket::default();
        for _ in 0..100 {
            assert!(bucket.take_at(0, Rate::per_second(100)).is_ok());
        }
        assert!(bucket.take_at(500_000_000, Rate::per_second(1)).is_err());
        assert!(bucket.take_at(1_000_000_000, Rate::per_second(1)).is_ok());
    }

    #[test]
    fn the_table_forgets_the_least_recently_used() {
        let buckets = Buckets::new(NonZeroUsize::new(2).unwrap());
        let rate = Rate::per_second(1);
        assert!(buckets.of("a").take(rate).is_ok());
        assert!(buckets.of("a").take(rate).is_err());
        buckets.of("b");
        buckets.of("c");
        assert!(buckets.of("a").take(rate).is_ok());
        assert!(buckets.of("a").empty_for(rate).is_some());
    }
}
