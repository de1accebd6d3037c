//! One tenant's dump into the bucket: `pg_dump` → zstd → age → SHA-256 → parts, in bounded memory and without a
//! temporary file, while the session that exported the snapshot takes the digests.
//!
//! The end of `pg_dump`'s output is not success: the upload is completed only after it has exited with 0 and the
//! digests are there. Whatever fails, the upload is given up and nothing is visible. A caller that is itself stopped
//! half-way calls [`uploads_give_up`] with the id that it has persisted.
//!
//! Nothing here waits for a lock for long: who alters a table meanwhile has his turn, and the dump begins again.

use std::io;
use std::path::Path;
use std::time::Duration;

use age::x25519::Recipient;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::manifest::BackupRef;
use super::parts::{PartWriter, Written};
use super::snapshot::{self, Snapshot};
use super::spool::Spool;
use super::transfer::{self, ChannelReader};
use super::{Error, archive};
use crate::config::BackupConfig;
use crate::domain::backup::{Archive, MANIFEST_FORMAT, Manifest, TableDigest};
use crate::domain::tenant::{DatabaseName, TenantCode};
use crate::postgres::programs::{PgDump, ProgramSession, Programs};
use crate::postgres::roles::TenantRoles;
use crate::postgres::{Permit, Server};
use crate::store::{PartSizes, Store, UploadId, UploadedPart};

/// How long the snapshot's session and `pg_dump` wait for a lock. Whoever wants to alter a table waits behind the locks
/// that they have, and everybody else behind him: so they let go soon, and begin again after a pause.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Parts that wait to be sent, beside the one that is sent and the one that is filled.
const PARTS_WAITING_MAX: usize = 1;

/// What is dumped, and where to.
#[derive(Debug, Clone)]
pub struct DumpRequest<'a> {
    pub server: &'a Server,
    pub store: &'a Store,
    pub config: &'a BackupConfig,
    pub part_sizes: PartSizes,
    pub backup: BackupRef,
    pub operation_id: Uuid,
    pub catalog_id: Uuid,
    pub tenant_code: &'a TenantCode,
    pub database: &'a DatabaseName,
    pub roles: &'a TenantRoles,
    /// `age1…`: the tenant's, and the escrow's.
    pub recipients: &'a [String],
    /// The password of the dump role passes through it; no part of the dump does.
    pub spool_dir: &'a Path,
}

/// Dumps the database, and answers with the manifest, which the caller then writes. `on_upload` persists the upload's
/// id; it is awaited before anything else. `on_snapshot` is awaited when the snapshot is there and nothing was sent yet.
/// An error of either ends the dump.
///
/// The store is asked where to write before the tenant's database is touched: one that hangs keeps nobody waiting there.
///
/// # Errors
/// Whatever went wrong, the upload is given up. What lies under the backup's names is left for who holds the claim to
/// remove: this may be a daemon that was overtaken, and then it is another one's.
pub async fn dump<F, G, E>(
    request: &DumpRequest<'_>,
    on_upload: impl FnOnce(UploadId) -> F,
    on_snapshot: impl FnOnce() -> G,
) -> Result<Manifest, Error>
where
    F: Future<Output = Result<(), E>>,
    G: Future<Output = Result<(), E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let recipients = archive::recipients_parse(request.recipients).map_err(|reason| Error::Recipient { reason })?;
    let archive = request.backup.keys().archive;
    let upload = request.store.upload_begin(&archive).await?;
    let dumped = async {
        on_upload(upload.clone()).await.map_err(|error| Error::Persist(error.into()))?;
        let (permit, dump_permit) = (snapshot::permit(request.server).await?, snapshot::permit(request.server).await?);
        let mut patience = Patience::new(request.config.stall_timeout);
        let snapshot = snapshot_export(request, permit, &mut patience).await?;
        on_snapshot().await.map_err(|error| Error::Persist(error.into()))?;
        let manifest = dump_patiently(request, &recipients, snapshot, &upload, patience).await;
        drop(dump_permit);
        manifest
    };
    let dumped = dumped.await;
    if dumped.is_err()
        && let Err(error) = request.store.upload_abort(&archive, &upload).await
    {
        tracing::warn!(backup = %request.backup.backup, %error, "a failed backup's upload could not be given up; it has to be tried again");
    }
    dumped
}

