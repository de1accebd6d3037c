//! Deadlines that the daemon itself keeps: whether a caller waits, reads or has gone, what it has asked for ends on the
//! server, and costs nobody a connection.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use hyper_util::client::legacy::Client as Transport;
use hyper_util::rt::TokioExecutor;
use tenantd::proto::v1::pipeline_answer::Outcome;
use tenantd::proto::v1::query_service_client::QueryServiceClient;
use tenantd::proto::v1::{
    ExecuteRequest, GetTenantStatsRequest, PipelineRequest, PipelineStatement, StreamQueryRequest,
};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use super::ends::{Running, ends};
use crate::harness::{Client, Daemon, Fleet, PATIENCE, Spec, last, reason, until};
use crate::router::Watch;

const ENDLESS: &str = "SELECT pg_sleep(600)";

async fn fleet(spec: Spec) -> (Fleet, Daemon) {
    let fleet = Fleet::new(spec.setting("[router]", "statement_timeout", "\"10m\"")).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    (fleet, daemon)
}

fn endless() -> ExecuteRequest {
    ExecuteRequest { tenant: "acme".to_owned(), sql: ENDLESS.to_owned(), ..ExecuteRequest::default() }
}

/// Awaits that so many of the tenant's sessions are not idle.
async fn busy(fleet: &Fleet, count: i64) {
    let judge = fleet.judge("postgres").await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state <> 'idle'";
    let name = format!("{}_acme", fleet.naming.prefix());
    until(&format!("{count} of the tenant's sessions are busy"), async || {
        (judge.query_one(sql, &[&name]).await.unwrap().get::<_, i64>(0) == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pipelines_deadline_cancels_what_runs() {
    let (fleet, daemon) = fleet(Spec::default()).await;
    // Again, when a busy machine has not begun with the statement by then.
    let (running, _open) = until("a statement runs until the deadline", async || {
        let (requests, stream) = tokio::sync::mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(stream));
        request.set_timeout(Duration::from_secs(1));
        let mut answers = daemon.client.query().pipeline(request).await.ok()?.into_inner();
        let (tenant, sql) = ("acme".to_owned(), ENDLESS.to_owned());
        let statement = PipelineStatement { id: 1, tenant, sql, ..PipelineStatement::default() };
        requests.send(PipelineRequest { statements: vec![statement] }).await.ok()?;
        let running;
        {
            let mut ended = pin!(last(&mut answers));
            running = tokio::select! {
                _early = &mut ended => return None,
                running = Running::find(&fleet, ENDLESS, 1) => running,
            };
            let ended = timeout(PATIENCE, ended).await.expect("the deadline ends it");
            assert_eq!((ended.code(), reason(&ended).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
        }
        // The caller is still there.
        Some((running, (requests, answers)))
    })
    .await;
    running.cancelled().await;
    busy(&fleet, 0).await;
    assert_eq!(daemon.client.sql("acme", "SELECT 1").await, "1");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_deadline_is_kept_for_a_caller_who_goes_on_waiting() {
    let (fleet, daemon) = fleet(Spec::default()).await;
    let key = daemon.client.key_new(&["resolver"], &[]).await;
    // tonic's own channel gives up by itself.
    let transport = Transport::builder(TokioExecutor::new()).http2_only(true).build_http::<tonic::body::Body>();
    let origin = format!("http://{}", daemon.address).parse().unwrap();
    let mut query = QueryServiceClient::with_origin(transport, origin);
    let (running, ended) = until("a statement runs until the deadline", async || {
        let mut request = Request::new(endless());
        request.set_timeout(Duration::from_secs(1));
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        let mut query = query.clone();
        let mut call = pin!(query.execute(request));
        let running = tokio::select! {
            _early = &mut call => return None,
            running = Running::find(&fleet, ENDLESS, 1) => running,
        };
        Some((running, timeout(PATIENCE, call).await.expect("the deadline ends it").unwrap_err()))
    })
    .await;
    running.cancelled().await;
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    busy(&fleet, 0).await;
    let mut request = Request::new(ExecuteRequest { sql: "SELECT 1".to_owned(), ..endless() });
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    assert_eq!(query.execute(request).await.unwrap().into_inner().rows.len(), 1);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_statement_that_takes_longer_than_statement_timeout_is_ended_by_the_server() {
    let fleet = Fleet::new(Spec::default().setting("[router]", "statement_timeout", "\"2s\"")).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let refused = client.query().execute(endless()).await.unwrap_err();
    let stream = StreamQueryRequest { tenant: "acme".to_owned(), sql: ENDLESS.to_owned(), ..Default::default() };
    let streamed = match client.query().stream_query(stream).await {
        Ok(stream) => last(&mut stream.into_inner()).await,
        Err(status) => status,
    };
    for status in [refused, streamed] {
        let metadata = status.get_error_details().error_info().unwrap().metadata.clone();
        let told = (status.code(), reason(&status), metadata["sqlstate"].clone());
        assert_eq!(told, (Code::DeadlineExceeded, "SQL".to_owned(), "57014".to_owned()), "{status:?}");
    }
    let mut pipeline = client.pipeline().await;
    for (id, sql) in [(1, ENDLESS), (2, "SELECT 1")] {
        pipeline.execute(id, "acme", sql).await;
        let answer = pipeline.answers.message().await.unwrap().unwrap().answers.remove(0);
        match answer.outcome.unwrap() {
            Outcome::Error(error) => {
                let told = (id, Code::from(error.code), error.sqlstate.as_str());
                assert_eq!(told, (1, Code::DeadlineExceeded, "57014"), "{error:?}");
            }
            Outcome::Result(_) => assert_eq!((id, answer.id), (2, 2)),
        }
    }
    assert_eq!(client.sql("acme", "SELECT count(*) FROM things").await, "20");
    let ends = ends(&fleet);
    assert_eq!(ends.len(), 3, "{ends:?}");
    assert!(ends.iter().all(|(_, how)| how == "canceling statement due to statement timeout"), "{ends:?}");
    // Each had a session, and has left it as good as it was.
    let (pids, judge): (Vec<i32>, _) = (ends.into_iter().map(|(pid, _)| pid).collect(), fleet.judge("postgres").await);
    let others = "SELECT DISTINCT pid FROM unnest($1::int[]) AS pid
        EXCEPT SELECT pid FROM pg_stat_activity WHERE datname = $2 AND state = 'idle'";
    let database = format!("{}_acme", fleet.naming.prefix());
    until("the sessions idle", async || {
        judge.query(others, &[&pids, &database]).await.unwrap().is_empty().then_some(())
    })
    .await;
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_deadlines_keeps_the_budget_and_leaves_nothing_running() {
    let (fleet, daemon) = fleet(crate::router::small_budget()).await;
    let clients: Vec<Client> = (0..4).map(|_| daemon.client.moved(daemon.address)).collect();
    let watch = Watch::of(&fleet).await;
    let calls = futures_util::stream::iter(0..2_000_u64).map(|number| {
        let client = clients[usize::try_from(number % 4).unwrap()].clone();
        async move {
            let mut request = Request::new(endless());
            // Every moment of a call is cut off by some of them.
            request.set_timeout(Duration::from_millis(1 + number % 50));
            client.query().execute(request).await.unwrap_err().code()
        }
    });
    let codes: Vec<Code> = calls.buffer_unordered(100).collect().await;
    // The daemon's last word may be that there was no place until then.
    let late = [Code::DeadlineExceeded, Code::Cancelled, Code::Unavailable, Code::ResourceExhausted];
    let others: Vec<_> = codes.into_iter().filter(|code| !late.contains(code)).collect();
    assert!(others.is_empty(), "{others:?}");
    busy(&fleet, 0).await;
    let most = watch.end().await;
    assert!(most <= 6, "the server saw {most} sessions, and the budget has 6 for tenants");
    let stats = GetTenantStatsRequest { tenant: "acme".to_owned() };
    let stats = daemon.client.router().get_tenant_stats(stats).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.acquires > 0, "no statement ran: {stats:?}");
    assert_eq!(daemon.client.sql("acme", "SELECT 1").await, "1");
    fleet.stop(daemon).await;
}
