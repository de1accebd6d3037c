//! Lists a page at a time, rollouts with their targets, backups.

use std::time::Duration;

use serde_json::json;
use tenantd::catalog::{
    BackupFilter, Beside, Error, NewBackup, NewRollout, NewTarget, OperationFilter, Page, TargetBegun, TargetOutcome,
    TenantFilter, TenantRef,
};
use tenantd::domain::backup::{BackupKeys, BackupState, Manifest};
use tenantd::domain::lifecycle::TenantState;
use tenantd::domain::migration::{MigrationFile, RolloutState, TargetState, rollout_outcome};
use tenantd::domain::operation::OperationId;
use tenantd::domain::tenant::{DatabaseName, TenantId};
use uuid::Uuid;

use super::claims::LEASE;
use super::{Bench, new_operation};

fn page(size: i64, after: Option<String>) -> Page {
    Page { size, after }
}

#[tokio::test]
async fn tenants_come_by_code_and_each_once() {
    let bench = Bench::new().await;
    for code in ["delta", "alpha", "echo", "charlie", "bravo"] {
        bench.reserve(code).await;
    }
    let (mut after, mut codes, mut pages) = (None, Vec::new(), 0);
    loop {
        let paged = bench.catalog.tenant_list(&page(2, after), &TenantFilter::default()).await.unwrap();
        codes.extend(paged.rows.iter().map(|tenant| tenant.code.to_string()));
        pages += 1;
        after = paged.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((codes.join(" ").as_str(), pages), ("alpha bravo charlie delta echo", 3));
    let active = TenantFilter { state: Some(TenantState::Active), ..TenantFilter::default() };
    assert!(bench.catalog.tenant_list(&Page::default(), &active).await.unwrap().rows.is_empty());
    let foreign = bench.catalog.tenant_list(&page(2, Some("x".to_owned())), &TenantFilter::default()).await;
    assert!(matches!(foreign, Err(Error::PageToken(_))));
    bench.finish().await;
}

#[tokio::test]
async fn a_purged_tenant_gives_its_code_back_and_is_history() {
    let bench = Bench::new().await;
    let first = bench.reserve("acme").await;
    bench.sql("UPDATE tenants SET state = 'PURGED'").await;
    let second = bench.reserve("acme").await;
    let by_code = bench.catalog.tenant_get(&TenantRef::Code(first.code.clone())).await.unwrap();
    assert_eq!(by_code.id, second.id);
    assert_eq!(bench.catalog.tenant_get(&TenantRef::Id(first.id)).await.unwrap().state, TenantState::Purged);
    let listed = bench.catalog.tenant_list(&Page::default(), &TenantFilter::default()).await.unwrap().rows;
    assert_eq!(listed.iter().map(|tenant| tenant.id).collect::<Vec<_>>(), [second.id]);
    assert_eq!(bench.catalog.tenant_all().await.unwrap().len(), 1);
    bench.finish().await;
}

#[tokio::test]
async fn operations_come_newest_first_and_filtered() {
    let bench = Bench::new().await;
    let tenant = TenantId(Uuid::now_v7());
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(bench.operation((number == 2).then_some(tenant)).await.id);
    }
    ids.reverse();
    let first = bench.catalog.operation_list(&page(3, None), &OperationFilter::default()).await.unwrap();
    let second = bench.catalog.operation_list(&page(3, first.next), &OperationFilter::default()).await.unwrap();
    let listed: Vec<_> = first.rows.iter().chain(&second.rows).map(|operation| operation.id).collect();
    assert_eq!((listed.as_slice(), second.next), (ids.as_slice(), None));
    let filter = OperationFilter { tenant: Some(tenant), ..OperationFilter::default() };
    let of_tenant = bench.catalog.operation_list(&Page::default(), &filter).await.unwrap().rows;
    assert_eq!(of_tenant.iter().map(|operation| operation.id).collect::<Vec<_>>(), [ids[2]]);
    assert_eq!(bench.catalog.operations_active_count().await.unwrap(), 5);
    bench.finish().await;
}

