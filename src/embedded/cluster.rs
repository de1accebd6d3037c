//! A private PostgreSQL cluster: made at the first start, found again at the next, and stopped however its owner
//! ends. It listens on a loopback port only, and asks everybody for a password.
//!
//! What always holds: one owner per data directory (a lock file says so, and the lock dies with its owner), the
//! server never runs as root, and a cluster that was only half made is made anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::errors::{Error, file};
use super::lock::DirLock;
use super::place::Place;
use crate::config::{RoleLogin, write_private};
use crate::domain::tenant::RoleName;
use crate::postgres::programs::cluster::{self as server, ServerStart, WatchedServer};
use crate::postgres::programs::{Programs, Purpose};
use crate::secrets::password_new;
use crate::shutdown::Tasks;

const SUPERUSER: &str = "postgres";
const HOST: &str = "127.0.0.1";
const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// A server whose owner was killed stops by itself; after this it is told to stop at once.
const PREDECESSOR_FAST_MAX: Duration = Duration::from_secs(15);
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a server that has ended by itself is left alone; longer each time, unless it ran for longer than the most.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(500);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);
/// A port that was free when it was chosen may be taken by the time that the server wants it.
const PORT_ATTEMPTS_MAX: u32 = 3;
/// What is looked at again until it changes is a file or a process; neither tells.
const POLL: Duration = Duration::from_millis(20);
const LOG_BYTES_MAX: u64 = 16 << 20;

/// What cluster is wanted.
#[derive(Debug, Clone)]
pub struct ClusterRequest {
    /// Holds the cluster, or says where it is; made when it is missing.
    pub dir: PathBuf,
    /// `false` only where losing everything in a power cut is fine.
    pub fsync: bool,
    pub max_connections: u32,
}

impl ClusterRequest {
    pub fn dev(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), fsync: true, max_connections: 120 }
    }

    /// Fast and forgetful, with room for many fleets.
    pub fn test(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), fsync: false, max_connections: 400 }
    }
}

/// A running cluster. It stops with [`Cluster::stop`], when this is dropped, or when the process ends.
#[derive(Debug)]
pub struct Cluster {
    port: u16,
    superuser: RoleLogin,
    data_dir: PathBuf,
    version: String,
    /// Dropped, it makes the server's keeper let go of it.
    watch: DropGuard,
    server: Arc<Mutex<Option<WatchedServer>>>,
    _lock: DirLock,
}

impl Cluster {
    /// Resolves when the cluster accepts connections. `tasks` get one that starts a server again that ends by itself; they
    /// do not stop the cluster, because a daemon that goes down still needs its databases.
    pub async fn start(request: ClusterRequest, tasks: &Tasks) -> Result<Self, Error> {
        fs::create_dir_all(&request.dir).map_err(file(&request.dir))?;
        let dir = request.dir.canonicalize().map_err(file(&request.dir))?;
        let lock_file = dir.join("lock");
        let lock = DirLock::take(&lock_file).map_err(file(&lock_file))?;
        let lock = lock.map_err(|owner| Error::InUse { dir: dir.clone(), owner: owner.0 })?;
        let place = Place::find(&dir).await?;
        let data_dir = place.dir.join("data");
        predecessor_end(&data_dir).await?;
        let programs = match data_major(&data_dir)? {
            Some(major) => Programs::of_major(major, Purpose::Cluster)?,
            None => Programs::newest(Purpose::Cluster)?,
        };
        let password = password(&dir, &data_dir)?;
        if !data_dir.exists() {
            make(&programs, &place, &data_dir, &password, request.fsync).await?;
        }
        let (server, port) = serve(&programs, &place, &data_dir, &dir, &request).await?;
        let server = Arc::new(Mutex::new(Some(server)));
        let watch = tasks.token().child_token();
        let version = programs.major.to_string();
        let started = Started { programs, place, data_dir: data_dir.clone(), request, port };
        tasks.spawn("private cluster", started.keep(Arc::clone(&server), watch.clone()));
        let role = RoleName::try_from(SUPERUSER.to_owned()).map_err(|error| Error::Name(error.to_string()))?;
        let watch = watch.drop_guard();
        Ok(Self { port, superuser: RoleLogin { role, password }, data_dir, version, watch, server, _lock: lock })
    }

    pub fn host(&self) -> &'static str {
        HOST
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn superuser(&self) -> &RoleLogin {
        &self.superuser
    }

    /// PostgreSQL's own files, wherever they had to go.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// PostgreSQL's major version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Ends all sessions and stops the server; resolves when it has ended.
    pub async fn stop(self) -> Result<(), Error> {
        drop(self.watch);
        let Some(server) = self.server.lock().await.take() else { return Ok(()) };
        server.stop().await.map_err(file(&self.data_dir))?;
        Ok(())
    }
}

