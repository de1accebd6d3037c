//! Pipeline: whose statements they are. Each names its tenant and user, and each is checked against its caller.

use std::sync::Arc;

use tonic::{Request, Status, Streaming};
use uuid::Uuid;

use super::Answers;
use super::streams::explain;
use super::user::user;
use crate::api::{Service, auth, routes, status};
use crate::domain::principal::Principal;
use crate::domain::tenant::TenantId;
use crate::proto::v1::{PipelineRequest, PipelineResponse, StatementError};
use crate::query::{self, Caller};
use crate::router::{self, Holder};

impl Service {
    pub(super) fn pipeline_answers(
        &self,
        request: Request<Streaming<PipelineRequest>>,
    ) -> Result<Answers<PipelineResponse>, Status> {
        let (principal, deadline) = (auth::caller(&request)?, auth::call_deadline(&request));
        let (metadata, extensions, requests) = request.into_parts();
        let call = Request::from_parts(metadata, extensions, ());
        let caller = Sender { service: self.clone(), principal, call };
        let queries = self.api.queries.clone();
        Ok(self.streaming("pipeline", deadline, |answers| async move {
            queries.pipeline(caller, requests, answers, deadline).await;
            Ok(())
        }))
    }
}

/// Who sends the statements of one stream.
struct Sender {
    service: Service,
    principal: Arc<Principal>,
    /// Its metadata names the tenant where a statement does not.
    call: Request<()>,
}

impl Caller for Sender {
    async fn tenant(&self, name: &str) -> Result<TenantId, Box<StatementError>> {
        let route = async { self.service.route(&self.call, routes::reference(name)?).await };
        route.await.map(|route| route.tenant).map_err(|status| Box::new(status::queries::in_band(&status)))
    }

    fn holder(&self) -> Holder {
        Holder { principal: Some(Arc::clone(&self.principal)), method: "Pipeline" }
    }

    fn user(&self, id: &str) -> Result<Option<Uuid>, Box<StatementError>> {
        user(&self.principal, id).map_err(|status| Box::new(status::queries::in_band(&status)))
    }

    fn explain(&self, error: query::Error) -> StatementError {
        explain(error)
    }

    fn explain_router(&self, error: router::Error) -> StatementError {
        status::queries::in_band(&error.into())
    }
}
