//! QueryService: one statement over the router's pools, for callers who may reach the tenant. Must not read the SQL.

use tonic::{Request, Response, Status};

use super::{Service, auth};
use crate::proto::v1::query_service_server::QueryService;
use crate::proto::v1::{ExecuteRequest, ExecuteResponse};
use crate::query::{self, Execute};

#[tonic::async_trait]
impl QueryService for Service {
    async fn execute(&self, request: Request<ExecuteRequest>) -> Result<Response<ExecuteResponse>, Status> {
        let deadline = auth::call_deadline(&request);
        let route = self.route(&request, super::routes::reference(&request.get_ref().tenant)?).await?;
        let message = request.into_inner();
        let lease = self.api.router.acquire(route.tenant, deadline).await?;
        let statement = Execute {
            sql: &message.sql,
            parameters: &message.parameters,
            rows_max: message.max_rows,
            slow_threshold: self.api.live.current().router.slow_statement_threshold,
        };
        let output = query::execute(lease, statement).await?;
        Ok(Response::new(ExecuteResponse {
            columns: output.columns,
            rows: output.rows,
            row_count: i64::try_from(output.row_count).unwrap_or(i64::MAX),
        }))
    }
}