/// What a server was started with, so that it can be started again where its clients look for it.
struct Started {
    programs: Programs,
    place: Place,
    data_dir: PathBuf,
    request: ClusterRequest,
    port: u16,
}

impl Started {
    /// Starts the server again whenever it ends by itself, after pauses that grow while it does not stay. It belongs to
    /// nobody else meanwhile; `watch` makes this let go of it.
    async fn keep(self, server: Arc<Mutex<Option<WatchedServer>>>, watch: CancellationToken) {
        let mut held = server.lock().await;
        tokio::select! {
            () = self.keep_running(&mut held) => {}
            () = watch.cancelled() => {}
        }
    }

    async fn keep_running(&self, held: &mut Option<WatchedServer>) {
        let (mut pause, mut since) = (RESTART_PAUSE_MIN, Instant::now());
        loop {
            if let Some(running) = held.as_mut() {
                let ended = ended_text(&running.ended().await);
                held.take();
                if since.elapsed() > RESTART_PAUSE_MAX {
                    pause = RESTART_PAUSE_MIN;
                }
                tracing::error!(
                    status = ended,
                    ?pause,
                    "the private PostgreSQL cluster has ended by itself; it is started again"
                );
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RESTART_PAUSE_MAX);
            match self.start_again().await {
                Ok(running) => {
                    *held = Some(running);
                    since = Instant::now();
                    tracing::info!(port = self.port, "the private PostgreSQL cluster runs again");
                }
                Err(error) => {
                    tracing::error!(%error, ?pause, "the private PostgreSQL cluster cannot be started again yet");
                }
            }
        }
    }

    async fn start_again(&self) -> Result<WatchedServer, Error> {
        predecessor_end(&self.data_dir).await?;
        let started = start(&self.programs, &self.place, &self.data_dir, &self.request, self.port).await?;
        started.map_err(|failed| failed.told(&self.data_dir))
    }
}

/// Nobody else holds the data directory's lock, so a server that runs there has lost its owner, and is about to stop.
async fn predecessor_end(data_dir: &Path) -> Result<(), Error> {
    let began = Instant::now();
    let mut asked = None;
    while let Some(pid) = server::running_pid(data_dir) {
        let waited = began.elapsed();
        let signal = if waited < PREDECESSOR_FAST_MAX { "INT" } else { "QUIT" };
        if asked != Some(signal) {
            tracing::info!(pid, "waiting for the cluster of an earlier run to stop");
            // It may end between the look and the signal.
            if server::signal(pid, signal).await.is_err() && server::running_pid(data_dir) != Some(pid) {
                continue;
            }
            asked = Some(signal);
        }
        if waited > PREDECESSOR_TIMEOUT {
            return Err(Error::PredecessorStuck { data_dir: data_dir.to_owned(), pid });
        }
        tokio::time::sleep(POLL).await;
    }
    server::stale_pid_file_remove(data_dir).map_err(file(data_dir))
}

/// The major version that a cluster's files are of; `None` when there is no cluster.
fn data_major(data_dir: &Path) -> Result<Option<u32>, Error> {
    if !data_dir.exists() {
        return Ok(None);
    }
    let not = |reason: String| Error::NotACluster { data_dir: data_dir.to_owned(), reason };
    let text = fs::read_to_string(data_dir.join("PG_VERSION")).map_err(|error| not(format!("PG_VERSION: {error}")))?;
    text.trim().parse().map(Some).map_err(|_| not(format!("PG_VERSION says {:?}", text.trim())))
}

/// Kept beside the cluster; made before it.
fn password(dir: &Path, data_dir: &Path) -> Result<SecretString, Error> {
    let password_file = dir.join("cluster-superuser");
    match fs::read_to_string(&password_file) {
        Ok(text) if !text.trim().is_empty() => Ok(SecretString::from(text.trim())),
        _ if data_dir.exists() => Err(Error::PasswordGone { data_dir: data_dir.to_owned(), password_file }),
        _ => {
            let password = password_new();
            replace(&password_file, password.expose_secret())?;
            Ok(password)
        }
    }
}

/// Makes the cluster under another name, and renames it when it is whole.
async fn make(
    programs: &Programs,
    place: &Place,
    data_dir: &Path,
    password: &SecretString,
    sync: bool,
) -> Result<(), Error> {
    let unfinished = place.dir.join("data.new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(file(&unfinished))?;
    }
    let password_file = place.dir.join("initdb-password");
    replace(&password_file, password.expose_secret())?;
    place.give(&password_file)?;
    let made = programs.initdb(&unfinished, SUPERUSER, &password_file, place.user.as_ref(), sync).await;
    fs::remove_file(&password_file).map_err(file(&password_file))?;
    made?;
    fs::rename(&unfinished, data_dir).map_err(file(data_dir))
}

