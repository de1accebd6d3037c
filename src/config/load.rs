//! From a TOML file and the environment (`TENANTD_…`, `__` between levels, as `TENANTD_STORE__BUCKET`) to [`Config`].
//! Paths in the file are relative to the file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format as _, Toml};
use secrecy::SecretString;
use serde::Deserialize;

use super::duration::duration;
use super::files::{Credentials, Keys};
use super::{
    BackupConfig, CallerLimits, ClientCa, Config, Limits, MigratorConfig, OperationsConfig, QueryConfig, RouterConfig,
    ServerConfig, ServerTls, SharesConfig, StoreConfig, TlsFiles,
};
use super::{access, mending, own_hosts, validate};
use crate::domain::tenant::Naming;
use crate::domain::tier::{self, Tier, Tiers};

/// What is wrong with a configuration: all of it.
#[derive(Debug, thiserror::Error)]
#[error("{} is not usable:{}", .path.display(), list(.problems))]
pub struct Error {
    pub path: PathBuf,
    /// Each names the setting, what is wrong with it, and what is allowed.
    pub problems: Vec<String>,
}

fn list(problems: &[String]) -> String {
    problems.iter().fold(String::new(), |text, problem| text + "\n  - " + problem)
}

/// Reads and checks the configuration.
///
/// # Errors
/// Every problem at once.
pub fn load(path: &Path) -> Result<Config, Error> {
    let fail = |problems| Error { path: path.to_owned(), problems };
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_other) => return Err(fail(vec!["it is no file".to_owned()])),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(fail(vec!["there is no such file".to_owned()]));
        }
        Err(error) => return Err(fail(vec![error.to_string()])),
    }
    let figment =
        Figment::from(Toml::file_exact(path)).merge(Env::prefixed("TENANTD_").ignore(&["client_config"]).split("__"));
    let value = figment.extract().map_err(|error| fail(error.into_iter().map(|e| e.to_string()).collect()))?;
    let base = path.parent().unwrap_or(Path::new("."));
    let mut misfits = Vec::new();
    let file: Option<File> = mending::read(value, &mut misfits);
    let mut problems: Vec<String> = Vec::new();
    let config = file.map(|file| file.into_config(base, &mut problems));
    if let Some(config) = &config {
        validate::check(config, &mut problems);
    }
    // What is said of a stand-in says nothing of the file.
    problems.retain(|problem| !misfits.iter().any(|misfit| problem.starts_with(&format!("{}:", misfit.path))));
    let misfits = misfits.iter().map(|misfit| format!("{}: {}", misfit.path, misfit.text));
    problems.splice(0..0, misfits);
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(fail(problems)),
    }
}

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the fields are the file's own names")]
struct File {
    prefix: String,
    instance: Option<String>,
    #[serde(default)]
    shares: SharesSection,
    #[serde(default = "listen_default")]
    listen: SocketAddr,
    own_hosts: Option<Vec<String>>,
    tls: Option<TlsSection>,
    #[serde(default)]
    access: access::Section,
    spool_dir: PathBuf,
    tenant_migrations_dir: PathBuf,
    keys_file: PathBuf,
    catalog_server: Option<String>,
    servers: Vec<ServerSection>,
    store: StoreSection,
    #[serde(default)]
    router: RouterSection,
    #[serde(default)]
    query: QuerySection,
    #[serde(default)]
    operations: OperationsSection,
    #[serde(default)]
    migrator: MigratorSection,
    #[serde(default)]
    backup: BackupSection,
    #[serde(default)]
    tiers: Tiers,
    #[serde(default)]
    callers: CallersSection,
    #[serde(default = "drain_timeout_default", deserialize_with = "duration")]
    drain_timeout: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSection {
    certificate_file: PathBuf,
    key_file: PathBuf,
    client_ca_file: Option<PathBuf>,
    #[serde(default)]
    client_certificate: ClientCertificate,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ClientCertificate {
    #[default]
    Optional,
    Required,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerSection {
    name: String,
    host: String,
    #[serde(default = "port_default")]
    port: u16,
    #[serde(default)]
    tls: ServerTls,
    ca_file: Option<PathBuf>,
    #[serde(default = "connections_max_default")]
    connections_max: u32,
    #[serde(default = "connections_reserved_default")]
    connections_reserved: u32,
    #[serde(default = "connects_parallel_max_default")]
    connects_parallel_max: u32,
    credentials_file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreSection {
    endpoint: Option<String>,
    #[serde(default = "region_default")]
    region: String,
    bucket: String,
    access_key_id: String,
    secret_access_key: SecretString,
    #[serde(default)]
    path_style: bool,
    ca_file: Option<PathBuf>,
    #[serde(default = "part_bytes_min_default")]
    part_bytes_min: u64,
    #[serde(default = "parts_max_default")]
    parts_max: u32,
    #[serde(default = "request_timeout_default", deserialize_with = "duration")]
    request_timeout: Duration,
}

macro_rules! section {
    ($name:ident { $($field:ident : $type:ty = $default:expr),* $(,)? } durations { $($duration:ident = $value:expr),* $(,)? }) => {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct $name {
            $($field: $type,)*
            $(#[serde(deserialize_with = "duration")] $duration: Duration,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* $($duration: $value,)* }
            }
        }
    };
}

section!(RouterSection {
    pools_max: usize = 10_000,
    connection_uses_max: u32 = 7_500,
} durations {
    acquire_timeout = Duration::from_secs(10),
    connect_timeout = Duration::from_secs(5),
    statement_timeout = Duration::from_secs(30),
    connection_idle_timeout = Duration::from_mins(1),
    pool_idle_timeout = Duration::from_mins(5),
    connection_lifetime_max = Duration::from_mins(30),
    pause_wait_max = Duration::from_secs(10),
    route_age_max = Duration::from_secs(1),
    slow_statement_threshold = Duration::from_secs(1),
    lease_warn_after = Duration::from_mins(1),
});

section!(QuerySection {
} durations {
    transaction_idle_max = Duration::from_secs(10),
    stream_idle_max = Duration::from_mins(1),
});

section!(CallersSection {
    calls_per_second_max: u32 = 20_000,
} durations {});

section!(SharesSection {
} durations {
    interval = Duration::from_secs(1),
    take_over_after = Duration::from_secs(15),
});

section!(OperationsSection {
    concurrency_max: usize = 8,
} durations {
    lease = Duration::from_secs(15),
    poll_interval = Duration::from_secs(1),
    repeat_max = Duration::from_mins(10),
});

section!(MigratorSection {
    concurrency_max: usize = 8,
} durations {
    lock_timeout = Duration::from_secs(3),
    statement_timeout = Duration::from_mins(10),
    advisory_lock_wait_max = Duration::from_secs(10),
});

section!(BackupSection {
    zstd_level: i32 = 3,
    concurrency_max: usize = 2,
    verify_concurrency_max: usize = 2,
} durations {
    stall_timeout = Duration::from_mins(1),
    pause_drain_max = Duration::from_secs(5),
    restore_timeout = Duration::from_hours(12),
    retired_keep = Duration::from_hours(7 * 24),
});

fn listen_default() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7432))
}
fn port_default() -> u16 {
    5432
}
fn connections_max_default() -> u32 {
    80
}
fn connections_reserved_default() -> u32 {
    20
}
fn connects_parallel_max_default() -> u32 {
    4
}
fn region_default() -> String {
    "us-east-1".to_owned()
}
fn part_bytes_min_default() -> u64 {
    8 << 20
}
fn parts_max_default() -> u32 {
    10_000
}
fn request_timeout_default() -> Duration {
    Duration::from_mins(1)
}
fn drain_timeout_default() -> Duration {
    Duration::from_secs(30)
}

impl File {
    /// Whatever cannot be read is noted, and a stand-in takes its place, so that the rest can be checked too.
    fn into_config(self, base: &Path, problems: &mut Vec<String>) -> Config {
        let naming = Naming::new(&self.prefix).unwrap_or_else(|error| {
            problems.push(format!("prefix: {error}"));
            Naming::stand_in()
        });
        let instance = self
            .instance
            .as_deref()
            .and_then(|name| name.parse().map_err(|error| problems.push(format!("instance: {error}"))).ok());
        let keys = Keys::read(&base.join(&self.keys_file)).unwrap_or_else(|error| {
            problems.push(format!("keys_file: {error}"));
            Keys::stand_in()
        });
        let servers: Vec<ServerConfig> =
            self.servers.into_iter().map(|server| server.into_config(base, problems)).collect();
        let first = servers.first().map_or_else(String::new, |server| server.name.clone());
        if servers.is_empty() {
            problems.push("servers: at least one is needed".to_owned());
        }
        let tiers: Vec<(String, Tier)> = tier::defaults().into_iter().chain(self.tiers).collect();
        let tls = self.tls.map(|tls| tls.into_files(base));
        let own_hosts = own_hosts::read(self.own_hosts.as_deref(), tls.as_ref(), problems);
        Config {
            naming,
            instance,
            shares: SharesConfig { interval: self.shares.interval, take_over_after: self.shares.take_over_after },
            listen: self.listen,
            tls,
            access: self.access.into_config(base, problems),
            spool_dir: base.join(self.spool_dir),
            tenant_migrations_dir: base.join(self.tenant_migrations_dir),
            keys,
            catalog_server: self.catalog_server.unwrap_or(first),
            servers,
            store: self.store.into_config(base),
            operations: OperationsConfig {
                lease: self.operations.lease,
                concurrency_max: self.operations.concurrency_max,
                poll_interval: self.operations.poll_interval,
                repeat_max: self.operations.repeat_max,
            },
            migrator: MigratorConfig {
                concurrency_max: self.migrator.concurrency_max,
                lock_timeout: self.migrator.lock_timeout,
                statement_timeout: self.migrator.statement_timeout,
                advisory_lock_wait_max: self.migrator.advisory_lock_wait_max,
            },
            backup: BackupConfig {
                zstd_level: self.backup.zstd_level,
                concurrency_max: self.backup.concurrency_max,
                verify_concurrency_max: self.backup.verify_concurrency_max,
                stall_timeout: self.backup.stall_timeout,
                pause_drain_max: self.backup.pause_drain_max,
                restore_timeout: self.backup.restore_timeout,
                retired_keep: self.backup.retired_keep,
            },
            limits: Limits {
                router: self.router.into_config(),
                query: QueryConfig {
                    transaction_idle_max: self.query.transaction_idle_max,
                    stream_idle_max: self.query.stream_idle_max,
                },
                tiers: tiers.into_iter().collect(),
                callers: CallerLimits { calls_per_second_max: self.callers.calls_per_second_max },
                own_hosts,
            },
            drain_timeout: self.drain_timeout,
        }
    }
}

impl TlsSection {
    fn into_files(self, base: &Path) -> TlsFiles {
        TlsFiles {
            certificate_file: base.join(self.certificate_file),
            key_file: base.join(self.key_file),
            client_ca: self.client_ca_file.map(|file| ClientCa {
                file: base.join(file),
                is_required: self.client_certificate == ClientCertificate::Required,
            }),
        }
    }
}

impl ServerSection {
    fn into_config(self, base: &Path, problems: &mut Vec<String>) -> ServerConfig {
        let credentials = Credentials::read(&base.join(&self.credentials_file)).unwrap_or_else(|error| {
            // A stand-in is a file that is known to be missing.
            if self.credentials_file.as_os_str() != mending::STAND_IN {
                problems.push(format!("servers.{}.credentials_file: {error}", self.name));
            }
            Credentials::stand_in()
        });
        ServerConfig {
            name: self.name,
            host: self.host,
            port: self.port,
            tls: self.tls,
            ca_file: self.ca_file.map(|file| base.join(file)),
            connections_max: self.connections_max,
            connections_reserved: self.connections_reserved,
            connects_parallel_max: self.connects_parallel_max,
            credentials,
        }
    }
}

impl StoreSection {
    fn into_config(self, base: &Path) -> StoreConfig {
        StoreConfig {
            endpoint: self.endpoint,
            region: self.region,
            bucket: self.bucket,
            access_key_id: self.access_key_id,
            secret_access_key: self.secret_access_key,
            path_style: self.path_style,
            ca_file: self.ca_file.map(|file| base.join(file)),
            part_bytes_min: self.part_bytes_min,
            parts_max: self.parts_max,
            request_timeout: self.request_timeout,
        }
    }
}

impl RouterSection {
    fn into_config(self) -> RouterConfig {
        RouterConfig {
            acquire_timeout: self.acquire_timeout,
            connect_timeout: self.connect_timeout,
            statement_timeout: self.statement_timeout,
            connection_idle_timeout: self.connection_idle_timeout,
            pool_idle_timeout: self.pool_idle_timeout,
            connection_lifetime_max: self.connection_lifetime_max,
            connection_uses_max: self.connection_uses_max,
            pools_max: self.pools_max,
            pause_wait_max: self.pause_wait_max,
            route_age_max: self.route_age_max,
            slow_statement_threshold: self.slow_statement_threshold,
            lease_warn_after: self.lease_warn_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routers_defaults_are_the_designs_and_the_readme_shows_them() {
        let expected = RouterConfig {
            acquire_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            connection_idle_timeout: Duration::from_mins(1),
            pool_idle_timeout: Duration::from_mins(5),
            connection_lifetime_max: Duration::from_mins(30),
            connection_uses_max: 7_500,
            pools_max: 10_000,
            pause_wait_max: Duration::from_secs(10),
            route_age_max: Duration::from_secs(1),
            slow_statement_threshold: Duration::from_secs(1),
            lease_warn_after: Duration::from_mins(1),
        };
        let read =
            |section: &str| Figment::from(Toml::string(section)).extract::<RouterSection>().unwrap().into_config();
        assert_eq!(read(""), expected);

        let readme = include_str!("../../README.md");
        let row = readme.lines().find(|line| line.starts_with("| `[router]` |")).unwrap();
        let shown: Vec<&str> = row.split('`').skip(3).step_by(2).collect();
        assert_eq!(read(&shown.join("\n")), expected);
        // None of them is left out there.
        let fields = format!("{expected:?}").matches(": ").count();
        assert_eq!(shown.len(), fields, "{shown:?}");
    }
}
