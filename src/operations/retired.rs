//! The databases that restores in place have replaced. Each is kept, closed, for `backup.retired_keep`, and then dropped:
//! looked for at the start and every hour, by every daemon. The catalog's clock counts.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Error, Parts};
use crate::catalog::RetiredDatabase;
use crate::domain::tenant::database_replaced;
use crate::postgres::admin;

const LOOK_INTERVAL: Duration = Duration::from_hours(1);

/// Until the daemon goes down.
pub(super) async fn run(parts: Arc<Parts>, stop: CancellationToken) {
    let rounds = async {
        loop {
            round(&parts).await;
            sleep(LOOK_INTERVAL).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = rounds => {}
    }
}

/// One that cannot be dropped stays, and does not keep the others.
async fn round(parts: &Parts) {
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
