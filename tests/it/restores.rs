//! Restores by a whole daemon: what a tenant's own code, or an administrator, has done to its roles and databases
//! neither keeps a good backup from being restored nor is lost by it.

use tenantd::domain::tenant::{DatabaseName, TenantRole, database_under_construction};
use tenantd::proto::v1::{Operation, OperationState, ResumeTenantRequest, RolloutState, SuspendTenantRequest};
use uuid::Uuid;

use crate::harness::{Client, Fleet, Spec};

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
