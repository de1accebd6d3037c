//! The daemon's own databases: a tenant reads what is its own in the shared one, however it asks; administrators read
//! all, and change nothing.

use tenantd::domain::tenant::TenantRole;
use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::transact_response::Outcome;
use tenantd::proto::v1::{
    BeginTransaction, CommitTransaction, CreateApiKeyRequest, ExecuteRequest, RollbackToSavepoint, SetSavepoint,
    StreamQueryRequest, Target,
};
use tokio_postgres::NoTls;
use tonic::{Code, Status};
use uuid::Uuid;

use super::transact::{Caller, execute};
use crate::harness::{Client, Daemon, Fleet, Spec};

async fn ask(client: &Client, target: Target, tenant: &str, sql: &str) -> Result<Vec<Vec<String>>, Status> {
    let request = ExecuteRequest {
        tenant: tenant.to_owned(),
        sql: sql.to_owned(),
        target: target.into(),
        ..ExecuteRequest::default()
    };
    client.rows(request).await
}

/// The only value.
async fn one(client: &Client, tenant: &str, sql: &str) -> String {
    let rows =
        ask(client, Target::TenantShared, tenant, sql).await.unwrap_or_else(|status| panic!("{sql}: {status:?}"));
    rows.into_iter().flatten().next().unwrap_or_default()
}

async fn two_tenants(fleet: &Fleet) -> Daemon {
    let daemon = fleet.start().await;
    for code in ["acme", "other"] {
        daemon.client.tenant(code).await;
    }
    let judge = fleet.judge(fleet.naming.shared_database().as_str()).await;
    judge
        .batch_execute(
            "INSERT INTO hosts (host, tenant_id) SELECT code || '.example.com', id FROM tenants;
             INSERT INTO menus (code, label) VALUES ('home', 'Home');
             INSERT INTO system_parameters (category, key, value) VALUES ('vat', 'rate', '20')",
        )
        .await
        .unwrap();
    daemon
}

