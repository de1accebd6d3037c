//! RouterService: where a tenant is. A password is in the answer only when it was asked for and may be seen.

use std::sync::Arc;

use secrecy::ExposeSecret as _;
use tonic::{Request, Response, Status};

use super::{Service, auth, convert, status};
use crate::domain::permission::Permission;
use crate::domain::route::{Route, Selector, Sources};
use crate::domain::tenant::TenantRole;
use crate::proto::v1;
use crate::proto::v1::resolve_tenant_request::Selector as Wanted;
use crate::proto::v1::router_service_server::RouterService;
use crate::proto::v1::{ResolveTenantRequest, ResolveTenantResponse};
use crate::router::{self, url};

/// The metadata that names a tenant when the request does not.
const TENANT_METADATA: &str = "x-tenant-id";

impl Service {
    /// The route of the tenant that the call means, if the caller may reach it.
    pub(super) async fn route<T>(
        &self,
        request: &Request<T>,
        explicit: Option<Selector>,
    ) -> Result<Arc<Route>, Status> {
        Ok(self.fresh(request, explicit).await?.route)
    }

    async fn fresh<T>(&self, request: &Request<T>, explicit: Option<Selector>) -> Result<router::Fresh, Status> {
        let principal = auth::caller(request)?;
        // What is no text is no tenant either, and must not be passed over.
        let metadata = request.metadata().get(TENANT_METADATA).map(|value| value.to_str().unwrap_or("\u{fffd}"));
        let host = auth::called_host(request);
        let sources = Sources { explicit, metadata, host };
        Ok(self.api.router.locate(sources, &principal, auth::call_deadline(request)).await?)
    }
}

/// An id or a code; none when it is empty.
pub(super) fn reference(text: &str) -> Result<Option<Selector>, Status> {
    if text.is_empty() { Ok(None) } else { Ok(Some(Selector::reference(text)?)) }
}

#[tonic::async_trait]
impl RouterService for Service {
    async fn resolve_tenant(
        &self,
        request: Request<ResolveTenantRequest>,
    ) -> Result<Response<ResolveTenantResponse>, Status> {
        let explicit = match &request.get_ref().selector {
            None => None,
            Some(Wanted::TenantId(id)) => Some(Selector::id(id)?),
            Some(Wanted::Code(code)) => Some(Selector::code(code)?),
            Some(Wanted::Host(host)) => Some(Selector::host(host)?),
        };
        let include_credentials = request.get_ref().include_credentials;
        if include_credentials && !auth::caller(&request)?.may(Permission::SeeCredentials) {
            return Err(status::denied("this caller may not see credentials"));
        }
        let router::Fresh { route, stale, .. } = self.fresh(&request, explicit).await?;
        let server = self.api.config.server(&route.server).ok_or_else(|| {
            status::internal(&router::Error::ServerUnknown { tenant: route.code.clone(), server: route.server.clone() })
        })?;
        let password = if include_credentials {
            Some(self.api.router.route_login_kept(&route, TenantRole::DirectA).await?.password)
        } else {
            None
        };
        let role = self.api.router.route_role(&route, TenantRole::DirectA)?;
        let url = url::url(server, &route.database, &role, password.as_ref());
        Ok(Response::new(ResolveTenantResponse {
            route: Some(v1::Route {
                tenant_id: route.tenant.to_string(),
                code: route.code.to_string(),
                state: convert::tenant_state(route.state).into(),
                tier: route.tier.clone(),
                server: route.server.clone(),
                host: server.host.clone(),
                port: server.port.into(),
                database: route.database.to_string(),
                role: role.to_string(),
                schema_version: route.schema_version,
                epoch: route.epoch,
                url: url.expose_secret().to_owned(),
                password: password.map(|password| password.expose_secret().to_owned()).unwrap_or_default(),
                hosts: route.hosts.clone(),
            }),
            stale: stale.is_some(),
            age: stale.and_then(|age| age.try_into().ok()),
        }))
    }
}
