//! People and keys: users, their roles in tenants, and API keys in the auth database, and the only SQL against it.
//!
//! Knows hashes of keys and never a key. Whether a key may still be used is `access`'s question: rows come out as they
//! are.

mod api_keys;
mod audit;
mod changes;
mod errors;
mod standing;
mod usage;
mod users;

pub use api_keys::{ApiKey, NewApiKey};
pub use audit::{AuditEvent, Outcome};
pub use changes::{Change, Changes};
pub use errors::Error;
pub use standing::{Grant, SessionStanding, Standing, Subject, UserStanding};
pub use usage::KeyUsage;
pub use users::NewOwner;

use crate::domain::tenant::DatabaseName;
use crate::postgres::Server;
use crate::postgres::embedded_migrations::migrate;
use crate::postgres::sessions::{Session, Sessions, Txn};
use crate::postgres::statement::Run as _;

/// Sessions that the accounts hold at most.
const SESSIONS_MAX: usize = 4;

/// The schema of the auth database, oldest first.
const MIGRATIONS: &[(&str, &str)] = &[
    ("V1__people.sql", include_str!("../../shared-migrations/auth/V1__people.sql")),
    ("V2__sign_in.sql", include_str!("../../shared-migrations/auth/V2__sign_in.sql")),
    ("V3__keys.sql", include_str!("../../shared-migrations/auth/V3__keys.sql")),
    ("V4__features.sql", include_str!("../../shared-migrations/auth/V4__features.sql")),
    ("V5__audit.sql", include_str!("../../shared-migrations/auth/V5__audit.sql")),
    ("V6__access.sql", include_str!("../../shared-migrations/auth/V6__access.sql")),
];

/// A cheap handle on the auth database.
#[derive(Debug, Clone)]
pub struct Accounts {
    sessions: Sessions,
    server: Server,
    database: DatabaseName,
}

impl Accounts {
    /// Connects when it is needed, as the daemon's role.
    pub fn new(server: &Server, database: &DatabaseName) -> Result<Self, Error> {
        let sessions = Sessions::new(server, database, "accounts", SESSIONS_MAX)?;
        Ok(Self { sessions, server: server.clone(), database: database.clone() })
    }

    /// Brings the auth database to this binary's schema, and says how many files that took.
    pub async fn migrate(&self) -> Result<usize, Error> {
        let session = self.session().await?;
        Ok(migrate(session.client(), "the auth database", MIGRATIONS).await?)
    }

    /// Closes the sessions; later calls fail.
    pub fn close(&self) {
        self.sessions.close();
    }

    async fn session(&self) -> Result<Session, Error> {
        Ok(self.sessions.session().await?)
    }

    async fn begin(&self) -> Result<Txn, Error> {
        Ok(self.sessions.begin().await?)
    }
}
