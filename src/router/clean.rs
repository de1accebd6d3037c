//! What a session is cleaned with before somebody else gets it. Knows nothing of who had it.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Client;

/// Everything that a session keeps, but for the statements that the daemon itself has prepared (`DISCARD ALL` would
/// drop those behind the driver's back). The `role` setting comes back last, to the one that the database prescribes.
const CLEAN: &str = "CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ALL; RESET ROLE; UNLISTEN *; \
                     SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";
/// How long the cleaning may take.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(5);

/// Cleans a session outside a transaction; false when it is not to be used again.
pub(super) async fn clean(client: &Client) -> bool {
    matches!(timeout(CLEAN_TIMEOUT, client.batch_execute(CLEAN)).await, Ok(Ok(())))
}
