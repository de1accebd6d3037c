//! Claims: each operation is driven by one daemon, and whoever lost its claim writes nothing any more.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tenantd::catalog::{Beside, Error, NewRollout, NewTarget, OperationEnd, Release, Remains, TargetOutcome};
use tenantd::domain::migration::{RolloutState, TargetState};
use tenantd::domain::operation::{OperationId, OperationState, StepState};
use tenantd::domain::tenant::TenantRole;
use uuid::Uuid;

use super::{Bench, new_operation};

pub(super) const LEASE: Duration = Duration::from_mins(10);

#[tokio::test]
async fn many_claimants_share_the_work_and_none_gets_the_same() {
    let bench = Bench::new().await;
    let mut made = BTreeSet::new();
    for _ in 0..12 {
        made.insert(bench.operation(None).await.id);
    }
    let claimant = || async {
        let (instance, mut claimed) = (Uuid::new_v4(), Vec::new());
        while let Some(claim) = bench.catalog.operation_claim(instance, LEASE, &[], &[]).await.unwrap() {
            assert_eq!((claim.fence, claim.owner_before), (1, None));
            assert_eq!(claim.operation.state, OperationState::Running);
            claimed.push(claim.operation.id);
        }
        claimed
    };
    let claimed: Vec<OperationId> = join_all((0..6).map(|_| claimant())).await.concat();
    assert_eq!(claimed.len(), made.len());
    assert_eq!(claimed.into_iter().collect::<BTreeSet<_>>(), made);
    bench.finish().await;
}

#[tokio::test]
async fn the_oldest_operation_is_claimed_first_and_one_that_somebody_locks_is_passed_over() {
    let bench = Bench::new().await;
    let (first, second) = (bench.operation(None).await, bench.operation(None).await);
    bench.sql(&format!("BEGIN; SELECT FROM operations WHERE id = '{}' FOR UPDATE", first.id)).await;
    let claim = bench.catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().unwrap();
    assert_eq!(claim.operation.id, second.id);
    assert!(bench.catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().is_none());
    bench.sql("ROLLBACK").await;
    let claim = bench.catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().unwrap();
    assert_eq!(claim.operation.id, first.id);
    bench.finish().await;
}

#[tokio::test]
async fn a_lapsed_lease_goes_to_another_daemon_with_the_name_of_the_one_before() {
    let bench = Bench::new().await;
    let operation = bench.operation(None).await;
    let (before, after) = (Uuid::new_v4(), Uuid::new_v4());
    let claim = bench.catalog.operation_claim(before, LEASE, &[], &[]).await.unwrap().unwrap();
    assert!(bench.catalog.operation_owners_expired().await.unwrap().is_empty());
    assert!(bench.catalog.operation_claim(after, LEASE, &[], &[]).await.unwrap().is_none());

    bench.sql("UPDATE operations SET lease_until = now() - interval '1 second'").await;
    assert_eq!(bench.catalog.operation_owners_expired().await.unwrap(), [before]);
    let remains = [Remains { daemon: before, servers: vec!["elsewhere".to_owned()] }];
    assert!(bench.catalog.operation_claim(after, LEASE, &[], &remains).await.unwrap().is_none(), "it is the fleet's");
    let taken = bench.catalog.operation_claim(after, LEASE, &[], &[]).await.unwrap().unwrap();
    assert_eq!((taken.operation.id, taken.owner_before), (operation.id, Some(before)));
    assert!(taken.fence > claim.fence);
    assert!(!bench.catalog.operation_heartbeat(operation.id, claim.fence, LEASE).await.unwrap());
    assert!(bench.catalog.operation_heartbeat(operation.id, taken.fence, LEASE).await.unwrap());
    bench.finish().await;
}

#[tokio::test]
async fn a_released_claim_is_taken_at_once_and_needs_no_clearing_up() {
    let bench = Bench::new().await;
    let operation = bench.operation(None).await;
    let claim = bench.catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().unwrap();
    bench.catalog.operation_release(operation.id, claim.fence, &Release::default()).await.unwrap();
    let taken = bench.catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().unwrap();
    assert_eq!((taken.operation.id, taken.owner_before), (operation.id, None));
    assert!(taken.fence > claim.fence);
    let again = bench.catalog.operation_release(operation.id, claim.fence, &Release::default()).await;
    assert!(matches!(again, Err(Error::ClaimLost { .. })));
    bench.finish().await;
}

