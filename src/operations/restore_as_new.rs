//! Restoring a backup as a new tenant: created as any tenant is, and filled from the archive instead of migrations.

use super::contents;
use super::create_tenant;
use super::step::{Done, Run, Step, StepError, step};
use super::tenant_parts::{self, Place};
use crate::domain::backup::Manifest;

pub(super) const STEPS: &[Step] = &[
    step!("reserve", create_tenant::reserve, tenant_parts::unreserve),
    step!("validate", contents::validate),
    step!("credentials", tenant_parts::credentials),
    step!("roles", tenant_parts::roles, tenant_parts::roles_undo),
    step!("database", database, tenant_parts::new_database_undo),
    step!("contents", fill),
    step!("name", tenant_parts::name, tenant_parts::name_undo),
    step!("license", tenant_parts::license),
    step!("activate", activate),
];

async fn database(run: &Run) -> Result<Done, StepError> {
    contents::database(run, Place::of(run).await?.tenant.generation).await
}

async fn fill(run: &Run) -> Result<Done, StepError> {
    contents::fill(run, Place::of(run).await?.tenant.generation).await
}

async fn activate(run: &Run) -> Result<Done, StepError> {
    let manifest: Manifest = run.output_of("validate")?;
    tenant_parts::activate(run, &contents::schema(&manifest)).await
}
