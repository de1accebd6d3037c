//! Gates as callers meet them: over gRPC, and as direct clients of the server, which pass no gate of the daemon's.

use tenantd::domain::tenant::TenantRole;
use tenantd::proto::v1::resolve_tenant_request::Selector;
use tenantd::proto::v1::{ResolveTenantRequest, ResumeTenantRequest, Route, SuspendTenantRequest};
use tokio_postgres::{Client as Session, NoTls};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::{Client, Fleet, Spec, Standstills, reason, until};

async fn resolve(client: &Client, include_credentials: bool) -> Result<Route, tonic::Status> {
    let selector = Some(Selector::Code("acme".to_owned()));
    let request = ResolveTenantRequest { selector, include_credentials };
    Ok(client.router().resolve_tenant(request).await?.into_inner().route.unwrap())
}

/// A session of the tenant's own programs, or the SQLSTATE of its refusal.
async fn direct(route: &Route) -> Result<Session, String> {
    let (client, connection) = tokio_postgres::connect(&route.url, NoTls)
        .await
        .map_err(|error| error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()))?;
    tokio::spawn(connection);
    Ok(client)
}

async fn ended(session: &Session) {
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
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
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
