//! OperationService: what goes on, and went on, with the tenants in the caller's scope.

use futures_util::StreamExt as _;
use tonic::{Request, Response, Status};

use serde_json::{Value, json};

use super::audit::{Author, Deed};
use super::ongoing::Ongoing;
use super::watch::Answers;
use super::{Service, auth, convert, scope, texts};
use crate::accounts::{AuditEvent, Outcome};
use crate::catalog::{Operation, OperationFilter};
use crate::domain::operation::OperationId;
use crate::domain::principal::Principal;
use crate::operations::Settling;
use crate::proto::v1;
use crate::proto::v1::operation_service_server::OperationService;
use crate::proto::v1::{
    AbandonOperationRequest, AbandonOperationResponse, GetOperationRequest, GetOperationResponse,
    ListOperationsRequest, ListOperationsResponse, RetryOperationRequest, RetryOperationResponse,
    WatchOperationRequest, WatchOperationResponse,
};

impl Service {
    /// The operation, if its tenant is in the caller's scope.
    async fn operation_in_scope(&self, principal: &Principal, id: &str) -> Result<Operation, Status> {
        let id = OperationId(convert::uuid("operation_id", id)?);
        let operation = self.api.operations.get(id).await?;
        see(principal, &operation)?;
        Ok(operation)
    }

    /// Makes it so, once it is written down.
    async fn settle(&self, settling: Settling, event: AuditEvent) -> Result<Operation, Status> {
        if !settling.is_new() {
            return Ok(self.api.operations.settle(settling).await?);
        }
        self.api.access.record(event.clone()).await?;
        match self.api.operations.settle(settling).await {
            Ok(operation) => Ok(operation),
            Err(error) => {
                // Whether this can be written down or not, the caller hears why.
                let _recorded = self.api.access.record(AuditEvent { outcome: Outcome::Failed, ..event }).await;
                Err(error.into())
            }
        }
    }
}

fn deed(action: &'static str, operation: &Operation, request: &crate::operations::Request, details: Value) -> Deed {
    let resource_id = operation.id.to_string();
    Deed {
        action,
        tenant: operation.tenant,
        resource_type: "operation",
        resource_id,
        request_id: request.request_id,
        details,
    }
}

/// Refuses operations on tenants out of scope, and those on the whole fleet.
fn see(principal: &Principal, operation: &Operation) -> Result<(), Status> {
    match &operation.tenant_code {
        Some(code) => scope::reach(principal, code),
        None => scope::whole_fleet(principal, "an operation on the fleet"),
    }
}

#[tonic::async_trait]
impl OperationService for Service {
    type WatchOperationStream = Answers<WatchOperationResponse>;

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<GetOperationResponse>, Status> {
        let principal = auth::caller(&request)?;
        let operation = self.operation_in_scope(&principal, &request.get_ref().operation_id).await?;
        Ok(Response::new(GetOperationResponse { operation: Some(convert::operation(operation)) }))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let principal = auth::caller(&request)?;
        let message = texts::checked(request)?;
        let page = convert::page(message.page_size, message.page_token)?;
        let tenant = match message.tenant.as_str() {
            "" => None,
            tenant => Some(self.tenant_in_scope(&principal, tenant).await?.id),
        };
        let state = convert::operation_state_of(message.state)?;
        let filter = OperationFilter { codes: principal.scope.codes(), tenant, kind: None, state };
        let paged = self.api.catalog.operation_list(&page, &filter).await?;
        let operations = paged.rows.into_iter().map(convert::operation).collect();
        let token = |last: &v1::Operation| last.operation_id.clone();
        let (operations, next_page_token) = convert::page_cut(operations, paged.next, token);
        Ok(Response::new(ListOperationsResponse { operations, next_page_token }))
    }

    async fn watch_operation(
        &self,
        request: Request<WatchOperationRequest>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        let principal = auth::caller(&request)?;
        let operation = self.operation_in_scope(&principal, &request.get_ref().operation_id).await?;
        let ongoing = Ongoing::watch(self, &request, "/tenantd.v1.OperationService/WatchOperation")?;
        let updates = self
            .api
            .operations
            .watch(operation.id)
            .map(|update| Ok(WatchOperationResponse { operation: Some(convert::operation(update?)) }));
        Ok(Response::new(self.watch("watch operation", ongoing, updates)))
    }

    async fn retry_operation(
        &self,
        request: Request<RetryOperationRequest>,
    ) -> Result<Response<RetryOperationResponse>, Status> {
        let (principal, author) = (auth::caller(&request)?, Author::of(&request)?);
        let message = texts::checked(request)?;
        let operation = self.operation_in_scope(&principal, &message.operation_id).await?;
        let request = convert::request(principal.name.clone(), &message.request_id, message.validate_only)?;
        let settling = self.api.operations.retry(&request, operation.id).await?;
        let details = json!({ "kind": operation.kind });
        let deed = deed("OperationService/RetryOperation", &operation, &request, details);
        let operation = self.settle(settling, author.event(deed, Outcome::Done)).await?;
        Ok(Response::new(RetryOperationResponse { operation: Some(convert::operation(operation)) }))
    }

    async fn abandon_operation(
        &self,
        request: Request<AbandonOperationRequest>,
    ) -> Result<Response<AbandonOperationResponse>, Status> {
        let (principal, author) = (auth::caller(&request)?, Author::of(&request)?);
        let message = texts::checked(request)?;
        let operation = self.operation_in_scope(&principal, &message.operation_id).await?;
        let request = convert::request(principal.name.clone(), &message.request_id, message.validate_only)?;
        let settling = self.api.operations.abandon(&request, operation.id, &message.reason).await?;
        let details = json!({ "kind": operation.kind, "reason": message.reason });
        let deed = deed("OperationService/AbandonOperation", &operation, &request, details);
        let operation = self.settle(settling, author.event(deed, Outcome::Done)).await?;
        Ok(Response::new(AbandonOperationResponse { operation: Some(convert::operation(operation)) }))
    }
}
