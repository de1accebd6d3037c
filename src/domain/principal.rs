//! Who calls: a name for the log, roles, and the tenants in scope.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::permission::{Permission, Role};
use super::tenant::TenantCode;

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// As `api-key:ci`.
    pub name: String,
    pub roles: BTreeSet<Role>,
    pub scope: Scope,
    /// The tenant that a call means when nothing else says one; in scope.
    pub default_tenant: Option<TenantCode>,
    /// The user of the auth database on whose behalf the caller speaks.
    pub user: Option<Uuid>,
}

/// The tenants that a caller may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    All,
    Tenants(BTreeSet<TenantCode>),
}

impl Scope {
    /// The tenants one by one; `None` for all.
    pub fn codes(&self) -> Option<&BTreeSet<TenantCode>> {
        match self {
            Self::All => None,
            Self::Tenants(codes) => Some(codes),
        }
    }
}

impl Principal {
    /// A caller that is no user and has no default tenant.
    pub fn new(name: impl Into<String>, roles: BTreeSet<Role>, scope: Scope) -> Self {
        Self { name: name.into(), roles, scope, default_tenant: None, user: None }
    }

    pub fn may(&self, permission: Permission) -> bool {
        permission == Permission::Authenticated || self.roles.iter().any(|role| role.grants(permission))
    }

    pub fn reaches(&self, tenant: &TenantCode) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::Tenants(tenants) => tenants.contains(tenant),
        }
    }

    /// Whether it reaches everything that lies in `scope`.
    pub fn covers(&self, scope: &Scope) -> bool {
        match (&self.scope, scope) {
            (Scope::All, _) => true,
            (Scope::Tenants(_), Scope::All) => false,
            (Scope::Tenants(own), Scope::Tenants(wanted)) => wanted.is_subset(own),
        }
    }
}
