//! What a session is cleaned with before somebody else gets it. Knows nothing of who had it.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Everything that a session keeps, but for the statements that the daemon itself has prepared (`DISCARD ALL` would
/// drop those behind the driver's back). The `role` setting comes back last, to the one that the database prescribes.
/// The answer to the last one says whether statements were prepared by SQL, which a tenant's code may do under the names
/// of the daemon's own.
const CLEAN: &str = "CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ALL; RESET ROLE; UNLISTEN *; \
                     SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; \
                     SELECT EXISTS (SELECT FROM pg_catalog.pg_prepared_statement() WHERE from_sql)";
/// How long the cleaning may take.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(5);

/// Cleans a session outside a transaction; false when it is not to be used again. So it is not with statements that were
/// prepared by SQL: whose place they have taken, nobody knows.
pub(super) async fn clean(client: &Client) -> bool {
    let Ok(Ok(answers)) = timeout(CLEAN_TIMEOUT, client.simple_query(CLEAN)).await else { return false };
    answers.iter().rev().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0),
        _other => None,
    }) == Some("f")
}
