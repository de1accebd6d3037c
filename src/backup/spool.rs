//! Where an archive lies while it is restored or verified: `spool_dir/<id>/`, which nobody but the daemon can enter.
//!
//! An archive is fetched whole, and its size and SHA-256 are those of the signed manifest, before anything parses it.
//! The folder goes away with its [`Spool`], and [`SpoolDir`] removes what a killed daemon left.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use age::x25519::Identity;
use bytes::Bytes;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::archive::{self, CHUNK_BYTES, DUMP_MAGIC, Layer};
use super::parts::{PartWriter, Written};
use super::transfer::{self, ChannelReader};
use super::{Check, Error};
use crate::domain::backup::Archive;
use crate::shutdown::Tasks;
use crate::store::Store;

/// A private folder, removed with everything in it when this is dropped.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// Makes the folder, empty: what an earlier attempt of the same `id` left is removed.
    pub(super) fn create(spool_dir: &Path, id: Uuid) -> Result<Self, Error> {
        let folder = spool_dir.join(id.to_string());
        let failed = |cause| Error::Spool { path: folder.clone(), cause };
        // It may have been removed since the daemon began.
        DirBuilder::new().recursive(true).mode(0o700).create(spool_dir).map_err(failed)?;
        remove(&folder).map_err(failed)?;
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        Ok(Self { folder })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "a spool folder could not be removed; the next start will try again");
        }
    }
}

/// The place of all spools, this daemon's alone for as long as this lives: others would take what lies in it for left
/// behind. The lock is the system's, on the folder itself, and ends with the process, however that ends.
#[derive(Debug)]
pub struct SpoolDir {
    folder: File,
    /// Folders of operations that were left in it.
    pub removed: usize,
}

impl SpoolDir {
    /// Makes it where there is none, and removes what a killed daemon left. For start-up, before anything is restored.
    ///
    /// # Errors
    /// When it cannot be made, read or emptied, and when another daemon has it.
    pub fn open(spool_dir: &Path) -> Result<Self, Error> {
        let failed = |cause| Error::Spool { path: spool_dir.to_owned(), cause };
        DirBuilder::new().recursive(true).mode(0o700).create(spool_dir).map_err(failed)?;
        let folder = File::open(spool_dir).map_err(failed)?;
        match folder.try_lock() {
            Ok(()) => Ok(Self { folder, removed: clean(spool_dir).map_err(failed)? }),
            Err(TryLockError::WouldBlock) => Err(Error::SpoolTaken { path: spool_dir.to_owned() }),
            Err(TryLockError::Error(cause)) => Err(failed(cause)),
        }
    }
}

impl Drop for SpoolDir {
    fn drop(&mut self) {
        // A child that was begun at this moment has it open as well, until it has become its own program. Where it
        // cannot be unlocked, it is closed all the same.
        let _closed_anyway = self.folder.unlock();
    }
}

