//! The example in Rust, against a real daemon: its code is the one that people read.

use std::sync::Arc;

use uuid::Uuid;

use crate::harness::{Fleet, Spec, until};

#[expect(dead_code, reason = "its main is for people")]
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
