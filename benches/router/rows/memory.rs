//! The daemon's resident memory: at rest, and what each tenant adds that somebody asked for once.

use std::time::Duration;

use futures_util::future::join_all;
use tonic::Code;

use crate::callers::Channels;
use crate::fleet::Tenant;
use crate::report::{Goal, Report};
use crate::stage::{Daemon, Stage};

const ROUTES: usize = 10_000;
const POOLS: usize = 300;
/// Callers at the same moment.
const CALLERS: usize = 8;
/// A busy machine's catalog may be slow to answer, and the daemon says so.
const TRIES: usize = 20;
/// What follows a burst of work is part of it.
const SETTLE: Duration = Duration::from_secs(2);

pub async fn run(stage: &Stage, report: &mut Report) {
    let routes = stage.fleet.routes(stage, "lazy", ROUTES).await;
    let tenants = stage.fleet.tenants(stage, POOLS).await;
    let daemon = stage.daemon();
    let channels = Channels::open(daemon.address, &daemon.key, CALLERS).await;
    let rest = settled(&daemon).await;
    report.line("memory at rest", &format!("{:.1} MiB", rest / 1024.0), "", rest / 1024.0, " MiB", Goal::AtMost(64.0));

    // What the daemon needs for working at all is not the tenants'.
    resolve(&channels, &routes[..ROUTES / 100]).await;
    let before = settled(&daemon).await;
    resolve(&channels, &routes).await;
    let after = settled(&daemon).await;
    let each = (after - before) / ROUTES as f64;
    let grown = format!("{before:.0} KiB, then {after:.0} KiB");
    report.line("memory per tenant that was resolved once", &grown, "", each, " KiB", Goal::AtMost(16.0));

    // The budget is full of the others' connections before and after.
    query(&channels, &tenants[..POOLS / 2]).await;
    let before = settled(&daemon).await;
    query(&channels, &tenants[POOLS / 2..]).await;
    let after = settled(&daemon).await;
    let each = (after - before) / (POOLS - POOLS / 2) as f64;
    let grown = format!("{before:.0} KiB, then {after:.0} KiB");
    report.line("memory per tenant whose connections were evicted", &grown, "", each, " KiB", Goal::AtMost(16.0));
    report.note(format!("memory: resident, {ROUTES} tenants resolved once, then {} queried once", POOLS - POOLS / 2));
    daemon.process.terminate().await;
}

/// Asks for each route once.
async fn resolve(channels: &Channels, codes: &[String]) {
    let lanes = codes.chunks(codes.len().div_ceil(CALLERS)).enumerate();
    let lanes = lanes.map(|(number, part)| async move {
        for code in part {
            let mut resolver = channels.resolver(number, code);
            let mut tries_left = TRIES;
            while let Err(status) = resolver.resolve().await {
                tries_left -= 1;
                assert!(status.code() == Code::Unavailable && tries_left > 0, "{code}: {status}");
            }
        }
    });
    join_all(lanes).await;
}

/// Queries each tenant once.
async fn query(channels: &Channels, tenants: &[Tenant]) {
    let lanes = tenants.chunks(tenants.len().div_ceil(CALLERS)).enumerate();
    let lanes = lanes.map(|(number, part)| async move {
        let mut querier = channels.querier(number);
        for tenant in part {
            querier.execute(tenant.code.as_str(), "SELECT $1::int8", 1).await.unwrap();
        }
    });
    join_all(lanes).await;
}

async fn settled(daemon: &Daemon) -> f64 {
    tokio::time::sleep(SETTLE).await;
    daemon.process.resident_kib()
}