#[tokio::test]
async fn steps_remember_what_happened_to_them() {
    let bench = Bench::new().await;
    let id = bench.operation(None).await.id;
    let catalog = &bench.catalog;
    let fence = catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().unwrap().fence;
    catalog.step_begin(id, fence, 0).await.unwrap();
    catalog.step_begin(id, fence, 0).await.unwrap();
    catalog.step_end(id, fence, 0, json!({"database": "x"}), "made x").await.unwrap();
    catalog.step_begin(id, fence, 1).await.unwrap();
    catalog.step_fail(id, fence, 1, "no room").await.unwrap();
    let steps = catalog.operation_get(id).await.unwrap().steps;
    assert_eq!((steps[0].state, steps[0].attempts, steps[0].detail.as_str()), (StepState::Done, 2, "made x"));
    assert_eq!(steps[0].output, Some(json!({"database": "x"})));
    assert_eq!((steps[1].state, steps[1].detail.as_str()), (StepState::Failed, "no room"));

    catalog.step_undo_begin(id, fence, 0).await.unwrap();
    assert_eq!(catalog.operation_get(id).await.unwrap().steps[0].state, StepState::Undoing);
    catalog.step_undo_end(id, fence, 0).await.unwrap();
    let error = Some(json!({"reason": "NO_ROOM"}));
    let end = OperationEnd { state: OperationState::Failed, result: None, error: error.clone() };
    catalog.operation_end(id, fence, &end).await.unwrap();
    let ended = catalog.operation_get(id).await.unwrap();
    assert_eq!((ended.state, ended.error, ended.steps[0].state), (OperationState::Failed, error, StepState::Undone));
    assert!(ended.ended_at.is_some());
    // What has ended is nobody's: not even the last claim writes any more.
    assert!(matches!(catalog.step_begin(id, fence, 0).await, Err(Error::ClaimLost { .. })));
    assert!(catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().is_none());
    bench.finish().await;
}

#[tokio::test]
async fn with_an_old_fence_nothing_is_written() {
    let bench = Bench::new().await;
    let catalog = &bench.catalog;
    let tenant = bench.active("acme").await.id;
    let targets = [NewTarget { tenant, code: "acme".parse().unwrap(), state: TargetState::Pending, from_version: 1 }];
    let txn = catalog.begin().await.unwrap();
    let id = catalog.operation_create_in_txn(&txn, &new_operation(None)).await.unwrap().into_operation().id;
    let rollout = NewRollout {
        id,
        files: &[],
        directory_hash: "",
        target_version: 2,
        failures_max: 0,
        pause: false,
        targets: &targets,
    };
    catalog.rollout_create_in_txn(&txn, &rollout).await.unwrap();
    txn.commit().await.unwrap();
    let old = catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().unwrap().fence;
    bench.sql("UPDATE operations SET lease_until = now() - interval '1 second'").await;
    let new = catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().unwrap().fence;
    let before = (catalog.operation_get(id).await.unwrap(), catalog.targets_list(id).await.unwrap());

    let end = OperationEnd { state: OperationState::Succeeded, result: None, error: None };
    let refused = [
        catalog.step_begin(id, old, 0).await,
        catalog.step_attempts_reset(id, old, 0).await,
        catalog.step_end(id, old, 0, json!(1), "").await,
        catalog.step_fail(id, old, 0, "").await,
        catalog.step_undo_begin(id, old, 0).await,
        catalog.step_undo_end(id, old, 0).await,
        catalog.operation_end(id, old, &end).await,
        catalog.operation_release(id, old, &Release::default()).await,
        catalog.target_begin(id, old, tenant, Beside::Rollouts).await.map(drop),
        catalog.target_end(id, old, tenant, TargetState::Migrated, &TargetOutcome::default()).await,
        catalog.target_pause(id, old, tenant, &TenantRole::CALLERS).await,
        catalog.target_unpause(id, old, tenant).await,
        catalog.rollout_end(id, old, RolloutState::Succeeded, None).await,
        catalog.targets_skip(id, old, "").await.map(|_| ()),
        catalog.targets_give_up(id, old, "").await,
    ];
    for (number, outcome) in refused.into_iter().enumerate() {
        assert!(matches!(outcome, Err(Error::ClaimLost { id: lost }) if lost == id), "{number}: {outcome:?}");
    }
    let txn = catalog.begin().await.unwrap();
    assert!(matches!(catalog.operation_claim_check_in_txn(&txn, id, old).await, Err(Error::ClaimLost { .. })));
    catalog.operation_claim_check_in_txn(&txn, id, new).await.unwrap();
    drop(txn);
    let after = (catalog.operation_get(id).await.unwrap(), catalog.targets_list(id).await.unwrap());
    assert_eq!(after, before);
    assert_eq!(catalog.rollout_get(id).await.unwrap().state, RolloutState::Running);
    bench.finish().await;
}

#[tokio::test]
async fn what_a_daemon_had_waits_for_the_server_that_it_is_about_and_for_no_other() {
    let bench = Bench::new().await;
    let tenant = bench.active("acme").await;
    let operation = bench.operation(Some(tenant.id)).await;
    let (before, after) = (Uuid::new_v4(), Uuid::new_v4());
    bench.catalog.operation_claim(before, LEASE, &[], &[]).await.unwrap().unwrap();
    bench.sql("UPDATE operations SET lease_until = now() - interval '1 second'").await;
    let remains = |server: &str| [Remains { daemon: before, servers: vec![server.to_owned()] }];
    let nothing = bench.catalog.operation_claim(after, LEASE, &[], &remains(&tenant.server)).await.unwrap();
    assert_eq!(nothing, None);
    let taken = bench.catalog.operation_claim(after, LEASE, &[], &remains("elsewhere")).await.unwrap().unwrap();
    assert_eq!((taken.operation.id, taken.owner_before), (operation.id, Some(before)));
    bench.finish().await;
}
