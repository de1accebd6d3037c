//! A client in another language: the example in Python, its code generated from `proto/`, against a real daemon.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Fleet, Spec};

/// What `make test` installs the packages of `examples/python/requirements.txt` into. `None` when it said that this
/// machine's Python is too old for them.
fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    if python.is_file() {
        return Some(python);
    }
    assert!(
        std::env::var_os("TENANTD_TEST_WITHOUT_PYTHON").is_some(),
        "there is no .venv with the Python client's packages: `make test` makes one; \
         with TENANTD_TEST_WITHOUT_PYTHON=yes this test does nothing"
    );
    None
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (said, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{error}", output.status);
    said
}

// More than one thread, because the daemon answers here while the client is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_python_resolves_and_queries() {
    let Some(python) = python() else {
        eprintln!(
            "SKIPPED: TENANTD_TEST_WITHOUT_PYTHON is set, and there is no .venv with the Python client's packages"
        );
        return;
    };
    let articles = "CREATE TABLE articles (id bigint PRIMARY KEY); INSERT INTO articles SELECT generate_series(1, 7);";
    let migrations = vec![("V1__articles.sql".to_owned(), articles.to_owned())];
    let fleet = Fleet::new(Spec { migrations, ..Spec::default() }).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;

    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python");
    let generated = fleet.dir.join("generated");
    run(Command::new(&python).arg(example.join("generate.py")).arg(&generated));
    let client_config = fleet.dir.join("client.toml");
    let text = format!("endpoint = \"http://{}\"\nkey_file = {:?}\n", daemon.address, fleet.admin_key_file());
    std::fs::write(&client_config, text).unwrap();
    let client = |tenant: &str| {
        let mut command = Command::new(&python);
        command.arg(example.join("client.py")).arg(tenant).arg("--generated").arg(&generated);
        command.arg("--client-config").arg(&client_config);
        command
    };
    let said = run(&mut client("acme"));
    assert!(said.contains(&format!("acme is in the database {}_acme", fleet.naming.prefix())), "{said}");
    assert!(said.contains("every value came back as it was sent"), "{said}");
    assert!(said.lines().any(|line| line.split_whitespace().eq(["articles", "7"])), "{said}");
    assert!(said.contains(&format!("directly: 7 articles in {}_acme", fleet.naming.prefix())), "{said}");

    let refused = client("nobody").output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && error.contains("NOT_FOUND"), "{error}");
    fleet.stop(daemon).await;
}
