//! A tenant of a rollout that pauses: its door is shut before the first migration and opened after the last, whether
//! they went well or not. Callers of the router wait meanwhile, and on the server no login but the migrator's gets in.
//!
//! Always holds: a target's pause ends before the target does. One that cannot be opened, because its server is away,
//! holds up its own turn only, then the end of the rollout, and in the end the rollout is stuck with it.

use tokio::time::{Instant, sleep};

use super::patience::{Attempt, Patience};
use super::step::{Run, StepError};
use super::tenant_parts::{self, Place};
use crate::catalog::PausedTarget;
use crate::domain::route::Gate;
use crate::domain::tenant::{TenantId, TenantRole};
use crate::postgres::admin;

/// Shuts the tenant's door until [`reopen`]. In this order nobody who waits for a connection is refused: the router's
/// login is locked when its pools are empty and its callers wait at the gate.
pub(super) async fn pause(run: &Run, place: &Place) -> Result<(), StepError> {
    let tenant = place.tenant.id;
    let logins = tenant_parts::logins_enabled(place, &TenantRole::CALLERS).await?;
    run.parts.catalog.target_pause(run.id(), run.fence(), tenant, &logins).await?;
    run.parts.router.route_forget(tenant);
    tenant_parts::logins_enable(place, &TenantRole::DIRECT, false).await?;
    tenant_parts::drain(run, place).await?;
    // A daemon that has not heard of the pause may have let somebody in.
    tenant_parts::logins_enable(place, &[TenantRole::Router], false).await?;
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    admin::sessions_end(&client, &place.tenant.database).await?;
    run.claim_check().await
}

/// Opens the tenant's door, if this rollout has shut it. A server that is away is waited for.
pub(super) async fn reopen(run: &Run, tenant: TenantId) -> Result<(), StepError> {
    let attempt = Attempt { step: "reopen", is_undo: true };
    let repeat_max = run.parts.config.operations.repeat_max;
    let mut patience = Patience::default();
    loop {
        let Some(paused) = run.parts.catalog.target_paused(run.id(), tenant).await? else { return Ok(()) };
        let failure = match open(run, &paused).await {
            Ok(()) => return Ok(()),
            Err(StepError::Claim(error)) => return Err(StepError::Claim(error)),
            Err(failure) => failure,
        };
        let pause = patience.pause(run.id(), attempt, failure.passes(), repeat_max, Instant::now());
        let Some(pause) = pause else { return Err(failure) };
        tracing::warn!(%tenant, ?pause, "a paused tenant cannot be opened; it is tried again: {failure}");
        sleep(pause).await;
    }
}

/// Opens every door that this rollout still keeps shut, past those that cannot be opened, whose first failure is told.
pub(super) async fn reopen_all(run: &Run) -> Result<(), StepError> {
    let mut first = Ok(());
    for paused in run.parts.catalog.targets_paused(run.id()).await? {
        match open(run, &paused).await {
            Err(StepError::Claim(error)) => return Err(StepError::Claim(error)),
            opened => first = first.and(opened),
        }
    }
    first
}

async fn open(run: &Run, paused: &PausedTarget) -> Result<(), StepError> {
    let place = Place::of_tenant(&run.parts, paused.tenant).await?;
    run.claim_check().await?;
    tenant_parts::logins_enable(&place, &paused.logins, true).await?;
    run.parts.catalog.target_unpause(run.id(), run.fence(), paused.tenant).await?;
    run.parts.router.reopen(paused.tenant);
    Ok(())
}

/// Whether callers may be in the tenant's database, or this rollout has shut them out before.
pub(super) fn is_called_for(run: &Run, gate: Gate) -> bool {
    gate == Gate::Open || gate == (Gate::Paused { operation: run.id().0 })
}
