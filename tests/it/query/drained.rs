//! Reads that share a connection, and are cancelled for an operation that needs the tenant's database to itself: their
//! callers hear of the tenant's gate, as those of statements by themselves do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tenantd::domain::operation::OperationId;
use tenantd::domain::route::Gate;
use tenantd::domain::tenant::TenantId;
use tenantd::proto::v1::pipeline_answer::Outcome;
use tenantd::proto::v1::{PipelineRequest, PipelineResponse, PipelineStatement, StatementError};
use tenantd::query::{BYTES_MAX, Caller, Error, Execute};
use tenantd::router::{self, Holder};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use super::convoy::located;
use crate::harness::{Spec, until};
use crate::tenants::Rooms;

/// Longer than any test.
const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b";
/// Some milliseconds.
const QUICK: &str = "SELECT count(*) FROM generate_series(1, 5000) n";

/// Whoever sends statements for one tenant.
struct Sender(TenantId);

fn told(error: &dyn std::error::Error) -> StatementError {
    StatementError { message: error.to_string(), ..StatementError::default() }
}

impl Caller for Sender {
    async fn tenant(&self, _name: &str) -> Result<TenantId, Box<StatementError>> {
        Ok(self.0)
    }

    fn holder(&self) -> Holder {
        Holder::default()
    }

    async fn user(&self, _id: &str) -> Result<Option<Uuid>, Box<StatementError>> {
        Ok(None)
    }

    fn explain(&self, error: Error) -> StatementError {
        told(&error)
    }

    fn explain_router(&self, error: router::Error) -> StatementError {
        told(&error)
    }
}

async fn answered(answers: &mut mpsc::Receiver<Result<PipelineResponse, ()>>) -> Outcome {
    let response = answers.recv().await.expect("an answer").expect("an answer");
    response.answers.into_iter().next().expect("an answer").outcome.expect("an outcome")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_of_a_pipeline_that_is_cancelled_for_an_operation_meets_the_gate() {
    let rooms = Arc::new(Rooms::new(Spec::default()).await);
    let acme = rooms.tenant("acme").await;
    let (requests, stream) = mpsc::channel(4);
    let (sender, mut answers) = mpsc::channel(4);
    let (own, tenant) = (Arc::clone(&rooms), acme.id);
    let stream = ReceiverStream::new(stream);
    let pipeline = tokio::spawn(async move {
        let deadline = Instant::now() + Duration::from_mins(2);
        own.queries.pipeline(Sender(tenant), stream, sender, deadline, std::future::pending()).await;
    });
    let send = async |sql: &str| {
        let statement = PipelineStatement { sql: sql.to_owned(), ..PipelineStatement::default() };
        requests.send(Ok(PipelineRequest { statements: vec![statement] })).await.unwrap();
    };
    // The first on a new connection has it to itself.
    send("SELECT 1").await;
    assert!(matches!(answered(&mut answers).await, Outcome::Result(_)));
    send(ENDLESS).await;
    let judge = rooms.fleet.judge("postgres").await;
    // For so long that it is not being prepared.
    let running = "SELECT FROM pg_stat_activity WHERE datname = $1 AND state = 'active' AND query = $2 \
                   AND query_start < clock_timestamp() - interval '500 ms'";
    until("the read runs", async || judge.query_opt(running, &[&acme.database, &ENDLESS]).await.unwrap()).await;

    let operation = Uuid::now_v7();
    let txn = rooms.catalog.begin().await.unwrap();
    let paused = Gate::Paused { operation };
    rooms.catalog.gate_set_in_txn(&txn, acme.id, paused, OperationId(operation)).await.unwrap();
    txn.commit().await.unwrap();
    rooms.router.drain(acme.id, Duration::from_millis(100)).await.unwrap();
    match answered(&mut answers).await {
        Outcome::Error(error) => assert!(error.message.contains("is paused by an operation"), "{error:?}"),
        Outcome::Result(result) => panic!("{result:?}"),
    }
    drop(requests);
    pipeline.await.unwrap();
    Arc::into_inner(rooms).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_share_a_connection_and_are_cancelled_for_an_operation_are_run_behind_it() {
    let rooms = Arc::new(Rooms::new(Spec::default()).await);
    let acme = rooms.tenant("acme").await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for _ in 0..32 {
        let (rooms, acme, is_over) = (Arc::clone(&rooms), acme.clone(), Arc::clone(&is_over));
        callers.spawn(async move {
            let located = located(&rooms, &acme).await;
            while !is_over.load(Ordering::Relaxed) {
                let input = Execute { sql: QUICK, parameters: &[], rows_max: 0, bytes_max: BYTES_MAX, user: None };
                let soon = Instant::now() + Duration::from_mins(1);
                match rooms.queries.execute_at(&Holder::default(), &located, input, soon).await {
                    Ok(_) => {}
                    // On the ordinary way.
                    Err(Error::Router(error)) => assert!(error.is_transient(), "{error}"),
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    for _round in 0..10 {
        let before = rooms.router.stats(acme.id).shared;
        until("some share a connection", async || (rooms.router.stats(acme.id).shared > before + 50).then_some(()))
            .await;
        rooms.router.drain(acme.id, Duration::ZERO).await.unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    callers.join_all().await;
    Arc::into_inner(rooms).unwrap().finish().await;
}
