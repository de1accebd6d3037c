//! kill -9 in the middle of a step's work: while parts travel to the bucket, while a migration waits for a lock, while
//! `pg_restore` does. What the dead daemon began must neither act on beside its successor nor lie around.

use std::collections::BTreeMap;

use tenantd::domain::tenant::database_under_construction;
use tenantd::proto::v1::{OperationState, RolloutState, VerifyBackupRequest};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::{Fleet, Proxy, Spec, Standstills, machine, result_text, until};

/// About 24 MB in the dump, and half of it in the bucket: random digits do not compress further.
pub const BLOBS: &str = "CREATE TABLE blobs AS
    SELECT n, (SELECT string_agg(md5(random()::text || n || g), '') FROM generate_series(1, 256) AS g) AS noise
    FROM generate_series(1, 3000) AS n";

/// A fleet in which a successor takes over soon.
async fn short_lease(spec: Spec) -> Fleet {
    let fleet = Fleet::new(spec.setting("[operations]", "lease", "\"3s\"")).await;
    // On a machine that is busy enough a heartbeat comes late, and the operation goes on under another claim.
    fleet.allow_log("the operation stands still until a daemon claims it again");
    fleet
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_the_upload() {
    let proxy = Proxy::start(machine().s3).await;
    let fleet = short_lease(Spec { store: Some(proxy.address), ..Spec::default() }).await;
    let daemon = fleet.spawn();
    daemon.client.tenant("acme").await;
    let judge = fleet.judge(&format!("{}_acme", fleet.naming.prefix())).await;
    judge.batch_execute(BLOBS).await.unwrap();
    let before = fleet.inventory().await;

    proxy.stall_after(7 << 20);
    let operation = daemon.client.backup_create(Uuid::new_v4(), "acme").await.unwrap();
    proxy.stalled().await;
    let half = fleet.inventory().await.since(&before);
    assert_eq!(half.lasting().get("Upload"), Some(&1), "an unfinished upload lies in the bucket:\n{half}");
    daemon.kill();
    proxy.flow();

    let daemon = fleet.spawn();
    let ended = daemon.client.succeeded(&operation).await;
    let backup_id = result_text(&ended, "backup_id");
    daemon.client.backups().verify_backup(VerifyBackupRequest { backup_id }).await.unwrap();
    let left = fleet.inventory().await.since(&before);
    assert_eq!(left.lasting(), counts(&[("Object", 2), ("shared.backups", 1)]), "{left}");
    daemon.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_a_migration() {
    let fleet = short_lease(Spec::default().setting("[migrator]", "lock_timeout", "\"50s\"")).await;
    let daemon = fleet.spawn();
    daemon.client.tenant("acme").await;
    let database = format!("{}_acme", fleet.naming.prefix());
    let (holder, judge) = (fleet.judge(&database).await, fleet.judge(&database).await);
    holder.batch_execute("BEGIN; LOCK TABLE things IN ACCESS SHARE MODE").await.unwrap();
    fleet.migration(
        "V2__colours.sql",
        "CREATE TABLE colours (name text);\nALTER TABLE things ADD COLUMN colour text;\n",
    );

    let rollout = daemon.client.rollout_create(Uuid::new_v4(), 0).await.unwrap();
    let backend = waiter(&judge).await;
    daemon.kill();
    let daemon = fleet.spawn();
    // PostgreSQL does not look whether a client that waits for a lock is alive; the successor must.
    until("the dead daemon's session is ended", || async { (waiter(&judge).await != backend).then_some(()) }).await;
    holder.batch_execute("ROLLBACK").await.unwrap();

    let rollout = daemon.client.rollout_ended(&rollout.rollout_id).await;
    assert_eq!(rollout.state(), RolloutState::Succeeded, "{rollout:#?}");
    assert_eq!(daemon.client.sql("acme", "SELECT count(colour) FROM things").await, "0");
    assert_eq!(daemon.client.tenant_get("acme").await.unwrap().schema_version, 2);
    daemon.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_pg_restore() {
    let fleet = short_lease(Spec::default()).await;
    let daemon = fleet.spawn();
    daemon.client.tenant("acme").await;
    let backup = daemon.client.backup("acme").await;
    let standstills = Standstills::install(&fleet).await;
    let before = fleet.inventory().await;

    let (request, armed) = standstills.arm_step("contents").await;
    let operation = daemon.client.restore_create(request, &backup.backup_id, Some("copy")).await.unwrap();
    standstills.reached(armed).await;
    let database = database_under_construction(operation.operation_id.parse().unwrap());
    let (holder, judge) = (fleet.judge(database.as_str()).await, fleet.judge(database.as_str()).await);
    holder.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_class IN EXCLUSIVE MODE").await.unwrap();
    standstills.pass(armed).await;
    waiter(&judge).await;
    let restore = daemon.child("pg_restore").await;
    daemon.kill();
    until("pg_restore dies with its daemon", || async {
        let running =
            std::fs::read_to_string(format!("/proc/{restore}/comm")).is_ok_and(|name| name.contains("pg_restore"));
        (!running).then_some(())
    })
    .await;
    drop((holder, judge));

    let daemon = fleet.spawn();
    let ended = daemon.client.ended(&operation.operation_id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:#?}");
    assert_eq!(daemon.client.sql("copy", "SELECT count(*) FROM things").await, "20");
    let left = fleet.inventory().await.since(&before).lasting();
    assert_eq!((left.get("Database"), left.get("Role"), left.get("SpoolFile")), (Some(&1), Some(&6), None), "{left:?}");
    daemon.terminate().await;
    fleet.finish().await;
}

/// A client's backend that waits for a lock in the judge's database (autovacuum may wait there as well).
async fn waiter(judge: &Client) -> i32 {
    let query = "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND NOT l.granted LIMIT 1";
    until("a session waits for a lock", || async { judge.query_opt(query, &[]).await.unwrap().map(|row| row.get(0)) })
        .await
}

fn counts(pairs: &[(&str, i64)]) -> BTreeMap<String, i64> {
    pairs.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect()
}
