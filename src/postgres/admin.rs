//! Databases and sessions of one server, as the daemon's role may handle them: no superuser is needed.
//!
//! Knows nothing of tenants: what is created, swapped or dropped is told by name. A database is made with nobody let
//! in, and PUBLIC never gets a right on it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::types::{Oid, ToSql, Type};
use uuid::Uuid;

use super::errors::Error;
use super::server::instance_prefix;
use crate::domain::tenant::{DatabaseName, RoleName};

/// How long sessions may take to go away after they were told to.
pub(super) const SESSIONS_END_MAX: Duration = Duration::from_secs(30);
/// How long the server may take to say how many there are. Whatever stands between may keep a connection open that leads
/// nowhere, and nobody would go on with what waits for this.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often a server is asked whether they have gone.
pub(super) const SESSIONS_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A server's version, as `15.18 (Debian 15.18-0+deb12u1)` and as 150018.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerVersion {
    pub text: String,
    pub num: i32,
}

impl ServerVersion {
    pub fn major(&self) -> i32 {
        self.num / 10_000
    }
}

/// A database to be made.
#[derive(Debug, Clone)]
pub struct NewDatabase<'a> {
    pub name: &'a DatabaseName,
    /// `None`: `template0`, which nobody can have changed.
    pub template: Option<&'a DatabaseName>,
    /// `None`: as the template's.
    pub locale: Option<DatabaseLocale>,
}

/// What decides how a database stores and sorts texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseLocale {
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
}

pub async fn server_version(client: &Client) -> Result<ServerVersion, Error> {
    let sql = "SELECT pg_catalog.current_setting('server_version'), \
               pg_catalog.current_setting('server_version_num')::pg_catalog.int4";
    let row = client.query_one(sql, &[]).await?;
    Ok(ServerVersion { text: row.try_get(0)?, num: row.try_get(1)? })
}

/// The database's OID, which survives renames; `None` when there is no such database.
pub async fn database_oid(client: &Client, name: &DatabaseName) -> Result<Option<Oid>, Error> {
    let sql = "SELECT oid FROM pg_catalog.pg_database WHERE datname = $1";
    let rows = client.query_typed(sql, &[(&name.as_str(), Type::TEXT)]).await?;
    rows.first().map(|row| row.try_get(0)).transpose().map_err(Error::from)
}

/// Every database that is no template, in order.
pub async fn database_names(client: &Client) -> Result<Vec<DatabaseName>, Error> {
    let sql = "SELECT datname::pg_catalog.text FROM pg_catalog.pg_database WHERE NOT datistemplate ORDER BY 1";
    let mut names = Vec::new();
    for row in client.query_typed(sql, &[]).await? {
        // A name that does not fit the type is no name of ours.
        names.extend(DatabaseName::new(row.try_get::<_, String>(0)?).ok());
    }
    Ok(names)
}

pub async fn database_locale(client: &Client, name: &DatabaseName) -> Result<DatabaseLocale, Error> {
    let sql = "SELECT pg_catalog.pg_encoding_to_char(encoding)::pg_catalog.text, datcollate::pg_catalog.text, \
               datctype::pg_catalog.text FROM pg_catalog.pg_database WHERE datname = $1";
    let rows = client.query_typed(sql, &[(&name.as_str(), Type::TEXT)]).await?;
    let row = rows.first().ok_or_else(|| Error::DatabaseMissing { database: name.to_string() })?;
    Ok(DatabaseLocale { encoding: row.try_get(0)?, collate: row.try_get(1)?, ctype: row.try_get(2)? })
}

