//! One tenant of a rollout: its turn, which other operations on it may hold up, its migration, and what is written down
//! of it. What the database says it has reached is what the catalog and the report say.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use super::paused_target;
use super::step::{Run, StepError};
use super::tenant_parts::{self, Place};
use crate::catalog::{Beside, Operation, RolloutTarget, TargetBegun, TargetOutcome, Tenant, TenantSchema};
use crate::domain::migration::{MigrationFile, Standing, TargetState, standing};
use crate::domain::operation::{OperationId, OperationKind, OperationState};
use crate::domain::tenant::TenantRole;
use crate::migrator::{self, Cause, History, TenantError};
use crate::postgres::Connection;
use crate::postgres::fingerprint::fingerprint;

/// How often a tenant that another operation holds is looked at again, and for how long.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(250);
const BUSY_WAIT_MAX: Duration = Duration::from_mins(1);
/// What is waited for as long as it lives has no longer than this between two heartbeats of its daemon.
const SILENT_MAX: Duration = Duration::from_mins(10);

/// How many targets have failed, and how many may.
pub(super) struct Budget {
    failed: AtomicI64,
    failures_max: i64,
}

impl Budget {
    pub(super) fn new(failed: i64, failures_max: i32) -> Self {
        Self { failed: AtomicI64::new(failed), failures_max: failures_max.into() }
    }

    pub(super) fn failed(&self) -> i64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// No further target is begun.
    pub(super) fn is_spent(&self) -> bool {
        self.failed() > self.failures_max
    }
}

/// What all targets of one drive share.
pub(super) struct Work<'a> {
    pub(super) run: &'a Run,
    pub(super) files: &'a [MigrationFile],
    pub(super) budget: &'a Budget,
    /// Each tenant is paused while it is migrated.
    pub(super) pauses: bool,
}

/// How a target's turn went.
pub(super) enum Turn {
    Ended,
    /// The tenant is still being made, migrated or backed up; others may go first.
    Later(Box<RolloutTarget>),
    /// The budget was used up while it waited for its tenant.
    NotBegun,
}

/// What there is to do once a target's turn has come.
enum Start {
    Migrate(Box<(RolloutTarget, Tenant)>),
    End(TargetState, TargetOutcome),
    Wait(Turn),
}

/// Brings one tenant up, and records how that went.
pub(super) async fn one_target(work: &Work<'_>, target: RolloutTarget, is_late: bool) -> Result<Turn, StepError> {
    let run = work.run;
    let tenant = target.tenant;
    // A daemon that is gone may have migrated it and not have said so.
    let is_resumed = target.state == TargetState::Running;
    let (state, mut outcome) = match begin(work, target, is_late).await? {
        Start::Wait(turn) => return Ok(turn),
        Start::End(state, outcome) => (state, outcome),
        Start::Migrate(begun) => {
            let (target, tenant) = *begun;
            match attempt(work, tenant, is_resumed.then_some(target.from_version)).await {
                Ok(ended) => ended,
                Err(StepError::Claim(error)) => return Err(StepError::Claim(error)),
                Err(failure) => failed(failure.to_string()),
            }
        }
    };
    let opened = if work.pauses { paused_target::reopen(run, tenant).await } else { Ok(()) };
    match opened {
        Ok(()) => {}
        Err(StepError::Claim(error)) => return Err(StepError::Claim(error)),
        Err(failure) => {
            let paused = format!("the tenant was not opened in its turn, but later or not at all: {failure}");
            outcome.error = Some(outcome.error.map_or_else(|| paused.clone(), |error| format!("{error}; {paused}")));
        }
    }
    run.parts.catalog.target_end(run.id(), run.fence(), tenant, state, &outcome).await?;
    if state == TargetState::Failed {
        work.budget.failed.fetch_add(1, Ordering::Relaxed);
    }
    run.parts.router.route_forget(tenant);
    Ok(Turn::Ended)
}

fn ended(state: TargetState, error: impl Into<String>) -> (TargetState, TargetOutcome) {
    (state, TargetOutcome { error: Some(error.into()), ..TargetOutcome::default() })
}

fn failed(error: impl Into<String>) -> (TargetState, TargetOutcome) {
    ended(TargetState::Failed, error)
}

