//! Brings one of the daemon's own databases to the schema that is built into this binary. The tenants' migrations are
//! the `migrator`'s, and follow other rules.
//!
//! Daemons that start at the same moment take turns by an advisory lock; each file and its history row are one
//! transaction.

use std::collections::BTreeSet;

use refinery_core::traits::r#async::{AsyncMigrate, AsyncQuery, AsyncTransaction};
use refinery_core::{Migration, Runner};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::Client;

use super::errors;

/// "tenantd" in ASCII: the key of the lock in each of the daemon's own databases.
const LOCK_KEY: i64 = 0x0074_656e_616e_7464;

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the embedded migration {name} cannot be used: {problem}")]
    Embedded { name: &'static str, problem: String },
    #[error("the migrations of {database} failed: {problem}")]
    Apply { database: &'static str, problem: String },
    #[error("the migrations of {database} failed: {cause}")]
    Statement { database: &'static str, cause: errors::Error },
}

/// Applies what is missing of `files` (name and text). A database that is newer than this binary is refused.
pub async fn migrate(client: &Client, database: &'static str, files: &[(&'static str, &str)]) -> Result<usize, Error> {
    let parsed = files.iter().map(|(name, sql)| {
        Migration::unapplied(name, sql).map_err(|error| Error::Embedded { name, problem: error.to_string() })
    });
    let migrations: Vec<_> = parsed.collect::<Result<_, _>>()?;
    // Others, tenants among them, may hold the lock: whoever has nothing to do needs none.
    if is_up_to_date(client, &migrations).await {
        return Ok(0);
    }
    let statement = |cause| Error::Statement { database, cause: errors::Error::Sql(cause) };
    client.batch_execute(&format!("SELECT pg_advisory_lock({LOCK_KEY})")).await.map_err(statement)?;
    let outcome = Runner::new(&migrations).run_async(&mut Wrapper(client)).await;
    let unlocked = client.batch_execute(&format!("SELECT pg_advisory_unlock({LOCK_KEY})")).await;
    // A session that broke off is told by the first error, not by what the second statement met.
    let report = outcome.map_err(|error| Error::Apply { database, problem: chain(&error) })?;
    unlocked.map_err(statement)?;
    Ok(report.applied_migrations().len())
}

/// Whether the history is just these. When it cannot be read, or is another one, the runner says what is to be said.
async fn is_up_to_date(client: &Client, migrations: &[Migration]) -> bool {
    let applied =
        Wrapper(client).query("SELECT version, name, applied_on, checksum FROM refinery_schema_history").await;
    let known = |migration: &Migration| (migration.version(), migration.name().to_owned(), migration.checksum());
    let sorted = |of: &[Migration]| of.iter().map(known).collect::<BTreeSet<_>>();
    applied.is_ok_and(|applied| applied.len() == migrations.len() && sorted(&applied) == sorted(migrations))
}

/// The error with all of its causes: PostgreSQL's own message is at the end of the chain.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

/// refinery's traits on a client that it does not know.
struct Wrapper<'a>(&'a Client);

/// A row of the history that cannot be read is reported like a failed statement.
#[derive(Debug, thiserror::Error)]
enum WrapperError {
    #[error("{}", errors::describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("the history row of version {version} is damaged")]
    History { version: i64 },
}

impl AsyncTransaction for Wrapper<'_> {
    type Error = WrapperError;

    async fn execute<'a, T: Iterator<Item = &'a str> + Send + 'a>(
        &'a mut self,
        queries: T,
    ) -> Result<usize, WrapperError> {
        // One message is one transaction on the server, unless the text has a COMMIT in it, and ours has none.
        let queries: Vec<_> = queries.map(|query| query.trim().trim_end_matches(';')).collect();
        self.0.batch_execute(&queries.join("\n;\n")).await?;
        Ok(queries.len())
    }
}

impl AsyncQuery<Vec<Migration>> for Wrapper<'_> {
    async fn query<'a>(&'a mut self, query: &'a str) -> Result<Vec<Migration>, WrapperError> {
        let rows = self.0.query_typed(query, &[]).await?;
        rows.iter()
            .map(|row| {
                let version: i64 = row.try_get(0)?;
                let damaged = || WrapperError::History { version };
                let applied_on = OffsetDateTime::parse(row.try_get(2)?, &Rfc3339).map_err(|_| damaged())?;
                let checksum = row.try_get::<_, &str>(3)?.parse().map_err(|_| damaged())?;
                Ok(Migration::applied(version, row.try_get(1)?, applied_on, checksum))
            })
            .collect()
    }
}

impl AsyncMigrate for Wrapper<'_> {}
