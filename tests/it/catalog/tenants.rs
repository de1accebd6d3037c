//! Changes of tenants: the table of states, the gate, revisions and their announcements, and transactions that end in
//! the middle.

use std::time::Duration;

use futures_util::future::join_all;
use tenantd::catalog::{CHANNEL, Error, NewLicense, NewTenant, TenantRef, TenantSchema};
use tenantd::config::Config;
use tenantd::domain::lifecycle::{TenantState, Transition};
use tenantd::domain::operation::OperationId;
use tenantd::domain::route::Gate;
use tenantd::postgres::{ConnectRequest, Lane, Server, SessionOptions};
use tenantd::shutdown::Tasks;
use uuid::Uuid;

use super::{Bench, new_tenant};

#[tokio::test]
async fn states_change_along_the_table_only() {
    let bench = Bench::new().await;
    let acme = bench.reserve("acme").await;
    assert_eq!((acme.state, acme.revision), (TenantState::Provisioning, 1));
    let txn = bench.catalog.begin().await.unwrap();
    let active = bench.catalog.tenant_transition_in_txn(&txn, acme.id, Transition::Activate).await.unwrap();
    assert_eq!((active.state, active.revision, active.epoch), (TenantState::Active, 2, acme.epoch));
    txn.commit().await.unwrap();
    let txn = bench.catalog.begin().await.unwrap();
    let refusal = bench.catalog.tenant_transition_in_txn(&txn, acme.id, Transition::Resume).await.unwrap_err();
    assert_eq!(refusal.to_string(), "a tenant in state ACTIVE cannot be resumed; that needs one of SUSPENDED");
    // A refusal by the domain is no failed statement: the transaction goes on.
    let suspended = bench.catalog.tenant_transition_in_txn(&txn, acme.id, Transition::Suspend).await.unwrap();
    let suspended_for =
        bench.catalog.tenant_suspend_reason_set_in_txn(&txn, suspended.id, Some("unpaid")).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(suspended_for.suspend_reason.as_deref(), Some("unpaid"));
    assert_eq!(bench.catalog.tenant_get(&TenantRef::Id(acme.id)).await.unwrap(), suspended_for);
    bench.finish().await;
}

#[tokio::test]
async fn a_pause_belongs_to_its_operation() {
    let bench = Bench::new().await;
    let acme = bench.reserve("acme").await.id;
    let (owner, other) = (OperationId(Uuid::now_v7()), OperationId(Uuid::now_v7()));
    let set = |gate, by| {
        let catalog = bench.catalog.clone();
        async move {
            let txn = catalog.begin().await.unwrap();
            let tenant = catalog.gate_set_in_txn(&txn, acme, gate, by).await?;
            txn.commit().await.unwrap();
            Ok::<_, Error>(tenant.gate)
        }
    };
    let paused = Gate::Paused { operation: owner.0 };
    assert_eq!(set(paused, owner).await.unwrap(), paused);
    assert_eq!(set(paused, owner).await.unwrap(), paused);
    for gate in [Gate::Open, Gate::Paused { operation: other.0 }, Gate::Closed { operation: None }] {
        let refusal = set(gate, other).await.unwrap_err();
        assert!(matches!(refusal, Error::GateHeld { operation, .. } if operation == owner.0), "{refusal}");
    }
    assert_eq!(set(Gate::Open, owner).await.unwrap(), Gate::Open);
    // A suspension closes, and another operation opens again.
    let closed = Gate::Closed { operation: Some(owner.0) };
    assert_eq!(set(closed, owner).await.unwrap(), closed);
    assert_eq!(set(Gate::Open, other).await.unwrap(), Gate::Open);
    bench.finish().await;
}

fn schema(version: i64, fingerprint: &str) -> TenantSchema<'_> {
    TenantSchema { version, fingerprint: Some(fingerprint), files_hash: None }
}

#[tokio::test]
async fn the_epoch_grows_when_connections_must_be_dropped_and_only_then() {
    let bench = Bench::new().await;
    let acme = bench.reserve("acme").await;
    let migrated = bench.catalog.tenant_schema_set(acme.id, &schema(7, "abc")).await.unwrap();
    assert_eq!((migrated.schema_version, migrated.epoch), (7, acme.epoch + 1));
    let same = bench.catalog.tenant_schema_set(acme.id, &schema(7, "abc")).await.unwrap();
    assert_eq!(same, migrated);
    // Which files were applied changes no connection.
    let known = TenantSchema { files_hash: Some("f"), ..schema(7, "abc") };
    let known = bench.catalog.tenant_schema_set(acme.id, &known).await.unwrap();
    assert_eq!((known.schema_files_hash.as_deref(), known.epoch), (Some("f"), acme.epoch + 1));
    let txn = bench.catalog.begin().await.unwrap();
    let restored = bench.catalog.tenant_generation_set_in_txn(&txn, acme.id, 2).await.unwrap();
    assert_eq!((restored.generation, restored.epoch), (2, acme.epoch + 2));
    let rotated = bench.catalog.tenant_epoch_bump_in_txn(&txn, acme.id).await.unwrap();
    assert_eq!(rotated.epoch, acme.epoch + 3);
    txn.commit().await.unwrap();
    bench.finish().await;
}

