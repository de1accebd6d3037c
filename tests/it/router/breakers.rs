//! What cannot be reached is refused at once with its cause, and is reached again as soon as it can be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tenantd::domain::tenant::TenantRole;
use tenantd::postgres::Kind;
use tenantd::router::{Cause, Error, Residue};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::pressure::silent_server;
use super::{Watch, direct, small_budget};
use crate::harness::{Machine, Proxy, Spec, machine, until};
use crate::tenants::{Made, Rooms};

/// Whether the tenant was reached: a connection may be there whose other end has gone.
async fn reached(rooms: &Rooms, tenant: &Made) -> Result<bool, Error> {
    let lease = rooms.lease(tenant).await?;
    let is_there = lease.batch_execute("SELECT 1").await.is_ok();
    lease.release(if is_there { Residue::Nothing } else { Residue::Anything });
    Ok(is_there)
}

/// The refusal of a call that was not tried, which comes while a cause lasts.
async fn blocked(rooms: &Rooms, tenant: &Made, kind: Kind) {
    until("calls are refused at once", async || match reached(rooms, tenant).await {
        Ok(false) => None,
        Err(error @ Error::Blocked { .. }) => {
            let Error::Blocked { source, .. } = &error else { return None };
            assert_eq!(source.kind(), kind, "{error}");
            names_nobody_else(rooms, tenant, &error);
            assert!(error.is_transient() && error.retry_after().is_some());
            Some(())
        }
        Err(error @ Error::Connect { .. }) => {
            let Error::Connect { source, .. } = &error else { return None };
            assert_eq!(source.kind(), kind);
            names_nobody_else(rooms, tenant, &error);
            None
        }
        other => panic!("{other:?}"),
    })
    .await;
}

/// Closing the pool heals nothing: the very next caller is refused untried while the block lasts.
async fn outlasts_the_pool(rooms: &Rooms, tenant: &Made) {
    until("somebody comes to a new pool within the block", async || {
        let Err(Error::Blocked { retry_after, .. }) = rooms.lease(tenant).await else { return None };
        let ends = Instant::now() + retry_after;
        assert!(rooms.router.pool_evict(tenant.id));
        let next = rooms.lease(tenant).await;
        if Instant::now() >= ends {
            return None;
        }
        assert!(matches!(next, Err(Error::Blocked { .. })), "{next:?}");
        Some(())
    })
    .await;
}

/// What a caller hears names no other tenant's database or role, whoever met the failure first.
pub fn names_nobody_else(rooms: &Rooms, tenant: &Made, error: &Error) {
    let text = error.to_string().replace(&tenant.database, "");
    assert!(!text.contains(rooms.config.naming.prefix()), "{error}");
}

async fn works_again(rooms: &Rooms, tenant: &Made) {
    until("it works again", async || matches!(reached(rooms, tenant).await, Ok(true)).then_some(())).await;
}

/// Callers of a tenant who are served all the time, whatever is wrong with another one.
struct Beside {
    callers: JoinSet<()>,
    over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
}

