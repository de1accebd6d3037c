//! Streams that are open when their caller's rights end, and what the audit log says of refusals in their middle.

use jsonwebtoken::Algorithm;
use serde_json::json;
use tenantd::proto::v1::pipeline_answer::Outcome as Answer;
use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::transact_response::Outcome;
use tenantd::proto::v1::{
    BeginTransaction, CreateApiKeyRequest, PipelineRequest, PipelineResponse, PipelineStatement, RevokeApiKeyRequest,
    RouteEvent, StatementError, Target, WatchOperationRequest, WatchRoutesRequest, WatchRoutesResponse,
};
use tonic::{Code, Streaming};
use uuid::Uuid;

use super::issuer::{Issuer, SigningKey, claims};
use super::users::user;
use crate::harness::{Fleet, Spec, Standstills, last, reason, until};

const LONG: &str = "SELECT pg_sleep(600)";

/// Awaits that so many of the tenant's sessions have a statement that runs.
async fn running(fleet: &Fleet, count: i64) {
    let judge = fleet.judge("postgres").await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND state = 'active'";
    until(&format!("{count} statements run"), async || {
        let database = format!("{}_acme", fleet.naming.prefix());
        (judge.query_one(sql, &[&database]).await.unwrap().get::<_, i64>(0) == count).then_some(())
    })
    .await;
}

/// The next answer of a pipeline, which is a refusal.
async fn refusal(answers: &mut Streaming<PipelineResponse>) -> StatementError {
    match answers.message().await.unwrap().unwrap().answers.remove(0).outcome.unwrap() {
        Answer::Error(error) => error,
        Answer::Result(result) => panic!("{result:?}"),
    }
}

/// Why calls were denied, as the audit log has it.
async fn denials(judge: &tokio_postgres::Client, principal: &str, action: &str) -> Vec<String> {
    let sql = "SELECT DISTINCT details ->> 'reason' FROM audit_log
        WHERE outcome = 'DENIED' AND principal = $1 AND action = $2 ORDER BY 1";
    judge.query(sql, &[&principal, &action]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn a_key_that_is_revoked_loses_every_stream() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let admin = &daemon.client;
    admin.tenant("acme").await;
    let wish = CreateApiKeyRequest {
        name: "app".to_owned(),
        roles: vec!["resolver".to_owned()],
        tenants: vec!["acme".to_owned()],
        ..CreateApiKeyRequest::default()
    };
    let made = admin.access().create_api_key(wish).await.unwrap().into_inner();
    let app = admin.with_key(&made.secret);

    let (mut transaction, mut idle_transaction) = (app.transaction("acme").await, app.transaction("acme").await);
    transaction.execute(LONG).await;
    let (mut pipeline, mut idle_pipeline) = (app.pipeline().await, app.pipeline().await);
    pipeline.execute(1, "acme", LONG).await;
    let (mut query, mut routes) = (app.stream("acme", LONG).await, app.routes().await);
    let mut other = admin.transaction("acme").await;
    running(&fleet, 3).await;

    let revoke = RevokeApiKeyRequest { api_key_id: made.api_key.unwrap().api_key_id, ..RevokeApiKeyRequest::default() };
    admin.access().revoke_api_key(revoke).await.unwrap();
    let ends = [
        last(&mut transaction.answers).await,
        last(&mut idle_transaction.answers).await,
        last(&mut pipeline.answers).await,
        last(&mut idle_pipeline.answers).await,
        last(&mut query).await,
        last(&mut routes).await,
    ];
    for end in ends {
        assert_eq!(end.code(), Code::Unauthenticated, "{end:?}");
    }
    running(&fleet, 0).await;
    // Nobody else is touched.
    other.execute("SELECT 1").await;
    assert!(matches!(other.answer().await, Ok(Outcome::Result(_))));
    drop(other);
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    assert_eq!(denials(&judge, "api-key:app", "QueryService/Transact").await, ["the key was revoked"]);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_damaged_row_ends_the_streams_of_its_caller_alone() {
    const DAMAGED: &str = "a caller is refused, because what is known of it is damaged";
    let fleet = Fleet::new(Spec::default()).await;
    fleet.expect_log(DAMAGED);
    let daemon = fleet.start().await;
    let admin = &daemon.client;
    admin.tenant("acme").await;
    let app = admin.with_key(&admin.key_new(&["resolver"], &["acme"]).await);
    let (mut query, mut routes) = (app.stream("acme", LONG).await, app.routes().await);
    let mut other = admin.transaction("acme").await;
    running(&fleet, 1).await;
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    judge.batch_execute("UPDATE api_key_tenants SET tenant_code = 'Not A Code'").await.unwrap();
    for end in [last(&mut query).await, last(&mut routes).await] {
        assert_eq!(end.code(), Code::Unauthenticated, "{end:?}");
    }
    let refusal = app.execute("acme", "SELECT 1").await.unwrap_err();
    assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::Unauthenticated, "UNAUTHENTICATED"));
    running(&fleet, 0).await;
    other.execute("SELECT 1").await;
    assert!(matches!(other.answer().await, Ok(Outcome::Result(_))));
    drop(other);
    fleet.stop(daemon).await;
}

