//! What a pool does with its connections while nothing is wrong: which is used, for how long, and by whom it is held.
//! The names E1 to E20 are those of the traps that were measured in the pool library.

use std::sync::Arc;
use std::time::Duration;

use tenantd::domain::principal::{Principal, Scope};
use tenantd::router::{Holder, Lease, Residue};
use tokio::time::Instant;

use super::soon;
use crate::harness::{Spec, until};
use crate::tenants::{Made, Rooms, sessions};

async fn backend(lease: &Lease) -> i32 {
    lease.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
}

async fn used(rooms: &Rooms, tenant: &Made) -> i32 {
    let lease = rooms.lease(tenant).await.unwrap();
    let backend = backend(&lease).await;
    lease.release(Residue::Nothing);
    backend
}

#[tokio::test]
async fn e1_the_newest_is_used_and_the_others_age() {
    const IDLE_MAX: Duration = Duration::from_millis(500);
    let rooms = Rooms::new(Spec::default().setting("[router]", "connection_idle_timeout", "\"500ms\"")).await;
    let acme = rooms.tenant("acme").await;
    let judge = rooms.fleet.judge("postgres").await;
    // Begun again when a busy machine has left the newest alone for so long.
    until("one stays in use all the time, and the other goes", async || {
        let leases = [rooms.lease(&acme).await.unwrap(), rooms.lease(&acme).await.unwrap()];
        let newest = backend(&leases[1]).await;
        let mut released = Instant::now();
        for lease in leases {
            lease.release(Residue::Nothing);
        }
        loop {
            let left = sessions(&judge, rooms.config.naming.prefix()).await;
            let lease = rooms.lease(&acme).await.unwrap();
            let (found, alone_for) = (backend(&lease).await, released.elapsed());
            released = Instant::now();
            lease.release(Residue::Nothing);
            if found != newest {
                assert!(alone_for >= IDLE_MAX, "another was used, or the newest was closed after {alone_for:?}");
                return None;
            }
            if left == 1 {
                return Some(());
            }
        }
    })
    .await;
    rooms.finish().await;
}

#[tokio::test]
async fn e2_idling_begins_when_a_connection_comes_back() {
    let rooms = Rooms::new(Spec::default().setting("[router]", "connection_idle_timeout", "\"1s\"")).await;
    let acme = rooms.tenant("acme").await;
    let lease = rooms.lease(&acme).await.unwrap();
    lease.batch_execute("SELECT pg_sleep(1.5)").await.unwrap();
    let first = backend(&lease).await;
    let released = Instant::now();
    lease.release(Residue::Nothing);
    tokio::time::sleep(Duration::from_millis(400)).await;
    let second = used(&rooms, &acme).await;
    assert!(second == first || released.elapsed() >= Duration::from_secs(1), "it was closed when it came back");
    rooms.finish().await;
}

#[tokio::test]
async fn e4_nobody_waits_behind_a_statement_that_was_abandoned() {
    let rooms = Rooms::new(Spec::default()).await;
    rooms.limits(|limits| {
        for tier in limits.tiers.values_mut() {
            tier.pool_connections_max = 1;
        }
    });
    let acme = rooms.tenant("acme").await;
    let lease = rooms.lease(&acme).await.unwrap();
    let first = backend(&lease).await;
    let abandoned = tokio::time::timeout(Duration::from_millis(50), async move {
        lease.batch_execute("BEGIN; SELECT pg_sleep(60)").await.unwrap();
        lease.release(Residue::Nothing);
    });
    assert!(abandoned.await.is_err());
    let lease = rooms.lease(&acme).await.unwrap();
    assert_ne!(backend(&lease).await, first);
    lease.release(Residue::Nothing);
    rooms.sessions_become(1).await;
    assert_eq!(rooms.router.stats(acme.id).cancels, 1);
    rooms.finish().await;
}

#[tokio::test]
async fn what_was_begun_on_a_connection_ends_with_its_lease() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let lease = rooms.lease(&acme).await.unwrap();
    lease.batch_execute("CREATE TABLE kept (by text)").await.unwrap();
    lease.release(Residue::Nothing);
    let judge = rooms.fleet.judge(&acme.database).await;
    // Whoever is in the middle of a transaction has nothing to say by which a connection could come back.
    for how in ["dropped", "ended"] {
        let first = rooms.lease(&acme).await.unwrap();
        first.batch_execute("BEGIN; INSERT INTO kept VALUES ('first')").await.unwrap();
        match how {
            "dropped" => drop(first),
            _ => first.release(Residue::Anything),
        }
        let second = rooms.lease(&acme).await.unwrap();
        second.execute("INSERT INTO kept VALUES ($1)", &[&how]).await.unwrap();
        second.release(Residue::Nothing);
    }
    let kept = judge.query("SELECT by FROM kept ORDER BY by", &[]).await.unwrap();
    assert_eq!(kept.iter().map(|row| row.get(0)).collect::<Vec<String>>(), ["dropped", "ended"]);
    rooms.sessions_become(1).await;
    rooms.finish().await;
}

