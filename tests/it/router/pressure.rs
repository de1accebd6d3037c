//! More callers than connections: whom to evict, who is next, and who is refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tenantd::proto::v1::ListPoolsRequest;
use tenantd::router::{Error, Lease, Residue};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;

use super::{Watch, nothing_is_left_open, one, refusal_at_once, small_budget};
use crate::harness::{Client, Fleet, Machine, Proxy, Spec, machine, reason, until};
use crate::tenants::Rooms;

async fn backend(lease: &Lease) -> i32 {
    lease.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_storm_is_served_within_the_budget() {
    const TENANTS: usize = 120;
    const CALLS: usize = 320;
    // All that the server has, but for the catalog, a few for administration and the judges.
    let spec = Spec { machine: Some(Machine::with_room_for(100)), ..Spec::default() }
        .setting("[[servers]]", "connections_max", "80")
        .setting("[[servers]]", "connections_reserved", "20")
        .setting("[router]", "acquire_timeout", "\"60s\"");
    let rooms = Arc::new(Rooms::new(spec).await);
    let tenants = rooms.tenants(TENANTS).await;
    let watch = Watch::start(&rooms).await;
    let mut calls = JoinSet::new();
    for number in 0..CALLS {
        let (rooms, tenant) = (Arc::clone(&rooms), tenants[number % TENANTS].clone());
        calls.spawn(async move { assert_eq!(rooms.call(&tenant).await.unwrap(), tenant.database) });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    let most = watch.end().await;
    assert!(most <= 60, "the server saw {most} sessions, and the budget has 60 for tenants");
    // Callers who waited for the same tenant waited for the same connect.
    let connects: u64 = tenants.iter().map(|tenant| rooms.router.stats(tenant.id).connects).sum();
    assert!(connects < 2 * TENANTS as u64, "{connects} connects for {CALLS} calls of {TENANTS} tenants");
    Arc::into_inner(rooms).unwrap().finish().await;
}

#[tokio::test]
async fn a_frequent_tenant_keeps_its_connection_while_others_pass_through() {
    let rooms = Rooms::new(small_budget()).await;
    let tenants = rooms.tenants(12).await;
    let (frequent, others) = tenants.split_first().unwrap();
    for _ in 0..20 {
        rooms.call(frequent).await.unwrap();
    }
    let lease = rooms.lease(frequent).await.unwrap();
    let first = backend(&lease).await;
    lease.release(Residue::Nothing);
    // Each of them is more recent than the frequent one by then.
    for _ in 0..2 {
        for other in others {
            rooms.call(other).await.unwrap();
        }
    }
    let lease = rooms.lease(frequent).await.unwrap();
    assert_eq!(backend(&lease).await, first);
    lease.release(Residue::Nothing);
    assert_eq!(rooms.router.stats(frequent.id).evictions, 0);
    let evictions: u64 = others.iter().map(|other| rooms.router.stats(other.id).evictions).sum();
    assert!(evictions >= 11, "{evictions} evictions, and 22 calls went through 5 places");
    rooms.finish().await;
}

/// A thousand callers of one tenant's slow statements, over gRPC, who come again when they were served or refused. None
/// goes away in the middle of a statement: its place would fall to whoever has the next turn.
struct Noise {
    callers: JoinSet<()>,
    answered: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
}

impl Noise {
    fn start(client: &Client) -> Self {
        let (mut callers, answered, refused) = (JoinSet::new(), Arc::default(), Arc::default());
        let clients: Vec<Client> = (0..10).map(|_| client.moved(client.address())).collect();
        for number in 0..1_000 {
            let client = clients[number % clients.len()].clone();
            let (answered, refused) = (Arc::<AtomicUsize>::clone(&answered), Arc::<AtomicUsize>::clone(&refused));
            callers.spawn(async move {
                loop {
                    match client.execute("noisy", "SELECT pg_sleep(0.2)").await {
                        Ok(_) => drop(answered.fetch_add(1, Ordering::SeqCst)),
                        Err(refusal) => {
                            let found = (refusal.code(), reason(&refusal));
                            let wanted = (Code::ResourceExhausted, "CONNECTION_UNAVAILABLE".to_owned());
                            assert_eq!(found, wanted, "{refusal:?}");
                            refused.fetch_add(1, Ordering::SeqCst);
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                }
            });
        }
        Self { callers, answered, refused }
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    /// None of them has ended, as they do when they hear what they may not.
    async fn end(mut self) {
        assert!(self.callers.try_join_next().is_none_or(|ended| panic!("{ended:?}")));
        self.callers.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_of_slow_statements_do_not_starve_a_quiet_tenant() {
    let tier = "{ direct_connections_max = 1, pool_connections_max = 10, queue_max = 900, users_max = 1, \
                sites_max = 1, storage_bytes_max = 1 }";
    let spec = small_budget().setting("[tiers]", "standard", tier).setting("[router]", "acquire_timeout", "\"10m\"");
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.start().await;
    for code in ["noisy", "quiet"] {
        daemon.client.tenant(code).await;
    }
    let pool = async || {
        let pools = daemon.client.router().list_pools(ListPoolsRequest::default()).await.unwrap().into_inner().pools;
        pools.into_iter().find(|pool| pool.tenant_code == "noisy")
    };
    let watch = Watch::of(&fleet).await;
    let noise = Noise::start(&daemon.client);
    for _ in 0..5 {
        let is_crowded = async || pool().await.filter(|pool| pool.waiting > 700).map(drop);
        until("most of the noisy tenant's callers wait", is_crowded).await;
        let before = noise.answered();
        let database = daemon.client.sql("quiet", "SELECT current_database()").await;
        assert_eq!(database, format!("{}_quiet", fleet.naming.prefix()));
        // In the noisy tenant's turns, and not in seconds: the queue of a thousand was not waited for.
        let turns = noise.answered() - before;
        assert!(turns < 400, "{turns} slow statements were ahead of the quiet tenant's");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(noise.answered() > 0, "no slow statement has ended");
    assert!(noise.refused.load(Ordering::SeqCst) > 0, "there was room for more callers");
    noise.end().await;
    nothing_is_left_open(&fleet).await;
    let seen = watch.seen().await;
    assert_eq!((seen.most, seen.left_open), (6, 0), "{seen:?}");
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_busy_tenants_that_hold_equally_many_do_not_starve_a_third_one() {
    let rooms = Arc::new(Rooms::new(small_budget()).await);
    let busy = [rooms.tenant("one").await, rooms.tenant("other").await];
    let quiet = rooms.tenant("quiet").await;
    let mut callers = JoinSet::new();
    for number in 0..40 {
        let (rooms, tenant) = (Arc::clone(&rooms), busy[number % 2].clone());
        callers.spawn(async move {
            loop {
                let Ok(lease) = rooms.lease(&tenant).await else { return };
                if lease.batch_execute("SELECT pg_sleep(0.05)").await.is_ok() {
                    lease.release(Residue::Nothing);
                }
            }
        });
    }
    until("each has half of the places", async || {
        busy.iter().all(|tenant| rooms.router.pool(tenant.id).is_some_and(|pool| pool.leased == 3)).then_some(())
    })
    .await;
    for _ in 0..3 {
        assert_eq!(rooms.call(&quiet).await.unwrap(), quiet.database);
    }
    callers.shutdown().await;
    Arc::into_inner(rooms).unwrap().finish().await;
}

#[tokio::test]
async fn the_queue_of_a_tenant_has_a_bound() {
    let rooms = Rooms::new(Spec::default()).await;
    rooms.limits(|limits| {
        for tier in limits.tiers.values_mut() {
            (tier.pool_connections_max, tier.queue_max) = (1, 2);
        }
    });
    let acme = rooms.tenant("acme").await;
    let held = rooms.lease(&acme).await.unwrap();
    {
        let (mut first, mut second) = (Box::pin(rooms.lease(&acme)), Box::pin(rooms.lease(&acme)));
        assert!(futures_util::poll!(&mut first).is_pending() && futures_util::poll!(&mut second).is_pending());
        until("both wait", async || (rooms.router.pool(acme.id).unwrap().waiting == 2).then_some(())).await;
        let refusal = rooms.lease(&acme).await.unwrap_err();
        assert!(matches!(refusal, Error::QueueFull { queue_max: 2, .. }), "{refusal}");
        assert!(refusal.retry_after().is_some());
        // First come, first served.
        held.release(Residue::Nothing);
        let lease = first.await.unwrap();
        assert!(futures_util::poll!(&mut second).is_pending());
        lease.release(Residue::Nothing);
        assert_eq!(one(&second.await.unwrap()).await, 1);
    }
    rooms.finish().await;
}

#[tokio::test]
async fn a_connect_that_nobody_waits_for_any_more_serves_the_next() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    // E3: callers that give up at every moment of a connect cost no connection.
    for number in 0..50_u64 {
        let deadline = Instant::now() + Duration::from_micros(number * 200);
        if let Ok(Ok(lease)) = tokio::time::timeout_at(deadline, rooms.lease(&acme)).await {
            lease.release(Residue::Nothing);
        }
    }
    assert_eq!(rooms.call(&acme).await.unwrap(), acme.database);
    let stats = rooms.router.stats(acme.id);
    assert_eq!((stats.connects, rooms.sessions().await), (1, 1), "{stats:?}");
    rooms.finish().await;
}

#[tokio::test]
async fn a_pool_grows_by_several_connections_at_once() {
    let rooms = Rooms::new(Spec::default()).await;
    let acme = rooms.tenant("acme").await;
    let leases = futures_util::future::join_all((0..10).map(|_| rooms.lease(&acme))).await;
    let leases: Vec<_> = leases.into_iter().map(Result::unwrap).collect();
    assert_eq!(rooms.sessions().await, 10);
    let refusal = refusal_at_once(&rooms, &acme).await;
    assert!(refusal.to_string().contains("all 10 connections of its pool are in use"), "{refusal}");
    drop(leases);
    rooms.finish().await;
}

/// A server that takes connections and says nothing; counts those who begin to log in as a tenant.
pub async fn silent_server(logins: &Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, logins) = (listener.local_addr().unwrap(), Arc::clone(logins));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let logins = Arc::clone(&logins);
            tokio::spawn(async move {
                let mut greeting = vec![0; 1 << 10];
                let read = stream.read(&mut greeting).await.unwrap_or_default();
                // The router's login of a tenant is in it.
                if greeting[..read].windows(4).any(|part| part == b"__r\0") {
                    logins.fetch_add(1, Ordering::SeqCst);
                }
                // Until the other end has gone.
                while stream.read(&mut greeting).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    address
}

#[tokio::test]
async fn a_cold_storm_is_no_connection_storm() {
    let upstream: SocketAddr = format!("{}:{}", machine().host, machine().port).parse().unwrap();
    let proxy = Proxy::start(upstream).await;
    let spec = Spec::default()
        .setting("[[servers]]", "port", &proxy.address.port().to_string())
        .setting("[[servers]]", "connects_parallel_max", "2")
        .setting("[router]", "connect_timeout", "\"100s\"")
        .setting("[router]", "acquire_timeout", "\"3s\"")
        .setting("[router]", "route_age_max", "\"10m\"");
    let rooms = Rooms::new(spec).await;
    rooms.fleet.allow_log("the server takes no connections");
    rooms.fleet.allow_log("the shared database cannot be followed");
    let tenants = rooms.tenants(8).await;
    for tenant in &tenants {
        // Known from now on: how to log in, and where.
        until("each is reached", async || rooms.call(tenant).await.ok()).await;
    }
    let logins = Arc::new(AtomicUsize::new(0));
    proxy.redirect(silent_server(&logins).await);
    let results = futures_util::future::join_all(tenants.iter().map(async |tenant| {
        // One that idled may have been cut off just now.
        let lease = rooms.lease(tenant).await?;
        drop(lease);
        rooms.lease(tenant).await.map(drop)
    }));
    for result in results.await {
        assert!(result.is_err());
    }
    assert_eq!(logins.load(Ordering::SeqCst), 2, "connects at the same moment");
    proxy.redirect(upstream);
    for tenant in &tenants {
        until("each is reached again", async || rooms.call(tenant).await.ok()).await;
    }
    rooms.finish().await;
}

#[tokio::test]
async fn who_waits_for_a_connection_that_comes_back_hears_nothing_of_one_that_could_not_be_had() {
    let upstream: SocketAddr = format!("{}:{}", machine().host, machine().port).parse().unwrap();
    let proxy = Proxy::start(upstream).await;
    let spec = Spec::default()
        .setting("[[servers]]", "port", &proxy.address.port().to_string())
        .setting("[router]", "acquire_timeout", "\"100s\"")
        .setting("[router]", "route_age_max", "\"10m\"");
    let rooms = Rooms::new(spec).await;
    rooms.fleet.allow_log("the shared database cannot be followed");
    let acme = rooms.tenant("acme").await;
    let held = rooms.lease(&acme).await.unwrap();
    rooms.limits(|limits| limits.router.connect_timeout = Duration::from_millis(300));
    proxy.part();
    let mut second = Box::pin(rooms.lease(&acme));
    let connecting = || rooms.router.pool(acme.id).unwrap().connecting;
    tokio::select! {
        refused = &mut second => panic!("{:?}", refused.map(drop)),
        () = async {
            until("another is on its way", async || (connecting() > 0).then_some(())).await;
            until("it has failed", async || (connecting() == 0).then_some(())).await;
        } => {}
    }
    proxy.join();
    held.release(Residue::Nothing);
    drop(second.await.unwrap());
    rooms.finish().await;
}

#[tokio::test]
async fn who_waits_at_the_connect_gate_takes_no_place() {
    let rooms = Rooms::new(Spec::default().setting("[[servers]]", "connects_parallel_max", "2")).await;
    let database = rooms.server.maintenance_database();
    let mut sessions = Box::pin(futures_util::future::join_all((0..8).map(|_| rooms.server.connect_admin(database))));
    // Between these two nothing else runs: all of them have come by then, and none has its session.
    let before = rooms.server.budget().in_use();
    assert!(futures_util::poll!(&mut sessions).is_pending());
    assert_eq!(rooms.server.budget().in_use(), before + 2);
    for session in sessions.await {
        session.unwrap();
    }
    rooms.finish().await;
}
