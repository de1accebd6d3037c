//! The way down: what runs may end, what is new is refused, and no session is left on the server.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};

use tenantd::proto::v1::stream_query_response::Part;
use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::transact_response::Outcome;
use tenantd::proto::v1::{CommitTransaction, WatchOperationRequest, WhoAmIRequest};
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::harness::{Client, Fleet, Machine, Spec, Standstills, last, signal, until};
use crate::query::ends::{Running, ends};

/// Whoever has sessions for the daemon: everybody in its databases but judges, and the daemon itself everywhere.
struct Sessions {
    judge: tokio_postgres::Client,
    prefix: String,
    daemon: String,
}

impl Sessions {
    /// Of a daemon that serves.
    async fn of(fleet: &Fleet) -> Self {
        let judge = fleet.judge("postgres").await;
        let named = "SELECT substring(application_name, '^tenantd [0-9a-f]+ ') FROM pg_stat_activity
            WHERE datname = $1 AND starts_with(application_name, 'tenantd ') LIMIT 1";
        let shared = fleet.naming.shared_database().to_string();
        let daemon = until("the daemon follows the catalog", async || {
            judge.query_opt(named, &[&shared]).await.unwrap().map(|row| row.get(0))
        })
        .await;
        Self { judge, prefix: fleet.naming.prefix().to_owned(), daemon }
    }

    /// At this moment.
    async fn left(&self) -> Vec<String> {
        let sql = "SELECT concat_ws(' / ', datname, application_name, state, query) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND application_name <> 'judge'
              AND (starts_with(datname, $1 || '_') OR starts_with(application_name, $2))";
        let rows = self.judge.query(sql, &[&self.prefix, &self.daemon]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// A daemon has ended: there is nothing to wait for any more.
    async fn none(self) {
        let left = self.left().await;
        assert!(left.is_empty(), "{left:#?}");
    }
}

/// Awaits that so many statements of the tenant's run or wait.
async fn active(judge: &tokio_postgres::Client, database: &str, count: i64) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND state = 'active'";
    until(&format!("{count} statements run"), async || {
        (judge.query_one(sql, &[&database]).await.unwrap().get::<_, i64>(0) == count).then_some(())
    })
    .await;
}

/// Awaits that new calls are refused.
async fn refused(client: &Client) {
    until("new calls are refused", async || {
        let refused = client.access().who_am_i(WhoAmIRequest {}).await.err()?;
        (refused.code() == Code::Unavailable).then_some(())
    })
    .await;
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
    let waiting = "SELECT 1 FROM pg_stat_activity \
                   WHERE datname = $1 AND wait_event_type = 'Lock' AND backend_type = 'client backend'";
    until("the call waits", async || judge.query_opt(waiting, &[&acme.database]).await.unwrap()).await;

    let sessions = Sessions::of(&fleet).await;
    assert!(!sessions.left().await.is_empty());
    let channel = Endpoint::from_shared(format!("http://{}", daemon.address)).unwrap().connect().await.unwrap();
    let mut states = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let stopping = tokio::spawn(daemon.stop());
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // On the connection that is there, and on a new one, with when to come back; and health says so to who asks now.
    for caller in [&client, &client.moved(client.address())] {
        refused(caller).await;
        let refusal = caller.access().who_am_i(WhoAmIRequest {}).await.unwrap_err();
        assert!(refusal.get_error_details().retry_info().is_some(), "{refusal:?}");
    }
    let channel = Endpoint::from_shared(format!("http://{}", client.address())).unwrap().connect().await.unwrap();
    let asked = HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(asked.status(), ServingStatus::NotServing);
    assert!(!running.is_finished() && !stopping.is_finished());
    holder.batch_execute("COMMIT").await.unwrap();
    drop(holder);
    assert_eq!(running.await.unwrap().unwrap(), [["20"]]);
    stopping.await.unwrap();
    sessions.none().await;
    assert_eq!(ends(&fleet), [], "nobody was hurried");
    fleet.finish().await;
}

#[tokio::test]
async fn after_sigterm_streams_that_run_may_end() {
    let fleet = Fleet::new(Spec::default().setting("", "drain_timeout", "\"10m\"")).await;
    let daemon = fleet.spawn();
    let client = daemon.client.clone();
    let acme = client.tenant("acme").await;
    let judge = fleet.judge("postgres").await;
    let holder = fleet.judge(&acme.database).await;
    holder.batch_execute("BEGIN; LOCK TABLE things").await.unwrap();

    let mut transaction = client.transaction("acme").await;
    transaction.execute("DELETE FROM things WHERE id = 1").await;
    let mut query = client.stream("acme", "SELECT count(*) FROM things").await;
    let (mut pipeline, mut idle) = (client.pipeline().await, client.pipeline().await);
    pipeline.execute(1, "acme", "SELECT count(*) FROM things").await;
    let mut routes = client.routes().await;
    active(&judge, &acme.database, 3).await;
    let sessions = Sessions::of(&fleet).await;

    let ended = async {
        // A watch would never end by itself, and neither would a stream with nothing on its way.
        assert_eq!(last(&mut routes).await.code(), Code::Unavailable);
        let told = last(&mut idle.answers).await;
        assert_eq!(told.code(), Code::Unavailable);
        assert!(told.get_error_details().retry_info().is_some(), "{told:?}");
        refused(&client).await;
        holder.batch_execute("COMMIT").await.unwrap();
        assert!(matches!(transaction.answer().await, Ok(Outcome::Result(result)) if result.row_count == 1));
        transaction.send(Action::Commit(CommitTransaction {})).await;
        assert!(matches!(transaction.answer().await, Ok(Outcome::Committed(_))));
        let mut end = None;
        while let Some(response) = query.message().await.unwrap() {
            end = response.part;
        }
        assert!(matches!(end, Some(Part::Trailer(trailer)) if trailer.row_count == 1));
        assert_eq!(pipeline.answers.message().await.unwrap().unwrap().answers[0].id, 1);
        // That was everything.
        assert_eq!(last(&mut pipeline.answers).await.code(), Code::Unavailable);
    };
    tokio::join!(daemon.terminate(), ended);
    sessions.none().await;
    assert_eq!(ends(&fleet), [], "nobody was hurried");
    let row = holder.query_one("SELECT count(*) FROM things", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 19);
    drop(holder);
    fleet.finish().await;
}

#[tokio::test]
async fn who_watches_an_operation_hears_that_the_daemon_goes_and_not_that_it_is_over() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.spawn();
    daemon.client.tenant("acme").await;
    let standstills = Standstills::install(&fleet).await;
    let (request, armed) = standstills.arm_step("dump").await;
    let operation = daemon.client.backup_create(request, "acme").await.unwrap();
    standstills.reached(armed).await;
    let watched = WatchOperationRequest { operation_id: operation.operation_id };
    let mut watch = daemon.client.operations().watch_operation(watched).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let ends = async {
        assert_eq!(last(&mut watch).await.code(), Code::Unavailable);
        standstills.pass(armed).await;
    };
    tokio::join!(daemon.terminate(), ends);
    fleet.finish().await;
}

