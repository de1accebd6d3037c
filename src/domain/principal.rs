//! Who calls: a name for the log, roles, and the tenants in scope.

use std::collections::BTreeSet;

use super::permission::{Permission, Role};
use super::tenant::TenantCode;

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// As `api-key:ci`.
    pub name: String,
    pub roles: BTreeSet<Role>,
    pub scope: Scope,
}

/// The tenants that a caller may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    All,
    Tenants(BTreeSet<TenantCode>),
}

impl Principal {
    pub fn may(&self, permission: Permission) -> bool {
        self.roles.iter().any(|role| role.grants(permission))
    }

    pub fn reaches(&self, tenant: &TenantCode) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::Tenants(tenants) => tenants.contains(tenant),
        }
    }
}