/// Begins the target as soon as no other operation has its tenant. A restore would throw away what is migrated beside
/// it, and a suspension end the migration's session; a backup does neither, and after a while is left to the locks of
/// the database. A pause ends all sessions: whoever pauses waits for backups and other rollouts, and they for it.
async fn begin(work: &Work<'_>, target: RolloutTarget, is_late: bool) -> Result<Start, StepError> {
    let Work { run, budget, pauses, .. } = *work;
    let mut wait: Option<Wait> = None;
    loop {
        let beside = match wait.as_ref().is_some_and(Wait::is_over) {
            _ if pauses => Beside::Nothing,
            true => Beside::All,
            false => Beside::Rollouts,
        };
        let begun = run.parts.catalog.target_begin(run.id(), run.fence(), target.tenant, beside).await?;
        let ended = |(state, outcome)| Ok(Start::End(state, outcome));
        let holder = match begun {
            TargetBegun::Begun(begun) => return Ok(Start::Migrate(begun)),
            TargetBegun::Gone => return ended(ended_skipped("not begun: the tenant's creation was undone")),
            TargetBegun::Unfit(state) => {
                return ended(ended_skipped(&format!("not begun: the tenant is in state {state}")));
            }
            TargetBegun::Held(holder) => holder,
        };
        let who = format!("the operation {} ({})", holder.id, holder.kind);
        if holder.state == OperationState::Stuck {
            let advice =
                "see `operation show`, and end it with `operation retry` or `operation abandon`; then run again";
            return ended(failed(format!("not begun: {who} is stuck and keeps the tenant; {advice}")));
        }
        let while_it_lives = holder.kind.makes_tenant()
            || holder.kind == OperationKind::MigrateFleet
            || (holder.kind == OperationKind::Backup && pauses);
        if while_it_lives && !is_late {
            return Ok(Start::Wait(Turn::Later(Box::new(target))));
        }
        let waiting = Wait::on(wait, &holder, while_it_lives);
        let is_over = waiting.is_over();
        wait = Some(waiting);
        if is_over && holder.kind == OperationKind::Backup && !pauses {
            continue;
        }
        if is_over {
            let why = if while_it_lives { "is driven by no daemon" } else { "works on the tenant" };
            return ended(failed(format!("not begun: {who} {why}; run again when it has ended")));
        }
        sleep(BUSY_POLL_INTERVAL).await;
        if budget.is_spent() && target.state == TargetState::Pending {
            return Ok(Start::Wait(Turn::NotBegun));
        }
    }
}

fn ended_skipped(reason: &str) -> (TargetState, TargetOutcome) {
    ended(TargetState::Skipped, reason)
}

/// How long one operation has kept a target waiting.
struct Wait {
    holder: OperationId,
    seen: OffsetDateTime,
    since: Instant,
    max: Duration,
}

impl Wait {
    /// Goes on waiting, or begins anew: for another operation, and for one that is waited for while it lives and whose
    /// row has changed, or which has not had its turn.
    fn on(wait: Option<Self>, holder: &Operation, while_it_lives: bool) -> Self {
        let lives = |wait: &Self| wait.seen != holder.updated_at || holder.state == OperationState::Pending;
        let is_same = |wait: &Self| wait.holder == holder.id && !(while_it_lives && lives(wait));
        let max = if while_it_lives { SILENT_MAX } else { BUSY_WAIT_MAX };
        let anew = || Self { holder: holder.id, seen: holder.updated_at, since: Instant::now(), max };
        wait.filter(is_same).unwrap_or_else(anew)
    }

    fn is_over(&self) -> bool {
        self.since.elapsed() >= self.max
    }
}

/// `resumed_from` is the version at which an earlier drive of this rollout has begun the target.
async fn attempt(
    work: &Work<'_>,
    tenant: Tenant,
    resumed_from: Option<i64>,
) -> Result<(TargetState, TargetOutcome), StepError> {
    let Work { run, files, pauses, .. } = *work;
    let place = Place::at(&run.parts, tenant)?;
    if pauses && paused_target::is_called_for(run, place.tenant.gate) && is_behind(run, files, &place).await? {
        paused_target::pause(run, &place).await?;
    }
    let (id, known) = (place.tenant.id, place.tenant.schema_version);
    let mut client = connect(run, &place).await?;
    let report = match migrator::migrate_tenant(&mut client, files, &run.parts.config.migrator, id, known).await {
        Ok(report) => report,
        Err(error) => {
            drop(client);
            let to_version = reached(run, &place, &error).await?;
            let from = resumed_from.or(error.from);
            let applied = from.zip(to_version).map_or(0, |(from, to)| applied(files, from, to));
            let sqlstate = error.sqlstate().map(str::to_owned);
            let outcome = TargetOutcome { to_version, applied, error: Some(error.to_string()), sqlstate };
            return Ok((TargetState::Failed, outcome));
        }
    };
    let schema = TenantSchema {
        version: report.to,
        fingerprint: Some(&report.fingerprint),
        files_hash: Some(&report.files_hash),
    };
    note(run, &place.tenant, &schema).await?;
    let applied = applied(files, resumed_from.unwrap_or(report.from).min(report.from), report.to);
    let newest = files.last().map_or(0, |file| file.version);
    let state = match standing(report.to, newest) {
        Standing::Ahead => TargetState::Ahead,
        Standing::Current if applied == 0 => TargetState::Current,
        Standing::Current | Standing::Behind => TargetState::Migrated,
    };
    Ok((state, TargetOutcome { to_version: Some(report.to), applied, ..TargetOutcome::default() }))
}

