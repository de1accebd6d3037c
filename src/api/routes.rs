//! RouterService: where a tenant is. A password is in the answer only when it was asked for and may be seen.

use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use tonic::{Request, Response, Status};

use super::audit::{Author, Deed};
use super::ongoing::Ongoing;
use super::watch::Answers;
use super::{Service, auth, convert, status};
use crate::accounts::Outcome;
use crate::catalog::RouteChange;
use crate::config::ServerConfig;
use crate::domain::permission::Permission;
use crate::domain::principal::Principal;
use crate::domain::route::{Route, Selector, Sources};
use crate::domain::tenant::TenantRole;
use crate::proto::v1;
use crate::proto::v1::resolve_tenant_request::Selector as Wanted;
use crate::proto::v1::router_service_server::RouterService;
use crate::proto::v1::{
    EvictPoolRequest, EvictPoolResponse, GetTenantStatsRequest, GetTenantStatsResponse, ListPoolsRequest,
    ListPoolsResponse, RemovedRoute, ResolveTenantRequest, ResolveTenantResponse, WatchRoutesRequest,
    WatchRoutesResponse,
};
use crate::router::{self, Mark, RouteEvent, url};

/// The metadata that names a tenant when the request does not.
const TENANT_METADATA: &str = "x-tenant-id";

impl Service {
    /// The same route for the caller of a stream as it is by now.
    pub(super) async fn route_of<T>(
        &self,
        ongoing: &Ongoing,
        request: &Request<T>,
        explicit: Option<Selector>,
    ) -> Result<Arc<Route>, Status> {
        let route = self.located_for(&ongoing.principal(), request, explicit).await?.route;
        ongoing.reached(&route.code);
        Ok(route)
    }

    /// The route of the tenant that the call means, if this caller may reach it.
    pub(super) async fn located_for<T>(
        &self,
        principal: &Principal,
        request: &Request<T>,
        explicit: Option<Selector>,
    ) -> Result<router::Fresh, Status> {
        // What is no text is no tenant either, and must not be passed over.
        let metadata = request.metadata().get(TENANT_METADATA).map(|value| value.to_str().unwrap_or("\u{fffd}"));
        let host = auth::called_host(request);
        let sources = Sources { explicit, metadata, host };
        let fresh = self.api.router.locate(sources, principal, auth::call_deadline(request)).await?;
        self.api.access.count_tenant(&fresh.route)?;
        Ok(fresh)
    }
}

impl Service {
    /// The route as drivers take it; without an address when this daemon is not configured for the server.
    fn message(
        &self,
        route: &Route,
        server: Option<&ServerConfig>,
        password: Option<&SecretString>,
    ) -> Result<v1::Route, Status> {
        let role = self.api.router.route_role(route, TenantRole::DirectA)?;
        let url = server.map(|server| url::url(server, &route.database, &role, password));
        let own_hosts = &self.api.live.current().own_hosts;
        Ok(v1::Route {
            tenant_id: route.tenant.to_string(),
            code: route.code.to_string(),
            state: convert::tenant_state(route.state).into(),
            tier: route.tier.clone(),
            server: route.server.clone(),
            host: server.map(|server| server.host.clone()).unwrap_or_default(),
            port: server.map(|server| server.port.into()).unwrap_or_default(),
            database: route.database.to_string(),
            role: role.to_string(),
            schema_version: route.schema_version,
            epoch: route.epoch,
            url: url.map(|url| url.expose_secret().to_owned()).unwrap_or_default(),
            password: password.map(|password| password.expose_secret().to_owned()).unwrap_or_default(),
            hosts: route.hosts.iter().filter(|host| !own_hosts.contains(host)).cloned().collect(),
        })
    }

    /// The password to the route. That it is shown is written down first.
    async fn disclosed<T>(&self, request: &Request<T>, route: &Route) -> Result<SecretString, Status> {
        let role = self.api.router.route_role(route, TenantRole::DirectA)?;
        let password = self.api.router.route_login_kept(route, TenantRole::DirectA).await?.password;
        let deed = Deed {
            action: "RouterService/ResolveTenant",
            tenant: Some(route.tenant),
            resource_type: "role",
            resource_id: role.to_string(),
            request_id: None,
            details: json!({ "tenant": route.code }),
        };
        self.api.access.record(Author::of(request)?.event(deed, Outcome::Disclosed)).await?;
        Ok(password)
    }

