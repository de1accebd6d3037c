//! What backups have left in the bucket that failed while the store was away. Their rows are there until it is removed.

use super::Parts;
use super::backup::bucket_clear;
use super::step::StepError;
use crate::catalog::Backup;

/// Whose store is still away waits for the next round.
pub(super) async fn round(parts: &Parts) {
    let failed = match parts.catalog.backup_failed().await {
        Ok(failed) => failed,
        Err(error) => {
            tracing::info!(%error, "what failed backups have left is not known; it is looked for again");
            return;
        }
    };
    for row in failed {
        match remove(parts, &row).await {
            Ok(()) => {
                tracing::info!(backup = %row.id, tenant = %row.tenant, "what a failed backup had left in the bucket is removed");
            }
            Err(error) if error.passes() => {
                tracing::info!(backup = %row.id, "what a failed backup has left in the bucket is removed later: {error}");
                return;
            }
            Err(error) => {
                tracing::warn!(backup = %row.id, "what a failed backup has left in the bucket cannot be removed; it is tried again: {error}");
            }
        }
    }
}

/// Nobody drives an operation that has ended, so nobody makes these objects again.
async fn remove(parts: &Parts, row: &Backup) -> Result<(), StepError> {
    bucket_clear(&parts.store, row, async || Ok(())).await?;
    Ok(parts.catalog.backup_delete(row.id).await?)
}
