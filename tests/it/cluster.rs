//! The private cluster: it keeps its data, has one owner, and never outlives it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tenantd::embedded::{Cluster, ClusterError, ClusterRequest};
use tenantd::shutdown::Tasks;
use tokio_postgres::NoTls;

use crate::harness::{Expectations, root_span, signal, until};

/// Names the folder to the process that stands in for a daemon.
const OWNER_DIR: &str = "TENANTD_TEST_CLUSTER_DIR";

fn tasks() -> Tasks {
    Tasks::new(tracing::Span::none())
}

fn request(dir: &Path) -> ClusterRequest {
    ClusterRequest { max_connections: 10, ..ClusterRequest::test(dir) }
}

/// A folder that the cluster's user can enter.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

async fn ask(cluster: &Cluster, password: &str, sql: &str) -> Result<String, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host(cluster.host()).port(cluster.port()).user(cluster.superuser().role.as_str()).password(password);
    let (client, connection) = config.dbname("postgres").connect(NoTls).await?;
    let tasks = tasks();
    tasks.spawn("connection", connection);
    let rows = client.simple_query(sql).await?;
    Ok(rows
        .iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .unwrap_or_default())
}

async fn ask_as_superuser(cluster: &Cluster, sql: &str) -> String {
    ask(cluster, cluster.superuser().password.expose_secret(), sql).await.unwrap()
}

/// A process that has ended and that nobody has asked about has no command line any more.
fn alive(pid: &str) -> bool {
    std::fs::read(Path::new("/proc").join(pid).join("cmdline")).is_ok_and(|line| !line.is_empty())
}

#[tokio::test]
async fn a_second_start_finds_the_data_and_the_password_of_the_first() {
    let (dir, tasks) = (folder(), tasks());
    let cluster = Cluster::start(request(dir.path()), &tasks).await.unwrap();
    ask_as_superuser(&cluster, "create table kept as select 42 as answer").await;
    assert_eq!(ask_as_superuser(&cluster, "show fsync").await, "off");
    assert_eq!(ask_as_superuser(&cluster, "show max_connections").await, "10");
    assert_eq!(ask_as_superuser(&cluster, "show server_encoding").await, "UTF8");
    assert_eq!(ask_as_superuser(&cluster, "show unix_socket_directories").await, "");
    assert!(ask(&cluster, "another password", "select 1").await.is_err(), "any password will do");
    let (port, pid) = (cluster.port(), server_pid(&cluster));
    cluster.stop().await.unwrap();
    assert!(!alive(&pid));

    let cluster = Cluster::start(request(dir.path()), &tasks).await.unwrap();
    assert_eq!(ask_as_superuser(&cluster, "select answer from kept").await, "42");
    assert_eq!(cluster.port(), port);
    cluster.stop().await.unwrap();

    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let cluster = Cluster::start(request(dir.path()), &tasks).await.unwrap();
    assert_ne!(cluster.port(), port);
    assert_eq!(ask_as_superuser(&cluster, "select answer from kept").await, "42");
    cluster.stop().await.unwrap();
    drop(taken);
    assert_eq!(tasks.end(Duration::from_secs(5)).await, Vec::<&str>::new());
}

#[tokio::test]
async fn a_server_that_is_killed_is_started_again_where_it_was() {
    let logs = Expectations::new("a server that is killed");
    logs.expect("has ended by itself; it is started again");
    // It answers the test a moment before its owner has seen that it is ready, and may be killed in between.
    logs.allow("cannot be started again yet");
    let (dir, tasks) = (folder(), Tasks::new(root_span("a server that is killed")));
    let cluster = Cluster::start(request(dir.path()), &tasks).await.unwrap();
    ask_as_superuser(&cluster, "create table kept as select 42 as answer").await;
    // Commits are not waited for here.
    ask_as_superuser(&cluster, "checkpoint").await;
    let kill = |pid: String| signal("KILL", pid.parse().unwrap());
    let password = cluster.superuser().password.expose_secret();
    for _ in 0..2 {
        let before = server_pid(&cluster);
        kill(before.clone());
        let answer = until("it is back", async || ask(&cluster, password, "select answer from kept").await.ok()).await;
        assert_eq!(answer, "42");
        assert_ne!(server_pid(&cluster), before);
    }
    // One that is told to stop stays away, and so does one that is not back yet.
    let last = server_pid(&cluster);
    kill(last.clone());
    cluster.stop().await.unwrap();
    until("it is gone", async || (!alive(&last)).then_some(())).await;
    let cluster = Cluster::start(request(dir.path()), &tasks).await.unwrap();
    let last = server_pid(&cluster);
    cluster.stop().await.unwrap();
    assert!(!alive(&last));
    assert_eq!(tasks.end(Duration::from_secs(5)).await, Vec::<&str>::new());
}

#[tokio::test]
async fn a_cluster_that_is_dropped_stops() {
    let (dir, tasks) = (folder(), tasks());
    let cluster = Cluster::start(request(dir.path()), &tasks).await.unwrap();
    let pid = server_pid(&cluster);
    drop(cluster);
    until("it is gone", async || (!alive(&pid)).then_some(())).await;
}

