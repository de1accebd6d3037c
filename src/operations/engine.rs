//! The step engine: claims operations, runs their steps, and undoes them when one fails.
//!
//! What always holds: a step's result is persisted before the next step begins; every write carries the claim's fence,
//! so a daemon that lost its claim changes nothing more; an operation that was being undone goes on being undone,
//! whoever picks it up. Steps may be repeated at any time and must bear it. Whoever waits for a server that is away
//! gives its claim and its slot back meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use super::gone::Gone;
use super::kinds;
use super::patience::{Attempt, Patience};
use super::step::{Done, Run, Step, StepError};
use super::{Error, Parts, stuck};
use crate::catalog::{ClaimedOperation, OperationEnd, OperationStep, Release};
use crate::domain::operation::{OperationId, OperationKind, OperationState, StepState};

/// How many daemons may die in one step before the operation is undone.
const STEP_ATTEMPTS_MAX: i32 = 5;
/// Longer pauses are others' time.
const PAUSE_IN_PLACE_MAX: Duration = Duration::from_secs(1);

/// Claims and drives operations until the daemon goes down.
pub(super) struct Engine {
    pub(super) parts: Arc<Parts>,
    pub(super) gone: Gone,
    pub(super) changed: broadcast::Sender<OperationId>,
    pub(super) wake: Arc<tokio::sync::Notify>,
    pub(super) stop: CancellationToken,
    pub(super) slots: Arc<Semaphore>,
    /// Beside those, one permit for each backup: further ones stay where they are, and hold up nothing else.
    pub(super) backup_slots: Arc<Semaphore>,
    /// Instead of those, one permit for each rollout: it may wait for an operation that has not had its turn.
    pub(super) rollout_slots: Arc<Semaphore>,
    /// What this daemon drives. A lease that ran out while the catalog was slow may be claimed again by the same
    /// daemon: then the older driver goes first.
    pub(super) driven: Mutex<BTreeMap<OperationId, Arc<Driver>>>,
    pub(super) patience: Mutex<Patience>,
}

/// One drive of one operation.
#[derive(Debug, Default)]
pub(super) struct Driver {
    superseded: CancellationToken,
    gone: CancellationToken,
    /// The step that this drive has begun: that it gives it back says nothing against the step. Held while that is
    /// written, so that nobody gives back what is written as begun afterwards.
    begun: tokio::sync::Mutex<Option<i32>>,
}

/// How a drive ended.
enum Driven {
    ToTheEnd,
    /// The claim is to be given back until the pause is over.
    Waits {
        step: i32,
        pause: Duration,
        what_for: String,
    },
}

/// How far the steps went.
enum Forward {
    Done,
    Waits(Driven),
    Failed(&'static str, StepError),
}

/// Whether and when something is tried again.
enum Again {
    Now,
    Later(Driven),
    Never,
}

impl Engine {
    pub(super) async fn run(self) {
        let this = Arc::new(self);
        loop {
            // In this order, here and below: nothing is claimed on the way down.
            let permit = tokio::select! {
                biased;
                () = this.stop.cancelled() => return,
                permit = Arc::clone(&this.slots).acquire_owned() => permit,
            };
            let Ok(permit) = permit else { return };
            let backup_permit = Arc::clone(&this.backup_slots).try_acquire_owned().ok();
            let rollout_permit = Arc::clone(&this.rollout_slots).try_acquire_owned().ok();
            let without = [
                (OperationKind::Backup, backup_permit.is_none()),
                (OperationKind::MigrateFleet, rollout_permit.is_none()),
            ];
            let but_not: Vec<_> = without.into_iter().filter_map(|(kind, is_full)| is_full.then_some(kind)).collect();
            if let Some((claimed, asked_at)) = this.claim(&but_not).await {
                let engine = Arc::clone(&this);
                let held = match claimed.operation.kind {
                    OperationKind::Backup => [Some(permit), backup_permit],
                    OperationKind::MigrateFleet => [rollout_permit, None],
                    _ => [Some(permit), None],
                };
                this.parts.tasks.spawn("operation", async move {
                    engine.drive(claimed, asked_at).await;
                    drop(held);
                    engine.wake.notify_one();
                });
                continue;
            }
            drop((permit, backup_permit, rollout_permit));
            tokio::select! {
                biased;
                () = this.stop.cancelled() => return,
                () = this.wake.notified() => {}
                () = tokio::time::sleep(this.parts.config.operations.poll_interval) => {}
            }
        }
    }

