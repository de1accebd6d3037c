//! The limits that count at this moment. Whoever needs one reads it here each time, so that a reload takes effect
//! without a restart; whoever keeps one for longer than a call works with a limit of the past.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Limits;

/// A cheap handle; all clones see the same limits.
#[derive(Debug, Clone)]
pub struct Live(Arc<ArcSwap<Limits>>);

impl Live {
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(limits)))
    }

    pub fn current(&self) -> Arc<Limits> {
        self.0.load_full()
    }

    /// From now on these count.
    pub fn replace(&self, limits: Limits) {
        self.0.store(Arc::new(limits));
    }
}
