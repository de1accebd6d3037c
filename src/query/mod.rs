//! SQL for gRPC clients over the router's pools: one statement with a bounded result, one whose rows stream, a
//! transaction, and many independent statements over one stream. Parameters and values are typed and lose nothing.
//!
//! Knows nothing of gRPC calls and of permissions. Always holds: a statement runs in a transaction of its own, or in the
//! caller's, that is committed before it is said to be, or rolled back; statements that PostgreSQL does not run in a
//! transaction (`VACUUM`, `CREATE DATABASE`, `CREATE INDEX CONCURRENTLY`) are refused with SQLSTATE 25001 and belong
//! into a migration or a direct client. A call that is dropped leaves no statement running.

mod calls;
mod convoy;
mod decode;
mod error;
mod execute;
mod harmless;
mod lexer;
mod parameter;
mod pipeline;
mod rows;
mod session;
mod statement;
mod stream;
mod targets;
mod transact;

use std::sync::Arc;

use tokio::time::Instant;

pub use calls::{HARMLESS_FUNCTIONS, HARMLESS_VOLATILE};
pub use error::{Error, SqlError};
pub use execute::{BYTES_MAX, Execute, ROWS_DEFAULT, ROWS_MAX};
pub use pipeline::Caller;
pub use rows::Output;
pub use session::Session;
pub use stream::StreamQuery;
pub use targets::Whole;
pub use transact::Begin;

use crate::catalog::Catalog;
use crate::config::Live;
use crate::domain::route::Route;
use crate::domain::tenant::{Naming, TenantId};
use crate::postgres::Server;
use crate::router::{Fresh, Holder, Router};
use crate::shutdown::Tasks;
use convoy::Convoys;
use harmless::Statements;
use statement::only_reads;
use targets::Targets;

/// A cheap handle.
#[derive(Debug, Clone)]
pub struct Queries(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    router: Router,
    targets: Targets,
    statements: Statements,
    convoys: Convoys,
    live: Live,
    tasks: Tasks,
}

impl Queries {
    /// `home` is the server of the shared and the auth database.
    pub fn new(live: Live, naming: Naming, home: Server, router: Router, catalog: Catalog, tasks: &Tasks) -> Self {
        let targets = Targets::new(live.clone(), naming, home, catalog, router.clone());
        Self(Arc::new(Inner {
            router,
            targets,
            statements: Statements::default(),
            convoys: Convoys::default(),
            live,
            tasks: tasks.clone(),
        }))
    }

    /// A session in the tenant's own database, for somebody whom the log names when it is held for long.
    pub async fn session(&self, holder: &Holder, tenant: TenantId, deadline: Instant) -> Result<Session, Error> {
        Ok(Session::Tenant(self.0.router.acquire_as(holder, tenant, deadline).await?))
    }

    /// As [`Queries::session_at`], for a transaction or a stream, which lasts as long as its caller likes.
    pub async fn session_long_at(&self, holder: &Holder, located: &Fresh, deadline: Instant) -> Result<Session, Error> {
        Ok(Session::Tenant(self.0.router.acquire_long_at(holder, located, deadline).await?))
    }

    /// As [`Queries::session`], at the end of a route that was located for this call.
    pub async fn session_at(&self, holder: &Holder, located: &Fresh, deadline: Instant) -> Result<Session, Error> {
        Ok(Session::Tenant(self.0.router.acquire_at(holder, located, deadline).await?))
    }

    /// A session in the shared database that sees the tenant's rows, for this statement; none when it is for a
    /// transaction, whose statements are looked at as they come.
    pub async fn session_shared(&self, route: &Route, sql: Option<&str>, deadline: Instant) -> Result<Session, Error> {
        sql.map_or(Ok(()), only_reads)?;
        Ok(Session::Own(self.0.targets.tenant(route, deadline).await?))
    }

    /// As [`Queries::session_shared`], in one of the daemon's own databases as a whole; for administrators.
    pub async fn session_whole(&self, which: Whole, sql: Option<&str>, deadline: Instant) -> Result<Session, Error> {
        sql.map_or(Ok(()), only_reads)?;
        Ok(Session::Own(self.0.targets.whole(which, deadline).await?))
    }
}
