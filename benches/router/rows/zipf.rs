//! Many tenants, few connections: 64 callers ask for tenants by Zipf's law, under a budget of 100 connections, against
//! PgBouncer in transaction mode with the same cap, and against the best that any policy could do: first each side as much
//! as it answers, then both as much as PgBouncer can answer.
//!
//! PgBouncer's cap over databases is per user, so all its databases are asked as one user. Its callers are the same
//! program over tokio-postgres (one round trip per statement), and their sessions to it stay open. Ours share a few open
//! streams, on which the statements of all tenants travel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use tokio_postgres::types::Type;

use super::Pairs;
use super::stream::STREAMS;
use crate::callers::{Channels, single};
use crate::fleet::{THINGS, Tenant};
use crate::load::{Caller, Sample, closed_loop, closed_loop_after, median, open_loop};
use crate::pipeline::Pipeline;
use crate::pooler::{Pooler, ROLE, Sessions};
use crate::report::{Goal, Report, per_second};
use crate::stage::{BUDGET, Stage, connect};
use crate::zipf::Zipf;
use tenantd::proto::v1::value::Kind;
use tenantd::proto::v1::{PipelineStatement, Value};

const CALLERS: usize = 64;
/// The daemon is a fresh one, and learns whom to keep from what is asked of it (its rates have a half-life of 30 s);
/// PgBouncer has nothing to learn.
const WARM_UP_OURS: Duration = Duration::from_secs(40);
const WARM_UP_THEIRS: Duration = Duration::from_secs(4);
/// Both sides take turns, each with the connections that it had when its last turn ended.
const SLICE: Duration = Duration::from_secs(6);
const ROLL_IN: Duration = Duration::from_millis(1_500);
const PAIRS: usize = 9;
/// In a closed loop who answers hot calls sooner is asked more, for the rest as well, so that its latencies are those of
/// a higher load. At the same load both are offered this part of what PgBouncer reached in a closed loop: enough that it
/// is busy, and not so much that its queue grows for as long as it is measured.
const SAME_LOAD: f64 = 0.8;
const PAIRS_SAME: usize = 5;
/// A connection more or less in use for making another: what the best policy could keep.
const KEPT: usize = BUDGET as usize - 2;
/// The answer says which database gave it.
const SQL: &str = "SELECT current_database()::text || ' ' || name FROM things WHERE id = $1";
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
const EMPTY_MAX: Duration = Duration::from_secs(30);
const CONNECTS: usize = 600;
const CONNECTS_PARALLEL: usize = 4;

fn wish(tenants: &[Tenant], zipf: &Zipf) -> (usize, i64, String) {
    let (number, id) = (zipf.draw(), rand::random_range(1..=THINGS));
    (number, id, format!("{} thing {id}", tenants[number].database.as_str()))
}

fn checked(found: Option<&str>, wanted: &str) -> Result<(), String> {
    if found == Some(wanted) { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}")) }
}

/// Asks the daemon.
struct Ours {
    pipeline: Pipeline,
    tenants: Arc<[Tenant]>,
    zipf: Arc<Zipf>,
}

impl Caller for Ours {
    async fn call(&mut self) -> Result<(), String> {
        let (number, id, wanted) = wish(&self.tenants, &self.zipf);
        let statement = PipelineStatement {
            tenant: self.tenants[number].code.to_string(),
            sql: SQL.to_owned(),
            parameters: vec![Value { kind: Some(Kind::Int64Value(id)) }],
            omit_columns: true,
            ..PipelineStatement::default()
        };
        checked(single(&self.pipeline.execute(statement).await?).as_deref(), &wanted)
    }
}

/// Asks PgBouncer.
struct Theirs {
    sessions: Sessions,
    tenants: Arc<[Tenant]>,
    zipf: Arc<Zipf>,
}

impl Caller for Theirs {
    async fn call(&mut self) -> Result<(), String> {
        let (number, id, wanted) = wish(&self.tenants, &self.zipf);
        let database = self.tenants[number].database.as_str();
        let client = self.sessions.take(database).await?;
        let rows = client.query_typed(SQL, &[(&id, Type::INT8)]).await.map_err(|error| format!("{error:?}"))?;
        self.sessions.put(database, client);
        checked(rows.first().map(|row| row.get(0)), &wanted)
    }
}

