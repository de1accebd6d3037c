//! The names of a tenant's schemas, kept while a backup goes by them. `pg_dump` asks sequences and some extensions'
//! tables by name, as a role that may read every tenant's rows. The relations are locked, but a schema can be renamed
//! under their locks, and another be made in its place, with a table under that name whose index runs the tenant's code.
//!
//! PostgreSQL has no lock for that. So a session of the daemon's changes the schemas' rows in the catalog, to what they
//! are, and leaves its transaction open: whoever renames, drops or grants one of them waits until it is rolled back.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::Error;
use crate::domain::tenant::{DatabaseName, RoleName};
use crate::postgres::roles::TenantRoles;
use crate::postgres::{Connection, Server};

/// The schemas that the tenant can rename, each with the statements that keep it as it is.
const SCHEMAS: &str = "
SELECT n.oid, n.nspname::pg_catalog.text, pg_catalog.format('%I', o.rolname),
       pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', n.nspname, o.rolname)
FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles o ON o.oid OPERATOR(pg_catalog.=) n.nspowner
WHERE o.rolname::pg_catalog.text OPERATOR(pg_catalog.=) ANY ($1)
AND NOT pg_catalog.starts_with(n.nspname::pg_catalog.text, 'pg_')
ORDER BY n.oid";

/// Keeps the names for as long as it lives.
#[derive(Debug)]
pub(super) struct Names {
    /// With an open transaction, which ends with it.
    _session: Connection,
    schemas: Vec<Schema>,
}

#[derive(Debug, PartialEq, Eq)]
struct Schema {
    oid: u32,
    name: String,
    owner: String,
    keep: String,
}

impl Names {
    /// Keeps the names that there are now.
    ///
    /// # Errors
    /// When a schema is being changed for longer than `lock_timeout`.
    pub(super) async fn keep(
        server: &Server,
        database: &DatabaseName,
        roles: &TenantRoles,
        lock_timeout: Duration,
    ) -> Result<Self, Error> {
        let session = server.connect_admin(database).await?;
        let schemas = schemas(&session, roles).await?;
        let mut owners: Vec<_> = schemas.iter().map(|schema| schema.owner.as_str()).collect();
        owners.sort_unstable();
        owners.dedup();
        let mut script = vec![
            format!("BEGIN; SET LOCAL lock_timeout = {}", lock_timeout.as_millis()),
            "SET LOCAL idle_in_transaction_session_timeout = 0".to_owned(),
        ];
        // Only an owner grants, so the daemon joins it, for this transaction only.
        script.extend(owners.iter().map(|owner| format!("GRANT {owner} TO CURRENT_USER")));
        script.extend(schemas.iter().map(|schema| schema.keep.clone()));
        match session.batch_execute(&script.join("; ")).await.map_err(Error::from) {
            Ok(()) => Ok(Self { _session: session, schemas }),
            Err(error) if error.is_missing() => Err(Error::TablesChanged),
            Err(error) => Err(error),
        }
    }

    /// Whether these are all that there are in the session's snapshot.
    pub(super) async fn are_all_of(&self, snapshot: &Client, roles: &TenantRoles) -> Result<bool, Error> {
        Ok(schemas(snapshot, roles).await? == self.schemas)
    }
}

async fn schemas(client: &Client, roles: &TenantRoles) -> Result<Vec<Schema>, Error> {
    let roles = roles.all();
    let names: Vec<&str> = roles.iter().map(RoleName::as_str).collect();
    let rows = client.query_typed(SCHEMAS, &[(&names, Type::TEXT_ARRAY)]).await?;
    let schema = |row: &tokio_postgres::Row| {
        Ok(Schema { oid: row.try_get(0)?, name: row.try_get(1)?, owner: row.try_get(2)?, keep: row.try_get(3)? })
    };
    rows.iter().map(schema).collect()
}
