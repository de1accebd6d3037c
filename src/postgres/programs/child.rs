//! How a child process begins: with a clean environment, and in a process group of its own, so that a Ctrl-C on the
//! terminal reaches the daemon and nobody else.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::Error;

/// A child knows where the system's programs are, and speaks UTF-8 without translations.
const ENVIRONMENT: [(&str, &str); 2] = [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LC_ALL", "C.UTF-8")];

/// From util-linux.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A child that is about to be started, and is killed when its handle is dropped.
#[expect(clippy::disallowed_methods, reason = "the one place that starts child processes")]
pub(super) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(ENVIRONMENT).process_group(0).kill_on_drop(true);
    command
}

/// A child that the kernel kills when the daemon ends, even by kill -9. The kernel watches the thread that starts it,
/// so that has to be one of the runtime's own, which live as long as the daemon.
pub(super) fn mortal_command(program: &Path) -> Command {
    if !Path::new(SETPRIV).is_file() {
        return command(program);
    }
    let mut command = command(SETPRIV);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Runs a child to its end; what it says on standard error becomes the error.
pub(super) async fn run(program: &str, mut command: Command, timeout: Duration) -> Result<(), Error> {
    command.stdin(Stdio::null());
    let output = tokio::time::timeout(timeout, command.output()).await;
    let output = output
        .map_err(|_| Error::Timeout { program: program.to_owned(), seconds: timeout.as_secs() })?
        .map_err(|source| Error::Start { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Error::Failed { program: program.to_owned(), status: output.status.to_string(), output: text })
}
