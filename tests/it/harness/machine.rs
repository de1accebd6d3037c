//! What all tests of one process share: a private PostgreSQL cluster and an S3 server, started by the first test that
//! asks, on a runtime that no test owns. The cluster's watcher stops it however this process ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use secrecy::{ExposeSecret as _, SecretString};
use tenantd::config::{Credentials, RoleLogin};
use tenantd::domain::tenant::{Naming, RoleName};
use tenantd::embedded::{Cluster, ClusterRequest, S3Server};
use tenantd::postgres::bootstrap;
use tenantd::secrets::password_new;
use tenantd::shutdown::Tasks;
use tokio::sync::Mutex;
use tokio_postgres::NoTls;

use super::fleet::Fleet;
use super::logs;

pub const ACCESS_KEY: &str = "tests";
/// Room for many fleets.
const CONNECTIONS_MAX: u32 = 400;
const MAINTENANCE_DATABASE: &str = "postgres";

/// The shared servers.
#[derive(Debug)]
pub struct Machine {
    pub host: String,
    pub port: u16,
    superuser: RoleLogin,
    pub s3: SocketAddr,
    pub s3_secret: SecretString,
    /// The daemon's roles; all fleets of a run have the same.
    pub credentials: Credentials,
    /// A folder for this run.
    pub dir: PathBuf,
    /// A test's own, which goes as a whole.
    is_own: bool,
    request: ClusterRequest,
    /// `None` while it is stopped.
    cluster: Mutex<Option<Cluster>>,
    /// Roles are the server's: whoever changes them at the same moment gets "tuple concurrently updated".
    bootstrapping: Mutex<()>,
}

/// The one machine, started now if it was not.
pub fn machine() -> &'static Machine {
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    MACHINE.get_or_init(|| Machine::start("all", CONNECTIONS_MAX, false))
}

