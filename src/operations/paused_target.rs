//! A tenant of a rollout that pauses: its door is shut before the first migration and opened after the last, whether
//! they went well or not. Callers of the router wait meanwhile, and on the server no login but the migrator's gets in.
//!
//! Always holds: a target's pause ends before the target does. One that cannot be opened, because its server is away,
//! holds up its own turn for a while, is tried again and again while the others have theirs, then holds up the end of
//! the rollout, and in the end the rollout is stuck with it.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::patience::{Attempt, Patience};
use super::step::{Run, StepError};
use super::tenant_parts::{self, Place};
use crate::catalog::PausedTarget;
use crate::domain::migration::TargetState;
use crate::domain::route::Gate;
use crate::domain::tenant::{TenantId, TenantRole};
use crate::postgres::admin;

/// How long a turn goes on only because its tenant cannot be opened.
const TURN_MAX: Duration = Duration::from_secs(30);
/// How often those that were left shut are tried again.
const LEFT_INTERVAL: Duration = Duration::from_secs(15);

/// Shuts the tenant's door until [`reopen`]. In this order nobody who waits for a connection is refused: the routers'
/// login is locked when their pools are empty and their callers wait at the gate.
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

/// Opens the tenant's door, if this rollout has shut it. A server that is away is waited for a while.
pub(super) async fn reopen(run: &Run, tenant: TenantId) -> Result<(), StepError> {
    patiently(run, TURN_MAX, Some(tenant)).await
}

/// While others have their turns, tries to open those that could not be opened in theirs. Ends nobody's turn: a claim
/// that is lost ends the whole drive, and a catalog that is away for a moment ends nothing.
pub(super) async fn reopen_left(run: &Run, pauses: bool) -> Infallible {
    loop {
        sleep(LEFT_INTERVAL).await;
        let opened = if pauses { opened(run, |state| state != TargetState::Running).await } else { Ok(()) };
        match opened {
            Err(StepError::Claim(error)) => {
                tracing::info!(%error, "whether a tenant is left paused is looked at later");
            }
            Err(failure) => tracing::warn!("a paused tenant cannot be opened; it is tried again: {failure}"),
            Ok(()) => {}
        }
    }
}

/// At the end of all turns, opens those that are left, and waits for servers that are away.
pub(super) async fn reopen_rest(run: &Run) -> Result<(), StepError> {
    patiently(run, run.parts.config.operations.repeat_max, None).await
}

/// Opens every door that this rollout still keeps shut, past those that cannot be opened. Of their failures one is told
/// that passes, if there is one: as long as that is waited for, all are tried again.
pub(super) async fn open_all(run: &Run) -> Result<(), StepError> {
    opened(run, |_| true).await
}

async fn opened(run: &Run, which: fn(TargetState) -> bool) -> Result<(), StepError> {
    let mut outcome: Result<(), StepError> = Ok(());
    for paused in run.parts.catalog.targets_paused(run.id()).await? {
        if !which(paused.state) {
            continue;
        }
        match open(run, &paused).await {
            Err(StepError::Claim(error)) => return Err(StepError::Claim(error)),
            Err(failure) if outcome.as_ref().is_ok() || failure.passes() => outcome = Err(failure),
            Ok(()) | Err(_) => {}
        }
    }
    outcome
}

/// Opens one tenant's door or all; repeats what fails, for no longer than this if it passes by itself.
async fn patiently(run: &Run, repeat_max: Duration, tenant: Option<TenantId>) -> Result<(), StepError> {
    let attempt = Attempt { step: "reopen", is_undo: true };
    let repeat_max = repeat_max.min(run.parts.config.operations.repeat_max);
    let mut patience = Patience::default();
    loop {
        let opened = match tenant {
            Some(tenant) => open_one(run, tenant).await,
            None => open_all(run).await,
        };
        let failure = match opened {
            Ok(()) => return Ok(()),
            Err(StepError::Claim(error)) => return Err(StepError::Claim(error)),
            Err(failure) => failure,
        };
        let pause = patience.pause(run.id(), attempt, failure.passes(), repeat_max, Instant::now());
        let Some(pause) = pause else { return Err(failure) };
        tracing::warn!(?pause, "a paused tenant cannot be opened; it is tried again: {failure}");
        sleep(pause).await;
    }
}

async fn open_one(run: &Run, tenant: TenantId) -> Result<(), StepError> {
    match run.parts.catalog.target_paused(run.id(), tenant).await? {
        Some(paused) => open(run, &paused).await,
        None => Ok(()),
    }
}

async fn open(run: &Run, paused: &PausedTarget) -> Result<(), StepError> {
    let place = Place::of_tenant(&run.parts, paused.tenant).await?;
    run.claim_check().await?;
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    // A migration whose session broke off may still run there.
    let migrator: Vec<_> = place.roles.name(TenantRole::Migrator).cloned().into_iter().collect();
    admin::role_sessions_end(&client, &place.tenant.database, &migrator).await?;
    tenant_parts::logins_enable(&place, &paused.logins, true).await?;
    run.parts.catalog.target_unpause(run.id(), run.fence(), paused.tenant).await?;
    run.parts.router.reopen(paused.tenant);
    Ok(())
}

/// Whether callers may be in the tenant's database, or this rollout has shut them out before.
pub(super) fn is_called_for(run: &Run, gate: Gate) -> bool {
    gate == Gate::Open || gate == (Gate::Paused { operation: run.id().0 })
}
