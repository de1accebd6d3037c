//! Several daemons on one server: together they never have more sessions than the budget, as the server itself counts
//! them, whoever comes, stops or is killed.

mod beside;
mod faults;
mod parted;
mod three;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::harness::{Client, Fleet, Machine, Process, Spec, until};

const BUDGET: usize = 40;
/// What is shared of it.
const WHOLE: i32 = 36;

/// A server of the test's own, where every session but the judge's is a daemon's.
fn spec() -> Spec {
    Spec { machine: Some(Machine::with_room_for(100)), ..Spec::default() }
        .setting("[[servers]]", "connections_max", &BUDGET.to_string())
        .setting("[[servers]]", "connections_reserved", "6")
        .setting("[shares]", "interval", "\"50ms\"")
        .setting("[shares]", "take_over_after", "\"3s\"")
        .setting("[router]", "connect_timeout", "\"3s\"")
        .setting("[router]", "acquire_timeout", "\"60s\"")
}

fn configure(fleet: &Fleet, instance: &str) {
    fleet.configure(&[("", "instance", format!("{instance:?}"))]);
}

/// A daemon of this name, in a process of its own.
fn spawn(fleet: &Fleet, instance: &str) -> Process {
    configure(fleet, instance);
    fleet.spawn()
}

/// What each daemon may have, by the catalog.
async fn shares(fleet: &Fleet) -> Vec<(String, i32)> {
    let judge = fleet.judge(fleet.naming.shared_database().as_str()).await;
    let rows = judge.query("SELECT instance, held FROM budget_shares ORDER BY instance", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn shares_become(fleet: &Fleet, wanted: &[(&str, i32)]) {
    until(&format!("the shares are {wanted:?}"), async || {
        let shares = shares(fleet).await;
        shares.iter().map(|(instance, held)| (instance.as_str(), *held)).eq(wanted.iter().copied()).then_some(())
    })
    .await;
}

/// Sessions of tenants in a daemon's hands, as the server has them.
async fn sessions(fleet: &Fleet, instance: &str) -> i64 {
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, $1) AND application_name LIKE $2";
    let (prefix, mark) = (format!("{}_", fleet.naming.prefix()), format!("%@{instance}"));
    fleet.judge("postgres").await.query_one(sql, &[&prefix, &mark]).await.unwrap().get(0)
}

async fn sessions_exceed(fleet: &Fleet, instance: &str, count: i64) {
    until(&format!("{instance} has more than {count} sessions"), async || {
        (sessions(fleet, instance).await > count).then_some(())
    })
    .await;
}

/// Looks at all sessions of all daemons again and again, and keeps the longest list of them.
struct Watch {
    most: Arc<Mutex<Vec<String>>>,
    is_over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    async fn start(fleet: &Fleet) -> Self {
        let judge = fleet.judge("postgres").await;
        let (most, is_over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (longest, end) = (Arc::clone(&most), Arc::clone(&is_over));
        let task = tokio::spawn(async move {
            // From PostgreSQL 18 on, sessions are there before they have said whose they are: the judge's own as well.
            let sql = "SELECT concat_ws(' ', application_name, state, wait_event) FROM pg_stat_activity
                WHERE backend_type = 'client backend' AND application_name <> 'judge'
                AND state IS DISTINCT FROM 'starting'";
            while !end.load(Ordering::Relaxed) {
                let seen = judge.query(sql, &[]).await.unwrap();
                {
                    let mut longest = longest.lock().unwrap();
                    if seen.len() > longest.len() {
                        *longest = seen.iter().map(|row| row.get(0)).collect();
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { most, is_over, task }
    }

    /// The most that the server ever had, which is no more than the budget.
    async fn end(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let most = self.most.lock().unwrap();
        assert!(most.len() <= BUDGET, "the server saw {} sessions, and the budget is {BUDGET}: {most:#?}", most.len());
        most.len()
    }
}

const TENANTS: [&str; 4] = ["north", "east", "south", "west"];

/// Callers who come again and again, more than any share has room for. Ends with the number of calls that failed.
struct Load {
    callers: JoinSet<usize>,
    is_over: Arc<AtomicBool>,
}

impl Load {
    fn start(client: &Client) -> Self {
        let (mut callers, is_over) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
        for number in 0..60 {
            let (client, is_over) = (client.clone(), Arc::clone(&is_over));
            callers.spawn(async move {
                let mut failed = 0;
                while !is_over.load(Ordering::Relaxed) {
                    if client.execute(TENANTS[number % TENANTS.len()], "SELECT pg_sleep(0.05)").await.is_err() {
                        failed += 1;
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                failed
            });
        }
        Self { callers, is_over }
    }

    async fn end(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        self.callers.join_all().await.into_iter().sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_never_sees_more_than_the_budget_whoever_comes_and_goes() {
    let fleet = Fleet::new(spec()).await;
    // The load takes every place, and on a slow machine what the daemon asks for itself comes late.
    for part in ["shared database", "auth database"] {
        fleet.allow_log(part);
    }
    let watch = Watch::start(&fleet).await;
    let a = spawn(&fleet, "a");
    shares_become(&fleet, &[("a", WHOLE)]).await;
    for tenant in TENANTS {
        a.client.tenant(tenant).await;
    }
    let load_a = Load::start(&a.client);
    sessions_exceed(&fleet, "a", 20).await;

    // It joins while the other one has everything in use.
    let b = spawn(&fleet, "b");
    let load_b = Load::start(&b.client);
    shares_become(&fleet, &[("a", WHOLE / 2), ("b", WHOLE / 2)]).await;
    sessions_exceed(&fleet, "b", 5).await;
    let c = spawn(&fleet, "c");
    shares_become(&fleet, &[("a", WHOLE / 3), ("b", WHOLE / 3), ("c", WHOLE / 3)]).await;
    c.terminate().await;
    shares_become(&fleet, &[("a", WHOLE / 2), ("b", WHOLE / 2)]).await;
    assert_eq!(load_a.end().await, 0, "nobody is refused because another daemon came");

    let load_a = Load::start(&a.client);
    sessions_exceed(&fleet, "a", 5).await;
    a.kill();
    shares_become(&fleet, &[("b", WHOLE)]).await;
    assert_eq!(sessions(&fleet, "a").await, 0);
    sessions_exceed(&fleet, "b", 20).await;
    assert!(load_a.end().await > 0);
    assert_eq!(load_b.end().await, 0, "nobody is refused because another daemon went");
    b.terminate().await;
    shares_become(&fleet, &[]).await;
    let most = watch.end().await;
    assert!(most > BUDGET / 2, "the load was too small to tell anything");
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_gives_the_share_back_at_once() {
    // Nobody is taken to be dead in this test's time.
    let fleet = Fleet::new(spec().setting("[shares]", "take_over_after", "\"1h\"")).await;
    configure(&fleet, "a");
    let a = fleet.start().await;
    configure(&fleet, "b");
    let b = fleet.start().await;
    shares_become(&fleet, &[("a", WHOLE / 2), ("b", WHOLE / 2)]).await;
    a.stop().await;
    shares_become(&fleet, &[("b", WHOLE)]).await;
    fleet.stop(b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_daemon_has_a_name_of_its_own_or_is_the_only_one() {
    let fleet = Fleet::new(spec()).await;
    configure(&fleet, "a");
    let a = fleet.start().await;
    let refusal = fleet.start_refused().await;
    assert!(refusal.contains("another daemon named a has a share of the server main"), "{refusal}");
    fleet.configure(&[]);
    let refusal = fleet.start_refused().await;
    assert!(refusal.contains("the daemons a share the budget of the server main"), "{refusal}");
    shares_become(&fleet, &[("a", WHOLE)]).await;
    a.stop().await;

    let unnamed = fleet.start().await;
    configure(&fleet, "b");
    let refusal = fleet.start_refused().await;
    assert!(refusal.contains("a daemon without a name works on this fleet"), "{refusal}");
    shares_become(&fleet, &[]).await;
    fleet.configure(&[]);
    let refusal = fleet.start_refused().await;
    assert!(refusal.contains("another daemon without a name works on this fleet"), "{refusal}");
    unnamed.client.tenant("acme").await;
    assert_eq!(sessions(&fleet, "").await, 0);
    fleet.stop(unnamed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_daemon_without_a_name_ran_ends_with_it() {
    let fleet = Fleet::new(spec()).await;
    let daemon = fleet.spawn();
    daemon.client.tenant("acme").await;
    let mut calls = JoinSet::new();
    for _ in 0..3 {
        let client = daemon.client.clone();
        calls.spawn(async move { client.execute("acme", "SELECT pg_sleep(600)").await });
    }
    let running = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()";
        fleet.judge("postgres").await.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    until("they run", async || (running().await == 3).then_some(())).await;
    daemon.kill();
    // Nobody ends them but PostgreSQL.
    until("they have ended", async || (running().await == 0).then_some(())).await;
    calls.shutdown().await;
    let successor = fleet.spawn();
    successor.client.execute("acme", "SELECT 1").await.unwrap();
    successor.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_that_would_be_too_small_is_refused_with_what_would_do() {
    let fleet = Fleet::new(spec().setting("[[servers]]", "connections_max", "20")).await;
    configure(&fleet, "a");
    let a = fleet.start().await;
    shares_become(&fleet, &[("a", 16)]).await;
    configure(&fleet, "b");
    let refusal = fleet.start_refused().await;
    assert!(refusal.contains("a share has 8 connections, and one of them needs 9"), "{refusal}");
    assert!(refusal.contains("raise servers.main.connections_max to 22"), "{refusal}");
    shares_become(&fleet, &[("a", 16)]).await;
    fleet.stop(a).await;
}

#[tokio::test]
async fn a_configuration_that_cannot_share_is_refused_with_every_problem() {
    let fleet = Fleet::new(Spec::default()).await;
    let problems = |extra: &[(&'static str, &'static str, String)]| {
        fleet.configure(extra);
        tenantd::config::load(&fleet.config_file()).unwrap_err().to_string()
    };
    let text = problems(&[("", "instance", "\"no name\"".to_owned()), ("[shares]", "interval", "\"0s\"".to_owned())]);
    for problem in ["instance: \"no name\" is no name for a daemon", "shares.interval: may not be zero"] {
        assert!(text.contains(problem), "{text}");
    }
    let text = problems(&[
        ("", "instance", "\"a\"".to_owned()),
        ("[shares]", "take_over_after", "\"4s\"".to_owned()),
        ("[[servers]]", "connections_max", "26".to_owned()),
    ]);
    for problem in [
        "shares.take_over_after: 4s is less than router.connect_timeout (5s)",
        "servers.main.connections_max: with an instance at least 27 (20 reserved",
    ] {
        assert!(text.contains(problem), "{text}");
    }
    fleet.configure(&[]);
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smaller_configuration_counts_for_everybody() {
    let fleet = Fleet::new(spec()).await;
    let a = spawn(&fleet, "a");
    let b = spawn(&fleet, "b");
    shares_become(&fleet, &[("a", 18), ("b", 18)]).await;
    fleet.configure(&[
        ("", "instance", "\"b\"".to_owned()),
        ("[[servers]]", "connections_max", (BUDGET - 10).to_string()),
    ]);
    b.hang_up();
    shares_become(&fleet, &[("a", 13), ("b", 13)]).await;
    a.terminate().await;
    shares_become(&fleet, &[("b", 26)]).await;
    b.terminate().await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_daemon_that_is_told_to_go_while_it_starts_gives_its_share_back() {
    // Nobody takes over from it while this test runs.
    let fleet = Fleet::new(spec().setting("[shares]", "take_over_after", "\"10m\"")).await;
    let a = spawn(&fleet, "a");
    shares_become(&fleet, &[("a", WHOLE)]).await;
    let holder = fleet.judge(fleet.naming.auth_database().as_str()).await;
    holder.batch_execute("BEGIN; LOCK TABLE refinery_schema_history").await.unwrap();

    configure(&fleet, "b");
    let (b, address) = fleet.spawn_only();
    shares_become(&fleet, &[("a", WHOLE / 2), ("b", WHOLE / 2)]).await;
    b.signal("HUP");
    b.terminate().await;
    assert!(address.try_recv().is_err(), "it has begun to serve");
    shares_become(&fleet, &[("a", WHOLE)]).await;

    holder.batch_execute("ROLLBACK").await.unwrap();
    a.terminate().await;
    shares_become(&fleet, &[]).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_daemon_that_cannot_write_the_first_key_gives_its_share_back() {
    let fleet = Fleet::new(spec().setting("[shares]", "take_over_after", "\"10m\"")).await;
    std::fs::create_dir(fleet.admin_key_file()).unwrap();
    configure(&fleet, "a");
    let (_daemon, address) = fleet.spawn_only();
    assert!(address.recv_timeout(Duration::from_mins(1)).is_err(), "it has begun to serve");
    assert_eq!(shares(&fleet).await, []);
    fleet.finish().await;
}