/// The tenants and the mark of a whole snapshot.
async fn table(routes: &mut Streaming<WatchRoutesResponse>) -> (Vec<String>, WatchRoutesRequest) {
    let mut codes = Vec::new();
    loop {
        let message = routes.message().await.unwrap().unwrap();
        codes.extend(message.routes.iter().map(|route| route.code.clone()));
        if message.event() == RouteEvent::SnapshotEnd {
            let (after_revision, catalog_id) = (Some(message.revision), message.catalog_id);
            return (codes, WatchRoutesRequest { after_revision, catalog_id });
        }
    }
}

#[tokio::test]
async fn who_gains_a_tenant_begins_its_watch_anew() {
    let key = SigningKey::new("key", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let fleet = Fleet::new(issuer.spec("user")).await;
    let daemon = fleet.start().await;
    let (acme, bolt) = (daemon.client.tenant("acme").await, daemon.client.tenant("bolt").await);
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let (id, _session) = user(&judge, &[&acme.tenant_id]).await;
    let app = daemon.client.with_key(&key.sign(&claims(json!({ "sub": id.to_string() }))));
    let resume = async |since: &WatchRoutesRequest| {
        let stream = app.router().watch_routes(since.clone()).await;
        stream.map(tonic::Response::into_inner)
    };
    let unknown = |status: &tonic::Status| {
        assert_eq!((status.code(), reason(status).as_str()), (Code::OutOfRange, "REVISION_UNKNOWN"), "{status:?}");
    };
    let mut routes = app.routes().await;
    let (codes, of_one) = table(&mut routes).await;
    assert_eq!(codes, ["acme"]);
    let mut resumed = resume(&of_one).await.unwrap();

    let grant =
        "INSERT INTO user_tenant_roles (user_id, tenant_id, role_id) SELECT $1, $2, id FROM roles WHERE name = 'USER'";
    let bolt: Uuid = bolt.tenant_id.parse().unwrap();
    judge.execute(grant, &[&id, &bolt]).await.unwrap();
    for stream in [&mut routes, &mut resumed] {
        unknown(&last(stream).await);
    }
    unknown(&resume(&of_one).await.unwrap_err());
    let mut routes = app.routes().await;
    let (codes, of_both) = table(&mut routes).await;
    assert_eq!(codes, ["acme", "bolt"]);

    // Who has lost one has a table of another kind as well; who has it back goes on where it was.
    judge.execute("DELETE FROM user_tenant_roles WHERE tenant_id = $1", &[&bolt]).await.unwrap();
    assert_eq!(last(&mut routes).await.code(), Code::PermissionDenied);
    unknown(&resume(&of_both).await.unwrap_err());
    resume(&of_one).await.unwrap();
    judge.execute(grant, &[&id, &bolt]).await.unwrap();
    until("the grant is back", async || resume(&of_both).await.ok()).await;
    // A table of some tenants is none of all.
    let all = daemon.client.router().watch_routes(of_both).await.unwrap_err();
    unknown(&all);
    // Only the loss is a denial.
    let denied = denials(&judge, &format!("user:{id}"), "RouterService/WatchRoutes").await;
    assert_eq!(denied, ["a right was taken away while the call went on"]);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn who_loses_a_tenant_loses_the_streams_that_have_used_it() {
    let key = SigningKey::new("key", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let fleet = Fleet::new(issuer.spec("user")).await;
    let daemon = fleet.start().await;
    let (acme, bolt) = (daemon.client.tenant("acme").await, daemon.client.tenant("bolt").await);
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let (id, session) = user(&judge, &[&acme.tenant_id, &bolt.tenant_id]).await;
    let app = daemon.client.with_key(&key.sign(&claims(json!({ "sub": id.to_string(), "sid": session.to_string() }))));

    let (mut in_acme, mut in_bolt) = (app.transaction("acme").await, app.transaction("bolt").await);
    in_acme.execute(LONG).await;
    let (mut used_acme, mut unused) = (app.pipeline().await, app.pipeline().await);
    used_acme.execute(1, "acme", "SELECT 1").await;
    used_acme.answers.message().await.unwrap().unwrap();
    let mut routes = app.routes().await;
    running(&fleet, 1).await;
    let gone = "DELETE FROM user_tenant_roles WHERE user_id = $1 AND tenant_id = $2";
    judge.execute(gone, &[&id, &acme.tenant_id.parse::<Uuid>().unwrap()]).await.unwrap();
    for end in [last(&mut in_acme.answers).await, last(&mut used_acme.answers).await, last(&mut routes).await] {
        assert_eq!(end.code(), Code::PermissionDenied, "{end:?}");
    }
    running(&fleet, 0).await;

    // What has used the other tenant alone goes on, and is refused the one that is lost.
    in_bolt.execute("SELECT 1").await;
    assert!(matches!(in_bolt.answer().await, Ok(Outcome::Result(_))));
    unused.execute(1, "acme", "SELECT 1").await;
    assert_eq!(refusal(&mut unused.answers).await.code, i32::from(Code::PermissionDenied));
    let somebody = PipelineStatement {
        tenant: "bolt".to_owned(),
        sql: "SELECT 1".to_owned(),
        user_id: Uuid::new_v4().to_string(),
        ..PipelineStatement::default()
    };
    unused.requests.send(PipelineRequest { statements: vec![somebody] }).await.unwrap();
    assert_eq!(refusal(&mut unused.answers).await.code, i32::from(Code::PermissionDenied));
    unused.execute(2, "bolt", "SELECT 1").await;
    unused.answers.message().await.unwrap().unwrap();

    judge.execute("UPDATE sessions SET revoked_at = now() WHERE id = $1", &[&session]).await.unwrap();
    for end in [last(&mut in_bolt.answers).await, last(&mut unused.answers).await] {
        assert_eq!(end.code(), Code::Unauthenticated, "{end:?}");
    }
    let principal = format!("user:{id}");
    assert_eq!(
        denials(&judge, &principal, "QueryService/Transact").await,
        ["a right was taken away while the call went on", "the session has ended"]
    );
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn refusals_in_the_middle_of_a_stream_are_written_down() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let narrow = daemon.client.with_key(&daemon.client.key_new(&["resolver"], &["acme"]).await);
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let out_of_scope = ["the tenant or the fleet is not in scope"];

    let mut pipeline = narrow.pipeline().await;
    for id in 0..3 {
        pipeline.execute(id, "bolt", "SELECT 1").await;
        assert_eq!(refusal(&mut pipeline.answers).await.code, i32::from(Code::PermissionDenied));
    }
    assert_eq!(denials(&judge, "api-key:test", "QueryService/Pipeline").await, out_of_scope);
    // PostgreSQL's own refusals are the tenant's business.
    pipeline.execute(4, "acme", "SELECT pg_read_file('/etc/passwd')").await;
    assert_eq!(refusal(&mut pipeline.answers).await.sqlstate, "42501");
    let refused = narrow.execute("acme", "SELECT pg_read_file('/etc/passwd')").await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "SQL"));

    for begin in [
        BeginTransaction { tenant: "bolt".to_owned(), ..BeginTransaction::default() },
        BeginTransaction { target: Target::Auth.into(), ..BeginTransaction::default() },
    ] {
        let mut transaction = narrow.transaction_opened().await.unwrap();
        transaction.send(Action::Begin(begin)).await;
        assert_eq!(last(&mut transaction.answers).await.code(), Code::PermissionDenied);
    }
    assert_eq!(denials(&judge, "api-key:test", "QueryService/Transact").await, out_of_scope);
    daemon.stop().await;
    let sql = "SELECT action, sum((details ->> 'calls')::bigint)::bigint FROM audit_log
        WHERE outcome = 'DENIED' GROUP BY action ORDER BY action";
    let rows = judge.query(sql, &[]).await.unwrap();
    let counts: Vec<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(counts, [("QueryService/Pipeline".to_owned(), 3), ("QueryService/Transact".to_owned(), 2)]);
    fleet.finish().await;
}

#[tokio::test]
async fn who_watches_an_operation_loses_it_with_its_tenant() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    daemon.client.tenant("bolt").await;
    let viewer = daemon.client.with_key(&daemon.client.key_new(&["viewer"], &["acme", "bolt"]).await);
    let standstills = Standstills::install(&fleet).await;
    let (request, armed) = standstills.arm_step("dump").await;
    let operation = daemon.client.backup_create(request, "acme").await.unwrap();
    standstills.reached(armed).await;

    let watched = WatchOperationRequest { operation_id: operation.operation_id.clone() };
    let mut watch = viewer.operations().watch_operation(watched).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let taken = "DELETE FROM api_key_tenants WHERE tenant_code = 'acme'";
    assert_eq!(judge.execute(taken, &[]).await.unwrap(), 1);
    assert_eq!(last(&mut watch).await.code(), Code::PermissionDenied);
    standstills.pass(armed).await;
    daemon.client.succeeded(&operation).await;
    fleet.stop(daemon).await;
}
