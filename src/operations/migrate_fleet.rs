//! Driving a rollout: every target that is behind is brought to the directory's newest version, a bounded number at a
//! time, until all are done or more have failed than the budget allows. One tenant's failure leaves that tenant as it
//! was and does not stop the others. Nothing is undone: each migration is whole or did not happen.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::json;

use super::failure::Failure;
use super::step::{Done, Run, Step, StepError, step};
use super::tenant_parts::{self, Place};
use crate::catalog::{RolloutTarget, TargetOutcome, Tenant, TenantSchema};
use crate::domain::migration::{MigrationFile, RolloutState, Standing, TargetState, rollout_outcome, standing};
use crate::domain::tenant::{TenantId, TenantRole};
use crate::migrator;
use crate::postgres::fingerprint::fingerprint;

pub(super) const STEPS: &[Step] = &[step!("targets", targets, targets_failed), step!("finish", finish)];

/// How often a tenant that another operation holds is looked at again, and for how long.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(250);
const BUSY_WAIT_MAX: Duration = Duration::from_mins(1);
/// More than a fleet has.
const TARGETS_MAX: u64 = 1_000_000;

async fn targets(run: &Run) -> Result<Done, StepError> {
    let catalog = &run.parts.catalog;
    let rollout = catalog.rollout_get(run.id()).await?;
    let files = catalog.rollout_files(run.id()).await?;
    let mut open = catalog.targets_next(run.id(), TARGETS_MAX).await?.into_iter();
    let concurrency_max = run.parts.config.migrator.concurrency_max;
    let mut running = FuturesUnordered::new();
    let mut failed = catalog.targets_count(run.id()).await?.get(TargetState::Failed.name()).copied().unwrap_or(0);
    loop {
        while failed <= i64::from(rollout.failures_max) && running.len() < concurrency_max {
            let Some(target) = open.next() else { break };
            running.push(one_target(run, &files, target));
        }
        match running.next().await {
            None => break,
            Some(Ok(TargetState::Failed)) => failed += 1,
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
        }
    }
    let reason = "not begun: the failure budget was used up";
    let skipped = catalog.targets_skip(run.id(), run.fence(), reason).await?;
    Ok(Done::detail(format!("{failed} failed, {skipped} not begun")))
}

/// The rollout could not be driven to its end. What is migrated stays migrated.
async fn targets_failed(run: &Run) -> Result<(), StepError> {
    let why = run.operation.error.as_ref().map(|record| Failure::read(record).message);
    Ok(run.parts.catalog.rollout_end(run.id(), run.fence(), RolloutState::Failed, why.as_deref()).await?)
}

/// Brings one tenant up, and records how that went.
async fn one_target(run: &Run, files: &[MigrationFile], target: RolloutTarget) -> Result<TargetState, StepError> {
    let catalog = &run.parts.catalog;
    wait_until_free(run, target.tenant).await?;
    catalog.target_begin(run.id(), run.fence(), target.tenant).await?;
    let (state, outcome) = match attempt(run, files, &target).await {
        Ok(ended) => ended,
        Err(StepError::Claim(error)) => return Err(StepError::Claim(error)),
        Err(failure) => failed(failure.to_string(), None),
    };
    catalog.target_end(run.id(), run.fence(), target.tenant, state, &outcome).await?;
    run.parts.router.route_forget(target.tenant);
    Ok(state)
}

fn failed(error: String, sqlstate: Option<String>) -> (TargetState, TargetOutcome) {
    (TargetState::Failed, TargetOutcome { error: Some(error), sqlstate, ..TargetOutcome::default() })
}

async fn attempt(
    run: &Run,
    files: &[MigrationFile],
    target: &RolloutTarget,
) -> Result<(TargetState, TargetOutcome), StepError> {
    let place = Place::of_tenant(&run.parts, target.tenant).await?;
    let database = &place.tenant.database;
    let mut client = tenant_parts::connect_as(run, &place, TenantRole::Migrator, database, "migrate").await?;
    let (id, known) = (place.tenant.id, place.tenant.schema_version);
    let report = match migrator::migrate_tenant(&mut client, files, &run.parts.config.migrator, id, known).await {
        Ok(report) => report,
        Err(error) => {
            drop(client);
            if let Some(version) = error.version.filter(|version| *version != place.tenant.schema_version) {
                note_partly(run, &place, version, error.files_hash.as_deref()).await?;
            }
            return Ok(failed(error.to_string(), error.sqlstate().map(str::to_owned)));
        }
    };
    let schema = TenantSchema {
        version: report.to,
        fingerprint: Some(&report.fingerprint),
        files_hash: Some(&report.files_hash),
    };
    note(run, &place.tenant, &schema).await?;
    let newest = files.last().map_or(0, |file| file.version);
    let state = match standing(report.to, newest) {
        Standing::Ahead => TargetState::Ahead,
        Standing::Current if report.applied == 0 => TargetState::Current,
        Standing::Current | Standing::Behind => TargetState::Migrated,
    };
    let applied = i32::try_from(report.applied).unwrap_or(i32::MAX);
    Ok((state, TargetOutcome { to_version: Some(report.to), applied, ..TargetOutcome::default() }))
}

/// The files before the one that failed are applied, and stay so.
async fn note_partly(run: &Run, place: &Place, version: i64, files_hash: Option<&str>) -> Result<(), StepError> {
    let database = &place.tenant.database;
    let client = tenant_parts::connect_as(run, place, TenantRole::Migrator, database, "migrate").await?;
    let fingerprint = fingerprint(&client).await?;
    let schema = TenantSchema { version, fingerprint: Some(&fingerprint), files_hash };
    note(run, &place.tenant, &schema).await
}

/// Notes the tenant's version, unless a restore has put another database in its place meanwhile.
async fn note(run: &Run, before: &Tenant, schema: &TenantSchema<'_>) -> Result<(), StepError> {
    let catalog = &run.parts.catalog;
    let txn = catalog.begin().await?;
    if catalog.tenant_lock_in_txn(&txn, before.id).await?.generation != before.generation {
        let why = "another database took the tenant's place meanwhile; run again";
        return Err(StepError::failed("OPERATION_CONFLICT", why));
    }
    catalog.tenant_schema_set_in_txn(&txn, before.id, schema).await?;
    Ok(txn.commit().await?)
}

/// Another operation may hold the tenant: a restore would throw away what is migrated beside it. After a while the
/// target is begun all the same, and the database's own lock decides.
async fn wait_until_free(run: &Run, tenant: TenantId) -> Result<(), StepError> {
    let until = tokio::time::Instant::now() + BUSY_WAIT_MAX;
    while run.parts.catalog.operation_on_tenant(tenant).await?.is_some() && tokio::time::Instant::now() < until {
        tokio::time::sleep(BUSY_POLL_INTERVAL).await;
    }
    Ok(())
}

async fn finish(run: &Run) -> Result<Done, StepError> {
    let catalog = &run.parts.catalog;
    let rollout = catalog.rollout_get(run.id()).await?;
    let counts = catalog.targets_count(run.id()).await?;
    let state = rollout_outcome(&counts, i64::from(rollout.failures_max));
    catalog.rollout_end(run.id(), run.fence(), state, None).await?;
    Ok(Done { output: json!({ "rollout_id": run.id(), "state": state, "counts": counts }), detail: None })
}
