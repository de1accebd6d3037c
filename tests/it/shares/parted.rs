//! A network that is parted: a daemon runs on and no longer reaches its server, which takes it to be gone, while two
//! others go on. Nothing tells it that anything has ended.

use std::net::SocketAddr;

use tenantd::proto::v1::OperationState;
use uuid::Uuid;

use super::{Load, TENANTS, WHOLE, Watch, sessions, sessions_exceed, shares_become, spawn, spec};
use crate::harness::{Fleet, Process, Proxy, reason, until};

const COUNT: &str = "SELECT count(*) FROM things";

/// A daemon whose way to the server is the proxy.
fn spawn_behind(fleet: &Fleet, instance: &str, proxy: &Proxy) -> Process {
    fleet.configure(&[
        ("", "instance", format!("{instance:?}")),
        ("[[servers]]", "port", proxy.address.port().to_string()),
    ]);
    fleet.spawn()
}

/// What the daemons have on the server; of some alone, as their sessions are named.
async fn backends(fleet: &Fleet, named: &str) -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND application_name <> 'judge' AND application_name LIKE $1";
    fleet.judge("postgres").await.query(sql, &[&named]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_no_longer_reaches_its_server_does_no_harm_when_it_does_again() {
    // Longer than the parted daemon takes to find that the server does not answer.
    let fleet = Fleet::new(spec().setting("[shares]", "take_over_after", "\"15s\"")).await;
    for part in [
        "shared database",
        "auth database",
        "no operation can be claimed",
        "takes no connections",
        "cannot be reached",
        "a backend is still there",
    ] {
        fleet.allow_log(part);
    }
    let upstream: SocketAddr = format!("{}:{}", fleet.machine.host, fleet.machine.port).parse().unwrap();
    let proxy = Proxy::start(upstream).await;
    let watch = Watch::start(&fleet).await;
    let a = spawn_behind(&fleet, "a", &proxy);
    for tenant in TENANTS {
        a.client.tenant(tenant).await;
    }
    let backup = a.client.backup("south").await;
    a.client.sql("south", "DELETE FROM things WHERE id > 5").await;
    let load_a = Load::start(&a.client);
    sessions_exceed(&fleet, "a", 10).await;
    let mut own = backends(&fleet, "%").await;
    let (b, c) = (spawn(&fleet, "b"), spawn(&fleet, "c"));
    shares_become(&fleet, &[("a", WHOLE / 3), ("b", WHOLE / 3), ("c", WHOLE / 3)]).await;
    own.extend(backends(&fleet, "%@a").await);

    proxy.part();
    // As the server does with who does not answer it any more.
    let judge = fleet.judge("postgres").await;
    judge.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", &[&own]).await.unwrap();
    let (load_b, load_c) = (Load::start(&b.client), Load::start(&c.client));
    let operation = b.client.restore_create(Uuid::new_v4(), &backup.backup_id, None).await.unwrap();
    b.client.succeeded(&operation).await;
    shares_become(&fleet, &[("b", WHOLE / 2), ("c", WHOLE / 2)]).await;
    assert_eq!(sessions(&fleet, "a").await, 0);
    let operation = c.client.tenant_suspend(Uuid::new_v4(), "west", "unpaid").await.unwrap();
    assert_eq!(c.client.ended(&operation.operation_id).await.state(), OperationState::Succeeded);
    sessions_exceed(&fleet, "b", 6).await;

    proxy.join();
    shares_become(&fleet, &[("a", WHOLE / 3), ("b", WHOLE / 3), ("c", WHOLE / 3)]).await;
    let first = until("a serves again", async || a.client.execute("south", COUNT).await.ok()).await;
    assert_eq!(first, [["20"]], "the restored rows, and never those of before");
    until("a knows why it refuses", async || {
        let refused = a.client.execute("west", COUNT).await.unwrap_err();
        (reason(&refused) == "TENANT_STATE").then_some(())
    })
    .await;
    for load in [load_a, load_b, load_c] {
        load.end().await;
    }
    watch.end().await;
    for daemon in [a, b, c] {
        daemon.terminate().await;
    }
    fleet.finish().await;
}
