//! Restores by a whole daemon: what a tenant's own code, or an administrator, has done to its roles and databases
//! neither keeps a good backup from being restored nor is lost by it.

use tenantd::domain::tenant::{DatabaseName, TenantRole, database_under_construction};
use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::transact_response::Outcome;
use tenantd::proto::v1::{
    CommitTransaction, GetBackupRequest, ListPoolsRequest, Operation, OperationState, RestoreBackupRequest,
    ResumeTenantRequest, RolloutState, StreamQueryRequest, SuspendTenantRequest, VerifyBackupRequest,
    restore_backup_request,
};
use tonic::Code;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::{Client, Fleet, Spec, Standstills, reason, result_text, until};

async fn restore(client: &Client, backup: &str) -> Operation {
    let operation = client.restore_create(Uuid::new_v4(), backup, None).await.unwrap();
    client.ended(&operation.operation_id).await
}

fn succeeded(operation: &Operation) {
    assert_eq!(operation.state(), OperationState::Succeeded, "{operation:#?}");
}

fn role(fleet: &Fleet, role: TenantRole) -> String {
    fleet.naming.tenant_role(&"acme".parse().unwrap(), role).unwrap().quoted()
}

fn database(fleet: &Fleet) -> DatabaseName {
    fleet.naming.tenant_database(&"acme".parse().unwrap()).unwrap()
}

/// Changes the login that runs it for good; the daemon restores and migrates as that login.
const TRAP: &str = "
CREATE FUNCTION trap(a int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF session_user::text LIKE '%\\_\\_m' THEN
        PERFORM set_config('role', 'none', false);
        EXECUTE format('ALTER ROLE %I PASSWORD ''hacked''', session_user);
        EXECUTE format('ALTER ROLE %I SET statement_timeout = 1', session_user);
        EXECUTE format('ALTER ROLE %I SET local_preload_libraries = ''no such library''', session_user);
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET role = none', session_user, current_database());
    END IF;
    RETURN true;
END $$;
CREATE TABLE trapped (a int CHECK (public.trap(a)));
INSERT INTO trapped VALUES (1);";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_code_in_a_backup_does_to_the_daemons_login_does_not_last() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let clean = client.backup("acme").await;
    let (inside, owner) = (fleet.judge(database(&fleet).as_str()).await, role(&fleet, TenantRole::Owner));
    inside.batch_execute(&format!("SET ROLE {owner}; {TRAP}")).await.unwrap();
    drop(inside);
    let trapped = client.backup("acme").await;
    // It fails or not; what it leaves is the point.
    restore(client, &trapped.backup_id).await;
    succeeded(&restore(client, &clean.backup_id).await);
    assert_eq!(client.sql("acme", "SELECT count(*) FROM things").await, "20");

    let judge = fleet.judge("postgres").await;
    let shut_out = async |role: &str| {
        let script = format!(
            "ALTER ROLE {role} PASSWORD 'hacked'; ALTER ROLE {role} SET local_preload_libraries = 'no such library';
            ALTER ROLE {role} IN DATABASE {} SET default_transaction_read_only = on",
            database(&fleet).quoted()
        );
        judge.batch_execute(&script).await.unwrap();
    };
    let migrator = role(&fleet, TenantRole::Migrator);
    let migrate = async |file: &str, text: &str| {
        fleet.migration(file, text);
        let rollout = client.rollout_create(Uuid::new_v4(), 0).await.unwrap();
        let rollout = client.rollout_ended(&rollout.rollout_id).await;
        assert_eq!(rollout.state(), RolloutState::Succeeded, "{rollout:#?}");
    };
    shut_out(&migrator).await;
    migrate("V2__colours.sql", "CREATE TABLE colours (name text);\n").await;
    // A login that still gets in, and can do nothing.
    judge.batch_execute(&format!("ALTER ROLE {migrator} SET statement_timeout = 1")).await.unwrap();
    migrate("V3__more.sql", "CREATE TABLE more AS SELECT pg_sleep(0.1)::text AS slept;\n").await;

    shut_out(&migrator).await;
    shut_out(&role(&fleet, TenantRole::Router)).await;
    let (tenant, reason) = ("acme".to_owned(), "locked out".to_owned());
    let request = SuspendTenantRequest { tenant, reason, ..SuspendTenantRequest::default() };
    let begun = client.tenants().suspend_tenant(request).await.unwrap().into_inner();
    client.succeeded(&begun.operation.unwrap()).await;
    let request = ResumeTenantRequest { tenant: "acme".to_owned(), ..ResumeTenantRequest::default() };
    let begun = client.tenants().resume_tenant(request).await.unwrap().into_inner();
    client.succeeded(&begun.operation.unwrap()).await;
    client.sql("acme", "INSERT INTO colours VALUES ('red')").await;
    let settings = "SELECT count(*) FROM pg_db_role_setting JOIN pg_roles ON pg_roles.oid = setrole
        WHERE setconfig::text ~ 'preload|read_only|timeout' AND starts_with(rolname, $1)";
    let left: i64 = judge.query_one(settings, &[&fleet.naming.prefix()]).await.unwrap().get(0);
    assert_eq!(left, 0, "both of the daemon's logins are as they were made");
    fleet.stop(daemon).await;
}

