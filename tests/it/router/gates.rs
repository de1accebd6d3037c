//! Gates as callers meet them: over gRPC, and as direct clients of the server, which pass no gate of the daemon's.

use tenantd::domain::tenant::TenantRole;
use tenantd::proto::v1::resolve_tenant_request::Selector;
use tenantd::proto::v1::{
    OperationState, ResolveTenantRequest, ResumeTenantRequest, Route, SuspendTenantRequest, Tenant, TenantState,
};
use tokio_postgres::{Client as Session, NoTls};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use super::faults::Frozen;
use crate::harness::{Client, Fleet, Machine, Spec, Standstills, reason, until};

pub async fn resolve(client: &Client, include_credentials: bool) -> Result<Route, Status> {
    resolve_code(client, "acme", include_credentials).await
}

async fn resolve_code(client: &Client, code: &str, include_credentials: bool) -> Result<Route, Status> {
    let selector = Some(Selector::Code(code.to_owned()));
    let request = ResolveTenantRequest { selector, include_credentials };
    Ok(client.router().resolve_tenant(request).await?.into_inner().route.unwrap())
}

/// A session of the tenant's own programs, or the SQLSTATE of its refusal.
pub async fn direct(route: &Route) -> Result<Session, String> {
    let (client, connection) = tokio_postgres::connect(&route.url, NoTls)
        .await
        .map_err(|error| error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()))?;
    tokio::spawn(connection);
    Ok(client)
}

pub async fn ended(session: &Session) {
    until("the direct client's session is ended", async || session.is_closed().then_some(())).await;
}

#[tokio::test]
async fn a_suspended_tenant_is_closed_to_everybody_until_it_is_resumed() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let route = resolve(client, true).await.unwrap();
    let session = direct(&route).await.unwrap();

    let (tenant, reason_given) = ("acme".to_owned(), "unpaid".to_owned());
    let request = SuspendTenantRequest { tenant, reason: reason_given, ..SuspendTenantRequest::default() };
    let begun = client.tenants().suspend_tenant(request).await.unwrap().into_inner();
    client.succeeded(&begun.operation.unwrap()).await;
    ended(&session).await;
    assert_eq!(direct(&route).await.err().as_deref(), Some("28000"));
    let refusals = [resolve(client, false).await.unwrap_err(), client.execute("acme", "SELECT 1").await.unwrap_err()];
    for refusal in refusals {
        assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::FailedPrecondition, "TENANT_STATE"));
        let metadata = refusal.get_error_details().error_info().unwrap().metadata.clone();
        assert_eq!(metadata["state"], "SUSPENDED");
        assert!(metadata["allowed_states"].contains("ACTIVE"), "{metadata:?}");
    }

    // Whatever has become of the router's password meanwhile.
    let judge = fleet.judge("postgres").await;
    let router = fleet.naming.tenant_role(&"acme".parse().unwrap(), TenantRole::Router).unwrap().quoted();
    judge.batch_execute(&format!("ALTER ROLE {router} PASSWORD 'another'")).await.unwrap();

    let request = ResumeTenantRequest { tenant: "acme".to_owned(), ..ResumeTenantRequest::default() };
    let begun = client.tenants().resume_tenant(request).await.unwrap().into_inner();
    client.succeeded(&begun.operation.unwrap()).await;
    assert_eq!(client.sql("acme", "SELECT 1").await, "1");
    direct(&route).await.unwrap();
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_makes_callers_wait_and_keeps_direct_clients_out() {
    let fleet = Fleet::new(Spec::default().setting("[router]", "pause_wait_max", "\"300ms\"")).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    let acme = client.tenant("acme").await;
    let backup = client.backup("acme").await;
    client.sql("acme", "DELETE FROM things").await;
    let route = resolve(client, true).await.unwrap();
    let session = direct(&route).await.unwrap();
    let standstills = Standstills::install(&fleet).await;

    let (request, armed) = standstills.arm_step("swap").await;
    let operation = client.restore_create(request, &backup.backup_id, None).await.unwrap();
    standstills.reached(armed).await;
    ended(&session).await;
    assert_eq!(direct(&route).await.err().as_deref(), Some("28000"));
    let judge = fleet.judge("postgres").await;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
    assert_eq!(judge.query_one(sessions, &[&acme.database]).await.unwrap().get::<_, i64>(0), 0);
    let refusal = client.execute("acme", "SELECT 1").await.unwrap_err();
    let details = refusal.get_error_details();
    assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::Unavailable, "TENANT_PAUSED"));
    assert_eq!(details.error_info().unwrap().metadata["operation_id"], operation.operation_id);
    assert!(details.retry_info().is_some_and(|info| info.retry_delay.is_some()), "{refusal:?}");

    standstills.pass(armed).await;
    client.succeeded(&operation).await;
    assert_eq!(client.sql("acme", "SELECT count(*) FROM things").await, "20");
    let session = direct(&resolve(client, true).await.unwrap()).await.unwrap();
    assert_eq!(session.query_one("SELECT count(*) FROM things", &[]).await.unwrap().get::<_, i64>(0), 20);
    drop(session);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_tenant_in_maintenance_is_told_so() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    assert_eq!(client.sql("acme", "SELECT 1").await, "1");
    let shared = fleet.judge(fleet.naming.shared_database().as_str()).await;
    let state_set = async |state: &str| {
        let sql = format!(
            "BEGIN; UPDATE catalog_meta SET revision = revision + 1;
             UPDATE tenants SET state = '{state}', revision = (SELECT revision FROM catalog_meta); COMMIT"
        );
        shared.batch_execute(&sql).await.unwrap();
    };
    state_set("MAINTENANCE").await;
    until("the state is seen", async || resolve(client, false).await.err()).await;
    let refusals = [resolve(client, false).await.unwrap_err(), client.execute("acme", "SELECT 1").await.unwrap_err()];
    for refusal in refusals {
        assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::FailedPrecondition, "TENANT_STATE"));
        let metadata = refusal.get_error_details().error_info().unwrap().metadata.clone();
        assert_eq!((metadata["state"].as_str(), metadata["allowed_states"].as_str()), ("MAINTENANCE", "ACTIVE"));
    }
    state_set("ACTIVE").await;
    until("the state is seen", async || resolve(client, false).await.ok()).await;
    assert_eq!(client.sql("acme", "SELECT 1").await, "1");
    fleet.stop(daemon).await;
}

