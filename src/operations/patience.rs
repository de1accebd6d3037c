//! How long a step is tried again, and at what pace. Knows nothing of steps but their names; `now` is a parameter.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::operation::OperationId;

const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// For how long what nobody knows to pass is tried again: a session that lingers, two who met.
const DOUBTFUL_MAX: Duration = Duration::from_secs(30);

/// Doing a step, or undoing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) step: &'static str,
    pub(super) is_undo: bool,
}

/// What one daemon has tried again, and since when. A daemon that starts begins to count anew.
#[derive(Debug, Default)]
pub(super) struct Patience(BTreeMap<OperationId, Tries>);

#[derive(Debug)]
struct Tries {
    attempt: Attempt,
    since: Instant,
    pause: Duration,
}

impl Patience {
    /// How long to wait before the attempt that has just failed is made again; `None` when it was long enough.
    /// `repeat_max` is for what passes by itself.
    pub(super) fn pause(
        &mut self,
        id: OperationId,
        attempt: Attempt,
        passes: bool,
        repeat_max: Duration,
        now: Instant,
    ) -> Option<Duration> {
        // Operations that another daemon has ended.
        self.0.retain(|other, tries| *other == id || now.duration_since(tries.since) < 2 * repeat_max);
        let fresh = || Tries { attempt, since: now, pause: Duration::ZERO };
        let tries = self.0.entry(id).or_insert_with(fresh);
        if tries.attempt != attempt {
            *tries = fresh();
        }
        let whole = if passes { repeat_max } else { repeat_max.min(DOUBTFUL_MAX) };
        let left = whole.saturating_sub(now.duration_since(tries.since));
        if left.is_zero() {
            self.0.remove(&id);
            return None;
        }
        tries.pause = (tries.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        Some(tries.pause.min(left))
    }

    /// The attempt was a success.
    pub(super) fn forget(&mut self, id: OperationId) {
        self.0.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const REPEAT_MAX: Duration = Duration::from_mins(10);
    const UNDO: Attempt = Attempt { step: "roles", is_undo: true };

    /// Every pause until patience ends.
    fn pauses(passes: bool) -> Vec<Duration> {
        let (mut patience, mut now) = (Patience::default(), Instant::now());
        let id = OperationId(Uuid::nil());
        std::iter::from_fn(|| {
            let pause = patience.pause(id, UNDO, passes, REPEAT_MAX, now)?;
            now += pause;
            Some(pause)
        })
        .collect()
    }

    #[test]
    fn what_passes_is_tried_for_ten_minutes_and_the_rest_for_half_of_one() {
        let passing = pauses(true);
        assert_eq!(passing[..4], [200, 400, 800, 1_600].map(Duration::from_millis));
        assert_eq!((passing.iter().max(), passing.iter().sum()), (Some(&PAUSE_MAX), REPEAT_MAX));
        assert_eq!(pauses(false).iter().sum::<Duration>(), DOUBTFUL_MAX);
    }

    #[test]
    fn each_attempt_has_its_own_time() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        let id = OperationId(Uuid::nil());
        let mut pause = |attempt, at| patience.pause(id, attempt, true, REPEAT_MAX, now + at);
        assert_eq!(pause(UNDO, Duration::ZERO), Some(PAUSE_MIN));
        let other = Attempt { is_undo: false, ..UNDO };
        assert_eq!(pause(other, REPEAT_MAX), Some(PAUSE_MIN));
        assert_eq!(pause(other, REPEAT_MAX * 2), None);
        assert_eq!(pause(other, REPEAT_MAX * 2), Some(PAUSE_MIN), "whoever asks again has time again");
    }
}