/// Starts the server on the port of the last time, or on another free one when that is taken.
async fn serve(
    programs: &Programs,
    place: &Place,
    data_dir: &Path,
    dir: &Path,
    request: &ClusterRequest,
) -> Result<(WatchedServer, u16), Error> {
    let port_file = dir.join("cluster-port");
    let mut attempt = 1;
    loop {
        let remembered = fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse().ok());
        let port = port_choose(remembered).map_err(file(&port_file))?;
        fs::write(&port_file, format!("{port}\n")).map_err(file(&port_file))?;
        match start(programs, place, data_dir, request, port).await? {
            Ok(server) => return Ok((server, port)),
            Err(failed) if attempt == PORT_ATTEMPTS_MAX || !failed.log.contains("could not bind") => {
                return Err(failed.told(data_dir));
            }
            Err(_port_taken) => attempt += 1,
        }
    }
}

/// How a server ended before it was up.
struct NotUp {
    ended: String,
    log_file: PathBuf,
    log: String,
}

impl NotUp {
    fn told(self, data_dir: &Path) -> Error {
        let Self { ended, log_file, log } = self;
        Error::NotStarted { data_dir: data_dir.to_owned(), ended, log_file, log: log.trim().replace('\n', " | ") }
    }
}

/// Starts the server on this port. It is up when this returns.
async fn start(
    programs: &Programs,
    place: &Place,
    data_dir: &Path,
    request: &ClusterRequest,
    port: u16,
) -> Result<Result<WatchedServer, NotUp>, Error> {
    let log_file = place.dir.join("log");
    let (log, log_bytes) = log_open(&log_file).map_err(file(&log_file))?;
    let settings = settings(request, port);
    let start = ServerStart { data_dir, user: place.user.as_ref(), settings: &settings, log };
    let mut server = programs.postgres_watched(start)?;
    match ready(&mut server, data_dir).await {
        Ok(()) => Ok(Ok(server)),
        Err(ended) => {
            let log = log_since(&log_file, log_bytes);
            Ok(Err(NotUp { ended, log_file, log }))
        }
    }
}

fn settings(request: &ClusterRequest, port: u16) -> Vec<(&'static str, String)> {
    let mut settings = vec![
        ("listen_addresses", HOST.to_owned()),
        ("port", port.to_string()),
        ("unix_socket_directories", String::new()),
        ("max_connections", request.max_connections.to_string()),
        ("log_line_prefix", "%m [%p] %q%a %d ".to_owned()),
        ("cluster_name", "tenantd".to_owned()),
    ];
    if !request.fsync {
        let off = ["fsync", "synchronous_commit", "full_page_writes"];
        settings.extend(off.map(|name| (name, "off".to_owned())));
    }
    settings
}

/// Or says how the server ended instead.
async fn ready(server: &mut WatchedServer, data_dir: &Path) -> Result<(), String> {
    let accepting = async {
        while !server::ready(data_dir) {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::select! {
        () = accepting => Ok(()),
        ended = server.ended() => Err(ended_text(&ended)),
        () = tokio::time::sleep(READY_TIMEOUT) => Err(format!("not within {} s", READY_TIMEOUT.as_secs())),
    }
}

fn ended_text(ended: &io::Result<ExitStatus>) -> String {
    match ended {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

/// The remembered port if it is free, or else any other.
fn port_choose(remembered: Option<u16>) -> io::Result<u16> {
    let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = match remembered.map(bind) {
        Some(Ok(listener)) => listener,
        Some(Err(_)) | None => bind(0)?,
    };
    Ok(listener.local_addr()?.port())
}

/// Opened for appending, with its length; one that has grown large begins anew.
fn log_open(log_file: &Path) -> io::Result<(File, u64)> {
    if fs::metadata(log_file).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
        fs::rename(log_file, log_file.with_extension("old"))?;
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log_file)?;
    let bytes = log.metadata()?.len();
    Ok((log, bytes))
}

fn log_since(log_file: &Path, bytes: u64) -> String {
    let read = || -> io::Result<String> {
        let mut log = File::open(log_file)?;
        log.seek(SeekFrom::Start(bytes))?;
        let mut text = Vec::new();
        log.take(4 << 10).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}

/// Writes a private file anew; what was there is of a start that was cut off.
fn replace(path: &Path, text: &str) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(path)(error)),
        _ => {}
    }
    write_private(path, text).map_err(file(path))
}
