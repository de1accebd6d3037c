//! Daemons that are killed, stand still, or lose their session on the server; a catalog that is away.

use std::time::Duration;

use tenantd::proto::v1::EvictPoolRequest;
use tokio::task::JoinSet;

use super::{WHOLE, configure, sessions, shares, shares_become, spawn, spec};
use crate::harness::{Client, Fleet, signal, until};

/// A caller of a statement that does not end by itself, in a session that hides whose it is.
fn sleeper(client: &Client) -> JoinSet<()> {
    let client = client.clone();
    let mut callers = JoinSet::new();
    callers.spawn(async move {
        let sql = "SELECT set_config('application_name', 'nobody', false), pg_sleep(600)";
        drop(client.execute("acme", sql).await);
    });
    callers
}

/// Sessions that hide whose they are.
async fn hidden(fleet: &Fleet) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nobody'";
    fleet.judge("postgres").await.query_one(sql, &[]).await.unwrap().get(0)
}

async fn hidden_becomes(fleet: &Fleet, count: i64) {
    until(&format!("{count} sessions hide"), async || (hidden(fleet).await == count).then_some(())).await;
}

/// Ends the session that stands for the one daemon, as if the network had cut it, and waits until another stands for it.
async fn anchor_cut(fleet: &Fleet) {
    let judge = fleet.judge("postgres").await;
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name ~ '^tenantd .{8} share$'";
    let old: i32 = judge.query_one(sql, &[]).await.unwrap().get(0);
    judge.execute("SELECT pg_terminate_backend($1)", &[&old]).await.unwrap();
    until("another session stands for the daemon", async || {
        let pids: Vec<i32> = judge.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        (!pids.is_empty() && !pids.contains(&old)).then_some(())
    })
    .await;
}

async fn catalog_take_away(fleet: &Fleet) {
    let name = fleet.naming.shared_database();
    let judge = fleet.judge("postgres").await;
    judge.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
    until("the shared database has no sessions", async || {
        judge.query(end, &[&name.as_str()]).await.unwrap().is_empty().then_some(())
    })
    .await;
}

async fn catalog_give_back(fleet: &Fleet) {
    let name = fleet.naming.shared_database();
    fleet
        .judge("postgres")
        .await
        .batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        .await
        .unwrap();
}

