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
const SLICE: Duration = Duration::from_millis(1_500);
const PAIRS: usize = 7;
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
    /// CPU time per call, in microseconds.
    pub cpu_ours: f64,
    pub cpu_theirs: f64,
}

impl Pairs {
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

/// Lets both sides work in turns: ours, theirs, theirs, ours, and so on.
pub async fn in_turns<A, B, C, D, I, J>(ours: Side<'_, A>, theirs: Side<'_, B>) -> Pairs
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
    let mut pairs = Pairs { ours: Vec::new(), theirs: Vec::new(), cpu_ours: 0.0, cpu_theirs: 0.0 };
    let (cpu_ours, cpu_theirs) = (ours.process.cpu(), theirs.process.cpu());
    for pair in 0..PAIRS {
        if pair % 2 == 0 {
            pairs.ours.push(closed_loop((ours.callers)(), SLICE).await);
            pairs.theirs.push(closed_loop((theirs.callers)(), SLICE).await);
        } else {
            pairs.theirs.push(closed_loop((theirs.callers)(), SLICE).await);
            pairs.ours.push(closed_loop((ours.callers)(), SLICE).await);
        }
    }
    let per_call = |cpu: f64, samples: &[Sample]| {
        cpu * 1e6 / samples.iter().map(|sample| sample.latencies.len() as f64).sum::<f64>()
    };
    pairs.cpu_ours = per_call(ours.process.cpu() - cpu_ours, &pairs.ours);
    pairs.cpu_theirs = per_call(theirs.process.cpu() - cpu_theirs, &pairs.theirs);
    pairs
}