/// Whether there is something to apply, as the database says.
async fn is_behind(run: &Run, files: &[MigrationFile], place: &Place) -> Result<bool, StepError> {
    let history = history(&connect(run, place).await?).await?;
    let newest = files.last().map_or(0, |file| file.version);
    Ok(standing(history.version, newest) == Standing::Behind)
}

async fn connect(run: &Run, place: &Place) -> Result<Connection, StepError> {
    tenant_parts::connect_as(run, place, TenantRole::Migrator, &place.tenant.database, "migrate").await
}

/// How many of the files are above one version and not above the other.
fn applied(files: &[MigrationFile], from: i64, to: i64) -> i32 {
    let between = files.iter().filter(|file| from < file.version && file.version <= to).count();
    i32::try_from(between).unwrap_or(i32::MAX)
}

/// What a migration that has failed has brought its tenant to, and notes it: the files before the one that failed are
/// applied, and stay so. None when it is not known. Why it has failed is told by the error, so that nothing but a lost
/// claim is an error here.
async fn reached(run: &Run, place: &Place, error: &TenantError) -> Result<Option<i64>, StepError> {
    let Some(version) = error.version else { return Ok(None) };
    // A session that breaks may have committed its last file.
    let is_unsure = matches!(error.cause, Cause::Session(_));
    if version <= place.tenant.schema_version && !is_unsure {
        return Ok(Some(version));
    }
    let noted = match look(run, place).await {
        Ok((history, fingerprint)) => {
            let files_hash = Some(history.files_hash.as_str());
            let schema = TenantSchema { version: history.version, fingerprint: Some(&fingerprint), files_hash };
            note(run, &place.tenant, &schema).await.map(|()| history.version)
        }
        Err(StepError::Claim(error)) => Err(StepError::Claim(error)),
        Err(failure) => {
            tracing::info!(tenant = %place.tenant.code, "a tenant that was migrated in part cannot be asked: {failure}");
            let schema = TenantSchema { version, fingerprint: None, files_hash: error.files_hash.as_deref() };
            let is_news = version > place.tenant.schema_version;
            let noted = if is_news { note(run, &place.tenant, &schema).await } else { Ok(()) };
            noted.map(|()| version)
        }
    };
    match noted {
        Ok(version) => Ok(Some(version)),
        Err(StepError::Claim(error)) => Err(StepError::Claim(error)),
        Err(failure) => {
            tracing::info!(tenant = %place.tenant.code, "what a tenant was migrated to is not noted: {failure}");
            Ok(Some(version))
        }
    }
}

async fn look(run: &Run, place: &Place) -> Result<(History, String), StepError> {
    let client = connect(run, place).await?;
    Ok((history(&client).await?, fingerprint(&client).await?))
}

async fn history(client: &Connection) -> Result<History, StepError> {
    migrator::history_look(client).await.map_err(|cause| StepError::failed("SQL", cause.to_string()))
}

/// Notes the tenant's schema, unless a restore has put another database in its place meanwhile. Another rollout may have
/// brought it further; the catalog's version is never lowered here.
async fn note(run: &Run, before: &Tenant, schema: &TenantSchema<'_>) -> Result<(), StepError> {
    let catalog = &run.parts.catalog;
    let txn = catalog.begin().await?;
    let now = catalog.tenant_lock_in_txn(&txn, before.id).await?;
    if now.generation != before.generation {
        let why = "another database took the tenant's place meanwhile; run again";
        return Err(StepError::failed("OPERATION_CONFLICT", why));
    }
    if now.schema_version <= schema.version {
        catalog.tenant_schema_set_in_txn(&txn, before.id, schema).await?;
    }
    Ok(txn.commit().await?)
}
