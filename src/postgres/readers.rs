//! The role whose members read the tenants' part of the shared database. It gives the right to look; which rows there
//! are to see is row-level security's.
//!
//! Knows the tables by name and nothing of what is in them.

use tokio_postgres::Client;

use super::errors::Error;
use crate::domain::tenant::{DatabaseName, RoleName};

/// Tables that are read whole, as far as their policies show them.
const TABLES: &str = "tenant_logins, hosts, sites, licenses, system_parameters, menus";
/// What a tenant may know of its own row: not where it is, and nothing of the daemon's bookkeeping.
const TENANT_COLUMNS: &str =
    "id, code, name, legal_name, siret, vat_number, address, contact, settings, tier, state, created_at, updated_at";

/// Makes the role, inside the shared database as the daemon's role. May be repeated.
///
/// # Errors
/// [`Error::ForeignRole`] when there is one of that name that the daemon did not make.
pub async fn shared_readers_make(client: &Client, database: &DatabaseName, readers: &RoleName) -> Result<(), Error> {
    let mark = format!("tenantd readers of {database}");
    let sql = "SELECT pg_catalog.shobj_description(oid, 'pg_authid') FROM pg_catalog.pg_roles \
               WHERE rolname::pg_catalog.text = $1";
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), _); 1] =
        [(&readers.as_str(), tokio_postgres::types::Type::TEXT)];
    let found = client.query_typed(sql, &parameters).await?;
    let role = readers.quoted();
    let mut script = Vec::new();
    match found.first() {
        Some(row) if row.try_get::<_, Option<String>>(0)?.as_deref() == Some(&mark) => {}
        Some(_foreign) => return Err(Error::ForeignRole { role: readers.to_string() }),
        None => {
            let comment = postgres_protocol::escape::escape_literal(&mark);
            let no_privileges = "NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS";
            script.push(format!("CREATE ROLE {role} {no_privileges}; COMMENT ON ROLE {role} IS {comment}"));
        }
    }
    script.push(format!("GRANT CONNECT ON DATABASE {} TO {role}", database.quoted()));
    script.push(format!("GRANT USAGE ON SCHEMA public TO {role}"));
    script.push(format!("GRANT SELECT ON public.{} TO {role}", TABLES.replace(", ", ", public.")));
    script.push(format!("GRANT SELECT ({TENANT_COLUMNS}) ON public.tenants TO {role}"));
    // One message is one transaction.
    client.batch_execute(&script.join("; ")).await?;
    Ok(())
}

/// Lets a tenant's login read. Ends with the login.
pub async fn shared_reader_add(client: &Client, readers: &RoleName, login: &RoleName) -> Result<(), Error> {
    client.batch_execute(&format!("GRANT {} TO {}", readers.quoted(), login.quoted())).await?;
    Ok(())
}