/// Makes a database that takes no sessions yet, without a right for PUBLIC.
///
/// # Errors
/// Kind `Duplicate` when there is one of that name.
pub async fn database_create(client: &Client, new: &NewDatabase<'_>) -> Result<(), Error> {
    let name = new.name.quoted();
    let template = new.template.map_or_else(|| "template0".to_owned(), DatabaseName::quoted);
    let literal = postgres_protocol::escape::escape_literal;
    let locale = new.locale.as_ref().map_or_else(String::new, |locale| {
        format!(
            " ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            literal(&locale.encoding),
            literal(&locale.collate),
            literal(&locale.ctype)
        )
    });
    let create = format!("CREATE DATABASE {name} TEMPLATE {template}{locale} ALLOW_CONNECTIONS false");
    client.batch_execute(&create).await?;
    // Rights are not copied from the template, and the default lets everybody in.
    client.batch_execute(&format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC")).await?;
    Ok(())
}

/// Whether anybody at all may open a session in the database, superusers included. Open sessions stay.
pub async fn database_connections_allow(client: &Client, name: &DatabaseName, allow: bool) -> Result<(), Error> {
    client.batch_execute(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS {allow}", name.quoted())).await?;
    Ok(())
}

/// Says on the server who made the database. The comment stays with it through renames.
pub async fn database_comment_set(client: &Client, name: &DatabaseName, comment: &str) -> Result<(), Error> {
    let comment = postgres_protocol::escape::escape_literal(comment);
    client.batch_execute(&format!("COMMENT ON DATABASE {} IS {comment}", name.quoted())).await?;
    Ok(())
}

/// The database's comment; `None` without one, and when there is no such database.
pub async fn database_comment(client: &Client, name: &DatabaseName) -> Result<Option<String>, Error> {
    let sql = "SELECT pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database WHERE datname = $1";
    let rows = client.query_typed(sql, &[(&name.as_str(), Type::TEXT)]).await?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?.flatten())
}

pub async fn database_rename(client: &Client, from: &DatabaseName, to: &DatabaseName) -> Result<(), Error> {
    client.batch_execute(&format!("ALTER DATABASE {} RENAME TO {}", from.quoted(), to.quoted())).await?;
    Ok(())
}

/// Ends the database's sessions and drops it. A database that is not there is no error.
pub async fn database_drop(client: &Client, name: &DatabaseName) -> Result<(), Error> {
    let sql = "SELECT datconnlimit FROM pg_catalog.pg_database WHERE datname = $1";
    let rows = client.query_typed(sql, &[(&name.as_str(), Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    // -2 marks a database whose drop was interrupted: it takes no sessions, and cannot be altered any more.
    if row.try_get::<_, i32>(0)? != -2 {
        database_connections_allow(client, name, false).await?;
        sessions_end(client, name).await?;
    }
    client.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", name.quoted())).await?;
    Ok(())
}

/// Puts the database `new` in the place of `live`, which is called `old` from then on and takes no sessions: both
/// renames in one transaction. Sessions in either are ended first.
///
/// After a failure both have their names as before, but may still take no sessions: the caller knows which of them
/// should.
pub async fn databases_swap(
    client: &mut Client,
    live: &DatabaseName,
    new: &DatabaseName,
    old: &DatabaseName,
) -> Result<(), Error> {
    for name in [live, new] {
        database_connections_allow(client, name, false).await?;
        sessions_end(client, name).await?;
    }
    let transaction = client.transaction().await?;
    let swap = format!(
        "ALTER DATABASE {live} RENAME TO {old}; ALTER DATABASE {new} RENAME TO {live}; \
         ALTER DATABASE {live} ALLOW_CONNECTIONS true",
        live = live.quoted(),
        new = new.quoted(),
        old = old.quoted()
    );
    transaction.batch_execute(&swap).await?;
    transaction.commit().await?;
    Ok(())
}

/// Sessions of clients in the database, this one not counted.
pub async fn sessions_count(client: &Client, name: &DatabaseName) -> Result<i64, Error> {
    let sql = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity \
               WHERE datname = $1 AND backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()";
    count(client.query_typed(sql, &[(&name.as_str(), Type::TEXT)]).await)
}

/// Ends every session in the database but this one, and waits until they are gone.
pub async fn sessions_end(client: &Client, name: &DatabaseName) -> Result<(), Error> {
    let sql = "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
               WHERE datname = $1 AND backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()";
    sessions_gone(ended(client, sql, &[(&name.as_str(), Type::TEXT)]).await?, name)
}

/// Ends every session of these roles in the database, and waits until they are gone.
pub async fn role_sessions_end(client: &Client, name: &DatabaseName, roles: &[RoleName]) -> Result<(), Error> {
    let sql = "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
               WHERE datname = $1 AND usename::pg_catalog.text = ANY ($2) \
               AND backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()";
    let roles: Vec<&str> = roles.iter().map(RoleName::as_str).collect();
    let parameters: [Parameter<'_>; 2] = [(&name.as_str(), Type::TEXT), (&roles, Type::TEXT_ARRAY)];
    sessions_gone(ended(client, sql, &parameters).await?, name)
}

/// Sessions of these roles in the database that run a statement or have a transaction open.
pub async fn role_sessions_busy(client: &Client, name: &DatabaseName, roles: &[RoleName]) -> Result<i64, Error> {
    let sql = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity \
               WHERE datname = $1 AND usename::pg_catalog.text = ANY ($2) AND state <> 'idle'";
    let roles: Vec<&str> = roles.iter().map(RoleName::as_str).collect();
    let parameters: [Parameter<'_>; 2] = [(&name.as_str(), Type::TEXT), (&roles, Type::TEXT_ARRAY)];
    let unanswered = |_elapsed| Error::Unanswered { waited: ANSWER_MAX };
    count(timeout(ANSWER_MAX, client.query_typed(sql, &parameters)).await.map_err(unanswered)?)
}

/// Sessions of these roles, in any database.
pub async fn role_sessions_count(client: &Client, roles: &[RoleName]) -> Result<i64, Error> {
    let sql = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE usename::pg_catalog.text = ANY ($1)";
    let roles: Vec<&str> = roles.iter().map(RoleName::as_str).collect();
    count(client.query_typed(sql, &[(&roles, Type::TEXT_ARRAY)]).await)
}

/// Ends what an ended daemon left behind on this server: sessions of its operations, `pg_dump`'s and `pg_restore`'s
/// among them. The router's sessions have other names, and go by themselves.
pub async fn instance_sessions_end(client: &Client, instance: Uuid) -> Result<(), Error> {
    let sql = "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
               WHERE pg_catalog.starts_with(application_name, $1) AND pid <> pg_catalog.pg_backend_pid()";
    let prefix = format!("{} ", instance_prefix(instance));
    let remaining = ended(client, sql, &[(&prefix, Type::TEXT)]).await?;
    if remaining == 0 {
        return Ok(());
    }
    Err(Error::InstanceRemains { instance: instance.to_string(), count: remaining, waited: SESSIONS_END_MAX })
}

/// The database's subscriptions, by name: only a superuser may read the rest of them, so no dump has them.
pub async fn subscription_names(client: &Client, database: &DatabaseName) -> Result<Vec<String>, Error> {
    let sql = "SELECT s.subname::pg_catalog.text FROM pg_catalog.pg_subscription AS s \
               JOIN pg_catalog.pg_database AS d ON d.oid = s.subdbid WHERE d.datname = $1 ORDER BY 1";
    let rows = client.query_typed(sql, &[(&database.as_str(), Type::TEXT)]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Those of the extensions that a role without a superuser's rights cannot create here, each with what to do.
pub async fn extensions_refused(client: &Client, names: &[&str]) -> Result<Vec<String>, Error> {
    let sql = "SELECT n.name, v.name IS NULL FROM pg_catalog.unnest($1) AS n (name) \
               LEFT JOIN pg_catalog.pg_available_extensions AS e ON e.name = n.name \
               LEFT JOIN pg_catalog.pg_available_extension_versions AS v \
               ON v.name = e.name AND v.version = e.default_version \
               WHERE v.name IS NULL OR v.superuser AND NOT v.trusted ORDER BY n.name";
    let rows = client.query_typed(sql, &[(&names, Type::TEXT_ARRAY)]).await?;
    let text = |row: &tokio_postgres::Row| {
        let name: &str = row.try_get(0)?;
        let what = if row.try_get(1)? {
            "is not installed there; install its package".to_owned()
        } else {
            format!(
                "can be created by superusers alone; have `trusted = true` put into {name}.control among the server's \
                 extensions, for as long as it is restored at least"
            )
        };
        Ok(format!("{name} {what}"))
    };
    rows.iter().map(text).collect()
}

/// A value with the type that it is bound as.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// Repeats `sql`, which tells sessions to end and counts them, until there are none. Answers with how many remain.
async fn ended(client: &Client, sql: &str, parameters: &[Parameter<'_>]) -> Result<i64, Error> {
    let deadline = Instant::now() + SESSIONS_END_MAX;
    loop {
        let unanswered = |_elapsed| Error::Unanswered { waited: ANSWER_MAX };
        let answer = timeout(ANSWER_MAX, client.query_typed(sql, parameters)).await.map_err(unanswered)?;
        let remaining = count(answer)?;
        if remaining == 0 || Instant::now() >= deadline {
            return Ok(remaining);
        }
        sleep(SESSIONS_POLL_INTERVAL).await;
    }
}

fn sessions_gone(remaining: i64, name: &DatabaseName) -> Result<(), Error> {
    if remaining == 0 {
        return Ok(());
    }
    Err(Error::SessionsRemain { database: name.to_string(), count: remaining, waited: SESSIONS_END_MAX })
}

pub(super) fn count(rows: Result<Vec<tokio_postgres::Row>, tokio_postgres::Error>) -> Result<i64, Error> {
    rows?.first().map_or(Ok(0), |row| Ok(row.try_get(0)?))
}
