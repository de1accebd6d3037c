//! What every row stands on: the private cluster, an S3 server (the daemon wants one), the daemon's configuration, and
//! a superuser's eyes on the server.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use secrecy::ExposeSecret as _;
use tenantd::config::{Credentials, Keys, RoleLogin, write_private};
use tenantd::domain::tenant::{Naming, RoleName};
use tenantd::embedded::{Cluster, ClusterRequest, S3Server};
use tenantd::postgres::bootstrap;
use tenantd::secrets::{keys_new, password_new};
use tenantd::shutdown::Tasks;
use tokio::net::TcpListener;
use tokio_postgres::NoTls;

use crate::fleet::Fleet;
use crate::process::{Process, command};

pub const PREFIX: &str = "bench";
/// The tenants' part of the budget, and PgBouncer's cap.
pub const BUDGET: u32 = 100;
const RESERVED: u32 = 20;
/// A tenant's pool, and that of the bare handler.
pub const POOL_CONNECTIONS_MAX: u32 = 10;
const S3_ACCESS_KEY: &str = "bench";
const BUCKET: &str = "bench";

/// The servers, for one run.
#[derive(Debug)]
pub struct Stage {
    pub dir: PathBuf,
    pub cluster: Cluster,
    pub credentials: Credentials,
    pub fleet: Fleet,
    tasks: Tasks,
    is_kept: bool,
}

/// The daemon, in a process of its own.
#[derive(Debug)]
pub struct Daemon {
    pub process: Process,
    pub address: SocketAddr,
    pub key: String,
}

impl Stage {
    pub async fn start(keep: Option<PathBuf>) -> Self {
        let is_kept = keep.is_some();
        let dir = keep.unwrap_or_else(|| {
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-router-{}", std::process::id()))
        });
        std::fs::create_dir_all(dir.join("migrations")).unwrap();
        let dir = dir.canonicalize().unwrap();
        let tasks = Tasks::new(tracing::Span::none());
        let cluster = Cluster::start(ClusterRequest::test(&dir.join("cluster")), &tasks).await.unwrap();
        let credentials = secrets(&dir);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let s3_secret = password_new();
        let s3 = S3Server::start(listener, &dir.join("objects"), S3_ACCESS_KEY, &s3_secret, &[BUCKET], &tasks).await;
        let text = configuration(&cluster, &s3.unwrap(), s3_secret.expose_secret());
        std::fs::write(dir.join("tenantd.toml"), text).unwrap();
        let superuser = connect(&cluster, cluster.superuser(), "postgres").await;
        bootstrap::bootstrap_roles(&superuser, &credentials).await.unwrap();
        let naming = Naming::new(PREFIX).unwrap();
        let (daemon, dump) = (&credentials.daemon.role, &credentials.dump.role);
        bootstrap::bootstrap_databases(&superuser, &naming, daemon, dump).await.unwrap();
        let fleet = Fleet::new(&dir, naming).await;
        Self { dir, cluster, credentials, fleet, tasks, is_kept }
    }

    /// A superuser's session.
    pub async fn judge(&self, database: &str) -> tokio_postgres::Client {
        connect(&self.cluster, self.cluster.superuser(), database).await
    }

    /// A session of the role that the daemon logs in as.
    pub async fn connect_daemon(&self, database: &str) -> tokio_postgres::Client {
        connect(&self.cluster, &self.credentials.daemon, database).await
    }

    /// A fresh daemon.
    pub fn daemon(&self) -> Daemon {
        let key_file = self.dir.join("admin.key");
        let mut process = Process::start(
            command(env!("CARGO_BIN_EXE_tenantd"))
                .current_dir(&self.dir)
                .env("NO_COLOR", "1")
                .args(["serve", "--config", "tenantd.toml", "--init-admin-key-file"])
                .arg(&key_file)
                .stdout(Stdio::null())
                .stderr(Stdio::piped()),
        );
        let mut lines = process.stderr();
        let mut before = String::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else { panic!("the daemon does not listen:\n{before}") };
            if let Some((_, address)) = line.split_once("serving address=") {
                break address.split_whitespace().next().unwrap_or_default().parse().unwrap();
            }
            before = before + &line + "\n";
        };
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok).filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")) {
                eprintln!("daemon: {line}");
            }
        });
        let key = std::fs::read_to_string(&key_file).unwrap().trim().to_owned();
        Daemon { process, address, key }
    }

    /// Stops everything; the files go too, unless they are kept.
    pub async fn stop(self) {
        self.fleet.close();
        drop(self.tasks.end(std::time::Duration::from_secs(5)).await);
        let data_dir = self.cluster.data_dir().parent().map(Path::to_owned);
        self.cluster.stop().await.unwrap();
        if !self.is_kept {
            for dir in data_dir.into_iter().chain([self.dir]) {
                drop(std::fs::remove_dir_all(dir));
            }
        }
    }
}

/// A session over TCP, as the daemon's are.
pub async fn connect(cluster: &Cluster, login: &RoleLogin, database: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::Config::new()
        .host(cluster.host())
        .port(cluster.port())
        .user(login.role.as_str())
        .password(login.password.expose_secret())
        .dbname(database)
        .application_name("bench")
        .connect(NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

/// Reads the daemon's passwords, or makes them, and its keys.
fn secrets(dir: &Path) -> Credentials {
    let (credentials_file, keys_file) = (dir.join("credentials.toml"), dir.join("keys.toml"));
    if credentials_file.exists() {
        return Credentials::read(&credentials_file).unwrap();
    }
    let login = |role: &str| RoleLogin { role: RoleName::new(role).unwrap(), password: password_new() };
    let credentials = Credentials { daemon: login("tenantd"), dump: login("tenantd_dump") };
    let new = keys_new();
    let keys = Keys {
        key_encryption_key: new.key_encryption_key,
        manifest_signing_key: new.manifest_signing_key,
        escrow_recipient: new.escrow_recipient,
    };
    write_private(&keys_file, &keys.to_toml()).unwrap();
    write_private(&credentials_file, &credentials.to_toml()).unwrap();
    credentials
}

/// As a user of `serve` would write it. No limit but the budget and the pool's size is in a row's way.
fn configuration(cluster: &Cluster, s3: &S3Server, s3_secret: &str) -> String {
    let mut text = format!(
        r#"prefix = {PREFIX:?}
listen = "127.0.0.1:0"
spool_dir = "spool"
tenant_migrations_dir = "migrations"
keys_file = "keys.toml"

[[servers]]
name = "main"
host = {host:?}
port = {port}
tls = "disable"
connections_max = {connections_max}
connections_reserved = {RESERVED}
credentials_file = "credentials.toml"

[store]
endpoint = {endpoint:?}
bucket = {BUCKET:?}
access_key_id = {S3_ACCESS_KEY:?}
secret_access_key = {s3_secret:?}
path_style = true

[callers]
calls_per_second_max = 1000000
"#,
        host = cluster.host(),
        port = cluster.port(),
        connections_max = BUDGET + RESERVED,
        endpoint = s3.endpoint,
    );
    let _infallible = write!(
        text,
        "
[tiers.standard]
direct_connections_max = 100
pool_connections_max = {POOL_CONNECTIONS_MAX}
calls_per_second_max = 1000000
users_max = 50
sites_max = 5
storage_bytes_max = 107374182400
"
    );
    text
}
