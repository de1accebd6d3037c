//! The databases that restores in place have replaced. Each is kept, closed, for `backup.retired_keep`, and then dropped.
//! The catalog's clock counts.

use super::{Error, Parts};
use crate::catalog::RetiredDatabase;
use crate::domain::tenant::database_replaced;
use crate::postgres::admin;

/// One that cannot be dropped stays, and does not keep the others.
pub(super) async fn round(parts: &Parts) {
    let due = match parts.catalog.retired_database_due(parts.config.backup.retired_keep).await {
        Ok(due) => due,
        Err(error) => {
            tracing::info!(%error, "which former databases may be dropped is not known; it is looked for again");
            return;
        }
    };
    for retired in due {
        match drop_database(parts, &retired).await {
            Ok(()) => tracing::info!(
                database = %retired.database, server = retired.server, tenant = %retired.tenant,
                "a database that a restore has replaced was kept for long enough and is dropped"
            ),
            Err(error) => tracing::warn!(
                database = %retired.database, server = retired.server, %error,
                "a database that a restore has replaced could not be dropped; it is tried again in an hour"
            ),
        }
    }
}

async fn drop_database(parts: &Parts, retired: &RetiredDatabase) -> Result<(), Error> {
    let server = parts.server(&retired.server)?;
    let client = server.connect_admin(server.maintenance_database()).await?;
    // By the name that only a replaced database has.
    admin::database_drop(&client, &database_replaced(retired.operation.0)).await?;
    Ok(parts.catalog.retired_database_delete(&retired.server, &retired.database).await?)
}