/// Waits for ever, but only where it is restored.
const SLEEPER: &str = "
CREATE FUNCTION sleeper(a int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF session_user::text LIKE '%\\_\\_m' THEN
        PERFORM pg_sleep(100000);
    END IF;
    RETURN true;
END $$;
CREATE TABLE asleep (a int CHECK (public.sleeper(a)));
INSERT INTO asleep VALUES (1);";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_does_not_end_is_ended_and_undone() {
    let fleet = Fleet::new(Spec::default().setting("[backup]", "restore_timeout", "\"5s\"")).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let (inside, owner) = (fleet.judge(database(&fleet).as_str()).await, role(&fleet, TenantRole::Owner));
    inside.batch_execute(&format!("SET ROLE {owner}; {SLEEPER}")).await.unwrap();
    drop(inside);
    let backup = client.backup("acme").await;
    let before = fleet.inventory().await;
    let operation = restore(client, &backup.backup_id).await;
    assert_eq!(operation.state(), OperationState::Failed, "{operation:#?}");
    let error = operation.error.unwrap();
    assert!(error.message.contains("backup.restore_timeout"), "{error:?}");
    assert_eq!(error.reason, "DEADLINE_EXCEEDED");
    let judge = fleet.judge("postgres").await;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1";
    let migrator = fleet.naming.tenant_role(&"acme".parse().unwrap(), TenantRole::Migrator).unwrap();
    assert_eq!(judge.query_one(sessions, &[&migrator.as_str()]).await.unwrap().get::<_, i64>(0), 0);
    let left = fleet.inventory().await.since(&before).lasting();
    assert_eq!((left.get("Database"), left.get("SpoolFile")), (None, None), "{left:?}");
    assert_eq!(client.sql("acme", "SELECT count(*) FROM things").await, "20");
    fleet.stop(daemon).await;
}