/// How often something may begin again because somebody else works on the tables: until its time is over, with pauses
/// that grow, in which he has his turn.
#[derive(Debug)]
struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    fn new(time_max: Duration) -> Self {
        Self { until: Instant::now() + time_max, pause: PAUSE_MIN }
    }

    /// Waits, if `error` may pass and there is time left; otherwise it is the answer.
    async fn pause(&mut self, error: Error) -> Result<(), Error> {
        if !error.is_in_the_way() || Instant::now() + self.pause > self.until {
            return Err(error);
        }
        tracing::debug!(pause = ?self.pause, %error, "a backup lets the tables go, and begins again");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

fn lock_wait(request: &DumpRequest<'_>) -> Duration {
    request.config.stall_timeout.min(LOCK_WAIT_MAX)
}

/// Takes the snapshot. While it waits for its turn it has no session.
async fn snapshot_export(
    request: &DumpRequest<'_>,
    permit: Permit,
    patience: &mut Patience,
) -> Result<Snapshot, Error> {
    let mut permit = Some(permit);
    loop {
        let permit = match permit.take() {
            Some(permit) => permit,
            None => snapshot::permit(request.server).await?,
        };
        let (database, roles) = (request.database, request.roles);
        match Snapshot::export(request.server, permit, database, roles, lock_wait(request)).await {
            Ok(snapshot) => return Ok(snapshot),
            Err(error) => patience.pause(error).await?,
        }
    }
}

/// Dumps, and takes another snapshot whenever `pg_dump` does not get its locks, for which it waits before it writes.
async fn dump_patiently(
    request: &DumpRequest<'_>,
    recipients: &[Recipient],
    mut snapshot: Snapshot,
    upload: &UploadId,
    mut patience: Patience,
) -> Result<Manifest, Error> {
    loop {
        match dump_to(request, recipients.to_vec(), snapshot, upload).await {
            Err(error @ Error::Program(_)) => patience.pause(error).await?,
            done => return done,
        }
        snapshot = snapshot_export(request, snapshot::permit(request.server).await?, &mut patience).await?;
    }
}

/// Gives up whatever attempts at this backup have begun to send. May be repeated.
///
/// Without an `upload` nothing was sent yet. At most an upload has begun whose id did not get persisted: it is looked
/// for, but neither a store that cannot list uploads nor one that is away makes this fail, because most likely there
/// is nothing to find.
pub async fn uploads_give_up(store: &Store, backup: BackupRef, upload: Option<&UploadId>) -> Result<(), Error> {
    let archive = backup.keys().archive;
    let Some(upload) = upload else {
        if let Err(error) = uploads_abort(store, &archive).await {
            tracing::info!(backup = %backup.backup, %error, "whether an upload has begun is not known");
        }
        return Ok(());
    };
    store.upload_abort(&archive, upload).await?;
    uploads_abort(store, &archive).await
}

async fn uploads_abort(store: &Store, archive: &str) -> Result<(), Error> {
    for (key, upload) in store.uploads_list(archive).await?.unwrap_or_default() {
        store.upload_abort(&key, &upload).await?;
    }
    Ok(())
}

/// Everything that was learned while the dump streamed.
struct Streamed {
    parts: Vec<UploadedPart>,
    written: Written,
    dump_bytes: u64,
    tables: Vec<TableDigest>,
}

async fn dump_to(
    request: &DumpRequest<'_>,
    recipients: Vec<Recipient>,
    snapshot: Snapshot,
    upload: &UploadId,
) -> Result<Manifest, Error> {
    let programs = Programs::for_server(snapshot.server_version_num)?;
    let dump_version = programs.dump_version(request.server).await?;
    let streamed = stream(request, &programs, recipients, &snapshot, upload).await?;
    let key = request.backup.keys().archive;
    let mut manifest = Manifest {
        format: MANIFEST_FORMAT,
        backup_id: request.backup.backup,
        operation_id: request.operation_id,
        catalog_id: request.catalog_id,
        tenant_id: request.backup.tenant,
        tenant_code: request.tenant_code.clone(),
        database: request.database.clone(),
        snapshot_time: snapshot.time,
        server_version: snapshot.server_version.clone(),
        server_version_num: snapshot.server_version_num,
        dump_version,
        schema_version: snapshot.schema_version,
        schema_fingerprint: snapshot.schema_fingerprint.clone(),
        encoding: snapshot.encoding.clone(),
        collate: snapshot.collate.clone(),
        ctype: snapshot.ctype.clone(),
        extensions: snapshot.extensions.clone(),
        tables: streamed.tables,
        sequences: Vec::new(),
        privileges: Some(snapshot.privileges.clone()),
        archive: Archive {
            key: key.clone(),
            bytes: streamed.written.bytes,
            sha256: streamed.written.sha256,
            dump_bytes: streamed.dump_bytes,
        },
    };
    manifest.sequences = snapshot.end().await?;
    request.store.upload_complete(&key, upload, &streamed.parts).await?;
    Ok(manifest)
}

/// Runs everything at once; the first failure ends all of it, and dropping `pg_dump` kills it.
async fn stream(
    request: &DumpRequest<'_>,
    programs: &Programs,
    recipients: Vec<Recipient>,
    snapshot: &Snapshot,
    upload: &UploadId,
) -> Result<Streamed, Error> {
    let (chunk_sender, chunks) = transfer::channel();
    let (part_sender, parts) = mpsc::channel(PARTS_WAITING_MAX);
    let (sizes, zstd_level) = (request.part_sizes, request.config.zstd_level);
    let sealing = request.server.tasks().spawn_blocking("backup seal", move || {
        let send = |part| part_sender.blocking_send(part).map_err(|_gone| io::ErrorKind::BrokenPipe.into());
        let writer = PartWriter::new((1..).map_while(|number| sizes.bytes(number)), send);
        let (dump_bytes, writer) = archive::seal(&mut ChannelReader::new(chunks), &recipients, zstd_level, writer)?;
        Ok((dump_bytes, writer.finish()?))
    });
    let sealing = async { sealing.await.map_err(Error::Thread)?.map_err(Error::Seal) };
    let spool = Spool::create(request.spool_dir, request.operation_id)?;
    let mut program = programs.pg_dump(&PgDump {
        session: ProgramSession {
            server: request.server,
            login: request.server.dump(),
            database: request.database,
            purpose: "backup",
            private_dir: spool.folder(),
        },
        snapshot: &snapshot.id,
        lock_wait_max: lock_wait(request),
    })?;
    let dumping = async {
        if let Some(mut stdout) = program.stdout() {
            let pumped = transfer::pump(&mut stdout, chunk_sender.clone(), None).await;
            pumped.map_err(|broken| broken.into_error("pg_dump"))?;
        }
        program.outcome().await?;
        // Only now the archive has its end: what a failed `pg_dump` wrote is never sent as one.
        drop(chunk_sender);
        Ok(())
    };
    let uploading = parts_send(request, upload, parts);
    // In this order, because who finds a channel closed is never the cause.
    let (parts, (dump_bytes, written), (), tables) = tokio::try_join!(uploading, sealing, dumping, snapshot.tables())?;
    Ok(Streamed { parts, written, dump_bytes, tables })
}

async fn parts_send(
    request: &DumpRequest<'_>,
    upload: &UploadId,
    mut parts: mpsc::Receiver<Bytes>,
) -> Result<Vec<UploadedPart>, Error> {
    let key = request.backup.keys().archive;
    let mut sent = Vec::new();
    for number in 1.. {
        let Some(part) = parts.recv().await else { break };
        let timeout = part_timeout(request, part.len() as u64);
        let sending = request.store.upload_part(&key, upload, number, part);
        let stalled = |_elapsed| Error::Stalled { what: "the upload of the archive", timeout };
        sent.push(tokio::time::timeout(timeout, sending).await.map_err(stalled)??);
    }
    Ok(sent)
}

/// A part may take the stall timeout once for each time that the smallest part fits into it.
fn part_timeout(request: &DumpRequest<'_>, bytes: u64) -> Duration {
    let smallest = request.part_sizes.bytes(1).unwrap_or(bytes).max(1);
    let times = u32::try_from(bytes.div_ceil(smallest)).unwrap_or(u32::MAX).max(1);
    request.config.stall_timeout.saturating_mul(times)
}