    async fn claim(&self, but_not: &[OperationKind]) -> Option<(ClaimedOperation, Instant)> {
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

    /// Sessions of daemons that are gone are ended first. Where they may still have some, what works there is left for
    /// later, and the rest is not. The lease is no longer than from the moment that comes along.
    async fn try_claim(&self, but_not: &[OperationKind]) -> Result<Option<(ClaimedOperation, Instant)>, Error> {
        let (catalog, instance) = (&self.parts.catalog, self.parts.instance);
        let mut gone = catalog.operation_owners_expired().await?;
        gone.retain(|daemon| *daemon != instance);
        let remains = self.gone.remains(&gone);
        let lease = self.parts.config.operations.lease;
        let asked_at = Instant::now();
        let claimed = catalog.operation_claim(instance, lease, but_not, &remains).await?;
        Ok(claimed.map(|claimed| (claimed, asked_at)))
    }

    /// Drives one operation to its end, or gives its claim back when the daemon goes down.
    async fn drive(&self, claimed: ClaimedOperation, asked_at: Instant) {
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
        // In this order: a daemon that has stood still looks at its lease before it does anything else.
        let outcome = tokio::select! {
            biased;
            () = self.heartbeat(id, fence, asked_at) => Err(Error::ClaimLost { id }),
            outcome = self.attempt(claimed, &driver).instrument(span.clone()) => outcome,
            () = driver.superseded.cancelled() => return,
            begun = async {
                self.stop.cancelled().await;
                *driver.begun.lock().await
            } => {
                self.release(id, fence, &Release { begun, ..Release::default() }).instrument(span).await;
                return;
            }
        };
        match outcome {
            Ok(Driven::ToTheEnd) => {}
            Ok(Driven::Waits { step, pause, what_for }) => {
                let begun = *driver.begun.lock().await;
                let release = Release { begun, pause, waits: Some((step, &what_for)) };
                self.release(id, fence, &release).instrument(span).await;
            }
            Err(error) => {
                span.in_scope(|| tracing::warn!(%error, "the operation stands still until a daemon claims it again"));
            }
        }
        self.driven().retain(|_, other| !Arc::ptr_eq(other, &driver));
        self.announce(id);
    }

    async fn release(&self, id: OperationId, fence: i64, release: &Release<'_>) {
        if let Err(error) = self.parts.catalog.operation_release(id, fence, release).await {
            tracing::info!(%error, "the claim could not be given back; it runs out by itself");
        }
    }

    fn driven(&self) -> MutexGuard<'_, BTreeMap<OperationId, Arc<Driver>>> {
        self.driven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the claim is lost, and no later than the lease that the catalog has. It counts from before the
    /// catalog was asked: after that another daemon may drive the operation, and the bucket knows no fence.
    async fn heartbeat(&self, id: OperationId, fence: i64, claimed_at: Instant) {
        let lease = self.parts.config.operations.lease;
        let mut lost_at = claimed_at + lease;
        loop {
            tokio::time::sleep_until(lost_at.min(Instant::now() + lease / 4)).await;
            if Instant::now() >= lost_at {
                return;
            }
            let sent_at = Instant::now();
            let renewal = self.parts.catalog.operation_heartbeat(id, fence, lease);
            match tokio::time::timeout_at(lost_at.min(sent_at + lease / 4), renewal).await {
                Ok(Ok(true)) => lost_at = sent_at + lease,
                Ok(Ok(false)) => return,
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    fn attempt<'a>(&'a self, claimed: ClaimedOperation, driver: &'a Driver) -> BoxFuture<'a, Result<Driven, Error>> {
        Box::pin(self.steps_run(claimed, driver))
    }

    async fn steps_run(&self, claimed: ClaimedOperation, driver: &Driver) -> Result<Driven, Error> {
        if let Some(gone) = claimed.owner_before {
            self.gone.end_for(gone, claimed.operation.tenant).await?;
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
            match self.forward(&mut run, steps, &rows, driver).await? {
                Forward::Done => return self.end(&run, OperationState::Succeeded, kinds::result(&run), None).await,
                Forward::Waits(waits) => return Ok(waits),
                Forward::Failed(step, failure) => {
                    tracing::info!(step, reason = failure.reason(), "the step failed; undoing: {failure}");
                    let record = failure.failure(step).to_record();
                    self.parts.catalog.operation_fail(run.id(), run.fence(), &record).await?;
                    run.operation.error = Some(record);
                    self.announce(run.id());
                }
            }
        }
        self.backward(&mut run, steps).await
    }

    /// Runs the steps that are not done, up to the first that fails.
    async fn forward(
        &self,
        run: &mut Run,
        steps: &'static [Step],
        rows: &[OperationStep],
        driver: &Driver,
    ) -> Result<Forward, Error> {
        for (ordinal, step) in steps.iter().enumerate() {
            let row = rows.get(ordinal);
            if row.is_some_and(|row| row.state == StepState::Done) {
                continue;
            }
            let ordinal = ordinal_of(ordinal);
            {
                let mut begun = driver.begun.lock().await;
                self.parts.catalog.step_begin(run.id(), run.fence(), ordinal).await?;
                *begun = Some(ordinal);
            }
            run.is_repeated = row.is_some_and(|row| row.state != StepState::Pending);
            self.announce(run.id());
            if row.is_some_and(|row| row.attempts >= STEP_ATTEMPTS_MAX) {
                return Ok(Forward::Failed(step.name, StepError::gave_up(step.name, STEP_ATTEMPTS_MAX)));
            }
            let Done { output, detail } = loop {
                match (step.act)(run).await {
                    Ok(done) => break done,
                    Err(StepError::Claim(error)) => return Err(error),
                    Err(failure) if step.waits && failure.passes() => {
                        let attempt = Attempt { step: step.name, is_undo: false };
                        match self.again(run, attempt, ordinal, &failure).await {
                            Again::Now => run.is_repeated = true,
                            Again::Later(waits) => return Ok(Forward::Waits(waits)),
                            Again::Never => return Ok(Forward::Failed(step.name, failure)),
                        }
                    }
                    Err(failure) => return Ok(Forward::Failed(step.name, failure)),
                }
            };
            self.patience().forget(run.id());
            let detail = detail.unwrap_or_default();
            self.parts.catalog.step_end(run.id(), run.fence(), ordinal, output.clone(), &detail).await?;
            *driver.begun.lock().await = None;
            run.outputs.insert(step.name.to_owned(), output);
            self.announce(run.id());
        }
        Ok(Forward::Done)
    }

    /// Whether what has failed is tried again. Short pauses are slept here.
    async fn again(&self, run: &Run, attempt: Attempt, step: i32, failure: &StepError) -> Again {
        let repeat_max = self.parts.config.operations.repeat_max;
        let now = Instant::now();
        let pause = self.patience().pause(run.id(), attempt, failure.passes(), repeat_max, now);
        let Some(pause) = pause else { return Again::Never };
        tracing::info!(step = attempt.step, undo = attempt.is_undo, ?pause, "it is tried again: {failure}");
        if pause > PAUSE_IN_PLACE_MAX {
            return Again::Later(Driven::Waits { step, pause, what_for: format!("it is tried again: {failure}") });
        }
        tokio::time::sleep(pause).await;
        Again::Now
    }

    fn patience(&self) -> MutexGuard<'_, Patience> {
        self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Undoes, last first, every step that was begun.
    async fn backward(&self, run: &mut Run, steps: &'static [Step]) -> Result<Driven, Error> {
        let rows = self.parts.catalog.operation_get(run.id()).await?.steps;
        for (ordinal, step) in steps.iter().enumerate().rev() {
            let begun =
                rows.get(ordinal).is_some_and(|row| !matches!(row.state, StepState::Pending | StepState::Undone));
            if !begun {
                continue;
            }
            let ordinal = ordinal_of(ordinal);
            self.parts.catalog.step_undo_begin(run.id(), run.fence(), ordinal).await?;
            while let Err(failure) = (step.undo)(run).await {
                if let StepError::Claim(error @ Error::ClaimLost { .. }) = failure {
                    return Err(error);
                }
                let attempt = Attempt { step: step.name, is_undo: true };
                match self.again(run, attempt, ordinal, &failure).await {
                    Again::Now => {}
                    Again::Later(waits) => return Ok(waits),
                    Again::Never => {
                        tracing::error!(
                            step = step.name,
                            "the step cannot be undone; the operation is stuck: {failure}"
                        );
                        let record = stuck::record(run.id(), &failure.failure(step.name), run.operation.error.as_ref());
                        return self.end(run, OperationState::Stuck, Value::Null, Some(record)).await;
                    }
                }
            }
            self.patience().forget(run.id());
            self.parts.catalog.step_undo_end(run.id(), run.fence(), ordinal).await?;
            run.outputs.remove(step.name);
            self.announce(run.id());
        }
        let error = run.operation.error.clone();
        self.end(run, OperationState::Failed, Value::Null, error).await
    }

    async fn end(
        &self,
        run: &Run,
        state: OperationState,
        result: Value,
        error: Option<Value>,
    ) -> Result<Driven, Error> {
        let end = OperationEnd { state, result: (!result.is_null()).then_some(result), error };
        self.parts.catalog.operation_end(run.id(), run.fence(), &end).await?;
        tracing::info!(%state, "the operation has ended");
        self.announce(run.id());
        Ok(Driven::ToTheEnd)
    }

    fn announce(&self, id: OperationId) {
        // Nobody may be listening, which is fine.
        drop(self.changed.send(id));
    }
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
