//! `initdb`, and a server that never outlives its owner.
//!
//! The server is started by a shell that first leaves a watcher behind. The watcher reads a pipe whose other end only
//! the owner holds: however the owner ends, kill -9 included, the pipe closes, and the watcher stops the server.

use std::fs::File;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};

use super::child::{command, run};
use super::{Error, OsUser, Programs};

const INITDB_TIMEOUT: Duration = Duration::from_mins(2);

/// `$1` is the server's pid file, the rest its command line. The watcher is nobody's child (the server would take it
/// for one of its own), and it signals only the process that the pid file names. After 20 s of a fast shutdown it
/// asks for an immediate one.
const WATCHED: &str = r#"
pid_file=$1; shift
exec 3<&0 </dev/null
( (
    while read -r _; do :; done <&3
    tries=0
    while [ $tries -lt 300 ] && kill -0 $$; do
        [ $tries -lt 100 ] && signal=INT || signal=QUIT
        [ "$(head -n 1 "$pid_file")" = $$ ] && kill -s $signal $$
        tries=$((tries + 1)); sleep 0.2
    done
) >/dev/null 2>&1 & )
exec "$@" 3<&-
"#;

/// What a server is started with.
#[derive(Debug)]
pub struct ServerStart<'a> {
    pub data_dir: &'a Path,
    /// `None`: the user of this process.
    pub user: Option<&'a OsUser>,
    /// As `-c name=value`; anybody on the machine can read them.
    pub settings: &'a [(&'a str, String)],
    pub log: File,
}

/// A server that stops when this is dropped, or its process ends.
#[derive(Debug)]
pub struct WatchedServer {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Programs {
    /// Makes a cluster in a directory that does not exist yet, with passwords asked of everybody.
    pub async fn initdb(
        &self,
        data_dir: &Path,
        superuser: &str,
        password_file: &Path,
        user: Option<&OsUser>,
        sync: bool,
    ) -> Result<(), Error> {
        let mut initdb = command(self.path("initdb"));
        initdb.arg("--pgdata").arg(data_dir).arg("--username").arg(superuser).arg("--pwfile").arg(password_file);
        initdb.args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums"]);
        if !sync {
            initdb.arg("--no-sync");
        }
        become_user(&mut initdb, user, data_dir);
        run("initdb", initdb, INITDB_TIMEOUT).await
    }

    /// Starts the server. It accepts connections some time later, see [`ready`].
    pub fn postgres_watched(&self, start: ServerStart<'_>) -> Result<WatchedServer, Error> {
        let file = |source| Error::File { what: "the server's log".to_owned(), source };
        let errors = start.log.try_clone().map_err(file)?;
        let mut shell = command("/bin/sh");
        shell.args(["-c", WATCHED, "sh"]).arg(pid_file(start.data_dir));
        shell.arg(self.path("postgres")).arg("-D").arg(start.data_dir);
        for (name, value) in start.settings {
            shell.arg("-c").arg(format!("{name}={value}"));
        }
        become_user(&mut shell, start.user, start.data_dir);
        shell.stdin(Stdio::piped()).stdout(start.log).stderr(errors).kill_on_drop(false);
        let mut child = shell.spawn().map_err(|source| Error::Start { program: "postgres".to_owned(), source })?;
        let pipe = child.stdin.take();
        Ok(WatchedServer { child, pipe })
    }
}

impl WatchedServer {
    /// Resolves when the server's process has ended.
    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Ends all sessions and stops the server; resolves when its process has ended.
    pub async fn stop(mut self) -> std::io::Result<ExitStatus> {
        self.pipe.take();
        self.child.wait().await
    }
}

/// Whether the server that has this data directory accepts connections (it says so in its pid file).
pub fn ready(data_dir: &Path) -> bool {
    const STATUS_LINE: usize = 7;
    let text = std::fs::read_to_string(pid_file(data_dir)).unwrap_or_default();
    text.lines().nth(STATUS_LINE).is_some_and(|status| status.trim() == "ready") && running_pid(data_dir).is_some()
}

/// The process that runs on this data directory, if there is one. A pid file that a killed server left behind, or
/// whose number has become another program's, names nobody.
pub fn running_pid(data_dir: &Path) -> Option<u32> {
    let pid = recorded_pid(data_dir)?;
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = command_line.split(|byte| *byte == 0);
    let wanted = data_dir.as_os_str().as_encoded_bytes();
    arguments.any(|argument| argument == wanted).then_some(pid)
}

/// Removes a pid file whose number has become another program's: the server would take that for its predecessor.
pub fn stale_pid_file_remove(data_dir: &Path) -> std::io::Result<()> {
    let taken = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    if running_pid(data_dir).is_none() && recorded_pid(data_dir).is_some_and(taken) {
        return std::fs::remove_file(pid_file(data_dir));
    }
    Ok(())
}

/// Asks a server to stop: `INT` ends its sessions first, `QUIT` does not even write a checkpoint.
pub async fn signal(pid: u32, name: &'static str) -> Result<(), Error> {
    let mut kill = command("/bin/sh");
    kill.args(["-c", "kill -s \"$1\" \"$2\"", "sh", name]).arg(pid.to_string());
    run("kill", kill, Duration::from_secs(5)).await
}

fn recorded_pid(data_dir: &Path) -> Option<u32> {
    std::fs::read_to_string(pid_file(data_dir)).ok()?.lines().next()?.trim().parse().ok()
}

fn pid_file(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("postmaster.pid")
}

/// PostgreSQL's programs want a working directory that they can enter.
fn become_user(command: &mut Command, user: Option<&OsUser>, data_dir: &Path) {
    if let Some(parent) = data_dir.parent() {
        command.current_dir(parent);
    }
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
}
