//! A daemon that stands still (SIGSTOP) while the store does not answer it, is overtaken, and wakes: the bucket knows no
//! fence, so what it then sends must harm nothing that its successor has made.

use tenantd::proto::v1::{OperationState, VerifyBackupRequest};
use uuid::Uuid;

use super::BLOBS;
use crate::harness::{Client, Fault, Faults, Fleet, Process, Spec, machine, result_text};

/// A daemon of this name, with its own way to the store.
fn spawn(fleet: &Fleet, name: &str, faults: Option<&Faults>) -> Process {
    let store = faults.map_or(machine().s3, |faults| faults.address);
    let endpoint = format!("\"http://{store}\"");
    fleet.configure(&[("", "instance", format!("{name:?}")), ("[store]", "endpoint", endpoint)]);
    fleet.spawn()
}

async fn fleet() -> Fleet {
    let spec = Spec::default().setting("[operations]", "lease", "\"2s\"");
    let fleet = Fleet::new(spec.setting("[[servers]]", "connections_max", "100")).await;
    woken_logs(&fleet);
    fleet
}

/// Whoever wakes finds that its claim and its sessions are gone, and has none for a moment.
pub fn woken_logs(fleet: &Fleet) {
    for part in [
        "the operation stands still until a daemon claims it again",
        "no operation can be claimed; trying again",
        "the auth database does not answer",
        "the shared database does not answer",
        "the shared database cannot be followed",
        "could not be given up",
        "the server takes no connections",
    ] {
        fleet.allow_log(part);
    }
}

async fn verified(client: &Client, backup_id: &str) {
    let request = VerifyBackupRequest { backup_id: backup_id.to_owned() };
    client.backups().verify_backup(request).await.unwrap();
}

/// Waits until a daemon that was asleep has looked at what it drove.
async fn awake(fleet: &Fleet) {
    crate::harness::until("the woken daemon lets go", || async {
        fleet.has_logged("the operation stands still until a daemon claims it again").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_upload() {
    let (fleet, faults) = (fleet().await, Faults::start(machine().s3).await);
    let a = spawn(&fleet, "a", Some(&faults));
    a.client.tenant("acme").await;
    let b = spawn(&fleet, "b", None);
    fleet.judge(&format!("{}_acme", fleet.naming.prefix())).await.batch_execute(BLOBS).await.unwrap();
    let before = fleet.inventory().await;
    b.pause();
    faults.add("PUT", "partNumber=1", 1, Fault::Wait);
    let operation = a.client.backup_create(Uuid::new_v4(), "acme").await.unwrap();
    faults.have_met(1).await;
    a.pause();
    b.resume();
    let ended = b.client.succeeded(&operation).await;
    let backup = result_text(&ended, "backup_id");
    faults.heal();
    a.resume();
    awake(&fleet).await;
    assert_eq!(a.client.ended(&operation.operation_id).await, ended);
    verified(&b.client, &backup).await;
    let left = fleet.inventory().await.since(&before);
    assert_eq!((left.lasting().get("Object"), left.lasting().get("Upload")), (Some(&2), None), "{left}");
    a.terminate().await;
    b.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_cleaning_up() {
    let (fleet, faults) = (fleet().await, Faults::start(machine().s3).await);
    let a = spawn(&fleet, "a", Some(&faults));
    a.client.tenant("acme").await;
    let b = spawn(&fleet, "b", None);
    b.pause();
    faults.add("PUT", "partNumber=1", 1, Fault::Hang);
    let operation = a.client.backup_create(Uuid::new_v4(), "acme").await.unwrap();
    faults.have_met(1).await;
    // Its successor under its name begins by giving up what it has sent, and the store keeps it waiting.
    a.kill();
    faults.heal();
    faults.add("DELETE", "uploadId=", 1, Fault::Wait);
    let a = spawn(&fleet, "a", Some(&faults));
    faults.have_met(1).await;
    a.pause();
    b.resume();
    let ended = b.client.ended(&operation.operation_id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:#?}");
    let backup = result_text(&ended, "backup_id");
    verified(&b.client, &backup).await;
    a.resume();
    faults.heal();
    awake(&fleet).await;
    verified(&b.client, &backup).await;
    a.terminate().await;
    b.terminate().await;
    fleet.finish().await;
}