impl Beside {
    fn start(rooms: &Arc<Rooms>, tenant: &Made) -> Self {
        let (mut callers, over, served) = (JoinSet::new(), Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        for _ in 0..4 {
            let (rooms, tenant) = (Arc::clone(rooms), tenant.clone());
            let (over, served) = (Arc::clone(&over), Arc::clone(&served));
            callers.spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    assert_eq!(rooms.call(&tenant).await.unwrap(), tenant.database);
                    served.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        }
        Self { callers, over, served }
    }

    async fn goes_on(&self) {
        let enough = self.served.load(Ordering::SeqCst) + 20;
        until("it is served", async || (self.served.load(Ordering::SeqCst) >= enough).then_some(())).await;
    }

    async fn end(mut self) {
        self.over.store(true, Ordering::SeqCst);
        while let Some(done) = self.callers.join_next().await {
            done.unwrap();
        }
    }
}

/// Awaits that the tenant has no session of the router's.
async fn has_no_session(rooms: &Rooms, tenant: &Made) {
    let judge = rooms.fleet.judge("postgres").await;
    let sql = "SELECT FROM pg_stat_activity WHERE datname = $1 AND starts_with(application_name, $2 || '_')";
    until("its sessions have ended", async || {
        let left = judge.query(sql, &[&tenant.database, &rooms.config.naming.prefix()]).await.unwrap();
        left.is_empty().then_some(())
    })
    .await;
}

/// The tenant is refused and has no session, and all the time the other one is served.
async fn refused_alone(rooms: &Rooms, tenant: &Made, kind: Kind, beside: &Beside) {
    has_no_session(rooms, tenant).await;
    let watch = Watch::start(rooms).await;
    blocked(rooms, tenant, kind).await;
    beside.goes_on().await;
    blocked(rooms, tenant, kind).await;
    let seen = watch.seen().await;
    assert!(seen.most > 0 && seen.most_of(tenant) == 0, "{seen:?}");
}

/// Ends the callers of the other tenant; of the refused one there never was more than one session.
async fn judged(rooms: Arc<Rooms>, tenant: &Made, beside: Beside, watch: Watch) {
    beside.end().await;
    let seen = watch.seen().await;
    assert!(seen.most <= 6 && seen.in_transaction == 0, "{seen:?}");
    assert_eq!(seen.most_of(tenant), 1, "{seen:?}");
    Arc::into_inner(rooms).unwrap().finish().await;
}

#[tokio::test]
async fn a_missing_database_blocks_its_tenant_and_nobody_else() {
    let rooms = Rooms::new(Spec::default()).await;
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    rooms.fleet.expect_log("the tenant cannot be reached; its callers are refused until it can");
    let judge = rooms.fleet.judge("postgres").await;
    judge.batch_execute(&format!("ALTER DATABASE {0} RENAME TO away_{0}", acme.database)).await.unwrap();
    let refusal = rooms.call(&acme).await.unwrap_err();
    assert!(refusal.to_string().contains("3D000"), "{refusal}");
    blocked(&rooms, &acme, Kind::DatabaseMissing).await;
    assert_eq!(rooms.call(&beta).await.unwrap(), beta.database);
    outlasts_the_pool(&rooms, &acme).await;
    judge.batch_execute(&format!("ALTER DATABASE away_{0} RENAME TO {0}", acme.database)).await.unwrap();
    works_again(&rooms, &acme).await;
    let errors = rooms.router.stats(acme.id).errors;
    assert!(errors.iter().any(|(cause, count)| *cause == Cause::Blocked && *count >= 2), "{errors:?}");
    assert!(errors.iter().any(|(cause, _)| *cause == Cause::Tenant), "{errors:?}");
    rooms.finish().await;
}

/// The refusal has the server's words and its SQLSTATE.
fn says(refusal: &Error, words: &str, sqlstate: &str) {
    let text = refusal.to_string();
    assert!(text.contains(words) && text.contains(sqlstate), "{text}");
}

#[tokio::test]
async fn a_wrong_password_blocks_its_tenant_alone_until_the_gate_opens() {
    let rooms = Arc::new(Rooms::new(small_budget()).await);
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    rooms.fleet.expect_log("the tenant cannot be reached");
    let (watch, beside) = (Watch::start(&rooms).await, Beside::start(&rooms, &beta));
    let role = acme.roles.name(TenantRole::Router).unwrap().quoted();
    let judge = rooms.fleet.judge("postgres").await;
    let sql = "SELECT rolpassword FROM pg_authid WHERE quote_ident(rolname) = $1 OR '\"' || rolname || '\"' = $1";
    let verifier: String = judge.query_one(sql, &[&role]).await.unwrap().get(0);
    rooms.call(&acme).await.unwrap();
    judge.batch_execute(&format!("ALTER ROLE {role} PASSWORD 'another'")).await.unwrap();
    // A session that is there needs no password.
    rooms.call(&acme).await.unwrap();
    rooms.router.pool_evict(acme.id);
    let refusal = rooms.call(&acme).await.unwrap_err();
    says(&refusal, "password authentication failed", "28P01");
    refused_alone(&rooms, &acme, Kind::Authentication, &beside).await;
    judge.batch_execute(&format!("ALTER ROLE {role} PASSWORD '{verifier}'")).await.unwrap();
    rooms.router.reopen(acme.id);
    rooms.call(&acme).await.unwrap();
    judged(rooms, &acme, beside, watch).await;
}

#[tokio::test]
async fn the_tenants_own_limit_is_not_the_servers() {
    let rooms = Arc::new(Rooms::new(small_budget()).await);
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    rooms.fleet.expect_log("the tenant cannot be reached");
    let (watch, beside) = (Watch::start(&rooms).await, Beside::start(&rooms, &beta));
    let judge = rooms.fleet.judge("postgres").await;
    judge.batch_execute(&format!("ALTER DATABASE {} CONNECTION LIMIT 1", acme.database)).await.unwrap();
    // One of its own fits, and whoever needs a second one waits for it instead of being refused.
    let lease = rooms.lease(&acme).await.unwrap();
    let mut waits = Box::pin(rooms.call(&acme));
    assert!(futures_util::poll!(&mut waits).is_pending());
    let give_back = async {
        until("a second connect was refused", async || {
            let stats = rooms.fleet.has_logged("the tenant cannot be reached");
            stats.then_some(())
        })
        .await;
        lease.release(Residue::Nothing);
    };
    assert_eq!(tokio::join!(waits, give_back).0.unwrap(), acme.database);
    // With the place taken by its own client there is nothing to wait for.
    rooms.router.pool_evict(acme.id);
    has_no_session(&rooms, &acme).await;
    rooms.router.reopen(acme.id);
    let own = direct(&rooms, &acme).await;
    let refusal = rooms.call(&acme).await.unwrap_err();
    says(&refusal, "too many connections for database", "53300");
    // The server is not full.
    refused_alone(&rooms, &acme, Kind::LimitReached, &beside).await;
    drop(own);
    works_again(&rooms, &acme).await;
    judged(rooms, &acme, beside, watch).await;
}

#[tokio::test]
async fn the_limit_of_a_tenants_role_is_not_the_servers() {
    let rooms = Arc::new(Rooms::new(small_budget()).await);
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    rooms.fleet.expect_log("the tenant cannot be reached");
    let (watch, beside) = (Watch::start(&rooms).await, Beside::start(&rooms, &beta));
    let role = acme.roles.name(TenantRole::Router).unwrap();
    let judge = rooms.fleet.judge("postgres").await;
    judge.batch_execute(&format!("ALTER ROLE {} CONNECTION LIMIT 1", role.quoted())).await.unwrap();
    // Somebody else has the one place.
    let login = rooms.router.tenant_login(acme.id, role).await.unwrap();
    let other = rooms.fleet.machine.connect(&login, &acme.database).await.unwrap();
    let refusal = rooms.call(&acme).await.unwrap_err();
    says(&refusal, "too many connections for role", "53300");
    assert!(matches!(&refusal, Error::Connect { source, .. } if source.kind() == Kind::LimitReached), "{refusal}");
    // The server is not full.
    refused_alone(&rooms, &acme, Kind::LimitReached, &beside).await;
    drop(other);
    works_again(&rooms, &acme).await;
    judged(rooms, &acme, beside, watch).await;
}

#[tokio::test]
async fn a_full_server_is_blocked_as_a_whole() {
    let spec = Spec { machine: Some(Machine::with_room_for(40)), ..Spec::default() };
    let rooms = Rooms::new(spec).await;
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    for tenant in [&acme, &beta] {
        rooms.call(tenant).await.unwrap();
        rooms.router.pool_evict(tenant.id);
    }
    rooms.sessions_become(0).await;
    rooms.fleet.expect_log("the server takes no connections");
    rooms.fleet.allow_log("the shared database cannot be followed");
    rooms.fleet.allow_log("does not answer");
    let crowd = rooms.fleet.machine.crowd().await;
    let refusal = until("the server is full", async || rooms.call(&acme).await.err()).await;
    assert!(refusal.to_string().contains("53300"), "{refusal}");
    blocked(&rooms, &beta, Kind::ServerFull).await;
    drop(crowd);
    works_again(&rooms, &acme).await;
    works_again(&rooms, &beta).await;
    rooms.finish().await;
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_blocked_until_it_can_be() {
    let upstream: SocketAddr = format!("{}:{}", machine().host, machine().port).parse().unwrap();
    let proxy = Proxy::start(upstream).await;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let spec = Spec::default().setting("[[servers]]", "port", &proxy.address.port().to_string()).setting(
        "[router]",
        "route_age_max",
        "\"10m\"",
    );
    let rooms = Rooms::new(spec).await;
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    for tenant in [&acme, &beta] {
        rooms.call(tenant).await.unwrap();
    }
    rooms.fleet.expect_log("the server takes no connections");
    rooms.fleet.allow_log("the shared database cannot be followed");
    proxy.redirect(nobody);
    // Sessions are cut off, and new ones are; after a few it is clear that it is the server.
    blocked(&rooms, &acme, Kind::Unreachable).await;
    blocked(&rooms, &beta, Kind::Unreachable).await;
    outlasts_the_pool(&rooms, &beta).await;
    proxy.redirect(upstream);
    works_again(&rooms, &beta).await;
    works_again(&rooms, &acme).await;
    rooms.finish().await;
}

/// Many come at once, again and again until the block has ended: one of them tries, and all others are refused meanwhile.
async fn one_tries(rooms: &Rooms, tenants: &[Made], logins: &AtomicUsize) {
    until("somebody tries", async || {
        let callers = (0..40).map(|number| rooms.lease(&tenants[number % tenants.len()]));
        let mut callers: FuturesUnordered<_> = callers.collect();
        while callers.len() > 1 {
            let refusal = callers.next().await.unwrap();
            assert!(matches!(refusal, Err(Error::Blocked { .. })), "{refusal:?}");
        }
        tokio::select! {
            refusal = callers.next() => {
                assert!(matches!(refusal, Some(Err(Error::Blocked { .. }))), "{refusal:?}");
                None
            }
            () = until("its login is seen", async || (logins.load(Ordering::SeqCst) > 0).then_some(())) => Some(()),
        }
    })
    .await;
    assert_eq!(logins.load(Ordering::SeqCst), 1, "several have tried");
}

/// Behind a proxy; a connect that is not answered goes on for as long as the test.
async fn behind_a_proxy() -> (Rooms, Proxy, SocketAddr) {
    let upstream: SocketAddr = format!("{}:{}", machine().host, machine().port).parse().unwrap();
    let proxy = Proxy::start(upstream).await;
    let spec = Spec::default()
        .setting("[[servers]]", "port", &proxy.address.port().to_string())
        .setting("[router]", "connect_timeout", "\"100s\"")
        .setting("[router]", "acquire_timeout", "\"60s\"")
        .setting("[router]", "route_age_max", "\"10m\"");
    let rooms = Rooms::new(spec).await;
    rooms.fleet.allow_log("the shared database cannot be followed");
    (rooms, proxy, upstream)
}

#[tokio::test]
async fn one_caller_tries_first_when_a_tenants_block_ends() {
    let (rooms, proxy, upstream) = behind_a_proxy().await;
    rooms.fleet.expect_log("the tenant cannot be reached");
    let acme = rooms.tenant("acme").await;
    let judge = rooms.fleet.judge("postgres").await;
    judge.batch_execute(&format!("ALTER DATABASE {0} RENAME TO away_{0}", acme.database)).await.unwrap();
    blocked(&rooms, &acme, Kind::DatabaseMissing).await;
    let logins = Arc::new(AtomicUsize::new(0));
    proxy.redirect(silent_server(&logins).await);
    one_tries(&rooms, std::slice::from_ref(&acme), &logins).await;
    judge.batch_execute(&format!("ALTER DATABASE away_{0} RENAME TO {0}", acme.database)).await.unwrap();
    proxy.redirect(upstream);
    works_again(&rooms, &acme).await;
    rooms.finish().await;
}

#[tokio::test]
async fn one_caller_of_all_tenants_tries_first_when_a_servers_block_ends() {
    let (rooms, proxy, upstream) = behind_a_proxy().await;
    rooms.fleet.expect_log("the server takes no connections");
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let tenants = rooms.tenants(3).await;
    for tenant in &tenants {
        rooms.call(tenant).await.unwrap();
    }
    proxy.redirect(nobody);
    for tenant in &tenants {
        blocked(&rooms, tenant, Kind::Unreachable).await;
    }
    let logins = Arc::new(AtomicUsize::new(0));
    proxy.redirect(silent_server(&logins).await);
    one_tries(&rooms, &tenants, &logins).await;
    proxy.redirect(upstream);
    for tenant in &tenants {
        works_again(&rooms, tenant).await;
    }
    rooms.finish().await;
}

#[tokio::test]
async fn a_statement_that_fails_blocks_nothing() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    for sql in ["SELECT 1/0", "SELECT * FROM nowhere", "SET statement_timeout = 1; SELECT pg_sleep(5)"] {
        let lease = rooms.lease(&acme).await.unwrap();
        assert!(lease.batch_execute(sql).await.is_err());
        lease.release(Residue::Session);
    }
    tokio::time::timeout(Duration::from_mins(1), rooms.call(&acme)).await.unwrap().unwrap();
    assert!(rooms.router.stats(acme.id).errors.is_empty());
    rooms.finish().await;
}
