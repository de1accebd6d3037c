//! Resolve, hot and authenticated, against an echo of the same answer that asks nobody who they are.

use super::{CHANNELS, Side, in_turns};
use crate::bare;
use crate::callers::Channels;
use crate::fleet::code;
use crate::load::Sample;
use crate::report::{Goal, Report, per_second};
use crate::stage::Stage;

const CALLERS: usize = 32;

pub async fn run(stage: &Stage, report: &mut Report) {
    stage.fleet.tenants(stage, 1).await;
    let daemon = stage.daemon();
    let tenant = code(0);
    let ours = Channels::open(daemon.address, &daemon.key, CHANNELS).await;
    let answer = ours.resolver(0, &tenant).resolve().await.unwrap();
    let (echo, address) = bare::echo(&answer);
    let theirs = Channels::open(address, &daemon.key, CHANNELS).await;
    let callers =
        |channels: &Channels| (0..CALLERS).map(|number| channels.resolver(number, &tenant)).collect::<Vec<_>>();
    let (pairs, cpu) = in_turns(
        Side { process: &daemon.process, callers: || callers(&ours) },
        Side { process: &echo, callers: || callers(&theirs) },
    )
    .await;
    report.line(
        "resolve, hot, authenticated: requests",
        &per_second(pairs.ours(Sample::rate)),
        &format!("bare tonic echo, {}", per_second(pairs.theirs(Sample::rate))),
        pairs.ratio(Sample::rate),
        "×",
        Goal::AtLeast(0.90),
    );
    report.line(
        "resolve: p99",
        &format!("{:.2} ms", pairs.ours(Sample::p99)),
        &format!("bare tonic echo, {:.2} ms", pairs.theirs(Sample::p99)),
        pairs.ratio(Sample::p99),
        "×",
        Goal::AtMost(1.2),
    );
    report.note(format!(
        "resolve: {CALLERS} callers on {CHANNELS} connections; CPU of the server per call {:.1} µs, of the echo {:.1} µs; \
         bound by HTTP/2 on both sides",
        cpu.ours, cpu.theirs
    ));
    for sample in &pairs.ours {
        report.errors("resolve", sample);
    }
    daemon.process.terminate().await;
}
