//! Suspending a tenant: its route closed, its logins locked, its sessions ended. Its data stays where it is, and the
//! dump role still gets in, because a suspended tenant is still backed up. Resuming takes the same steps back. Both wait
//! for a server that is away: a tenant that was to be suspended is closed meanwhile.

use serde::{Deserialize, Serialize};

use super::step::{Done, Run, Step, StepError, step};
use super::tenant_parts::{self, Place};
use crate::domain::lifecycle::{TenantState, Transition};
use crate::domain::route::Gate;
use crate::domain::tenant::TenantRole;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Input {
    /// Empty for a resume.
    pub(super) reason: String,
}

pub(super) const SUSPEND_STEPS: &[Step] = &[
    step!("close", close, reopen),
    step!("lock_logins", lock_logins, unlock_logins_undo).waiting(),
    step!("end_sessions", end_sessions).waiting(),
];

pub(super) const RESUME_STEPS: &[Step] =
    &[step!("unlock_logins", unlock_logins, lock_logins_undo).waiting(), step!("open", open)];

async fn close(run: &Run) -> Result<Done, StepError> {
    let input: Input = run.input()?;
    let gate = Gate::Closed { operation: None };
    let catalog = &run.parts.catalog;
    let txn = catalog.begin().await?;
    let tenant = run.tenant()?;
    if catalog.tenant_lock_in_txn(&txn, tenant).await?.state != TenantState::Suspended {
        catalog.tenant_transition_in_txn(&txn, tenant, Transition::Suspend).await?;
    }
    catalog.tenant_suspend_reason_set_in_txn(&txn, tenant, Some(&input.reason)).await?;
    catalog.gate_set_in_txn(&txn, tenant, gate, run.id()).await?;
    txn.commit().await?;
    run.parts.router.route_forget(run.tenant()?);
    Ok(Done::detail(input.reason))
}

async fn reopen(run: &Run) -> Result<(), StepError> {
    set_open(run).await
}

async fn open(run: &Run) -> Result<Done, StepError> {
    set_open(run).await?;
    Ok(Done::default())
}

async fn set_open(run: &Run) -> Result<(), StepError> {
    let catalog = &run.parts.catalog;
    let txn = catalog.begin().await?;
    let tenant = run.tenant()?;
    if catalog.tenant_lock_in_txn(&txn, tenant).await?.state == TenantState::Suspended {
        catalog.tenant_transition_in_txn(&txn, tenant, Transition::Resume).await?;
    }
    catalog.tenant_suspend_reason_set_in_txn(&txn, tenant, None).await?;
    catalog.gate_set_in_txn(&txn, tenant, Gate::Open, run.id()).await?;
    txn.commit().await?;
    run.parts.router.reopen(run.tenant()?);
    Ok(())
}

/// Migrations go on.
async fn lock_logins(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    tenant_parts::logins_enable(&place, &TenantRole::CALLERS, false).await?;
    Ok(Done::default())
}

async fn unlock_logins(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    for role in TenantRole::DAEMONS {
        tenant_parts::login_restore(run, &place, role, &place.tenant.database).await?;
    }
    tenant_parts::logins_enable(&place, &TenantRole::CALLERS, true).await?;
    Ok(Done::default())
}

async fn lock_logins_undo(run: &Run) -> Result<(), StepError> {
    lock_logins(run).await.map(drop)
}

async fn unlock_logins_undo(run: &Run) -> Result<(), StepError> {
    unlock_logins(run).await.map(drop)
}

async fn end_sessions(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    tenant_parts::drain(run, &place).await?;
    Ok(Done::default())
}
