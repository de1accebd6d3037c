//! Advisory locks, polled. A session that waits for a lock inside the server holds a snapshot, which would block
//! `CREATE INDEX CONCURRENTLY` elsewhere; one that asks again holds nothing.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::errors::Error;

const POLL_INTERVAL_FIRST: Duration = Duration::from_millis(25);
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(500);

/// The key that stands for `id` under `purpose`.
pub fn advisory_key(purpose: &str, id: Uuid) -> i64 {
    use sha2::Digest as _;
    let digest = sha2::Sha256::new().chain_update(purpose).chain_update([0]).chain_update(id.as_bytes()).finalize();
    digest.iter().take(size_of::<i64>()).fold(0, |key, byte| key << 8 | i64::from(*byte))
}

/// Takes the session's lock of this key, asking again until `wait_max` is over. Answers whether it was taken.
pub async fn advisory_lock_poll(client: &Client, key: i64, wait_max: Duration) -> Result<bool, Error> {
    let deadline = Instant::now() + wait_max;
    let mut interval = POLL_INTERVAL_FIRST;
    loop {
        if ask(client, "SELECT pg_catalog.pg_try_advisory_lock($1)", key).await? {
            return Ok(true);
        }
        let now = Instant::now();
        if now >= deadline {
            return Ok(false);
        }
        sleep(interval.min(deadline - now)).await;
        interval = (interval * 2).min(POLL_INTERVAL_MAX);
    }
}

/// Gives the lock back. Answers whether this session had it.
pub async fn advisory_unlock(client: &Client, key: i64) -> Result<bool, Error> {
    ask(client, "SELECT pg_catalog.pg_advisory_unlock($1)", key).await
}

async fn ask(client: &Client, sql: &str, key: i64) -> Result<bool, Error> {
    let rows = client.query_typed(sql, &[(&key, Type::INT8)]).await?;
    rows.first().map_or(Ok(false), |row| Ok(row.try_get(0)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_purpose_and_id() {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(advisory_key("migration", one), advisory_key("migration", one));
        assert_ne!(advisory_key("migration", one), advisory_key("migration", two));
        assert_ne!(advisory_key("migration", one), advisory_key("backup", one));
    }
}
