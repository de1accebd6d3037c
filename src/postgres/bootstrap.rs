//! What a superuser does once per server: the daemon's two roles, with the least that they need, and closed doors
//! for everybody else; then a fleet's two databases, and what a query could do in them beside reading. Everything may
//! be repeated.
//!
//! Answers with what was done, in sentences; passwords are in none of them.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::admin::{NewDatabase, database_connections_allow, database_create, database_oid, server_version};
use super::errors::Error;
use crate::config::Credentials;
use crate::domain::tenant::{DatabaseName, Naming, RoleName};
use crate::secrets::scram_verifier;

/// The oldest server that the daemon works with.
const MAJOR_MIN: i32 = 15;

/// Per server: the daemon's roles, and PUBLIC out of the databases that every server has. The passwords in
/// `credentials` become the roles' passwords, also of roles that were there before.
pub async fn bootstrap_roles(superuser: &Client, credentials: &Credentials) -> Result<Vec<String>, Error> {
    let version = server_version(superuser).await?;
    if version.major() < MAJOR_MIN {
        return Err(Error::ServerTooOld { version: version.text, major_min: MAJOR_MIN });
    }
    superuser_check(superuser, credentials).await?;
    let mut done = Vec::new();
    daemon_role(superuser, credentials, &mut done).await?;
    dump_role(superuser, credentials, &mut done).await?;
    for database in ["postgres", "template1", "template0"] {
        superuser.batch_execute(&format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC")).await?;
    }
    let daemon = credentials.daemon.role.quoted();
    superuser.batch_execute(&format!("GRANT CONNECT ON DATABASE postgres TO {daemon}")).await?;
    done.push("Nobody but superusers and the daemon may enter postgres, template1 and template0.".to_owned());
    for database in open_databases(superuser).await? {
        done.push(format!(
            "Warning: the database {database} lets every role in, and so every tenant's. If that is not meant, run: REVOKE CONNECT ON DATABASE {} FROM PUBLIC",
            database.quoted()
        ));
    }
    Ok(done)
}

/// Per fleet: the shared and the auth database, owned by the daemon's role, closed to PUBLIC. `client` is a
/// superuser's or the daemon's.
pub async fn bootstrap_databases(
    client: &Client,
    naming: &Naming,
    daemon: &RoleName,
    dump: &RoleName,
) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    for name in [naming.shared_database(), naming.auth_database()] {
        let found = database_oid(client, &name).await?.is_some();
        if found {
            owner_check(client, &name, daemon).await?;
        } else {
            database_create(client, &NewDatabase { name: &name, template: None, locale: None }).await?;
        }
        let (database, daemon) = (name.quoted(), daemon.quoted());
        let script = format!(
            "ALTER DATABASE {database} OWNER TO {daemon}; REVOKE ALL ON DATABASE {database} FROM PUBLIC; \
             GRANT CONNECT ON DATABASE {database} TO {}",
            dump.quoted()
        );
        client.batch_execute(&script).await?;
        database_connections_allow(client, &name, true).await?;
        let verb = if found { "was there already" } else { "was created" };
        done.push(format!("The database {name} {verb}; only the daemon and its dump role may enter it."));
    }
    Ok(done)
}

/// In the shared or the auth database, as a superuser: takes from PUBLIC the functions by which a query writes or holds
/// up others although its transaction is read only. That PUBLIC are tenants' logins and the dump role; letting go of
/// locks stays allowed, which the daemon does for them.
pub async fn bootstrap_functions(
    inside: &Client,
    naming: &Naming,
    daemon: &RoleName,
    dump: &RoleName,
) -> Result<String, Error> {
    let database: String =
        inside.query_one("SELECT pg_catalog.current_database()::pg_catalog.text", &[]).await?.try_get(0)?;
    let is_shared = database == naming.shared_database().as_str();
    let sql = "SELECT proname::pg_catalog.text, pg_catalog.format('pg_catalog.%I(%s)', proname, \
                      pg_catalog.pg_get_function_identity_arguments(oid)) \
               FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND prokind = 'f' \
               AND proname ~ '^(lo_.*|loread|lowrite|pg_notify|pg_logical_emit_message|pg_(try_)?advisory_(xact_)?lock.*)$'";
    let mut script = Vec::new();
    for row in inside.query(sql, &[]).await? {
        let (name, function): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        let grantee = match name {
            // In the auth database triggers notify, whoever writes.
            "pg_notify" if !is_shared => continue,
            // What dumps read large objects by.
            "lo_open" | "lo_close" | "loread" => Some(dump),
            // The daemon has no large objects; some of these functions read and write the server's files.
            name if name.starts_with("lo") || name == "pg_logical_emit_message" => None,
            _own => Some(daemon),
        };
        script.push(format!("REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC"));
        script.extend(grantee.map(|role| format!("GRANT EXECUTE ON FUNCTION {function} TO {}", role.quoted())));
    }
    inside.batch_execute(&script.join("; ")).await?;
    Ok(format!("In the database {database}, nobody else makes large objects or takes advisory locks."))
}

