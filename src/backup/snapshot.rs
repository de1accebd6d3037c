//! The session that exports the snapshot which `pg_dump` reads. Everything that the manifest says of the database is
//! read in it, so that the numbers are those of the dump, whatever is written meanwhile.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use super::Error;
use super::digest::{self, Table};
use super::privileges::privileges;
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

const FACTS: &str = "
SELECT pg_export_snapshot(), now(), current_setting('server_version'), current_setting('server_version_num')::int4,
       pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text
FROM pg_database WHERE datname = current_database()";

const EXTENSIONS: &str = "
SELECT e.extname, e.extversion, n.nspname
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY e.extname COLLATE \"C\"";

/// A snapshot, valid while this is alive, and what was read when it was taken.
#[derive(Debug)]
pub(super) struct Snapshot {
    session: Connection,
    /// For `pg_dump --snapshot`.
    pub id: String,
    pub time: OffsetDateTime,
    pub server_version: String,
    pub server_version_num: u32,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    pub extensions: Vec<Extension>,
    pub schema_fingerprint: String,
    pub privileges: Vec<Privilege>,
    tables: Vec<Table>,
    sequences: Vec<(String, String, i64)>,
}

impl Snapshot {
    /// Takes the snapshot. A lock that is not given within `lock_timeout` is an error.
    pub(super) async fn export(
        server: &Server,
        permit: Permit,
        database: &DatabaseName,
        roles: &TenantRoles,
        lock_timeout: Duration,
    ) -> Result<Self, Error> {
        let session = connect(server, permit, database, lock_timeout).await?;
        digest::snapshot_begin(&session).await?;
        let facts = session.query_one(FACTS, &[]).await?;
        let extensions = session.query(EXTENSIONS, &[]).await?.iter().map(extension).collect::<Result<_, Error>>()?;
        // Before `pg_dump` locks them, so that nothing that alters a table can come between the two.
        let tables = digest::tables_list(&session).await?;
        digest::tables_lock(&session, &tables).await?;
        let schema_fingerprint = fingerprint_in_txn(&session).await?;
        let privileges = privileges(&session, roles).await?;
        let sequences = digest::sequences(&session).await?;
        Ok(Self {
            session,
            id: facts.try_get(0)?,
            time: facts.try_get(1)?,
            server_version: facts.try_get(2)?,
            server_version_num: facts.try_get::<_, i32>(3)?.unsigned_abs(),
            encoding: facts.try_get(4)?,
            collate: facts.try_get(5)?,
            ctype: facts.try_get(6)?,
            extensions,
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
    pub(super) async fn end(self) -> Result<Vec<SequenceRange>, Error> {
        let after = digest::sequences(&self.session).await?;
        self.session.batch_execute("COMMIT").await?;
        Ok(digest::sequence_ranges(self.sequences, &after))
    }
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

fn extension(row: &tokio_postgres::Row) -> Result<Extension, Error> {
    Ok(Extension { name: row.try_get(0)?, version: row.try_get(1)?, schema: row.try_get(2)? })
}
