//! What the audit log says of refusals and of credentials that were shown, before anybody hears the answer.

use tenantd::proto::v1::resolve_tenant_request::Selector;
use tenantd::proto::v1::{
    AddTenantHostRequest, CreateApiKeyRequest, EvictPoolRequest, RemoveTenantHostRequest, ResolveTenantRequest,
    WhoAmIRequest,
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::{Client, Fleet, Spec, reason};

fn with_credentials(code: &str) -> ResolveTenantRequest {
    ResolveTenantRequest { selector: Some(Selector::Code(code.to_owned())), include_credentials: true }
}

#[tokio::test]
async fn no_password_is_shown_that_the_log_does_not_know_of() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let acme = daemon.client.tenant("acme").await;
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let shown = daemon.client.router().resolve_tenant(with_credentials("acme")).await.unwrap().into_inner();
    let password = shown.route.unwrap().password;
    let sql = "SELECT principal, tenant_id::text, resource_id, host(ip_address), user_agent, audit_log::text FROM audit_log WHERE outcome = 'DISCLOSED'";
    let rows = judge.query(sql, &[]).await.unwrap();
    assert_eq!(rows.len(), 1);
    let text = |column: usize| rows[0].get::<_, String>(column);
    assert_eq!((text(0).as_str(), text(1)), ("api-key:first-admin", acme.tenant_id));
    assert_eq!((text(2), text(3).as_str()), (format!("{}_acme__a", fleet.naming.prefix()), "127.0.0.1"));
    assert!(text(4).contains("tonic") && !text(5).contains(&password));

    fleet.expect_log("audit_log");
    judge.batch_execute("ALTER TABLE audit_log RENAME TO audit_log_elsewhere").await.unwrap();
    let refused = daemon.client.router().resolve_tenant(with_credentials("acme")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    judge.batch_execute("ALTER TABLE audit_log_elsewhere RENAME TO audit_log").await.unwrap();
    daemon.client.router().resolve_tenant(with_credentials("acme")).await.unwrap();
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn refusals_are_written_down_once_and_counted_whole() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    daemon.client.tenant("bolt").await;
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let wish = CreateApiKeyRequest {
        name: "narrow".to_owned(),
        roles: vec!["viewer".to_owned()],
        tenants: vec!["bolt".to_owned()],
        ..CreateApiKeyRequest::default()
    };
    let secret = daemon.client.access().create_api_key(wish).await.unwrap().into_inner().secret;
    let narrow = Client::new(daemon.address, Some(&secret));
    let count = async |filter: &str| {
        let sql = format!(
            "SELECT count(*), coalesce(sum((details ->> 'calls')::bigint), 0)::bigint FROM audit_log WHERE outcome = 'DENIED' AND {filter}"
        );
        let row = judge.query_one(&sql, &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    // A tenant of somebody else's, a method for others, a key that nobody has.
    assert_eq!(narrow.tenant_get("acme").await.unwrap_err().code(), Code::PermissionDenied);
    let named =
        "principal = 'api-key:narrow' AND action = 'TenantService/GetTenant' AND details -> 'tenants' = '[\"acme\"]'";
    assert_eq!(count(named).await, (1, 1));
    assert_eq!(narrow.execute("bolt", "SELECT 1").await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(count("action = 'QueryService/Execute' AND details ->> 'reason' LIKE '%permission'").await, (1, 1));
    // Whether the tenant exists, the answer does not say; the log has its name.
    let mut answers = Vec::new();
    for (name, tenant) in [("curious", "acme"), ("clumsy", "nobody")] {
        let wish = CreateApiKeyRequest {
            name: name.to_owned(),
            roles: vec!["resolver".to_owned()],
            tenants: vec!["bolt".to_owned()],
            ..CreateApiKeyRequest::default()
        };
        let secret = daemon.client.access().create_api_key(wish).await.unwrap().into_inner().secret;
        let resolver = daemon.client.with_key(&secret);
        let wanted = ResolveTenantRequest { include_credentials: false, ..with_credentials(tenant) };
        let refused = resolver.router().resolve_tenant(wanted).await.unwrap_err();
        answers.push((refused.code(), reason(&refused), refused.message().to_owned()));
        let filter = format!("principal = 'api-key:{name}' AND action = 'RouterService/ResolveTenant'");
        assert_eq!(count(&filter).await, (1, 1), "{tenant}");
        assert_eq!(count(&format!("{filter} AND details -> 'tenants' = '[\"{tenant}\"]'")).await.0, 1);
    }
    assert_eq!((answers[0].0, answers[0].1.as_str()), (Code::PermissionDenied, "PERMISSION_DENIED"));
    assert_eq!(answers[0], answers[1]);
    for _ in 0..30 {
        let stranger = Client::new(daemon.address, Some("tnd_nobody"));
        let refused = stranger.access().who_am_i(WhoAmIRequest {}).await.unwrap_err();
        assert_eq!(reason(&refused), "UNAUTHENTICATED");
    }
    let guesses = "principal = 'unauthenticated' AND action = 'authenticate' AND host(ip_address) = '127.0.0.1'";
    assert!(count(guesses).await.0 <= 2);
    daemon.stop().await;
    let (rows, calls) = count(guesses).await;
    assert!(rows <= 3 && calls == 30, "{rows} rows, {calls} calls");
    let secrets = "SELECT count(*) FROM audit_log WHERE audit_log::text LIKE '%tnd!_%' ESCAPE '!'";
    assert_eq!(judge.query_one(secrets, &[]).await.unwrap().get::<_, i64>(0), 0);
    fleet.finish().await;
}

fn evict(validate_only: bool) -> EvictPoolRequest {
    let (tenant, reason) = ("acme".to_owned(), "a new password".to_owned());
    EvictPoolRequest { tenant, reason, validate_only, ..EvictPoolRequest::default() }
}

#[tokio::test]
async fn what_changes_a_tenant_at_once_is_written_down_before_it_does() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let acme = daemon.client.tenant("acme").await;
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let client = &daemon.client;
    let hosts = async |request: Result<AddTenantHostRequest, RemoveTenantHostRequest>| -> Result<Vec<String>, Status> {
        let tenant = match request {
            Ok(add) => client.tenants().add_tenant_host(add).await?.into_inner().tenant,
            Err(remove) => client.tenants().remove_tenant_host(remove).await?.into_inner().tenant,
        };
        Ok(tenant.unwrap().hosts)
    };
    let add = |host: &str, validate_only| AddTenantHostRequest {
        request_id: Uuid::max().to_string(),
        tenant: "acme".to_owned(),
        host: host.to_owned(),
        validate_only,
    };
    let remove = RemoveTenantHostRequest {
        tenant: "acme".to_owned(),
        host: "shop.example.com".to_owned(),
        ..RemoveTenantHostRequest::default()
    };
    hosts(Ok(add("shop.example.com", true))).await.unwrap();
    hosts(Ok(add("shop.example.com", false))).await.unwrap();
    hosts(Err(remove)).await.unwrap();
    client.sql("acme", "SELECT 1").await;
    client.router().evict_pool(evict(true)).await.unwrap();
    client.router().evict_pool(evict(false)).await.unwrap();
    let sql = "SELECT concat_ws(' ', principal, action, resource_type, resource_id, details ->> 'reason', request_id)
        FROM audit_log WHERE outcome = 'DONE' AND tenant_id::text = $1 AND host(ip_address) = '127.0.0.1' AND user_agent LIKE '%tonic%' ORDER BY occurred_at";
    let rows = judge.query(sql, &[&acme.tenant_id]).await.unwrap();
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let by = "api-key:first-admin";
    assert_eq!(
        rows,
        [
            format!("{by} TenantService/AddTenantHost host shop.example.com {}", Uuid::max()),
            format!("{by} TenantService/RemoveTenantHost host shop.example.com"),
            format!("{by} RouterService/EvictPool pool acme a new password"),
        ]
    );

    // What cannot be written down is not done.
    fleet.expect_log("audit_log");
    client.sql("acme", "SELECT 1").await;
    judge.batch_execute("ALTER TABLE audit_log RENAME TO audit_log_elsewhere").await.unwrap();
    assert_eq!(client.router().evict_pool(evict(false)).await.unwrap_err().code(), Code::Internal);
    assert_eq!(hosts(Ok(add("late.example.com", false))).await.unwrap_err().code(), Code::Internal);
    judge.batch_execute("ALTER TABLE audit_log_elsewhere RENAME TO audit_log").await.unwrap();
    assert_eq!(client.tenant_get("acme").await.unwrap().hosts, Vec::<String>::new());
    let evicted = client.router().evict_pool(evict(false)).await.unwrap().into_inner();
    assert!(evicted.pool.is_some(), "the pool is still there");
    fleet.stop(daemon).await;
}
