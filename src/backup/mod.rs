//! One tenant's backup: its dump into the bucket, and back again.
//!
//! Knows nothing of the catalog, of gates and of operations: it is told which database, which keys and which bucket,
//! and persists only through its callers. What always holds: an archive is visible only after `pg_dump` has ended
//! well, a backup exists only once its signed manifest is written, and nothing parses an archive before it is known
//! to be the one that the manifest names. Everything runs as the dump role or as the tenant's own login.

mod archive;
mod contents;
mod digest;
mod dump;
mod error;
mod history;
mod manifest;
mod names;
mod parts;
mod privileges;
mod restore;
mod row_sum;
mod sequences;
mod snapshot;
mod spool;
mod transfer;
mod verify;

pub use digest::{Digests, digests};
pub use dump::{DumpRequest, dump, uploads_give_up};
pub use error::{Check, Error};
pub use manifest::{BackupRef, manifest_read, manifest_read_whole, manifest_write};
pub use restore::{JOBS, RestoreReport, RestoreRequest, RestoreStep, restore_into, restore_programs};
pub use spool::SpoolDir;
pub use verify::{VerifyRequest, verify};
