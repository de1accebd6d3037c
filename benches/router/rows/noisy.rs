//! A quiet tenant beside a noisy one with 1,000 callers of slow statements, against the same quiet tenant alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::CHANNELS;
use crate::callers::{Channels, Querier};
use crate::fleet::{THINGS, code};
use crate::load::{Caller, Sample, at_intervals};
use crate::report::{Goal, Report};
use crate::stage::Stage;

const NOISY_CALLERS: usize = 1_000;
const QUIET_INTERVAL: Duration = Duration::from_millis(50);
const QUIET_TIME: Duration = Duration::from_secs(20);
/// How long the noise may take to begin.
const NOISE_BEGINS: Duration = Duration::from_secs(3);

struct Quiet {
    querier: Querier,
    tenant: String,
}

impl Caller for Quiet {
    async fn call(&mut self) -> Result<(), String> {
        let id = rand::random_range(1..=THINGS);
        let sql = "SELECT name FROM things WHERE id = $1";
        self.querier.execute(&self.tenant, sql, id).await.map(drop).map_err(|status| status.to_string())
    }
}

pub async fn run(stage: &Stage, report: &mut Report) {
    stage.fleet.tenants(stage, 2).await;
    let daemon = stage.daemon();
    let quiet = Channels::open(daemon.address, &daemon.key, 1).await;
    let caller = || Quiet { querier: quiet.querier(0), tenant: code(0) };
    at_intervals(caller(), QUIET_INTERVAL, NOISE_BEGINS).await;
    let alone = at_intervals(caller(), QUIET_INTERVAL, QUIET_TIME).await;
    let noise = Noise::begin(&Channels::open(daemon.address, &daemon.key, CHANNELS).await);
    at_intervals(caller(), QUIET_INTERVAL, NOISE_BEGINS).await;
    let beside = at_intervals(caller(), QUIET_INTERVAL, QUIET_TIME).await;
    let (calls, failures) = noise.end().await;
    report.line(
        "a quiet tenant beside a noisy one: p99",
        &format!("{:.2} ms", beside.p99()),
        &format!("alone, {:.2} ms", alone.p99()),
        beside.p99() / alone.p99(),
        "×",
        Goal::AtMost(3.0),
    );
    report.note(format!(
        "noisy neighbour: {} quiet calls at 20/s, p50 {:.2} ms against {:.2} ms alone; meanwhile {NOISY_CALLERS} callers \
         ran pg_sleep(0.1), {calls} times, {failures} refused",
        beside.latencies.len(),
        beside.p50(),
        alone.p50(),
    ));
    report.errors("quiet tenant", &beside);
    let _: &Sample = &alone;
    daemon.process.terminate().await;
}

/// A tenant that takes what it can get.
struct Noise {
    stop: Arc<AtomicBool>,
    callers: Vec<tokio::task::JoinHandle<(usize, usize)>>,
}

impl Noise {
    fn begin(channels: &Channels) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let caller = |number| {
            let (mut querier, stop) = (channels.querier(number), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut calls, mut failures) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let sql = "SELECT pg_sleep(0.1)::text, $1::int8";
                    if querier.execute(&code(1), sql, 0).await.is_ok() {
                        calls += 1;
                    } else {
                        failures += 1;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                (calls, failures)
            })
        };
        let callers = (0..NOISY_CALLERS).map(caller).collect();
        Self { stop, callers }
    }

    async fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = (0, 0);
        for caller in self.callers {
            let (calls, failures) = caller.await.unwrap();
            sum = (sum.0 + calls, sum.1 + failures);
        }
        sum
    }
}
