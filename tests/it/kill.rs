//! kill -9 at every persisted step of every operation: before the step acts, after it acted but before its result is
//! stored, and after that. The daemon stands still in PostgreSQL (a trigger waits for a lock that the test holds), is
//! killed, and another takes over. Each operation must then succeed with exactly what an undisturbed one leaves, or
//! fail with nothing left. The steps are those that the operations themselves persist, so none can be forgotten.

mod hung;
mod matrix;
mod middle;
mod scenario;

pub use middle::BLOBS;
use scenario::Kind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creating_a_tenant_survives_kill_9_at_each_step() {
    matrix::run(Kind::Create).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undoing_a_creation_survives_kill_9_at_each_step() {
    matrix::run(Kind::CreateRefused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrating_the_fleet_survives_kill_9_at_each_step() {
    matrix::run(Kind::Migrate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrating_a_paused_tenant_survives_kill_9_at_each_step() {
    matrix::run(Kind::MigratePaused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_survives_kill_9_at_each_step() {
    matrix::run(Kind::Backup).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undoing_a_backup_survives_kill_9_at_each_step() {
    matrix::run(Kind::BackupRefused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_in_place_survives_kill_9_at_each_step() {
    matrix::run(Kind::RestoreInPlace).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undoing_a_restore_in_place_survives_kill_9_at_each_step() {
    matrix::run(Kind::RestoreInPlaceRefused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_as_a_new_tenant_survives_kill_9_at_each_step() {
    matrix::run(Kind::RestoreAsNew).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undoing_a_restore_as_a_new_tenant_survives_kill_9_at_each_step() {
    matrix::run(Kind::RestoreAsNewRefused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_bears_that_its_daemon_stands_still_at_each_step_and_wakes_too_late() {
    matrix::run_hung(Kind::Backup).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_in_place_bears_that_its_daemon_stands_still_at_each_step_and_wakes_too_late() {
    matrix::run_hung(Kind::RestoreInPlace).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_bears_that_its_daemon_stands_still_at_each_step_and_wakes_too_late() {
    matrix::run_hung(Kind::Migrate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undoing_a_creation_bears_that_its_daemon_stands_still_at_each_step_and_wakes_too_late() {
    matrix::run_hung(Kind::CreateRefused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_survives_kill_9_at_each_step() {
    matrix::run(Kind::Suspend).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_bears_that_its_daemon_stands_still_at_each_step_and_wakes_too_late() {
    matrix::run_hung(Kind::Suspend).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumption_bears_that_its_daemon_stands_still_at_each_step_and_wakes_too_late() {
    matrix::run_hung(Kind::Resume).await;
}
