//! Which tenant a caller means, and whether it may reach it. Selecting is not permission; a caller with a scope cannot
//! tell a tenant that is not its own from one that does not exist.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::error::Error;
use super::routes::Fresh;
use super::{Router, gate};
use crate::domain::principal::{Principal, Scope};
use crate::domain::route::{Route, Selector, Sources, select};

impl Router {
    /// The route of the tenant that the call means, if the caller may reach it and it is in service (its gate may be
    /// paused).
    pub async fn resolve(
        &self,
        sources: Sources<'_>,
        principal: &Principal,
        deadline: Instant,
    ) -> Result<Arc<Route>, Error> {
        Ok(self.locate(sources, principal, deadline).await?.route)
    }

    /// As [`Router::resolve`], with a word on how old the answer is.
    pub async fn locate(&self, sources: Sources<'_>, principal: &Principal, deadline: Instant) -> Result<Fresh, Error> {
        let choice = select(sources, principal, &self.0.shared.limits().own_hosts);
        timeout_at(deadline, async {
            if let Some(host) = &choice.host
                && let Some(fresh) = self.0.routes.find_host(&self.0.shared.catalog, host).await?
            {
                return admit(fresh, principal);
            }
            self.named(choice.otherwise?, principal).await
        })
        .await
        .unwrap_or(Err(Error::CatalogSlow))
    }

    async fn named(&self, selector: Selector, principal: &Principal) -> Result<Fresh, Error> {
        if let Selector::Code(code) = &selector
            && !principal.reaches(code)
        {
            return Err(Error::NotPermitted { tenant: code.to_string() });
        }
        let found = match &selector {
            Selector::Host(host) if self.0.shared.limits().own_hosts.contains(host) => None,
            _ => self.0.routes.find(&self.0.shared.catalog, &selector).await?,
        };
        match found {
            Some(fresh) => admit(fresh, principal),
            None if principal.scope == Scope::All => Err(Error::TenantUnknown { tenant: selector.to_string() }),
            None => Err(Error::NotPermitted { tenant: selector.to_string() }),
        }
    }
}

fn admit(fresh: Fresh, principal: &Principal) -> Result<Fresh, Error> {
    if !principal.reaches(&fresh.route.code) {
        return Err(Error::NotPermitted { tenant: fresh.route.code.to_string() });
    }
    gate::check(&fresh.route)?;
    Ok(fresh)
}
