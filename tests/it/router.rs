//! Pools under one budget: made once, capped as the server sees it, closed when they idle, never handed to the wrong
//! tenant, and empty when a gate's operation needs it.

mod breakers;
mod connections;
mod faults;
pub mod gates;
mod hygiene;
mod limits;
mod overview;
mod pressure;
mod refusals;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tenantd::domain::operation::OperationId;
use tenantd::domain::principal::{Principal, Scope};
use tenantd::domain::route::{Gate, Selector, Sources};
use tenantd::domain::tenant::{RoleName, TenantRole};
use tenantd::postgres::{ConnectRequest, Connection, Lane, SessionOptions};
use tenantd::router::{Error, Lease, Residue, TimeoutCause};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::harness::{Fleet, Machine, PATIENCE, Spec, until};
use crate::tenants::{Made, Rooms};

fn principal(scope: Scope) -> Principal {
    Principal::new("test", [].into(), scope)
}

async fn one(lease: &Lease) -> i32 {
    lease.query_one("SELECT 1", &[]).await.unwrap().get(0)
}

/// Why there is no connection for a caller who hardly waits. To know the tenant may take it longer than that.
async fn refusal_at_once(rooms: &Rooms, tenant: &Made) -> Error {
    until("there is an answer", async || {
        let answer = rooms.router.acquire(tenant.id, Instant::now() + Duration::from_millis(50)).await;
        (!matches!(answer, Err(Error::CatalogSlow))).then(|| answer.unwrap_err())
    })
    .await
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_first_requests_make_one_pool() {
    let rooms = Arc::new(Rooms::new(Spec::default().setting("[router]", "acquire_timeout", "\"2m\"")).await);
    let acme = rooms.tenant("acme").await;
    let watch = Watch::start(&rooms).await;
    let mut calls = JoinSet::new();
    for _ in 0..1000 {
        let (rooms, acme) = (Arc::clone(&rooms), acme.clone());
        calls.spawn(async move {
            let lease = rooms.router.acquire(acme.id, Instant::now() + PATIENCE).await.unwrap();
            assert_eq!(one(&lease).await, 1);
            lease.release(Residue::Nothing);
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    let (pools, connections) = rooms.router.pool_count();
    assert_eq!(pools, 1);
    assert!(connections <= 10, "{connections} connections, and the tier has 10");
    let most = watch.end().await;
    assert!(most <= 10, "the server saw {most} sessions");
    // Made once, and handed on.
    let connects = rooms.router.stats(acme.id).connects;
    assert!(connects <= 10, "{connections} connections took {connects} connects");
    Arc::into_inner(rooms).unwrap().finish().await;
}

/// Looks at the tenants' sessions again and again, as a superuser. While the server is away there are none, and the
/// first moment afterwards counts.
pub struct Watch {
    over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Seen>,
}

/// What was there at some moment.
#[derive(Debug, Default)]
pub struct Seen {
    /// The most sessions.
    pub most: i64,
    /// The most in each database.
    pub most_in: BTreeMap<String, i64>,
    /// The most that were idle in a transaction.
    pub in_transaction: i64,
    /// The most that were so for longer than it takes until a caller's next word.
    pub left_open: i64,
}

impl Seen {
    fn note(&mut self, sessions: &[tokio_postgres::Row]) {
        let [mut all, mut in_transaction, mut left_open] = [0; 3];
        for row in sessions {
            let most = self.most_in.entry(row.get(0)).or_default();
            *most = (*most).max(row.get(1));
            all += row.get::<_, i64>(1);
            in_transaction += row.get::<_, i64>(2);
            left_open += row.get::<_, i64>(3);
        }
        self.most = self.most.max(all);
        self.in_transaction = self.in_transaction.max(in_transaction);
        self.left_open = self.left_open.max(left_open);
    }

    /// The most that were in the tenant's database.
    fn most_of(&self, tenant: &Made) -> i64 {
        self.most_in.get(&tenant.database).copied().unwrap_or_default()
    }
}

impl Watch {
    async fn start(rooms: &Rooms) -> Self {
        Self::of(&rooms.fleet).await
    }

    pub async fn of(fleet: &Fleet) -> Self {
        Self::every(fleet, Duration::from_millis(5)).await
    }

    pub async fn every(fleet: &Fleet, interval: Duration) -> Self {
        let (machine, judge) = (fleet.machine, fleet.judge("postgres").await);
        let over = Arc::new(AtomicBool::new(false));
        let (end, prefix) = (Arc::clone(&over), fleet.naming.prefix().to_owned());
        let sql = "SELECT coalesce(datname::text, ''), count(*), count(*) FILTER (WHERE is_open), \
                   count(*) FILTER (WHERE is_open AND state_change < clock_timestamp() - interval '5 s') \
                   FROM (SELECT *, starts_with(state, 'idle in transaction') AS is_open FROM pg_stat_activity) AS a \
                   WHERE starts_with(application_name, $1 || '_') GROUP BY 1";
        let task = tokio::spawn(async move {
            let (mut judge, mut seen) = (Some(judge), Seen::default());
            loop {
                let is_last = end.load(Ordering::Relaxed);
                judge = match judge {
                    Some(judge) => judge.query(sql, &[&prefix]).await.ok().map(|sessions| {
                        seen.note(&sessions);
                        judge
                    }),
                    None => machine.try_judge("postgres").await.ok(),
                };
                if is_last {
                    return seen;
                }
                tokio::time::sleep(interval).await;
            }
        });
        Self { over, task }
    }

    /// The most sessions at once.
    pub async fn end(self) -> i64 {
        self.seen().await.most
    }

    pub async fn seen(self) -> Seen {
        self.over.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Awaits that no session of a tenant has a statement or a transaction.
pub async fn nothing_is_left_open(fleet: &Fleet) {
    let judge = fleet.judge("postgres").await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, $1 || '_') \
               AND state <> 'idle'";
    let prefix = fleet.naming.prefix();
    until("nothing runs, and nothing is left in a transaction", async || {
        let count: i64 = judge.query_one(sql, &[&prefix]).await.unwrap().get(0);
        (count == 0).then_some(())
    })
    .await;
}

/// Every connection of these tenants is closed, and then the budget has exactly so many places for tenants.
pub async fn all_places_come_back(rooms: &Rooms, tenants: &[Made], places: usize) {
    for tenant in tenants {
        rooms.router.pool_evict(tenant.id);
    }
    rooms.sessions_become(0).await;
    let budget = rooms.server.budget();
    let mut permits = Vec::new();
    for number in 1..=places {
        let permit = budget.acquire(Lane::Tenant, Instant::now() + PATIENCE).await;
        permits.push(permit.unwrap_or_else(|error| panic!("the place {number} of {places} is not free: {error}")));
    }
    let one_more = budget.acquire(Lane::Tenant, Instant::now() + Duration::from_millis(50)).await;
    assert!(one_more.is_err(), "tenants have more than {places} places");
}

/// Six places for tenants.
pub fn small_budget() -> Spec {
    Spec::default().setting("[[servers]]", "connections_max", "22").setting("[[servers]]", "connections_reserved", "16")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_tenants_share_six_connections() {
    const TENANTS: usize = 40;
    let spec = small_budget().setting("[router]", "acquire_timeout", "\"60s\"");
    let rooms = Arc::new(Rooms::new(spec).await);
    let tenants = rooms.tenants(TENANTS).await;
    let watch = Watch::start(&rooms).await;
    let begun = Instant::now();
    let mut calls = JoinSet::new();
    for round in 0..10 {
        for tenant in tenants.clone() {
            let rooms = Arc::clone(&rooms);
            calls.spawn(async move {
                let lease = rooms.lease(&tenant).await.unwrap();
                let database: String = lease.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
                assert_eq!(database, tenant.database, "round {round}");
                lease.release(Residue::Nothing);
            });
        }
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    eprintln!("400 calls on 40 tenants over 6 connections took {:?}", begun.elapsed());
    let most = watch.end().await;
    assert!(most <= 6, "the server saw {most} sessions, and the budget has 6 for tenants");
    assert!(most >= 5, "only {most} sessions were seen: the budget was not used");
    Arc::into_inner(rooms).unwrap().finish().await;
}

#[tokio::test]
async fn a_busy_budget_is_named_in_the_refusal() {
    let spec = small_budget().setting("[router]", "acquire_timeout", "\"3s\"");
    let rooms = Rooms::new(spec).await;
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(rooms.lease(&acme).await.unwrap());
    }
    let refusal = rooms.lease(&beta).await.unwrap_err();
    assert!(matches!(refusal, Error::Timeout { cause: TimeoutCause::Budget, .. }), "{refusal}");
    assert!(refusal.is_transient());
    // A connection that is given back is closed for the one who waits.
    let waits = rooms.lease(&beta);
    let give_back = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        held.remove(0).release(Residue::Nothing);
    };
    let (lease, ()) = tokio::join!(waits, give_back);
    assert_eq!(one(&lease.unwrap()).await, 1);
    drop(held);
    rooms.finish().await;
}

#[tokio::test]
async fn what_idles_is_closed() {
    let spec = Spec::default().setting("[router]", "connection_idle_timeout", "\"400ms\"").setting(
        "[router]",
        "pool_idle_timeout",
        "\"1200ms\"",
    );
    let rooms = Rooms::new(spec).await;
    let acme = rooms.tenant("acme").await;
    let leases = [rooms.lease(&acme).await.unwrap(), rooms.lease(&acme).await.unwrap()];
    assert_eq!(rooms.sessions().await, 2);
    for lease in leases {
        lease.release(Residue::Nothing);
    }
    rooms.sessions_become(0).await;
    until("the pool is closed", async || (rooms.router.pool_count() == (0, 0)).then_some(())).await;
    assert_eq!(one(&rooms.lease(&acme).await.unwrap()).await, 1);
    rooms.finish().await;
}

#[tokio::test]
async fn connections_and_pools_idle_by_clocks_of_their_own() {
    let spec = Spec::default().setting("[router]", "connection_idle_timeout", "\"300ms\"").setting(
        "[router]",
        "pool_idle_timeout",
        "\"1h\"",
    );
    let rooms = Rooms::new(spec).await;
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    rooms.call(&acme).await.unwrap();
    rooms.sessions_become(0).await;
    until("the router knows it", async || (rooms.router.pool_count().1 == 0).then_some(())).await;
    assert_eq!(rooms.router.pool_count(), (1, 0), "the pool stays without connections");

    // Who holds a connection has used it all the time: of two pools the older one is left.
    let held = rooms.lease(&acme).await.unwrap();
    rooms.call(&beta).await.unwrap();
    rooms.limits(|limits| limits.router.pool_idle_timeout = Duration::from_millis(100));
    until("the other pool is closed", async || rooms.router.pool(beta.id).is_none().then_some(())).await;
    assert_eq!(rooms.router.pool_count(), (1, 1));
    assert_eq!(one(&held).await, 1);
    held.release(Residue::Nothing);
    until("the pool is closed", async || (rooms.router.pool_count() == (0, 0)).then_some(())).await;
    rooms.finish().await;
}

#[tokio::test]
async fn the_least_recently_used_pool_makes_room() {
    let rooms = Rooms::new(Spec::default().setting("[router]", "pools_max", "2")).await;
    for code in ["t1", "t2", "t3"] {
        let tenant = rooms.tenant(code).await;
        rooms.lease(&tenant).await.unwrap().release(Residue::Nothing);
    }
    assert_eq!(rooms.router.pool_count().0, 2);
    rooms.sessions_become(2).await;
    rooms.finish().await;
}

#[tokio::test]
async fn a_pool_is_kept_by_its_use_and_by_its_leases() {
    let rooms = Rooms::new(Spec::default().setting("[router]", "pools_max", "2")).await;
    let tenants = rooms.tenants(4).await;
    let has_pool = |number: usize| rooms.router.pool(tenants[number].id).is_some();
    // Not the one that was made first, but the one that was not used since.
    for number in [0, 1, 0, 2] {
        rooms.call(&tenants[number]).await.unwrap();
    }
    assert_eq!([0, 1, 2].map(has_pool), [true, false, true]);
    // The least recently used is in use.
    let held = rooms.lease(&tenants[0]).await.unwrap();
    rooms.call(&tenants[2]).await.unwrap();
    rooms.call(&tenants[1]).await.unwrap();
    assert_eq!([0, 1, 2].map(has_pool), [true, true, false]);
    assert_eq!(one(&held).await, 1);
    // Fewer than there are: whoever comes next makes room for them all, and for no lease.
    rooms.limits(|limits| limits.router.pools_max = 1);
    rooms.call(&tenants[3]).await.unwrap();
    assert_eq!([0, 1, 2, 3].map(has_pool), [true, false, false, true]);
    held.release(Residue::Nothing);
    rooms.call(&tenants[2]).await.unwrap();
    assert_eq!([0, 1, 2, 3].map(has_pool), [false, false, true, false]);
    rooms.finish().await;
}

/// Behind the daemon's back, `to`'s name is given to `from`'s database, and `to`'s roles may enter and read whose it is.
async fn renamed(rooms: &Rooms, from: &Made, to: &Made) {
    let judge = rooms.fleet.judge("postgres").await;
    for sql in [
        format!("ALTER DATABASE {} RENAME TO {}", from.database, to.database),
        format!("GRANT CONNECT ON DATABASE {} TO {}", to.database, to.roles.owner),
    ] {
        judge.batch_execute(&sql).await.unwrap();
    }
    let inside = rooms.fleet.judge(&to.database).await;
    let roles = to.roles.all().iter().map(RoleName::quoted).collect::<Vec<_>>().join(", ");
    inside
        .batch_execute(&format!(
            "GRANT USAGE ON SCHEMA tenantd TO {roles}; GRANT SELECT ON tenantd.identity TO {roles}"
        ))
        .await
        .unwrap();
}

/// The refusal of the next caller who needs a new connection. One whose session was ended may be given out before that,
/// and leads nowhere.
async fn refused(rooms: &Rooms, tenant: &Made) -> Error {
    until("a new connection is refused", async || match rooms.lease(tenant).await {
        Err(error) => Some(error),
        Ok(lease) => {
            let entered = lease.batch_execute("SELECT 1").await;
            assert!(entered.is_err(), "a connection leads into a database that is not the tenant's");
            None
        }
    })
    .await
}

fn is_of(refusal: &Error, other: &Made) -> bool {
    matches!(refusal, Error::IdentityMismatch { found, .. } if found.contains(&other.id.to_string()))
}

#[tokio::test]
async fn a_database_that_was_exchanged_is_refused() {
    let rooms = Rooms::new(Spec::default()).await;
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    let judge = rooms.fleet.judge("postgres").await;
    judge.batch_execute(&format!("ALTER DATABASE {0} RENAME TO swapped_{0}", acme.database)).await.unwrap();
    renamed(&rooms, &beta, &acme).await;
    let refusal = rooms.lease(&acme).await.unwrap_err();
    assert!(is_of(&refusal, &beta), "{refusal}");
    assert!(!refusal.is_transient());
    rooms.sessions_become(0).await;
    judge.batch_execute(&format!("DROP DATABASE swapped_{}", acme.database)).await.unwrap();
    rooms.finish().await;
}

#[tokio::test]
async fn a_database_that_is_exchanged_under_a_pool_is_refused() {
    let rooms = Rooms::new(Spec::default()).await;
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    let judge = rooms.fleet.judge("postgres").await;
    // A pool that has connected before knows no better for that.
    assert_eq!(rooms.call(&acme).await.unwrap(), acme.database);
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
    judge.execute(end, &[&acme.database]).await.unwrap();
    rooms.sessions_become(0).await;
    judge.batch_execute(&format!("ALTER DATABASE {0} RENAME TO swapped_{0}", acme.database)).await.unwrap();
    renamed(&rooms, &beta, &acme).await;
    let refusal = refused(&rooms, &acme).await;
    assert!(is_of(&refusal, &beta), "{refusal}");
    rooms.sessions_become(0).await;
    // And what is its own again is let in again.
    judge.batch_execute(&format!("ALTER DATABASE {} RENAME TO {}", acme.database, beta.database)).await.unwrap();
    judge.batch_execute(&format!("ALTER DATABASE swapped_{0} RENAME TO {0}", acme.database)).await.unwrap();
    let reached = async || rooms.call(&acme).await.ok();
    assert_eq!(until("it is let in again", reached).await, acme.database);
    rooms.finish().await;
}

#[tokio::test]
async fn a_second_connection_is_asked_whose_database_it_is_as_well() {
    let rooms = Rooms::new(Spec::default()).await;
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    let held = rooms.lease(&acme).await.unwrap();
    // No database is renamed while somebody is in it: its row is exchanged instead.
    let inside = rooms.fleet.judge(&acme.database).await;
    inside.execute("UPDATE tenantd.identity SET tenant = $1", &[&beta.id.0]).await.unwrap();
    let refusal = rooms.lease(&acme).await.unwrap_err();
    assert!(is_of(&refusal, &beta), "{refusal}");
    rooms.sessions_become(1).await;
    inside.execute("UPDATE tenantd.identity SET tenant = $1", &[&acme.id.0]).await.unwrap();
    let second = until("its own is let in", async || rooms.lease(&acme).await.ok()).await;
    assert_eq!((one(&held).await, one(&second).await), (1, 1));
    for lease in [held, second] {
        lease.release(Residue::Nothing);
    }
    rooms.finish().await;
}

#[tokio::test]
async fn a_database_that_somebody_made_in_the_place_of_a_dropped_one_is_refused() {
    let rooms = Rooms::new(Spec::default()).await;
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    rooms.fleet.expect_log("the tenant cannot be reached");
    let judge = rooms.fleet.judge("postgres").await;
    assert_eq!(rooms.call(&acme).await.unwrap(), acme.database);
    let drop_it = format!("DROP DATABASE {} WITH (FORCE)", acme.database);
    judge.batch_execute(&drop_it).await.unwrap();
    let refusal = refused(&rooms, &acme).await;
    assert!(refusal.to_string().contains("does not exist"), "{refusal}");
    judge.batch_execute(&format!("CREATE DATABASE {} TEMPLATE template0", acme.database)).await.unwrap();
    rooms.router.reopen(acme.id);
    let refusal = refused(&rooms, &acme).await;
    let has_none = |found: &str| found.contains("no identity row");
    assert!(matches!(&refusal, Error::IdentityMismatch { found, .. } if has_none(found)), "{refusal}");
    judge.batch_execute(&drop_it).await.unwrap();
    renamed(&rooms, &beta, &acme).await;
    rooms.router.reopen(acme.id);
    let refusal = refused(&rooms, &acme).await;
    assert!(is_of(&refusal, &beta), "{refusal}");
    rooms.sessions_become(0).await;
    rooms.finish().await;
}

#[tokio::test]
async fn who_may_not_reach_a_tenant_cannot_tell_whether_it_exists() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let resolve = async |selector: Option<Selector>, scope: &Scope| {
        let request = Sources { explicit: selector, ..Sources::default() };
        rooms.router.resolve(request, &principal(scope.clone()), soon()).await
    };
    let (all, own) = (Scope::All, Scope::Tenants([acme.code.clone()].into()));
    let other = Scope::Tenants(["beta".parse().unwrap()].into());
    let host = Selector::host("ACME.example.com:443").unwrap();
    for selector in [Selector::Id(acme.id), Selector::code("acme").unwrap(), host] {
        assert_eq!(resolve(Some(selector.clone()), &all).await.unwrap().tenant, acme.id);
        assert_eq!(resolve(Some(selector.clone()), &own).await.unwrap().code, acme.code);
        assert!(matches!(resolve(Some(selector), &other).await, Err(Error::NotPermitted { .. })));
    }
    assert_eq!(resolve(None, &own).await.unwrap().tenant, acme.id);
    let nobody = [
        Selector::Id(tenantd::domain::tenant::TenantId(Uuid::now_v7())),
        Selector::code("nobody").unwrap(),
        Selector::host("nobody.example.com").unwrap(),
    ];
    for selector in nobody {
        assert!(matches!(resolve(Some(selector.clone()), &all).await, Err(Error::TenantUnknown { .. })));
        assert!(matches!(resolve(Some(selector), &own).await, Err(Error::NotPermitted { .. })));
    }
    rooms.finish().await;
}

async fn gate_set(rooms: &Rooms, tenant: &Made, gate: Gate, by: Uuid) {
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.gate_set_in_txn(&txn, tenant.id, gate, OperationId(by)).await.unwrap();
    txn.commit().await.unwrap();
}

/// A session of the tenant's own programs.
async fn direct(rooms: &Rooms, tenant: &Made) -> Connection {
    let role = tenant.roles.name(TenantRole::DirectA).unwrap();
    let login = rooms.router.tenant_login(tenant.id, role).await.unwrap();
    let database = rooms.config.naming.tenant_database(&tenant.code).unwrap();
    let request = ConnectRequest {
        lane: Lane::Administration,
        login: &login,
        database: &database,
        application_name: "direct",
        options: SessionOptions::default(),
        deadline: soon(),
    };
    rooms.server.connect(&request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_tenant_is_empty_until_it_is_reopened() {
    let rooms = Rooms::new(Spec::default().setting("[router]", "pause_wait_max", "\"500ms\"")).await;
    let acme = rooms.tenant("acme").await;
    let sleeper = rooms.lease(&acme).await.unwrap();
    rooms.lease(&acme).await.unwrap().release(Residue::Nothing);
    let sleeping = tokio::spawn(async move { sleeper.batch_execute("SELECT pg_sleep(60)").await });
    let direct = direct(&rooms, &acme).await;

    let operation = Uuid::now_v7();
    gate_set(&rooms, &acme, Gate::Paused { operation }, operation).await;
    rooms.router.route_forget(acme.id);
    rooms.router.drain(acme.id, Duration::from_millis(200)).await.unwrap();

    assert!(sleeping.await.unwrap().is_err(), "the statement was cancelled");
    assert!(direct.batch_execute("SELECT 1").await.is_err(), "the direct client was ended");
    assert_eq!(rooms.sessions().await, 0);
    let refusal = rooms.lease(&acme).await.unwrap_err();
    assert!(matches!(&refusal, Error::Paused { operation: Some(by), .. } if *by == operation), "{refusal}");
    assert!(refusal.retry_after().is_some());

    rooms.limits(|limits| limits.router.pause_wait_max = PATIENCE);
    let waits = rooms.router.acquire(acme.id, soon());
    let reopen = async {
        gate_set(&rooms, &acme, Gate::Open, operation).await;
        rooms.router.reopen(acme.id);
    };
    let (lease, ()) = tokio::join!(waits, reopen);
    assert_eq!(one(&lease.unwrap()).await, 1);
    rooms.finish().await;
}

/// The connect stands still where the server reads who may log in, so that the pause comes between the gate and that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_because_a_pause_has_locked_the_login_waits_for_its_end() {
    let spec = Spec { machine: Some(Machine::with_room_for(60)), ..Spec::default() }
        .setting("[router]", "connect_timeout", "\"60s\"")
        .setting("[router]", "pause_wait_max", "\"2m\"");
    let rooms = Rooms::new(spec).await;
    rooms.fleet.expect_log("the tenant cannot be reached; its callers are refused until it can");
    let acme = rooms.tenant("acme").await;
    let (holder, judge) = (rooms.fleet.judge("postgres").await, rooms.fleet.judge("postgres").await);
    let waits = "SELECT FROM pg_locks WHERE relation = 'pg_catalog.pg_authid'::regclass AND NOT granted LIMIT 1";
    assert!(judge.query_opt(waits, &[]).await.unwrap().is_none());
    let login = acme.roles.name(TenantRole::Router).unwrap().quoted();
    // All is known but a connection, so that only the tenant's connect needs a new session.
    rooms.call(&acme).await.unwrap();
    rooms.router.pool_evict(acme.id);
    rooms.sessions_become(0).await;
    let txn = rooms.catalog.begin().await.unwrap();
    let locked = format!("BEGIN; LOCK TABLE pg_catalog.pg_authid; ALTER ROLE {login} NOLOGIN");
    holder.batch_execute(&locked).await.unwrap();
    let (router, id) = (rooms.router.clone(), acme.id);
    let mut caller = tokio::spawn(async move { router.acquire(id, Instant::now() + PATIENCE).await });
    until("it connects", async || judge.query_opt(waits, &[]).await.unwrap()).await;

    let operation = Uuid::now_v7();
    rooms.catalog.gate_set_in_txn(&txn, acme.id, Gate::Paused { operation }, OperationId(operation)).await.unwrap();
    txn.commit().await.unwrap();
    until("the router has heard", async || rooms.router.out_of_reach(acme.id).await).await;
    holder.batch_execute("COMMIT").await.unwrap();
    until("the connect is refused", async || {
        rooms.fleet.has_logged("the tenant cannot be reached; its callers are refused until it can").then_some(())
    })
    .await;
    let early = tokio::time::timeout(Duration::from_millis(200), &mut caller).await;
    assert!(early.is_err(), "it waits at the gate");

    holder.batch_execute(&format!("ALTER ROLE {login} LOGIN")).await.unwrap();
    gate_set(&rooms, &acme, Gate::Open, operation).await;
    assert_eq!(one(&caller.await.unwrap().unwrap()).await, 1);
    rooms.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_what_runs() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let (judge, inside) = (rooms.fleet.judge("postgres").await, rooms.fleet.judge(&acme.database).await);
    inside.batch_execute("CREATE TABLE public.kept (n int); GRANT INSERT ON public.kept TO PUBLIC").await.unwrap();
    drop(inside);
    let superusers = "SELECT FROM pg_stat_activity WHERE datname = $1 AND application_name = 'judge'";
    until("the judge is outside, whom nobody may end", async || {
        judge.query_opt(superusers, &[&acme.database]).await.unwrap().is_none().then_some(())
    })
    .await;
    let lease = rooms.lease(&acme).await.unwrap();
    let running = tokio::spawn(async move {
        let written = lease.batch_execute("INSERT INTO public.kept SELECT 1 FROM pg_sleep(3)").await;
        lease.release(Residue::Nothing);
        written
    });
    let asleep = "SELECT FROM pg_stat_activity WHERE datname = $1 AND wait_event = 'PgSleep'";
    until("it runs", async || judge.query_opt(asleep, &[&acme.database]).await.unwrap()).await;

    let operation = Uuid::now_v7();
    gate_set(&rooms, &acme, Gate::Paused { operation }, operation).await;
    rooms.router.route_forget(acme.id);
    // It ends long before the time is up.
    let drain = rooms.router.drain(acme.id, Duration::from_mins(10));
    tokio::time::timeout(PATIENCE, drain).await.expect("nobody waits for the whole time").unwrap();
    running.await.unwrap().expect("the statement was let end");
    let inside = rooms.fleet.judge(&acme.database).await;
    assert_eq!(inside.query_one("SELECT n FROM public.kept", &[]).await.unwrap().get::<_, i32>(0), 1);
    assert_eq!(rooms.router.stats(acme.id).cancels, 0);
    rooms.finish().await;
}

#[tokio::test]
async fn a_new_epoch_gets_new_connections() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let backend =
        async |lease: &Lease| -> i32 { lease.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0) };
    let lease = rooms.lease(&acme).await.unwrap();
    let first = backend(&lease).await;
    lease.release(Residue::Nothing);
    let lease = rooms.lease(&acme).await.unwrap();
    assert_eq!(backend(&lease).await, first, "the newest connection is used again");
    lease.release(Residue::Nothing);

    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.tenant_epoch_bump_in_txn(&txn, acme.id).await.unwrap();
    txn.commit().await.unwrap();
    rooms.router.route_forget(acme.id);
    let lease = rooms.lease(&acme).await.unwrap();
    assert_ne!(backend(&lease).await, first);
    lease.release(Residue::Nothing);
    rooms.sessions_become(1).await;
    rooms.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_deadlines_leaves_nothing_running() {
    let rooms = Arc::new(Rooms::new(small_budget()).await);
    let tenants = [rooms.tenant("acme").await, rooms.tenant("beta").await];
    let watch = Watch::start(&rooms).await;
    let mut calls = JoinSet::new();
    for number in 0..2_000_u64 {
        let (rooms, tenant) = (Arc::clone(&rooms), tenants[usize::from(number % 2 == 0)].clone());
        calls.spawn(async move {
            let call = async {
                let lease = rooms.lease(&tenant).await?;
                lease.batch_execute("BEGIN; SELECT pg_sleep(30)").await.unwrap();
                lease.release(Residue::Nothing);
                Ok::<(), Error>(())
            };
            // Every moment of a call is cut off by some of them.
            let _cut_off = tokio::time::timeout(Duration::from_millis(number % 60), call).await;
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    nothing_is_left_open(&rooms.fleet).await;
    assert!(watch.end().await <= 6);
    for tenant in &tenants {
        let lease = rooms.lease(tenant).await.unwrap();
        assert_eq!(one(&lease).await, 1);
        lease.release(Residue::Nothing);
    }
    all_places_come_back(&rooms, &tenants, 6).await;
    Arc::into_inner(rooms).unwrap().finish().await;
}