/// The time that the server has for it is half a minute, in which this test sleeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_session_is_left_nothing_is_done_that_needs_the_tenant_to_be_empty() {
    // Who drops a database waits for every backend of the server.
    let fleet = Fleet::new(Spec { machine: Some(Machine::with_room_for(60)), ..Spec::default() }).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let beta = client.tenant("beta").await;
    let backup = client.backup("beta").await;
    client.sql("beta", "DELETE FROM things WHERE id > 7").await;
    let (mut sessions, mut backends) = (Vec::new(), Vec::new());
    for code in ["acme", "beta"] {
        let session = direct(&resolve_code(client, code, true).await.unwrap()).await.unwrap();
        let backend: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        backends.push(u32::try_from(backend).unwrap());
        sessions.push(session);
    }
    let frozen = Frozen::new(backends);
    let suspension = client.tenant_suspend(Uuid::new_v4(), "acme", "unpaid").await.unwrap();
    let restore = client.restore_create(Uuid::new_v4(), &backup.backup_id, None).await.unwrap();

    // A restore is taken back, and says why.
    let failing = until("the restore gives up", async || client.operation(&restore.operation_id).await.error).await;
    let told = "the tenant beta was not emptied of sessions";
    assert!(failing.step == "pause" && failing.message.contains(told), "{failing:?}");
    // A suspension tries again, and the tenant is closed meanwhile.
    until("the suspension has tried", async || {
        fleet.latest().contains("the tenant acme was not emptied of sessions").then_some(())
    })
    .await;
    assert_eq!(client.operation(&suspension.operation_id).await.state(), OperationState::Running);
    assert_eq!(client.tenant_get("acme").await.unwrap().state(), TenantState::Suspended);
    assert_eq!(reason(&client.execute("acme", "SELECT 1").await.unwrap_err()), "TENANT_STATE");

    drop(frozen);
    client.succeeded(&suspension).await;
    let ended = client.ended(&restore.operation_id).await;
    assert_eq!((ended.state(), ended.error), (OperationState::Failed, Some(failing)));
    // It is as it was, but for when its gate was moved.
    let now = client.tenant_get("beta").await.unwrap();
    assert_eq!(Tenant { etag: beta.etag.clone(), update_time: beta.update_time, ..now }, beta);
    assert_eq!(client.sql("beta", "SELECT count(*) FROM things").await, "7");
    for session in &sessions {
        self::ended(session).await;
    }
    // Nothing is in the way any more.
    client.succeeded(&client.restore_create(Uuid::new_v4(), &backup.backup_id, None).await.unwrap()).await;
    assert_eq!(client.sql("beta", "SELECT count(*) FROM things").await, "20");
    fleet.stop(daemon).await;
}
