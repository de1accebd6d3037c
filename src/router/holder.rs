//! Who holds a lease: for the log, when it is held for too long.

use std::fmt;
use std::sync::Arc;

use crate::domain::principal::Principal;

/// Who calls, and what.
#[derive(Debug, Clone, Default)]
pub struct Holder {
    pub principal: Option<Arc<Principal>>,
    /// As `Execute`.
    pub method: &'static str,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.principal.as_ref().map_or("the daemon", |principal| principal.name.as_str());
        if self.method.is_empty() { f.write_str(name) } else { write!(f, "{name} in {}", self.method) }
    }
}
