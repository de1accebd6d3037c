//! The way down: what runs may end, what is new is refused, and no session is left on the server.

use tenantd::proto::v1::WhoAmIRequest;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Fleet, Spec, until};

/// Sessions on the fleet's databases.
async fn sessions(judge: &tokio_postgres::Client, fleet: &Fleet) -> Vec<String> {
    let sql = "SELECT datname || ' ' || application_name FROM pg_stat_activity
        WHERE starts_with(datname, $1 || '_') AND application_name NOT IN ('', 'judge') AND pid <> pg_backend_pid()";
    let rows = judge.query(sql, &[&fleet.naming.prefix()]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn running_calls_end_new_ones_are_refused_and_no_session_is_left() {
    let fleet = Fleet::new(Spec::default().setting("", "drain_timeout", "\"60s\"")).await;
    let daemon = fleet.start().await;
    let acme = daemon.client.tenant("acme").await;
    let judge = fleet.judge("postgres").await;
    let holder = fleet.judge(&acme.database).await;
    holder.batch_execute("BEGIN; LOCK TABLE things").await.unwrap();
    let client = daemon.client.clone();
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.execute("acme", "SELECT count(*) FROM things").await }
    });
    let waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'";
    until("the call waits", async || judge.query_opt(waiting, &[&acme.database]).await.unwrap()).await;

    let channel = Endpoint::from_shared(format!("http://{}", daemon.address)).unwrap().connect().await.unwrap();
    let mut states = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let stopping = tokio::spawn(daemon.stop());
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // On the connection that is there, and on a new one.
    until("new calls are refused", async || {
        let refused = client.access().who_am_i(WhoAmIRequest {}).await.err()?;
        (refused.code() == Code::Unavailable).then_some(())
    })
    .await;
    assert!(!running.is_finished() && !stopping.is_finished());
    holder.batch_execute("COMMIT").await.unwrap();
    drop(holder);
    assert_eq!(running.await.unwrap().unwrap(), [["20"]]);
    stopping.await.unwrap();
    until("no session is left", async || sessions(&judge, &fleet).await.is_empty().then_some(())).await;
    fleet.finish().await;
}
