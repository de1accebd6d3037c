//! One tenant, brought to the newest version of a directory. What is decided here is only what an outcome means: the
//! order and the comparison are refinery's, the session is the driver's.

use refinery_core::error::Kind;
use refinery_core::{Migration, Runner};
use tokio_postgres::Client;

use super::driver::Driver;
use super::error::{Cause, TenantError};
use super::history;
use crate::config::MigratorConfig;
use crate::domain::migration::{MigrationFile, Standing};
use crate::domain::tenant::TenantId;
use crate::postgres::{fingerprint, locks};

/// How a tenant's migration went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantReport {
    /// The newest version before; 0 for a database without migrations.
    pub from: i64,
    /// The newest version now.
    pub to: i64,
    /// How many files were applied.
    pub applied: usize,
    /// `Ahead` when the tenant has versions that the directory does not; nothing was done then.
    pub standing: Standing,
    /// Of the schema as it is now.
    pub fingerprint: String,
    /// Of the files that are applied now, as [`super::FilesHashes`] makes it.
    pub files_hash: String,
}

/// Applies what is pending of `files`, in order, each in a transaction of its own: 2 + N messages.
///
/// `client` is a direct session in the tenant's database, as its `__m` role. If the call is dropped half-way the
/// session must be closed, which also gives the tenant's lock back. A history that ends below `version_known` has lost
/// rows, and is refused.
pub async fn migrate_tenant(
    client: &mut Client,
    files: &[MigrationFile],
    settings: &MigratorConfig,
    tenant: TenantId,
    version_known: i64,
) -> Result<TenantReport, TenantError> {
    let migrations = migrations_of(files).map_err(TenantError::unknown)?;
    let mut runner = Runner::new(&migrations);
    runner.set_migration_table_name(history::TABLE);
    let mut driver = Driver::new(client, files, settings, locks::advisory_key("migration", tenant.0), version_known);

    let outcome = runner.run_async(&mut driver).await;
    let newest = files.last().map_or(0, |file| file.version);
    let (applied, standing) = match outcome {
        Ok(report) => (report.applied_migrations().len(), Standing::Current),
        Err(error) => match cause_of(&mut driver, &error, newest) {
            None => (0, Standing::Ahead),
            Some(cause) => {
                driver.abandon().await;
                return Err(stopped(&driver, cause));
            }
        },
    };
    let finished = driver.finish(fingerprint::SQL).await;
    let fingerprint = finished.map_err(|cause| stopped(&driver, cause))?.unwrap_or_default();
    let (from, to) = (driver.version_before(), driver.version().unwrap_or(0));
    Ok(TenantReport { from, to, applied, standing, fingerprint, files_hash: driver.files_hash() })
}

fn stopped(driver: &Driver<'_>, cause: Cause) -> TenantError {
    let version = driver.version();
    let from = version.map(|_| driver.version_before());
    TenantError { cause, version, from, files_hash: version.map(|_| driver.files_hash()) }
}

fn migrations_of(files: &[MigrationFile]) -> Result<Vec<Migration>, Cause> {
    let migration = |file: &MigrationFile| {
        let name = file.file_name();
        Migration::unapplied(&name, &file.sql)
            .map_err(|error| Cause::History { reason: format!("{name} is no migration: {error}") })
    };
    files.iter().map(migration).collect()
}

/// Why refinery stopped; `None` when the tenant is ahead of the directory, which is no failure.
fn cause_of(driver: &mut Driver, error: &refinery_core::Error, newest: i64) -> Option<Cause> {
    if let Some(cause) = driver.failure_take() {
        return Some(cause);
    }
    let file_name = |file: &Migration| format!("{file}.sql");
    Some(match error.kind() {
        Kind::DivergentVersion(applied, file) => Cause::Divergent {
            file: file_name(file),
            version: applied.version(),
            applied_name: applied.name().to_owned(),
        },
        Kind::MissingVersion(file) if file.sql().is_some() => {
            Cause::OutOfOrder { file: file_name(file), current: driver.version().unwrap_or(0) }
        }
        Kind::MissingVersion(applied) if applied.version() > newest => return None,
        Kind::MissingVersion(applied) => Cause::Missing { version: applied.version(), name: applied.name().to_owned() },
        other => Cause::History { reason: other.to_string() },
    })
}
