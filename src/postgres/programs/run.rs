//! A running child: its pipes, the end of what it says, and how it ended.
//!
//! The end of a pipe is no success: a killed `pg_dump` closes its output like a finished one. Only
//! [`Running::outcome`] tells.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Stdio;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::Error;
use crate::shutdown::Tasks;

/// What is kept of the last words on standard error.
const STDERR_BYTES_MAX: usize = 8 * 1024;

/// A child process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    program: String,
    child: Child,
    stdout: Option<ChildStdout>,
    stderr: JoinHandle<String>,
}

impl Running {
    /// Starts `command`, whose standard input the caller has set, with both outputs piped.
    pub(super) fn start(program: &str, mut command: Command, tasks: &Tasks) -> Result<Self, Error> {
        let fail = |source| Error::Start { program: program.to_owned(), source };
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(fail)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let stderr = tasks.spawn("program's last words", async move {
            match stderr {
                Some(pipe) => tail(pipe, STDERR_BYTES_MAX).await,
                None => String::new(),
            }
        });
        Ok(Self { program: program.to_owned(), child, stdout, stderr })
    }

    /// The child's process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// The child's output, once. Whoever does not read it lets the child wait for ever.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// The child's input, once, when it was started with one.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Ends the child at once.
    pub async fn kill(&mut self) -> Result<(), Error> {
        self.child.kill().await.map_err(|source| Error::Start { program: self.program.clone(), source })
    }

    /// Waits for the end; anything but exit code 0 is an error with the child's last words.
    pub async fn outcome(mut self) -> Result<(), Error> {
        drop(self.stdout.take());
        let program = self.program;
        let status = self.child.wait().await.map_err(|source| Error::Start { program: program.clone(), source })?;
        let stderr = self.stderr.await.unwrap_or_default();
        if status.success() {
            return Ok(());
        }
        Err(Error::Failed { program, status: status.to_string(), output: stderr.trim().to_owned() })
    }

    /// Reads the whole output, which may not be longer than `bytes_max`, and waits for the end.
    pub async fn output(mut self, bytes_max: usize) -> Result<String, Error> {
        let text = match self.stdout.take() {
            Some(pipe) => tail(pipe, bytes_max).await,
            None => String::new(),
        };
        self.outcome().await.map(|()| text)
    }
}

/// A file without a name, for a child's standard input, that holds the password in libpq's format. libpq opens it by
/// `PGPASSFILE=/dev/stdin`; it is gone with its last reader, however that ends.
pub(super) fn password_input(directory: &Path, password: &SecretString) -> Result<Stdio, Error> {
    let path = directory.join(format!(".{}", Uuid::new_v4().simple()));
    let fail = |source| Error::File { what: format!("{} for a child's input", path.display()), source };
    let escaped = password.expose_secret().replace('\\', "\\\\").replace(':', "\\:");
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(fail)?;
    let written = file.write_all(format!("*:*:*:*:{escaped}\n").as_bytes());
    let input = fs::File::open(&path);
    fs::remove_file(&path).map_err(fail)?;
    written.map_err(fail)?;
    Ok(input.map_err(fail)?.into())
}

/// Reads to the end, and keeps the last bytes.
async fn tail(mut pipe: impl AsyncRead + Unpin, bytes_max: usize) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > bytes_max {
            kept.drain(..kept.len() - bytes_max);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::programs::child::mortal_command;

    fn tasks() -> Tasks {
        Tasks::new(tracing::Span::none())
    }

    fn shell(script: &str) -> Running {
        let mut command = mortal_command(Path::new("/bin/sh"));
        command.args(["-c", script]).stdin(Stdio::null());
        Running::start("sh", command, &tasks()).unwrap()
    }

    #[tokio::test]
    async fn the_end_is_told_with_the_last_words() {
        assert!(shell("exit 0").outcome().await.is_ok());
        let error = shell("echo gone >&2; exit 3").outcome().await.unwrap_err();
        assert_eq!(error.to_string(), "sh failed (exit status: 3): gone");
        let error = shell("kill -9 $$").outcome().await.unwrap_err();
        assert_eq!(error.to_string(), "sh failed (signal: 9 (SIGKILL)): ");
        assert_eq!(shell("printf '%s' out").output(100).await.unwrap(), "out");
    }

    #[tokio::test]
    async fn last_words_are_bounded() {
        let Err(Error::Failed { output, .. }) =
            shell("i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1").outcome().await
        else {
            panic!("it should have failed");
        };
        assert_eq!(output.len(), STDERR_BYTES_MAX - 1);
        assert!(output.ends_with("line 2999"));
    }

    #[tokio::test]
    async fn a_password_reaches_the_child_and_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = mortal_command(Path::new("/bin/sh"));
        let password = SecretString::from("a:b\\c");
        command.args(["-c", "cat /dev/stdin; cat /dev/stdin; stat -L -c %a:%F /dev/stdin"]);
        command.stdin(password_input(directory.path(), &password).unwrap());
        let text = Running::start("sh", command, &tasks()).unwrap().output(1000).await.unwrap();
        // Read twice: every session that a program opens finds the password from its beginning.
        let line = "*:*:*:*:a\\:b\\\\c\n";
        assert_eq!(text, format!("{line}{line}600:regular file\n"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
