//! Creating a tenant: credentials, roles, a database filled under a name that carries the operation's id, and only
//! then the name that the router knows. Any failure takes everything back, the tenant's row included.

use serde::{Deserialize, Serialize};

use super::sample_data;
use super::step::{Done, Run, Step, StepError, step};
use super::tenant_parts::{self, NewDatabase, Place};
use crate::accounts::NewOwner;
use crate::catalog::TenantSchema;
use crate::domain::migration::MigrationFile;
use crate::domain::tenant::{TenantRole, database_under_construction};
use crate::migrator::TenantReport;

/// As stored with the operation. The migration files travel along, so that the daemon that resumes the operation
/// applies the same ones.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) files: Vec<MigrationFile>,
    pub(super) sample_data: bool,
    pub(super) administrator: Option<Administrator>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Administrator {
    pub(super) email: String,
    pub(super) first_name: String,
    pub(super) last_name: String,
}

pub(super) const STEPS: &[Step] = &[
    step!("reserve", reserve, tenant_parts::unreserve),
    step!("credentials", tenant_parts::credentials),
    step!("roles", tenant_parts::roles, tenant_parts::roles_undo),
    step!("database", database, tenant_parts::new_database_undo),
    step!("migrations", migrations),
    step!("sample_data", sample_rows),
    step!("name", tenant_parts::name, tenant_parts::name_undo),
    step!("license", tenant_parts::license),
    step!("administrator", administrator, administrator_undo),
    step!("activate", activate),
];

/// The row was written with the operation itself; this step is there to be undone.
pub(super) async fn reserve(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    Ok(Done::detail(format!("{} on {}", place.tenant.database, place.tenant.server)))
}

async fn database(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    let name = database_under_construction(run.id().0);
    tenant_parts::new_database(run, &place, &NewDatabase::empty(name, place.tenant.generation)).await?;
    Ok(Done::default())
}

async fn migrations(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    let input: Input = run.input()?;
    let name = database_under_construction(run.id().0);
    let report = tenant_parts::migrate(run, &place, &name, &input.files).await?;
    let detail = format!("{} migrations, now at version {}", report.applied, report.to);
    let TenantReport { to: version, fingerprint, files_hash, .. } = report;
    Ok(Done::output(&Migrated { version, fingerprint, files_hash: Some(files_hash) })?.with_detail(detail))
}

#[derive(Debug, Serialize, Deserialize)]
struct Migrated {
    version: i64,
    fingerprint: String,
    /// None in what an older daemon has stored.
    files_hash: Option<String>,
}

async fn sample_rows(run: &Run) -> Result<Done, StepError> {
    if !run.input::<Input>()?.sample_data {
        return Ok(Done::detail("not asked for"));
    }
    let place = Place::of(run).await?;
    let name = database_under_construction(run.id().0);
    let mut client = tenant_parts::connect_as(run, &place, TenantRole::Migrator, &name, "sample data").await?;
    let rows = sample_data::sample_rows_insert(&mut client, place.tenant.code.as_str())
        .await
        .map_err(|error| StepError::failed("INTERNAL", format!("the demo rows do not fit this schema: {error}")))?;
    Ok(Done::detail(format!("{rows} rows")))
}

async fn administrator(run: &Run) -> Result<Done, StepError> {
    let Some(administrator) = run.input::<Input>()?.administrator else {
        return Ok(Done::detail("not asked for"));
    };
    let tenant = run.tenant()?;
    let Administrator { email, first_name, last_name } = &administrator;
    run.parts.accounts.user_upsert_owner_in(tenant, &NewOwner { email, first_name, last_name }).await?;
    Ok(Done::detail(format!("{email} is OWNER")))
}

async fn administrator_undo(run: &Run) -> Result<(), StepError> {
    run.parts.accounts.user_tenant_roles_delete(run.tenant()?).await?;
    Ok(())
}

async fn activate(run: &Run) -> Result<Done, StepError> {
    let migrated: Migrated = run.output_of("migrations")?;
    let schema = TenantSchema {
        version: migrated.version,
        fingerprint: Some(&migrated.fingerprint),
        files_hash: migrated.files_hash.as_deref(),
    };
    tenant_parts::activate(run, &schema).await
}
