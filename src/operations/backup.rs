//! Backing up one tenant: a row, the archive, the manifest last, and only then the row says COMPLETE. A daemon that
//! dies leaves an upload whose id the row knows; whoever resumes aborts it and dumps again. A backup that fails while the
//! store is away leaves its row behind, by which [`super::housekeeping`] finds what is in the bucket.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::contents::extensions_refused;
use super::step::{Done, Run, Step, StepError, step};
use super::tenant_parts::Place;
use crate::backup::{self, BackupRef, DumpRequest};
use crate::catalog::{Backup, NewBackup};
use crate::domain::backup::{BackupKeys, BackupState, Manifest};
use crate::postgres::admin;
use crate::store::{PartSizes, Store, UploadId};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) backup_id: Uuid,
}

/// What the operation leaves.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Output {
    pub(super) backup_id: Uuid,
    pub(super) archive_key: String,
    pub(super) manifest_key: String,
    pub(super) archive_bytes: u64,
    pub(super) dump_bytes: u64,
    pub(super) row_count: i64,
    pub(super) sha256: String,
}

pub(super) const STEPS: &[Step] = &[
    step!("register", register, unregister),
    step!("dump", dump),
    step!("manifest", manifest).waiting(),
    step!("complete", complete).waiting(),
];

async fn register(run: &Run) -> Result<Done, StepError> {
    let Input { backup_id } = run.input()?;
    let place = Place::of(run).await?;
    let keys = BackupKeys::new(place.tenant.id, backup_id);
    let backup =
        NewBackup { id: backup_id, tenant: place.tenant.id, tenant_code: place.tenant.code, operation: run.id(), keys };
    run.parts.catalog.backup_insert(&backup).await?;
    Ok(Done::default())
}

/// Undoes the other steps as well. A tenant does not wait for the store: what cannot be removed now is removed later.
async fn unregister(run: &Run) -> Result<(), StepError> {
    let Some(row) = find(run, run.input::<Input>()?.backup_id).await? else { return Ok(()) };
    match bucket_clear(&run.parts.store, &row, || run.claim_check()).await {
        Ok(()) => Ok(run.parts.catalog.backup_delete(row.id).await?),
        Err(error @ StepError::Claim(_)) => Err(error),
        Err(error) => {
            tracing::warn!(backup = %row.id, "what a failed backup has left in the bucket is removed later: {error}");
            Ok(())
        }
    }
}

async fn dump(run: &Run) -> Result<Done, StepError> {
    let Input { backup_id } = run.input()?;
    let place = Place::of(run).await?;
    dump_again(run, backup_id).await?;
    let parts = &run.parts;
    let recipient = parts.tenant_backup_identity(place.tenant.id).await?.recipient();
    let request = DumpRequest {
        server: &place.server,
        store: &parts.store,
        config: &parts.config.backup,
        part_sizes: PartSizes::new(parts.config.store.part_bytes_min, parts.config.store.parts_max),
        backup: BackupRef { tenant: place.tenant.id, backup: backup_id },
        operation_id: run.id().0,
        catalog_id: parts.catalog_id,
        tenant_code: &place.tenant.code,
        database: &place.tenant.database,
        roles: &place.roles,
        recipients: &[recipient, parts.config.keys.escrow_recipient.clone()],
        spool_dir: &parts.config.spool_dir,
    };
    let persist = |upload: UploadId| async move { Ok(upload_set(run, backup_id, Some(&upload.0)).await?) };
    // The store may have kept this one waiting for so long that another has taken over.
    let manifest = backup::dump(&request, persist, || run.claim_check()).await?;
    let mut detail = format!("{} bytes dumped, {} stored", manifest.archive.dump_bytes, manifest.archive.bytes);
    for remark in remarks(&place, &manifest).await.unwrap_or_default() {
        detail = format!("{detail}; {remark}");
    }
    Ok(Done::output(&manifest)?.with_detail(detail))
}

