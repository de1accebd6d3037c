//! PgBouncer in transaction mode, as Debian has it, and pgbench.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tenantd::config::RoleLogin;
use tenantd::domain::tenant::RoleName;
use tenantd::secrets::password_new;
use tokio_postgres::{Client, NoTls};

use crate::fleet::Tenant;
use crate::process::{Process, command};
use crate::stage::{BUDGET, Stage};

/// Of pgbench's scale 1.
pub const ACCOUNTS: i64 = 100_000;
/// Its one role.
pub const ROLE: &str = "bench_pooler";

/// Makes pgbench's tables in the tenant's database, for everybody to read.
pub async fn accounts(stage: &Stage, tenant: &Tenant) {
    let judge = stage.judge(tenant.database.as_str()).await;
    let found = judge.query_opt("SELECT FROM pg_class WHERE relname = 'pgbench_accounts'", &[]).await.unwrap();
    if found.is_some() {
        return;
    }
    let superuser = stage.cluster.superuser();
    let made = pgbench(stage.cluster.port(), superuser, tenant.database.as_str(), &["-i", "-q", "-s", "1"]).await;
    assert!(made.0, "pgbench could not make its tables:\n{}", made.1);
    judge.batch_execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC; CHECKPOINT").await.unwrap();
}

/// Runs pgbench; whether it succeeded, and what it said.
pub async fn pgbench(port: u16, login: &RoleLogin, database: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new("pgbench");
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", login.role.as_str()]).args(arguments).arg(database);
    command.env("PGPASSWORD", login.password.expose_secret()).kill_on_drop(true);
    let output =
        command.output().await.unwrap_or_else(|error| panic!("pgbench (make bench-router installs it): {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// A running PgBouncer, with one role for all databases.
#[derive(Debug)]
pub struct Pooler {
    _process: Process,
    pub port: u16,
    pub login: RoleLogin,
    pub version: String,
}

impl Pooler {
    /// `max_user_connections` is the tenants' budget.
    pub async fn start(stage: &Stage, pool_size: u32) -> Self {
        let login = role(stage).await;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Where the cluster's user can read, who is somebody else when this runs as root.
        let dir = stage.cluster.data_dir().parent().unwrap().join("pgbouncer");
        std::fs::create_dir_all(&dir).unwrap();
        let users = dir.join("users");
        std::fs::write(&users, format!("{ROLE:?} {:?}\n", login.password.expose_secret())).unwrap();
        let ini = dir.join("pgbouncer.ini");
        std::fs::write(&ini, configuration(stage, port, &users.to_string_lossy(), pool_size)).unwrap();
        let program = if Path::new("/usr/sbin/pgbouncer").exists() { "/usr/sbin/pgbouncer" } else { "pgbouncer" };
        let mut start = command(program);
        start.arg("-q");
        if is_root() {
            start.args(["-u", &owner(stage.cluster.data_dir())]);
        }
        let process = Process::start(start.arg(&ini).stdout(Stdio::null()).stderr(Stdio::inherit()));
        let version = Command::new(program).arg("--version").output().unwrap();
        let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
        let pooler = Self { _process: process, port, login, version };
        pooler.listening().await;
        pooler
    }

    async fn listening(&self) {
        let address: SocketAddr = ([127, 0, 0, 1], self.port).into();
        for _ in 0..500 {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("PgBouncer does not listen");
    }

    /// A client's session.
    pub async fn connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user(ROLE)
            .password(self.login.password.expose_secret())
            .dbname(database)
            .connect(NoTls)
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

/// One role that may read every tenant's tables, because PgBouncer's cap over databases is a cap per user.
async fn role(stage: &Stage) -> RoleLogin {
    let login = RoleLogin { role: RoleName::new(ROLE).unwrap(), password: password_new() };
    let judge = stage.judge("postgres").await;
    let found = judge.query_opt("SELECT FROM pg_roles WHERE rolname = $1", &[&ROLE]).await.unwrap();
    let verb = if found.is_some() { "ALTER" } else { "CREATE" };
    // As cheap to connect as the daemon's own roles.
    let verifier = tenantd::secrets::scram_verifier_one_round(&login.password);
    judge.batch_execute(&format!("{verb} ROLE {ROLE} LOGIN PASSWORD '{verifier}'")).await.unwrap();
    // Tenants' databases let in who is in their owner role, or who is told.
    let databases = judge.query("SELECT datname FROM pg_database WHERE datname LIKE 'bench\\_t%'", &[]).await.unwrap();
    let grant = |row: &tokio_postgres::Row| format!("GRANT CONNECT ON DATABASE {} TO {ROLE}", row.get::<_, &str>(0));
    let grants: Vec<String> = databases.iter().map(grant).collect();
    judge.batch_execute(&grants.join("; ")).await.unwrap();
    login
}

/// Its own defaults where nothing speaks against them. Clients are trusted, which is the least work for it.
fn configuration(stage: &Stage, port: u16, users: &str, pool_size: u32) -> String {
    format!(
        "[databases]
* = host=127.0.0.1 port={server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = {pool_size}
max_user_connections = {BUDGET}
max_client_conn = 15000
ignore_startup_parameters = extra_float_digits,options
server_idle_timeout = 60
log_connections = 0
log_disconnections = 0
log_pooler_errors = 0
",
        server = stage.cluster.port(),
    )
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The name of the user whose file it is.
fn owner(file: &Path) -> String {
    let uid = std::fs::metadata(file).unwrap().uid().to_string();
    let name = Command::new("id").args(["-nu", &uid]).output().unwrap();
    String::from_utf8(name.stdout).unwrap().trim().to_owned()
}

/// Clients' sessions by database, kept open; never more of a database than callers ask of it at the same moment.
#[derive(Debug, Clone)]
pub struct Sessions {
    pooler: Arc<Pooler>,
    idle: Arc<Mutex<BTreeMap<String, Vec<Client>>>>,
}

impl Sessions {
    pub fn new(pooler: &Arc<Pooler>) -> Self {
        Self { pooler: Arc::clone(pooler), idle: Arc::default() }
    }

    pub async fn take(&self, database: &str) -> Result<Client, String> {
        let idle = self.idle.lock().unwrap().get_mut(database).and_then(Vec::pop);
        match idle {
            Some(client) => Ok(client),
            None => self.pooler.connect(database).await.map_err(|error| format!("{error:?}")),
        }
    }

    pub fn put(&self, database: &str, client: Client) {
        let mut idle = self.idle.lock().unwrap();
        match idle.get_mut(database) {
            Some(clients) => clients.push(client),
            None => drop(idle.insert(database.to_owned(), vec![client])),
        }
    }

    pub fn count(&self) -> usize {
        self.idle.lock().unwrap().values().map(Vec::len).sum()
    }
}
