//! Where tenants are, as the router knows it: changes by other daemons seen at once, tenants served while the shared
//! database is away, and names of every kind.

mod follow;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tenantd::domain::operation::OperationId;
use tenantd::domain::principal::{Principal, Scope};
use tenantd::domain::route::{Gate, Selector, Sources};
use tenantd::domain::tenant::{TenantId, TenantRole};
use tenantd::proto::v1::resolve_tenant_request::Selector as Wanted;
use tenantd::proto::v1::{
    AddTenantHostRequest, CreateApiKeyRequest, CreateTenantRequest, RemoveTenantHostRequest, ResolveTenantRequest,
    ResolveTenantResponse,
};
use tenantd::router::{Error, Fresh, Residue, Router};
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::harness::{Client, Fleet, Spec, reason, until};
use crate::router::{Watch, all_places_come_back, small_budget};
use crate::tenants::{Made, Rooms};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

async fn locate(router: &Router, code: &str) -> Result<Fresh, Error> {
    let explicit = Some(Selector::code(code).unwrap());
    let everybody = Principal::new("test", [].into(), Scope::All);
    router.locate(Sources { explicit, ..Sources::default() }, &everybody, soon()).await
}

/// Only announcements can tell what another daemon has changed.
fn nothing_by_time() -> Spec {
    Spec::default().setting("[router]", "route_age_max", "\"1h\"")
}

/// Another daemon's change of a tenant's tier.
fn premium(code: &str) -> String {
    format!(
        "UPDATE catalog_meta SET revision = revision + 1;
         UPDATE tenants SET tier = 'premium', revision = (SELECT revision FROM catalog_meta) WHERE code = '{code}'"
    )
}

/// Another daemon's router on the same fleet.
fn another(rooms: &Rooms) -> Router {
    let servers = BTreeMap::from([("main".to_owned(), rooms.server.clone())]);
    let live = tenantd::config::Live::new(rooms.config.limits.clone());
    let (naming, catalog) = (rooms.config.naming.clone(), rooms.catalog.clone());
    Router::new(live, naming, servers, catalog, Arc::clone(&rooms.envelope), &rooms.tasks)
}

async fn gate_set(rooms: &Rooms, tenant: &Made, gate: Gate, by: Uuid) {
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.gate_set_in_txn(&txn, tenant.id, gate, OperationId(by)).await.unwrap();
    txn.commit().await.unwrap();
}

#[tokio::test]
async fn what_another_daemon_changes_is_seen_without_waiting() {
    let rooms = Rooms::new(nothing_by_time()).await;
    let acme = rooms.tenant("acme").await;
    let other = another(&rooms);
    assert!(matches!(locate(&other, "acme").await.unwrap().route.gate, Gate::Open));

    let operation = Uuid::now_v7();
    gate_set(&rooms, &acme, Gate::Paused { operation }, operation).await;
    until("the pause is seen", async || {
        let gate = locate(&other, "acme").await.unwrap().route.gate;
        (gate == Gate::Paused { operation }).then_some(())
    })
    .await;
    // Callers who wait at the gate are woken when the operation, elsewhere, opens it.
    let waits = other.acquire(acme.id, soon());
    let opens = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        gate_set(&rooms, &acme, Gate::Open, operation).await;
    };
    let (lease, ()) = tokio::join!(waits, opens);
    lease.unwrap().release(Residue::Nothing);

    // A tenant that was asked for too early is found once it is there, and one that is unreserved is found no more.
    assert!(matches!(locate(&other, "later").await, Err(Error::TenantUnknown { .. })));
    let later = rooms.tenant("later").await;
    until("the new tenant is seen", async || locate(&other, "later").await.ok()).await;
    unreserve(&rooms, later.id).await;
    until("the tenant is gone", async || locate(&other, "later").await.err()).await;
    rooms.finish().await;
}

/// Takes the shared database away, or gives it back: under another name nobody finds it, and the judge can still
/// change it.
struct Shared<'a> {
    rooms: &'a Rooms,
    name: String,
}

