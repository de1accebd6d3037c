//! Filling a new database from a backup: fetched, authenticated whole, restored as the tenant's own role, and compared
//! with what the manifest says of the snapshot.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::Parts;
use super::step::{Done, Run, StepError};
use super::tenant_parts::{self, NewDatabase, Place};
use crate::backup::{self, BackupRef, RestoreRequest};
use crate::catalog::{Backup, TenantSchema};
use crate::domain::backup::Manifest;
use crate::domain::tenant::{DatabaseName, TenantRole, database_under_construction};
use crate::postgres::{Server, admin};

/// Remarks of one kind that a step's detail spells out.
const SHOWN_MAX: usize = 20;

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
    let manifest = restorable(&run.parts, &row, &Place::of(run).await?.server).await?;
    let taken = manifest.snapshot_time.format(&Rfc3339).unwrap_or_default();
    let detail = format!("{} as of {taken}", manifest.tenant_code);
    Ok(Done::output(&manifest)?.with_detail(detail))
}

/// What the catalog says of the schema afterwards. A manifest does not know the files that were applied, so that the next
/// rollout looks at the database.
pub(super) fn schema(manifest: &Manifest) -> TenantSchema<'_> {
    TenantSchema { version: manifest.schema_version, fingerprint: Some(&manifest.schema_fingerprint), files_hash: None }
}

/// Whether all of the backup is in the bucket, and what is in it has a place on the server.
pub(super) async fn restorable(parts: &Parts, row: &Backup, server: &Server) -> Result<Manifest, backup::Error> {
    let reference = BackupRef { tenant: row.tenant, backup: row.id };
    let manifest = backup::manifest_read_whole(&parts.store, &parts.signer, reference).await?;
    let _found = backup::restore_programs(server, &manifest).await?;
    let refused = extensions_refused(server, &manifest).await?;
    if refused.is_empty() { Ok(manifest) } else { Err(backup::Error::Extensions(refused)) }
}

/// The extensions of a backup that the server does not take from the tenant's roles, as sentences.
pub(super) async fn extensions_refused(
    server: &Server,
    manifest: &Manifest,
) -> Result<Vec<String>, crate::postgres::Error> {
    let names: Vec<&str> = manifest.extensions.iter().map(|extension| extension.name.as_str()).collect();
    let client = server.connect_admin(server.maintenance_database()).await?;
    admin::extensions_refused(&client, &names).await
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
    logins_restore(run, &place, &name).await?;
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
    let limit = parts.config.backup.restore_timeout;
    let Ok(restored) = tokio::time::timeout(limit, backup::restore_into(&request)).await else {
        return Err(ended_by_force(&place, &name, limit).await);
    };
    let report = restored?;
    // Functions in the archive have run as the tenant's login.
    logins_restore(run, &place, &name).await?;
    let durations = report.steps.iter().map(|step| format!("{} {:.1?}", step.name, step.duration));
    let mut detail =
        format!("{} tables, {} rows; {}", report.tables, report.rows, durations.collect::<Vec<_>>().join(", "));
    if !manifest.has_comparable_digests() {
        let format = manifest.format;
        detail = format!("{detail}; the manifest is of the older format {format}, so the rows were counted only");
    }
    let remarks = [
        ("grants that were not taken again", &report.privileges_left_out),
        ("publications for a superuser to create", &report.publications_left_out),
        ("the tenant's owner's now, and of others before", &report.owners_changed),
    ];
    for (what, items) in remarks.into_iter().filter(|(_what, items)| !items.is_empty()) {
        detail = format!("{detail}; {what}: {}", shown(items));
    }
    Ok(Done::detail(detail))
}

/// The first ones, and how many more there are.
fn shown(items: &[String]) -> String {
    let (first, more) = items.split_at(items.len().min(SHOWN_MAX));
    let text = first.join("; ");
    if more.is_empty() { text } else { format!("{text}; and {} more", more.len()) }
}

/// What was backed up may hold code that never ends. `pg_restore` is gone by now; its sessions would go on.
async fn ended_by_force(place: &Place, database: &DatabaseName, limit: Duration) -> StepError {
    let ended = async {
        let client = place.server.connect_admin(place.server.maintenance_database()).await?;
        admin::sessions_end(&client, database).await
    };
    if let Err(error) = ended.await {
        return error.into();
    }
    StepError::failed(
        "DEADLINE_EXCEEDED",
        format!(
            "the restore had not ended after {limit:?} (backup.restore_timeout) and was ended; look for code in the \
             backup that waits, or allow it more time"
        ),
    )
}

/// Whatever the tenant has made of the daemon's logins.
async fn logins_restore(run: &Run, place: &Place, database: &DatabaseName) -> Result<(), StepError> {
    for role in TenantRole::DAEMONS {
        tenant_parts::login_restore(run, place, role, database).await?;
    }
    Ok(())
}
