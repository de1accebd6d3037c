//! The daemon's configuration: an immutable value, read once from a file and the environment, checked as a whole
//! (every problem is named at once), and passed down. Nobody else reads the environment.

mod access;
mod changes;
pub mod client;
mod duration;
mod files;
mod live;
mod load;
mod mending;
mod own_hosts;
mod tls;
mod validate;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

pub use access::{AccessConfig, CertificateConfig, IssuerConfig, KeysFrom, SignatureAlgorithm, SubjectKind};
pub use files::{Credentials, Keys, RoleLogin, check_private, secret_exposed, write_private};
pub use live::Live;
pub use load::{Error, load};
pub use tls::{ClientCa, TlsFiles, roots};

use crate::domain::host::OwnHosts;
use crate::domain::share::InstanceName;
use crate::domain::tenant::Naming;
use crate::domain::tier::Tiers;

/// Everything that a daemon is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Begins every database's and role's name.
    pub naming: Naming,
    /// What this daemon is called among several that share the servers' budgets. Without a name it is the only one.
    pub instance: Option<InstanceName>,
    pub shares: SharesConfig,
    pub listen: SocketAddr,
    /// Required off the loopback addresses.
    pub tls: Option<TlsFiles>,
    pub access: AccessConfig,
    /// Where archives are spooled during a restore; made with mode 0700.
    pub spool_dir: PathBuf,
    /// The migrations of the tenants' databases.
    pub tenant_migrations_dir: PathBuf,
    pub keys: Keys,
    /// At least one; names are unique. New tenants go to the first.
    pub servers: Vec<ServerConfig>,
    /// The server that has the shared and the auth database.
    pub catalog_server: String,
    pub store: StoreConfig,
    pub operations: OperationsConfig,
    pub migrator: MigratorConfig,
    pub backup: BackupConfig,
    /// What may change while the daemon runs; read through [`Live`].
    pub limits: Limits,
    /// How long a drain may take before running calls are cut off.
    pub drain_timeout: Duration,
}

impl Config {
    pub fn server(&self, name: &str) -> Option<&ServerConfig> {
        self.servers.iter().find(|server| server.name == name)
    }
}

/// One PostgreSQL server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    pub name: String,
    pub host: String,
    pub port: u16,
    pub tls: ServerTls,
    /// Roots to trust instead of the system's, in PEM.
    pub ca_file: Option<PathBuf>,
    /// The most connections that the daemon may hold on this server, all purposes together.
    pub connections_max: u32,
    /// Of these, kept for the catalog, administration, migrations and backups.
    pub connections_reserved: u32,
    /// How many connections may be opened at the same moment.
    pub connects_parallel_max: u32,
    pub credentials: Credentials,
}

/// TLS towards a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerTls {
    /// Only for loopback and Unix networks that nobody else is on.
    Disable,
    /// Encrypted, the certificate and the host name checked.
    #[default]
    VerifyFull,
}

/// The bucket.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `None`: the provider's own.
    pub endpoint: Option<String>,
    pub region: String,
    pub bucket: String,
    pub access_key_id: String,
    pub secret_access_key: SecretString,
    /// `https://host/bucket/key` instead of `https://bucket.host/key`.
    pub path_style: bool,
    /// The roots that an `https` endpoint's certificate is checked with; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// The first parts' size; later ones grow, so that a dump of any size fits into `parts_max`.
    pub part_bytes_min: u64,
    pub parts_max: u32,
    pub request_timeout: Duration,
}

/// The part of the configuration that counts anew as soon as it is read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub router: RouterConfig,
    pub query: QueryConfig,
    pub tiers: Tiers,
    pub callers: CallerLimits,
    /// What the daemon is called, by its setting and its certificate; no tenant has one of these names.
    pub own_hosts: OwnHosts,
}

/// How daemons share the servers' budgets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharesConfig {
    /// How often a daemon looks at what the others have.
    pub interval: Duration,
    /// A daemon of which a server has seen nothing for so long is gone: its sessions there are ended, and its share is
    /// the others'.
    pub take_over_after: Duration,
}

/// What one caller may do, whoever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerLimits {
    /// Calls per second of one principal, over all tenants.
    pub calls_per_second_max: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// Total time to get a connection: queue, connect, check.
    pub acquire_timeout: Duration,
    pub connect_timeout: Duration,
    pub statement_timeout: Duration,
    pub connection_idle_timeout: Duration,
    pub pool_idle_timeout: Duration,
    /// A connection that is so old is not used again, give or take a fifth.
    pub connection_lifetime_max: Duration,
    /// Nor is one that was given out so often.
    pub connection_uses_max: u32,
    pub pools_max: usize,
    /// How long a caller waits at a paused gate.
    pub pause_wait_max: Duration,
    /// How old the catalog's answers may be while it announces no changes.
    pub route_age_max: Duration,
    pub slow_statement_threshold: Duration,
    /// A lease that is held for so long is logged with its holder.
    pub lease_warn_after: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryConfig {
    /// A caller who says nothing for so long loses its transaction.
    pub transaction_idle_max: Duration,
    /// A caller who takes no rows for so long loses its stream.
    pub stream_idle_max: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationsConfig {
    /// A daemon that does not renew its claim for so long loses it.
    pub lease: Duration,
    pub concurrency_max: usize,
    /// How often it looks for work that nobody announced.
    pub poll_interval: Duration,
    /// For how long undoing, and what waits rather than be undone, is tried again while a server or a store is away.
    pub repeat_max: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigratorConfig {
    /// Tenants migrated at the same moment.
    pub concurrency_max: usize,
    pub lock_timeout: Duration,
    pub statement_timeout: Duration,
    /// How long to poll for a tenant's advisory lock.
    pub advisory_lock_wait_max: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupConfig {
    /// 1 to 19.
    pub zstd_level: i32,
    /// Backups made at the same moment; further ones stay PENDING.
    pub concurrency_max: usize,
    /// Backups verified at the same moment, each with a whole archive in the spool.
    pub verify_concurrency_max: usize,
    /// A store that takes no byte for so long fails the backup, so that it does not hold the snapshot for ever.
    pub stall_timeout: Duration,
    /// How long a restore waits for running statements before it cancels them, and then ends their sessions.
    pub pause_drain_max: Duration,
    /// How long a restore may fill its new database, the download included: what is in a backup may wait for ever.
    pub restore_timeout: Duration,
    /// How long a database that a restore has replaced is kept before it is dropped.
    pub retired_keep: Duration,
}
