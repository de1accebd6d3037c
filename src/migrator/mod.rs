//! Migrations: the gate that a directory must pass whole before any tenant is touched, and one tenant's migration by
//! refinery's engine over a driver of our own (2 + N round trips, one transaction per file).
//!
//! Knows no catalog and no other tenant: who is migrated, when, and how many may fail is decided above. A file is
//! applied whole together with its history row, or the tenant stays as it was.

mod directory;
mod driver;
mod error;
mod files_hash;
mod gate;
mod history;
mod rules;
mod statements;
mod tenant;

pub use directory::Directory;
pub use error::{Cause, TenantError};
pub use files_hash::FilesHashes;
pub use gate::{GateError, Problem};
pub use history::{Applied, History, history_look, history_read};
pub use tenant::{TenantReport, migrate_tenant};