impl Machine {
    /// A machine of a test's own, with room for so many sessions. It runs until the process ends.
    pub fn with_room_for(sessions: u32) -> &'static Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("small{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        Box::leak(Box::new(Self::start(&name, sessions, true)))
    }

    fn start(name: &str, connections_max: u32, is_own: bool) -> Self {
        let name = name.to_owned();
        let (started, machine) = mpsc::channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let tasks = Tasks::new(logs::root_span("machine"));
                started.send(Self::servers(&name, connections_max, is_own, &tasks).await).unwrap();
                std::future::pending::<()>().await;
            });
        };
        std::thread::Builder::new().name("machine".to_owned()).spawn(run).unwrap();
        machine.recv().expect("the cluster and the S3 server start")
    }

    async fn servers(name: &str, connections_max: u32, is_own: bool, tasks: &Tasks) -> Self {
        let dir = folder().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let request = ClusterRequest { max_connections: connections_max, ..ClusterRequest::test(&dir.join("cluster")) };
        let cluster = Cluster::start(request.clone(), tasks).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (s3, s3_secret) = (listener.local_addr().unwrap(), password_new());
        S3Server::start(listener, &dir.join("objects"), ACCESS_KEY, &s3_secret, &[], tasks).await.unwrap();
        let login = |role: &str| RoleLogin { role: RoleName::new(role).unwrap(), password: password_new() };
        let machine = Self {
            host: cluster.host().to_owned(),
            port: cluster.port(),
            superuser: cluster.superuser().clone(),
            s3,
            s3_secret,
            credentials: Credentials { daemon: login("tenantd"), dump: login("tenantd_dump") },
            dir,
            is_own,
            request,
            cluster: Mutex::new(Some(cluster)),
            bootstrapping: Mutex::default(),
        };
        let judge = machine.judge(MAINTENANCE_DATABASE).await;
        bootstrap::bootstrap_roles(&judge, &machine.credentials).await.unwrap();
        machine
    }

    /// Stops PostgreSQL as an operator does: it ends all sessions, and takes no more. Only a test's own.
    pub async fn server_stop(&self) {
        assert!(self.is_own, "the others' tests go on");
        self.cluster.lock().await.take().expect("it runs").stop().await.unwrap();
    }

    /// Starts it again, where it was.
    pub async fn server_start(&self) {
        let tasks = Tasks::new(logs::root_span("machine"));
        // A process that is being started has what this one has open, until its own program runs.
        super::until("the server's port is free", || async {
            std::net::TcpListener::bind((self.host.as_str(), self.port)).ok()
        })
        .await;
        let cluster = Cluster::start(self.request.clone(), &tasks).await.unwrap();
        assert_eq!(cluster.port(), self.port, "its clients look for it where it was");
        *self.cluster.lock().await = Some(cluster);
    }

    /// Takes the place of the server that was stopped, and hangs: who connects is neither let in nor refused, until the
    /// answer is dropped.
    pub async fn hang(&self) -> tokio::net::TcpListener {
        assert!(self.cluster.lock().await.is_none(), "its place is taken");
        tokio::net::TcpListener::bind((self.host.as_str(), self.port)).await.unwrap()
    }

    pub fn objects_dir(&self) -> PathBuf {
        self.dir.join("objects")
    }

    /// A second S3 server, without objects, which knows another secret.
    pub async fn s3_with_another_secret(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new(logs::root_span("machine"));
        let dir = self.dir.join(format!("objects-{}", address.port()));
        S3Server::start(listener, &dir, ACCESS_KEY, &password_new(), &[], &tasks).await.unwrap();
        address
    }

    /// A superuser's session.
    pub async fn judge(&self, database: &str) -> tokio_postgres::Client {
        self.connect(&self.superuser, database).await.unwrap()
    }

    /// As [`Machine::judge`], where the server may be away.
    pub async fn try_judge(&self, database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        self.connect(&self.superuser, database).await
    }

    pub fn superuser(&self) -> &RoleLogin {
        &self.superuser
    }

    /// A session as this role.
    pub async fn connect(
        &self,
        login: &RoleLogin,
        database: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host(&self.host)
            .port(self.port)
            .user(login.role.as_str())
            .password(login.password.expose_secret())
            .dbname(database)
            .application_name("judge")
            .connect(NoTls)
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Sessions of a tenant's kind (no superuser's) until the server has no room for another.
    pub async fn crowd(&self) -> Vec<tokio_postgres::Client> {
        let mut crowd = Vec::new();
        loop {
            let login = &self.credentials.daemon;
            match self.connect(login, MAINTENANCE_DATABASE).await {
                Ok(client) => crowd.push(client),
                Err(full) => {
                    assert_eq!(full.code().map(tokio_postgres::error::SqlState::code), Some("53300"), "{full}");
                    return crowd;
                }
            }
        }
    }

    /// The shared and the auth database of a new fleet.
    pub async fn databases_create(&self, naming: &Naming) {
        let _alone = self.bootstrapping.lock().await;
        let judge = self.judge(MAINTENANCE_DATABASE).await;
        let (daemon, dump) = (&self.credentials.daemon.role, &self.credentials.dump.role);
        bootstrap::bootstrap_databases(&judge, naming, daemon, dump).await.unwrap();
        for database in [naming.shared_database(), naming.auth_database()] {
            let inside = self.judge(database.as_str()).await;
            bootstrap::bootstrap_functions(&inside, naming, daemon, dump).await.unwrap();
        }
    }

    /// Everything that a fleet has on the server, to keep the run's disk small.
    pub async fn databases_drop(&self, fleet: &Fleet) {
        if self.is_own {
            return;
        }
        let (databases, roles) = fleet.inventory().await.databases_and_roles();
        let judge = self.judge(MAINTENANCE_DATABASE).await;
        for name in databases {
            judge.batch_execute(&format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)")).await.unwrap();
        }
        for name in roles {
            judge.batch_execute(&format!("DROP ROLE IF EXISTS \"{name}\"")).await.unwrap();
        }
    }
}

/// `target/tmp/run-PID`. Folders of runs that are over are removed first; a process id that is in use again only
/// keeps its folder for longer.
fn folder() -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for entry in std::fs::read_dir(root).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let over = name.strip_prefix("run-").is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if over && let Err(error) = std::fs::remove_dir_all(entry.path()) {
            eprintln!("{} stays: {error}", entry.path().display());
        }
    }
    let dir = root.join(format!("run-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}
