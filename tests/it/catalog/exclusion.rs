//! Migrations and other operations on one tenant exclude each other, whoever comes first.

use tenantd::catalog::{
    Beside, Created, Error, NewOperation, NewRollout, NewTarget, PausedTarget, TargetBegun, TargetOutcome, TenantRef,
    TenantSchema,
};
use tenantd::domain::lifecycle::TenantState;
use tenantd::domain::migration::TargetState;
use tenantd::domain::operation::{OperationId, OperationKind};
use tenantd::domain::route::Gate;
use tenantd::domain::tenant::{TenantId, TenantRole};
use uuid::Uuid;

use super::claims::LEASE;
use super::{Bench, new_operation};

/// A claimed rollout over one tenant.
struct Rollout {
    id: OperationId,
    fence: i64,
    tenant: TenantId,
}

impl Rollout {
    async fn new(bench: &Bench, tenant: TenantId) -> Self {
        Self::make(bench, tenant, false).await
    }

    async fn pausing(bench: &Bench, tenant: TenantId) -> Self {
        Self::make(bench, tenant, true).await
    }

    async fn make(bench: &Bench, tenant: TenantId, pause: bool) -> Self {
        let catalog = &bench.catalog;
        let targets =
            [NewTarget { tenant, code: "acme".parse().unwrap(), state: TargetState::Pending, from_version: 1 }];
        let txn = catalog.begin().await.unwrap();
        let operation = NewOperation { kind: OperationKind::MigrateFleet, ..new_operation(None) };
        let id = catalog.operation_create_in_txn(&txn, &operation).await.unwrap().into_operation().id;
        let rollout = NewRollout {
            id,
            files: &[],
            directory_hash: "",
            target_version: 2,
            failures_max: 0,
            pause,
            targets: &targets,
        };
        catalog.rollout_create_in_txn(&txn, &rollout).await.unwrap();
        txn.commit().await.unwrap();
        let fence = catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().unwrap().fence;
        Self { id, fence, tenant }
    }

    async fn begin(&self, bench: &Bench, beside: Beside) -> TargetBegun {
        bench.catalog.target_begin(self.id, self.fence, self.tenant, beside).await.unwrap()
    }
}

async fn create(bench: &Bench, kind: OperationKind, tenant: TenantId) -> Result<Created, Error> {
    let txn = bench.catalog.begin().await.unwrap();
    let created =
        bench.catalog.operation_create_in_txn(&txn, &NewOperation { kind, ..new_operation(Some(tenant)) }).await?;
    txn.commit().await.unwrap();
    Ok(created)
}

#[tokio::test]
async fn a_tenant_that_is_migrated_is_refused_to_what_would_break_it() {
    let bench = Bench::new().await;
    let acme = bench.active("acme").await.id;
    bench.catalog.tenant_schema_set(acme, &TenantSchema { version: 3, ..TenantSchema::default() }).await.unwrap();
    let rollout = Rollout::new(&bench, acme).await;
    let TargetBegun::Begun(begun) = rollout.begin(&bench, Beside::Rollouts).await else { panic!("it is free") };
    assert_eq!((begun.0.state, begun.0.from_version, begun.1.id), (TargetState::Running, 3, acme));
    for kind in [OperationKind::SuspendTenant, OperationKind::ResumeTenant, OperationKind::RestoreInPlace] {
        let refused = create(&bench, kind, acme).await.unwrap_err();
        let expected = (rollout.id, OperationKind::MigrateFleet);
        assert!(matches!(refused, Error::OperationConflict { id, kind } if (id, kind) == expected), "{refused:?}");
    }
    // A daemon that takes over keeps the version that it has begun at.
    bench.catalog.tenant_schema_set(acme, &TenantSchema { version: 4, ..TenantSchema::default() }).await.unwrap();
    let TargetBegun::Begun(again) = rollout.begin(&bench, Beside::Rollouts).await else { panic!("it is free") };
    assert_eq!((again.0.from_version, again.1.schema_version), (3, 4));
    let outcome = TargetOutcome::default();
    bench.catalog.target_end(rollout.id, rollout.fence, acme, TargetState::Migrated, &outcome).await.unwrap();
    create(&bench, OperationKind::SuspendTenant, acme).await.unwrap();
    bench.finish().await;
}

