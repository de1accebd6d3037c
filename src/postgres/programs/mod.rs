//! PostgreSQL's own programs: where they are, and the only place that starts child processes.
//!
//! No password is ever an argument or an environment variable of a child.

mod archive;
mod child;
pub mod cluster;
mod os_user;
mod run;

use std::io;
use std::path::{Path, PathBuf};

pub use archive::{Pass, PgDump, PgRestore, ProgramSession};
pub use os_user::OsUser;
pub use run::Running;

/// The oldest PostgreSQL that the daemon works with (`SET ON PARAMETER` came with 15).
pub const MAJOR_MIN: u32 = 15;

/// Where packages put a major version's programs, before and after its number.
const PLACES: [(&str, &str, &str); 3] =
    [("/usr/lib/postgresql", "", "bin"), ("/usr", "pgsql-", "bin"), ("/opt/homebrew/opt", "postgresql@", "bin")];

/// From here on `pg_restore` begins with a setting that older servers refuse (`transaction_timeout`), and an older
/// `pg_restore` does not read what `pg_dump` writes. So what is dumped by such a one never gets back to an older server.
const MAJOR_OF_TIMEOUT: u32 = 17;

/// What somebody wants to do with the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Run a cluster.
    Cluster,
    /// Dump and restore.
    Archive,
}

/// One major version's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    pub major: u32,
    bin: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "PostgreSQL's {programs} of {wanted} are not installed ({found}); install them, on Debian or Ubuntu with: apt-get install {package}"
    )]
    Missing { programs: String, wanted: String, found: String, package: String },
    #[error(
        "the archive was written by pg_dump {dump}, whose restores a server with PostgreSQL {server} refuses; restore it on a server with PostgreSQL {MAJOR_OF_TIMEOUT} or newer"
    )]
    ServerTooOld { dump: u32, server: u32 },
    #[error("{program} could not be started: {source}")]
    Start { program: String, source: io::Error },
    #[error(
        "this machine has no root certificates to check the server {server} with; install ca-certificates, or name a ca_file"
    )]
    NoRoots { server: String },
    #[error("{program} failed ({status}): {output}")]
    Failed { program: String, status: String, output: String },
    #[error("{program} did not end within {seconds} s and was stopped")]
    Timeout { program: String, seconds: u64 },
    #[error("{what}: {source}")]
    File { what: String, source: io::Error },
}

/// How `pg_dump` ends its last words when it got no lock on a table: with the statement that failed.
const LOCK_STATEMENT_END: &str = "IN ACCESS SHARE MODE";
/// What the programs say when their session was ended or not opened, and when the server refused a statement. All of
/// them speak English; what the server says may be in any language.
const SESSION_LOST: [&str; 3] = ["connection to server", "server closed the connection", "terminating connection"];
const STATEMENT_REFUSED: [&str; 3] = ["query failed", "could not execute query", "Error message from server"];

impl Error {
    /// Whether `pg_dump` waited for a table's lock in vain, or the table was gone by then. It had written nothing yet.
    pub fn is_lock_wait(&self) -> bool {
        matches!(self, Self::Failed { output, .. } if output.ends_with(LOCK_STATEMENT_END))
    }

    /// Whether no program was tried, because none fits.
    pub fn is_unfit(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::ServerTooOld { .. })
    }

    /// Whether the program had no session, or lost it.
    pub fn is_session_lost(&self) -> bool {
        self.says(&SESSION_LOST)
    }

    /// Whether the server refused a statement of the program's.
    pub fn is_statement_refused(&self) -> bool {
        self.says(&STATEMENT_REFUSED)
    }

    fn says(&self, words: &[&str]) -> bool {
        matches!(self, Self::Failed { output, .. } if words.iter().any(|word| output.contains(word)))
    }
}

impl Purpose {
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Cluster => &["initdb", "postgres"],
            Self::Archive => &["pg_dump", "pg_restore"],
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Cluster => "postgresql",
            Self::Archive => "postgresql-client",
        }
    }
}

impl Programs {
    /// The newest that is installed, at least [`MAJOR_MIN`].
    pub fn newest(purpose: Purpose) -> Result<Self, Error> {
        let found = installed(purpose);
        match found.last() {
            Some(newest) if newest.major >= MAJOR_MIN => Ok(newest.clone()),
            _ => Err(missing(purpose, &format!("version {MAJOR_MIN} or newer"), purpose.package(), &found)),
        }
    }

    /// Exactly this major version: a cluster's files are of one.
    pub fn of_major(major: u32, purpose: Purpose) -> Result<Self, Error> {
        let found = installed(purpose);
        let exact = found.iter().find(|programs| programs.major == major).cloned();
        let package = format!("{}-{major}", purpose.package());
        exact.ok_or_else(|| missing(purpose, &format!("version {major}"), &package, &found))
    }

    /// For dumps of a server with this `server_version_num`: its own major version, or else the next newer one that
    /// is installed and whose archives the server takes back (`pg_dump` refuses servers newer than itself).
    pub fn for_server(version_num: u32) -> Result<Self, Error> {
        let major = version_num / 10_000;
        fitting(&installed(Purpose::Archive), major, major)
    }

    /// For reading an archive that this major version of `pg_dump` has written.
    pub fn for_archive(dump_major: u32) -> Result<Self, Error> {
        fitting(&installed(Purpose::Archive), dump_major, u32::MAX)
    }

    /// For restoring such an archive on a server with this `server_version_num`.
    pub fn for_restore(dump_major: u32, version_num: u32) -> Result<Self, Error> {
        let server = version_num / 10_000;
        if !takes(server, dump_major) {
            return Err(Error::ServerTooOld { dump: dump_major, server });
        }
        fitting(&installed(Purpose::Archive), dump_major, server)
    }

