//! Proof that a backup in the bucket can be read, without a database: from the object's size to every row's encoding.
//!
//! The archive is spooled, because nothing may parse it before its SHA-256 is that of the signed manifest.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::spool::{self, Spool};
use super::{Check, Error, transfer};
use crate::domain::backup::Manifest;
use crate::postgres::programs::Programs;
use crate::secrets::BackupIdentity;
use crate::shutdown::Tasks;
use crate::store::Store;

/// What is verified, and with what.
#[derive(Debug, Clone)]
pub struct VerifyRequest<'a> {
    pub tasks: &'a Tasks,
    pub store: &'a Store,
    /// As [`super::manifest_read`] gave it, so that its signature is known to be good.
    pub manifest: &'a Manifest,
    /// The tenant's.
    pub identity: &'a BackupIdentity,
    pub spool_dir: &'a Path,
    /// Names the spool folder: the operation, or any new id.
    pub id: Uuid,
    pub stall_timeout: Duration,
}

/// Reads the whole archive, and answers with the checks that it passed.
///
/// # Errors
/// [`Error::Archive`] names the check that failed.
pub async fn verify(request: &VerifyRequest<'_>) -> Result<Vec<Check>, Error> {
    let archive = &request.manifest.archive;
    let spool = Spool::create(request.spool_dir, request.id)?;
    let sealed = spool.path("archive");
    spool::fetch(request.tasks, request.store, archive, request.stall_timeout, sealed.clone()).await?;
    decode(request, sealed).await?;
    Ok(Check::ALL.to_vec())
}

/// Lets `pg_restore` read every row, to nowhere.
async fn decode(request: &VerifyRequest<'_>, sealed: PathBuf) -> Result<(), Error> {
    let programs = Programs::for_archive(request.manifest.dump_major())?;
    let mut program = programs.archive_decode(request.tasks)?;
    let (chunks, mut receiver) = transfer::channel();
    let (identity, archive) = (request.identity.identity().clone(), request.manifest.archive.clone());
    let unsealing = request.tasks.spawn_blocking("backup unseal", move || {
        spool::unseal(&sealed, &identity, &archive, &mut ChannelWriter { chunks }, Path::new("pg_restore's input"))
    });
    if let Some(stdin) = program.stdin() {
        // A program that ends early closes its input; how it ended says why.
        let _reader_gone = transfer::pour(&mut receiver, stdin).await;
    }
    drop(receiver);
    unsealing.await.map_err(Error::Thread)??;
    program.outcome().await.map_err(|error| Error::Archive { check: Check::Decode, reason: error.to_string() })
}

/// Sends what is written to a channel. When the channel's reader has gone, the rest is still taken, because the
/// layers above have to be read to their ends.
struct ChannelWriter {
    chunks: mpsc::Sender<Bytes>,
}

impl Write for ChannelWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let _reader_gone = self.chunks.blocking_send(Bytes::copy_from_slice(buffer));
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
