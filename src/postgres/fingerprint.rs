//! The fingerprint of a database's schema: SHA-256 over one line of text per fact, in one message.
//!
//! Equal for a schema that was migrated, cloned or restored, in whichever tenant's database: no OID, owner, grant,
//! role or comment takes part, and neither do the daemon's own schema, the history table, and what belongs to
//! extensions. Compare only within one major version of PostgreSQL, because the server prints its own definitions.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::errors::Error;

/// To be sent as a simple query, outside of a transaction: it brings its own, whose `search_path` makes the server
/// print every name with its schema. The only row has one column, the fingerprint in hexadecimal.
pub const SQL: &str = concat!(
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = pg_catalog, pg_temp;\n",
    include_str!("fingerprint.sql"),
    "; COMMIT"
);

/// The schema of the database that the session is in.
pub async fn fingerprint(client: &Client) -> Result<String, Error> {
    ask(client, SQL).await
}

/// As [`fingerprint`], inside of a transaction with a snapshot of its own, in which `search_path` begins with
/// `pg_catalog` and names no schema of the database's.
pub async fn fingerprint_in_txn(client: &Client) -> Result<String, Error> {
    ask(client, include_str!("fingerprint.sql")).await
}

async fn ask(client: &Client, sql: &str) -> Result<String, Error> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten().map(str::to_owned),
        _ => None,
    });
    Ok(rows.last().unwrap_or_default())
}
