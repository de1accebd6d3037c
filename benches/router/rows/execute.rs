//! Execute, a point select, one call for each, against a bare handler over a deadpool pool: the same statement, prepared
//! once per connection on both sides, in the same database, with as many connections.

use secrecy::ExposeSecret as _;

use super::{CHANNELS, Side, in_turns};
use crate::bare;
use crate::callers::{Channels, Querier, single};
use crate::fleet::Tenant;
use crate::load::{Caller, Sample};
use crate::pooler::{ACCOUNTS, accounts};
use crate::report::{Goal, Report, per_second};
use crate::stage::{POOL_CONNECTIONS_MAX, Stage};

pub const CALLERS: usize = 32;
/// As `pgbench -S` has it.
pub const POINT_SELECT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = $1";

/// Asks for an account.
struct Selector {
    querier: Querier,
    tenant: String,
}

impl Caller for Selector {
    async fn call(&mut self) -> Result<(), String> {
        let account = rand::random_range(1..=ACCOUNTS);
        let answer = self.querier.execute(&self.tenant, POINT_SELECT, account).await;
        match answer.map(|answer| single(&answer)) {
            Ok(Some(balance)) if balance == "0" => Ok(()),
            Ok(other) => Err(format!("{other:?} is no balance")),
            Err(status) => Err(status.to_string()),
        }
    }
}

/// Where the bare handler finds the same database, as the same role.
pub fn url(stage: &Stage, tenant: &Tenant) -> String {
    let (login, database) = (&tenant.login, tenant.database.as_str());
    let (host, port) = (stage.cluster.host(), stage.cluster.port());
    format!("postgresql://{}:{}@{host}:{port}/{database}", login.role.as_str(), login.password.expose_secret())
}

pub async fn run(stage: &Stage, report: &mut Report) {
    let tenant = &stage.fleet.tenants(stage, 1).await[0];
    accounts(stage, tenant).await;
    let daemon = stage.daemon();
    let (bare, address) = bare::pool(&url(stage, tenant), POOL_CONNECTIONS_MAX);
    let ours = Channels::open(daemon.address, &daemon.key, CHANNELS).await;
    let theirs = Channels::open(address, &daemon.key, CHANNELS).await;
    let callers = |channels: &Channels| {
        let selector = |number| Selector { querier: channels.querier(number), tenant: tenant.code.to_string() };
        (0..CALLERS).map(selector).collect::<Vec<_>>()
    };
    let (pairs, cpu) = in_turns(
        Side { process: &daemon.process, callers: || callers(&ours) },
        Side { process: &bare, callers: || callers(&theirs) },
    )
    .await;
    report.line(
        "point select, 32 callers, a call for each: statements",
        &per_second(pairs.ours(Sample::rate)),
        &format!("bare tonic over deadpool, {}", per_second(pairs.theirs(Sample::rate))),
        pairs.ratio(Sample::rate),
        "×",
        Goal::AtLeast(0.9),
    );
    report.note(format!(
        "point select: {POOL_CONNECTIONS_MAX} connections each, p99 {:.2} ms against {:.2} ms; CPU of the server per call \
         {:.1} µs, of the bare handler {:.1} µs; bound by HTTP/2 and PostgreSQL",
        pairs.ours(Sample::p99),
        pairs.theirs(Sample::p99),
        cpu.ours,
        cpu.theirs
    ));
    for sample in &pairs.ours {
        report.errors("point select", sample);
    }
    for sample in &pairs.theirs {
        report.errors("bare point select", sample);
    }
    daemon.process.terminate().await;
}
