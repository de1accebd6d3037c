//! Restoring over a tenant: the new database is filled and compared while the old one serves; then the gate is paused,
//! the server is proven empty, and one transaction renames both. Until the gate opens again everything can be taken
//! back. The old database is kept, closed, under a name with the operation's id.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::contents;
use super::step::{Done, Run, Step, StepError, step};
use super::tenant_parts::{self, Place};
use crate::catalog::TenantSchema;
use crate::domain::backup::Manifest;
use crate::domain::route::Gate;
use crate::domain::tenant::{TenantRole, database_replaced, database_under_construction};
use crate::postgres::admin;
use crate::postgres::properties::database_properties_copy;

pub(super) const STEPS: &[Step] = &[
    step!("validate", contents::validate),
    step!("plan", plan),
    step!("database", database, tenant_parts::new_database_undo),
    step!("contents", fill),
    step!("properties", properties),
    step!("pause", pause, unpause),
    step!("swap", swap, swap_back),
    step!("record", record, unrecord),
    step!("reopen", reopen).waiting(),
];

/// What the catalog says before the swap, and the generation that it will say after. Kept with the first step that
/// acts, so that doing and undoing set the same values however often they are repeated.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    generation: i64,
    schema_version_before: i64,
    schema_fingerprint_before: String,
    /// None in what an older daemon has stored.
    schema_files_hash_before: Option<String>,
}

async fn plan(run: &Run) -> Result<Done, StepError> {
    let tenant = Place::of(run).await?.tenant;
    Done::output(&Plan {
        generation: tenant.generation + 1,
        schema_version_before: tenant.schema_version,
        schema_fingerprint_before: tenant.schema_fingerprint.unwrap_or_default(),
        schema_files_hash_before: tenant.schema_files_hash,
    })
}

async fn database(run: &Run) -> Result<Done, StepError> {
    contents::database(run, run.output_of::<Plan>("plan")?.generation).await
}

async fn fill(run: &Run) -> Result<Done, StepError> {
    contents::fill(run, run.output_of::<Plan>("plan")?.generation).await
}

/// Which of the tenant's logins were not locked by anybody else, when they are locked for the swap.
#[derive(Debug, Serialize, Deserialize)]
struct Properties {
    logins: Vec<TenantRole>,
}

/// Gives the new database what the live one has beside its contents. From here on nobody connects to the new one: some
/// of it says who may.
async fn properties(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    let new = database_under_construction(run.id().0);
    let logins = tenant_parts::logins_enabled(&place, &TenantRole::DIRECT).await?;
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    admin::database_connections_allow(&client, &new, false).await?;
    admin::sessions_end(&client, &new).await?;
    let others: Vec<_> = TenantRole::DAEMONS.iter().filter_map(|role| place.roles.name(*role)).cloned().collect();
    let left_out = database_properties_copy(&client, &place.tenant.database, &new, &others).await?;
    let done = Done::output(&Properties { logins })?;
    if left_out.is_empty() {
        return Ok(done);
    }
    Ok(done.with_detail(format!("for an administrator to set again: {}", left_out.join("; "))))
}

/// Callers wait at the gate; direct clients are locked out and their sessions ended.
async fn pause(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    gate_set(run, Gate::Paused { operation: run.id().0 }).await?;
    run.parts.router.route_forget(place.tenant.id);
    tenant_parts::logins_enable(&place, &TenantRole::DIRECT, false).await?;
    tenant_parts::drain(run, &place).await?;
    Ok(Done::default())
}

async fn unpause(run: &Run) -> Result<(), StepError> {
    let place = Place::of(run).await?;
    let Properties { logins } = run.output_of("properties")?;
    tenant_parts::logins_enable(&place, &logins, true).await?;
    gate_set(run, Gate::Open).await?;
    run.parts.router.reopen(place.tenant.id);
    Ok(())
}

async fn gate_set(run: &Run, gate: Gate) -> Result<(), StepError> {
    let txn = run.parts.catalog.begin().await?;
    run.parts.catalog.gate_set_in_txn(&txn, run.tenant()?, gate, run.id()).await?;
    Ok(txn.commit().await?)
}

async fn swap(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    let (new, old) = (database_under_construction(run.id().0), database_replaced(run.id().0));
    let mut client = place.server.connect_admin(place.server.maintenance_database()).await?;
    if admin::database_oid(&client, &new).await?.is_some() {
        run.claim_check().await?;
        admin::databases_swap(&mut client, &place.tenant.database, &new, &old).await?;
    }
    Ok(Done::detail(format!("the former database is kept as {old}")))
}

/// The former database gets its name back, and the restored one its working name, for the undo of `database` to drop.
async fn swap_back(run: &Run) -> Result<(), StepError> {
    let place = Place::of(run).await?;
    let (new, old) = (database_under_construction(run.id().0), database_replaced(run.id().0));
    let mut client = place.server.connect_admin(place.server.maintenance_database()).await?;
    if admin::database_oid(&client, &old).await?.is_some() {
        run.claim_check().await?;
        admin::databases_swap(&mut client, &place.tenant.database, &old, &new).await?;
    }
    // A swap that failed may have left the door closed.
    Ok(admin::database_connections_allow(&client, &place.tenant.database, true).await?)
}

async fn record(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    let manifest: Manifest = run.output_of("validate")?;
    let old = database_replaced(run.id().0);
    let catalog = &run.parts.catalog;
    let txn = catalog.begin().await?;
    let tenant = &place.tenant;
    let plan: Plan = run.output_of("plan")?;
    catalog.tenant_generation_set_in_txn(&txn, tenant.id, plan.generation).await?;
    catalog.tenant_schema_set_in_txn(&txn, tenant.id, &contents::schema(&manifest)).await?;
    catalog.retired_database_insert_in_txn(&txn, &tenant.server, &old, tenant.id, run.id()).await?;
    txn.commit().await?;
    run.parts.router.route_forget(place.tenant.id);
    let output = json!({
        "backup_id": manifest.backup_id,
        "tenant_id": place.tenant.id,
        "code": place.tenant.code,
        "database": place.tenant.database,
        "former_database": old,
        "row_count": manifest.tables.iter().map(|table| table.row_count).sum::<i64>(),
        "tables": manifest.tables.len(),
    });
    Ok(Done { output, detail: None })
}

async fn unrecord(run: &Run) -> Result<(), StepError> {
    let place = Place::of(run).await?;
    let plan: Plan = run.output_of("plan")?;
    let catalog = &run.parts.catalog;
    let txn = catalog.begin().await?;
    catalog.tenant_generation_set_in_txn(&txn, place.tenant.id, plan.generation - 1).await?;
    let schema = TenantSchema {
        version: plan.schema_version_before,
        fingerprint: Some(&plan.schema_fingerprint_before),
        files_hash: plan.schema_files_hash_before.as_deref(),
    };
    catalog.tenant_schema_set_in_txn(&txn, place.tenant.id, &schema).await?;
    txn.commit().await?;
    Ok(catalog.retired_database_delete(&place.tenant.server, &database_replaced(run.id().0)).await?)
}

/// The gate opens last: before that nobody has seen the restored database.
async fn reopen(run: &Run) -> Result<Done, StepError> {
    unpause(run).await?;
    Ok(Done::default())
}
