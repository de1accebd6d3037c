//! The step engine: claims operations, runs their steps, and undoes them when one fails.
//!
//! What always holds: a step's result is persisted before the next step begins; every write carries the claim's fence,
//! so a daemon that lost its claim changes nothing more; an operation that was being undone goes on being undone,
//! whoever picks it up. Steps may be repeated at any time and must bear it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use super::kinds;
use super::step::{Done, Run, Step, StepError};
use super::{Error, Parts};
use crate::catalog::{ClaimedOperation, OperationEnd, OperationStep};
use crate::domain::operation::{OperationId, OperationKind, OperationState, StepState};

/// How often one step may be begun, by any daemon, before the operation is undone.
const STEP_ATTEMPTS_MAX: i32 = 5;
/// Undoing is repeated, for half a minute, for what may pass: a server that restarts or has no room, a session that
/// lingers, a store that refuses for a while.
const UNDO_ATTEMPTS_MAX: u32 = 11;
const UNDO_PAUSE_MIN: Duration = Duration::from_millis(200);
const UNDO_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Claims and drives operations until the daemon goes down.
pub(super) struct Engine {
    pub(super) parts: Arc<Parts>,
    pub(super) changed: broadcast::Sender<OperationId>,
    pub(super) wake: Arc<tokio::sync::Notify>,
    pub(super) stop: CancellationToken,
    pub(super) slots: Arc<Semaphore>,
    /// Beside those, one permit for each backup: further ones stay where they are, and hold up nothing else.
    pub(super) backup_slots: Arc<Semaphore>,
    /// What this daemon drives. A lease that ran out while the catalog was slow may be claimed again by the same
    /// daemon: then the older driver goes first.
    pub(super) driven: Mutex<BTreeMap<OperationId, Arc<Driver>>>,
}

/// One drive of one operation.
#[derive(Debug, Default)]
pub(super) struct Driver {
    superseded: CancellationToken,
    gone: CancellationToken,
}

impl Engine {
    pub(super) async fn run(self) {
        let this = Arc::new(self);
        loop {
            let permit = tokio::select! {
                () = this.stop.cancelled() => return,
                permit = Arc::clone(&this.slots).acquire_owned() => permit,
            };
            let Ok(permit) = permit else { return };
            let backup_permit = Arc::clone(&this.backup_slots).try_acquire_owned().ok();
            if let Some(claimed) = this.claim(backup_permit.is_some()).await {
                let engine = Arc::clone(&this);
                let backup_permit = backup_permit.filter(|_| claimed.operation.kind == OperationKind::Backup);
                this.parts.tasks.spawn("operation", async move {
                    engine.drive(claimed).await;
                    drop((permit, backup_permit));
                    engine.wake.notify_one();
                });
                continue;
            }
            drop((permit, backup_permit));
            tokio::select! {
                () = this.stop.cancelled() => return,
                () = this.wake.notified() => {}
                () = tokio::time::sleep(this.parts.config.operations.poll_interval) => {}
            }
        }
    }

    async fn claim(&self, takes_backups: bool) -> Option<ClaimedOperation> {
        let but_not: &[OperationKind] = if takes_backups { &[] } else { &[OperationKind::Backup] };
        match self.try_claim(but_not).await {
            Ok(claimed) => claimed,
            // The catalog's sessions are closed on the way down.
            Err(_closed) if self.stop.is_cancelled() => None,
            Err(error) => {
                tracing::warn!(%error, "no operation can be claimed; trying again");
                None
            }
        }
    }

    /// Sessions of daemons that are gone are ended first: they may hold locks, and none of them may act beside us.
    async fn try_claim(&self, but_not: &[OperationKind]) -> Result<Option<ClaimedOperation>, Error> {
        let catalog = &self.parts.catalog;
        for gone in catalog.operation_owners_expired().await? {
            if gone != self.parts.instance {
                self.parts.instance_sessions_end(gone).await?;
            }
        }
        Ok(catalog.operation_claim(self.parts.instance, self.parts.config.operations.lease, but_not).await?)
    }

    /// Drives one operation to its end, or gives its claim back when the daemon goes down.
    async fn drive(&self, claimed: ClaimedOperation) {
        let id = claimed.operation.id;
        let fence = claimed.fence;
        let driver = Arc::new(Driver::default());
        let older = self.driven().insert(id, Arc::clone(&driver));
        let _gone = driver.gone.clone().drop_guard();
        if let Some(older) = older {
            older.superseded.cancel();
            older.gone.cancelled().await;
        }
        let span = tracing::info_span!("operation", %id, kind = %claimed.operation.kind, tenant = claimed.operation.tenant_code.as_ref().map(tracing::field::display));
        let outcome = tokio::select! {
            outcome = self.attempt(claimed).instrument(span.clone()) => outcome,
            () = self.heartbeat(id, fence) => Err(Error::ClaimLost { id }),
            () = driver.superseded.cancelled() => return,
            () = self.stop.cancelled() => {
                if let Err(error) = self.parts.catalog.operation_release(id, fence).await {
                    span.in_scope(|| tracing::info!(%error, "the claim could not be given back; it runs out by itself"));
                }
                return;
            }
        };
        if let Err(error) = outcome {
            span.in_scope(|| tracing::warn!(%error, "the operation stands still until a daemon claims it again"));
        }
        self.driven().retain(|_, other| !Arc::ptr_eq(other, &driver));
        self.announce(id);
    }

