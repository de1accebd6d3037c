//! RouterService's view of pools: what each has, what happened to its tenant's callers, and closing one.

use serde_json::json;
use tonic::{Request, Response, Status};

use super::audit::{Author, Deed};
use super::{Service, auth, convert, status, texts};
use crate::accounts::Outcome;
use crate::proto::v1;
use crate::proto::v1::{
    EvictPoolRequest, EvictPoolResponse, GetTenantStatsRequest, GetTenantStatsResponse, ListPoolsRequest,
    ListPoolsResponse,
};
use crate::router::{Cause, PoolView, TenantStats};

impl Service {
    pub(super) fn pools_list(&self, request: Request<ListPoolsRequest>) -> Result<Response<ListPoolsResponse>, Status> {
        let principal = auth::caller(&request)?;
        let message = texts::checked(request)?;
        let page = convert::page(message.page_size, message.page_token)?;
        let pools = self.api.router.pools().into_iter();
        let rest = pools.filter(|pool| page.after.as_ref().is_none_or(|after| pool.code.as_str() > after.as_str()));
        let seen = rest.filter(|pool| principal.reaches(&pool.code)).collect();
        let paged = page.cut(seen, |pool: &PoolView| pool.code.to_string());
        let pools = paged.rows.into_iter().map(pool).collect();
        let (pools, next_page_token) = convert::page_cut(pools, paged.next, |last: &v1::Pool| last.tenant_code.clone());
        Ok(Response::new(ListPoolsResponse { pools, next_page_token }))
    }

    pub(super) async fn pool_evict(
        &self,
        request: Request<EvictPoolRequest>,
    ) -> Result<Response<EvictPoolResponse>, Status> {
        let (principal, author) = (auth::caller(&request)?, Author::of(&request)?);
        let message = texts::checked(request)?;
        let request_id = convert::request_id(&message.request_id)?;
        if message.reason.trim().is_empty() {
            return Err(status::invalid(vec![("reason", "say why; it is written down".to_owned())]));
        }
        let tenant = self.tenant_in_scope(&principal, &message.tenant).await?;
        let found = self.api.router.pool(tenant.id);
        if !message.validate_only {
            let deed = Deed {
                action: "RouterService/EvictPool",
                tenant: Some(tenant.id),
                resource_type: "pool",
                resource_id: tenant.code.to_string(),
                request_id,
                details: json!({ "reason": message.reason }),
            };
            self.api.access.record(author.event(deed, Outcome::Done)).await?;
            self.api.router.pool_evict(tenant.id);
            let (principal, reason) = (&principal.name, &message.reason);
            tracing::info!(tenant = %tenant.code, principal, reason, ?request_id, "a pool was closed on request");
        }
        Ok(Response::new(EvictPoolResponse { pool: found.map(pool) }))
    }

    pub(super) async fn tenant_stats(
        &self,
        request: Request<GetTenantStatsRequest>,
    ) -> Result<Response<GetTenantStatsResponse>, Status> {
        let principal = auth::caller(&request)?;
        let tenant = self.tenant_in_scope(&principal, &request.get_ref().tenant).await?;
        let router = &self.api.router;
        let stats = stats(tenant.id.to_string(), tenant.code.to_string(), &router.stats(tenant.id));
        Ok(Response::new(GetTenantStatsResponse { stats: Some(stats), pool: router.pool(tenant.id).map(pool) }))
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn long(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn pool(pool: PoolView) -> v1::Pool {
    v1::Pool {
        tenant_id: pool.tenant.to_string(),
        tenant_code: pool.code.to_string(),
        server: pool.server,
        epoch: pool.epoch,
        connections_max: count(pool.connections_max),
        idle: count(pool.idle),
        leased: count(pool.leased),
        connecting: count(pool.connecting),
        waiting: count(pool.waiting),
    }
}

fn stats(tenant_id: String, tenant_code: String, stats: &TenantStats) -> v1::TenantStats {
    let duration = |time: std::time::Duration| prost_types::Duration::try_from(time).unwrap_or_default();
    let errors = stats.errors.iter();
    v1::TenantStats {
        tenant_id,
        tenant_code,
        acquires: long(stats.acquires),
        shared: long(stats.shared),
        waits: long(stats.waits),
        wait_time: Some(duration(stats.wait_time)),
        connects: long(stats.connects),
        connect_time: Some(duration(stats.connect_time)),
        evictions: long(stats.evictions),
        cancels: long(stats.cancels),
        errors: errors
            .map(|(cause, count)| v1::ErrorCount { cause: Cause::name(*cause).to_owned(), count: long(*count) })
            .collect(),
    }
}