#[tokio::test]
async fn a_data_directory_has_one_owner() {
    let (dir, tasks) = (folder(), tasks());
    let cluster = Cluster::start(request(dir.path()), &tasks).await.unwrap();
    let error = Cluster::start(request(dir.path()), &tasks).await.unwrap_err();
    assert!(matches!(error, ClusterError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_broken_is_named_and_left_alone() {
    let (dir, tasks) = (folder(), tasks());
    let cluster = Cluster::start(request(dir.path()), &tasks).await.unwrap();
    let data_dir = cluster.data_dir().to_owned();
    cluster.stop().await.unwrap();

    let version = std::fs::read(data_dir.join("PG_VERSION")).unwrap();
    std::fs::write(data_dir.join("PG_VERSION"), "9\n").unwrap();
    let error = Cluster::start(request(dir.path()), &tasks).await.unwrap_err();
    assert!(error.to_string().contains("version 9 are not installed"), "{error}");
    std::fs::write(data_dir.join("PG_VERSION"), version).unwrap();

    std::fs::write(data_dir.join("postgresql.auto.conf"), "nonsense = on\n").unwrap();
    let error = Cluster::start(request(dir.path()), &tasks).await.unwrap_err();
    assert!(error.to_string().contains("unrecognized configuration parameter \"nonsense\""), "{error}");
    std::fs::write(data_dir.join("postgresql.auto.conf"), "").unwrap();

    // Process 1 runs, and is not PostgreSQL: the file is of a machine that was restarted.
    std::fs::write(data_dir.join("postmaster.pid"), format!("1\n{}\n", data_dir.display())).unwrap();
    Cluster::start(request(dir.path()), &tasks).await.unwrap().stop().await.unwrap();

    std::fs::remove_file(dir.path().join("cluster-superuser")).unwrap();
    let error = Cluster::start(request(dir.path()), &tasks).await.unwrap_err();
    assert!(matches!(error, ClusterError::PasswordGone { .. }), "{error}");
}

#[tokio::test]
async fn a_cluster_that_was_half_made_is_made_anew() {
    let (dir, tasks) = (folder(), tasks());
    let unfinished = dir.path().join("cluster/data.new/base");
    std::fs::create_dir_all(&unfinished).unwrap();
    std::fs::write(dir.path().join("cluster/initdb-password"), "old").unwrap();
    let cluster = Cluster::start(request(dir.path()), &tasks).await.unwrap();
    assert_eq!(ask_as_superuser(&cluster, "select 1").await, "1");
    assert!(!unfinished.exists() && !dir.path().join("cluster/initdb-password").exists());
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn it_stops_when_its_owner_is_killed_and_starts_again() {
    let dir = folder();
    let (mut owner, pid) = owner(dir.path());
    owner.kill().unwrap();
    owner.wait().unwrap();
    // The next owner waits for it.
    let tasks = tasks();
    let cluster = Cluster::start(request(dir.path()), &tasks).await.unwrap();
    assert!(!alive(&pid));
    assert_eq!(ask_as_superuser(&cluster, "select 1").await, "1");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn it_stops_without_anybody_waiting_for_it() {
    let dir = folder();
    let (mut owner, pid) = owner(dir.path());
    owner.kill().unwrap();
    owner.wait().unwrap();
    let ended = async {
        while alive(&pid) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the watcher stops it");
}

#[tokio::test]
async fn root_runs_it_as_somebody_else_wherever_the_data_directory_is() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return;
    }
    let (closed, tasks) = (folder(), tasks());
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let dir = closed.path().join("data");
    let cluster = Cluster::start(request(&dir), &tasks).await.unwrap();
    let place = std::fs::read_to_string(dir.join("cluster-location")).unwrap();
    assert!(cluster.data_dir().starts_with(place.trim()), "{place}");
    assert_ne!(std::fs::metadata(cluster.data_dir()).unwrap().uid(), 0);
    let data_dir = cluster.data_dir().to_owned();
    cluster.stop().await.unwrap();
    let cluster = Cluster::start(request(&dir), &tasks).await.unwrap();
    assert_eq!(cluster.data_dir(), data_dir);
    cluster.stop().await.unwrap();
    std::fs::remove_dir_all(place.trim()).unwrap();
}

fn server_pid(cluster: &Cluster) -> String {
    let text = std::fs::read_to_string(cluster.data_dir().join("postmaster.pid")).unwrap();
    text.lines().next().unwrap().to_owned()
}

/// Another process that owns a running cluster, and the server's process.
fn owner(dir: &Path) -> (Child, String) {
    #[expect(clippy::disallowed_methods, reason = "an owner that can be killed is another process")]
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "--include-ignored", "cluster::stands_in_for_a_daemon"]);
    let mut owner = command.env(OWNER_DIR, dir).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok);
    let pid = lines.find_map(|line| line.split_once("server ").map(|(_, pid)| pid.to_owned()));
    (owner, pid.unwrap())
}

#[tokio::test]
#[ignore = "only together with the tests that kill it"]
#[expect(clippy::print_stdout, reason = "its parent reads it")]
async fn stands_in_for_a_daemon() {
    #[expect(clippy::disallowed_methods, reason = "its parent names the folder so")]
    let Ok(dir) = std::env::var(OWNER_DIR) else { return };
    let cluster = Cluster::start(request(Path::new(&dir)), &tasks()).await.unwrap();
    println!("server {}", server_pid(&cluster));
    std::future::pending::<()>().await;
}
