//! TenantService: the life cycle of the tenants in the caller's scope. Changes are operations, begun here and
//! driven elsewhere.

use serde_json::json;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::audit::{Author, Deed};
use super::{Service, auth, convert, scope, texts};
use crate::accounts::{AuditEvent, Outcome};
use crate::catalog::{self, TenantFilter, TenantRef, Txn};
use crate::domain::host::tenant_host;
use crate::domain::tenant::TenantId;
use crate::operations::CreateTenant;
use crate::proto::v1;
use crate::proto::v1::tenant_service_server::TenantService;
use crate::proto::v1::{
    AddTenantHostRequest, AddTenantHostResponse, CreateTenantRequest, CreateTenantResponse, GetTenantRequest,
    GetTenantResponse, ListTenantsRequest, ListTenantsResponse, RemoveTenantHostRequest, RemoveTenantHostResponse,
    ResumeTenantRequest, ResumeTenantResponse, SuspendTenantRequest, SuspendTenantResponse,
};

#[tonic::async_trait]
impl TenantService for Service {
    async fn create_tenant(
        &self,
        request: Request<CreateTenantRequest>,
    ) -> Result<Response<CreateTenantResponse>, Status> {
        let principal = auth::caller(&request)?;
        scope::whole_fleet(&principal, "creating tenants")?;
        let message = texts::checked(request)?;
        let request = convert::request(principal.name.clone(), &message.request_id, message.validate_only)?;
        let administrator = message.administrator.map(|user| (user.email, user.first_name, user.last_name));
        let wish = CreateTenant {
            code: message.code,
            name: message.name,
            tier: message.tier,
            sample_data: message.sample_data,
            administrator,
            hosts: message.hosts,
            legal_name: message.legal_name,
            siret: message.siret,
            vat_number: message.vat_number,
        };
        let Some(begun) = self.api.operations.create_tenant(&request, wish).await? else {
            return Ok(Response::new(CreateTenantResponse::default()));
        };
        let tenant = match begun.tenant {
            // Undone by now, if the operation was quick to fail.
            Some(id) => self.api.catalog.tenant_get(&TenantRef::Id(id)).await.ok(),
            None => None,
        };
        Ok(Response::new(CreateTenantResponse {
            operation: Some(convert::operation(begun)),
            tenant: tenant.map(convert::tenant),
        }))
    }

    async fn get_tenant(&self, request: Request<GetTenantRequest>) -> Result<Response<GetTenantResponse>, Status> {
        let principal = auth::caller(&request)?;
        let tenant = self.tenant_in_scope(&principal, &request.get_ref().tenant).await?;
        Ok(Response::new(GetTenantResponse { tenant: Some(convert::tenant(tenant)) }))
    }

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        let principal = auth::caller(&request)?;
        let message = texts::checked(request)?;
        let page = convert::page(message.page_size, message.page_token)?;
        let filter = TenantFilter { state: convert::tenant_state_of(message.state)?, codes: principal.scope.codes() };
        let paged = self.api.catalog.tenant_list(&page, &filter).await?;
        let tenants = paged.rows.into_iter().map(convert::tenant).collect();
        let token = |last: &v1::Tenant| format!("{}.{}", last.code, last.tenant_id);
        let (tenants, next_page_token) = convert::page_cut(tenants, paged.next, token);
        Ok(Response::new(ListTenantsResponse { tenants, next_page_token }))
    }

    async fn suspend_tenant(
        &self,
        request: Request<SuspendTenantRequest>,
    ) -> Result<Response<SuspendTenantResponse>, Status> {
        let principal = auth::caller(&request)?;
        let message = texts::checked(request)?;
        let tenant = self.tenant_in_scope(&principal, &message.tenant).await?;
        let request = convert::request(principal.name.clone(), &message.request_id, message.validate_only)?;
        let begun = self.api.operations.suspend_tenant(&request, &tenant.id.to_string(), &message.reason).await?;
        Ok(Response::new(SuspendTenantResponse { operation: begun.map(convert::operation) }))
    }

    async fn resume_tenant(
        &self,
        request: Request<ResumeTenantRequest>,
    ) -> Result<Response<ResumeTenantResponse>, Status> {
        let principal = auth::caller(&request)?;
        let message = texts::checked(request)?;
        let tenant = self.tenant_in_scope(&principal, &message.tenant).await?;
        let request = convert::request(principal.name.clone(), &message.request_id, message.validate_only)?;
        let begun = self.api.operations.resume_tenant(&request, &tenant.id.to_string()).await?;
        Ok(Response::new(ResumeTenantResponse { operation: begun.map(convert::operation) }))
    }

    async fn add_tenant_host(
        &self,
        request: Request<AddTenantHostRequest>,
    ) -> Result<Response<AddTenantHostResponse>, Status> {
        let (principal, author) = (auth::caller(&request)?, Author::of(&request)?);
        let message = texts::checked(request)?;
        let request_id = convert::request_id(&message.request_id)?;
        let host = self.api.live.current().own_hosts.tenant_host(&message.host)?;
        let tenant = self.tenant_in_scope(&principal, &message.tenant).await?.id;
        let txn = self.api.catalog.begin().await?;
        let changed = self.api.catalog.tenant_host_add_in_txn(&txn, tenant, &host).await?;
        if !message.validate_only {
            let deed = host_deed("TenantService/AddTenantHost", tenant, host, request_id);
            self.host_commit(txn, tenant, author.event(deed, Outcome::Done)).await?;
        }
        Ok(Response::new(AddTenantHostResponse { tenant: Some(convert::tenant(changed)) }))
    }

    async fn remove_tenant_host(
        &self,
        request: Request<RemoveTenantHostRequest>,
    ) -> Result<Response<RemoveTenantHostResponse>, Status> {
        let (principal, author) = (auth::caller(&request)?, Author::of(&request)?);
        let message = texts::checked(request)?;
        let request_id = convert::request_id(&message.request_id)?;
        let host = tenant_host(&message.host)?;
        let tenant = self.tenant_in_scope(&principal, &message.tenant).await?.id;
        let txn = self.api.catalog.begin().await?;
        let changed = self.api.catalog.tenant_host_remove_in_txn(&txn, tenant, &host).await?;
        if !message.validate_only {
            let deed = host_deed("TenantService/RemoveTenantHost", tenant, host, request_id);
            self.host_commit(txn, tenant, author.event(deed, Outcome::Done)).await?;
        }
        Ok(Response::new(RemoveTenantHostResponse { tenant: Some(convert::tenant(changed)) }))
    }
}

impl Service {
    /// Makes a change of hosts count.
    async fn host_commit(&self, txn: Txn, tenant: TenantId, event: AuditEvent) -> Result<(), Status> {
        self.api.access.record(event.clone()).await?;
        if let Err(error) = txn.commit().await {
            // Whether this can be written down or not, the caller hears why.
            let _recorded = self.api.access.record(AuditEvent { outcome: Outcome::Failed, ..event }).await;
            return Err(catalog::Error::from(error).into());
        }
        self.api.router.route_forget(tenant);
        Ok(())
    }
}

fn host_deed(action: &'static str, tenant: TenantId, host: String, request_id: Option<Uuid>) -> Deed {
    Deed { action, tenant: Some(tenant), resource_type: "host", resource_id: host, request_id, details: json!({}) }
}
