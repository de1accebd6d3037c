//! Three daemons on one fleet: one stands still, one is killed and comes again under its name, and what one does to a
//! pool or a gate is everybody's.

use tenantd::proto::v1::EvictPoolRequest;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Load, TENANTS, WHOLE, Watch, sessions, sessions_exceed, shares, shares_become, spawn, spec};
use crate::harness::{Fleet, reason, until};

const EACH: i32 = WHOLE / 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_daemons_keep_the_budget_when_one_stands_still_and_one_is_killed_and_comes_again() {
    let fleet = Fleet::new(spec()).await;
    for part in [
        "shared database",
        "auth database",
        "no operation can be claimed",
        "stands still",
        "the server takes no connections",
        "the tenant cannot be reached",
    ] {
        fleet.allow_log(part);
    }
    let watch = Watch::start(&fleet).await;
    let a = spawn(&fleet, "a");
    for tenant in TENANTS {
        a.client.tenant(tenant).await;
    }
    let (b, c) = (spawn(&fleet, "b"), spawn(&fleet, "c"));
    shares_become(&fleet, &[("a", EACH), ("b", EACH), ("c", EACH)]).await;
    let loads = [Load::start(&a.client), Load::start(&b.client), Load::start(&c.client)];
    for name in ["a", "b", "c"] {
        sessions_exceed(&fleet, name, 2).await;
    }
    b.pause();
    c.kill();
    // What the frozen one has is left alone, and it has not yet made room.
    until("a has what c had, by its own half", async || {
        let shares = shares(&fleet).await;
        (shares == [("a".to_owned(), WHOLE / 2), ("b".to_owned(), EACH)]).then_some(())
    })
    .await;
    assert_eq!(sessions(&fleet, "c").await, 0);
    let c = spawn(&fleet, "c");
    b.resume();
    shares_become(&fleet, &[("a", EACH), ("b", EACH), ("c", EACH)]).await;
    let load_c = Load::start(&c.client);
    sessions_exceed(&fleet, "c", 2).await;
    for load in loads {
        load.end().await;
    }
    assert_eq!(load_c.end().await, 0);

    let evict = EvictPoolRequest {
        tenant: TENANTS[0].to_owned(),
        reason: "a test".to_owned(),
        request_id: Uuid::new_v4().to_string(),
        ..EvictPoolRequest::default()
    };
    a.client.router().evict_pool(evict).await.unwrap();
    let operation = c.client.tenant_suspend(Uuid::new_v4(), TENANTS[0], "unpaid").await.unwrap();
    c.client.succeeded(&operation).await;
    for daemon in [&a, &b, &c] {
        // Whatever it knows by then, nobody is served.
        let refused = async || {
            let refused = daemon.client.execute(TENANTS[0], "SELECT 1").await.unwrap_err();
            (reason(&refused) == "TENANT_STATE").then_some(())
        };
        until("it knows why", refused).await;
    }
    let operation = b.client.tenant_resume(Uuid::new_v4(), TENANTS[0]).await.unwrap();
    b.client.succeeded(&operation).await;
    for daemon in [&a, &b, &c] {
        until("it is open everywhere", async || daemon.client.execute(TENANTS[0], "SELECT 1").await.ok()).await;
    }
    watch.end().await;
    for daemon in [a, b, c] {
        daemon.terminate().await;
    }
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_that_come_at_the_same_moment_go_through_the_door_one_after_the_other() {
    let fleet = Fleet::new(spec()).await;
    // The load takes every place, and on a slow machine what the daemon asks for itself comes late.
    for part in ["shared database", "auth database"] {
        fleet.allow_log(part);
    }
    let a = spawn(&fleet, "a");
    shares_become(&fleet, &[("a", WHOLE)]).await;
    for tenant in TENANTS {
        a.client.tenant(tenant).await;
    }
    // Nobody can make room before one of them has ended, and on a slow machine the first has before the last begins.
    let mut held = JoinSet::new();
    for number in 0..60 {
        let client = a.client.clone();
        held.spawn(async move {
            loop {
                drop(client.execute(TENANTS[number % TENANTS.len()], "SELECT pg_sleep(4)").await);
            }
        });
    }
    sessions_exceed(&fleet, "a", 27).await;
    let watch = Watch::start(&fleet).await;
    let coming = ["b", "c", "d"].map(|name| fleet.spawn_apart(name).0);
    shares_become(&fleet, &[("a", WHOLE / 4), ("b", WHOLE / 4), ("c", WHOLE / 4), ("d", WHOLE / 4)]).await;
    held.shutdown().await;
    watch.end().await;
    for daemon in coming {
        daemon.terminate().await;
    }
    a.terminate().await;
    fleet.finish().await;
}
