//! Migrating the fleet, from the request to the report: who is opened, who waits, and what is said of each tenant.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use tenantd::proto::v1::{
    CreateRolloutRequest, GetRolloutRequest, OperationState, ResumeTenantRequest, Rollout, RolloutState, RolloutTarget,
    RolloutTargetState, SuspendTenantRequest,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::{Client, Fleet, Point, Spec, Standstills, reason, until};

mod paused;

const SECOND: (&str, &str) = ("V2__colours.sql", "CREATE TABLE colours (name text);\n");

/// A rollout over these tenants, or all, from its creation to its end.
async fn migrate(client: &Client, tenants: &[&str], verify: bool) -> Rollout {
    let rollout = begin(client, tenants, verify).await.unwrap();
    client.rollout_ended(&rollout.rollout_id).await
}

async fn begin(client: &Client, tenants: &[&str], verify: bool) -> Result<Rollout, Status> {
    let request = CreateRolloutRequest {
        request_id: Uuid::new_v4().to_string(),
        tenants: tenants.iter().map(|&tenant| tenant.to_owned()).collect(),
        verify,
        ..CreateRolloutRequest::default()
    };
    Ok(client.migrations().create_rollout(request).await?.into_inner().rollout.expect("a rollout"))
}

/// The rollout's only target.
fn only(rollout: &Rollout) -> &RolloutTarget {
    assert_eq!(rollout.targets.len(), 1, "{rollout:#?}");
    &rollout.targets[0]
}

fn summary(target: &RolloutTarget) -> (RolloutTargetState, i64, i64, i32) {
    (target.state(), target.from_version, target.to_version, target.applied)
}

async fn target_state(client: &Client, rollout: &Rollout) -> RolloutTargetState {
    let request = GetRolloutRequest { rollout_id: rollout.rollout_id.clone(), ..GetRolloutRequest::default() };
    let rollout = client.migrations().get_rollout(request).await.unwrap().into_inner().rollout.unwrap();
    only(&rollout).state()
}

async fn suspend(client: &Client, request: Uuid, tenant: &str) -> Result<String, Status> {
    let request = SuspendTenantRequest {
        request_id: request.to_string(),
        tenant: tenant.to_owned(),
        reason: "a test".to_owned(),
        ..SuspendTenantRequest::default()
    };
    Ok(client.tenants().suspend_tenant(request).await?.into_inner().operation.unwrap().operation_id)
}

/// The operation that a refusal names.
fn holder(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().and_then(|info| info.metadata.get("operation_id").cloned()).unwrap_or_default()
}

/// Holds the table against whoever would change it.
async fn hold(fleet: &Fleet, code: &str) -> tokio_postgres::Client {
    let holder = fleet.judge(&format!("{}_{code}", fleet.naming.prefix())).await;
    holder.batch_execute("BEGIN; LOCK TABLE things IN ACCESS SHARE MODE").await.unwrap();
    holder
}

/// The backend that waits for a lock in the tenant's database.
async fn waiter(fleet: &Fleet, code: &str) -> i32 {
    let judge = fleet.judge(&format!("{}_{code}", fleet.naming.prefix())).await;
    let query = "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND NOT l.granted LIMIT 1";
    until("a session waits for a lock", || async { judge.query_opt(query, &[]).await.unwrap().map(|row| row.get(0)) })
        .await
}

