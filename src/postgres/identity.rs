//! The identity row: each tenant's database says whose it is, in a schema that the daemon owns and the tenant can
//! only read. Whoever opens a session compares it, so that no rename and no restore hands one tenant's data to
//! another.

use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::errors::{Error, Kind};
use crate::domain::tenant::{RoleName, TenantId};

/// The schema that the daemon owns in every tenant's database.
pub const SCHEMA: &str = "tenantd";

/// Whose database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub tenant: TenantId,
    /// Of the catalog that knows the tenant.
    pub catalog: Uuid,
    /// Grows when another database takes the tenant's place.
    pub generation: i64,
}

/// Writes the row, as the daemon's role, and lets `readers` read it. May be repeated. That it is the only one is for
/// the readers to see: each new session reads it, and constraints would make that slower.
///
/// # Errors
/// [`Error::IdentityMissing`] when the schema is there already and is not the daemon's.
pub async fn identity_write(client: &Client, identity: &Identity, readers: &[RoleName]) -> Result<(), Error> {
    let owned = "SELECT nspowner = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user) \
                 FROM pg_catalog.pg_namespace WHERE nspname = $1";
    let rows = client.query_typed(owned, &[(&SCHEMA, Type::TEXT)]).await?;
    if let Some(row) = rows.first()
        && !row.try_get::<_, bool>(0)?
    {
        return Err(Error::IdentityMissing);
    }
    let mut script = vec![
        "CREATE SCHEMA IF NOT EXISTS tenantd; \
                      CREATE TABLE IF NOT EXISTS tenantd.identity (\
                          tenant uuid NOT NULL, catalog uuid NOT NULL, generation bigint NOT NULL); \
                      REVOKE ALL ON SCHEMA tenantd FROM PUBLIC; REVOKE ALL ON tenantd.identity FROM PUBLIC"
            .to_owned(),
    ];
    for reader in readers.iter().map(RoleName::quoted) {
        script.push(format!("GRANT USAGE ON SCHEMA tenantd TO {reader}"));
        script.push(format!("GRANT SELECT ON tenantd.identity TO {reader}"));
    }
    client.batch_execute(&script.join("; ")).await?;
    let replace = "WITH former AS (DELETE FROM tenantd.identity) \
                   INSERT INTO tenantd.identity (tenant, catalog, generation) VALUES ($1, $2, $3)";
    let values: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
        [(&identity.tenant.0, Type::UUID), (&identity.catalog, Type::UUID), (&identity.generation, Type::INT8)];
    client.query_typed(replace, &values).await?;
    Ok(())
}

/// Reads the row, in one round trip, as any of the tenant's roles.
///
/// # Errors
/// [`Error::IdentityMissing`] when there is none that this role may read.
pub async fn identity_read(client: &Client) -> Result<Identity, Error> {
    let sql = "SELECT tenant, catalog, generation FROM tenantd.identity";
    let rows = match client.query_typed(sql, &[]).await.map_err(Error::from) {
        Err(error) if is_missing(&error) => return Err(Error::IdentityMissing),
        other => other?,
    };
    let [row] = rows.as_slice() else { return Err(Error::IdentityMissing) };
    Ok(Identity { tenant: TenantId(row.try_get(0)?), catalog: row.try_get(1)?, generation: row.try_get(2)? })
}

/// No such schema, table or column, or no right to read it.
fn is_missing(error: &Error) -> bool {
    error.kind() == Kind::Permission
        || error.code().is_some_and(|code| ["3F000", "42P01", "42703"].contains(&code.code()))
}