#[tokio::test]
async fn a_tenant_that_another_operation_has_is_not_begun() {
    let bench = Bench::new().await;
    let acme = bench.active("acme").await.id;
    let rollout = Rollout::new(&bench, acme).await;
    let suspension = create(&bench, OperationKind::SuspendTenant, acme).await.unwrap().into_operation().id;
    for beside in [Beside::Nothing, Beside::Rollouts, Beside::All] {
        assert!(matches!(rollout.begin(&bench, beside).await, TargetBegun::Held(holder) if holder.id == suspension));
    }
    assert_eq!(bench.catalog.targets_list(rollout.id).await.unwrap()[0].state, TargetState::Pending);
    bench.sql("UPDATE operations SET state = 'SUCCEEDED' WHERE tenant_id IS NOT NULL").await;
    create(&bench, OperationKind::Backup, acme).await.unwrap();
    assert!(matches!(rollout.begin(&bench, Beside::Rollouts).await, TargetBegun::Held(_)));
    assert!(matches!(rollout.begin(&bench, Beside::All).await, TargetBegun::Begun(_)));
    bench.finish().await;
}

#[tokio::test]
async fn a_rollout_that_pauses_goes_beside_nothing() {
    let bench = Bench::new().await;
    let acme = bench.active("acme").await.id;
    let (pausing, other, plain) =
        (Rollout::pausing(&bench, acme).await, Rollout::pausing(&bench, acme).await, Rollout::new(&bench, acme).await);
    let backup = create(&bench, OperationKind::Backup, acme).await.unwrap().into_operation().id;
    let held_by = |begun: TargetBegun| match begun {
        TargetBegun::Held(holder) => Some(holder.id),
        _ => None,
    };
    assert_eq!(held_by(pausing.begin(&bench, Beside::Nothing).await), Some(backup));
    bench.sql("UPDATE operations SET state = 'SUCCEEDED' WHERE tenant_id IS NOT NULL").await;
    // Others that migrate the tenant, whoever was first.
    assert!(matches!(plain.begin(&bench, Beside::Rollouts).await, TargetBegun::Begun(_)));
    assert_eq!(held_by(pausing.begin(&bench, Beside::Nothing).await), Some(plain.id));
    let outcome = TargetOutcome::default();
    bench.catalog.target_end(plain.id, plain.fence, acme, TargetState::Failed, &outcome).await.unwrap();
    assert!(matches!(pausing.begin(&bench, Beside::Nothing).await, TargetBegun::Begun(_)));
    assert!(matches!(pausing.begin(&bench, Beside::Nothing).await, TargetBegun::Begun(_)), "not in its own way");
    assert_eq!(held_by(other.begin(&bench, Beside::Nothing).await), Some(pausing.id));
    for beside in [Beside::Rollouts, Beside::All] {
        assert_eq!(held_by(plain.begin(&bench, beside).await), Some(pausing.id));
    }
    let refused = create(&bench, OperationKind::Backup, acme).await.unwrap_err();
    assert!(matches!(refused, Error::OperationConflict { id, .. } if id == pausing.id), "{refused:?}");

    // Stuck with a tenant that it has paused: nobody else begins there.
    bench.catalog.target_pause(pausing.id, pausing.fence, acme, &TenantRole::CALLERS).await.unwrap();
    bench.sql(&format!("UPDATE operations SET state = 'STUCK' WHERE id = '{}'", pausing.id)).await;
    for (rollout, beside) in [(&other, Beside::Nothing), (&plain, Beside::Rollouts), (&plain, Beside::All)] {
        assert_eq!(held_by(rollout.begin(&bench, beside).await), Some(pausing.id));
    }
    for kind in [
        OperationKind::SuspendTenant,
        OperationKind::ResumeTenant,
        OperationKind::RestoreInPlace,
        OperationKind::Backup,
    ] {
        let refused = create(&bench, kind, acme).await.unwrap_err();
        assert!(matches!(refused, Error::OperationConflict { id, .. } if id == pausing.id), "{refused:?}");
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_pause_keeps_the_logins_that_were_noted_first_and_opens_no_other_gate() {
    let bench = Bench::new().await;
    let acme = bench.active("acme").await.id;
    let rollout = Rollout::pausing(&bench, acme).await;
    let (catalog, id, fence) = (&bench.catalog, rollout.id, rollout.fence);
    let logins = [TenantRole::Router, TenantRole::DirectB];
    for noted in [&logins[..], &[]] {
        catalog.target_pause(id, fence, acme, noted).await.unwrap();
    }
    let paused = PausedTarget { tenant: acme, state: TargetState::Pending, logins: logins.to_vec() };
    assert_eq!(catalog.target_paused(id, acme).await.unwrap(), Some(paused.clone()));
    assert_eq!(catalog.targets_paused(id).await.unwrap(), [paused]);
    catalog.target_unpause(id, fence, acme).await.unwrap();
    assert_eq!(catalog.tenant_get(&TenantRef::Id(acme)).await.unwrap().gate, Gate::Open);
    assert_eq!(
        (catalog.target_paused(id, acme).await.unwrap(), catalog.targets_paused(id).await.unwrap()),
        (None, vec![])
    );
    // The next pause notes anew.
    catalog.target_pause(id, fence, acme, &[]).await.unwrap();
    assert_eq!(catalog.target_paused(id, acme).await.unwrap().unwrap().logins, []);
    catalog.target_unpause(id, fence, acme).await.unwrap();
    bench.sql("UPDATE tenants SET gate = 'CLOSED'").await;
    catalog.target_unpause(id, fence, acme).await.unwrap();
    assert_eq!(catalog.tenant_get(&TenantRef::Id(acme)).await.unwrap().gate, Gate::Closed { operation: None });
    bench.finish().await;
}

#[tokio::test]
async fn of_two_that_meet_one_waits_and_finds_the_other() {
    let bench = Bench::new().await;
    let acme = bench.active("acme").await.id;
    let rollout = Rollout::new(&bench, acme).await;
    let txn = bench.catalog.begin().await.unwrap();
    let suspension = NewOperation { kind: OperationKind::SuspendTenant, ..new_operation(Some(acme)) };
    bench.catalog.operation_create_in_txn(&txn, &suspension).await.unwrap();
    let commit = async {
        bench.waiting_session().await;
        txn.commit().await.unwrap();
    };
    let (begun, ()) = tokio::join!(rollout.begin(&bench, Beside::Rollouts), commit);
    assert!(matches!(begun, TargetBegun::Held(holder) if holder.id == suspension.id));
    bench.finish().await;
}

#[tokio::test]
async fn without_a_database_to_migrate_nothing_begins() {
    let bench = Bench::new().await;
    let (new, nobody) = (bench.reserve("acme").await.id, TenantId(Uuid::now_v7()));
    let rollout = Rollout::new(&bench, new).await;
    assert_eq!(rollout.begin(&bench, Beside::Rollouts).await, TargetBegun::Unfit(TenantState::Provisioning));
    let gone = Rollout { tenant: nobody, ..rollout };
    assert_eq!(gone.begin(&bench, Beside::Rollouts).await, TargetBegun::Gone);
    bench.finish().await;
}

#[tokio::test]
async fn a_step_that_gets_on_counts_as_begun_once() {
    let bench = Bench::new().await;
    let id = bench.operation(None).await.id;
    let fence = bench.catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().unwrap().fence;
    for _ in 0..4 {
        bench.catalog.step_begin(id, fence, 0).await.unwrap();
    }
    bench.catalog.step_attempts_reset(id, fence, 0).await.unwrap();
    assert_eq!(bench.catalog.operation_get(id).await.unwrap().steps[0].attempts, 1);
    bench.finish().await;
}

#[tokio::test]
async fn a_daemon_that_hangs_in_a_transaction_does_not_keep_the_others_from_theirs() {
    let bench = Bench::new().await;
    let tenant = bench.reserve("acme").await;
    let hung = bench.catalog.begin().await.unwrap();
    bench.catalog.tenant_epoch_bump_in_txn(&hung, tenant.id).await.unwrap();
    // It waits for the counter of revisions, for as long as a statement may take at most.
    let other = bench.reserve("other").await;
    let late = bench.catalog.tenant_epoch_bump_in_txn(&hung, tenant.id).await.unwrap_err();
    assert!(late.is_transient(), "{late:?}");
    assert!(other.revision > tenant.revision);
    bench.finish().await;
}
