//! QueryService: SQL over the router's pools, for callers who may reach the tenant. Must not read the SQL.

mod pipeline;
mod streams;
mod user;

use std::sync::Arc;

use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::ongoing::Ongoing;
use super::{Service, auth, convert, scope, status};
use crate::domain::permission::Permission;
use crate::domain::principal::Principal;
use crate::domain::route::Route;
use crate::proto::v1::query_service_server::QueryService;
use crate::proto::v1::{
    ExecuteRequest, ExecuteResponse, PipelineRequest, PipelineResponse, StreamQueryRequest, StreamQueryResponse,
    Target, TransactRequest, TransactResponse,
};
use crate::query::{BYTES_MAX, Execute, Session, StreamQuery, Whole};
use crate::router::{Fresh, Holder};
use user::user;

/// A streaming call's answers.
type Answers<T> = ReceiverStream<Result<T, Status>>;

/// Where a call's statements run.
enum Place {
    Tenant(Fresh),
    TenantShared(Arc<Route>),
    Whole(Whole),
}

impl Service {
    /// The place that a call means, if its caller may go there.
    async fn place<T>(
        &self,
        principal: &Principal,
        request: &Request<T>,
        target: Target,
        tenant: &str,
    ) -> Result<Place, Status> {
        let whole = match target {
            Target::Unspecified | Target::TenantShared => {
                let fresh = self.located_for(principal, request, super::routes::reference(tenant)?).await?;
                let is_shared = target == Target::TenantShared;
                return Ok(if is_shared { Place::TenantShared(fresh.route) } else { Place::Tenant(fresh) });
            }
            Target::Shared => Whole::Shared,
            Target::Auth => Whole::Auth,
        };
        if !principal.may(Permission::Administrate) {
            return Err(status::denied("only administrators read the daemon's own databases as a whole"));
        }
        scope::whole_fleet(principal, "a database of the daemon's own as a whole")?;
        if !tenant.is_empty() {
            let problem = "the daemon's own databases as a whole are no tenant's; leave it empty".to_owned();
            return Err(status::invalid(vec![("tenant", problem)]));
        }
        Ok(Place::Whole(whole))
    }

    /// The session for a statement, or for a transaction when there is none.
    async fn session(
        &self,
        holder: &Holder,
        place: &Place,
        sql: Option<&str>,
        deadline: Instant,
    ) -> Result<Session, Status> {
        let queries = &self.api.queries;
        Ok(match place {
            Place::Tenant(located) => queries.session_long_at(holder, located, deadline).await?,
            Place::TenantShared(route) => Box::pin(queries.session_shared(route, sql, deadline)).await?,
            Place::Whole(whole) => Box::pin(queries.session_whole(*whole, sql, deadline)).await?,
        })
    }

    /// The session of a stream, which must not lose what it got it by.
    async fn stream_session<T>(
        &self,
        ongoing: &Ongoing,
        request: &Request<T>,
        target: Target,
        tenant: &str,
        sql: Option<&str>,
        deadline: Instant,
    ) -> Result<Session, Status> {
        let place = self.place(&ongoing.principal(), request, target, tenant).await?;
        match &place {
            Place::Tenant(Fresh { route, .. }) | Place::TenantShared(route) => ongoing.reached(&route.code),
            Place::Whole(_) => ongoing.used_on_fleet(Permission::Administrate),
        }
        self.session(&ongoing.holder(), &place, sql, deadline).await
    }
}

#[tonic::async_trait]
impl QueryService for Service {
    type StreamQueryStream = Answers<StreamQueryResponse>;
    type TransactStream = Answers<TransactResponse>;
    type PipelineStream = Answers<PipelineResponse>;

    async fn execute(&self, request: Request<ExecuteRequest>) -> Result<Response<ExecuteResponse>, Status> {
        let (message, principal) = (request.get_ref(), auth::caller(&request)?);
        let user = user(&principal, &message.user_id)?;
        let deadline = auth::call_deadline(&request);
        let target = convert::target(message.target)?;
        let place = self.place(&principal, &request, target, &message.tenant).await?;
        let holder = Holder { principal: Some(principal), method: "Execute" };
        let statement = Execute {
            sql: &message.sql,
            parameters: &message.parameters,
            rows_max: message.max_rows,
            bytes_max: BYTES_MAX,
            user,
        };
        let queries = &self.api.queries;
        let output = match &place {
            Place::Tenant(located) => queries.execute_at(&holder, located, statement, deadline).await?,
            _own => {
                let session = Box::pin(self.session(&holder, &place, Some(&message.sql), deadline)).await?;
                queries.execute(session, statement).await?
            }
        };
        Ok(Response::new(ExecuteResponse {
            columns: output.columns,
            rows: output.rows,
            row_count: i64::try_from(output.row_count).unwrap_or(i64::MAX),
        }))
    }

    async fn stream_query(
        &self,
        request: Request<StreamQueryRequest>,
    ) -> Result<Response<Self::StreamQueryStream>, Status> {
        let message = request.get_ref();
        let user = user(&*auth::caller(&request)?, &message.user_id)?;
        let ongoing = Ongoing::new(self, &request, "/tenantd.v1.QueryService/StreamQuery")?;
        let deadline = auth::call_deadline(&request);
        let (target, sql) = (convert::target(message.target)?, Some(message.sql.as_str()));
        let session = self.stream_session(&ongoing, &request, target, &message.tenant, sql, deadline).await?;
        let message = request.into_inner();
        let input =
            StreamQuery { sql: message.sql, parameters: message.parameters, batch_rows: message.batch_rows, user };
        let queries = self.api.queries.clone();
        Ok(Response::new(self.streaming("stream query", ongoing, deadline, |parts| async move {
            Ok(queries.stream(session, &input, &parts).await?)
        })))
    }

    async fn transact(
        &self,
        request: Request<Streaming<TransactRequest>>,
    ) -> Result<Response<Self::TransactStream>, Status> {
        self.transaction(request).map(Response::new)
    }

    async fn pipeline(
        &self,
        request: Request<Streaming<PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        self.pipeline_answers(request).map(Response::new)
    }
}
