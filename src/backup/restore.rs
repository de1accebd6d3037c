//! A backup into a new, empty database that the daemon has prepared: roles and their settings, grants and
//! the identity row are there before, and nobody uses it yet.
//!
//! `pg_restore` runs as the tenant's own login, so that no function in the archive gets a right that the tenant lacks.
//! It does not restore in one transaction: the database is dropped when anything fails, and the locks of a schema with
//! thousands of tables would not fit into one. Rows and sequences are compared with the manifest afterwards.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::contents::{self, Contents, Entry};
use super::privileges::{owners_changed, privileges_apply};
use super::spool::{self, Spool};
use super::{Error, digest, snapshot};
use crate::config::RoleLogin;
use crate::domain::backup::{Manifest, sequence_differences};
use crate::domain::tenant::DatabaseName;
use crate::postgres::programs::{self, Pass, PgRestore, ProgramSession, Programs};
use crate::postgres::roles::TenantRoles;
use crate::postgres::{Server, admin};
use crate::secrets::BackupIdentity;
use crate::store::Store;

/// Sessions in which `pg_restore` works at the same time; the tenant's login has to be allowed as many.
pub const JOBS: u32 = 2;

/// What is restored, and where to.
#[derive(Debug, Clone)]
pub struct RestoreRequest<'a> {
    pub server: &'a Server,
    pub store: &'a Store,
    /// As [`super::manifest_read`] gave it, so that its signature is known to be good.
    pub manifest: &'a Manifest,
    /// The identity of the tenant that was backed up.
    pub identity: &'a BackupIdentity,
    /// Exists, takes connections, and is empty.
    pub database: &'a DatabaseName,
    /// Take the places of those that were backed up.
    pub roles: &'a TenantRoles,
    /// The tenant's login for restores; acts as the owner in `database`.
    pub login: &'a RoleLogin,
    pub spool_dir: &'a Path,
    /// Names the spool folder.
    pub operation_id: Uuid,
    pub stall_timeout: Duration,
}

/// What was restored, and how long each step took, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreReport {
    pub steps: Vec<RestoreStep>,
    pub tables: usize,
    pub rows: i64,
    /// Grants that the server did not take again, as sentences.
    pub privileges_left_out: Vec<String>,
    /// What belonged to others, and is the tenant's owner's now.
    pub owners_changed: Vec<String>,
    /// Publications that only a superuser can create, as sentences.
    pub publications_left_out: Vec<String>,
    /// Of the restored database. It may differ from the manifest's although nothing is lost: `pg_dump` gives columns
    /// that were added to an inheritance parent another place in its children.
    pub schema_fingerprint: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreStep {
    pub name: &'static str,
    pub duration: Duration,
}

/// Restores, and compares what was restored with the manifest.
///
/// # Errors
/// Whatever went wrong, the database is half-filled and for the caller to drop.
pub async fn restore_into(request: &RestoreRequest<'_>) -> Result<RestoreReport, Error> {
    let mut steps = Vec::new();
    let spool = Spool::create(request.spool_dir, request.operation_id)?;
    let begun = Instant::now();
    let dump = download(request, &spool).await?;
    steps.push(RestoreStep { name: "download", duration: begun.elapsed() });
    let begun = Instant::now();
    let publications_left_out = fill(request, &spool, &dump).await?;
    steps.push(RestoreStep { name: "database", duration: begun.elapsed() });
    let begun = Instant::now();
    let privileges_left_out = privileges(request).await?;
    steps.push(RestoreStep { name: "privileges", duration: begun.elapsed() });
    let begun = Instant::now();
    let schema_fingerprint = compare(request).await?;
    steps.push(RestoreStep { name: "integrity", duration: begun.elapsed() });
    let rows = request.manifest.tables.iter().map(|table| table.row_count).sum();
    let tables = request.manifest.tables.len();
    let owners_changed = request.manifest.privileges.iter().flat_map(|all| owners_changed(all)).collect();
    Ok(RestoreReport {
        steps,
        tables,
        rows,
        privileges_left_out,
        owners_changed,
        publications_left_out,
        schema_fingerprint,
    })
}

/// The programs that read the archive and restore it on this server.
///
/// # Errors
/// When there are none, or can be none: before anything is done, if this is asked first.
pub async fn restore_programs(server: &Server, manifest: &Manifest) -> Result<Programs, Error> {
    let client = server.connect_admin(server.maintenance_database()).await?;
    let version = admin::server_version(&client).await?;
    Ok(Programs::for_restore(manifest.dump_major(), version.num.unsigned_abs())?)
}

