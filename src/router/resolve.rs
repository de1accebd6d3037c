//! Which tenant a caller means, and whether it may reach it. Selecting is not permission; a caller with a scope cannot
//! tell a tenant that is not its own from one that does not exist.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::error::Error;
use super::{Router, gate};
use crate::domain::principal::{Principal, Scope};
use crate::domain::route::{Route, Selector, select};

/// Where a call names its tenant; the first that is there counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// In the request itself.
    pub explicit: Option<Selector>,
    /// The metadata `x-tenant-id`: an id or a code.
    pub metadata: Option<&'a str>,
}

impl Router {
    /// The route of the tenant that the call means, if the caller may reach it and it is in service (its gate may be
    /// paused).
    pub async fn resolve(
        &self,
        request: Request<'_>,
        principal: &Principal,
        deadline: Instant,
    ) -> Result<Arc<Route>, Error> {
        let selector = select(request.explicit, request.metadata, &principal.scope)?;
        if let Selector::Code(code) = &selector
            && !principal.reaches(code)
        {
            return Err(Error::NotPermitted);
        }
        let found = timeout_at(deadline, self.0.routes.find(&self.0.shared.catalog, &selector))
            .await
            .unwrap_or_else(|_elapsed| Err(Error::CatalogSlow))?;
        match found {
            Some(fresh) if principal.reaches(&fresh.route.code) => {
                gate::check(&fresh.route)?;
                Ok(fresh.route)
            }
            None if principal.scope == Scope::All => Err(Error::TenantUnknown { tenant: selector.to_string() }),
            Some(_) | None => Err(Error::NotPermitted),
        }
    }
}
