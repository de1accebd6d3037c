//! Where tenants are, as the router knows it: changes by other daemons seen at once, tenants served while the shared
//! database is away, and names of every kind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tenantd::catalog::{NewTenant, RouteChange};
use tenantd::domain::operation::OperationId;
use tenantd::domain::principal::{Principal, Scope};
use tenantd::domain::route::{Gate, Selector, Sources};
use tenantd::domain::tenant::{TenantCode, TenantId, TenantRole};
use tenantd::proto::v1::resolve_tenant_request::Selector as Wanted;
use tenantd::proto::v1::{
    AddTenantHostRequest, CreateTenantRequest, RemoveTenantHostRequest, ResolveTenantRequest, ResolveTenantResponse,
    RouteEvent as RouteEventKind, SuspendTenantRequest, TenantState, WatchRoutesRequest, WatchRoutesResponse,
};
use tenantd::router::{Error, Fresh, Mark, Residue, RouteEvent, RouteWatch, Router};
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::harness::{Client, Fleet, Spec, reason, until};
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
    let refusal = locate(&rooms.router, "nobody").await.unwrap_err();
    assert!(matches!(&refusal, Error::CatalogAway { cause } if cause.contains("3D000")), "{refusal}");
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

/// A table of routes as a client keeps it: code and epoch.
type Seen = BTreeMap<TenantId, (String, i64)>;

/// Hears one message, and keeps the table.
async fn hear(watch: &mut RouteWatch, seen: &mut Seen) -> Option<Mark> {
    match watch.next().await.unwrap() {
        RouteEvent::Snapshot { routes, complete_at } => {
            seen.extend(routes.into_iter().map(|route| (route.tenant, (route.code.to_string(), route.epoch))));
            complete_at
        }
        RouteEvent::Changes { changes, mark } => {
            for change in changes {
                match change {
                    RouteChange::Set(route) => drop(seen.insert(route.tenant, (route.code.to_string(), route.epoch))),
                    RouteChange::Removed { tenant, .. } => drop(seen.remove(&tenant)),
                }
            }
            Some(mark)
        }
        RouteEvent::Quiet { mark } => Some(mark),
    }
}

async fn in_catalog(rooms: &Rooms) -> (Seen, i64) {
    let revision = rooms.catalog.position().await.unwrap().revision;
    let all = rooms.catalog.tenant_all().await.unwrap();
    (all.into_iter().map(|tenant| (tenant.id, (tenant.code.to_string(), tenant.epoch))).collect(), revision)
}

async fn epoch_bump(rooms: &Rooms, tenant: TenantId) {
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.tenant_epoch_bump_in_txn(&txn, tenant).await.unwrap();
    txn.commit().await.unwrap();
}

/// Reserves a tenant.
async fn reserve(rooms: &Rooms, code: &str) -> TenantId {
    let code: TenantCode = code.parse().unwrap();
    let new = NewTenant {
        id: TenantId(Uuid::now_v7()),
        code: code.clone(),
        name: code.to_string(),
        legal_name: None,
        siret: None,
        vat_number: None,
        tier: "standard".to_owned(),
        server: "main".to_owned(),
        database: rooms.config.naming.tenant_database(&code).unwrap(),
        hosts: Vec::new(),
    };
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.tenant_reserve_in_txn(&txn, &new).await.unwrap();
    txn.commit().await.unwrap();
    new.id
}

