//! The example in Rust, against a real daemon: its code is the one that people read.

use std::process::Command;
use std::sync::Arc;

use uuid::Uuid;

use crate::harness::{Fleet, Spec, until};

#[expect(dead_code, reason = "its main runs as the program that people start")]
#[path = "../../examples/rust/connect.rs"]
mod connect;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_in_rust_connects_queries_and_drops_its_connection_when_the_epoch_grows() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let key = std::fs::read_to_string(fleet.admin_key_file()).unwrap();
    let tenants = connect::Tenants::new(&format!("http://{}", daemon.address), key.trim()).unwrap();
    let follows = tokio::spawn(tenants.clone().follow());

    let client = tenants.connection("acme").await.unwrap();
    let database: String = client.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
    assert_eq!(database, format!("{}_acme", fleet.naming.prefix()));
    assert!(Arc::ptr_eq(&client, &tenants.connection("acme").await.unwrap()), "the connection is kept");
    assert_eq!(tenants.number("acme", "SELECT count(*) FROM things").await.unwrap(), 20);

    fleet.migration("V2__more.sql", "ALTER TABLE things ADD COLUMN more text;");
    let rollout = daemon.client.rollout_create(Uuid::new_v4(), 0).await.unwrap();
    daemon.client.rollout_ended(&rollout.rollout_id).await;
    until("the connection of the old epoch is dropped", async || {
        let now = tenants.connection("acme").await.unwrap();
        (!Arc::ptr_eq(&client, &now)).then_some(())
    })
    .await;
    let now = tenants.connection("acme").await.unwrap();
    now.query("SELECT more FROM things", &[]).await.unwrap();
    follows.abort();
    drop((client, now, tenants));
    fleet.stop(daemon).await;
}

// More than one thread, because the daemon answers here while the program is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_in_rust_runs_as_the_readme_starts_it() {
    // `cargo test` builds it beside the tests, and `cargo test --test it` does not.
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(std::path::Path::parent).unwrap().join("examples/connect");
    assert!(
        program.is_file(),
        "there is no {}: `cargo test --test` builds no examples; build it with `cargo build --locked --example connect`, \
         or run all tests with `make test`",
        program.display()
    );
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let run = |arguments: &[&str]| Command::new(&program).args(arguments).output().unwrap();
    let (endpoint, key_file) = (format!("http://{}", daemon.address), fleet.admin_key_file());
    let key_file = key_file.to_str().unwrap();

    let shown = run(&[&endpoint, key_file, "acme"]);
    let (said, error) = (String::from_utf8(shown.stdout).unwrap(), String::from_utf8_lossy(&shown.stderr));
    assert!(shown.status.success(), "{said}{error}");
    let relations = daemon.client.sql("acme", "SELECT count(*) FROM pg_class").await;
    let expected = format!("acme, directly: {relations} relations\nacme, through the daemon: {relations} relations\n");
    assert_eq!(said, expected);

    let unknown = run(&[&endpoint, key_file, "nobody"]);
    let error = String::from_utf8_lossy(&unknown.stderr);
    assert!(!unknown.status.success() && error.contains("nobody"), "{error}");
    let nothing = run(&[]);
    let error = String::from_utf8_lossy(&nothing.stderr);
    assert!(!nothing.status.success() && error.contains("usage: connect"), "{error}");
    fleet.stop(daemon).await;
}