/// What belongs to a database's OID, as PostgreSQL's own texts.
const PROPERTIES: &str = "
SELECT string_agg(line, E'\n' ORDER BY line) FROM (
    SELECT format('%s %s', datconnlimit, shobj_description(oid, 'pg_database')) FROM pg_database WHERE datname = $1
    UNION ALL
    SELECT format('acl %s', a) FROM pg_database CROSS JOIN unnest(datacl) AS a WHERE datname = $1
    UNION ALL
    SELECT format('%s %s', setrole::regrole, unnest(setconfig))
    FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase WHERE datname = $1
) AS lines (line)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_administrator_gave_the_database_and_its_logins_outlives_a_restore() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    let acme = client.tenant("acme").await;
    let backup = client.backup("acme").await;
    let judge = fleet.judge("postgres").await;
    let (live, analyst) = (database(&fleet).quoted(), format!("{}_analyst", fleet.naming.prefix()));
    let (direct, locked) = (role(&fleet, TenantRole::DirectA), role(&fleet, TenantRole::DirectB));
    let script = format!(
        "CREATE ROLE {analyst};
        GRANT CONNECT ON DATABASE {live} TO {analyst} WITH GRANT OPTION;
        REVOKE TEMPORARY ON DATABASE {live} FROM {owner};
        COMMENT ON DATABASE {live} IS 'an administrator''s';
        ALTER DATABASE {live} CONNECTION LIMIT 77;
        ALTER DATABASE {live} SET work_mem = '7MB';
        ALTER DATABASE {live} SET search_path = \"$user\", public, \"Odd, \"\"one\";
        ALTER DATABASE {live} SET app.greeting = 'it''s \\ so';
        ALTER ROLE {direct} IN DATABASE {live} SET statement_timeout = '77s';
        ALTER ROLE {locked} NOLOGIN",
        owner = role(&fleet, TenantRole::Owner)
    );
    judge.batch_execute(&script).await.unwrap();
    let properties = async || judge.query_one(PROPERTIES, &[&acme.database]).await.unwrap().get::<_, String>(0);
    let may_log_in = async |role: TenantRole| -> bool {
        let name = fleet.naming.tenant_role(&"acme".parse().unwrap(), role).unwrap();
        let query = "SELECT rolcanlogin FROM pg_roles WHERE rolname = $1";
        judge.query_one(query, &[&name.as_str()]).await.unwrap().get(0)
    };
    let before = properties().await;
    assert!(before.contains(&analyst) && before.contains("77s") && before.contains("greeting"), "{before}");
    let operation = restore(client, &backup.backup_id).await;
    succeeded(&operation);
    // Only a superuser may set what PostgreSQL does not know.
    let (theirs, ours): (Vec<_>, Vec<_>) = before.lines().partition(|line| line.contains("greeting"));
    assert_eq!(properties().await.lines().collect::<Vec<_>>(), ours);
    let detail = &operation.steps.iter().find(|step| step.name == "properties").unwrap().detail;
    assert!(theirs.len() == 1 && detail.contains("\"app\".\"greeting\""), "{detail}");
    assert!(may_log_in(TenantRole::DirectA).await && !may_log_in(TenantRole::DirectB).await);
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_enters_a_database_that_is_being_restored() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let backup = client.backup("acme").await;
    let standstills = Standstills::install(&fleet).await;
    let judge = fleet.judge("postgres").await;
    for (code, new) in [("acme", None), ("copy", Some("copy"))] {
        let (request, armed) = standstills.arm_step("contents").await;
        let operation = client.restore_create(request, &backup.backup_id, new).await.unwrap();
        standstills.reached(armed).await;
        let database = database_under_construction(operation.operation_id.parse().unwrap());
        let mut entering = Vec::new();
        for role in [TenantRole::Owner].into_iter().chain(TenantRole::LOGINS) {
            let name = fleet.naming.tenant_role(&code.parse().unwrap(), role).unwrap();
            let query = "SELECT has_database_privilege($1::name, $2::text, 'CONNECT')";
            if judge.query_one(query, &[&name.as_str(), &database.as_str()]).await.unwrap().get(0) {
                entering.push(role);
            }
        }
        assert_eq!(entering, [TenantRole::Migrator]);
        standstills.pass(armed).await;
        client.succeeded(&operation).await;
        assert_eq!(client.sql(code, "SELECT count(*) FROM things").await, "20");
    }
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extensions_that_only_a_superuser_creates_are_told_before_anything_is_done() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let inside = fleet.judge(database(&fleet).as_str()).await;
    inside.batch_execute("CREATE EXTENSION pageinspect; CREATE EXTENSION hstore").await.unwrap();
    drop(inside);
    let operation = client.succeeded(&client.backup_create(Uuid::new_v4(), "acme").await.unwrap()).await;
    let detail = &operation.steps.iter().find(|step| step.name == "dump").unwrap().detail;
    assert!(
        detail.contains("pageinspect can be created by superusers alone") && !detail.contains("hstore"),
        "{detail}"
    );
    let backup = result_text(&operation, "backup_id");
    let ended = restore(client, &backup).await;
    let error = ended.error.unwrap();
    assert_eq!((error.reason.as_str(), error.step.as_str()), ("EXTENSION_UNAVAILABLE", "validate"), "{error:?}");
    assert!(error.message.contains("pageinspect.control"), "{error:?}");
    let refused = validate_only(client, &backup).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "EXTENSION_UNAVAILABLE"));
    assert_eq!(client.sql("acme", "SELECT count(*) FROM things").await, "20");
    fleet.stop(daemon).await;
}