    fn driven(&self) -> MutexGuard<'_, BTreeMap<OperationId, Arc<Driver>>> {
        self.driven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the claim is lost.
    async fn heartbeat(&self, id: OperationId, fence: i64) {
        let lease = self.parts.config.operations.lease;
        let mut lost_at = tokio::time::Instant::now() + lease;
        loop {
            tokio::time::sleep(lease / 4).await;
            let renewal = self.parts.catalog.operation_heartbeat(id, fence, lease);
            match tokio::time::timeout(lease / 4, renewal).await {
                Ok(Ok(true)) => lost_at = tokio::time::Instant::now() + lease,
                Ok(Ok(false)) => return,
                Ok(Err(_)) | Err(_) if tokio::time::Instant::now() >= lost_at => return,
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    fn attempt(&self, claimed: ClaimedOperation) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.steps_run(claimed))
    }

    async fn steps_run(&self, claimed: ClaimedOperation) -> Result<(), Error> {
        if let Some(gone) = claimed.owner_before {
            self.parts.instance_sessions_end(gone).await?;
        }
        let steps = kinds::steps(claimed.operation.kind);
        let rows = claimed.operation.steps.clone();
        let outputs: BTreeMap<String, Value> = rows
            .iter()
            .filter(|row| row.state == StepState::Done)
            .map(|row| (row.name.clone(), row.output.clone().unwrap_or_default()))
            .collect();
        let failed_before = claimed.operation.error.is_some();
        let mut run = Run::new(Arc::clone(&self.parts), claimed.operation, claimed.fence, outputs);
        if !failed_before {
            match self.forward(&mut run, steps, &rows).await? {
                None => return self.end(&run, OperationState::Succeeded, kinds::result(&run), None).await,
                Some((step, failure)) => {
                    tracing::info!(step, reason = failure.reason(), "the step failed; undoing: {failure}");
                    let record = failure.to_record(step);
                    self.parts.catalog.operation_fail(run.id(), run.fence(), &record).await?;
                    run.operation.error = Some(record);
                    self.announce(run.id());
                }
            }
        }
        self.backward(&mut run, steps).await
    }

    /// Runs the steps that are not done. Answers with the first that failed.
    async fn forward(
        &self,
        run: &mut Run,
        steps: &'static [Step],
        rows: &[OperationStep],
    ) -> Result<Option<(&'static str, StepError)>, Error> {
        for (ordinal, step) in steps.iter().enumerate() {
            let row = rows.get(ordinal);
            if row.is_some_and(|row| row.state == StepState::Done) {
                continue;
            }
            let ordinal = ordinal_of(ordinal);
            self.parts.catalog.step_begin(run.id(), run.fence(), ordinal).await?;
            run.attempts = row.map_or(0, |row| row.attempts) + 1;
            self.announce(run.id());
            let acted = if run.attempts > STEP_ATTEMPTS_MAX {
                Err(StepError::gave_up(step.name, STEP_ATTEMPTS_MAX))
            } else {
                (step.act)(run).await
            };
            match acted {
                Ok(Done { output, detail }) => {
                    let detail = detail.unwrap_or_default();
                    self.parts.catalog.step_end(run.id(), run.fence(), ordinal, output.clone(), &detail).await?;
                    run.outputs.insert(step.name.to_owned(), output);
                    self.announce(run.id());
                }
                Err(StepError::Claim(error)) => return Err(error),
                Err(failure) => return Ok(Some((step.name, failure))),
            }
        }
        Ok(None)
    }

    /// Undoes, last first, every step that was begun.
    async fn backward(&self, run: &mut Run, steps: &'static [Step]) -> Result<(), Error> {
        let rows = self.parts.catalog.operation_get(run.id()).await?.steps;
        for (ordinal, step) in steps.iter().enumerate().rev() {
            let begun =
                rows.get(ordinal).is_some_and(|row| !matches!(row.state, StepState::Pending | StepState::Undone));
            if !begun {
                continue;
            }
            let ordinal = ordinal_of(ordinal);
            self.parts.catalog.step_undo_begin(run.id(), run.fence(), ordinal).await?;
            if let Err(failure) = undo(run, step).await {
                tracing::error!(step = step.name, "the step cannot be undone; the operation is stuck: {failure}");
                let record = failure.to_record(step.name);
                return self.end(run, OperationState::Stuck, Value::Null, Some(record)).await;
            }
            self.parts.catalog.step_undo_end(run.id(), run.fence(), ordinal).await?;
            run.outputs.remove(step.name);
            self.announce(run.id());
        }
        let error = run.operation.error.clone();
        self.end(run, OperationState::Failed, Value::Null, error).await
    }

    async fn end(&self, run: &Run, state: OperationState, result: Value, error: Option<Value>) -> Result<(), Error> {
        let end = OperationEnd { state, result: (!result.is_null()).then_some(result), error };
        self.parts.catalog.operation_end(run.id(), run.fence(), &end).await?;
        tracing::info!(%state, "the operation has ended");
        self.announce(run.id());
        Ok(())
    }

    fn announce(&self, id: OperationId) {
        // Nobody may be listening, which is fine.
        drop(self.changed.send(id));
    }
}

async fn undo(run: &Run, step: &Step) -> Result<(), StepError> {
    let mut pause = UNDO_PAUSE_MIN;
    for _ in 1..UNDO_ATTEMPTS_MAX {
        match (step.undo)(run).await {
            Ok(()) => return Ok(()),
            Err(failure) => tracing::info!(step = step.name, "undoing is tried again: {failure}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(UNDO_PAUSE_MAX);
    }
    (step.undo)(run).await
}

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "an operation has about ten steps")]
fn ordinal_of(index: usize) -> i32 {
    index as i32
}

/// Ids of operations that the daemon makes for itself must be the same at every start.
pub fn deterministic_id(name: &str) -> Uuid {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(name.as_bytes());
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}
