//! The same point selects over open streams, against PgBouncer in transaction mode under pgbench: as many statements on
//! their way, to the same table, with as many connections to it. Our callers are tasks of one program that share a few
//! streams, as a program's are: what is asked meanwhile travels together.

use std::time::Duration;

use tenantd::proto::v1::value::Kind;
use tenantd::proto::v1::{PipelineStatement, Value};

use super::execute::{CALLERS, POINT_SELECT};
use crate::callers::{Channels, single};
use crate::fleet::Tenant;
use crate::load::{Caller, Sample, closed_loop, median};
use crate::pipeline::Pipeline;
use crate::pooler::{ACCOUNTS, Pooler, accounts, pgbench};
use crate::report::{Goal, Report, per_second};
use crate::stage::{POOL_CONNECTIONS_MAX, Stage};

/// As few as a program has.
pub const STREAMS: usize = 2;
const PAIRS: usize = 5;
const SLICE: Duration = Duration::from_secs(3);

/// Asks for an account.
struct Selector {
    pipeline: Pipeline,
    tenant: String,
}

impl Caller for Selector {
    async fn call(&mut self) -> Result<(), String> {
        let account = Value { kind: Some(Kind::Int64Value(rand::random_range(1..=ACCOUNTS))) };
        let statement = PipelineStatement {
            tenant: self.tenant.clone(),
            sql: POINT_SELECT.to_owned(),
            parameters: vec![account],
            omit_columns: true,
            ..PipelineStatement::default()
        };
        match single(&self.pipeline.execute(statement).await?).as_deref() {
            Some("0") => Ok(()),
            other => Err(format!("{other:?} is no balance")),
        }
    }
}

/// pgbench's statements per second, with the faster one of its two usual protocols.
#[derive(Debug, Clone, Copy)]
struct Theirs {
    simple: f64,
    extended: f64,
}

impl Theirs {
    async fn measure(pooler: &Pooler, tenant: &Tenant) -> Self {
        let rate = async |mode: &str| {
            let (clients, seconds) = (CALLERS.to_string(), SLICE.as_secs().to_string());
            let arguments = ["-S", "-n", "-M", mode, "-c", &clients, "-j", "2", "-T", &seconds];
            let (succeeded, text) = pgbench(pooler.port, &pooler.login, tenant.database.as_str(), &arguments).await;
            assert!(succeeded, "{text}");
            statements_per_second(&text)
        };
        Self { simple: rate("simple").await, extended: rate("extended").await }
    }

    fn best(self) -> f64 {
        self.simple.max(self.extended)
    }
}

pub async fn run(stage: &Stage, report: &mut Report) {
    let tenant = &stage.fleet.tenants(stage, 1).await[0];
    accounts(stage, tenant).await;
    let daemon = stage.daemon();
    let channels = Channels::open(daemon.address, &daemon.key, STREAMS).await;
    let mut pipelines = Vec::new();
    for number in 0..STREAMS {
        pipelines.push(Pipeline::open(&channels, number).await);
    }
    let pooler = Pooler::start(stage, POOL_CONNECTIONS_MAX).await;
    let caller =
        |number: usize| Selector { pipeline: pipelines[number % STREAMS].clone(), tenant: tenant.code.to_string() };
    closed_loop((0..CALLERS).map(caller), SLICE).await;
    let (mut ours, mut theirs, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let before = daemon.process.cpu();
        let our = closed_loop((0..CALLERS).map(caller), SLICE).await;
        cpu.push((daemon.process.cpu() - before) * 1e6 / our.latencies.len() as f64);
        report.errors("open streams", &our);
        ours.push(our);
        theirs.push(Theirs::measure(&pooler, tenant).await);
    }
    let middle = |figure: fn(&Theirs) -> f64| per_second(median(theirs.iter().map(figure)));
    report.line(
        "point select, 32 on their way over open streams: statements",
        &per_second(median(ours.iter().map(Sample::rate))),
        &format!("{} under pgbench -S, {}", pooler.version, middle(|their| their.best())),
        median(ours.iter().zip(&theirs).map(|(our, their)| our.rate() / their.best())),
        "×",
        Goal::AtLeast(1.0),
    );
    report.note(format!(
        "open streams: {CALLERS} callers share {STREAMS} streams, p99 {:.2} ms; PgBouncer {} with the simple protocol, {} with \
         the extended one; CPU of the daemon per statement {:.1} µs; bound by PostgreSQL",
        median(ours.iter().map(Sample::p99)),
        middle(|their| their.simple),
        middle(|their| their.extended),
        median(cpu),
    ));
    drop(pipelines);
    daemon.process.terminate().await;
}

/// From pgbench's last lines.
fn statements_per_second(text: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap_or_else(|| panic!("{text}"));
    found.split(' ').next().unwrap().parse().unwrap()
}