async fn validate_only(client: &Client, backup: &str) -> Result<(), tonic::Status> {
    let request = RestoreBackupRequest {
        backup_id: backup.to_owned(),
        target: Some(restore_backup_request::Target::InPlace(true)),
        reason: "a test".to_owned(),
        validate_only: true,
        ..RestoreBackupRequest::default()
    };
    client.backups().restore_backup(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_whose_objects_are_spoiled_or_gone_is_corrupt_whoever_asks_and_no_longer_verified() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let (store, objects) = (fleet.store(), fleet.machine.objects_dir().join(&fleet.bucket));
    let verify = async |id: &str| {
        client.backups().verify_backup(VerifyBackupRequest { backup_id: id.to_owned() }).await.map(drop)
    };
    // On the store's disk, under the checksum that the store has noted.
    let flip = |key: &str| {
        let path = objects.join(key);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    for (is_archive, is_gone) in [(true, true), (true, false), (false, true), (false, false)] {
        let id = client.backup("acme").await.backup_id;
        verify(&id).await.unwrap();
        validate_only(client, &id).await.unwrap();
        let keys = store.list("").await.unwrap().into_iter().map(|(key, _bytes)| key);
        let key = keys.filter(|key| key.contains(&id)).find(|key| key.contains("archive") == is_archive).unwrap();
        if is_gone {
            store.delete(&key).await.unwrap();
        } else {
            flip(&key);
        }
        let corrupt = (Code::DataLoss, "BACKUP_CORRUPT".to_owned());
        let refused = verify(&id).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), corrupt, "{refused:?}");
        let backup = client.backups().get_backup(GetBackupRequest { backup_id: id.clone() }).await.unwrap();
        assert_eq!(backup.into_inner().backup.unwrap().verify_time, None);
        if is_gone || !is_archive {
            let refused = validate_only(client, &id).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused)), corrupt, "{refused:?}");
        }
        let ended = restore(client, &id).await;
        assert_eq!(ended.error.as_ref().map(|error| error.reason.as_str()), Some("BACKUP_CORRUPT"), "{ended:#?}");
    }
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_a_restore_cuts_off_is_told_to_come_again() {
    let spec = Spec::default().setting("[backup]", "pause_drain_max", "\"200ms\"");
    let fleet = Fleet::new(spec.setting("[router]", "statement_timeout", "\"2m\"")).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let backup = client.backup("acme").await;
    let slow = ["SELECT pg_sleep(100)", "INSERT INTO things (name) SELECT pg_sleep(100)::text"];
    let calls = slow.map(|sql| {
        let client = client.clone();
        tokio::spawn(async move { client.execute("acme", sql).await })
    });
    let streaming = {
        let request =
            StreamQueryRequest { tenant: "acme".to_owned(), sql: slow[0].to_owned(), ..StreamQueryRequest::default() };
        let client = client.clone();
        tokio::spawn(async move {
            let mut parts = client.query().stream_query(request).await?.into_inner();
            while parts.message().await?.is_some() {}
            Ok::<_, tonic::Status>(())
        })
    };
    let judge = fleet.judge("postgres").await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event = 'PgSleep'";
    until("all of them run", async || {
        let count: i64 = judge.query_one(running, &[&database(&fleet).as_str()]).await.unwrap().get(0);
        (count == 3).then_some(())
    })
    .await;
    let operation = restore(client, &backup.backup_id).await;
    succeeded(&operation);
    let mut refusals = vec![streaming.await.unwrap().unwrap_err()];
    for call in calls {
        refusals.push(call.await.unwrap().unwrap_err());
    }
    for refusal in refusals {
        assert_eq!((refusal.code(), reason(&refusal).as_str()), (Code::Unavailable, "TENANT_PAUSED"), "{refusal:?}");
        let details = refusal.get_error_details();
        assert!(details.retry_info().is_some_and(|info| info.retry_delay.is_some()), "{refusal:?}");
        assert_eq!(details.error_info().unwrap().metadata["operation_id"], operation.operation_id);
    }
    assert_eq!(client.sql("acme", "SELECT count(*) FROM things").await, "20");
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_database_is_dropped_once_it_was_kept_for_long_enough() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = daemon.client.clone();
    client.tenant("acme").await;
    let backup = client.backup("acme").await;
    let mut former = Vec::new();
    for _restore in 0..2 {
        let operation = restore(&client, &backup.backup_id).await;
        succeeded(&operation);
        former.push(result_text(&operation, "former_database"));
    }
    daemon.stop().await;
    let shared = fleet.judge(fleet.naming.shared_database().as_str()).await;
    let age = "UPDATE retired_databases SET retired_at = now() - $2::text::interval WHERE database = $1";
    for (database, age_is) in [(&former[0], "7 days 1 minute"), (&former[1], "6 days 23 hours")] {
        assert_eq!(shared.execute(age, &[database, &age_is]).await.unwrap(), 1);
    }
    let daemon = fleet.start().await;
    until("the older one is forgotten", async || {
        let rows = shared.query("SELECT database FROM retired_databases", &[]).await.unwrap();
        (rows.len() == 1).then_some(())
    })
    .await;
    let judge = fleet.judge("postgres").await;
    let databases = "SELECT datname::text FROM pg_database WHERE datname = ANY ($1)";
    let left = judge.query(databases, &[&former]).await.unwrap();
    assert_eq!(left.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>(), [former[1].clone()]);
    assert_eq!(daemon.client.sql("acme", "SELECT count(*) FROM things").await, "20");
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_told_its_tenant_also_when_it_was_cleaned_and_in_a_restored_database() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    let acme = client.tenant("acme").await;
    let settings = "SELECT current_setting('app.current_tenant_id') || ' ' || current_setting('app.current_tenant')";
    let told = async || client.sql("acme", settings).await;
    let backend = async || client.sql("acme", "SELECT pg_backend_pid()").await;
    let database = async || client.sql("acme", "SELECT oid FROM pg_database WHERE datname = current_database()").await;
    let expected = format!("{} acme", acme.tenant_id);
    assert_eq!(told().await, expected);
    let first = backend().await;
    let mut open = client.transaction("acme").await;
    for name in ["app.current_tenant", "app.current_tenant_id"] {
        open.execute(&format!("SELECT set_config('{name}', 'other', false)")).await;
        assert!(matches!(open.answer().await, Ok(Outcome::Result(_))));
    }
    open.send(Action::Commit(CommitTransaction {})).await;
    assert!(matches!(open.answer().await, Ok(Outcome::Committed(_))));
    until("the session is cleaned and back", async || {
        let pools = client.router().list_pools(ListPoolsRequest::default()).await.unwrap().into_inner().pools;
        pools.iter().all(|pool| pool.leased == 0).then_some(())
    })
    .await;
    assert_eq!(told().await, expected);
    assert_eq!(backend().await, first, "it is the session that was changed");

    let backup = client.backup("acme").await;
    let before = database().await;
    succeeded(&restore(client, &backup.backup_id).await);
    assert_ne!(database().await, before, "it is another database");
    assert_eq!(told().await, expected);
    fleet.stop(daemon).await;
}