async fn unreserve(rooms: &Rooms, tenant: TenantId) {
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.tenant_delete_in_txn(&txn, tenant).await.unwrap();
    txn.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_begins_again_and_again_misses_nothing() {
    const CHANGES: usize = 400;
    let rooms = Rooms::new(Spec::default()).await;
    let mut tenants = Vec::new();
    for number in 0..5 {
        tenants.push(reserve(&rooms, &format!("t{number}")).await);
    }
    let (mut seen, mut mark) = (Seen::new(), None);
    let mut sleeper = rooms.router.routes_watch(&Scope::All, None).await.unwrap();
    let mut late = Seen::new();
    while hear(&mut sleeper, &mut late).await.is_none() {}
    let changes = async {
        for number in 0..CHANGES {
            epoch_bump(&rooms, tenants[number % tenants.len()]).await;
            if number % 7 == 0 {
                let brief = reserve(&rooms, &format!("brief{number}")).await;
                if number % 2 == 0 {
                    unreserve(&rooms, brief).await;
                }
            }
        }
        in_catalog(&rooms).await
    };
    // The reader leaves after a few messages and comes back, until it has heard the last revision.
    let (last, told) = tokio::sync::watch::channel(None);
    let reader = async {
        for stay in (1..=4).cycle() {
            let mut watch = rooms.router.routes_watch(&Scope::All, mark).await.unwrap();
            for _ in 0..stay {
                let heard = hear(&mut watch, &mut seen).await;
                assert!(heard.is_none() || heard.map(|mark| mark.revision) >= mark.map(|mark: Mark| mark.revision));
                mark = heard.or(mark);
                if mark.is_some() && mark.map(|mark| mark.revision) == *told.borrow() {
                    return;
                }
            }
        }
    };
    let writer = async {
        let (_, revision) = changes.await;
        // One more, so that a reader who has heard everything by then does not wait for long.
        last.send_replace(Some(revision + 1));
        epoch_bump(&rooms, tenants[0]).await;
    };
    tokio::join!(writer, async {
        tokio::time::timeout(Duration::from_secs(100), reader).await.expect("the reader hears the last revision");
    });
    let (now, revision) = in_catalog(&rooms).await;
    assert_eq!(mark.map(|mark| mark.revision), Some(revision));
    assert_eq!(seen, now);
    // One who did not read all the while finds the ring overtaken, and misses nothing either.
    while late != now {
        hear(&mut sleeper, &mut late).await;
    }
    rooms.finish().await;
}

#[tokio::test]
async fn a_revision_that_cannot_be_gone_on_from_is_told() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = reserve(&rooms, "acme").await;
    let start = rooms.catalog.position().await.unwrap();
    let mark = |revision| Mark { catalog_id: start.catalog_id, revision };
    let begin = async |since: Mark| {
        let mut watch = rooms.router.routes_watch(&Scope::All, Some(since)).await?;
        watch.next().await
    };
    let refused = |error: Error| matches!(error, Error::Catalog(error) if matches!(*error, tenantd::catalog::Error::RevisionUnknown { .. }));
    let gone = reserve(&rooms, "gone").await;
    unreserve(&rooms, gone).await;
    let event = begin(mark(start.revision)).await.unwrap();
    assert!(
        matches!(&event, RouteEvent::Changes { changes, mark } if mark.revision == start.revision + 2
            && matches!(changes.as_slice(), [RouteChange::Removed { tenant, .. }] if *tenant == gone)),
        "{event:?}"
    );
    // What was removed before is forgotten; who has not heard of it must begin anew.
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.removals_compact_in_txn(&txn, start.revision + 2).await.unwrap();
    txn.commit().await.unwrap();
    assert!(refused(begin(mark(start.revision)).await.unwrap_err()));
    epoch_bump(&rooms, acme).await;
    assert!(matches!(begin(mark(start.revision + 2)).await.unwrap(), RouteEvent::Changes { .. }));
    // Ahead of the catalog, and of another one.
    assert!(refused(begin(mark(start.revision + 100)).await.unwrap_err()));
    assert!(refused(begin(Mark { catalog_id: Uuid::new_v4(), revision: 0 }).await.unwrap_err()));
    rooms.finish().await;
}

type Routes = tonic::Streaming<WatchRoutesResponse>;

/// The codes of a whole snapshot, and what its last message says.
async fn snapshot(stream: &mut Routes) -> (Vec<String>, WatchRoutesResponse) {
    let mut codes = Vec::new();
    loop {
        let message = stream.message().await.unwrap().unwrap();
        assert!(message.routes.iter().all(|route| route.password.is_empty() && route.url.starts_with("postgresql://")));
        codes.extend(message.routes.iter().map(|route| route.code.clone()));
        match message.event() {
            RouteEventKind::Snapshot => {}
            RouteEventKind::SnapshotEnd => return (codes, message),
            other => panic!("{other:?} before the snapshot was complete"),
        }
    }
}

