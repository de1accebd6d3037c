//! One owner per directory. The lock is the system's: it ends with the process that holds it, however that ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Held for as long as this lives.
#[derive(Debug)]
pub(super) struct DirLock {
    file: File,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child that was begun at this moment has it open as well, until it has
        // become its own program. Where it cannot be unlocked, it is closed all the same.
        let _closed_anyway = self.file.unlock();
    }
}

/// The process that has the lock, as it says itself.
#[derive(Debug)]
pub(super) struct Owner(pub(super) String);

impl DirLock {
    /// Takes the lock in this file, whose directory exists, without waiting; or says who has it.
    pub(super) fn take(path: &Path) -> io::Result<Result<Self, Owner>> {
        let mut lock = OpenOptions::new().create(true).read(true).write(true).truncate(false).mode(0o600).open(path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner = fs::read_to_string(path).unwrap_or_default();
                return Ok(Err(Owner(owner.trim().to_owned())));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        lock.set_len(0)?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Ok(Self { file: lock }))
    }
}