#[tokio::test]
async fn a_tenant_reads_its_own_rows_however_it_asks() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = two_tenants(&fleet).await;
    let client = &daemon.client;
    let prefix = fleet.naming.prefix();
    for code in ["acme", "other"] {
        assert_eq!(one(client, code, "SELECT string_agg(code, ',') FROM tenants").await, code);
        assert_eq!(one(client, code, "SELECT string_agg(host, ',') FROM hosts").await, format!("{code}.example.com"));
        for (table, count) in [("sites", "1"), ("licenses", "1"), ("menus", "1"), ("system_parameters", "1")] {
            assert_eq!(one(client, code, &format!("SELECT count(*) FROM {table}")).await, count, "{table}");
        }
        assert_eq!(one(client, code, "SELECT session_user::text").await, format!("{prefix}_{code}__r"));
    }
    // Within one statement, as another role, by functions.
    let other = client.tenant_get("other").await.unwrap().tenant_id;
    let crossing = [
        format!("SELECT string_agg(code, ',') FROM tenants, set_config('app.current_tenant_id', '{other}', false) AS s"),
        format!(
            "WITH s AS MATERIALIZED (SELECT set_config('app.current_tenant', 'other', false), \
             set_config('role', '{prefix}_acme__r', false)) SELECT string_agg(t.code, ',') FROM s, tenants t"
        ),
        "SELECT string_agg(code, ',') FROM tenants WHERE code LIKE '%' OR id IS NOT NULL".to_owned(),
        "SELECT string_agg(t.code, ',') FROM tenant_logins l JOIN tenants t ON t.id = l.tenant_id".to_owned(),
        "SELECT string_agg(code, ',') FROM tenants CROSS JOIN LATERAL (SELECT set_config('row_security', 'off', false)) AS s"
            .to_owned(),
    ];
    for sql in crossing {
        match ask(client, Target::TenantShared, "acme", &sql).await {
            Ok(rows) => assert_eq!(rows, [["acme"]], "{sql}"),
            Err(status) => assert!(status.message().contains("row-level security"), "{sql}: {status:?}"),
        }
    }
    let forbidden = [
        format!("SET ROLE {prefix}_other__r"),
        format!("SET ROLE {prefix}_other"),
        format!("SET SESSION AUTHORIZATION {prefix}_other__r"),
        "SET ROLE tenantd".to_owned(),
        format!("SELECT set_config('role', '{prefix}_other__r', false)"),
        format!("SELECT set_config('session_authorization', '{prefix}_other__r', false)"),
        format!("DO $$ BEGIN EXECUTE 'SET SESSION AUTHORIZATION {prefix}_other__r'; END $$"),
        "SELECT * FROM tenants".to_owned(),
        "SELECT server, database FROM tenants".to_owned(),
        "SELECT * FROM tenant_secrets".to_owned(),
        "SELECT * FROM operations".to_owned(),
        "CREATE FUNCTION see() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT 1::text'".to_owned(),
        "CREATE TEMP TABLE mine (a int)".to_owned(),
        "UPDATE tenants SET name = 'mine'".to_owned(),
        "INSERT INTO hosts (host, tenant_id) SELECT 'new.example.com', id FROM tenants".to_owned(),
        "UPDATE tenant_logins SET tenant_id = tenant_id".to_owned(),
        "SELECT 1 FROM tenants FOR UPDATE".to_owned(),
    ];
    for sql in forbidden {
        let refused = ask(client, Target::TenantShared, "acme", &sql).await.expect_err(&sql);
        let codes = [Code::PermissionDenied, Code::FailedPrecondition, Code::InvalidArgument];
        assert!(codes.contains(&refused.code()), "{sql}: {refused:?}");
    }
    assert_eq!(one(client, "acme", "SELECT string_agg(code, ',') FROM tenants").await, "acme");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn only_the_routers_login_gets_in() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = two_tenants(&fleet).await;
    assert_eq!(one(&daemon.client, "acme", "SELECT count(*) FROM tenants").await, "1");
    let judge = fleet.judge("postgres").await;
    let shared = fleet.naming.shared_database().to_string();
    let sql = "SELECT rolname::text FROM pg_roles WHERE starts_with(rolname, $1 || '_') AND rolcanlogin
        AND has_database_privilege(oid, $2, 'CONNECT') ORDER BY 1";
    let rows = judge.query(sql, &[&fleet.naming.prefix(), &shared]).await.unwrap();
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    // The other tenant's has not been needed yet.
    assert_eq!(names, [format!("{}_acme__r", fleet.naming.prefix())]);
    let auth = "SELECT count(*) FROM pg_roles WHERE starts_with(rolname, $1 || '_')
        AND has_database_privilege(oid, $2, 'CONNECT')";
    let auth_database = fleet.naming.auth_database().to_string();
    assert_eq!(judge.query_one(auth, &[&fleet.naming.prefix(), &auth_database]).await.unwrap().get::<_, i64>(0), 0);

    // The login's name alone says nothing: a login made anew is another tenant's until the catalog says so.
    let role = fleet.naming.tenant_role(&"acme".parse().unwrap(), TenantRole::Router).unwrap();
    judge.batch_execute(&format!("ALTER ROLE {} PASSWORD 'known'", role.quoted())).await.unwrap();
    let inside = fleet.judge(&shared).await;
    inside.batch_execute("DELETE FROM tenant_logins").await.unwrap();
    let mut config = tokio_postgres::Config::new();
    let machine = fleet.machine;
    config.host(&machine.host).port(machine.port).user(role.as_str()).password("known").dbname(&shared);
    let (login, connection) = config.connect(NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    for table in ["tenants", "hosts", "sites", "licenses", "tenant_logins"] {
        let rows = login.query(&format!("SELECT 1 FROM {table}"), &[]).await.unwrap();
        assert!(rows.is_empty(), "{table}");
    }
    drop(login);
    drop(driver.await);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn nothing_but_queries_is_taken() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = two_tenants(&fleet).await;
    let client = &daemon.client;
    let targets = [(Target::TenantShared, "acme"), (Target::Shared, ""), (Target::Auth, "")];
    let others = [
        ("SET TRANSACTION READ WRITE", "SET"),
        ("/* select */ ALTER ROLE current_user PASSWORD 'x'", "ALTER"),
        ("NOTIFY tenantd_catalog, 'junk'", "NOTIFY"),
        ("-- select\n( lock TABLE menus", "LOCK"),
        ("GRANT SELECT ON LARGE OBJECT 1 TO PUBLIC", "GRANT"),
        ("COMMENT ON ROLE current_user IS 'x'", "COMMENT"),
        ("DO $$ BEGIN PERFORM 1; END $$", "DO"),
        ("DECLARE c CURSOR FOR SELECT 1", "DECLARE"),
        ("INSERT INTO menus DEFAULT VALUES", "INSERT"),
    ];
    for (target, tenant) in targets {
        let begin =
            || BeginTransaction { tenant: tenant.to_owned(), target: target.into(), ..BeginTransaction::default() };
        for (sql, word) in others {
            let refused = ask(client, target, tenant, sql).await.expect_err(sql);
            assert_eq!(refused.code(), Code::InvalidArgument, "{sql}: {refused:?}");
            assert!(refused.message().starts_with(&format!("{word} is not taken here: ")), "{refused:?}");
            let request = StreamQueryRequest {
                tenant: tenant.to_owned(),
                sql: sql.to_owned(),
                target: target.into(),
                ..StreamQueryRequest::default()
            };
            let refused = client.query().stream_query(request).await.expect_err(sql);
            assert_eq!(refused.code(), Code::InvalidArgument, "{sql}: {refused:?}");
            let mut caller = Caller::begin_as(client, begin()).await;
            let refused = caller.fails(execute(sql)).await;
            assert!(refused.message.starts_with(&format!("{word} is not taken here: ")), "{refused:?}");
        }
        for sql in [
            "(/* x */ SELECT 1)",
            "WITH a AS (SELECT 1) TABLE a",
            "VALUES (1)",
            "SHOW server_version",
            "EXPLAIN SELECT 1",
        ] {
            ask(client, target, tenant, sql).await.unwrap_or_else(|status| panic!("{sql}: {status:?}"));
        }
        let mut caller = Caller::begin_as(client, begin()).await;
        assert!(matches!(caller.ask(Action::SetSavepoint(SetSavepoint {})).await, Ok(Outcome::SavepointSet(_))));
        let opening = caller.fails(execute("SELECT set_config('transaction_read_only', 'off', true)")).await;
        assert_eq!(opening.sqlstate, "25001", "{opening:?}");
        let back = Action::RollbackToSavepoint(RollbackToSavepoint { savepoint: 1 });
        assert!(matches!(caller.ask(back).await, Ok(Outcome::SavepointRolledBack(_))));
        assert_eq!(caller.run("SHOW transaction_read_only").await, "TextValue(\"on\")");
        assert!(matches!(caller.ask(Action::Commit(CommitTransaction {})).await, Ok(Outcome::Committed(_))));
    }
    for sql in ["WITH a AS (DELETE FROM hosts RETURNING 1) SELECT * FROM a", "EXPLAIN ANALYZE DELETE FROM hosts"] {
        let refused = ask(client, Target::Shared, "", sql).await.expect_err(sql);
        assert!(matches!(refused.code(), Code::PermissionDenied | Code::FailedPrecondition), "{sql}: {refused:?}");
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_query_has_no_function_that_writes_or_locks() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = two_tenants(&fleet).await;
    let client = &daemon.client;
    let calls = [
        "lo_from_bytea(0, '\\x41')",
        "lo_create(0)",
        "lo_creat(-1)",
        "lo_put(1, 0, '\\x41')",
        "lo_unlink(1)",
        "lo_export(1, '/tmp/x')",
        "pg_advisory_lock(1)",
        "pg_try_advisory_lock(1, 2)",
        "pg_advisory_xact_lock_shared(1)",
        "pg_logical_emit_message(false, 'a', 'b')",
    ];
    let targets = [(Target::TenantShared, "acme"), (Target::Shared, ""), (Target::Auth, "")];
    for (target, tenant) in targets {
        for call in calls {
            let refused = ask(client, target, tenant, &format!("SELECT {call}")).await.expect_err(call);
            assert_eq!(refused.code(), Code::PermissionDenied, "{call}: {refused:?}");
        }
        // What the daemon itself runs for such a caller is allowed.
        let request = ExecuteRequest {
            tenant: tenant.to_owned(),
            sql: "SELECT 1".to_owned(),
            target: target.into(),
            user_id: Uuid::new_v4().to_string(),
            ..ExecuteRequest::default()
        };
        assert_eq!(client.rows(request).await.unwrap(), [["1"]]);
    }
    for (target, tenant) in &targets[..2] {
        let junk = "SELECT pg_notify('tenantd_catalog', 'junk')";
        assert_eq!(ask(client, *target, tenant, junk).await.unwrap_err().code(), Code::PermissionDenied);
    }
    client.tenant("third").await;
    let made = fleet.judge(fleet.naming.shared_database().as_str()).await;
    let objects = "SELECT count(*) FROM pg_largeobject_metadata";
    assert_eq!(made.query_one(objects, &[]).await.unwrap().get::<_, i64>(0), 0);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn administrators_read_the_whole_and_nobody_writes() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = two_tenants(&fleet).await;
    let admin = &daemon.client;
    let codes = ask(admin, Target::Shared, "", "SELECT code FROM tenants ORDER BY code").await.unwrap();
    assert_eq!(codes, [["acme"], ["other"]]);
    let keys = ask(admin, Target::Auth, "", "SELECT count(*) > 0 FROM api_keys").await.unwrap();
    assert_eq!(keys, [["true"]]);
    for (target, sql) in [
        (Target::Shared, "UPDATE tenants SET name = 'mine'"),
        (Target::Shared, "DO $$ BEGIN SET transaction_read_only = off; DELETE FROM hosts; END $$"),
        (Target::Auth, "DELETE FROM api_keys"),
        (Target::Auth, "COPY api_keys TO PROGRAM 'cat'"),
        (Target::Shared, "SELECT pg_read_file('PG_VERSION')"),
    ] {
        let refused = ask(admin, target, "", sql).await.expect_err(sql);
        let codes = [Code::PermissionDenied, Code::FailedPrecondition, Code::InvalidArgument];
        assert!(codes.contains(&refused.code()), "{sql}: {refused:?}");
    }
    assert_eq!(ask(admin, Target::Shared, "acme", "SELECT 1").await.unwrap_err().code(), Code::InvalidArgument);

    let wish = CreateApiKeyRequest {
        request_id: Uuid::new_v4().to_string(),
        name: "shop".to_owned(),
        roles: vec!["resolver".to_owned()],
        tenants: vec!["acme".to_owned()],
        ..CreateApiKeyRequest::default()
    };
    let secret = admin.access().create_api_key(wish).await.unwrap().into_inner().secret;
    let shop = Client::new(daemon.address, Some(&secret));
    assert_eq!(one(&shop, "", "SELECT string_agg(code, ',') FROM tenants").await, "acme");
    for target in [Target::Shared, Target::Auth] {
        assert_eq!(ask(&shop, target, "", "SELECT 1").await.unwrap_err().code(), Code::PermissionDenied);
    }
    assert_eq!(ask(&shop, Target::TenantShared, "other", "SELECT 1").await.unwrap_err().code(), Code::PermissionDenied);
    fleet.stop(daemon).await;
}