#[tokio::test]
async fn a_rollout_keeps_its_texts_and_counts_its_targets() {
    let bench = Bench::new().await;
    let catalog = &bench.catalog;
    let charlie = bench.active("charlie").await.id;
    let target = |code: &str, state| NewTarget {
        tenant: if code == "charlie" { charlie } else { TenantId(Uuid::now_v7()) },
        code: code.parse().unwrap(),
        state,
        from_version: 1,
    };
    let targets = [
        target("delta", TargetState::Pending),
        target("alpha", TargetState::Pending),
        target("bravo", TargetState::Current),
        target("charlie", TargetState::Pending),
    ];
    let files = [MigrationFile { version: 2, name: "more".into(), sql: "SELECT 'é', E'\\n', $$;$$".into() }];
    let txn = catalog.begin().await.unwrap();
    let id = catalog.operation_create_in_txn(&txn, &new_operation(None)).await.unwrap().into_operation().id;
    let new = NewRollout {
        id,
        files: &files,
        directory_hash: "h",
        target_version: 2,
        failures_max: 0,
        pause: false,
        targets: &targets,
    };
    catalog.rollout_create_in_txn(&txn, &new).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(catalog.rollout_files(id).await.unwrap(), files);

    let fence = catalog.operation_claim(Uuid::new_v4(), LEASE, &[], &[]).await.unwrap().unwrap().fence;
    let next = |count| async move {
        let next = catalog.targets_next(id, count).await.unwrap();
        next.into_iter().map(|target| target.code.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(next(10).await, ["alpha", "charlie", "delta"]);
    let begun = catalog.target_begin(id, fence, charlie, Beside::Rollouts).await.unwrap();
    assert!(matches!(begun, TargetBegun::Begun(begun) if begun.0.state == TargetState::Running));
    assert_eq!(next(2).await, ["charlie", "alpha"], "what was begun is first");
    let failed = TargetOutcome { error: Some("no".into()), sqlstate: Some("42601".into()), ..TargetOutcome::default() };
    catalog.target_end(id, fence, targets[3].tenant, TargetState::Failed, &failed).await.unwrap();
    assert_eq!(catalog.targets_skip(id, fence, "halted").await.unwrap(), 2);
    assert_eq!(catalog.targets_skip(id, fence, "halted").await.unwrap(), 0);
    let counts = catalog.targets_count(id).await.unwrap();
    assert_eq!(
        counts.iter().map(|(state, count)| format!("{state} {count}")).collect::<Vec<_>>().join(", "),
        "CURRENT 1, FAILED 1, SKIPPED 2"
    );
    assert_eq!(rollout_outcome(&counts, 0), RolloutState::Halted);
    catalog.rollout_end(id, fence, RolloutState::Halted, Some("too many")).await.unwrap();
    let listed = catalog.rollout_list(&Page::default()).await.unwrap().rows;
    assert_eq!(listed, [catalog.rollout_get(id).await.unwrap()]);
    assert_eq!((listed[0].state, listed[0].error.as_deref()), (RolloutState::Halted, Some("too many")));
    let ended = catalog.targets_list(id).await.unwrap();
    assert_eq!((ended[2].code.as_str(), ended[2].sqlstate.as_deref()), ("charlie", Some("42601")));
    bench.finish().await;
}

fn manifest(backup: &NewBackup) -> Manifest {
    serde_json::from_value(json!({
        "format": 1, "backup_id": backup.id, "operation_id": backup.operation, "catalog_id": Uuid::nil(),
        "tenant_id": backup.tenant, "tenant_code": backup.tenant_code, "database": "x",
        "snapshot_time": "2026-11-21T01:02:03.000004Z", "server_version": "15.18", "server_version_num": 150_018,
        "dump_version": "15.18", "schema_version": 1, "schema_fingerprint": "f", "encoding": "UTF8",
        "collate": "C", "ctype": "C", "extensions": [],
        "tables": [{"schema": "public", "name": "t", "row_count": i64::MAX, "digest": "d"}],
        "sequences": [{"schema": "public", "name": "s", "low": null, "high": 3}],
        "archive": {"key": "k", "bytes": 1, "sha256": "00", "dump_bytes": 2}
    }))
    .unwrap()
}

#[tokio::test]
async fn a_backup_is_one_only_when_it_is_complete() {
    let bench = Bench::new().await;
    let catalog = &bench.catalog;
    let tenant = TenantId(Uuid::now_v7());
    let id = Uuid::now_v7();
    let operation = bench.operation(None).await.id;
    let claim = async |lease| catalog.operation_claim(Uuid::new_v4(), lease, &[], &[]).await.unwrap().unwrap().fence;
    let overtaken = claim(Duration::ZERO).await;
    let fence = claim(LEASE).await;
    let new =
        NewBackup { id, tenant, tenant_code: "acme".parse().unwrap(), operation, keys: BackupKeys::new(tenant, id) };
    catalog.backup_insert(&new).await.unwrap();
    catalog.backup_upload_set(id, Some("upload"), operation, fence).await.unwrap();
    let late = catalog.backup_upload_set(id, Some("another"), operation, overtaken).await;
    assert!(matches!(late, Err(Error::ClaimLost { .. })), "{late:?}");
    // A repeated step does not forget the upload.
    catalog.backup_insert(&new).await.unwrap();
    let running = catalog.backup_get(id).await.unwrap();
    assert_eq!((running.upload_id.as_deref(), running.state), (Some("upload"), BackupState::Running));
    assert!(catalog.backup_failed().await.unwrap().is_empty(), "it is being made");
    assert!(catalog.backup_list(&Page::default(), &BackupFilter::default()).await.unwrap().rows.is_empty());

    let manifest = manifest(&new);
    let txn = catalog.begin().await.unwrap();
    catalog.backup_complete_in_txn(&txn, id, &manifest).await.unwrap();
    txn.commit().await.unwrap();
    let of = |tenant| BackupFilter { tenant: Some(tenant), ..BackupFilter::default() };
    let complete = catalog.backup_list(&Page::default(), &of(tenant)).await.unwrap().rows;
    assert_eq!((complete[0].manifest.as_ref(), &complete[0].upload_id), (Some(&manifest), &None));
    assert!(catalog.backup_list(&Page::default(), &of(TenantId(Uuid::nil()))).await.unwrap().rows.is_empty());
    assert!(catalog.backup_verified_set(id).await.unwrap().verified_at.is_some());
    assert_eq!(catalog.backup_get(id).await.unwrap().keys, new.keys);
    catalog.backup_delete(id).await.unwrap();
    catalog.backup_delete(id).await.unwrap();
    assert!(matches!(catalog.backup_get(id).await, Err(Error::BackupUnknown { .. })));
    bench.finish().await;
}

#[tokio::test]
async fn retired_databases_are_remembered_until_they_are_dropped() {
    let bench = Bench::new().await;
    let (tenant, operation) = (TenantId(Uuid::now_v7()), OperationId(Uuid::now_v7()));
    let database = DatabaseName::new("tenantd_old_x").unwrap();
    let txn = bench.catalog.begin().await.unwrap();
    for _ in 0..2 {
        bench.catalog.retired_database_insert_in_txn(&txn, "main", &database, tenant, operation).await.unwrap();
    }
    txn.commit().await.unwrap();
    let retired = bench.catalog.retired_database_list().await.unwrap();
    assert_eq!(retired.len(), 1);
    assert_eq!((&retired[0].database, retired[0].tenant, retired[0].operation), (&database, tenant, operation));
    bench.catalog.retired_database_delete("main", &database).await.unwrap();
    assert!(bench.catalog.retired_database_list().await.unwrap().is_empty());
    bench.finish().await;
}