pub async fn run(stage: &Stage, report: &mut Report, count: usize) {
    let tenants = stage.fleet.tenants(stage, count).await;
    let zipf = Arc::new(Zipf::new(count));
    connect_to_each(stage, &tenants).await;
    let watch = Watch::begin(stage).await;

    let daemon = stage.daemon();
    let channels = Channels::open(daemon.address, &daemon.key, STREAMS).await;
    let mut pipelines = Vec::new();
    for number in 0..STREAMS {
        pipelines.push(Pipeline::open(&channels, number).await);
    }
    let our_caller = |number: usize| Ours {
        pipeline: pipelines[number % STREAMS].clone(),
        tenants: Arc::clone(&tenants),
        zipf: Arc::clone(&zipf),
    };
    closed_loop((0..CALLERS).map(our_caller), WARM_UP_OURS).await;
    let pooler = Arc::new(Pooler::start(stage, 20).await);
    let version = pooler.version.clone();
    let sessions = Sessions::new(&pooler);
    prepare(&sessions, &tenants).await;
    let their_caller =
        |_number| Theirs { sessions: sessions.clone(), tenants: Arc::clone(&tenants), zipf: Arc::clone(&zipf) };
    closed_loop((0..CALLERS).map(their_caller), WARM_UP_THEIRS).await;

    let mut connects = Vec::new();
    let full = Pairs::take(
        PAIRS,
        async || closed_loop_after((0..CALLERS).map(our_caller), ROLL_IN, SLICE).await,
        async || closed_loop_after((0..CALLERS).map(their_caller), ROLL_IN, SLICE).await,
        async || connects.push(connects_per_second(stage, &tenants).await),
    )
    .await;
    let load = SAME_LOAD * full.theirs(Sample::rate);
    let same = Pairs::take(
        PAIRS_SAME,
        async || open_loop((0..CALLERS).map(our_caller), load, ROLL_IN, SLICE).await,
        async || open_loop((0..CALLERS).map(their_caller), load, ROLL_IN, SLICE).await,
        async || (),
    )
    .await;
    let name = format!("{count} tenants, Zipf, budget {BUDGET}");
    report_full(report, &name, &version, &full, &zipf, &connects);
    report_same(report, &name, &version, &same, load);
    watch.tell(report, &name, &version);
    let ours = || full.ours.iter().chain(&same.ours);
    let errors: usize = ours().map(|sample| sample.error_count).sum();
    report.line(&format!("{name}: failed calls"), &errors.to_string(), "", errors as f64, "", Goal::AtMost(0.0));
    for sample in ours() {
        report.errors(&name, sample);
    }
    for sample in full.theirs.iter().chain(&same.theirs) {
        report.errors("PgBouncer", sample);
    }
    drop(pipelines);
    daemon.process.terminate().await;
    drop((sessions, pooler));
    watch.until_empty().await;
}

/// As many statements as either side answers.
fn report_full(report: &mut Report, name: &str, version: &str, full: &Pairs, zipf: &Zipf, connects: &[f64]) {
    let goal = if zipf.count() <= 300 { 1.7 } else { 1.2 };
    report.line(
        &format!("{name}: statements"),
        &per_second(full.ours(Sample::rate)),
        &format!("{version}, {}", per_second(full.theirs(Sample::rate))),
        full.ratio(Sample::rate),
        "×",
        Goal::AtLeast(goal),
    );
    report.line(
        &format!("{name}: p99 of as many as each answers"),
        &format!("{:.0} ms", full.ours(Sample::p99)),
        &format!("{version}, {:.0} ms", full.theirs(Sample::p99)),
        full.ratio(Sample::p99),
        "×",
        Goal::AtMost(1.0),
    );
    let missed = 1.0 - zipf.share(KEPT);
    let of_the_best = median(full.ours.iter().zip(connects).map(|(our, connects)| our.rate() * missed / connects));
    let connects = median(connects.iter().copied());
    report.line(
        &format!("{name}: of the best"),
        &per_second(full.ours(Sample::rate)),
        &format!("{} = {connects:.0} connects/s ÷ {missed:.3}", per_second(connects / missed)),
        of_the_best,
        "×",
        Goal::AtLeast(0.8),
    );
    report.note(format!(
        "{name}: p50 {:.1} ms against {:.1} ms; bound by how fast PostgreSQL starts backends (the best: {connects:.0} \
         connects/s with nothing else to do, divided by the part of calls to other than the {KEPT} most popular tenants)",
        full.ours(Sample::p50),
        full.theirs(Sample::p50)
    ));
}