#[tokio::test]
async fn revisions_have_no_gaps_and_are_announced_when_they_are_visible() {
    let bench = Bench::new().await;
    let mut listener = listener(&bench.fleet.config(), bench.fleet.naming.shared_database().as_str()).await;
    let acme = bench.reserve("acme").await.id;
    // Many at once, some of which are rolled back.
    let change = |number: i64| {
        let catalog = bench.catalog.clone();
        async move {
            let txn = catalog.begin().await.unwrap();
            catalog.tenant_generation_set_in_txn(&txn, acme, number).await.unwrap();
            if number % 3 == 0 { drop(txn) } else { txn.commit().await.unwrap() }
        }
    };
    join_all((1..=9).map(change)).await;
    assert_eq!(bench.catalog.revision().await.unwrap(), 7);
    let mut announced = Vec::new();
    for _ in 0..7 {
        announced.push(listener.recv().await.unwrap().payload().parse::<i64>().unwrap());
    }
    assert_eq!(announced, [1, 2, 3, 4, 5, 6, 7]);
    bench.finish().await;
}

async fn listener(config: &Config, database: &str) -> tokio::sync::mpsc::Receiver<tokio_postgres::Notification> {
    let server = Server::new(&config.servers[0], &Tasks::new(tracing::Span::none()), Uuid::new_v4()).unwrap();
    let request = ConnectRequest {
        lane: Lane::Catalog,
        login: server.daemon(),
        database: &tenantd::domain::tenant::DatabaseName::new(database).unwrap(),
        application_name: "listener",
        options: SessionOptions::default(),
        deadline: tokio::time::Instant::now() + Duration::from_mins(1),
    };
    let mut connection = server.connect(&request).await.unwrap();
    connection.batch_execute(&format!("LISTEN {CHANNEL}")).await.unwrap();
    let notifications = connection.notifications().unwrap();
    // Kept until the process ends, as the daemon keeps its own.
    std::mem::forget(connection);
    notifications
}

#[tokio::test]
async fn a_reservation_is_undone_whole_and_twice_is_fine() {
    let bench = Bench::new().await;
    let txn = bench.catalog.begin().await.unwrap();
    let acme = NewTenant { hosts: vec!["acme.example.com".to_owned()], ..new_tenant("acme") };
    let id = bench.catalog.tenant_reserve_in_txn(&txn, &acme).await.unwrap().id;
    let license = NewLicense {
        id: Uuid::now_v7(),
        license_key: "key".to_owned(),
        tier: "standard".to_owned(),
        users_max: 5,
        sites_max: 1,
        valid_from: time::macros::date!(2026 - 11 - 21),
        valid_until: None,
    };
    for _ in 0..2 {
        bench.catalog.license_put_in_txn(&txn, id, &license).await.unwrap();
        bench.catalog.site_primary_put_in_txn(&txn, id, Uuid::now_v7(), "Main").await.unwrap();
        bench.catalog.tenant_secret_put_in_txn(&txn, id, "password", 1, b"sealed").await.unwrap();
        bench.catalog.tenant_data_key_put_in_txn(&txn, id, b"wrapped").await.unwrap();
    }
    txn.commit().await.unwrap();
    for _ in 0..2 {
        let txn = bench.catalog.begin().await.unwrap();
        bench.catalog.tenant_delete_in_txn(&txn, id).await.unwrap();
        txn.commit().await.unwrap();
    }
    let tables = ["tenants", "hosts", "licenses", "sites", "tenant_secrets", "tenant_data_keys"];
    for table in tables {
        let row = bench.judge.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 0, "{table}");
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_cancelled_change_leaves_no_lock_and_no_dirty_session() {
    let bench = Bench::new().await;
    let acme = bench.reserve("acme").await;
    bench.sql("BEGIN; SELECT FROM tenants FOR UPDATE").await;
    // More than the pool has sessions: none of them may be lost.
    for _ in 0..12 {
        let never = schema(9, "never");
        let change = bench.catalog.tenant_schema_set(acme.id, &never);
        tokio::select! {
            outcome = change => panic!("it did not wait: {outcome:?}"),
            () = bench.waiting_session() => {}
        }
        // The abandoned one is cancelled, so that the next to wait is another.
        bench.no_waiting_session().await;
    }
    bench.sql("ROLLBACK").await;
    let changed = bench.catalog.tenant_schema_set(acme.id, &schema(3, "now")).await.unwrap();
    assert_eq!((changed.schema_version, changed.revision), (3, acme.revision + 1));

    // A transaction that is dropped between its statements gives its session back, clean.
    for _ in 0..12 {
        let txn = bench.catalog.begin().await.unwrap();
        bench.catalog.tenant_epoch_bump_in_txn(&txn, acme.id).await.unwrap();
    }
    assert_eq!(bench.catalog.tenant_get(&TenantRef::Id(acme.id)).await.unwrap(), changed);
    bench.finish().await;
}

#[tokio::test]
async fn a_transaction_with_a_failed_statement_is_never_called_committed() {
    let bench = Bench::new().await;
    let acme = bench.reserve("acme").await;
    let txn = bench.catalog.begin().await.unwrap();
    let license = |id| NewLicense {
        id,
        license_key: "the same".to_owned(),
        tier: "standard".to_owned(),
        users_max: 5,
        sites_max: 1,
        valid_from: time::macros::date!(2026 - 11 - 21),
        valid_until: None,
    };
    bench.catalog.license_put_in_txn(&txn, acme.id, &license(Uuid::now_v7())).await.unwrap();
    let refusal = bench.catalog.license_put_in_txn(&txn, acme.id, &license(Uuid::now_v7())).await.unwrap_err();
    assert!(refusal.to_string().contains("licenses_license_key_key"), "{refusal}");
    assert!(txn.commit().await.is_err());
    bench.finish().await;
}