async fn daemon_role(superuser: &Client, credentials: &Credentials, done: &mut Vec<String>) -> Result<(), Error> {
    let login = &credentials.daemon;
    let (verb, said) = verb(superuser, &login.role).await?;
    let name = login.role.quoted();
    let verifier = postgres_protocol::escape::escape_literal(&scram_verifier(&login.password));
    let script = format!(
        "{verb} ROLE {name} LOGIN CREATEDB CREATEROLE NOSUPERUSER NOREPLICATION NOBYPASSRLS PASSWORD {verifier}; \
         GRANT pg_signal_backend, pg_read_all_stats TO {name}; \
         GRANT SET ON PARAMETER temp_file_limit, app.current_tenant_id, app.current_tenant TO {name}"
    );
    superuser.batch_execute(&script).await?;
    done.push(format!(
        "The role {} {said}: it may create databases and roles, end sessions, see their state, limit temporary files and tell tenants who they are; it is no superuser.",
        login.role
    ));
    Ok(())
}

async fn dump_role(superuser: &Client, credentials: &Credentials, done: &mut Vec<String>) -> Result<(), Error> {
    let login = &credentials.dump;
    let (verb, said) = verb(superuser, &login.role).await?;
    let name = login.role.quoted();
    let verifier = postgres_protocol::escape::escape_literal(&scram_verifier(&login.password));
    let script = format!(
        "{verb} ROLE {name} LOGIN BYPASSRLS NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD {verifier}; \
         GRANT pg_read_all_data TO {name}; \
         ALTER ROLE {name} SET lo_compat_privileges = on"
    );
    superuser.batch_execute(&script).await?;
    done.push(format!(
        "The role {} {said}: it reads everything, row security or not, in the databases that let it in, and can do nothing else.",
        login.role
    ));
    Ok(())
}

async fn verb(client: &Client, role: &RoleName) -> Result<(&'static str, &'static str), Error> {
    let sql = "SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = $1";
    let found = !client.query_typed(sql, &[(&role.as_str(), Type::TEXT)]).await?.is_empty();
    Ok(if found { ("ALTER", "was there already and got a new password") } else { ("CREATE", "was created") })
}

/// The one who is asked to do this must be able to, and must not be one of the roles that lose their powers.
async fn superuser_check(client: &Client, credentials: &Credentials) -> Result<(), Error> {
    let sql = "SELECT current_user::pg_catalog.text, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let row = client.query_one(sql, &[]).await?;
    let (user, superuser): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    let own = [&credentials.daemon.role, &credentials.dump.role].iter().any(|role| role.as_str() == user);
    if superuser && !own {
        return Ok(());
    }
    let reason = if own { "it is one of the daemon's own roles" } else { "it is no superuser" };
    Err(Error::NotBootstrapper { role: user, reason })
}

async fn owner_check(client: &Client, name: &DatabaseName, daemon: &RoleName) -> Result<(), Error> {
    let sql = "SELECT pg_catalog.pg_get_userbyid(datdba)::pg_catalog.text, NOT datallowconn \
               AND datdba = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user) \
               FROM pg_catalog.pg_database WHERE datname = $1";
    let row = client.query_one(sql, &[&name.as_str()]).await?;
    // One that a superuser made for this, and was interrupted before handing it over, is ours too.
    let (owner, unfinished): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    if unfinished || owner == daemon.as_str() {
        return Ok(());
    }
    Err(Error::ForeignDatabase { database: name.to_string(), owner })
}

/// Databases, other than a fleet's, that PUBLIC may enter.
async fn open_databases(client: &Client) -> Result<Vec<DatabaseName>, Error> {
    let sql = "SELECT datname::pg_catalog.text FROM pg_catalog.pg_database d \
               WHERE datallowconn AND EXISTS (\
                   SELECT FROM pg_catalog.aclexplode(coalesce(datacl, pg_catalog.acldefault('d', datdba))) a \
                   WHERE a.grantee = 0 AND a.privilege_type = 'CONNECT') ORDER BY 1";
    let mut names = Vec::new();
    for row in client.query_typed(sql, &[]).await? {
        names.extend(DatabaseName::new(row.try_get::<_, String>(0)?).ok());
    }
    Ok(names)
}
