//! Limits that change while the router runs: they count for whoever waits or comes next, and nothing else is disturbed.

use std::time::Duration;

use tenantd::domain::operation::OperationId;
use tenantd::domain::route::Gate;
use tenantd::router::{Error, Holder, Lease, Residue};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::refusal_at_once;
use crate::harness::{PATIENCE, Spec, until};
use crate::query::convoy::located;
use crate::tenants::Rooms;

async fn backend(lease: &Lease) -> i32 {
    lease.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
}

fn pool_size(rooms: &Rooms, size: u32) {
    rooms.limits(|limits| limits.tiers.values_mut().for_each(|tier| tier.pool_connections_max = size));
}

#[tokio::test]
async fn a_pool_follows_its_tiers_size() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    pool_size(&rooms, 1);
    let first = rooms.lease(&acme).await.unwrap();
    let kept = backend(&first).await;
    let refusal = refusal_at_once(&rooms, &acme).await;
    assert!(matches!(refusal, Error::Timeout { .. }), "{refusal}");

    pool_size(&rooms, 12);
    let more: Vec<Lease> = futures_util::future::join_all((0..11).map(|_| rooms.lease(&acme)))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(rooms.sessions().await, 12);

    pool_size(&rooms, 1);
    let refusal = refusal_at_once(&rooms, &acme).await;
    assert!(matches!(refusal, Error::Timeout { .. }), "{refusal}");
    for lease in more {
        lease.release(Residue::Nothing);
    }
    rooms.sessions_become(1).await;
    first.release(Residue::Nothing);
    let lease = rooms.lease(&acme).await.unwrap();
    assert_eq!(backend(&lease).await, kept, "a connection within the new size is left alone");
    lease.release(Residue::Nothing);
    rooms.finish().await;
}

#[tokio::test]
async fn a_budget_that_shrinks_is_kept_as_connections_come_back() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let leases = futures_util::future::join_all((0..10).map(|_| rooms.lease(&acme))).await;
    // Three places for tenants.
    rooms.server.budget().resize(23, 20);
    for lease in leases {
        lease.unwrap().release(Residue::Nothing);
    }
    rooms.sessions_become(3).await;
    let beta = rooms.tenant("beta").await;
    assert_eq!(rooms.call(&beta).await.unwrap(), beta.database);
    rooms.server.budget().resize(40, 20);
    assert_eq!(rooms.call(&acme).await.unwrap(), acme.database);
    rooms.finish().await;
}

#[tokio::test]
async fn a_shorter_time_out_counts_for_the_next_caller() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    pool_size(&rooms, 1);
    let held = rooms.lease(&acme).await.unwrap();
    rooms.limits(|limits| limits.router.acquire_timeout = Duration::from_millis(50));
    let refusal = rooms.lease(&acme).await.unwrap_err();
    assert!(matches!(refusal, Error::Timeout { .. }), "{refusal}");
    held.release(Residue::Nothing);
    until("it is free again", async || rooms.call(&acme).await.ok()).await;
    rooms.finish().await;
}

#[tokio::test]
async fn who_waits_hears_of_a_larger_pool() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    pool_size(&rooms, 1);
    rooms.limits(|limits| limits.router.acquire_timeout = Duration::from_mins(2));
    let held = rooms.lease(&acme).await.unwrap();
    let mut waiting = Box::pin(rooms.lease(&acme));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    pool_size(&rooms, 2);
    waiting.await.unwrap().release(Residue::Nothing);
    held.release(Residue::Nothing);
    rooms.finish().await;
}

#[tokio::test]
async fn a_queue_is_as_long_as_the_tier_says_now() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    pool_size(&rooms, 1);
    let queue_max = |max| rooms.limits(|limits| limits.tiers.values_mut().for_each(|tier| tier.queue_max = max));
    rooms.limits(|limits| limits.router.acquire_timeout = Duration::from_mins(10));
    let held = rooms.lease(&acme).await.unwrap();
    let mut waiting = JoinSet::new();
    for count in 1..=3 {
        // One more has a place, and the next one has none.
        queue_max(count);
        let (router, tenant) = (rooms.router.clone(), acme.id);
        waiting.spawn(async move { router.acquire(tenant, Instant::now() + Duration::from_mins(10)).await });
        until("it waits", async || (rooms.router.pool(acme.id)?.waiting == count as usize).then_some(())).await;
        let refusal = rooms.lease(&acme).await.unwrap_err();
        assert!(matches!(refusal, Error::QueueFull { queue_max, .. } if queue_max == count as usize), "{refusal}");
    }
    // Those who wait already keep their places.
    queue_max(1);
    let refusal = rooms.lease(&acme).await.unwrap_err();
    assert!(matches!(refusal, Error::QueueFull { queue_max: 1, .. }), "{refusal}");
    held.release(Residue::Nothing);
    while let Some(lease) = waiting.join_next().await {
        lease.unwrap().unwrap().release(Residue::Nothing);
    }
    rooms.finish().await;
}

