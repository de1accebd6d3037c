//! How many connections a tenant has beside others, and how long they last.

use std::collections::HashMap;

use tenantd::router::Residue;
use tokio::time::Instant;

use crate::harness::{PATIENCE, Spec, until};
use crate::tenants::{Callers, Made, Rooms};

/// More callers of one tenant than the server has places, who hold a connection for equally long each time.
fn callers(rooms: &Rooms, tenant: &Made) -> Callers {
    let (router, tenant) = (rooms.router.clone(), tenant.id);
    Callers::new(16, move || {
        let router = router.clone();
        async move {
            let lease = router.acquire(tenant, Instant::now() + 5 * PATIENCE).await.unwrap();
            lease.execute("SELECT pg_sleep(0.05)", &[]).await.unwrap();
            lease.release(Residue::Nothing);
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_share_the_places_by_the_weights_that_the_configuration_says() {
    const REST: &str = "direct_connections_max = 20, users_max = 1, sites_max = 1, storage_bytes_max = 1";
    let tier = |weight| format!("{{ weight = {weight}, pool_connections_max = 10, {REST} }}");
    // Five places for tenants.
    let spec = Spec::default()
        .setting("[[servers]]", "connections_max", "21")
        .setting("[[servers]]", "connections_reserved", "16")
        .setting("[router]", "acquire_timeout", "\"10m\"")
        .setting("[tiers]", "heavy", &tier(4))
        .setting("[tiers]", "light", &tier(1));
    let rooms = Rooms::new(spec).await;
    let (heavy, light) = (rooms.tenant_of("heavy", "heavy").await, rooms.tenant_of("light", "light").await);
    let judge = rooms.fleet.judge("postgres").await;
    let sessions = async |tenant: &Made| -> i64 {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
        judge.query_one(sql, &[&tenant.database]).await.unwrap().get(0)
    };

    let of_light = callers(&rooms, &light);
    until("who is alone has all", async || (sessions(&light).await == 5).then_some(())).await;
    let of_heavy = callers(&rooms, &heavy);
    until("four of five are the heavier's", async || {
        ((sessions(&heavy).await, sessions(&light).await) == (4, 1)).then_some(())
    })
    .await;
    let (heavy_before, light_before) = (of_heavy.done(), of_light.done());
    of_light.go_on(20).await;
    let (more, less) = (of_heavy.done() - heavy_before, of_light.done() - light_before);
    assert!(more >= 2 * less, "{more} calls of the heavier, {less} of the lighter");
    of_heavy.end().await;
    of_light.end().await;
    rooms.finish().await;
}

/// When all are the tenant's at a time again and again, and come back from the youngest to the oldest, an older one
/// cannot outlast a younger one that may live for equally long.
#[tokio::test]
async fn connections_of_a_pool_live_for_different_times() {
    const SIZE: u32 = 4;
    let rooms = Rooms::new(Spec::default().setting("[router]", "connection_lifetime_max", "\"2s\"")).await;
    rooms.limits(|limits| limits.tiers.values_mut().for_each(|tier| tier.pool_connections_max = SIZE));
    let acme = rooms.tenant("acme").await;
    // In which round each session was first seen.
    let mut first_seen: HashMap<i32, usize> = HashMap::new();
    let begun = Instant::now();
    for round in 0.. {
        let mut held = Vec::new();
        for lease in futures_util::future::join_all((0..SIZE).map(|_| rooms.lease(&acme))).await {
            let lease = lease.unwrap();
            let backend: i32 = lease.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
            held.push((*first_seen.entry(backend).or_insert(round), backend, lease));
        }
        held.sort_by_key(|(seen, ..)| std::cmp::Reverse(*seen));
        let oldest = held.last().map_or(round, |(seen, ..)| *seen);
        let is_gone = |backend: &i32| held.iter().all(|(_, of_held, _)| of_held != backend);
        let is_outlasted = first_seen.iter().any(|(backend, seen)| *seen > oldest && is_gone(backend));
        for (_, _, lease) in held {
            lease.release(Residue::Nothing);
        }
        if is_outlasted {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "no younger one is outlasted in {round} rounds");
    }
    rooms.finish().await;
}
