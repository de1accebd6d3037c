//! The API's own business: who may call what, scopes, health, reflection, pages, deadlines, and keys.

use std::time::Duration;

use tenantd::proto::v1::resolve_tenant_request::Selector;
use tenantd::proto::v1::{
    CreateApiKeyRequest, ExecuteRequest, ListApiKeysRequest, ListTenantsRequest, ResolveTenantRequest,
    RevokeApiKeyRequest, WhoAmIRequest,
};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use uuid::Uuid;

use crate::harness::{Client, Fleet, Spec, reason, until};

/// A key with these roles for these tenants, and its id.
async fn key(admin: &Client, roles: &[&str], tenants: &[&str]) -> (String, String) {
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    let wish = CreateApiKeyRequest {
        name: "test".to_owned(),
        roles: owned(roles),
        tenants: owned(tenants),
        ..CreateApiKeyRequest::default()
    };
    let made = admin.access().create_api_key(wish).await.unwrap().into_inner();
    (made.secret, made.api_key.unwrap().api_key_id)
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), reason(&status))
}

fn denied() -> (Code, String) {
    (Code::PermissionDenied, "PERMISSION_DENIED".to_owned())
}

#[tokio::test]
async fn roles_and_scopes_bound_what_a_key_may_do() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let admin = &daemon.client;
    admin.tenant("acme").await;
    admin.tenant("globex").await;

    let (secret, _) = key(admin, &["viewer"], &["acme"]).await;
    let viewer = Client::new(daemon.address, Some(&secret));
    assert_eq!(viewer.tenant_get("acme").await.unwrap().code, "acme");
    let listed = viewer.tenants().list_tenants(ListTenantsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.tenants.iter().map(|tenant| tenant.code.as_str()).collect::<Vec<_>>(), ["acme"]);
    // A tenant of somebody else's and one that does not exist look the same.
    let of_others = viewer.tenant_get("globex").await.unwrap_err();
    let of_nobody = viewer.tenant_get("nobody").await.unwrap_err();
    assert_eq!(of_others.message(), of_nobody.message());
    assert_eq!(refusal::<()>(Err(of_others)), denied());
    assert_eq!(refusal::<()>(Err(of_nobody)), denied());
    assert_eq!(refusal(viewer.tenant_create(Uuid::new_v4(), "initech").await), denied());
    assert_eq!(refusal(viewer.execute("acme", "SELECT 1").await), denied());
    assert_eq!(refusal(viewer.backup_create(Uuid::new_v4(), "acme").await), denied());

    let (secret, id) = key(admin, &["resolver"], &["acme"]).await;
    let resolver = Client::new(daemon.address, Some(&secret));
    // The only tenant in scope needs no name.
    let route = resolver.router().resolve_tenant(ResolveTenantRequest::default()).await.unwrap().into_inner().route;
    assert_eq!(route.map(|route| (route.code, route.password)), Some(("acme".to_owned(), String::new())));
    assert_eq!(resolver.sql("acme", "SELECT count(*) FROM things").await, "20");
    assert_eq!(refusal(resolver.execute("globex", "SELECT 1").await), denied());
    let (secret, _) = key(admin, &["operator"], &[]).await;
    let operator = Client::new(daemon.address, Some(&secret));
    let selector = Some(Selector::Code("acme".to_owned()));
    let wanted = ResolveTenantRequest { selector, include_credentials: true };
    assert_eq!(refusal(operator.router().resolve_tenant(wanted.clone()).await), denied());
    let shown = admin.router().resolve_tenant(wanted).await.unwrap().into_inner().route.unwrap();
    assert!(!shown.password.is_empty() && shown.url.contains(&shown.password));

    let revoke = RevokeApiKeyRequest { api_key_id: id, ..RevokeApiKeyRequest::default() };
    admin.access().revoke_api_key(revoke).await.unwrap();
    let gone = refusal(resolver.access().who_am_i(WhoAmIRequest {}).await);
    assert_eq!(gone, (Code::Unauthenticated, "UNAUTHENTICATED".to_owned()));
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn lists_are_paged() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    for code in ["acme", "globex", "initech"] {
        client.tenant(code).await;
    }
    let (mut codes, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = ListTenantsRequest { page_size: 2, page_token, state: 0 };
        let page = client.tenants().list_tenants(page).await.unwrap().into_inner();
        codes.push(page.tenants.iter().map(|tenant| tenant.code.clone()).collect::<Vec<_>>());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(codes, [vec!["acme", "globex"], vec!["initech"]]);
    for bad in [
        ListTenantsRequest { page_size: -1, ..ListTenantsRequest::default() },
        ListTenantsRequest { page_token: "x".to_owned(), ..ListTenantsRequest::default() },
        ListTenantsRequest { state: 99, ..ListTenantsRequest::default() },
    ] {
        let refused = refusal(client.tenants().list_tenants(bad).await);
        assert_eq!(refused, (Code::InvalidArgument, "INVALID_ARGUMENT".to_owned()));
    }

    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_repeated_wish_makes_no_second_key() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    let wish = |request_id: Uuid| CreateApiKeyRequest {
        request_id: request_id.to_string(),
        name: "ci".to_owned(),
        roles: vec!["migrator".to_owned()],
        ..CreateApiKeyRequest::default()
    };
    let create = async |request_id: Uuid| client.access().create_api_key(wish(request_id)).await;
    // Of the versions 7, 4, 5 and 1.
    let fixed = ["886313e1-3b8a-5372-9b90-0c9aee199e5d", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"];
    let ids = [Uuid::now_v7(), Uuid::new_v4()].into_iter().chain(fixed.map(|id| id.parse().unwrap()));
    for id in ids {
        let made = create(id).await.unwrap().into_inner().api_key.unwrap();
        assert_eq!(made.api_key_id, id.to_string());
        assert_eq!(refusal(create(id).await), (Code::AlreadyExists, "REQUEST_ID_REUSED".to_owned()), "{id}");
    }
    // The id of a key that was made without one is no other key's either.
    let unnamed = CreateApiKeyRequest { request_id: String::new(), ..wish(Uuid::nil()) };
    let made = client.access().create_api_key(unnamed).await.unwrap().into_inner().api_key.unwrap();
    let taken = refusal(create(made.api_key_id.parse().unwrap()).await);
    assert_eq!(taken, (Code::AlreadyExists, "REQUEST_ID_REUSED".to_owned()));
    let nil = create(Uuid::nil()).await.unwrap_err();
    assert!(nil.message().contains("nil UUID"), "{nil:?}");
    assert_eq!(refusal::<()>(Err(nil)), (Code::InvalidArgument, "INVALID_ARGUMENT".to_owned()));
    let keys = client.access().list_api_keys(ListApiKeysRequest::default()).await.unwrap().into_inner().api_keys;
    assert_eq!(keys.iter().filter(|key| key.name == "ci").count(), 5);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_no_statement_running() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let mut request = Request::new(ExecuteRequest {
        tenant: "acme".to_owned(),
        sql: "SELECT pg_sleep(600)".to_owned(),
        ..ExecuteRequest::default()
    });
    request.set_timeout(Duration::from_millis(500));
    daemon.client.query().execute(request).await.unwrap_err();
    let judge = fleet.judge("postgres").await;
    let running = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}_acme' AND state = 'active'",
        fleet.naming.prefix()
    );
    until("the statement has ended on the server", || async {
        (judge.query_one(&running, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    assert_eq!(daemon.client.sql("acme", "SELECT 1").await, "1");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn calls_that_are_given_up_at_once_do_not_cost_others_their_connection() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.spawn();
    let client = &daemon.client;
    client.tenant("acme").await;
    // All of them travel on one connection.
    let stays = tokio::spawn({
        let client = client.clone();
        async move { client.execute("acme", "SELECT pg_sleep(1)").await }
    });
    for _ in 0..10 {
        let calls =
            (0..100).map(|_| tokio::time::timeout(Duration::from_millis(2), client.execute("acme", "SELECT 1")));
        futures_util::future::join_all(calls).await;
    }
    stays.await.unwrap().unwrap();
    daemon.terminate().await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_daemon_with_nothing_to_migrate_waits_for_no_lock() {
    let fleet = Fleet::new(Spec::default()).await;
    fleet.start().await.stop().await;
    let mut holders = Vec::new();
    for database in [fleet.naming.shared_database(), fleet.naming.auth_database()] {
        let holder = fleet.judge(database.as_str()).await;
        // "tenantd" in ASCII; anybody who gets into the database may hold it.
        holder.execute("SELECT pg_advisory_lock($1)", &[&0x0074_656e_616e_7464_i64]).await.unwrap();
        holders.push(holder);
    }
    let daemon = tokio::time::timeout(Duration::from_secs(20), fleet.start()).await.unwrap();
    daemon.stop().await;
    drop(holders);
    fleet.finish().await;
}

#[tokio::test]
async fn a_drain_cuts_off_what_does_not_end() {
    let fleet = Fleet::new(Spec::default().setting("", "drain_timeout", "\"300ms\"")).await;
    fleet.expect_log("calls that did not end in time are cut off");
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let client = daemon.client.clone();
    let endless = tokio::spawn(async move { client.execute("acme", "SELECT pg_sleep(600)").await });
    let judge = fleet.judge("postgres").await;
    until("the statement runs", || async {
        let running = "SELECT 1 FROM pg_stat_activity \
                       WHERE datname = $1 AND state = 'active' AND backend_type = 'client backend'";
        judge.query_opt(running, &[&format!("{}_acme", fleet.naming.prefix())]).await.unwrap().map(|_| ())
    })
    .await;
    fleet.stop(daemon).await;
    assert_eq!(refusal(endless.await.unwrap()), (Code::Unavailable, "CANCELLED".to_owned()));
}

#[tokio::test]
async fn health_needs_no_key_reflection_does_and_a_drain_is_told() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let channel = Endpoint::from_shared(format!("http://{}", daemon.address)).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "tenantd.v1.TenantService", "tenantd.v1.QueryService"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }

    let question = || tokio_stream::once(ServerReflectionRequest::default());
    let mut reflection = ServerReflectionClient::new(channel);
    let refused = reflection.server_reflection_info(question()).await.map(|_| ());
    assert_eq!(refusal(refused), (Code::Unauthenticated, "UNAUTHENTICATED".to_owned()));
    let secret = std::fs::read_to_string(fleet.admin_key_file()).unwrap();
    let mut keyed = Request::new(question());
    keyed.metadata_mut().insert("authorization", format!("Bearer {}", secret.trim()).parse().unwrap());
    reflection.server_reflection_info(keyed).await.unwrap();

    let watched = HealthCheckRequest { service: String::new() };
    let mut states = health.watch(watched).await.unwrap().into_inner();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let told = tokio::spawn(async move {
        let mut told = Vec::new();
        while let Some(state) = states.message().await.unwrap() {
            told.push(state.status());
        }
        told
    });
    // A watcher does not hold the drain up: that would be logged.
    fleet.stop(daemon).await;
    assert_eq!(told.await.unwrap(), [ServingStatus::NotServing]);
}