fn catalog_logs(fleet: &Fleet) {
    for part in ["the shared database cannot be followed", "no operation can be claimed", "the shared database is away"]
    {
        fleet.allow_log(part);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_daemon_left_ends_before_its_share_is_used_however_it_is_named() {
    let fleet = Fleet::new(spec().setting("[router]", "statement_timeout", "\"10m\"")).await;
    let a = spawn(&fleet, "a");
    a.client.tenant("acme").await;
    let b = spawn(&fleet, "b");
    assert_eq!(b.client.sql("acme", "SELECT 1").await, "1");
    assert_eq!((sessions(&fleet, "a").await, sessions(&fleet, "b").await), (0, 1));
    let mut caller = sleeper(&a.client);
    hidden_becomes(&fleet, 1).await;
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%@b'";
    let before: i32 = fleet.judge("postgres").await.query_one(sql, &[]).await.unwrap().get(0);
    a.kill();
    caller.shutdown().await;
    shares_become(&fleet, &[("b", WHOLE)]).await;
    assert_eq!(hidden(&fleet).await, 0);
    let after: i32 = fleet.judge("postgres").await.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(after, before, "the sessions of living daemons are left alone");
    b.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_the_same_name_ends_what_the_former_run_left_and_has_its_share() {
    let spec =
        spec().setting("[router]", "statement_timeout", "\"10m\"").setting("[shares]", "take_over_after", "\"1h\"");
    let fleet = Fleet::new(spec).await;
    let a = spawn(&fleet, "a");
    a.client.tenant("acme").await;
    let b = spawn(&fleet, "b");
    shares_become(&fleet, &[("a", WHOLE / 2), ("b", WHOLE / 2)]).await;
    let mut caller = sleeper(&a.client);
    hidden_becomes(&fleet, 1).await;
    a.kill();
    caller.shutdown().await;
    assert_eq!(shares(&fleet).await, [("a".to_owned(), WHOLE / 2), ("b".to_owned(), WHOLE / 2)]);
    let a = spawn(&fleet, "a");
    assert_eq!(hidden(&fleet).await, 0);
    assert_eq!(shares(&fleet).await, [("a".to_owned(), WHOLE / 2), ("b".to_owned(), WHOLE / 2)]);
    assert_eq!(a.client.sql("acme", "SELECT 1").await, "1");
    a.terminate().await;
    b.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_stands_still_keeps_its_share() {
    let fleet = Fleet::new(spec()).await;
    // When it wakes, it may find that its server has been silent.
    fleet.allow_log("the server takes no connections");
    let a = spawn(&fleet, "a");
    a.client.tenant("acme").await;
    let b = spawn(&fleet, "b");
    shares_become(&fleet, &[("a", WHOLE / 2), ("b", WHOLE / 2)]).await;
    a.pause();
    // For longer than it takes until a daemon is taken to be gone.
    for _ in 0..5 {
        assert_eq!(b.client.execute("acme", "SELECT pg_sleep(1)").await.unwrap().len(), 1);
        assert_eq!(shares(&fleet).await, [("a".to_owned(), WHOLE / 2), ("b".to_owned(), WHOLE / 2)]);
    }
    a.resume();
    until("it serves again", async || a.client.execute("acme", "SELECT 1").await.ok()).await;
    assert_eq!(shares(&fleet).await, [("a".to_owned(), WHOLE / 2), ("b".to_owned(), WHOLE / 2)]);
    a.terminate().await;
    b.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_stay_as_they_are_while_the_catalog_is_away() {
    let fleet = Fleet::new(spec()).await;
    catalog_logs(&fleet);
    configure(&fleet, "a");
    let a = fleet.start().await;
    a.client.tenant("acme").await;
    configure(&fleet, "b");
    let b = fleet.start().await;
    for daemon in [&a, &b] {
        assert_eq!(daemon.client.sql("acme", "SELECT 1").await, "1");
    }
    shares_become(&fleet, &[("a", WHOLE / 2), ("b", WHOLE / 2)]).await;
    catalog_take_away(&fleet).await;
    for _ in 0..5 {
        // More callers than connections are open: new ones are opened.
        let calls = (0..6).map(|_| a.client.execute("acme", "SELECT pg_sleep(1)"));
        for answer in futures_util::future::join_all(calls).await {
            answer.unwrap();
        }
        b.client.execute("acme", "SELECT 1").await.unwrap();
    }
    // One that is still being cleaned is no help to who comes next, who then gets another.
    let open = sessions(&fleet, "a").await;
    assert!((6..=i64::from(WHOLE / 2)).contains(&open), "{open} sessions");
    catalog_give_back(&fleet).await;
    assert_eq!(shares(&fleet).await, [("a".to_owned(), WHOLE / 2), ("b".to_owned(), WHOLE / 2)]);
    a.stop().await;
    shares_become(&fleet, &[("b", WHOLE)]).await;
    fleet.stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_whose_session_was_cut_opens_nothing_until_it_is_sure_of_its_share() {
    let fleet = Fleet::new(spec()).await;
    catalog_logs(&fleet);
    fleet.allow_log("the server takes no connections");
    configure(&fleet, "a");
    let a = fleet.start().await;
    a.client.tenant("acme").await;
    a.client.tenant("beta").await;
    assert_eq!(a.client.sql("acme", "SELECT 1").await, "1");
    // With the catalog at hand it is sure again at once.
    anchor_cut(&fleet).await;
    until("new connections are opened again", async || a.client.execute("beta", "SELECT 1").await.ok()).await;
    shares_become(&fleet, &[("a", WHOLE)]).await;

    a.client.router().evict_pool(evict("beta")).await.unwrap();
    catalog_take_away(&fleet).await;
    anchor_cut(&fleet).await;
    let refusal = a.client.execute("beta", "SELECT 1").await.unwrap_err();
    assert!(refusal.message().contains("its share of the budget"), "{refusal}");
    assert_eq!(a.client.sql("acme", "SELECT 1").await, "1", "what is open may be used");
    catalog_give_back(&fleet).await;
    until("new connections are opened again", async || a.client.execute("beta", "SELECT 1").await.ok()).await;
    assert_eq!(shares(&fleet).await, [("a".to_owned(), WHOLE)]);
    fleet.stop(a).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_whose_share_was_taken_begins_as_a_newcomer() {
    let fleet = Fleet::new(spec()).await;
    configure(&fleet, "a");
    let a = fleet.start().await;
    a.client.tenant("acme").await;
    configure(&fleet, "b");
    let b = fleet.start().await;
    shares_become(&fleet, &[("a", WHOLE / 2), ("b", WHOLE / 2)]).await;
    let judge = fleet.judge(fleet.naming.shared_database().as_str()).await;
    let taken = judge.execute("DELETE FROM budget_shares WHERE instance = 'a'", &[]).await.unwrap();
    assert_eq!(taken, 1);
    shares_become(&fleet, &[("a", WHOLE / 2), ("b", WHOLE / 2)]).await;
    until("a serves again", async || a.client.execute("acme", "SELECT 1").await.ok()).await;
    a.stop().await;
    fleet.stop(b).await;
}

fn evict(tenant: &str) -> EvictPoolRequest {
    EvictPoolRequest {
        tenant: tenant.to_owned(),
        reason: "a test".to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    }
}

/// The signal that wakes a process lets its clocks run out before it hears of its sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_stood_still_does_not_mistake_a_backend_that_has_gone_for_one_that_is_there() {
    let fleet = Fleet::new(spec()).await;
    // When it wakes, it may find that its server has been silent.
    fleet.allow_log("the server takes no connections");
    let daemon = fleet.spawn();
    let acme = daemon.client.tenant("acme").await;
    daemon.client.sql("acme", "SELECT 1").await;
    let judge = fleet.judge("postgres").await;
    let idle = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND application_name = $1 AND state = 'idle'";
    let backend: i32 = until("the tenant's session idles", async || {
        judge.query(idle, &[&acme.database]).await.unwrap().first().map(|row| row.get(0))
    })
    .await;
    // It is left, and does not hear of it before the daemon stands still.
    signal("STOP", u32::try_from(backend).unwrap());
    daemon.client.router().evict_pool(evict("acme")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    daemon.pause();
    signal("CONT", u32::try_from(backend).unwrap());
    let there = "SELECT FROM pg_stat_activity WHERE pid = $1";
    until("the backend has gone", async || judge.query(there, &[&backend]).await.unwrap().is_empty().then_some(()))
        .await;
    // For longer than a backend is waited for.
    tokio::time::sleep(Duration::from_secs(31)).await;
    daemon.resume();
    until("it serves again", async || daemon.client.execute("acme", "SELECT 1").await.ok()).await;
    daemon.terminate().await;
    fleet.finish().await;
}
