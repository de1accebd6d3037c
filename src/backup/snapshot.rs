//! The session that exports the snapshot which `pg_dump` reads. Everything that the manifest says of the database is
//! read in it, so that the numbers are those of the dump, whatever is written meanwhile.
//!
//! The tables are locked before the snapshot is taken: what empties or rewrites a table follows no snapshot, and one
//! that was taken while it was under way would see no rows. Which tables there are is looked up before and after, and
//! it all begins again when that has changed. No lock is waited for long, because others queue behind whoever waits.

use std::time::Duration;

use postgres_types::Type;
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_postgres::{Client, Row};

use super::Error;
use super::digest::{self, Table};
use super::history::schema_version;
use super::names::Names;
use super::privileges::privileges;
use super::sequences::{Sequence, sequence_ranges, sequences};
use crate::config::RoleLogin;
use crate::domain::backup::{Extension, SequenceRange, TableDigest};
use crate::domain::privilege::Privilege;
use crate::domain::tenant::DatabaseName;
use crate::postgres::fingerprint::fingerprint_in_txn;
use crate::postgres::roles::TenantRoles;
use crate::postgres::{ConnectRequest, Connection, Lane, Permit, Server, SessionOptions};

/// How long to queue for the sessions' permits.
const PERMIT_WAIT_MAX: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the tables may change between a look at them and their locks, one right after the other.
const CHANGES_MAX: usize = 10;

const FACTS: &str = "
SELECT pg_export_snapshot(), now(), current_setting('server_version'), current_setting('server_version_num')::int4,
       pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text
FROM pg_database WHERE datname = current_database()";

const EXTENSIONS: &str = "
SELECT e.extname, e.extversion, n.nspname
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY e.extname COLLATE \"C\"";

/// Tables of the tenant's that somebody has made a part of an extension: `pg_dump` takes them for what the extension
/// makes by itself. What an extension has registered as its configuration is dumped.
const LEFT_OUT: &str = "
SELECT format('%I.%I', n.nspname, c.relname), e.extname
FROM pg_depend d
JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
JOIN pg_class c ON c.oid = d.objid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_roles o ON o.oid = c.relowner
WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e' AND c.relkind IN ('r', 'p') AND o.rolname = $1
  AND c.oid <> ALL (coalesce(e.extconfig, '{}'))
ORDER BY 1 LIMIT 1";

/// A snapshot, valid while this is alive, and what was read when it was taken.
#[derive(Debug)]
pub(super) struct Snapshot {
    session: Connection,
    _names: Names,
    /// For `pg_dump --snapshot`.
    pub id: String,
    pub time: OffsetDateTime,
    pub server_version: String,
    pub server_version_num: u32,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    pub extensions: Vec<Extension>,
    pub schema_version: i64,
    pub schema_fingerprint: String,
    pub privileges: Vec<Privilege>,
    tables: Vec<Table>,
    sequences: Vec<Sequence>,
}

impl Snapshot {
    /// Takes the snapshot. A lock that is not given within `lock_timeout` is an error, as is a table that `pg_dump`
    /// would leave out.
    pub(super) async fn export(
        server: &Server,
        permit: Permit,
        database: &DatabaseName,
        roles: &TenantRoles,
        lock_timeout: Duration,
    ) -> Result<Self, Error> {
        let names = Names::keep(server, database, roles, lock_timeout).await?;
        let session = connect(server, permit, database, lock_timeout).await?;
        let (tables, facts) = begin(&session).await?;
        if !names.are_all_of(&session, roles).await? {
            return Err(Error::TablesChanged);
        }
        let left_out = session.query_typed(LEFT_OUT, &[(&roles.owner.as_str(), Type::NAME)]).await?;
        if let Some(row) = left_out.first() {
            return Err(Error::TableLeftOut { table: row.try_get(0)?, extension: row.try_get(1)? });
        }
        let extensions = session.query(EXTENSIONS, &[]).await?.iter().map(extension).collect::<Result<_, Error>>()?;
        let schema_version = schema_version(&session).await?;
        let schema_fingerprint = fingerprint_in_txn(&session).await?;
        let privileges = privileges(&session, roles).await?;
        let sequences = sequences(&session).await?;
        Ok(Self {
            session,
            _names: names,
            id: facts.try_get(0)?,
            time: facts.try_get(1)?,
            server_version: facts.try_get(2)?,
            server_version_num: facts.try_get::<_, i32>(3)?.unsigned_abs(),
            encoding: facts.try_get(4)?,
            collate: facts.try_get(5)?,
            ctype: facts.try_get(6)?,
            extensions,
            schema_version,
            schema_fingerprint,
            privileges,
            tables,
            sequences,
        })
    }

    /// Every table's rows in the snapshot.
    pub(super) async fn tables(&self) -> Result<Vec<TableDigest>, Error> {
        digest::tables_digest(&self.session, &self.tables).await
    }

    /// Reads the sequences again, and lets the snapshot go. To be called when `pg_dump` has ended.
    ///
    /// # Errors
    /// When a name has come to mean another table meanwhile, as where somebody else than the tenant owns the schema.
    pub(super) async fn end(self) -> Result<Vec<SequenceRange>, Error> {
        let after = sequences(&self.session).await?;
        if digest::tables_list(&self.session).await? != self.tables {
            return Err(Error::TablesChanged);
        }
        self.session.batch_execute("COMMIT").await?;
        Ok(sequence_ranges(self.sequences, &after))
    }
}

/// Begins the transaction, locks all tables, and only then takes the snapshot. Answers with the tables, and [`FACTS`].
async fn begin(session: &Client) -> Result<(Vec<Table>, Row), Error> {
    for _ in 0..CHANGES_MAX {
        digest::txn_begin(session).await?;
        let seen = digest::tables_list(session).await?;
        session.batch_execute("COMMIT").await?;
        digest::txn_begin(session).await?;
        match digest::tables_lock(session, &seen).await {
            Ok(()) => {
                let facts = session.query_one(FACTS, &[]).await?;
                let tables = digest::tables_list(session).await?;
                if tables == seen && tables.iter().all(Table::is_found_by_name) {
                    return Ok((tables, facts));
                }
            }
            // One of them is gone.
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
        session.batch_execute("ROLLBACK").await?;
    }
    Err(Error::TablesChanged)
}

/// A permit for a session. Who needs several takes them before opening any of them: who waits here holds no snapshot.
pub(super) async fn permit(server: &Server) -> Result<Permit, Error> {
    Ok(server.budget().acquire(Lane::Backup, Instant::now() + PERMIT_WAIT_MAX).await?)
}

/// A session of the dump role.
pub(super) async fn connect(
    server: &Server,
    permit: Permit,
    database: &DatabaseName,
    lock_timeout: Duration,
) -> Result<Connection, Error> {
    connect_as(server.dump(), server, permit, database, lock_timeout).await
}

/// A session of another login.
pub(super) async fn connect_as(
    login: &RoleLogin,
    server: &Server,
    permit: Permit,
    database: &DatabaseName,
    lock_timeout: Duration,
) -> Result<Connection, Error> {
    let request = ConnectRequest {
        lane: Lane::Backup,
        login,
        database,
        application_name: &server.session_name("backup"),
        options: SessionOptions { lock_timeout: Some(lock_timeout), ..SessionOptions::default() },
        deadline: Instant::now() + CONNECT_TIMEOUT,
    };
    Ok(server.connect_with(permit, &request).await?)
}

fn extension(row: &Row) -> Result<Extension, Error> {
    Ok(Extension { name: row.try_get(0)?, version: row.try_get(1)?, schema: row.try_get(2)? })
}