#[tokio::test]
async fn e7_a_session_keeps_a_bounded_number_of_statements() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let mut lease = rooms.lease(&acme).await.unwrap();
    for number in 0..150 {
        lease.prepare(&format!("SELECT {number}")).await.unwrap();
    }
    until("the oldest are closed", async || {
        let kept: i64 = lease.query_one("SELECT count(*) FROM pg_prepared_statements", &[]).await.unwrap().get(0);
        (kept <= 101).then_some(())
    })
    .await;
    lease.release(Residue::Nothing);
    rooms.finish().await;
}

#[tokio::test]
async fn a_session_keeps_no_long_statements() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let mut lease = rooms.lease(&acme).await.unwrap();
    for number in 0..20 {
        lease.prepare(&format!("SELECT {number}, '{}'", "x".repeat(64 << 10))).await.unwrap();
    }
    until("they are closed", async || {
        let kept = "SELECT count(*) FROM pg_prepared_statements WHERE length(statement) > 10000";
        let kept: i64 = lease.query_one(kept, &[]).await.unwrap().get(0);
        (kept == 0).then_some(())
    })
    .await;
    lease.release(Residue::Nothing);
    rooms.finish().await;
}

#[tokio::test]
async fn e11_a_pool_that_is_closed_lets_its_leases_end() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let held = rooms.lease(&acme).await.unwrap();
    rooms.lease(&acme).await.unwrap().release(Residue::Nothing);
    assert!(rooms.router.pool_evict(acme.id));
    rooms.sessions_become(1).await;
    let first = backend(&held).await;
    let second = used(&rooms, &acme).await;
    assert_ne!(first, second, "whoever comes later gets a pool of its own");
    held.release(Residue::Nothing);
    rooms.sessions_become(1).await;
    assert_eq!(used(&rooms, &acme).await, second);
    rooms.finish().await;
}

#[tokio::test]
async fn a_connection_is_used_for_its_number_of_times_and_its_time() {
    let spec = Spec::default().setting("[router]", "connection_uses_max", "3");
    let rooms = Rooms::new(spec).await;
    let acme = rooms.tenant("acme").await;
    let mut backends = Vec::new();
    for _ in 0..6 {
        backends.push(used(&rooms, &acme).await);
    }
    assert_eq!(backends[0], backends[2]);
    assert_ne!(backends[2], backends[3]);
    assert_eq!(backends[3], backends[5]);
    // Lifetimes count for connections that are made from now on, even if they only idle.
    rooms.router.pool_evict(acme.id);
    rooms.limits(|limits| {
        limits.router.connection_uses_max = 1_000;
        limits.router.connection_lifetime_max = Duration::from_secs(1);
        // The reaper goes round more often.
        limits.router.connection_idle_timeout = Duration::from_mins(1);
    });
    let last = used(&rooms, &acme).await;
    until("it is too old", async || (used(&rooms, &acme).await != last).then_some(())).await;
    rooms.finish().await;
}

#[tokio::test]
async fn who_holds_a_lease_for_long_is_named() {
    let spec = Spec::default().setting("[router]", "lease_warn_after", "\"300ms\"").setting(
        "[router]",
        "connection_idle_timeout",
        "\"1s\"",
    );
    let rooms = Rooms::new(spec).await;
    let acme = rooms.tenant("acme").await;
    let principal = Arc::new(Principal::new("api-key:reports", [].into(), Scope::All));
    let holder = Holder { principal: Some(principal), method: "Execute" };
    let lease = rooms.router.acquire_as(&holder, acme.id, soon()).await.unwrap();
    rooms.fleet.expect_log("holder=api-key:reports in Execute");
    until("it is told", async || rooms.fleet.has_logged("a connection has been held for long").then_some(())).await;
    lease.release(Residue::Nothing);
    rooms.finish().await;
}

#[tokio::test]
async fn a_caller_that_goes_while_its_connection_is_cleaned_leaves_none() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    rooms.lease(&acme).await.unwrap().release(Residue::Perhaps);
    let mut hasty = Box::pin(rooms.lease(&acme));
    assert!(futures_util::poll!(&mut hasty).is_pending(), "it is cleaned first");
    drop(hasty);
    assert_eq!(rooms.router.pool_count(), (1, 0), "nobody would get it, and it would keep its place");
    rooms.sessions_become(0).await;
    rooms.finish().await;
}