#[tokio::test]
async fn who_waits_at_a_gate_waits_as_long_as_is_said_now() {
    let rooms = Rooms::new(Spec::default().setting("[router]", "pause_wait_max", "\"1h\"")).await;
    let acme = rooms.tenant("acme").await;
    let operation = Uuid::now_v7();
    let txn = rooms.catalog.begin().await.unwrap();
    let gate = Gate::Paused { operation };
    rooms.catalog.gate_set_in_txn(&txn, acme.id, gate, OperationId(operation)).await.unwrap();
    txn.commit().await.unwrap();
    rooms.router.route_forget(acme.id);
    rooms.limits(|limits| limits.router.pause_wait_max = Duration::from_millis(50));
    let call = rooms.router.acquire(acme.id, Instant::now() + Duration::from_hours(1));
    let refusal = tokio::time::timeout(PATIENCE, call).await.expect("the time is the new one").unwrap_err();
    assert!(matches!(refusal, Error::Paused { .. }), "{refusal}");
    rooms.finish().await;
}

#[tokio::test]
async fn who_waits_for_a_long_lease_hears_of_a_larger_pool_and_a_larger_budget() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    pool_size(&rooms, 2);
    rooms.limits(|limits| limits.router.acquire_timeout = Duration::from_mins(2));
    let (holder, located) = (Holder::default(), located(&rooms, &acme).await);
    let long = || Box::pin(rooms.router.acquire_long_at(&holder, &located, Instant::now() + Duration::from_secs(30)));
    let first = long().await.unwrap();
    let mut waiting = long();
    assert!(futures_util::poll!(&mut waiting).is_pending());
    pool_size(&rooms, 20);
    let second = waiting.await.unwrap();
    // Four places for tenants.
    rooms.server.budget().resize(24, 20);
    let mut waiting = long();
    assert!(futures_util::poll!(&mut waiting).is_pending());
    rooms.server.budget().resize(40, 20);
    let third = waiting.await.unwrap();
    for lease in [first, second, third] {
        lease.release(Residue::Nothing);
    }
    rooms.finish().await;
}

#[tokio::test]
async fn a_pool_that_is_closed_again_and_again_makes_nobody_wait_for_longer() {
    let rooms = Rooms::new(Spec::default()).await;
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    // One place for tenants, and it is taken.
    rooms.server.budget().resize(21, 20);
    let held = rooms.lease(&beta).await.unwrap();
    rooms.limits(|limits| limits.router.acquire_timeout = Duration::from_secs(1));
    let (router, tenant) = (rooms.router.clone(), acme.id);
    let soon = Instant::now() + Duration::from_mins(10);
    let waiting = tokio::spawn(async move { router.acquire(tenant, soon).await });
    until("the time is up", async || {
        rooms.router.pool_evict(acme.id);
        waiting.is_finished().then_some(())
    })
    .await;
    let refusal = waiting.await.unwrap().unwrap_err();
    assert!(matches!(refusal, Error::Timeout { .. }), "{refusal}");
    held.release(Residue::Nothing);
    rooms.finish().await;
}

#[tokio::test]
async fn a_pool_is_shown_with_the_size_of_its_newest_epoch() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let held = rooms.lease(&acme).await.unwrap();
    let txn = rooms.catalog.begin().await.unwrap();
    rooms.catalog.tenant_epoch_bump_in_txn(&txn, acme.id).await.unwrap();
    txn.commit().await.unwrap();
    rooms.router.route_forget(acme.id);
    rooms.call(&acme).await.unwrap();
    // The former pool, which is closed, keeps its own.
    pool_size(&rooms, 3);
    let pool = rooms.router.pool(acme.id).unwrap();
    assert_eq!((pool.connections_max, pool.leased, pool.idle), (3, 1, 1));
    held.release(Residue::Nothing);
    rooms.finish().await;
}