/// As many statements as both sides can answer.
fn report_same(report: &mut Report, name: &str, version: &str, same: &Pairs, load: f64) {
    report.line(
        &format!("{name}: p99 at the same load"),
        &format!("{:.0} ms at {}", same.ours(Sample::p99), per_second(load)),
        &format!("{version}, {:.0} ms", same.theirs(Sample::p99)),
        same.ratio(Sample::p99),
        "×",
        Goal::AtMost(1.0),
    );
    report.note(format!(
        "{name}, the same load: {load:.0} statements/s at random moments, {SAME_LOAD} of what {version} answered at most; \
         latencies count from when a statement was due; p50 {:.1} ms against {:.1} ms",
        same.ours(Sample::p50),
        same.theirs(Sample::p50)
    ));
}

/// Each tenant's first session to PgBouncer, which it opens only once it has one to the server.
async fn prepare(sessions: &Sessions, tenants: &[Tenant]) {
    stream::iter(tenants)
        .for_each_concurrent(16, |tenant| async move {
            let database = tenant.database.as_str();
            let client = sessions.take(database).await.unwrap();
            sessions.put(database, client);
        })
        .await;
    assert_eq!(sessions.count(), tenants.len());
}

/// A session that asks once and ends.
async fn connect_once(stage: &Stage, tenant: &Tenant) {
    let client = connect(&stage.cluster, &tenant.login, tenant.database.as_str()).await;
    client.query_typed(SQL, &[(&1_i64, Type::INT8)]).await.unwrap();
}

/// A database's first session since the server's start writes its catalog cache's file, which takes as long as several
/// connects: that is nobody's.
async fn connect_to_each(stage: &Stage, tenants: &[Tenant]) {
    stream::iter(tenants).for_each_concurrent(CONNECTS_PARALLEL, |tenant| connect_once(stage, tenant)).await;
}

/// How many sessions PostgreSQL opens, asks once and ends in a second.
async fn connects_per_second(stage: &Stage, tenants: &[Tenant]) -> f64 {
    let wave = |count: usize| {
        let some: Vec<_> = (0..count).map(|_| &tenants[rand::random_range(0..tenants.len())]).collect();
        stream::iter(some).for_each_concurrent(CONNECTS_PARALLEL, |tenant| connect_once(stage, tenant))
    };
    wave(CONNECTS / 4).await;
    let began = Instant::now();
    wave(CONNECTS).await;
    CONNECTS as f64 / began.elapsed().as_secs_f64()
}

/// Counts the sessions of both sides in tenants' databases, as the server sees them.
struct Watch {
    now: Arc<AtomicI64>,
    ours: Arc<AtomicI64>,
    theirs: Arc<AtomicI64>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    async fn begin(stage: &Stage) -> Self {
        let judge = stage.judge("postgres").await;
        let watch = Self { now: Arc::default(), ours: Arc::default(), theirs: Arc::default(), stop: Arc::default() };
        let Self { now, ours, theirs, stop } = &watch;
        let (now, ours, theirs, stop) = (Arc::clone(now), Arc::clone(ours), Arc::clone(theirs), Arc::clone(stop));
        tokio::spawn(async move {
            let sql = "SELECT count(*) FILTER (WHERE application_name = datname OR application_name LIKE 'tenantd %'), \
                              count(*) FILTER (WHERE usename = $1), count(*) \
                       FROM pg_stat_activity WHERE datname LIKE 'bench\\_t%'";
            let statement = judge.prepare(sql).await.unwrap();
            while !stop.load(Ordering::Relaxed) {
                let counts = judge.query_one(&statement, &[&ROLE]).await.unwrap();
                ours.fetch_max(counts.get(0), Ordering::Relaxed);
                theirs.fetch_max(counts.get(1), Ordering::Relaxed);
                now.store(counts.get(2), Ordering::Relaxed);
                tokio::time::sleep(SAMPLE_INTERVAL).await;
            }
        });
        watch
    }

    fn tell(&self, report: &mut Report, name: &str, version: &str) {
        let (ours, theirs) = (self.ours.load(Ordering::Relaxed), self.theirs.load(Ordering::Relaxed));
        report.line(
            &format!("{name}: connections"),
            &format!("at most {ours}"),
            &format!("{version}, at most {theirs}"),
            ours as f64,
            "",
            Goal::AtMost(BUDGET.into()),
        );
    }

    /// Awaits that nobody is left from before.
    async fn until_empty(&self) {
        let deadline = Instant::now() + EMPTY_MAX;
        tokio::time::sleep(2 * SAMPLE_INTERVAL).await;
        while self.now.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < deadline, "sessions do not end");
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
