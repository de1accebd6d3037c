//! The rows of the table, a file for each.

pub mod cold;
pub mod execute;
pub mod memory;
pub mod noisy;
pub mod resolve;
pub mod stream;
pub mod zipf;

use std::time::Duration;

use crate::load::{Caller, Sample, closed_loop, median};
use crate::process::Process;

/// Callers' connections to the server that they ask.
pub const CHANNELS: usize = 4;
/// Short, and many: neighbours on the same machine slow one slice and not the next.
const SLICE: Duration = Duration::from_secs(1);
const PAIRS: usize = 15;
const WARM_UP: Duration = Duration::from_secs(1);

/// One side of a comparison.
pub struct Side<'a, F> {
    /// Whose CPU time is looked at.
    pub process: &'a Process,
    pub callers: F,
}

/// What two sides did in turns.
pub struct Pairs {
    pub ours: Vec<Sample>,
    pub theirs: Vec<Sample>,
}

impl Pairs {
    /// Lets both sides work: ours, theirs, theirs, ours, and so on, with something else between the two of a pair.
    pub async fn take(
        count: usize,
        ours: impl AsyncFn() -> Sample,
        theirs: impl AsyncFn() -> Sample,
        mut between: impl AsyncFnMut(),
    ) -> Self {
        let mut pairs = Self { ours: Vec::new(), theirs: Vec::new() };
        for pair in 0..count {
            if pair % 2 == 0 {
                pairs.ours.push(ours().await);
                between().await;
                pairs.theirs.push(theirs().await);
            } else {
                pairs.theirs.push(theirs().await);
                between().await;
                pairs.ours.push(ours().await);
            }
        }
        pairs
    }

    /// The median of a figure's ratios.
    pub fn ratio(&self, figure: impl Fn(&Sample) -> f64) -> f64 {
        median(self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| figure(ours) / figure(theirs)))
    }

    pub fn ours(&self, figure: impl Fn(&Sample) -> f64) -> f64 {
        median(self.ours.iter().map(figure))
    }

    pub fn theirs(&self, figure: impl Fn(&Sample) -> f64) -> f64 {
        median(self.theirs.iter().map(figure))
    }
}

/// The servers' CPU time per call, in microseconds.
pub struct Cpu {
    pub ours: f64,
    pub theirs: f64,
}

/// Lets both sides work in closed loops.
pub async fn in_turns<A, B, C, D, I, J>(ours: Side<'_, A>, theirs: Side<'_, B>) -> (Pairs, Cpu)
where
    A: Fn() -> I,
    B: Fn() -> J,
    I: IntoIterator<Item = C>,
    J: IntoIterator<Item = D>,
    C: Caller,
    D: Caller,
{
    closed_loop((ours.callers)(), WARM_UP).await;
    closed_loop((theirs.callers)(), WARM_UP).await;
    let (cpu_ours, cpu_theirs) = (ours.process.cpu(), theirs.process.cpu());
    let pairs = Pairs::take(
        PAIRS,
        async || closed_loop((ours.callers)(), SLICE).await,
        async || closed_loop((theirs.callers)(), SLICE).await,
        async || (),
    )
    .await;
    let per_call = |cpu: f64, samples: &[Sample]| {
        cpu * 1e6 / samples.iter().map(|sample| sample.latencies.len() as f64).sum::<f64>()
    };
    let cpu = Cpu {
        ours: per_call(ours.process.cpu() - cpu_ours, &pairs.ours),
        theirs: per_call(theirs.process.cpu() - cpu_theirs, &pairs.theirs),
    };
    (pairs, cpu)
}
