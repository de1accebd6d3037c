//! How many backups are made, and how many verified, at the same moment: no more than the configuration says, and those
//! that wait hold up nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};

use tenantd::proto::v1::{GetOperationRequest, OperationState, VerifyBackupRequest};
use uuid::Uuid;

use crate::harness::{Fleet, Proxy, Spec, machine, until};

#[tokio::test]
async fn a_backup_beyond_the_maximum_waits_and_holds_up_nobody() {
    let proxy = Proxy::start(machine().s3).await;
    let spec = Spec { store: Some(proxy.address), ..Spec::default() }.setting("[backup]", "concurrency_max", "1");
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("one").await;
    let two = client.tenant("two").await;
    proxy.stall_after(1);
    let first = client.backup_create(Uuid::new_v4(), "one").await.unwrap();
    proxy.stalled().await;
    let second = client.backup_create(Uuid::new_v4(), "two").await.unwrap();
    // Operations are begun in their order, so the second backup had its turn before this one.
    client.tenant("three").await;
    let request = GetOperationRequest { operation_id: second.operation_id.clone() };
    let waiting = client.operations().get_operation(request).await.unwrap().into_inner().operation.unwrap();
    assert_eq!(waiting.state(), OperationState::Pending);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE '%backup%'";
    let judge = fleet.judge("postgres").await;
    assert_eq!(judge.query_one(sessions, &[&two.database]).await.unwrap().get::<_, i64>(0), 0);
    proxy.flow();
    for backup in [first, second] {
        client.succeeded(&backup).await;
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_verification_beyond_the_maximum_waits_without_an_archive() {
    let fleet = Fleet::new(Spec::default().setting("[backup]", "verify_concurrency_max", "1")).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("one").await;
    // 8 MB that do not shrink, so that each verification takes a moment.
    let noise = "CREATE TABLE noise AS SELECT sha512(n::text::bytea) || sha512((-n)::text::bytea) AS bytes
        FROM generate_series(1, 60000) n";
    client.execute("one", noise).await.unwrap();
    let backup = client.backup("one").await;
    let verify = || {
        let (client, request) = (client.clone(), VerifyBackupRequest { backup_id: backup.backup_id.clone() });
        tokio::spawn(async move { client.backups().verify_backup(request).await })
    };
    let spool_dir = fleet.config().spool_dir;
    let most = AtomicUsize::new(0);
    let verifying: Vec<_> = (0..4).map(|_| verify()).collect();
    until("every backup is verified", || async {
        most.fetch_max(std::fs::read_dir(&spool_dir).unwrap().count(), Ordering::Relaxed);
        verifying.iter().all(tokio::task::JoinHandle::is_finished).then_some(())
    })
    .await;
    for verified in verifying {
        assert!(!verified.await.unwrap().unwrap().into_inner().checks.is_empty());
    }
    assert_eq!(most.into_inner(), 1, "archives in the spool at the same moment");
    fleet.stop(daemon).await;
}
