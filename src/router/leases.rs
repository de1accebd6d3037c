//! How many callers use one tenant's pools, over all of its slots: an old epoch's may outlive their slot.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

#[derive(Debug, Default)]
pub(super) struct Leases {
    count: AtomicUsize,
    /// How often what they run was cancelled for an operation.
    interruptions: AtomicU64,
    /// The one of the latest time.
    interrupter: Mutex<Option<Uuid>>,
    ended: Notify,
}

impl Leases {
    pub(super) fn begin(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn end(&self) {
        if self.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.ended.notify_waiters();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// From here on what they run is cancelled, for this operation.
    pub(super) fn interrupt(&self, operation: Option<Uuid>) {
        *self.interrupter.lock().unwrap_or_else(PoisonError::into_inner) = operation;
        self.interruptions.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn interrupter(&self) -> Option<Uuid> {
        *self.interrupter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn interruptions(&self) -> u64 {
        self.interruptions.load(Ordering::SeqCst)
    }

    /// Resolves when nobody uses one.
    pub(super) async fn none(&self) {
        loop {
            let ended = self.ended.notified();
            if self.is_empty() {
                return;
            }
            ended.await;
        }
    }
}
