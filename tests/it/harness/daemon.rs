//! A fleet's daemon: in this process, or as one of its own that can be killed.

use std::collections::BTreeMap;
use std::future::pending;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tenantd::app::App;
use tenantd::shutdown::Tasks;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::client::Client;
use super::fleet::Fleet;
use super::logs;

/// How long the daemon may take to listen.
const START_MAX: Duration = Duration::from_mins(1);

/// A running daemon in this process, on a port of its own.
#[derive(Debug)]
pub struct Daemon {
    pub address: SocketAddr,
    /// A caller with the admin key.
    pub client: Client,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

/// A daemon in a process of its own.
#[derive(Debug)]
pub struct Process {
    pub client: Client,
    child: Served,
}

/// `tenantd serve`, from its first moment on; it does not outlive this.
#[derive(Debug)]
pub struct Served(Child);

impl Fleet {
    /// Starts the daemon in this process.
    pub async fn start(&self) -> Daemon {
        let tasks = Tasks::new(logs::root_span(self.naming.prefix()));
        let app = App::build(self.config(), tasks, pending()).await.unwrap().unwrap();
        let key_file = self.admin_key_file();
        app.admin_key_ensure(&key_file).await.unwrap();
        let address = app.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            app.start().serve(async move { drop(stopped.await) }).await.unwrap();
        });
        Daemon { address, client: self.client(address), stop, running }
    }

    /// Why the daemon does not start in this process.
    pub async fn start_refused(&self) -> String {
        let tasks = Tasks::new(logs::root_span(self.naming.prefix()));
        App::build(self.config(), tasks, pending()).await.expect_err("the daemon may not start").to_string()
    }

    /// Stops the daemon; the fleet is over.
    pub async fn stop(self, daemon: Daemon) {
        daemon.stop().await;
        self.finish().await;
    }

    /// Starts `tenantd serve` as a process, and waits until it listens.
    pub fn spawn(&self) -> Process {
        let (child, address) = self.spawn_only();
        let address = address.recv_timeout(START_MAX).unwrap_or_else(|_| {
            panic!("the daemon does not listen:\n{}", logs::latest(self.naming.prefix()));
        });
        Process { client: self.client(address), child }
    }

    /// Starts `tenantd serve` as a process, which tells its address once it listens.
    pub fn spawn_only(&self) -> (Served, mpsc::Receiver<SocketAddr>) {
        self.spawn_from(&self.config_file())
    }

    /// As [`Fleet::spawn_only`], by the name and with a file of its own, which the next one does not write over.
    pub fn spawn_apart(&self, instance: &str) -> (Served, mpsc::Receiver<SocketAddr>) {
        self.configure(&[("", "instance", format!("{instance:?}"))]);
        let own = self.dir.join(format!("tenantd-{instance}.toml"));
        std::fs::copy(self.config_file(), &own).unwrap();
        self.spawn_from(&own)
    }

    fn spawn_from(&self, config_file: &Path) -> (Served, mpsc::Receiver<SocketAddr>) {
        let mut child = self
            .command()
            .args(["serve", "--config"])
            .arg(config_file)
            .arg("--init-admin-key-file")
            .arg(self.admin_key_file())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (found, address) = mpsc::channel();
        let fleet = self.naming.prefix().to_owned();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(address) = line.split("serving address=").nth(1) {
                    let address = address.split_whitespace().next().unwrap_or_default();
                    let _ = found.send(address.parse().unwrap());
                }
                let is_problem = [" WARN ", " ERROR ", "panicked at"].iter().any(|mark| line.contains(mark));
                logs::note(&fleet, is_problem, line);
            }
        });
        (Served(child), address)
    }

    /// The binary, in the fleet's folder.
    fn command(&self) -> Command {
        let mut command = tenantd();
        command.current_dir(&self.dir).env("NO_COLOR", "1");
        command
    }

    pub fn admin_key_file(&self) -> std::path::PathBuf {
        self.dir.join("admin.key")
    }

    fn client(&self, address: SocketAddr) -> Client {
        Client::new(address, Some(read(&self.admin_key_file()).trim()))
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

impl Daemon {
    /// Drains and stops; every task must end in time.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.running.await.unwrap();
    }
}

impl Process {
    /// The process id of a program that the daemon has started, once it has.
    pub async fn child(&self, program: &str) -> u32 {
        super::until("the daemon starts the program", || async { descendant(self.child.0.id(), program) }).await
    }

    /// SIGTERM: it drains, and ends without a complaint.
    pub async fn terminate(self) {
        self.child.terminate().await;
    }

    /// SIGHUP: it reads its configuration again.
    pub fn hang_up(&self) {
        self.child.signal("HUP");
    }

    /// SIGSTOP: it stands still, with everything that it has.
    pub fn pause(&self) {
        self.child.signal("STOP");
    }

    /// SIGCONT: it goes on as if nothing had been.
    pub fn resume(&self) {
        self.child.signal("CONT");
    }

    /// SIGKILL: nothing in the process hears of it.
    pub fn kill(mut self) {
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
    }
}

impl Served {
    pub fn signal(&self, name: &str) {
        signal(name, self.0.id());
    }

    /// SIGTERM: it ends without a complaint.
    pub async fn terminate(mut self) {
        self.signal("TERM");
        let child = std::sync::Mutex::new(&mut self.0);
        let status = super::until("the daemon ends", || async { child.lock().unwrap().try_wait().unwrap() }).await;
        assert!(status.success(), "the daemon ended with {status}");
    }
}

/// The binary. Where the system has the means, it dies with the test's thread, however that ends.
pub fn tenantd() -> Command {
    const SETPRIV: &str = "/usr/bin/setpriv";
    let binary = env!("CARGO_BIN_EXE_tenantd");
    if !Path::new(SETPRIV).exists() {
        return Command::new(binary);
    }
    let mut command = Command::new(SETPRIV);
    command.args(["--pdeathsig", "KILL", "--", binary]);
    command
}

/// Sends a signal to a process that a test has started.
pub fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").args(["-s", name]).arg(process.to_string()).status().unwrap();
    assert!(sent.success(), "no {name} for {process}");
}

/// A process below `ancestor`, by its name.
fn descendant(ancestor: u32, program: &str) -> Option<u32> {
    let mut parents: BTreeMap<u32, u32> = BTreeMap::new();
    let mut named = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // `pid (name) state parent …`, and a name may have anything in it.
        let (Some((pid, rest)), Some((_, after))) = (stat.split_once(" ("), stat.rsplit_once(") ")) else { continue };
        let (Ok(pid), Some(parent)) = (pid.parse(), after.split(' ').nth(1)) else { continue };
        parents.insert(pid, parent.parse().unwrap());
        if rest.strip_prefix(program).is_some_and(|end| end.starts_with(')')) {
            named.push(pid);
        }
    }
    let below =
        |pid: &u32| std::iter::successors(Some(*pid), |pid| parents.get(pid).copied()).any(|pid| pid == ancestor);
    named.into_iter().find(below)
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
