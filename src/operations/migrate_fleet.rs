//! Driving a rollout: every target that is behind is brought to the directory's newest version, a bounded number at a
//! time, until all are done or more have failed than the budget allows. One tenant's failure leaves that tenant as it
//! was and does not stop the others. No migration is undone: each is whole or did not happen.
//!
//! Always holds: a target that was begun is driven to its end, by whoever holds the rollout then and whatever the budget
//! says, because its database may have been changed already.

use std::collections::VecDeque;
use std::pin::pin;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::json;

use super::failure::Failure;
use super::migrate_target::{Budget, Turn, Work, one_target};
use super::paused_target;
use super::step::{Done, Run, Step, StepError, step};
use crate::catalog::RolloutTarget;
use crate::domain::migration::{RolloutState, TargetState, rollout_outcome};

pub(super) const STEPS: &[Step] = &[step!("targets", targets, targets_failed), step!("finish", finish)];

/// The first of the steps above.
const TARGETS_ORDINAL: i32 = 0;
/// More than a fleet has.
const TARGETS_MAX: u64 = 1_000_000;

async fn targets(run: &Run) -> Result<Done, StepError> {
    let catalog = &run.parts.catalog;
    let rollout = catalog.rollout_get(run.id()).await?;
    let files = catalog.rollout_files(run.id()).await?;
    let mut queue = Queue::new(catalog.targets_next(run.id(), TARGETS_MAX).await?);
    let failed = catalog.targets_count(run.id()).await?.get(TargetState::Failed.name()).copied().unwrap_or(0);
    let budget = Budget::new(failed, rollout.failures_max);
    turns(&Work { run, files: &files, budget: &budget, pauses: rollout.pause }, &mut queue).await?;
    let reason = "not begun: the failure budget was used up";
    let skipped = catalog.targets_skip(run.id(), run.fence(), reason).await?;
    paused_target::reopen_rest(run).await?;
    Ok(Done::detail(format!("{} failed, {skipped} not begun", budget.failed())))
}

/// Lets every target have its turn, and tries meanwhile to open those that could not be opened in theirs.
async fn turns(work: &Work<'_>, queue: &mut Queue) -> Result<(), StepError> {
    let run = work.run;
    let concurrency_max = run.parts.config.migrator.concurrency_max;
    let mut running = FuturesUnordered::new();
    let mut reopening = pin!(paused_target::reopen_left(run, work.pauses));
    loop {
        while running.len() < concurrency_max {
            let Some((target, is_late)) = queue.next(work.budget) else { break };
            running.push(one_target(work, target, is_late));
        }
        let turn = tokio::select! {
            turn = running.next() => turn,
            never = &mut reopening => match never {},
        };
        let Some(turn) = turn else { return Ok(()) };
        match turn? {
            Turn::Ended if run.is_repeated => {
                run.parts.catalog.step_attempts_reset(run.id(), run.fence(), TARGETS_ORDINAL).await?;
            }
            Turn::Ended | Turn::NotBegun => {}
            Turn::Later(target) => queue.late.push_back(*target),
        }
    }
}

/// Targets that have not ended, in the order in which they have their turns.
struct Queue {
    /// Left behind in the middle by a daemon that is gone.
    begun: VecDeque<RolloutTarget>,
    open: VecDeque<RolloutTarget>,
    /// Whose tenants another operation has for as long as that takes: the others go first.
    late: VecDeque<RolloutTarget>,
}

impl Queue {
    fn new(targets: Vec<RolloutTarget>) -> Self {
        let (begun, open) = targets.into_iter().partition(|target| target.state == TargetState::Running);
        Self { begun, open, late: VecDeque::new() }
    }

    /// Whose turn it is, and whether it may no longer be put off.
    fn next(&mut self, budget: &Budget) -> Option<(RolloutTarget, bool)> {
        if let Some(begun) = self.begun.pop_front() {
            return Some((begun, true));
        }
        if budget.is_spent() {
            return None;
        }
        let open = self.open.pop_front().map(|target| (target, false));
        open.or_else(|| self.late.pop_front().map(|target| (target, true)))
    }
}

/// The rollout could not be driven to its end. What is migrated stays migrated.
async fn targets_failed(run: &Run) -> Result<(), StepError> {
    paused_target::open_all(run).await?;
    let catalog = &run.parts.catalog;
    let why = run.operation.error.as_ref().map(|record| Failure::read(record).message);
    let reason = "the rollout was given up before this tenant's end was known; run again";
    catalog.targets_give_up(run.id(), run.fence(), reason).await?;
    Ok(catalog.rollout_end(run.id(), run.fence(), RolloutState::Failed, why.as_deref()).await?)
}

async fn finish(run: &Run) -> Result<Done, StepError> {
    let catalog = &run.parts.catalog;
    let rollout = catalog.rollout_get(run.id()).await?;
    let counts = catalog.targets_count(run.id()).await?;
    let state = rollout_outcome(&counts, i64::from(rollout.failures_max));
    catalog.rollout_end(run.id(), run.fence(), state, None).await?;
    Ok(Done { output: json!({ "rollout_id": run.id(), "state": state, "counts": counts }), detail: None })
}
