//! Which version the schema has in a snapshot: what the catalog says is of another moment, when a rollout is under way.
//!
//! The history's table is the tenant's, so it is copied and never queried, and need not be what the migrator made.

use tokio_postgres::Client;

use super::Error;
use super::digest::copy_out;

/// How to read the versions, where there are any.
const HISTORY: &str = "
SELECT format('COPY %I.%I (version) TO STDOUT', n.nspname, c.relname)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'version' AND NOT a.attisdropped AND a.attgenerated = ''
WHERE n.nspname = 'public' AND c.relname = 'refinery_schema_history' AND c.relkind = 'r'
  AND a.atttypid IN ('int4'::regtype, 'int8'::regtype)";

/// The newest version that was applied; 0 before the first.
pub(super) async fn schema_version(client: &Client) -> Result<i64, Error> {
    let Some(row) = client.query_opt(HISTORY, &[]).await? else { return Ok(0) };
    let (mut newest, mut line) = (0, Vec::new());
    copy_out(client, row.try_get(0)?, |bytes| {
        for byte in bytes {
            if *byte == b'\n' {
                newest = newest.max(version(&line));
                line.clear();
            } else {
                line.push(*byte);
            }
        }
    })
    .await?;
    Ok(newest)
}

/// A row without a version counts as none.
fn version(line: &[u8]) -> i64 {
    std::str::from_utf8(line).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}