/// Fetches, checks and opens the archive; only the dump is left in the spool.
async fn download(request: &RestoreRequest<'_>, spool: &Spool) -> Result<PathBuf, Error> {
    let tasks = request.server.tasks();
    let (sealed, dump) = (spool.path("archive"), spool.path("dump"));
    let archive = request.manifest.archive.clone();
    spool::fetch(tasks, request.store, &archive, request.stall_timeout, sealed.clone()).await?;
    let (identity, path) = (request.identity.identity().clone(), dump.clone());
    let opening = tasks.spawn_blocking("backup unseal", move || {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |cause| Error::Spool { path, cause }
        };
        let mut file = spool::file_create(&path)?;
        spool::unseal(&sealed, &identity, &archive, &mut file, &path)?;
        std::fs::remove_file(&sealed).map_err(failed(&sealed))
    });
    opening.await.map_err(Error::Thread)??;
    Ok(dump)
}

/// Answers with the publications that could not be made, as sentences.
async fn fill(request: &RestoreRequest<'_>, spool: &Spool, dump: &Path) -> Result<Vec<String>, Error> {
    let programs = restore_programs(request.server, request.manifest).await?;
    let text = programs.archive_list(request.server, dump).await?;
    let contents = Contents::read(&text);
    let mut permits = Vec::new();
    for _job in 0..JOBS {
        permits.push(snapshot::permit(request.server).await?);
    }
    let pass = async |pass, entries: &[Entry<'_>]| {
        let list = spool.path("list");
        let failed = |cause| Error::Spool { path: list.clone(), cause };
        spool::file_create(&list)?.write_all(contents::list(entries).as_bytes()).map_err(failed)?;
        let program = programs.pg_restore(&PgRestore {
            session: ProgramSession {
                server: request.server,
                login: request.login,
                database: request.database,
                purpose: "restore",
                private_dir: spool.folder(),
            },
            archive: dump,
            list: Some(&list),
            pass,
        })?;
        let outcome = program.outcome().await;
        std::fs::remove_file(&list).map_err(failed)?;
        Ok::<_, Error>(outcome?)
    };
    pass(Pass::Rows { jobs: JOBS }, &contents.main).await?;
    pass(Pass::AfterRows { jobs: JOBS }, &contents.main).await?;
    if !contents.views.is_empty() {
        pass(Pass::Views, &contents.views).await?;
    }
    // Those that a superuser made may be more than the tenant's owner can make. The rows do not depend on them.
    let mut left_out = Vec::new();
    let all = [contents.publications.as_slice()];
    let mut groups: Vec<&[Entry<'_>]> = all.into_iter().filter(|entries| !entries.is_empty()).collect();
    while let Some(entries) = groups.pop() {
        match pass(Pass::Publications, entries).await {
            Ok(()) => {}
            Err(Error::Program(programs::Error::Failed { output, .. })) if entries.len() == 1 => {
                left_out.extend(entries.iter().map(|entry| format!("{}: {output}", entry.description)));
            }
            // One by one, in their order.
            Err(Error::Program(programs::Error::Failed { .. })) => groups.extend(entries.chunks(1).rev()),
            Err(error) => return Err(error),
        }
    }
    Ok(left_out)
}

/// Gives everybody what they had.
async fn privileges(request: &RestoreRequest<'_>) -> Result<Vec<String>, Error> {
    let Some(expected) = &request.manifest.privileges else { return Ok(Vec::new()) };
    let permit = snapshot::permit(request.server).await?;
    let session =
        snapshot::connect_as(request.login, request.server, permit, request.database, request.stall_timeout).await?;
    // Nothing that the tenant has defined is found by a name.
    session.batch_execute("SET search_path = pg_catalog, pg_temp").await?;
    privileges_apply(&session, request.roles, expected).await
}

/// Compares rows and sequences, and answers with the schema's fingerprint.
async fn compare(request: &RestoreRequest<'_>) -> Result<String, Error> {
    let permit = snapshot::permit(request.server).await?;
    let session = snapshot::connect(request.server, permit, request.database, request.stall_timeout).await?;
    let found = digest::digests(&session).await?;
    let mut differences = request.manifest.table_differences(&found.tables, &found.partitions);
    differences.extend(sequence_differences(&request.manifest.sequences, &found.sequences));
    if differences.is_empty() { Ok(found.schema_fingerprint) } else { Err(Error::Differences(differences)) }
}