impl<'a> Shared<'a> {
    async fn take_away(rooms: &'a Rooms) -> Self {
        let name = rooms.fleet.naming.shared_database().to_string();
        let judge = rooms.fleet.judge("postgres").await;
        judge.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await.unwrap();
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        until("the shared database has no sessions", async || {
            judge.query(end, &[&name]).await.unwrap().is_empty().then_some(())
        })
        .await;
        judge.batch_execute(&format!("ALTER DATABASE {name} RENAME TO {name}_away")).await.unwrap();
        judge.batch_execute(&format!("ALTER DATABASE {name}_away ALLOW_CONNECTIONS true")).await.unwrap();
        Self { rooms, name }
    }

    async fn change(&self, sql: &str) {
        self.rooms.fleet.judge(&format!("{}_away", self.name)).await.batch_execute(sql).await.unwrap();
    }

    async fn give_back(self) {
        let judge = self.rooms.fleet.judge("postgres").await;
        let rename = format!("ALTER DATABASE {0}_away RENAME TO {0}", self.name);
        until("the judge's own session has gone", async || judge.batch_execute(&rename).await.ok()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_keep_working_while_the_shared_database_is_away() {
    let spec = Spec::default()
        .setting("[router]", "route_age_max", "\"200ms\"")
        .setting("[router]", "pause_wait_max", "\"1s\"")
        .setting("[router]", "connection_idle_timeout", "\"300ms\"")
        .setting("[router]", "pool_idle_timeout", "\"600ms\"");
    let rooms = Rooms::new(spec).await;
    rooms.fleet.expect_log("the shared database cannot be followed");
    let (acme, beta, gamma) = (rooms.tenant("acme").await, rooms.tenant("beta").await, rooms.tenant("gamma").await);
    rooms.lease(&acme).await.unwrap().release(Residue::Nothing);
    let operation = Uuid::now_v7();
    gate_set(&rooms, &gamma, Gate::Paused { operation }, operation).await;
    until("the pause is seen", async || {
        let gate = locate(&rooms.router, "gamma").await.unwrap().route.gate;
        (gate == Gate::Paused { operation }).then_some(())
    })
    .await;

    let shared = Shared::take_away(&rooms).await;
    let stale = until("the route is stale", async || locate(&rooms.router, "acme").await.unwrap().stale).await;
    assert!(stale > Duration::ZERO);
    // Warm, and cold again after the pool has gone.
    rooms.lease(&acme).await.unwrap().release(Residue::Nothing);
    until("the pool is closed", async || (rooms.router.pool_count() == (0, 0)).then_some(())).await;
    let lease = rooms.lease(&acme).await.unwrap();
    let found: String = lease.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
    assert_eq!(found, acme.database);
    lease.release(Residue::Nothing);
    // A tenant that nobody has asked for is known all the same; one that there is not, is told apart from one that
    // this daemon cannot know.
    assert_eq!(locate(&rooms.router, "beta").await.unwrap().route.tenant, beta.id);
    assert_eq!(rooms.call(&beta).await.unwrap(), beta.database);
    let refusal = until("the catalog's absence has its cause", async || {
        let refusal = locate(&rooms.router, "nobody").await.unwrap_err();
        let Error::CatalogAway { cause } = &refusal else { panic!("{refusal}") };
        cause.contains("3D000").then_some(refusal)
    })
    .await;
    assert!(refusal.is_transient());
    // A pause never ends by time.
    let refusal = rooms.lease(&gamma).await.unwrap_err();
    assert!(matches!(refusal, Error::Paused { operation: Some(by), .. } if by == operation), "{refusal}");

    shared
        .change(
            "UPDATE catalog_meta SET revision = revision + 1;
             UPDATE tenants SET state = 'SUSPENDED', suspend_reason = 'unpaid',
                                revision = (SELECT revision FROM catalog_meta) WHERE code = 'acme'",
        )
        .await;
    shared.give_back().await;
    until("what was changed meanwhile is seen", async || {
        matches!(locate(&rooms.router, "acme").await, Err(Error::State { .. })).then_some(())
    })
    .await;
    let fresh = until("routes are fresh again", async || {
        locate(&rooms.router, "beta").await.ok().filter(|fresh| fresh.stale.is_none())
    })
    .await;
    assert_eq!(fresh.route.tenant, beta.id);
    until("who is not there is told apart again", async || {
        matches!(locate(&rooms.router, "nobody").await, Err(Error::TenantUnknown { .. })).then_some(())
    })
    .await;
    rooms.finish().await;
}

/// One call for each tenant, all at the same time: it reads its own row, by a route that is known to be stale.
async fn each_is_served_stale(rooms: &Rooms, tenants: &[Made]) {
    let calls = tenants.iter().map(async |tenant| {
        let known = locate(&rooms.router, tenant.code.as_str()).await.unwrap();
        assert!(known.stale.is_some(), "{known:?}");
        let lease = rooms.lease(tenant).await.unwrap();
        let sql = "SELECT current_database()::text, tenant FROM tenantd.identity";
        let row = lease.query_one(sql, &[]).await.unwrap();
        assert_eq!((row.get(0), row.get(1)), (tenant.database.clone(), tenant.id.0));
        lease.release(Residue::Nothing);
    });
    futures_util::future::join_all(calls).await;
}

/// It mostly sleeps.
#[tokio::test]
async fn a_minute_without_the_shared_database_costs_no_tenant_anything() {
    let spec = small_budget().setting("[router]", "acquire_timeout", "\"60s\"");
    let rooms = Rooms::new(spec).await;
    rooms.fleet.expect_log("the shared database cannot be followed");
    // More than there are places, so that connections are opened all the time.
    let tenants = rooms.tenants(8).await;
    for tenant in &tenants {
        locate(&rooms.router, tenant.code.as_str()).await.unwrap();
    }
    let shared = Shared::take_away(&rooms).await;
    let back = Instant::now() + Duration::from_secs(65);
    for tenant in &tenants {
        let stale = async || locate(&rooms.router, tenant.code.as_str()).await.unwrap().stale;
        until("each route is stale", stale).await;
    }
    let watch = Watch::every(&rooms.fleet, Duration::from_millis(50)).await;
    while Instant::now() < back {
        each_is_served_stale(&rooms, &tenants).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let refusal = locate(&rooms.router, "nobody").await.unwrap_err();
    assert!(matches!(&refusal, Error::CatalogAway { cause } if cause.contains("3D000")), "{refusal}");
    each_is_served_stale(&rooms, &tenants).await;
    shared.change(&premium("t0")).await;
    shared.give_back().await;
    until("what was changed meanwhile is seen", async || {
        let fresh = locate(&rooms.router, "t0").await.unwrap();
        (fresh.route.tier == "premium" && fresh.stale.is_none()).then_some(())
    })
    .await;
    let later = rooms.tenant("later").await;
    until("a new tenant is seen", async || locate(&rooms.router, "later").await.ok()).await;
    assert_eq!(rooms.call(&later).await.unwrap(), later.database);
    let seen = watch.seen().await;
    assert!((5..=6).contains(&seen.most) && seen.in_transaction == 0, "{seen:?}");
    all_places_come_back(&rooms, &[tenants, vec![later]].concat(), 6).await;
    rooms.finish().await;
}

#[tokio::test]
async fn a_catalog_that_cannot_be_followed_is_asked_again_once_it_answers() {
    let rooms = Rooms::new(Spec::default().setting("[router]", "route_age_max", "\"200ms\"")).await;
    let (acme, _beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    // Nobody can read all tenants any more, and each other one can be asked for.
    rooms.fleet.expect_log("the shared database cannot be followed");
    let mut judge = rooms.fleet.judge(&rooms.fleet.naming.shared_database().to_string()).await;
    let damage = "ALTER TABLE tenants DROP CONSTRAINT tenants_state_check;
        UPDATE catalog_meta SET revision = revision + 1;
        UPDATE tenants SET state = 'LOST', revision = (SELECT revision FROM catalog_meta) WHERE code = 'beta'";
    judge.batch_execute(damage).await.unwrap();
    judge
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'", &[])
        .await
        .unwrap();
    until("it cannot be followed", async || {
        rooms.fleet.has_logged("the shared database cannot be followed").then_some(())
    })
    .await;
    let held = judge.transaction().await.unwrap();
    held.batch_execute("LOCK TABLE tenants; UPDATE tenants SET tier = 'premium' WHERE code = 'acme'").await.unwrap();
    until("it gives no answer", async || locate(&rooms.router, "acme").await.unwrap().stale).await;
    held.commit().await.unwrap();
    until("it is asked again", async || {
        let route = locate(&rooms.router, "acme").await.unwrap().route;
        (route.tenant == acme.id && route.tier == "premium").then_some(())
    })
    .await;
    rooms.finish().await;
}

#[tokio::test]
async fn what_was_changed_while_the_catalog_was_away_is_read_when_it_is_back() {
    let rooms = Rooms::new(nothing_by_time()).await;
    rooms.fleet.allow_log("the shared database cannot be followed");
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    for code in ["acme", "beta"] {
        assert_eq!(locate(&rooms.router, code).await.unwrap().route.tier, "standard");
    }
    let shared = Shared::take_away(&rooms).await;
    // Nobody announces it to the daemon.
    shared.change(&premium("acme")).await;
    shared.give_back().await;
    until("the change is seen", async || {
        let route = locate(&rooms.router, "acme").await.ok()?.route;
        (route.tenant == acme.id && route.tier == "premium").then_some(())
    })
    .await;
    let other = locate(&rooms.router, "beta").await.unwrap().route;
    assert_eq!((other.tenant, other.tier.as_str()), (beta.id, "standard"));
    rooms.finish().await;
}

#[tokio::test]
async fn an_older_catalog_is_noticed_and_read_anew() {
    let rooms = Rooms::new(nothing_by_time()).await;
    rooms.fleet.expect_log("the shared database is an older one than before");
    rooms.fleet.allow_log("the shared database cannot be followed");
    let acme = rooms.tenant("acme").await;
    assert_eq!(locate(&rooms.router, "acme").await.unwrap().route.tenant, acme.id);
    let shared = Shared::take_away(&rooms).await;
    // As after a restore from before the tenant was activated, and with other changes since.
    shared.change("UPDATE catalog_meta SET revision = 1; UPDATE tenants SET tier = 'premium', revision = 1").await;
    shared.give_back().await;
    until("the older catalog counts", async || {
        let route = locate(&rooms.router, "acme").await.ok()?.route;
        (route.tier == "premium").then_some(())
    })
    .await;
    rooms.finish().await;
}

#[tokio::test]
async fn a_pool_that_is_newer_than_an_older_catalog_makes_room() {
    let rooms = Rooms::new(nothing_by_time()).await;
    rooms.fleet.expect_log("the shared database is an older one than before");
    rooms.fleet.allow_log("the shared database cannot be followed");
    let acme = rooms.tenant("acme").await;
    let before = locate(&rooms.router, "acme").await.unwrap().route.epoch;
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.tenant_epoch_bump_in_txn(&txn, acme.id).await.unwrap();
    txn.commit().await.unwrap();
    rooms.router.route_forget(acme.id);
    rooms.call(&acme).await.unwrap();
    let shared = Shared::take_away(&rooms).await;
    // As after a restore from before the tenant was migrated.
    shared.change("UPDATE catalog_meta SET revision = 1; UPDATE tenants SET epoch = epoch - 1, revision = 1").await;
    shared.give_back().await;
    until("the older catalog counts", async || {
        let route = locate(&rooms.router, "acme").await.ok()?.route;
        (route.epoch == before).then_some(())
    })
    .await;
    let soon = || Instant::now() + Duration::from_secs(10);
    let lease = until("its pool is the catalog's", async || rooms.router.acquire(acme.id, soon()).await.ok()).await;
    lease.release(Residue::Nothing);
    rooms.finish().await;
}

#[tokio::test]
async fn a_password_is_asked_for_again_in_a_new_epoch() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let login = async || {
        let route = locate(&rooms.router, "acme").await.unwrap().route;
        let login = rooms.router.route_login_kept(&route, TenantRole::DirectA).await.unwrap();
        secrecy::ExposeSecret::expose_secret(&login.password).to_owned()
    };
    let first = login().await;
    let role = acme.roles.name(TenantRole::DirectA).unwrap();
    let field = tenantd::router::credentials::role_field(role);
    let txn = rooms.catalog.begin().await.unwrap();
    let key = rooms.catalog.tenant_data_key_get(acme.id).await.unwrap();
    let aad = tenantd::secrets::Aad { tenant: acme.id.0, field: &field, version: 2 };
    let sealed = rooms.envelope.seal(&key, &aad, b"another").unwrap();
    rooms.catalog.tenant_secret_put_in_txn(&txn, acme.id, &field, 2, &sealed).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(login().await, first, "the epoch is the same");
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.tenant_epoch_bump_in_txn(&txn, acme.id).await.unwrap();
    txn.commit().await.unwrap();
    rooms.router.route_forget(acme.id);
    assert_eq!(login().await, "another");
    rooms.finish().await;
}

/// Who resolves nothing in particular, by the name that it called.
async fn resolve_at(client: &Client, origin: &str) -> Result<ResolveTenantResponse, Status> {
    let answer = client.at(origin).router().resolve_tenant(ResolveTenantRequest::default()).await;
    answer.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_call_means_the_tenant_of_the_host_that_it_came_to() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    for (code, host) in [("acme", "Aciérie.Example.COM."), ("beta", "beta.example.com")] {
        let request = CreateTenantRequest {
            code: code.to_owned(),
            name: code.to_owned(),
            hosts: vec![host.to_owned()],
            ..CreateTenantRequest::default()
        };
        let begun = client.tenants().create_tenant(request).await.unwrap().into_inner();
        client.succeeded(&begun.operation.unwrap()).await;
    }
    let code = |answer: Result<ResolveTenantResponse, Status>| answer.map(|answer| answer.route.unwrap().code);
    let acme = "http://xn--acirie-dva.example.com:7432";
    assert_eq!(code(resolve_at(client, acme).await).unwrap(), "acme");
    assert_eq!(code(resolve_at(client, "http://BETA.example.com").await).unwrap(), "beta");
    // What comes first counts more.
    let mut request = Request::new(ResolveTenantRequest::default());
    request.metadata_mut().insert("x-tenant-id", "beta".parse().unwrap());
    let answer = client.at(acme).router().resolve_tenant(request).await.map(tonic::Response::into_inner);
    assert_eq!(code(answer).unwrap(), "beta");
    let explicit = ResolveTenantRequest { selector: Some(Wanted::Code("beta".to_owned())), ..Default::default() };
    let answer = client.at(acme).router().resolve_tenant(explicit).await.map(tonic::Response::into_inner);
    assert_eq!(code(answer).unwrap(), "beta");
    // The daemon's own names are no tenant's, and no error: the caller's only tenant counts.
    let own = client.with_key(&client.key_new(&["resolver"], &["beta"]).await);
    for origin in ["http://127.0.0.1:7432", "http://localhost:7432", "http://tenantd.example.com", "http://[::1]:1"] {
        assert_eq!(code(resolve_at(&own, origin).await).unwrap(), "beta", "{origin}");
        let refusal = resolve_at(client, origin).await.unwrap_err();
        assert_eq!(
            (refusal.code(), reason(&refusal).as_str()),
            (Code::InvalidArgument, "INVALID_ARGUMENT"),
            "{origin}"
        );
    }
    // Of several tenants, the caller's default one: unless the host is a tenant's.
    for (default_tenant, meant) in [("acme", Some("acme")), ("beta", Some("beta")), ("", None)] {
        let request = CreateApiKeyRequest {
            name: format!("by default {default_tenant}"),
            roles: vec!["resolver".to_owned()],
            tenants: vec!["acme".to_owned(), "beta".to_owned()],
            default_tenant: default_tenant.to_owned(),
            ..CreateApiKeyRequest::default()
        };
        let both = client.with_key(&client.access().create_api_key(request).await.unwrap().into_inner().secret);
        assert_eq!(code(resolve_at(&both, "http://localhost:7432").await).ok().as_deref(), meant, "{default_tenant}");
        for (origin, its) in [(acme, "acme"), ("http://beta.example.com", "beta")] {
            assert_eq!(code(resolve_at(&both, origin).await).unwrap(), its, "{default_tenant}");
        }
    }
    // Names come and go, each with one tenant at a time.
    let shop = "Shop.Example.com.";
    let add = async |tenant: &str, validate_only: bool| {
        let (tenant, host) = (tenant.to_owned(), shop.to_owned());
        let request = AddTenantHostRequest { tenant, host, validate_only, ..Default::default() };
        client.tenants().add_tenant_host(request).await.map(|answer| answer.into_inner().tenant.unwrap().hosts)
    };
    assert_eq!(add("beta", true).await.unwrap(), ["beta.example.com", "shop.example.com"]);
    assert!(resolve_at(client, "http://shop.example.com").await.is_err(), "it was only checked");
    for _ in 0..2 {
        assert_eq!(add("beta", false).await.unwrap(), ["beta.example.com", "shop.example.com"]);
    }
    assert_eq!(code(resolve_at(client, "http://shop.example.com").await).unwrap(), "beta");
    let refusal = add("acme", false).await.unwrap_err();
    assert_eq!(refusal.code(), Code::AlreadyExists);
    for _ in 0..2 {
        let (tenant, host) = ("beta".to_owned(), "shop.example.com".to_owned());
        let request = RemoveTenantHostRequest { tenant, host, ..Default::default() };
        let answer = client.tenants().remove_tenant_host(request).await.unwrap().into_inner();
        assert_eq!(answer.tenant.unwrap().hosts, ["beta.example.com"]);
    }
    assert!(resolve_at(client, "http://shop.example.com").await.is_err());
    // Another tenant's host is a mismatch, and says nothing about that tenant.
    let refusal = resolve_at(&own, acme).await.unwrap_err();
    assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::PermissionDenied, "PERMISSION_DENIED"));
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn no_tenant_has_a_name_of_the_daemons_own() {
    const OWN: &str = "http://DB.example.com:7432";
    let fleet = Fleet::new(Spec::default().setting("", "own_hosts", r#"["db.example.com"]"#)).await;
    let daemon = fleet.start().await;
    let admin = &daemon.client;
    for code in ["acme", "beta"] {
        admin.tenant(code).await;
    }
    let operator = admin.with_key(&admin.key_new(&["operator"], &["acme"]).await);
    let resolver = admin.with_key(&admin.key_new(&["resolver"], &["beta"]).await);
    let means = async || resolve_at(&resolver, OWN).await.unwrap().route.unwrap();
    assert_eq!(means().await.code, "beta");

    // Neither by a change nor by a creation, nor to be looked at only.
    for validate_only in [true, false] {
        let (tenant, host) = ("acme".to_owned(), "DB.example.com.".to_owned());
        let request = AddTenantHostRequest { tenant, host, validate_only, ..Default::default() };
        let refusal = operator.tenants().add_tenant_host(request).await.unwrap_err();
        assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
        assert!(refusal.message().contains("db.example.com is a name of the daemon's own"), "{refusal:?}");
    }
    let (code, hosts) = ("cusp".to_owned(), vec!["db.example.com".to_owned()]);
    let request = CreateTenantRequest { name: code.clone(), code, hosts, ..CreateTenantRequest::default() };
    let refusal = admin.tenants().create_tenant(request).await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument);
    assert!(refusal.message().contains("db.example.com is a name of the daemon's own"), "{refusal:?}");

    // A tenant that has the name all the same: given by hand, or by a daemon that is called otherwise.
    fleet.expect_log("a tenant has a name of the daemon's own");
    let judge = fleet.judge(fleet.naming.shared_database().as_str()).await;
    judge
        .batch_execute(
            "INSERT INTO hosts (host, tenant_id)
                SELECT host, id FROM tenants, (VALUES ('db.example.com'), ('acme.example.com')) AS own (host)
                WHERE code = 'acme';
             UPDATE catalog_meta SET revision = revision + 1;
             UPDATE tenants SET revision = (SELECT revision FROM catalog_meta) WHERE code = 'acme'",
        )
        .await
        .unwrap();
    let acme = until("the names are read", async || resolve_at(admin, "http://acme.example.com").await.ok()).await;
    assert_eq!(acme.route.unwrap().hosts, ["acme.example.com"]);
    until("it is told", async || fleet.has_logged("a tenant has a name of the daemon's own").then_some(())).await;
    assert_eq!(means().await.code, "beta");
    let named =
        ResolveTenantRequest { selector: Some(Wanted::Host("db.example.com".to_owned())), ..Default::default() };
    assert_eq!(admin.router().resolve_tenant(named).await.unwrap_err().code(), Code::NotFound);
    // It can be seen, and taken away.
    assert_eq!(admin.tenant_get("acme").await.unwrap().hosts, ["acme.example.com", "db.example.com"]);
    let (tenant, host) = ("acme".to_owned(), "db.example.com".to_owned());
    let request = RemoveTenantHostRequest { tenant, host, ..Default::default() };
    let answer = operator.tenants().remove_tenant_host(request).await.unwrap().into_inner();
    assert_eq!(answer.tenant.unwrap().hosts, ["acme.example.com"]);
    fleet.stop(daemon).await;
}

async fn unreserve(rooms: &Rooms, tenant: TenantId) {
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.tenant_delete_in_txn(&txn, tenant).await.unwrap();
    txn.commit().await.unwrap();
}
