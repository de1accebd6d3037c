//! The fingerprint of a database's schema: SHA-256 over one line of text per fact, in one message.
//!
//! Equal for a schema that was migrated, cloned or restored, in whichever tenant's database: no OID, owner, grant,
//! role or comment takes part, and neither do the daemon's own schema, the history table, and what belongs to
//! extensions. Compare only within one major version of PostgreSQL, because the server prints its own definitions.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::errors::Error;

/// To be sent as a simple query, outside of a transaction: it brings its own, whose `search_path` makes the server
/// print every name with its schema. The only row has one column, the fingerprint in hexadecimal.
pub const SQL: &str = include_str!("fingerprint.sql");

/// The schema of the database that the session is in.
pub async fn fingerprint(client: &Client) -> Result<String, Error> {
    let messages = client.simple_query(SQL).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten().map(str::to_owned),
        _ => None,
    });
    Ok(rows.last().unwrap_or_default())
}