#[tokio::test]
async fn a_watch_shows_what_the_caller_may_see_until_the_daemon_goes_down() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let admin = &daemon.client;
    for code in ["acme", "beta"] {
        admin.tenant(code).await;
    }
    let watch = async |client: &Client, request: WatchRoutesRequest| {
        client.router().watch_routes(request).await.map(tonic::Response::into_inner)
    };
    let mut all = watch(admin, WatchRoutesRequest::default()).await.unwrap();
    let (codes, end) = snapshot(&mut all).await;
    assert_eq!(codes, ["acme", "beta"]);
    let own = admin.with_key(&admin.key_new(&["resolver"], &["beta"]).await);
    let mut some = watch(&own, WatchRoutesRequest::default()).await.unwrap();
    assert_eq!(snapshot(&mut some).await.0, ["beta"]);
    for tenant in ["acme", "beta"] {
        let reason = "unpaid".to_owned();
        let request = SuspendTenantRequest { tenant: tenant.to_owned(), reason, ..Default::default() };
        let begun = admin.tenants().suspend_tenant(request).await.unwrap().into_inner();
        admin.succeeded(&begun.operation.unwrap()).await;
    }
    let message = some.message().await.unwrap().unwrap();
    assert_eq!(message.event(), RouteEventKind::Changes);
    assert!(message.routes.iter().all(|route| route.code == "beta" && route.state() == TenantState::Suspended));
    // From the snapshot on, as if the stream had broken.
    let since = WatchRoutesRequest { after_revision: Some(end.revision), catalog_id: end.catalog_id.clone() };
    let mut resumed = watch(admin, since).await.unwrap();
    for stream in [&mut all, &mut resumed] {
        let mut suspended = std::collections::BTreeSet::new();
        while suspended.len() < 2 {
            let message = stream.message().await.unwrap().unwrap();
            let states = message.routes.iter().filter(|route| route.state() == TenantState::Suspended);
            suspended.extend(states.map(|route| route.code.clone()));
        }
    }
    let other = WatchRoutesRequest { after_revision: Some(1), catalog_id: Uuid::new_v4().to_string() };
    let refusal = watch(admin, other).await.unwrap_err();
    assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::OutOfRange, "REVISION_UNKNOWN"));
    let viewer = admin.with_key(&admin.key_new(&["viewer"], &[]).await);
    let refusal = watch(&viewer, WatchRoutesRequest::default()).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);

    fleet.stop(daemon).await;
    let last = async |mut stream: Routes| loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "a watch says why it ends"),
            Err(status) => return status.code(),
        }
    };
    assert_eq!(last(all).await, Code::Unavailable);
    assert_eq!(last(some).await, Code::Unavailable);
}

#[tokio::test]
async fn a_watch_without_changes_is_told_how_far_the_catalog_is() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let mut stream = daemon.client.routes().await;
    let (_, end) = snapshot(&mut stream).await;
    let quiet = loop {
        let message = stream.message().await.unwrap().unwrap();
        if message.event() == RouteEventKind::Keepalive {
            break message;
        }
    };
    assert!(quiet.routes.is_empty() && quiet.removed_routes.is_empty());
    assert_eq!(quiet.catalog_id, end.catalog_id);
    assert!(quiet.revision >= end.revision);
    // It is a mark like others.
    let since = WatchRoutesRequest { after_revision: Some(quiet.revision), catalog_id: quiet.catalog_id };
    let mut resumed = daemon.client.router().watch_routes(since).await.unwrap().into_inner();
    daemon.client.tenant("beta").await;
    let message = resumed.message().await.unwrap().unwrap();
    assert_eq!(message.event(), RouteEventKind::Changes);
    assert!(message.routes.iter().all(|route| route.code == "beta"), "{message:?}");
    fleet.stop(daemon).await;
}
