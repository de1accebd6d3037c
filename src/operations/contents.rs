//! Filling a new database from a backup: fetched, authenticated whole, restored as the tenant's own role, and compared
//! with what the manifest says of the snapshot.

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::step::{Done, Run, StepError};
use super::tenant_parts::{self, NewDatabase, Place};
use crate::backup::{self, BackupRef, RestoreRequest};
use crate::domain::backup::Manifest;
use crate::domain::tenant::{TenantRole, database_under_construction};

/// As stored with both kinds of restore.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) backup_id: Uuid,
    pub(super) reason: String,
}

/// Reads the manifest and checks that this daemon can restore it. The manifest goes along as the step's output.
pub(super) async fn validate(run: &Run) -> Result<Done, StepError> {
    let Input { backup_id, .. } = run.input()?;
    let row = run.parts.catalog.backup_get(backup_id).await?;
    let reference = BackupRef { tenant: row.tenant, backup: backup_id };
    let manifest = backup::manifest_read(&run.parts.store, &run.parts.signer, reference).await?;
    let stored = run.parts.store.head(&manifest.archive.key).await?;
    if stored != Some(manifest.archive.bytes) {
        let found = stored.map_or("missing".to_owned(), |bytes| format!("{bytes} bytes long"));
        return Err(StepError::failed(
            "BACKUP_CORRUPT",
            format!("the archive of backup {backup_id} is {found} instead of {} bytes", manifest.archive.bytes),
        ));
    }
    let taken = manifest.snapshot_time.format(&Rfc3339).unwrap_or_default();
    let detail = format!("{} as of {taken}", manifest.tenant_code);
    Ok(Done::output(&manifest)?.with_detail(detail))
}

/// A new, empty database of the manifest's encoding and locale.
pub(super) async fn database(run: &Run, generation: i64) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    let manifest: Manifest = run.output_of("validate")?;
    let name = database_under_construction(run.id().0);
    tenant_parts::new_database(run, &place, &NewDatabase::like(name, generation, &manifest)).await?;
    Ok(Done::default())
}

/// Restores into the database under construction. An earlier attempt may have left half of it: then it is made anew.
pub(super) async fn fill(run: &Run, generation: i64) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    let manifest: Manifest = run.output_of("validate")?;
    let name = database_under_construction(run.id().0);
    if run.is_repeated {
        tenant_parts::new_database(run, &place, &NewDatabase::like(name.clone(), generation, &manifest)).await?;
    }
    let parts = &run.parts;
    let identity = parts.tenant_backup_identity(manifest.tenant_id).await?;
    let login = tenant_parts::login(run, &place, TenantRole::Migrator).await?;
    let request = RestoreRequest {
        server: &place.server,
        store: &parts.store,
        manifest: &manifest,
        identity: &identity,
        database: &name,
        roles: &place.roles,
        login: &login,
        spool_dir: &parts.config.spool_dir,
        operation_id: run.id().0,
        stall_timeout: parts.config.backup.stall_timeout,
    };
    let report = backup::restore_into(&request).await?;
    let durations = report.steps.iter().map(|step| format!("{} {:.1?}", step.name, step.duration));
    let mut detail =
        format!("{} tables, {} rows; {}", report.tables, report.rows, durations.collect::<Vec<_>>().join(", "));
    if !report.privileges_left_out.is_empty() {
        detail = format!("{detail}; grants that were not taken again: {}", report.privileges_left_out.join("; "));
    }
    Ok(Done::detail(detail))
}