/// Removes the folders of all operations, and answers with how many there were.
fn clean(spool_dir: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(spool_dir)? {
        let entry = entry?;
        // Only what carries an id is ours.
        if entry.file_name().to_str().is_some_and(|name| name.parse::<Uuid>().is_ok()) {
            remove(&entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A new file that only the daemon can read.
pub(super) fn file_create(path: &Path) -> Result<File, Error> {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    created.map_err(|cause| Error::Spool { path: path.to_owned(), cause })
}

/// Fetches the archive into the file `path`, and checks its size and SHA-256.
pub(super) async fn fetch(
    tasks: &Tasks,
    store: &Store,
    archive: &Archive,
    stall_timeout: Duration,
    path: PathBuf,
) -> Result<(), Error> {
    let mut source = store.get_stream(&archive.key).await?;
    size_check(archive, source.bytes())?;
    let (sender, receiver) = transfer::channel();
    let file = file_create(&path)?;
    let writing = tasks.spawn_blocking("backup-spool", move || write(file, receiver));
    let reading = async {
        let pumped = transfer::pump(&mut source, sender, Some(stall_timeout)).await;
        pumped.map_err(|broken| broken.into_error("the download of the archive"))
    };
    let writing = async {
        let written = writing.await.map_err(Error::Thread)?;
        written.map_err(|cause| Error::Spool { path, cause })
    };
    let (written, _bytes) = tokio::try_join!(writing, reading)?;
    size_check(archive, written.bytes)?;
    if written.sha256 != archive.sha256 {
        let reason = format!("it is {} instead of {}", written.sha256, archive.sha256);
        return Err(Error::Archive { check: Check::Sha256, reason });
    }
    Ok(())
}

fn size_check(archive: &Archive, found: u64) -> Result<(), Error> {
    if found == archive.bytes {
        return Ok(());
    }
    let reason = format!("it has {found} bytes instead of {}", archive.bytes);
    Err(Error::Archive { check: Check::Size, reason })
}

fn write(mut file: File, receiver: mpsc::Receiver<Bytes>) -> io::Result<Written> {
    let mut writer = PartWriter::new(std::iter::repeat(CHUNK_BYTES as u64), |chunk: Bytes| file.write_all(&chunk));
    io::copy(&mut ChannelReader::new(receiver), &mut writer)?;
    writer.finish()
}

/// Decrypts and decompresses the spooled archive into `sink`, which is called `into`, and checks what can be known of the dump without
/// parsing it. Synchronous, for a thread of its own.
pub(super) fn unseal(
    sealed: &Path,
    identity: &Identity,
    archive: &Archive,
    sink: &mut impl Write,
    into: &Path,
) -> Result<(), Error> {
    let failed = |cause: io::Error| match archive::damage(&cause) {
        Some(damage) => Error::Archive { check: check(damage.layer), reason: damage.reason.clone() },
        None => Error::Spool { path: sealed.to_owned(), cause },
    };
    let not_written = |cause| Error::Spool { path: into.to_owned(), cause };
    let file = File::open(sealed).map_err(failed)?;
    let mut dump = archive::open(io::BufReader::with_capacity(CHUNK_BYTES, file), identity).map_err(failed)?;
    let mut magic = Vec::new();
    dump.by_ref().take(DUMP_MAGIC.len() as u64).read_to_end(&mut magic).map_err(failed)?;
    if magic != DUMP_MAGIC {
        let reason = "it does not begin as a custom-format dump does".to_owned();
        return Err(Error::Archive { check: Check::Header, reason });
    }
    sink.write_all(&magic).map_err(not_written)?;
    let (mut bytes, mut buffer) = (magic.len() as u64, vec![0; CHUNK_BYTES]);
    loop {
        let count = match dump.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        sink.write_all(&buffer[..count]).map_err(not_written)?;
        bytes += count as u64;
    }
    sink.flush().map_err(not_written)?;
    if bytes != archive.dump_bytes {
        let reason = format!("it has {bytes} bytes instead of {}", archive.dump_bytes);
        return Err(Error::Archive { check: Check::DumpSize, reason });
    }
    Ok(())
}

fn check(layer: Layer) -> Check {
    match layer {
        Layer::Encryption => Check::Encryption,
        Layer::Compression => Check::Compression,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_spool_is_private_and_goes_away() {
        let root = tempfile::tempdir().unwrap();
        let spool_dir = root.path().join("spool");
        let id = Uuid::from_u128(1);
        let spool = Spool::create(&spool_dir, id).unwrap();
        let path = spool.path("archive");
        file_create(&path).unwrap().write_all(b"x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&spool_dir), mode(path.parent().unwrap()), mode(&path)), (0o700, 0o700, 0o600));
        drop(spool);
        assert!(!path.exists() && spool_dir.exists());
    }

    #[test]
    fn a_repetition_finds_an_empty_spool() {
        let root = tempfile::tempdir().unwrap();
        let id = Uuid::from_u128(1);
        let left = Spool::create(root.path(), id).unwrap();
        file_create(&left.path("archive")).unwrap();
        std::mem::forget(left);
        let spool = Spool::create(root.path(), id).unwrap();
        file_create(&spool.path("archive")).unwrap();
    }

    #[test]
    fn what_was_left_is_removed_by_the_only_owner() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("made/on the way");
        let owner = SpoolDir::open(&place).unwrap();
        assert_eq!(owner.removed, 0);
        let left = Uuid::from_u128(1).to_string();
        for name in [left.as_str(), "kept by somebody"] {
            fs::create_dir(place.join(name)).unwrap();
        }
        assert!(matches!(SpoolDir::open(&place), Err(Error::SpoolTaken { .. })));
        assert!(place.join(&left).exists(), "the owner may need it");
        drop(owner);
        assert_eq!(SpoolDir::open(&place).unwrap().removed, 1);
        assert!(!place.join(&left).exists() && place.join("kept by somebody").exists());
        fs::write(root.path().join("file"), "").unwrap();
        assert!(matches!(SpoolDir::open(&root.path().join("file")), Err(Error::Spool { .. })));
    }

    #[test]
    fn the_failed_check_is_named() {
        let root = tempfile::tempdir().unwrap();
        let identity = Identity::generate();
        let sealed = |dump: &[u8]| {
            let path = root.path().join(format!("{}", dump.len()));
            let (_, bytes) = archive::seal(&mut &*dump, &[identity.to_public()], 3, Vec::new()).unwrap();
            fs::write(&path, bytes).unwrap();
            path
        };
        let archive = |dump_bytes| Archive { key: String::new(), bytes: 0, sha256: String::new(), dump_bytes };
        let check = |dump: &[u8], identity: &Identity, bytes: u64| match unseal(
            &sealed(dump),
            identity,
            &archive(bytes),
            &mut io::sink(),
            Path::new("the dump"),
        ) {
            Err(Error::Archive { check, .. }) => Some(check),
            Err(other) => panic!("{other}"),
            Ok(()) => None,
        };
        assert_eq!(check(b"PGDMP and more", &identity, 14), None);
        assert_eq!(check(b"PGDMP and more", &identity, 15), Some(Check::DumpSize));
        assert_eq!(check(b"PGDM", &identity, 4), Some(Check::Header));
        assert_eq!(check(b"", &identity, 0), Some(Check::Header));
        assert_eq!(check(b"PGDMP", &Identity::generate(), 5), Some(Check::Encryption));
    }

    /// As a full disk.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _buffer: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_file_that_could_not_be_written_is_named() {
        let root = tempfile::tempdir().unwrap();
        let identity = Identity::generate();
        let (_, sealed) = archive::seal(&mut &b"PGDMP and more"[..], &[identity.to_public()], 3, Vec::new()).unwrap();
        let path = root.path().join("archive");
        fs::write(&path, sealed).unwrap();
        let archive = Archive { key: String::new(), bytes: 0, sha256: String::new(), dump_bytes: 14 };
        let refused = unseal(&path, &identity, &archive, &mut Full, Path::new("the dump"));
        assert!(matches!(refused, Err(Error::Spool { path, .. }) if path == Path::new("the dump")));
    }
}
