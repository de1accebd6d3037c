//! Callers in a closed loop, where each waits for its answer before it asks again, and in an open one, where the next
//! question comes when it comes. What they saw becomes a [`Sample`].

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

/// Somebody who asks.
pub trait Caller: Send + 'static {
    /// One call, or the way in which it failed.
    fn call(&mut self) -> impl Future<Output = Result<(), String>> + Send;
}

/// What callers saw.
#[derive(Debug, Default)]
pub struct Sample {
    pub elapsed: Duration,
    /// In order.
    pub latencies: Vec<Duration>,
    /// How calls failed, the first few.
    pub errors: Vec<String>,
    pub error_count: usize,
}

const ERRORS_KEPT_MAX: usize = 3;

impl Sample {
    /// Answers per second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that so much (as 0.99) of the calls did not exceed, in milliseconds.
    pub fn quantile(&self, part: f64) -> f64 {
        let index = (self.latencies.len() as f64 * part) as usize;
        self.latencies
            .get(index.min(self.latencies.len().saturating_sub(1)))
            .map_or(f64::NAN, |l| l.as_secs_f64() * 1e3)
    }

    pub fn p50(&self) -> f64 {
        self.quantile(0.50)
    }

    pub fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    fn add(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.error_count += other.error_count;
        self.errors.extend(other.errors);
        self.errors.truncate(ERRORS_KEPT_MAX);
    }

    fn note(&mut self, began: Instant, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.latencies.push(began.elapsed()),
            Err(error) => {
                self.error_count += 1;
                if self.errors.len() < ERRORS_KEPT_MAX {
                    self.errors.push(error);
                }
            }
        }
    }
}

/// Lets all callers ask for `run_for`; calls that are under way then are awaited, and not counted.
pub async fn closed_loop<C: Caller>(callers: impl IntoIterator<Item = C>, run_for: Duration) -> Sample {
    closed_loop_after(callers, Duration::ZERO, run_for).await
}

/// As [`closed_loop`], in which only calls count that end after `roll_in`: by then as many wait as always will.
pub async fn closed_loop_after<C: Caller>(
    callers: impl IntoIterator<Item = C>,
    roll_in: Duration,
    run_for: Duration,
) -> Sample {
    let begin = Instant::now() + roll_in;
    let end = begin + run_for;
    let mut running = JoinSet::new();
    for mut caller in callers {
        running.spawn(async move {
            let mut seen = Sample::default();
            loop {
                let asked = Instant::now();
                let outcome = caller.call().await;
                let now = Instant::now();
                if now > end {
                    return seen;
                }
                if now >= begin {
                    seen.note(asked, outcome);
                }
            }
        });
    }
    gather(running, run_for).await
}

/// Lets the callers ask `rate` times a second together, each at moments of its own (a Poisson process), whether or not
/// answers are slow to come: a question waits for the caller's last answer, and its latency counts from when it was due.
/// Only what is due after `roll_in` counts; all of that does, however late.
pub async fn open_loop<C: Caller>(
    callers: impl IntoIterator<Item = C>,
    rate: f64,
    roll_in: Duration,
    run_for: Duration,
) -> Sample {
    let callers: Vec<C> = callers.into_iter().collect();
    let gap_mean = callers.len() as f64 / rate;
    let gap = move || Duration::from_secs_f64(-gap_mean * (1.0 - rand::random::<f64>()).ln());
    let began = Instant::now();
    let (begin, end) = (began + roll_in, began + roll_in + run_for);
    let mut running = JoinSet::new();
    for mut caller in callers {
        running.spawn(async move {
            let mut seen = Sample::default();
            let mut due = began + gap();
            while due < end {
                tokio::time::sleep_until(due.into()).await;
                let outcome = caller.call().await;
                if due >= begin {
                    seen.note(due, outcome);
                }
                due += gap();
            }
            seen
        });
    }
    gather(running, run_for).await
}

async fn gather(mut running: JoinSet<Sample>, elapsed: Duration) -> Sample {
    let mut all = Sample { elapsed, ..Sample::default() };
    while let Some(seen) = running.join_next().await {
        all.add(seen.unwrap());
    }
    all.latencies.sort_unstable();
    all
}

/// Lets one caller ask every `interval`, whether or not the last answer was slow to come; a late answer delays the next
/// question, and its lateness counts.
pub async fn at_intervals<C: Caller>(mut caller: C, interval: Duration, run_for: Duration) -> Sample {
    let began = Instant::now();
    let mut all = Sample { elapsed: run_for, ..Sample::default() };
    let mut due = began;
    while due < began + run_for {
        tokio::time::sleep_until(due.into()).await;
        // From when it wanted to ask; a timer's own lateness is not the daemon's.
        let asked = if Instant::now() > due + interval { due } else { Instant::now() };
        let outcome = caller.call().await;
        all.note(asked, outcome);
        due += interval;
    }
    all.latencies.sort_unstable();
    all
}

/// The middle one.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}
