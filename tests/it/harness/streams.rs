//! Streams as a caller holds them open.

use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::transact_response::Outcome;
use tenantd::proto::v1::{
    BeginTransaction, PipelineRequest, PipelineResponse, PipelineStatement, StreamQueryRequest, StreamQueryResponse,
    TransactRequest, TransactResponse, TransactionStatement, WatchRoutesRequest, WatchRoutesResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::client::Client;

/// Both ends of a stream that goes both ways.
#[derive(Debug)]
pub struct Open<Q, A> {
    pub requests: mpsc::Sender<Q>,
    pub answers: Streaming<A>,
}

impl Client {
    /// A transaction that has not begun.
    pub async fn transaction_opened(&self) -> Result<Open<TransactRequest, TransactResponse>, Status> {
        let (requests, stream) = mpsc::channel(8);
        Ok(Open { requests, answers: self.query().transact(ReceiverStream::new(stream)).await?.into_inner() })
    }

    /// A transaction in the tenant's database.
    pub async fn transaction(&self, tenant: &str) -> Open<TransactRequest, TransactResponse> {
        let mut open = self.transaction_opened().await.unwrap();
        let begin = BeginTransaction { tenant: tenant.to_owned(), ..BeginTransaction::default() };
        open.send(Action::Begin(begin)).await;
        assert!(matches!(open.answer().await, Ok(Outcome::Begun(_))));
        open
    }

    pub async fn pipeline(&self) -> Open<PipelineRequest, PipelineResponse> {
        let (requests, stream) = mpsc::channel(8);
        Open { requests, answers: self.query().pipeline(ReceiverStream::new(stream)).await.unwrap().into_inner() }
    }

    pub async fn stream(&self, tenant: &str, sql: &str) -> Streaming<StreamQueryResponse> {
        let (tenant, sql) = (tenant.to_owned(), sql.to_owned());
        let request = StreamQueryRequest { tenant, sql, ..StreamQueryRequest::default() };
        self.query().stream_query(request).await.unwrap().into_inner()
    }

    pub async fn routes(&self) -> Streaming<WatchRoutesResponse> {
        self.router().watch_routes(WatchRoutesRequest::default()).await.unwrap().into_inner()
    }
}

impl Open<TransactRequest, TransactResponse> {
    pub async fn send(&self, action: Action) {
        self.requests.send(TransactRequest { action: Some(action) }).await.unwrap();
    }

    pub async fn execute(&self, sql: &str) {
        self.send(Action::Execute(TransactionStatement { sql: sql.to_owned(), ..TransactionStatement::default() }))
            .await;
    }

    pub async fn answer(&mut self) -> Result<Outcome, Status> {
        Ok(self.answers.message().await?.expect("an answer").outcome.unwrap())
    }
}

impl Open<PipelineRequest, PipelineResponse> {
    pub async fn execute(&self, id: u64, tenant: &str, sql: &str) {
        let (tenant, sql) = (tenant.to_owned(), sql.to_owned());
        let statement = PipelineStatement { id, tenant, sql, ..PipelineStatement::default() };
        self.requests.send(PipelineRequest { statements: vec![statement] }).await.unwrap();
    }
}

/// How a stream ends that somebody else ends.
pub async fn last<A>(answers: &mut Streaming<A>) -> Status {
    loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a word"),
            Err(status) => return status,
        }
    }
}
