//! The catalog: tenants, operations, rollouts and backups in the shared database, and the only SQL against it.
//!
//! Rows come out as structs of domain types; a value that the domain refuses is [`Error::Corrupt`]. Functions that end
//! in `_in_txn` run in the caller's transaction; in one transaction, operations come before tenants, so that
//! transactions cannot wait for each other in a circle. Every change of a tenant takes the next revision and announces
//! it on the channel [`CHANNEL`].

mod backups;
mod credentials;
mod errors;
mod exclusion;
mod fence;
mod logins;
mod meta;
mod operations;
mod pauses;
mod rollouts;
mod routes;
mod shares;
mod steps;
mod targets;
mod tenant_changes;
mod tenants;

pub use backups::{Backup, BackupFilter, NewBackup, RetiredDatabase};
pub use credentials::{Secret, TenantSecret};
pub use errors::Error;
pub use exclusion::Beside;
pub use operations::{
    ClaimedOperation, Created, NewOperation, OPERATIONS_CHANNEL, Operation, OperationEnd, OperationFilter, Release,
    Remains,
};
pub use pauses::PausedTarget;
pub use rollouts::{NewRollout, Rollout};
pub use routes::{Follower, RouteChange, RouteChanges};
pub use shares::Share;
pub use steps::OperationStep;
pub use targets::{NewTarget, RolloutTarget, TargetBegun, TargetOutcome};
pub use tenant_changes::TenantSchema;
pub use tenants::{NewLicense, NewTenant, Tenant, TenantFilter, TenantRef};

pub use crate::domain::page::{Page, Paged};
use crate::domain::tenant::DatabaseName;
use crate::postgres::embedded_migrations::migrate;
pub use crate::postgres::sessions::Txn;
use crate::postgres::sessions::{Session, Sessions};
use crate::postgres::statement::Run as _;
use crate::postgres::{Lane, Server};

/// The channel on which each new revision is announced, as a decimal number.
pub const CHANNEL: &str = "tenantd_catalog";

/// Sessions that the catalog holds at most.
const SESSIONS_MAX: usize = 8;

/// The schema of the shared database, oldest first.
const MIGRATIONS: &[(&str, &str)] = &[
    ("V1__tenants.sql", include_str!("../../shared-migrations/shared/V1__tenants.sql")),
    ("V2__operations.sql", include_str!("../../shared-migrations/shared/V2__operations.sql")),
    ("V3__rollouts.sql", include_str!("../../shared-migrations/shared/V3__rollouts.sql")),
    ("V4__backups.sql", include_str!("../../shared-migrations/shared/V4__backups.sql")),
    ("V5__reference.sql", include_str!("../../shared-migrations/shared/V5__reference.sql")),
    ("V6__route_removals.sql", include_str!("../../shared-migrations/shared/V6__route_removals.sql")),
    ("V7__tenant_reads.sql", include_str!("../../shared-migrations/shared/V7__tenant_reads.sql")),
    ("V8__budget_shares.sql", include_str!("../../shared-migrations/shared/V8__budget_shares.sql")),
    ("V9__schema_files.sql", include_str!("../../shared-migrations/shared/V9__schema_files.sql")),
    ("V10__pauses.sql", include_str!("../../shared-migrations/shared/V10__pauses.sql")),
];

/// A cheap handle on the shared database.
#[derive(Debug, Clone)]
pub struct Catalog {
    sessions: Sessions,
}

impl Catalog {
    /// Connects when it is needed, as the daemon's role.
    pub fn new(server: &Server, database: &DatabaseName) -> Result<Self, Error> {
        Ok(Self { sessions: Sessions::new(server, database, "catalog", SESSIONS_MAX)? })
    }

    /// For what has to be read and written before there is a share of the budget: one session, outside of it.
    pub fn for_shares(server: &Server, database: &DatabaseName) -> Result<Self, Error> {
        Ok(Self { sessions: Sessions::in_lane(Lane::Share, server, database, "shares", 1)? })
    }

    /// Brings the shared database to this binary's schema, and says how many files that took.
    pub async fn migrate(&self) -> Result<usize, Error> {
        let session = self.session().await?;
        Ok(migrate(session.client(), "the shared database", MIGRATIONS).await?)
    }

    /// A transaction for the functions that end in `_in_txn`; rolled back unless it is committed.
    pub async fn begin(&self) -> Result<Txn, Error> {
        Ok(self.sessions.begin().await?)
    }

    /// Closes the sessions; later calls fail.
    pub fn close(&self) {
        self.sessions.close();
    }

    async fn session(&self) -> Result<Session, Error> {
        Ok(self.sessions.session().await?)
    }
}