    /// Those of a place that packages do not use.
    pub fn in_directory(bin: &Path, major: u32) -> Self {
        Self { major, bin: bin.to_owned() }
    }

    /// The path of one of them.
    pub fn path(&self, program: &str) -> PathBuf {
        self.bin.join(program)
    }
}

/// Every version that has all the programs, the oldest first.
fn installed(purpose: Purpose) -> Vec<Programs> {
    let mut found: Vec<Programs> = PLACES
        .into_iter()
        .flat_map(|(parent, prefix, below)| versions(Path::new(parent), prefix, below))
        .filter(|version| purpose.programs().iter().all(|program| version.path(program).is_file()))
        .collect();
    found.sort_by_key(|version| version.major);
    found
}

/// Whether a server of this major version takes what `pg_restore` of that one sends.
fn takes(server: u32, program: u32) -> bool {
    server >= MAJOR_OF_TIMEOUT || program < MAJOR_OF_TIMEOUT
}

/// The oldest of them that is not older than `oldest`, and that the server takes.
fn fitting(found: &[Programs], oldest: u32, server: u32) -> Result<Programs, Error> {
    let fits = |programs: &&Programs| programs.major >= oldest && takes(server, programs.major);
    let wanted = if takes(server, MAJOR_OF_TIMEOUT) {
        format!("version {oldest} or newer")
    } else {
        format!(
            "version {oldest} or newer, but older than {MAJOR_OF_TIMEOUT}, from which PostgreSQL {server} takes nothing back,"
        )
    };
    let package = format!("{}-{oldest}", Purpose::Archive.package());
    found.iter().find(fits).cloned().ok_or_else(|| missing(Purpose::Archive, &wanted, &package, found))
}

fn versions(parent: &Path, prefix: &str, below: &str) -> Vec<Programs> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let version = |entry: std::fs::DirEntry| {
        let major = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
        Some(Programs { major, bin: entry.path().join(below) })
    };
    entries.filter_map(Result::ok).filter_map(version).collect()
}

fn missing(purpose: Purpose, wanted: &str, package: &str, found: &[Programs]) -> Error {
    let list: Vec<String> =
        found.iter().map(|version| format!("{} in {}", version.major, version.bin.display())).collect();
    let found = if list.is_empty() { "none are there".to_owned() } else { format!("there is {}", list.join(", ")) };
    Error::Missing {
        programs: purpose.programs().join(" and "),
        wanted: wanted.to_owned(),
        found,
        package: package.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_folders_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["pgsql-15", "pgsql-9.6", "pgsql-", "share", "pgsql-17"] {
            std::fs::create_dir_all(dir.path().join(name).join("bin")).unwrap();
        }
        let mut majors: Vec<u32> =
            versions(dir.path(), "pgsql-", "bin").into_iter().map(|version| version.major).collect();
        majors.sort_unstable();
        assert_eq!(majors, [15, 17]);
    }

    #[test]
    fn what_is_dumped_can_be_restored_to_where_it_comes_from() {
        let all = |majors: &[u32]| -> Vec<Programs> {
            majors.iter().map(|major| Programs::in_directory(Path::new("/bin"), *major)).collect()
        };
        let fits = |majors: &[u32], oldest, server| fitting(&all(majors), oldest, server).map(|found| found.major).ok();
        assert_eq!(fits(&[15, 16, 17, 18], 15, 15), Some(15));
        assert_eq!(fits(&[16, 18], 15, 15), Some(16));
        assert_eq!(fits(&[15, 18], 17, 17), Some(18));
        assert_eq!(fits(&[15, 18], 15, 18), Some(15), "an older archive on a newer server");
        assert_eq!(fits(&[15, 18], 18, u32::MAX), Some(18));
        // A server of 15 takes nothing back from pg_restore 18.
        assert_eq!(fits(&[17, 18], 15, 15), None);
        assert_eq!(fits(&[15, 18], 16, 16), None);
        assert!(matches!(Programs::for_restore(18, 160_014), Err(Error::ServerTooOld { dump: 18, server: 16 })));
        insta::assert_snapshot!(fitting(&all(&[18]), 15, 15).unwrap_err(), @"PostgreSQL's pg_dump and pg_restore of version 15 or newer, but older than 17, from which PostgreSQL 15 takes nothing back, are not installed (there is 18 in /bin); install them, on Debian or Ubuntu with: apt-get install postgresql-client-15");
        insta::assert_snapshot!(fitting(&all(&[17]), 18, 18).unwrap_err(), @"PostgreSQL's pg_dump and pg_restore of version 18 or newer are not installed (there is 17 in /bin); install them, on Debian or Ubuntu with: apt-get install postgresql-client-18");
        insta::assert_snapshot!(Error::ServerTooOld { dump: 18, server: 16 }, @"the archive was written by pg_dump 18, whose restores a server with PostgreSQL 16 refuses; restore it on a server with PostgreSQL 17 or newer");
    }

    #[test]
    fn what_is_missing_is_named_with_what_is_there_and_how_to_get_it() {
        let old = [Programs { major: 13, bin: PathBuf::from("/usr/lib/postgresql/13/bin") }];
        insta::assert_snapshot!(missing(Purpose::Cluster, "version 15 or newer", "postgresql", &old), @"PostgreSQL's initdb and postgres of version 15 or newer are not installed (there is 13 in /usr/lib/postgresql/13/bin); install them, on Debian or Ubuntu with: apt-get install postgresql");
        insta::assert_snapshot!(missing(Purpose::Archive, "version 16 or newer", "postgresql-client-16", &[]), @"PostgreSQL's pg_dump and pg_restore of version 16 or newer are not installed (none are there); install them, on Debian or Ubuntu with: apt-get install postgresql-client-16");
    }
}