#[tokio::test]
async fn many_rollouts_at_the_same_moment_are_all_taken() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let begun = join_all((0..24).map(|_| begin(&daemon.client, &[], false))).await;
    for rollout in begun {
        let rollout = rollout.unwrap_or_else(|refused| panic!("{refused:?}"));
        let ended = daemon.client.rollout_ended(&rollout.rollout_id).await;
        assert_eq!(ended.state(), RolloutState::Succeeded);
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_rollouts_targets_come_in_pages() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    for code in ["alpha", "beta", "gamma"] {
        daemon.client.tenant(code).await;
    }
    let begun = daemon.client.rollout_create(Uuid::new_v4(), 0).await.unwrap();
    let all = daemon.client.rollout_ended(&begun.rollout_id).await;
    let codes = |rollout: &Rollout| rollout.targets.iter().map(|target| target.code.clone()).collect::<Vec<_>>();
    assert_eq!(codes(&all), ["alpha", "beta", "gamma"]);
    let page = async |page_size, page_token: &str| {
        let page_token = page_token.to_owned();
        let request = GetRolloutRequest { rollout_id: begun.rollout_id.clone(), page_size, page_token };
        let answer = daemon.client.migrations().get_rollout(request).await?.into_inner();
        let rollout = answer.rollout.unwrap();
        assert_eq!((rollout.state(), &rollout.counts), (RolloutState::Succeeded, &all.counts));
        Ok::<_, Status>((codes(&rollout), answer.next_page_token))
    };
    let (first, next) = page(2, "").await.unwrap();
    assert_eq!(first, ["alpha", "beta"]);
    assert_eq!(page(2, &next).await.unwrap(), (vec!["gamma".to_owned()], String::new()));
    assert_eq!(page(-1, "").await.unwrap_err().code(), Code::InvalidArgument);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_request_that_is_repeated_has_its_answer_without_the_directory_and_an_empty_one_is_refused() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let request = Uuid::new_v4();
    let first = client.rollout_create(request, 0).await.unwrap();
    client.rollout_ended(&first.rollout_id).await;
    let (directory, elsewhere) = (fleet.dir.join("migrations"), fleet.dir.join("elsewhere"));
    std::fs::rename(&directory, &elsewhere).unwrap();
    assert_eq!(client.rollout_create(request, 0).await.unwrap().rollout_id, first.rollout_id);
    let refused = client.rollout_create(Uuid::new_v4(), 0).await.unwrap_err();
    assert_eq!(reason(&refused), "MIGRATION_DIRECTORY_INVALID");

    std::fs::create_dir(&directory).unwrap();
    for validate_only in [true, false] {
        let request = CreateRolloutRequest { validate_only, ..CreateRolloutRequest::default() };
        let refused = client.migrations().create_rollout(request).await.unwrap_err();
        assert_eq!(reason(&refused), "MIGRATION_DIRECTORY_INVALID", "{refused:?}");
        assert!(refused.message().contains("has no migrations, but tenants have"), "{refused:?}");
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn files_that_were_edited_removed_or_put_below_are_noticed_and_a_fleet_in_order_is_not_opened() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    fleet.migration("V3__third.sql", "CREATE TABLE third (a int);\n");
    assert_eq!(summary(only(&migrate(client, &[], false).await)), (RolloutTargetState::Migrated, 1, 3, 1));
    let judge = fleet.judge("postgres").await;
    let login = format!("{}_acme__m", fleet.naming.prefix());
    judge.batch_execute(&format!("ALTER ROLE {login} NOLOGIN")).await.unwrap();
    assert_eq!(only(&migrate(client, &[], false).await).state(), RolloutTargetState::Current);
    judge.batch_execute(&format!("ALTER ROLE {login} LOGIN")).await.unwrap();

    let path = |name: &str| fleet.dir.join("migrations").join(name);
    let names: Vec<_> =
        std::fs::read_dir(path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let first = names.iter().find(|name| name.starts_with("V1__")).unwrap().as_str();
    let text = std::fs::read_to_string(path(first)).unwrap();
    let noticed = async |what: &str| {
        for _ in 0..2 {
            let rollout = migrate(client, &[], false).await;
            assert_eq!(rollout.state(), RolloutState::Halted, "{what}: {rollout:#?}");
            assert_eq!(summary(only(&rollout)), (RolloutTargetState::Failed, 3, 3, 0), "{what}: {rollout:#?}");
            assert!(only(&rollout).error.contains(what), "{what}: {rollout:#?}");
        }
    };
    fleet.migration(first, &format!("{text}-- edited\n"));
    noticed(&format!("{first} differs from what was applied")).await;
    fleet.migration_remove(first);
    noticed("the directory has no such file").await;
    fleet.migration(first, &text);
    fleet.migration(SECOND.0, SECOND.1);
    noticed("V2__colours.sql was not applied to this tenant, which is at version 3 already").await;
    // A tenant that has got it is another one, and in order.
    client.tenant("globex").await;
    assert_eq!(only(&migrate(client, &["globex"], false).await).state(), RolloutTargetState::Current);
    fleet.migration_remove(SECOND.0);
    assert_eq!(only(&migrate(client, &["acme"], false).await).state(), RolloutTargetState::Current);

    // What is not known yet is looked at once.
    let epoch = client.tenant_get("acme").await.unwrap().epoch;
    let shared = fleet.judge(fleet.naming.shared_database().as_str()).await;
    shared.batch_execute("UPDATE tenants SET schema_files_hash = NULL WHERE code = 'acme'").await.unwrap();
    let looked = migrate(client, &["acme"], false).await;
    assert!(only(&looked).start_time.is_some(), "{looked:#?}");
    assert_eq!(summary(only(&looked)), (RolloutTargetState::Current, 3, 3, 0));
    assert!(only(&migrate(client, &["acme"], false).await).start_time.is_none());
    assert_eq!(client.tenant_get("acme").await.unwrap().epoch, epoch);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_tenant_that_is_migrated_is_neither_suspended_nor_restored_and_may_be_backed_up() {
    let fleet = Fleet::new(Spec::default().setting("[migrator]", "lock_timeout", "\"50s\"")).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let backup = client.backup("acme").await;
    let held = hold(&fleet, "acme").await;
    fleet.migration("V2__colours.sql", "ALTER TABLE things ADD COLUMN colour text;\n");
    let rollout = begin(client, &[], false).await.unwrap();
    waiter(&fleet, "acme").await;
    let refusals = [
        suspend(client, Uuid::new_v4(), "acme").await.unwrap_err(),
        client.restore_create(Uuid::new_v4(), &backup.backup_id, None).await.map(drop).unwrap_err(),
    ];
    for refused in refusals {
        assert_eq!((refused.code(), reason(&refused)), (Code::Aborted, "OPERATION_CONFLICT".to_owned()), "{refused:?}");
        assert_eq!(holder(&refused), rollout.rollout_id, "{refused:?}");
    }
    let beside = client.backup_create(Uuid::new_v4(), "acme").await.unwrap();
    held.batch_execute("ROLLBACK").await.unwrap();
    let rollout = client.rollout_ended(&rollout.rollout_id).await;
    assert_eq!(summary(only(&rollout)), (RolloutTargetState::Migrated, 1, 2, 1), "{rollout:#?}");
    client.succeeded(&beside).await;
    drop(held);
    let judge = fleet.judge("postgres").await;
    let others = format!(
        "SELECT FROM pg_stat_activity WHERE datname = '{}_acme' AND usename = session_user LIMIT 1",
        fleet.naming.prefix()
    );
    until("the test's own sessions are gone", || async {
        judge.query_opt(&others, &[]).await.unwrap().is_none().then_some(())
    })
    .await;
    let suspension = suspend(client, Uuid::new_v4(), "acme").await.unwrap();
    assert_eq!(client.ended(&suspension).await.state(), OperationState::Succeeded);
    let request = ResumeTenantRequest { tenant: "acme".to_owned(), ..ResumeTenantRequest::default() };
    let resumption = client.tenants().resume_tenant(request).await.unwrap().into_inner().operation.unwrap();
    client.succeeded(&resumption).await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_tenant_that_another_operation_has_is_waited_for_and_not_when_that_is_stuck() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    fleet.migration(SECOND.0, SECOND.1);
    let standstills = Standstills::install(&fleet).await;
    let (request, armed) = standstills.arm_step("end_sessions").await;
    let suspension = suspend(client, request, "acme").await.unwrap();
    standstills.reached(armed).await;
    let rollout = begin(client, &[], false).await.unwrap();
    until("the rollout's step runs", || async {
        let operation = client.operations();
        let request = tenantd::proto::v1::GetOperationRequest { operation_id: rollout.rollout_id.clone() };
        let found = { operation }.get_operation(request).await.unwrap().into_inner().operation?;
        (found.steps[0].attempts > 0).then_some(())
    })
    .await;
    assert_eq!(target_state(client, &rollout).await, RolloutTargetState::Pending);
    standstills.pass(armed).await;
    assert_eq!(client.ended(&suspension).await.state(), OperationState::Succeeded);
    let rollout = client.rollout_ended(&rollout.rollout_id).await;
    assert_eq!(summary(only(&rollout)), (RolloutTargetState::Migrated, 1, 2, 1), "{rollout:#?}");

    fleet.migration("V3__third.sql", "CREATE TABLE third (a int);\n");
    let shared = fleet.judge(fleet.naming.shared_database().as_str()).await;
    let stick = format!("UPDATE operations SET state = 'STUCK' WHERE id = '{suspension}'");
    shared.batch_execute(&stick).await.unwrap();
    let rollout = migrate(client, &[], false).await;
    assert_eq!(summary(only(&rollout)), (RolloutTargetState::Failed, 2, 2, 0), "{rollout:#?}");
    for part in [suspension.as_str(), "suspend_tenant", "stuck", "operation retry", "operation abandon"] {
        assert!(only(&rollout).error.contains(part), "{rollout:#?}");
    }
    shared.batch_execute(&stick.replace("STUCK", "SUCCEEDED")).await.unwrap();
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_tenant_that_fails_half_way_is_reported_where_it_stands() {
    let fleet = Fleet::new(Spec::default().setting("[migrator]", "lock_timeout", "\"50s\"")).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    fleet.migration(SECOND.0, SECOND.1);
    fleet.migration("V3__third.sql", "CREATE TABLE third (a int);\n");
    fleet.migration("V4__bad.sql", "SELECT nothing;\n");
    let rollout = migrate(client, &[], false).await;
    assert_eq!(summary(only(&rollout)), (RolloutTargetState::Failed, 1, 3, 2), "{rollout:#?}");
    assert_eq!(client.tenant_get("acme").await.unwrap().schema_version, 3);

    // When the tenant cannot be asked afterwards, the reason and the version are told all the same.
    fleet.migration("V4__fourth.sql", "CREATE TABLE fourth (a int);\n");
    fleet.migration_remove("V4__bad.sql");
    fleet.migration("V5__bad.sql", "ALTER TABLE things ADD COLUMN a int;\nSELECT nothing;\n");
    let held = hold(&fleet, "acme").await;
    let rollout = begin(client, &[], false).await.unwrap();
    waiter(&fleet, "acme").await;
    let login = format!("{}_acme__m", fleet.naming.prefix());
    held.batch_execute(&format!("ROLLBACK; ALTER ROLE {login} NOLOGIN")).await.unwrap();
    let rollout = client.rollout_ended(&rollout.rollout_id).await;
    assert_eq!(summary(only(&rollout)), (RolloutTargetState::Failed, 3, 4, 1), "{rollout:#?}");
    assert!(only(&rollout).error.starts_with("V5__bad.sql:2: "), "{rollout:#?}");
    assert_eq!(client.tenant_get("acme").await.unwrap().schema_version, 4);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_history_below_the_catalogs_version_is_refused_and_the_version_stays() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    fleet.migration(SECOND.0, SECOND.1);
    migrate(client, &[], false).await;
    let judge = fleet.judge(&format!("{}_acme", fleet.naming.prefix())).await;
    judge.batch_execute("DROP TABLE colours; DELETE FROM refinery_schema_history WHERE version = 2").await.unwrap();
    fleet.migration("V3__third.sql", "CREATE TABLE third (a int);\n");
    for loss in ["SELECT", "DROP TABLE refinery_schema_history"] {
        judge.batch_execute(loss).await.unwrap();
        let rollout = migrate(client, &[], true).await;
        assert_eq!(summary(only(&rollout)), (RolloutTargetState::Failed, 2, 2, 0), "{rollout:#?}");
        assert!(only(&rollout).error.contains("and version 2 was applied to this tenant before"), "{rollout:#?}");
        let left = judge.query_one("SELECT coalesce(to_regclass('colours'), to_regclass('third')) IS NULL", &[]).await;
        assert!(left.unwrap().get::<_, bool>(0));
        assert_eq!(client.tenant_get("acme").await.unwrap().schema_version, 2);
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_tenant_that_is_being_created_is_migrated_once_it_is_there_and_skipped_when_it_is_not() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let standstills = Standstills::install(&fleet).await;
    let mut created = BTreeMap::new();
    for code in ["made", "undone"] {
        let (request, armed) = standstills.arm_step("administrator").await;
        let operation = client.tenant_create(request, code).await.unwrap();
        standstills.reached(armed).await;
        created.insert(code, (operation, armed));
    }
    fleet.migration(SECOND.0, SECOND.1);
    let shared = fleet.judge(fleet.naming.shared_database().as_str()).await;
    shared
        .batch_execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'the test refuses this'; END $$;
            CREATE TRIGGER refuse BEFORE UPDATE ON tenants FOR EACH ROW
                WHEN (NEW.code = 'undone' AND NEW.state = 'ACTIVE') EXECUTE FUNCTION refuse()",
        )
        .await
        .unwrap();
    let all = begin(client, &[], false).await.unwrap();
    let one = begin(client, &["made"], false).await.unwrap();
    until("the tenant that is there is migrated", || async {
        (client.tenant_get("acme").await.unwrap().schema_version == 2).then_some(())
    })
    .await;
    assert_eq!(target_state(client, &one).await, RolloutTargetState::Pending);
    for (_, armed) in created.values() {
        standstills.pass(*armed).await;
    }
    client.succeeded(&created["made"].0).await;
    assert_eq!(client.ended(&created["undone"].0.operation_id).await.state(), OperationState::Failed);
    let all = client.rollout_ended(&all.rollout_id).await;
    let one = client.rollout_ended(&one.rollout_id).await;
    assert_eq!((all.state(), one.state()), (RolloutState::Succeeded, RolloutState::Succeeded), "{all:#?}\n{one:#?}");
    assert_eq!(client.tenant_get("made").await.unwrap().schema_version, 2);
    let states: BTreeMap<_, _> = all.targets.iter().map(|target| (target.code.as_str(), target)).collect();
    assert_eq!(summary(states["acme"]), (RolloutTargetState::Migrated, 1, 2, 1));
    // Of the two rollouts over it, one was first.
    assert_eq!((states["made"].to_version, only(&one).to_version), (2, 2));
    assert_eq!(states["made"].applied + only(&one).applied, 1, "{all:#?}\n{one:#?}");
    assert_eq!(states["undone"].state(), RolloutTargetState::Skipped);
    assert!(states["undone"].error.contains("creation was undone"), "{all:#?}");
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_begun_before_a_kill_is_driven_to_its_end_though_the_budget_is_used_up() {
    let spec = Spec::default().setting("[operations]", "lease", "\"3s\"");
    let fleet = Fleet::new(spec.setting("[migrator]", "lock_timeout", "\"50s\"")).await;
    fleet.allow_log("the operation stands still until a daemon claims it again");
    let daemon = fleet.spawn();
    for code in ["t1", "t2", "t3"] {
        daemon.client.tenant(code).await;
    }
    let held = [hold(&fleet, "t2").await, hold(&fleet, "t3").await];
    fleet.migration(
        SECOND.0,
        "DO $$ BEGIN IF current_database() LIKE '%t1' THEN RAISE EXCEPTION 'not here'; END IF; END $$;
        ALTER TABLE things ADD COLUMN colour text;\n",
    );
    let rollout = daemon.client.rollout_create(Uuid::new_v4(), 0).await.unwrap();
    let before = [waiter(&fleet, "t2").await, waiter(&fleet, "t3").await];
    until("the budget is used up", || async {
        let request = GetRolloutRequest { rollout_id: rollout.rollout_id.clone(), ..GetRolloutRequest::default() };
        let rollout = daemon.client.migrations().get_rollout(request).await.unwrap().into_inner().rollout.unwrap();
        (rollout.counts.unwrap().failed == 1).then_some(())
    })
    .await;
    daemon.kill();
    // As if it had been begun as often as it may.
    let shared = fleet.judge(fleet.naming.shared_database().as_str()).await;
    let often = format!(
        "UPDATE operation_steps SET attempts = 4 WHERE operation_id = '{}' AND ordinal = 0",
        rollout.rollout_id
    );
    shared.batch_execute(&often).await.unwrap();
    let daemon = fleet.spawn();
    for (code, before) in ["t2", "t3"].into_iter().zip(before) {
        until("the successor has taken over", || async { (waiter(&fleet, code).await != before).then_some(()) }).await;
    }
    for held in held {
        held.batch_execute("ROLLBACK").await.unwrap();
    }
    let ended = daemon.client.rollout_ended(&rollout.rollout_id).await;
    assert_eq!(ended.state(), RolloutState::Halted, "{ended:#?}");
    let states: Vec<_> = ended.targets.iter().map(RolloutTarget::state).collect();
    let (failed, migrated) = (RolloutTargetState::Failed, RolloutTargetState::Migrated);
    assert_eq!(states, [failed, migrated, migrated], "{ended:#?}");
    for code in ["t2", "t3"] {
        assert_eq!(daemon.client.tenant_get(code).await.unwrap().schema_version, 2);
    }
    let operation = daemon.client.ended(&rollout.rollout_id).await;
    assert_eq!(operation.steps[0].attempts, 1, "whoever gets on is not given up: {operation:#?}");
    daemon.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_migrated_before_a_kill_is_reported_as_migrated() {
    let fleet = Fleet::new(Spec::default().setting("[operations]", "lease", "\"3s\"")).await;
    fleet.allow_log("the operation stands still until a daemon claims it again");
    let daemon = fleet.spawn();
    daemon.client.tenant("acme").await;
    fleet.migration(SECOND.0, SECOND.1);
    fleet.migration("V3__third.sql", "CREATE TABLE third (a int);\n");
    let standstills = Standstills::install(&fleet).await;
    let request = Uuid::new_v4();
    let point = Point { place: "rollout_targets", name: "acme".to_owned(), state: "MIGRATED" };
    let armed = standstills.arm(request, &point).await;
    let rollout = daemon.client.rollout_create(request, 0).await.unwrap();
    let backend = standstills.reached(armed).await;
    daemon.kill();
    standstills.cut(armed, backend).await;
    let daemon = fleet.spawn();
    let rollout = daemon.client.rollout_ended(&rollout.rollout_id).await;
    assert_eq!(summary(only(&rollout)), (RolloutTargetState::Migrated, 1, 3, 2), "{rollout:#?}");
    assert_eq!(rollout.counts.unwrap().migrated, 1);
    daemon.terminate().await;
    fleet.finish().await;
}