#[tokio::test]
async fn after_sigterm_streams_that_do_not_end_are_cancelled_and_told() {
    let spec = Spec::default().setting("", "drain_timeout", "\"2s\"");
    let fleet = Fleet::new(spec.setting("[router]", "statement_timeout", "\"10m\"")).await;
    // On a machine that is busy with something else, a stream may be late to say goodbye.
    fleet.allow_log("calls that did not end in time are cut off");
    let daemon = fleet.spawn();
    let client = daemon.client.clone();
    let acme = client.tenant("acme").await;
    let long = "SELECT pg_sleep(600)";

    let (mut transaction, mut silent) = (client.transaction("acme").await, client.transaction("acme").await);
    silent.execute("DELETE FROM things").await;
    assert!(matches!(silent.answer().await, Ok(Outcome::Result(_))));
    transaction.execute(long).await;
    let mut query = client.stream("acme", long).await;
    let (mut pipeline, mut idle) = (client.pipeline().await, client.pipeline().await);
    pipeline.execute(1, "acme", long).await;
    let mut routes = client.routes().await;
    let running = Running::find(&fleet, long, 3).await;
    let sessions = Sessions::of(&fleet).await;
    let channel = Endpoint::from_shared(format!("http://{}", client.address())).unwrap().connect().await.unwrap();
    let mut states = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    let ended = async {
        assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        refused(&client).await;
        for end in [
            last(&mut transaction.answers).await,
            last(&mut silent.answers).await,
            last(&mut query).await,
            last(&mut pipeline.answers).await,
            last(&mut idle.answers).await,
            last(&mut routes).await,
        ] {
            assert_eq!(end.code(), Code::Unavailable, "{end:?}");
        }
    };
    tokio::join!(daemon.terminate(), ended);
    sessions.none().await;
    running.cancelled().await;
    // And the silent transaction's session has ended as it should, and not because its client was gone.
    let ends = ends(&fleet);
    assert_eq!(ends.len(), 3, "{ends:?}");
    let row = fleet.judge(&acme.database).await.query_one("SELECT count(*) FROM things", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 20, "nothing was committed");
    fleet.finish().await;
}

#[tokio::test]
async fn the_daemon_ends_only_when_the_server_has_none_of_its_sessions() {
    let machine = Some(Machine::with_room_for(60));
    let fleet = Fleet::new(Spec { machine, ..Spec::default() }).await;
    let daemon = fleet.spawn();
    let acme = daemon.client.tenant("acme").await;
    daemon.client.sql("acme", "SELECT 1").await;
    let sessions = Sessions::of(&fleet).await;
    // A backend that does not hear that it may go.
    let idle = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND application_name = $1 AND state = 'idle'";
    let slow: i32 = until("the tenant's session idles", async || {
        sessions.judge.query(idle, &[&acme.database]).await.unwrap().first().map(|row| row.get(0))
    })
    .await;
    let slow = u32::try_from(slow).unwrap();
    signal("STOP", slow);
    let mut ending = pin!(daemon.terminate());
    let looks = AtomicU32::new(0);
    // Looked at for longer than a process takes to end that does not wait.
    let alone = until("no other session is left", async || {
        (sessions.left().await.len() == 1 && looks.fetch_add(1, Ordering::Relaxed) == 20).then_some(())
    });
    let left = tokio::select! {
        () = &mut ending => sessions.left().await,
        () = alone => Vec::new(),
    };
    signal("CONT", slow);
    assert!(left.is_empty(), "it has ended before its session: {left:?}");
    ending.await;
    sessions.none().await;
    fleet.finish().await;
}
