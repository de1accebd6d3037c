//! `pg_dump` and `pg_restore`, with the arguments that the daemon uses and no others.
//!
//! Knows nothing of where an archive goes or comes from.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::child::mortal_command;
use super::run::{Running, password_input};
use super::{Error, Programs};
use crate::config::{RoleLogin, ServerConfig, ServerTls};
use crate::domain::tenant::DatabaseName;
use crate::postgres::connect::SessionOptions;
use crate::postgres::identity;
use crate::postgres::server::Server;
use crate::shutdown::Tasks;

/// The bundles of the system's root certificates: Debian's, Red Hat's, openSUSE's.
const ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];
/// A server that vanished without a word is noticed as by the daemon's own sessions; libpq's default takes hours.
const KEEPALIVE: &str = "keepalives_idle=30 keepalives_interval=10 keepalives_count=3";
/// A table of contents has about 100 bytes per entry.
const LIST_BYTES_MAX: usize = 64 << 20;
const VERSION_BYTES_MAX: usize = 1024;

/// The sessions that a program opens. They are within no budget: whoever starts a program holds a permit for each.
#[derive(Debug, Clone)]
pub struct ProgramSession<'a> {
    pub server: &'a Server,
    pub login: &'a RoleLogin,
    pub database: &'a DatabaseName,
    /// What the sessions are for; see [`Server::session_name`].
    pub purpose: &'a str,
    /// Where only the daemon may read; the password passes through it.
    pub private_dir: &'a Path,
}

/// `pg_dump --format=custom` without compression, to standard output.
#[derive(Debug, Clone)]
pub struct PgDump<'a> {
    pub session: ProgramSession<'a>,
    /// From `pg_export_snapshot()`, in a transaction that stays open until the dump has ended.
    pub snapshot: &'a str,
    /// How long to wait for the tables' locks.
    pub lock_wait_max: Duration,
}

/// `pg_restore`, stopping at the first error; everything belongs to whom the login acts as.
#[derive(Debug, Clone)]
pub struct PgRestore<'a> {
    pub session: ProgramSession<'a>,
    /// A whole, authenticated archive on disk.
    pub archive: &'a Path,
    /// What of the archive to restore, as [`Programs::archive_list`] gives it, less what is to be left out.
    pub list: Option<&'a Path>,
    pub pass: Pass,
}

/// A part of an archive, and how it is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// What is before the rows, and the rows, in so many sessions.
    Rows { jobs: u32 },
    /// What is after the rows, in so many sessions. With several, nothing but a pass of its own keeps all of it behind
    /// all rows: a domain's constraint that was never validated would refuse them.
    AfterRows { jobs: u32 },
    /// Materialized views, filled as when their owner refreshes them: by the rows that it may see.
    Views,
    /// All or nothing.
    Publications,
}

impl Programs {
    /// As `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    pub async fn dump_version(&self, server: &Server) -> Result<String, Error> {
        let mut command = mortal_command(&self.path("pg_dump"));
        command.arg("--version").stdin(Stdio::null());
        let text = Running::start("pg_dump", command, server.tasks())?.output(VERSION_BYTES_MAX).await?;
        Ok(text.trim().to_owned())
    }

    /// Starts a dump; its output is [`Running::stdout`]. The identity schema is left out: the daemon writes it anew in
    /// each database, so that no archive can forge one.
    pub fn pg_dump(&self, dump: &PgDump<'_>) -> Result<Running, Error> {
        let mut command = mortal_command(&self.path("pg_dump"));
        command
            .args(["--format=custom", "--compress=0", "--no-password"])
            .arg(format!("--exclude-schema={}", identity::SCHEMA))
            .arg(format!("--snapshot={}", dump.snapshot))
            .arg(format!("--lock-wait-timeout={}", dump.lock_wait_max.as_millis().max(1)));
        connect(&mut command, &dump.session)?;
        Running::start("pg_dump", command, dump.session.server.tasks())
    }

    /// Starts a restore.
    pub fn pg_restore(&self, restore: &PgRestore<'_>) -> Result<Running, Error> {
        let mut command = mortal_command(&self.path("pg_restore"));
        command
            .args(["--exit-on-error", "--no-owner", "--no-privileges", "--no-tablespaces", "--no-password"])
            .args(["--no-subscriptions", "--no-security-labels"]);
        match restore.pass {
            Pass::Rows { jobs } => {
                command.args(["--section=pre-data", "--section=data"]).arg(format!("--jobs={}", jobs.max(1)))
            }
            Pass::AfterRows { jobs } => command.arg("--section=post-data").arg(format!("--jobs={}", jobs.max(1))),
            Pass::Views => command.arg("--enable-row-security"),
            Pass::Publications => command.arg("--single-transaction"),
        };
        if let Some(list) = restore.list {
            command.arg("--use-list").arg(list);
        }
        connect(&mut command, &restore.session)?;
        command.arg("--").arg(restore.archive);
        Running::start("pg_restore", command, restore.session.server.tasks())
    }

    /// Reads every entry and every row of the archive that is written to [`Running::stdin`], and keeps none. Its output
    /// is empty.
    pub fn archive_decode(&self, tasks: &Tasks) -> Result<Running, Error> {
        let mut command = mortal_command(&self.path("pg_restore"));
        command.args(["--format=custom", "--file=/dev/null"]).stdin(Stdio::piped());
        Running::start("pg_restore", command, tasks)
    }

    /// The archive's table of contents. No check of the archive: `pg_restore` lists broken ones too.
    pub async fn archive_list(&self, server: &Server, archive: &Path) -> Result<String, Error> {
        let mut command = mortal_command(&self.path("pg_restore"));
        command.args(["--list", "--"]).arg(archive).stdin(Stdio::null());
        Running::start("pg_restore", command, server.tasks())?.output(LIST_BYTES_MAX).await
    }
}

/// Tells a program where to connect, and hands it the password.
fn connect(command: &mut Command, session: &ProgramSession<'_>) -> Result<(), Error> {
    let config = session.server.config();
    command
        .arg(format!("--host={}", config.host))
        .arg(format!("--port={}", config.port))
        .arg(format!("--username={}", session.login.role))
        .arg(format!("--dbname={}", connection_string(session.database)))
        .env("PGAPPNAME", session.server.session_name(session.purpose))
        .env("PGPASSFILE", "/dev/stdin")
        .env("PGCONNECT_TIMEOUT", "15")
        .env("PGOPTIONS", SessionOptions::default().text())
        .env("PGGSSENCMODE", "disable")
        .stdin(password_input(session.private_dir, &session.login.password)?);
    match config.tls {
        ServerTls::Disable => command.env("PGSSLMODE", "disable"),
        ServerTls::VerifyFull => command.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", roots(config)?),
    };
    Ok(())
}

/// A database's name by itself may be read as a whole connection string; this cannot.
fn connection_string(database: &DatabaseName) -> String {
    let name = database.as_str().replace('\\', "\\\\").replace('\'', "\\'");
    format!("dbname='{name}' {KEEPALIVE}")
}

fn roots(config: &ServerConfig) -> Result<PathBuf, Error> {
    let system = || ROOTS.iter().map(PathBuf::from).find(|path| path.is_file());
    config.ca_file.clone().or_else(system).ok_or_else(|| Error::NoRoots { server: config.name.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_read_as_a_connection_string() {
        let name = DatabaseName::new("a'b\\ host=elsewhere").unwrap();
        assert_eq!(connection_string(&name), format!(r"dbname='a\'b\\ host=elsewhere' {KEEPALIVE}"));
    }
}
