//! How often each key was used, per day: counted in memory, and written every few seconds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::accounts::{Accounts, KeyUsage};

pub(super) const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// One key's calls since the last writing.
#[derive(Debug, Default)]
pub(super) struct Counts {
    calls: AtomicU64,
    failures: AtomicU64,
}

impl Counts {
    pub(super) fn call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// The counts of the keys in use. As many as there are callers in memory.
#[derive(Debug, Default)]
pub(super) struct Usage(Mutex<BTreeMap<Uuid, Arc<Counts>>>);

impl Usage {
    pub(super) fn of(&self, key: Uuid) -> Arc<Counts> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default())
    }

    /// What was counted since the last time; keys that nobody holds any more are forgotten.
    fn drain(&self) -> Vec<KeyUsage> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |(key, counts): (&Uuid, &Arc<Counts>)| {
            let (calls, failures) =
                (counts.calls.swap(0, Ordering::Relaxed), counts.failures.swap(0, Ordering::Relaxed));
            (calls + failures > 0).then_some(KeyUsage { key: *key, calls, failures })
        };
        let used = counts.iter().filter_map(read).collect();
        counts.retain(|_, counts| Arc::strong_count(counts) > 1);
        used
    }

    /// What could not be written is counted again.
    fn put_back(&self, used: &[KeyUsage]) {
        for usage in used {
            let counts = self.of(usage.key);
            counts.calls.fetch_add(usage.calls, Ordering::Relaxed);
            counts.failures.fetch_add(usage.failures, Ordering::Relaxed);
        }
    }

    /// Writes what was counted. What cannot be written is counted on.
    pub(super) async fn flush(&self, accounts: &Accounts) {
        let used = self.drain();
        if used.is_empty() {
            return;
        }
        if let Err(error) = accounts.api_key_usage_add(&used, OffsetDateTime::now_utc()).await {
            tracing::debug!(%error, "the use of keys could not be noted yet");
            self.put_back(&used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_told_once_and_forgotten_with_their_callers() {
        let usage = Usage::default();
        let key = Uuid::nil();
        let counts = usage.of(key);
        counts.call();
        counts.call();
        counts.failure();
        assert_eq!(usage.drain(), [KeyUsage { key, calls: 2, failures: 1 }]);
        assert!(usage.drain().is_empty());
        usage.put_back(&[KeyUsage { key, calls: 5, failures: 0 }]);
        counts.call();
        assert_eq!(usage.drain(), [KeyUsage { key, calls: 6, failures: 0 }]);
        drop(counts);
        usage.drain();
        assert!(usage.0.lock().unwrap().is_empty());
    }
}