/// What stands in the way of a restore, or will be missing from it; better known now than then.
async fn remarks(place: &Place, manifest: &Manifest) -> Result<Vec<String>, crate::postgres::Error> {
    let refused = extensions_refused(&place.server, manifest).await?;
    let mut remarks: Vec<_> = refused.iter().map(|refused| format!("before it can be restored: {refused}")).collect();
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    let subscriptions = admin::subscription_names(&client, &place.tenant.database).await?;
    if !subscriptions.is_empty() {
        remarks.push(format!("without the subscriptions {}", subscriptions.join(", ")));
    }
    Ok(remarks)
}

/// What an earlier attempt has left.
async fn dump_again(run: &Run, backup_id: Uuid) -> Result<(), StepError> {
    let Some(row) = find(run, backup_id).await? else { return Ok(()) };
    bucket_clear(&run.parts.store, &row, || run.claim_check()).await?;
    Ok(upload_set(run, backup_id, None).await?)
}

/// Takes everything that belongs to a backup out of the bucket. The bucket knows no fence, and another daemon makes the
/// same objects: so `may` is asked before each of them goes, however long the store took for the one before.
pub(super) async fn bucket_clear<F>(store: &Store, row: &Backup, may: impl Fn() -> F) -> Result<(), StepError>
where
    F: Future<Output = Result<(), StepError>>,
{
    let reference = BackupRef { tenant: row.tenant, backup: row.id };
    let upload = row.upload_id.clone().map(UploadId);
    may().await?;
    backup::uploads_give_up(store, reference, upload.as_ref()).await?;
    if upload.is_some() || row.state == BackupState::Complete {
        // The manifest first: an archive without one is no backup, a manifest without its archive would be a broken one.
        for key in [&row.keys.manifest, &row.keys.archive] {
            may().await?;
            store.delete(key).await?;
        }
    }
    Ok(())
}

async fn upload_set(run: &Run, backup_id: Uuid, upload: Option<&str>) -> Result<(), crate::catalog::Error> {
    run.parts.catalog.backup_upload_set(backup_id, upload, run.id(), run.fence()).await
}

async fn manifest(run: &Run) -> Result<Done, StepError> {
    let manifest: Manifest = run.output_of("dump")?;
    run.claim_check().await?;
    backup::manifest_write(&run.parts.store, &run.parts.signer, &manifest).await?;
    Ok(Done::default())
}

/// The row, unless it is deleted already.
async fn find(run: &Run, backup_id: Uuid) -> Result<Option<Backup>, StepError> {
    match run.parts.catalog.backup_get(backup_id).await {
        Ok(row) => Ok(Some(row)),
        Err(crate::catalog::Error::BackupUnknown { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What is called a backup is in the bucket, as the bucket itself says.
async fn complete(run: &Run) -> Result<Done, StepError> {
    let manifest: Manifest = run.output_of("dump")?;
    let reference = BackupRef { tenant: manifest.tenant_id, backup: manifest.backup_id };
    let stored = backup::manifest_read_whole(&run.parts.store, &run.parts.signer, reference).await?;
    if stored.archive != manifest.archive {
        return Err(StepError::failed(
            "BACKUP_CORRUPT",
            "the bucket has the manifest of another attempt; back up again",
        ));
    }
    let txn = run.parts.catalog.begin().await?;
    run.parts.catalog.operation_claim_check_in_txn(&txn, run.id(), run.fence()).await?;
    run.parts.catalog.backup_complete_in_txn(&txn, manifest.backup_id, &manifest).await?;
    txn.commit().await?;
    let keys = BackupKeys::new(manifest.tenant_id, manifest.backup_id);
    Done::output(&Output {
        backup_id: manifest.backup_id,
        archive_key: keys.archive,
        manifest_key: keys.manifest,
        archive_bytes: manifest.archive.bytes,
        dump_bytes: manifest.archive.dump_bytes,
        row_count: manifest.tables.iter().map(|table| table.row_count).sum(),
        sha256: manifest.archive.sha256,
    })
}