    /// One message of a watch.
    fn event(&self, event: RouteEvent) -> Result<WatchRoutesResponse, Status> {
        use v1::RouteEvent as Kind;
        let mut answer = WatchRoutesResponse::default();
        let (kind, mark) = match event {
            RouteEvent::Snapshot { routes, complete_at } => {
                for route in routes {
                    answer.routes.push(self.message(&route, self.api.config.server(&route.server), None)?);
                }
                (if complete_at.is_some() { Kind::SnapshotEnd } else { Kind::Snapshot }, complete_at)
            }
            RouteEvent::Changes { changes, mark } => {
                for change in changes {
                    match change {
                        RouteChange::Set(route) => {
                            answer.routes.push(self.message(&route, self.api.config.server(&route.server), None)?);
                        }
                        RouteChange::Removed { tenant, code, .. } => answer
                            .removed_routes
                            .push(RemovedRoute { tenant_id: tenant.to_string(), code: code.to_string() }),
                    }
                }
                (Kind::Changes, Some(mark))
            }
            RouteEvent::Quiet { mark } => (Kind::Keepalive, Some(mark)),
        };
        answer.set_event(kind);
        if let Some(mark) = mark {
            answer.catalog_id = mark.catalog_id.to_string();
            answer.revision = mark.revision;
        }
        Ok(answer)
    }
}

/// An id or a code; none when it is empty.
pub(super) fn reference(text: &str) -> Result<Option<Selector>, Status> {
    if text.is_empty() { Ok(None) } else { Ok(Some(Selector::reference(text)?)) }
}

#[tonic::async_trait]
impl RouterService for Service {
    type WatchRoutesStream = Answers<WatchRoutesResponse>;

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
        let principal = auth::caller(&request)?;
        let include_credentials = request.get_ref().include_credentials;
        if include_credentials && !principal.may(Permission::SeeCredentials) {
            return Err(status::denied("this caller may not see credentials"));
        }
        let router::Fresh { route, stale, .. } = self.located_for(&principal, &request, explicit).await?;
        let server = self.api.config.server(&route.server).ok_or_else(|| {
            status::internal(&router::Error::ServerUnknown { tenant: route.code.clone(), server: route.server.clone() })
        })?;
        // Rare, and large: not part of each call's future.
        let password = if include_credentials { Some(Box::pin(self.disclosed(&request, &route)).await?) } else { None };
        Ok(Response::new(ResolveTenantResponse {
            route: Some(self.message(&route, Some(server), password.as_ref())?),
            stale: stale.is_some(),
            age: stale.and_then(|age| age.try_into().ok()),
        }))
    }

    async fn watch_routes(
        &self,
        request: Request<WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let principal = auth::caller(&request)?;
        let ongoing = Ongoing::watch_all(self, &request, "/tenantd.v1.RouterService/WatchRoutes")?;
        let message = request.into_inner();
        let since = match message.after_revision {
            Some(revision) => Some(Mark { catalog_id: convert::uuid("catalog_id", &message.catalog_id)?, revision }),
            None => None,
        };
        let watch = self.api.router.routes_watch(&principal.scope, since).await?;
        let events = futures_util::stream::unfold((self.clone(), watch), async |(service, mut watch)| {
            let event = match watch.next().await {
                Ok(event) => service.event(event),
                Err(error) => Err(error.into()),
            };
            Some((event, (service, watch)))
        });
        Ok(Response::new(self.watch("watch routes", ongoing, events)))
    }

    async fn list_pools(&self, request: Request<ListPoolsRequest>) -> Result<Response<ListPoolsResponse>, Status> {
        self.pools_list(request)
    }

    async fn evict_pool(&self, request: Request<EvictPoolRequest>) -> Result<Response<EvictPoolResponse>, Status> {
        self.pool_evict(request).await
    }

    async fn get_tenant_stats(
        &self,
        request: Request<GetTenantStatsRequest>,
    ) -> Result<Response<GetTenantStatsResponse>, Status> {
        self.tenant_stats(request).await
    }
}
