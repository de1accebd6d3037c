//! Pipeline: whose statements they are. Each names its tenant and user, and each is checked against its caller.

use futures_util::TryStreamExt as _;
use tonic::{Request, Status, Streaming};
use uuid::Uuid;

use super::Answers;
use super::streams::explain;
use super::user::user;
use crate::api::ongoing::Ongoing;
use crate::api::{Service, auth, routes, status};
use crate::domain::tenant::TenantId;
use crate::proto::v1::{PipelineRequest, PipelineResponse, StatementError};
use crate::query::{self, Caller};
use crate::router::{self, Holder};

impl Service {
    pub(super) fn pipeline_answers(
        &self,
        request: Request<Streaming<PipelineRequest>>,
    ) -> Result<Answers<PipelineResponse>, Status> {
        let ongoing = Ongoing::new(self, &request, "/tenantd.v1.QueryService/Pipeline")?;
        let deadline = auth::call_deadline(&request);
        let (metadata, extensions, requests) = request.into_parts();
        let call = Request::from_parts(metadata, extensions, ());
        let caller = Sender { service: self.clone(), ongoing: ongoing.clone(), call };
        let (queries, draining) = (self.api.queries.clone(), self.draining.clone());
        Ok(self.streaming("pipeline", ongoing, deadline, |answers| async move {
            let requests = requests.map_err(|error| status::undecodable::instead_of(&error).unwrap_or(error));
            let draining = async {
                draining.cancelled().await;
                status::draining()
            };
            queries.pipeline(caller, requests, answers, deadline, draining).await;
            Ok(())
        }))
    }
}

/// Who sends the statements of one stream.
struct Sender {
    service: Service,
    ongoing: Ongoing,
    /// Its metadata names the tenant where a statement does not.
    call: Request<()>,
}

impl Sender {
    /// Why a statement does not run.
    async fn refusal(&self, status: Status) -> Box<StatementError> {
        Box::new(status::queries::in_band(&self.ongoing.refused(status).await))
    }
}

impl Caller for Sender {
    async fn tenant(&self, name: &str) -> Result<TenantId, Box<StatementError>> {
        let route = async { self.service.route_of(&self.ongoing, &self.call, routes::reference(name)?).await };
        match route.await {
            Ok(route) => Ok(route.tenant),
            Err(status) => Err(self.refusal(status).await),
        }
    }

    fn holder(&self) -> Holder {
        self.ongoing.holder()
    }

    async fn user(&self, id: &str) -> Result<Option<Uuid>, Box<StatementError>> {
        match user(&self.ongoing.principal(), id) {
            Ok(user) => Ok(user),
            Err(status) => Err(self.refusal(status).await),
        }
    }

    fn explain(&self, error: query::Error) -> StatementError {
        explain(error)
    }

    fn explain_router(&self, error: router::Error) -> StatementError {
        status::queries::in_band(&error.into())
    }
}
