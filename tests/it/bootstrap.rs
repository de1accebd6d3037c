//! `tenantd server bootstrap` as an operator types it: what it takes for granted, what it refuses, what it leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use secrecy::ExposeSecret as _;
use tenantd::config::{Credentials, write_private};

use crate::harness::Machine;

/// An operator with the superuser's password.
struct Operator {
    machine: &'static Machine,
    dir: tempfile::TempDir,
}

impl Operator {
    fn new() -> Self {
        let machine = Machine::with_room_for(30);
        let dir = tempfile::tempdir().unwrap();
        write_private(&dir.path().join("superuser"), machine.superuser().password.expose_secret()).unwrap();
        Self { machine, dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn bootstrap(&self, arguments: &[&str]) -> Output {
        let machine = self.machine;
        Command::new(env!("CARGO_BIN_EXE_tenantd"))
            .args(["server", "bootstrap", "--no-tls", "--host", &machine.host])
            .args(["--superuser", machine.superuser().role.as_str(), "--superuser-password-file", "superuser"])
            .args(arguments)
            .args(missing(arguments, "--prefix", "erp"))
            .args(missing(arguments, "--port", &machine.port.to_string()))
            .current_dir(self.dir.path())
            .output()
            .unwrap()
    }

    /// What it says when it refuses, having written nothing.
    fn refused(&self, arguments: &[&str]) -> String {
        let names = || fs::read_dir(self.dir.path()).unwrap().count();
        let before = names();
        let output = self.bootstrap(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_ne!(output.status.code(), Some(0), "{arguments:?}: {said}");
        assert_eq!(names(), before, "{arguments:?} left a file: {said}");
        said
    }

    fn done(&self, arguments: &[&str]) {
        let output = self.bootstrap(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Whether the daemon gets in with these credentials.
    async fn gets_in(&self, file: &Path) -> bool {
        let login = Credentials::read(file).unwrap().daemon;
        self.machine.connect(&login, "postgres").await.is_ok()
    }
}

/// The option, unless it is among the arguments.
fn missing(arguments: &[&str], option: &str, value: &str) -> Vec<String> {
    if arguments.contains(&option) { Vec::new() } else { vec![option.to_owned(), value.to_owned()] }
}

#[tokio::test]
async fn roles_that_are_there_keep_their_passwords_unless_new_ones_are_asked_for() {
    let operator = Operator::new();
    let own = operator.path("own.toml");
    write_private(&own, &operator.machine.credentials.to_toml()).unwrap();
    let said = operator.refused(&["--credentials-file", "typo.toml", "--keys-file", "keys.toml"]);
    for part in ["tenantd_dump", "typo.toml", "--new-passwords", "locked out"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(operator.gets_in(&own).await);
    // A second fleet on the server, and a run that was cut off after the files: what the file says counts.
    operator.done(&["--credentials-file", "own.toml", "--keys-file", "keys.toml"]);
    operator.done(&["--credentials-file", "own.toml", "--keys-file", "keys.toml", "--prefix", "second"]);
    assert!(operator.gets_in(&own).await);
    operator.done(&["--credentials-file", "new.toml", "--new-passwords"]);
    assert!(operator.gets_in(&operator.path("new.toml")).await && !operator.gets_in(&own).await);
}

#[tokio::test]
async fn what_is_there_must_be_what_it_is_taken_for() {
    let operator = Operator::new();
    write_private(&operator.path("own.toml"), &operator.machine.credentials.to_toml()).unwrap();
    write_private(&operator.path("garbage.toml"), "garbage").unwrap();
    let bad_key = "key_encryption_key = \"x\"\nmanifest_signing_key = \"y\"\nescrow_recipient = \"z\"\n";
    write_private(&operator.path("short.toml"), bad_key).unwrap();
    for (credentials, keys, part) in [
        ("own.toml", "garbage.toml", "garbage.toml"),
        ("garbage.toml", "keys.toml", "garbage.toml"),
        ("own.toml", "own.toml", "the same file"),
        ("own.toml", "./own.toml", "the same file"),
        ("own.toml", "short.toml", "short.toml"),
    ] {
        let said = operator.refused(&["--credentials-file", credentials, "--keys-file", keys]);
        assert!(said.contains(part), "{credentials} {keys}: {said}");
    }
    fs::set_permissions(operator.path("superuser"), fs::Permissions::from_mode(0o644)).unwrap();
    let said = operator.refused(&["--credentials-file", "own.toml"]);
    assert!(said.contains("superuser") && said.contains("chmod 600"), "{said}");
}

#[tokio::test]
async fn a_server_that_lets_nobody_in_leaves_no_files() {
    let operator = Operator::new();
    let files = ["--credentials-file", "fresh.toml", "--keys-file", "keys.toml"];
    operator.refused(&[files.as_slice(), &["--port", "1"]].concat());
    fs::write(operator.path("superuser"), "wrong").unwrap();
    operator.refused(&files);
}
