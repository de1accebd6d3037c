//! What a call that goes on has used of its caller's rights, and so must not lose while it does.

use std::collections::BTreeSet;

use super::error::Error;
use crate::domain::permission::Permission;
use crate::domain::principal::{Principal, Scope};
use crate::domain::tenant::TenantCode;

/// Tenants that are noted one by one. A call that has reached more needs all that its caller has.
const TENANTS_MAX: usize = 1_024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    tenants: Scope,
    permissions: Vec<Permission>,
}

impl Default for Needs {
    /// Nothing yet.
    fn default() -> Self {
        Self { tenants: Scope::Tenants(BTreeSet::new()), permissions: Vec::new() }
    }
}

impl Needs {
    /// Everything that the caller may reach.
    pub fn scope(principal: &Principal) -> Self {
        Self { tenants: principal.scope.clone(), permissions: Vec::new() }
    }

    /// The call has reached this tenant.
    pub fn tenant(&mut self, tenant: &TenantCode, principal: &Principal) {
        let Scope::Tenants(reached) = &mut self.tenants else { return };
        if reached.contains(tenant) {
            return;
        }
        if reached.len() == TENANTS_MAX {
            self.tenants = principal.scope.clone();
        } else {
            reached.insert(tenant.clone());
        }
    }

    /// The call has reached what is no single tenant's.
    pub fn whole_fleet(&mut self) {
        self.tenants = Scope::All;
    }

    /// The call has used this.
    pub fn permission(&mut self, permission: Permission) {
        if !self.permissions.contains(&permission) {
            self.permissions.push(permission);
        }
    }

    /// Refuses a principal that lacks something by now.
    pub fn check(&self, principal: &Principal) -> Result<(), Error> {
        let has_all = principal.covers(&self.tenants) && self.permissions.iter().all(|needed| principal.may(*needed));
        if has_all { Ok(()) } else { Err(Error::Withdrawn { principal: principal.name.clone() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::permission::Role;

    fn code(text: &str) -> TenantCode {
        text.parse().unwrap()
    }

    fn principal(roles: &[Role], scope: Scope) -> Principal {
        Principal::new("test", roles.iter().copied().collect(), scope)
    }

    #[test]
    fn only_what_was_used_may_not_be_lost() {
        let tenants = |codes: &[&str]| Scope::Tenants(codes.iter().map(|text| code(text)).collect());
        let wide = principal(&[Role::Admin], Scope::All);
        let mut needs = Needs::default();
        needs.check(&principal(&[], tenants(&[]))).unwrap();
        needs.tenant(&code("acme"), &wide);
        needs.check(&principal(&[], tenants(&["acme"]))).unwrap();
        assert!(needs.check(&principal(&[], tenants(&["bolt"]))).is_err());
        needs.permission(Permission::Administrate);
        needs.check(&wide).unwrap();
        assert!(needs.check(&principal(&[Role::Viewer], Scope::All)).is_err());
        // Whoever read a database as a whole may not lose any tenant.
        needs.whole_fleet();
        needs.tenant(&code("bolt"), &wide);
        needs.check(&wide).unwrap();
        assert!(needs.check(&principal(&[Role::Admin], tenants(&["acme", "bolt"]))).is_err());
        let whole = Needs::scope(&wide);
        assert!(whole.check(&principal(&[Role::Admin], tenants(&["acme"]))).is_err());
    }

    #[test]
    fn what_is_noted_has_a_bound() {
        let own = principal(&[], Scope::Tenants((0..2_000).map(|number| code(&format!("t{number}"))).collect()));
        let mut needs = Needs::default();
        for number in 0..2_000 {
            needs.tenant(&code(&format!("t{number}")), &own);
        }
        assert_eq!(needs, Needs::scope(&own));
    }
}
