//! The answer of a resolve, and the gate in front of it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::lifecycle::TenantState;
use super::tenant::{DatabaseName, TenantCode, TenantId};

/// A tenant's door in the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Gate {
    /// Callers pass.
    Open,
    /// Callers wait, for a bounded time; the operation that paused it reopens it.
    Paused { operation: Uuid },
    /// Callers are refused.
    Closed { operation: Option<Uuid> },
}

/// Where a tenant is. Credentials are not part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub tenant: TenantId,
    pub code: TenantCode,
    pub state: TenantState,
    pub tier: String,
    pub server: String,
    pub database: DatabaseName,
    /// Part of the identity row; grows when another database takes the tenant's place.
    pub generation: i64,
    pub schema_version: i64,
    pub epoch: i64,
    pub gate: Gate,
    pub suspend_reason: Option<String>,
}
