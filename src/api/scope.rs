//! Which tenants a caller may see. The router guards its own calls; these guard the others.

use std::fmt::Display;

use tonic::Status;

use super::{Service, called, convert, status};
use crate::catalog::{Error, Tenant, TenantRef};
use crate::domain::principal::{Principal, Scope};
use crate::domain::tenant::TenantCode;

impl Service {
    /// The tenant, by id or code, if it is in the caller's scope.
    pub(super) async fn tenant_in_scope(&self, principal: &Principal, tenant: &str) -> Result<Tenant, Status> {
        let wanted = convert::tenant_ref(tenant)?;
        if let TenantRef::Code(code) = &wanted {
            reach(principal, code)?;
        }
        match self.api.catalog.tenant_get(&wanted).await {
            Ok(found) => reach(principal, &found.code).map(|()| found),
            Err(Error::TenantUnknown { .. }) if principal.scope != Scope::All => Err(out_of_scope(&wanted)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Refuses a tenant that is not in the caller's scope.
pub(super) fn reach(principal: &Principal, code: &TenantCode) -> Result<(), Status> {
    if principal.reaches(code) { Ok(()) } else { Err(out_of_scope(code)) }
}

fn out_of_scope(tenant: &dyn Display) -> Status {
    called::refused_for(tenant);
    status::out_of_scope()
}

/// Refuses a caller whose scope is not the whole fleet.
pub(super) fn whole_fleet(principal: &Principal, what: &str) -> Result<(), Status> {
    match principal.scope {
        Scope::All => Ok(()),
        Scope::Tenants(_) => Err(status::denied(format!("{what} is for callers whose scope is the whole fleet"))),
    }
}
