//! Servers that stop, freeze and lose sessions under load. The judge is the server's own list of sessions: never more
//! than the budget, nothing left in a transaction, no commit that was told and did not happen, and no answer from
//! another tenant's database.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream;
use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::transact_response::Outcome;
use tenantd::proto::v1::{
    CommitTransaction, IsolationLevel, StatementError, TransactRequest, TransactResponse, TransactionStatement,
};
use tenantd::query::{Begin, Session};
use tenantd::router::{Error, Residue};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::breakers::names_nobody_else;
use super::{Watch, all_places_come_back, nothing_is_left_open, small_budget, soon};
use crate::harness::{Machine, Spec, signal, until};
use crate::tenants::{Made, Rooms};

/// Callers of several tenants, each asking again and again whose database it is in, and counting in transactions.
struct Load {
    calls: JoinSet<()>,
    over: Arc<AtomicBool>,
    done: Arc<Done>,
}

/// What the callers know.
#[derive(Debug, Default)]
struct Done {
    good: AtomicUsize,
    committed: AtomicUsize,
    /// Transactions whose end nobody told them.
    uncertain: AtomicUsize,
}

impl Load {
    async fn start(rooms: &Arc<Rooms>, tenants: &[Made], callers: usize) -> Self {
        for tenant in tenants {
            let inside = rooms.fleet.judge(&tenant.database).await;
            let sql = "CREATE TABLE counter (n bigint); INSERT INTO counter VALUES (0); \
                       GRANT SELECT, UPDATE ON counter TO PUBLIC; GRANT USAGE ON SCHEMA public TO PUBLIC";
            inside.batch_execute(sql).await.unwrap();
        }
        let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(Done::default()));
        let mut calls = JoinSet::new();
        for number in 0..callers {
            let (rooms, tenant) = (Arc::clone(rooms), tenants[number % tenants.len()].clone());
            let (over, done) = (Arc::clone(&over), Arc::clone(&done));
            calls.spawn(async move {
                let mut kind = number;
                while !over.load(Ordering::Relaxed) {
                    kind += 1;
                    let called = match kind % 4 {
                        0 => count(&rooms, &tenant, true, &done).await,
                        1 => count(&rooms, &tenant, false, &done).await,
                        _ => call(&rooms, &tenant).await,
                    };
                    match called {
                        Ok(true) => drop(done.good.fetch_add(1, Ordering::Relaxed)),
                        Ok(false) => {}
                        Err(error) => {
                            assert!(error.is_transient(), "{error}");
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
            });
        }
        Self { calls, over, done }
    }

    fn good(&self) -> usize {
        self.done.good.load(Ordering::Relaxed)
    }

    /// Awaits so many more calls that succeed.
    async fn goes_on(&self, count: usize) {
        let enough = self.good() + count;
        until("calls succeed", async || (self.good() >= enough).then_some(())).await;
    }

    async fn end(mut self) -> Arc<Done> {
        self.over.store(true, Ordering::Relaxed);
        while let Some(done) = self.calls.join_next().await {
            done.unwrap();
        }
        self.done
    }
}

impl Done {
    /// What was counted is what was committed, and not a transaction that was left.
    async fn is_true(&self, rooms: &Rooms, tenants: &[Made]) {
        let mut counted = 0;
        for tenant in tenants {
            let inside = rooms.fleet.judge(&tenant.database).await;
            counted += inside.query_one("SELECT n FROM counter", &[]).await.unwrap().get::<_, i64>(0);
        }
        let known = |counter: &AtomicUsize| i64::try_from(counter.load(Ordering::Relaxed)).unwrap();
        let committed = known(&self.committed);
        assert!(
            (committed..=committed + known(&self.uncertain)).contains(&counted),
            "{counted} were counted: {self:?}"
        );
    }
}

/// A transaction that counts one, as Transact runs it. Its caller commits, or goes away before that.
async fn count(rooms: &Rooms, tenant: &Made, commits: bool, done: &Done) -> Result<bool, Error> {
    let session = Session::Tenant(rooms.lease(tenant).await?);
    let sql = "UPDATE public.counter SET n = n + 1".to_owned();
    let update = Action::Execute(TransactionStatement { sql, ..TransactionStatement::default() });
    let actions = std::iter::once(update).chain(commits.then_some(Action::Commit(CommitTransaction {})));
    let requests = actions.map(|action| Ok::<_, Infallible>(TransactRequest { action: Some(action) }));
    let begin = Begin { isolation: IsolationLevel::Unspecified, read_only: false, user: None };
    let (answers, mut outcomes) = mpsc::channel(4);
    let explain = |_error| StatementError::default();
    let ran = rooms.queries.transact(session, begin, stream::iter(requests), &answers, explain).await;
    let mut is_committed = false;
    while let Ok(Ok(TransactResponse { outcome })) = outcomes.try_recv() {
        is_committed |= matches!(outcome, Some(Outcome::Committed(_)));
    }
    if commits {
        let counter = if is_committed { &done.committed } else { &done.uncertain };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    Ok(ran.is_ok())
}

/// Whether the statement succeeded: it may be cut off, and then the connection is not given back.
async fn call(rooms: &Rooms, tenant: &Made) -> Result<bool, Error> {
    let lease = rooms.lease(tenant).await?;
    let Ok(row) = lease.query_one("SELECT current_database()::text", &[]).await else { return Ok(false) };
    assert_eq!(row.get::<_, String>(0), tenant.database);
    lease.release(Residue::Nothing);
    Ok(true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_that_are_ended_at_random_are_replaced() {
    let rooms = Arc::new(Rooms::new(small_budget()).await);
    let tenants = rooms.tenants(4).await;
    let watch = Watch::start(&rooms).await;
    let load = Load::start(&rooms, &tenants, 12).await;
    let judge = rooms.fleet.judge("postgres").await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE starts_with(application_name, $1 || '_') ORDER BY random() LIMIT 1";
    let prefix = rooms.config.naming.prefix();
    for _ in 0..100 {
        judge.execute(end, &[&prefix]).await.unwrap();
        load.goes_on(1).await;
    }
    let done = load.end().await;
    // Not one of them was taken for the server's or a tenant's fault.
    for tenant in &tenants {
        call(&rooms, tenant).await.unwrap();
        let errors = rooms.router.stats(tenant.id).errors;
        assert!(errors.iter().all(|(cause, _)| cause.name() != "blocked"), "{errors:?}");
    }
    assert!(watch.end().await <= 6);
    nothing_is_left_open(&rooms.fleet).await;
    done.is_true(&rooms, &tenants).await;
    Arc::into_inner(rooms).unwrap().finish().await;
}

/// The postmaster, whose children are all other processes of the server.
async fn postmaster(rooms: &Rooms) -> u32 {
    let judge = rooms.fleet.judge("postgres").await;
    let file: String = judge.query_one("SELECT pg_read_file('postmaster.pid')", &[]).await.unwrap().get(0);
    file.lines().next().unwrap().parse().unwrap()
}

/// A process with those that it has begun.
fn family(parent: u32) -> Vec<u32> {
    let children = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        let after = stat.rsplit_once(") ")?.1;
        (after.split(' ').nth(1)? == parent.to_string()).then_some(pid)
    });
    std::iter::once(parent).chain(children).collect()
}

/// Processes that stand still while this lives.
pub struct Frozen(Vec<u32>);

impl Frozen {
    pub fn new(processes: Vec<u32>) -> Self {
        Self::tell("STOP", &processes);
        Self(processes)
    }
}

impl Frozen {
    /// Some may have ended by themselves since they were listed: nobody tells a backend to wait for this.
    fn tell(name: &str, processes: &[u32]) {
        let all = processes.iter().map(u32::to_string);
        let _some_have_gone = std::process::Command::new("kill").args(["-s", name]).args(all).status().unwrap();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        Self::tell("CONT", &self.0);
    }
}

/// A server of the test's own.
fn own_server() -> Spec {
    let spec = small_budget().setting("[router]", "route_age_max", "\"10m\"");
    Spec { machine: Some(Machine::with_room_for(60)), ..spec }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_and_starts_again_is_used_again() {
    let rooms = Arc::new(Rooms::new(own_server()).await);
    rooms.fleet.allow_log("the server takes no connections");
    rooms.fleet.allow_log("the shared database cannot be followed");
    let tenants = rooms.tenants(3).await;
    let load = Load::start(&rooms, &tenants, 9).await;
    load.goes_on(20).await;
    let watch = Watch::start(&rooms).await;
    // A backend that is killed takes all others with it, and the server recovers before it takes new ones.
    let judge = rooms.fleet.judge("postgres").await;
    // The tests' clusters do not wait for the disk at a commit, and the tenants are to be there afterwards.
    judge.batch_execute("CHECKPOINT").await.unwrap();
    let victim: i32 = judge.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    signal("KILL", u32::try_from(victim).unwrap());
    until("the judge has lost its session", async || judge.is_closed().then_some(())).await;
    load.goes_on(50).await;
    load.end().await;
    until("the server takes superusers again", async || {
        let judge = rooms.fleet.machine.try_judge("postgres").await;
        judge.is_ok().then_some(())
    })
    .await;
    for tenant in &tenants {
        until("each tenant is reached again", async || call(&rooms, tenant).await.ok()).await;
    }
    assert!(watch.end().await <= 6);
    nothing_is_left_open(&rooms.fleet).await;
    Arc::into_inner(rooms).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_and_started_is_used_again() {
    let rooms = Arc::new(Rooms::new(own_server()).await);
    rooms.fleet.allow_log("the server takes no connections");
    rooms.fleet.allow_log("the shared database cannot be followed");
    let tenants = rooms.tenants(3).await;
    let load = Load::start(&rooms, &tenants, 9).await;
    load.goes_on(20).await;
    let watch = Watch::start(&rooms).await;
    rooms.fleet.machine.server_stop().await;
    // Where it was looked for.
    let place = format!("{}:{}", rooms.fleet.machine.host, rooms.fleet.machine.port);
    let refusal = until("the server is taken to be away", async || match call(&rooms, &tenants[0]).await {
        // At first it may say that it is about to stop.
        Err(error) if matches!(error, Error::Blocked { .. }) && error.to_string().contains(&place) => Some(error),
        Err(error) => {
            assert!(error.is_transient(), "{error}");
            names_nobody_else(&rooms, &tenants[0], &error);
            None
        }
        // Sessions that ended with the server are found one by one.
        Ok(was_answered) => {
            assert!(!was_answered, "a server that has stopped has answered");
            None
        }
    })
    .await;
    // Which one, and when to come again.
    assert!(refusal.to_string().contains(rooms.server.name()), "{refusal}");
    assert!(refusal.retry_after().is_some());
    rooms.fleet.machine.server_start().await;
    load.goes_on(50).await;
    for tenant in &tenants {
        until("each tenant is reached again", async || call(&rooms, tenant).await.ok().filter(|good| *good)).await;
    }
    let done = load.end().await;
    assert!(watch.end().await <= 6);
    nothing_is_left_open(&rooms.fleet).await;
    done.is_true(&rooms, &tenants).await;
    Arc::into_inner(rooms).unwrap().finish().await;
}

/// A caller of each tenant, who comes again and again.
struct Crowd {
    callers: JoinSet<()>,
    over: Arc<AtomicBool>,
    heard: Arc<[Heard]>,
}

/// How often one of them was served and refused.
#[derive(Debug, Default)]
struct Heard {
    served: AtomicUsize,
    refused: AtomicUsize,
}

impl Crowd {
    fn start(rooms: &Arc<Rooms>, tenants: &[Made]) -> Self {
        let (mut callers, over) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
        let heard: Arc<[Heard]> = tenants.iter().map(|_| Heard::default()).collect();
        for (number, tenant) in tenants.iter().enumerate() {
            let (rooms, tenant) = (Arc::clone(rooms), tenant.clone());
            let (over, heard) = (Arc::clone(&over), Arc::clone(&heard));
            callers.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    match call(&rooms, &tenant).await {
                        Ok(true) => heard[number].served.fetch_add(1, Ordering::SeqCst),
                        Ok(false) => continue,
                        Err(error) => {
                            assert!(error.is_transient(), "{error}");
                            heard[number].refused.fetch_add(1, Ordering::SeqCst)
                        }
                    };
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
        Self { callers, over, heard }
    }

    fn served(&self) -> usize {
        self.heard.iter().filter(|heard| heard.served.load(Ordering::SeqCst) > 0).count()
    }

    fn refused(&self) -> usize {
        self.heard.iter().filter(|heard| heard.refused.load(Ordering::SeqCst) > 0).count()
    }

    async fn end(mut self) {
        self.over.store(true, Ordering::Relaxed);
        while let Some(done) = self.callers.join_next().await {
            done.unwrap();
        }
    }
}

/// Statements that go on, whoever cancels them, until this is dropped: their backends stand still.
struct Stubborn {
    callers: JoinSet<()>,
    judge: tokio_postgres::Client,
    backends: Frozen,
}

impl Stubborn {
    async fn start(rooms: &Arc<Rooms>, tenant: &Made, count: usize) -> Self {
        let (mut callers, judge) = (JoinSet::new(), rooms.fleet.judge(&tenant.database).await);
        for _ in 0..count {
            let lease = until("there is a connection", async || rooms.lease(tenant).await.ok()).await;
            callers.spawn(async move { drop(lease.batch_execute("SELECT pg_sleep(600)").await) });
        }
        // Who sleeps holds no lock of the server's that others would wait for.
        let backends = until("they run", async || {
            let backends = Self::sleeping(&judge).await;
            (backends.len() == count).then_some(backends)
        })
        .await;
        Self { callers, judge, backends: Frozen::new(backends) }
    }

    async fn sleeping(judge: &tokio_postgres::Client) -> Vec<u32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
        let rows = judge.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| u32::try_from(row.get::<_, i32>(0)).unwrap()).collect()
    }

    fn has(&self, process: u32) -> bool {
        self.backends.0.contains(&process)
    }

    /// How many of them are there.
    async fn running(&self) -> usize {
        Self::sleeping(&self.judge).await.len()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_and_thaws_never_sees_too_many() {
    let mut spec = own_server();
    for (name, value) in
        [("acquire_timeout", "300ms"), ("connect_timeout", "300ms"), ("connection_idle_timeout", "500ms")]
    {
        spec = spec.setting("[router]", name, &format!("{value:?}"));
    }
    // Fourteen places for tenants.
    let rooms = Arc::new(Rooms::new(spec.setting("[[servers]]", "connections_max", "30")).await);
    rooms.fleet.allow_log("the server takes no connections");
    rooms.fleet.allow_log("the shared database cannot be followed");
    let tenants = rooms.tenants(23).await;
    let (hot, others) = tenants.split_at(2);
    let (stubborn, cold) = others.split_first().unwrap();
    for tenant in cold {
        until("each is reached", async || call(&rooms, tenant).await.ok()).await;
    }
    // Pools that know how to connect, and have no connection.
    until("the cold ones have gone", async || {
        let idle = cold.iter().map(|tenant| rooms.router.pool(tenant.id).map_or(0, |pool| pool.idle)).sum::<usize>();
        (idle == 0).then_some(())
    })
    .await;
    let watch = Watch::start(&rooms).await;
    let mut abandoned = Stubborn::start(&rooms, stubborn, 6).await;
    // So few that places are left, and not one more for a connection that takes its time to be cleaned: those of frozen
    // sessions are not given to anybody else, and each that is left makes the block longer.
    let connections_max = |max| {
        rooms.limits(|limits| limits.tiers.values_mut().for_each(|tier| tier.pool_connections_max = max));
    };
    connections_max(1);
    let load = Load::start(&rooms, hot, 2).await;
    load.goes_on(20).await;
    let processes = family(postmaster(&rooms).await).into_iter().filter(|process| !abandoned.has(*process));
    let frozen = Frozen::new(processes.collect());
    // E6: whoever needs a new connection hears of it within the one deadline, and soon at once.
    let refusal = until("the server is taken to be away", async || match call(&rooms, &cold[0]).await {
        Err(error @ Error::Blocked { .. }) => Some(error),
        Err(error) => {
            assert!(error.is_transient(), "{error}");
            None
        }
        Ok(_) => panic!("a frozen server has answered"),
    })
    .await;
    assert!(refusal.retry_after().is_some());
    // Many want the places of those who have left, whose statements the server does not end.
    abandoned.callers.shutdown().await;
    let crowd = Crowd::start(&rooms, cold);
    until("each is refused", async || (crowd.refused() == cold.len()).then_some(())).await;
    assert_eq!(crowd.served(), 0, "a frozen server has answered");
    connections_max(10);
    drop(frozen);
    until("each tenant is reached again", async || (crowd.served() == cold.len()).then_some(())).await;
    load.goes_on(50).await;
    assert_eq!(abandoned.running().await, 6, "their places are still in use");
    drop(abandoned);
    crowd.end().await;
    let done = load.end().await;
    nothing_is_left_open(&rooms.fleet).await;
    let most = watch.end().await;
    assert!((7..=14).contains(&most), "the server saw {most} sessions, and the budget has 14 for tenants");
    done.is_true(&rooms, hot).await;
    all_places_come_back(&rooms, &tenants, 14).await;
    Arc::into_inner(rooms).unwrap().finish().await;
}

#[tokio::test]
async fn a_database_that_does_not_say_whose_it_is_keeps_no_other_tenant_waiting() {
    let spec = Spec::default()
        .setting("[[servers]]", "connects_parallel_max", "1")
        .setting("[router]", "connect_timeout", "\"5s\"")
        .setting("[router]", "statement_timeout", "\"10m\"");
    let rooms = Rooms::new(spec).await;
    let (acme, beta) = (rooms.tenant("acme").await, rooms.tenant("beta").await);
    let mut judge = rooms.fleet.judge(&acme.database).await;
    let lock = judge.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE tenantd.identity IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let (router, tenant) = (rooms.router.clone(), acme.id);
    let stuck = tokio::spawn(async move { router.acquire(tenant, soon()).await });
    rooms.sessions_become(1).await;
    until("the other tenant is served", async || rooms.call(&beta).await.ok()).await;
    let refusal = stuck.await.unwrap().unwrap_err();
    assert!(matches!(&refusal, Error::Connect { .. }) && refusal.is_transient(), "{refusal}");
    lock.rollback().await.unwrap();
    until("it says it again", async || rooms.call(&acme).await.ok()).await;
    rooms.finish().await;
}
