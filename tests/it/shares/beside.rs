//! What one daemon does to a tenant's route counts for the pools of the others, also of one that stood still meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tenantd::proto::v1::OperationState;
use tonic::Code;
use uuid::Uuid;

use super::{spawn, spec};
use crate::harness::{Fleet, reason, until};

const COUNT: &str = "SELECT count(*) FROM things";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_one_daemon_replaces_is_served_by_no_other() {
    let fleet = Fleet::new(spec()).await;
    let a = spawn(&fleet, "a");
    a.client.tenant("acme").await;
    let b = spawn(&fleet, "b");
    let backup = a.client.backup("acme").await;
    a.client.sql("acme", "DELETE FROM things WHERE id > 5").await;
    let is_over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (client, is_over) = (b.client.clone(), Arc::clone(&is_over));
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    match client.execute("acme", COUNT).await {
                        Ok(rows) => seen.push(rows[0][0].clone()),
                        // What still runs when the databases are exchanged is cut off.
                        Err(refused) => {
                            assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
                        }
                    }
                }
                seen.dedup();
                seen
            })
        })
        .collect();
    let operation = a.client.restore_create(Uuid::new_v4(), &backup.backup_id, None).await.unwrap();
    a.client.succeeded(&operation).await;
    assert_eq!(b.client.sql("acme", COUNT).await, "20");
    is_over.store(true, Ordering::Relaxed);
    for reader in readers {
        assert_eq!(reader.await.unwrap(), ["5", "20"], "first the old rows, then the restored ones");
    }
    a.terminate().await;
    b.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_stood_still_while_a_tenant_was_suspended_or_restored_serves_nothing_of_before() {
    let fleet = Fleet::new(spec()).await;
    // When it wakes, it may find that its server has been silent.
    fleet.allow_log("the server takes no connections");
    let a = spawn(&fleet, "a");
    a.client.tenant("acme").await;
    let b = spawn(&fleet, "b");
    let backup = a.client.backup("acme").await;
    a.client.sql("acme", "DELETE FROM things WHERE id > 5").await;
    assert_eq!(b.client.sql("acme", COUNT).await, "5");
    b.pause();
    let operation = a.client.restore_create(Uuid::new_v4(), &backup.backup_id, None).await.unwrap();
    a.client.succeeded(&operation).await;
    b.resume();
    let first = until("the woken daemon answers", async || b.client.execute("acme", COUNT).await.ok()).await;
    assert_eq!(first, [["20"]]);
    // Its login is locked before it hears why.
    fleet.allow_log("the tenant cannot be reached");
    b.pause();
    let operation = a.client.tenant_suspend(Uuid::new_v4(), "acme", "unpaid").await.unwrap();
    assert_eq!(a.client.ended(&operation.operation_id).await.state(), OperationState::Succeeded);
    b.resume();
    for _ in 0..20 {
        b.client.execute("acme", COUNT).await.unwrap_err();
    }
    let refused = async || {
        let refused = b.client.execute("acme", COUNT).await.unwrap_err();
        (reason(&refused) == "TENANT_STATE").then_some(())
    };
    until("the woken daemon knows why", refused).await;
    a.terminate().await;
    b.terminate().await;
    fleet.finish().await;
}
