//! Whether a tenant's door is open, as its route says.

use super::error::Error;
use crate::domain::lifecycle::TenantState;
use crate::domain::route::{Gate, Route};

/// Refuses a tenant that is not in service; a paused gate is the caller's to wait at.
pub(super) fn check(route: &Route) -> Result<Gate, Error> {
    if route.state != TenantState::Active {
        return Err(Error::State {
            tenant: route.code.clone(),
            state: route.state,
            reason: route.suspend_reason.clone(),
            allowed: vec![TenantState::Active],
        });
    }
    match route.gate {
        Gate::Closed { operation } => Err(Error::Closed { tenant: route.code.clone(), operation }),
        open_or_paused => Ok(open_or_paused),
    }
}
