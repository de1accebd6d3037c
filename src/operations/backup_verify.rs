//! Verifying a backup: not an operation, because it changes nothing but a date, and may be repeated at any time. Each
//! one spools a whole archive, so only a few run at the same moment, and further ones wait for their turn.

use std::time::Duration;

use uuid::Uuid;

use super::{Error, Operations};
use crate::backup::{self, BackupRef, Check, VerifyRequest};
use crate::catalog::Backup;

/// How long to wait for a turn. Whoever calls may wait for less.
const TURN_WAIT_MAX: Duration = Duration::from_mins(1);

impl Operations {
    /// Reads every byte of the backup; answers with the checks that it passed.
    pub async fn backup_verify(&self, backup_id: Uuid) -> Result<(Backup, Vec<Check>), Error> {
        let parts = &self.parts;
        let waited = tokio::time::timeout(TURN_WAIT_MAX, self.verify_slots.acquire()).await;
        let Ok(Ok(_turn)) = waited else {
            return Err(Error::VerificationsFull { concurrency_max: parts.config.backup.verify_concurrency_max });
        };
        let row = parts.catalog.backup_get(backup_id).await?;
        let reference = BackupRef { tenant: row.tenant, backup: backup_id };
        let manifest = backup::manifest_read(&parts.store, &parts.signer, reference).await?;
        let identity = parts.tenant_backup_identity(row.tenant).await?;
        let request = VerifyRequest {
            tasks: &parts.tasks,
            store: &parts.store,
            manifest: &manifest,
            identity: &identity,
            spool_dir: &parts.config.spool_dir,
            id: Uuid::now_v7(),
            stall_timeout: parts.config.backup.stall_timeout,
        };
        let checks = backup::verify(&request).await?;
        Ok((parts.catalog.backup_verified_set(backup_id).await?, checks))
    }
}
