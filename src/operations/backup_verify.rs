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
    /// Reads every byte of the backup; answers with the checks that it passed. One that is damaged is no longer a
    /// verified one.
    pub async fn backup_verify(&self, backup_id: Uuid) -> Result<(Backup, Vec<Check>), Error> {
        let catalog = &self.parts.catalog;
        let row = catalog.backup_get(backup_id).await?;
        match self.checks(&row).await {
            Ok(checks) => Ok((catalog.backup_verified_set(backup_id).await?, checks)),
            Err(Error::Backup(damage)) if damage.is_damage() => {
                catalog.backup_verified_clear(backup_id).await?;
                Err(damage.into())
            }
            Err(error) => Err(error),
        }
    }

    async fn checks(&self, row: &Backup) -> Result<Vec<Check>, Error> {
        let parts = &self.parts;
        let waited = tokio::time::timeout(TURN_WAIT_MAX, self.verify_slots.acquire()).await;
        let Ok(Ok(_turn)) = waited else {
            return Err(Error::VerificationsFull { concurrency_max: parts.config.backup.verify_concurrency_max });
        };
        let reference = BackupRef { tenant: row.tenant, backup: row.id };
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
        Ok(backup::verify(&request).await?)
    }
}
