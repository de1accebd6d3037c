//! What callers over gRPC hear when there is no connection for them, what the log says of slow statements, and that
//! tenants who use up the budget leave the daemon's own work alone.

use std::time::Duration;

use tenantd::config::write_private;
use tenantd::proto::v1::resolve_tenant_request::Selector;
use tenantd::proto::v1::transact_request::Action;
use tenantd::proto::v1::transact_response::Outcome;
use tenantd::proto::v1::{
    EvictPoolRequest, ExecuteRequest, GetTenantStatsRequest, ListPoolsRequest, ListTenantsRequest,
    ResolveTenantRequest, StreamQueryRequest, TransactionStatement, Value, value::Kind,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{Client, Fleet, Machine, Spec, machine, reason, tenantd, until};

/// A refusal's code and reason, one of its metadata, and when to come back.
fn told(status: &Status, name: &str) -> (Code, String, String, Option<Duration>) {
    let details = status.get_error_details();
    let metadata = details.error_info().unwrap().metadata.clone();
    let retry = details.retry_info().and_then(|info| info.retry_delay);
    (status.code(), reason(status), metadata.get(name).cloned().unwrap_or_default(), retry)
}

async fn waiting(client: &Client) -> i32 {
    let pools = client.router().list_pools(ListPoolsRequest::default()).await.unwrap().into_inner().pools;
    pools.iter().map(|pool| pool.waiting).sum()
}

#[tokio::test]
async fn a_full_queue_and_a_missing_database_are_told_with_their_causes() {
    let narrow = "{ direct_connections_max = 5, pool_connections_max = 1, queue_max = 1, users_max = 1, sites_max = 1, storage_bytes_max = 1 }";
    let spec =
        Spec::default().setting("[tiers]", "standard", narrow).setting("[router]", "acquire_timeout", "\"100s\"");
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    let bolt = client.tenant("bolt").await;

    let holds = client.transaction("acme").await;
    let waits = tokio::spawn({
        let client = client.clone();
        async move { client.execute("acme", "SELECT 1").await }
    });
    until("one caller waits", async || (waiting(client).await == 1).then_some(())).await;
    let refusal = client.execute("acme", "SELECT 1").await.unwrap_err();
    let (code, reason, cause, retry) = told(&refusal, "cause");
    assert_eq!((code, reason.as_str(), cause.as_str()), (Code::ResourceExhausted, "CONNECTION_UNAVAILABLE", "queue"));
    assert!(retry.is_some(), "{refusal:?}");
    drop(holds);
    assert_eq!(waits.await.unwrap().unwrap(), [["1"]]);

    fleet.expect_log("the tenant cannot be reached");
    let judge = fleet.judge("postgres").await;
    judge.batch_execute(&format!("ALTER DATABASE {0} RENAME TO {0}_away", bolt.database)).await.unwrap();
    // The first is told what the server has said, and so is whoever is refused at once, with when to come back.
    until("calls are refused at once", async || {
        let refusal = client.execute("bolt", "SELECT 1").await.unwrap_err();
        let (code, reason, sqlstate, retry) = told(&refusal, "sqlstate");
        let found = (code, reason.as_str(), sqlstate.as_str());
        assert_eq!(found, (Code::Unavailable, "CONNECTION_UNAVAILABLE", "3D000"), "{refusal:?}");
        retry
    })
    .await;
    judge.batch_execute(&format!("ALTER DATABASE {0}_away RENAME TO {0}", bolt.database)).await.unwrap();
    until("the tenant is reached again", async || client.execute("bolt", "SELECT 1").await.ok()).await;
    fleet.stop(daemon).await;
}

/// What keeps the router's login out of a database, and what lets it in again.
const SHUT: [(&str, &str, &str); 3] = [
    ("42501", "REVOKE CONNECT ON DATABASE {d} FROM {r}, {o}", "GRANT CONNECT ON DATABASE {d} TO {r}, {o}"),
    ("55000", "ALTER DATABASE {d} ALLOW_CONNECTIONS false", "ALTER DATABASE {d} ALLOW_CONNECTIONS true"),
    (
        "58P01",
        "ALTER ROLE {r} IN DATABASE {d} SET session_preload_libraries = 'missing'",
        "ALTER ROLE {r} IN DATABASE {d} RESET session_preload_libraries",
    ),
];

#[tokio::test]
async fn a_session_that_is_refused_is_told_with_its_cause_and_not_asked_for_again_and_again() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    let acme = client.tenant("acme").await;
    fleet.expect_log("the tenant cannot be reached");
    let judge = fleet.judge("postgres").await;
    let (router, owner) = (format!("{}__r", acme.database), acme.database.clone());
    for (code, shut, open) in SHUT {
        let run = async |sql: &str| {
            let sql = sql.replace("{d}", &acme.database).replace("{r}", &router).replace("{o}", &owner);
            judge.batch_execute(&sql).await.unwrap();
        };
        run(shut).await;
        let evict = EvictPoolRequest { tenant: "acme".to_owned(), reason: "a test".to_owned(), ..Default::default() };
        client.router().evict_pool(evict).await.unwrap();
        let mut blocked = 0;
        for _ in 0..200 {
            let refusal = client.execute("acme", "SELECT 1").await.unwrap_err();
            let (status, reason, sqlstate, _) = told(&refusal, "sqlstate");
            let found = (status, reason.as_str(), sqlstate.as_str());
            assert_eq!(found, (Code::Unavailable, "CONNECTION_UNAVAILABLE", code), "{refusal:?}");
            blocked += usize::from(refusal.message().contains("not tried again"));
        }
        assert!(blocked > 150, "{code}: {blocked}");
        run(open).await;
        until("the tenant is reached again", async || client.execute("acme", "SELECT 1").await.ok()).await;
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn while_the_catalog_has_another_name_what_needs_it_is_told_to_come_back() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    client.execute("acme", "SELECT 1").await.unwrap();
    let resolved = async || {
        let selector = Some(Selector::Code("acme".to_owned()));
        let request = ResolveTenantRequest { selector, ..ResolveTenantRequest::default() };
        client.router().resolve_tenant(request).await.unwrap().into_inner()
    };
    let shown = async || {
        let mut command = tenantd();
        command.args(["resolve", "acme", "--endpoint", &format!("http://{}", daemon.address), "--key-file"]);
        command.arg(fleet.admin_key_file());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat()
    };
    let now = resolved().await;
    assert_eq!((now.stale, now.age), (false, None));
    assert!(!shown().await.contains("the shared database is away"));
    for expected in ["does not answer", "the catalog", "changes of rights"] {
        fleet.allow_log(expected);
    }
    let judge = fleet.judge("postgres").await;
    let shared = fleet.naming.shared_database();
    let rename = async |from: &str, to: &str| {
        let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1";
        judge.batch_execute(&format!("ALTER DATABASE {from} ALLOW_CONNECTIONS false")).await.unwrap();
        judge.query(end, &[&from]).await.unwrap();
        judge.batch_execute(&format!("ALTER DATABASE {from} RENAME TO {to}")).await.unwrap();
        judge.batch_execute(&format!("ALTER DATABASE {to} ALLOW_CONNECTIONS true")).await.unwrap();
    };
    let away = format!("{shared}_away");
    rename(shared.as_str(), &away).await;
    let stats = GetTenantStatsRequest { tenant: "acme".to_owned() };
    let list = ListTenantsRequest::default();
    for refusal in [
        client.router().get_tenant_stats(stats).await.map(drop).unwrap_err(),
        client.tenants().list_tenants(list).await.map(drop).unwrap_err(),
        client.tenant_get("acme").await.map(drop).unwrap_err(),
    ] {
        let (code, reason, _, retry) = told(&refusal, "cause");
        assert_eq!((code, reason.as_str()), (Code::Unavailable, "CONNECTION_UNAVAILABLE"), "{refusal:?}");
        assert!(retry.is_some(), "{refusal:?}");
    }
    client.execute("acme", "SELECT 1").await.unwrap();
    // What is known is told with its age.
    let known = until("the route is stale", async || Some(resolved().await).filter(|answer| answer.stale)).await;
    let age = known.age.unwrap();
    assert!(age.seconds > 0 || age.nanos > 0, "{age:?}");
    assert_eq!(known.route.unwrap().code, "acme");
    let text = shown().await;
    assert!(text.contains("the shared database is away; this is what the daemon knew"), "{text}");
    assert!(text.contains("acme"), "{text}");
    rename(&away, shared.as_str()).await;
    until("the catalog is back", async || client.tenant_get("acme").await.ok()).await;
    let fresh = until("the route is fresh again", async || Some(resolved().await).filter(|answer| !answer.stale)).await;
    assert_eq!(fresh.age, None);
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_takes_nobody_elses_tenants_along_not_even_the_catalogs_server() {
    const OTHER: &str = "[[servers]] # the other";
    let quoted = |text: &str| format!("{text:?}");
    let (own, common) = (Machine::with_room_for(60), machine());
    let server = |section, name: &str, machine: &Machine, credentials: &str| {
        [
            (section, "name", quoted(name)),
            (section, "host", quoted(&machine.host)),
            (section, "port", machine.port.to_string()),
            (section, "tls", quoted("disable")),
            (section, "credentials_file", quoted(credentials)),
        ]
    };
    let mut spec = Spec { machine: Some(own), ..Spec::default() };
    spec.settings.push(("", "catalog_server", quoted("main")));
    spec.settings.extend(server(OTHER, "other", common, "other.toml"));
    let fleet = Fleet::new(spec).await;
    write_private(&fleet.dir.join("other.toml"), &common.credentials.to_toml()).unwrap();
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    daemon.stop().await;
    // New tenants go to the first server.
    let other_first =
        [server("[[servers]]", "other", common, "other.toml"), server(OTHER, "main", own, "credentials.toml")];
    fleet.configure(&other_first.concat());
    let daemon = fleet.start().await;
    let client = &daemon.client;
    let bolt = client.tenant("bolt").await;
    for (code, server) in [("acme", "main"), ("bolt", "other")] {
        assert_eq!(client.tenant_get(code).await.unwrap().server, server);
        assert_eq!(client.sql(code, "SELECT count(*) FROM things").await, "20");
    }

    for expected in ["the server takes no connections", "does not answer", "the catalog", "changes of rights"] {
        fleet.allow_log(expected);
    }
    own.server_stop().await;
    until("the server is known to be away", async || {
        let refusal = client.execute("acme", "SELECT 1").await.unwrap_err();
        let (code, reason, server, retry) = told(&refusal, "server");
        (reason == "CONNECTION_UNAVAILABLE").then(|| assert_eq!((code, server.as_str()), (Code::Unavailable, "main")));
        retry
    })
    .await;
    // Whom it knows it serves, with what it knows.
    for _ in 0..20 {
        assert_eq!(client.sql("bolt", "SELECT count(*) FROM things").await, "20");
    }
    own.server_start().await;
    until("the tenant is reached again", async || client.execute("acme", "SELECT 1").await.ok()).await;
    daemon.stop().await;
    let judge = machine().judge("postgres").await;
    judge.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", bolt.database)).await.unwrap();
    let roles = "SELECT rolname::text FROM pg_roles WHERE starts_with(rolname, $1)";
    for role in judge.query(roles, &[&bolt.database]).await.unwrap() {
        judge.batch_execute(&format!("DROP ROLE {}", role.get::<_, &str>(0))).await.unwrap();
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_slow_statement_is_logged_with_its_tenant_and_without_values() {
    let fleet = Fleet::new(Spec::default().setting("[router]", "slow_statement_threshold", "\"100ms\"")).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let request = ExecuteRequest {
        tenant: "acme".to_owned(),
        sql: "SELECT 'confidential', pg_sleep(0.25), 271828, $1::text".to_owned(),
        parameters: vec![Value { kind: Some(Kind::TextValue("private".to_owned())) }],
        ..ExecuteRequest::default()
    };
    daemon.client.rows(request).await.unwrap();
    let said = fleet.latest();
    let line = said.lines().find(|line| line.contains("slow statement")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("tenant=acme") && line.contains("pg_sleep") && line.contains("milliseconds="), "{line}");
    for value in ["confidential", "271828", "private"] {
        assert!(!said.contains(value), "{said}");
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn slow_statements_of_streams_and_transactions_are_logged_without_values_too() {
    let fleet = Fleet::new(Spec::default().setting("[router]", "slow_statement_threshold", "\"100ms\"")).await;
    let daemon = fleet.start().await;
    daemon.client.tenant("acme").await;
    let slow = |place: &str| format!("SELECT 'confidential' AS of_{place}, pg_sleep(0.25), 271828, $1::text");
    let parameters = || vec![Value { kind: Some(Kind::TextValue("private".to_owned())) }];
    let (tenant, sql) = ("acme".to_owned(), slow("stream"));
    let request = StreamQueryRequest { tenant, sql, parameters: parameters(), ..StreamQueryRequest::default() };
    let mut parts = daemon.client.query().stream_query(request).await.unwrap().into_inner();
    while parts.message().await.unwrap().is_some() {}
    let mut open = daemon.client.transaction("acme").await;
    let (sql, parameters) = (slow("transaction"), parameters());
    open.send(Action::Execute(TransactionStatement { sql, parameters, ..TransactionStatement::default() })).await;
    assert!(matches!(open.answer().await, Ok(Outcome::Result(_))));
    for place in ["of_stream", "of_transaction"] {
        let line = until("the statement is logged", async || {
            let is_its = |line: &&str| line.contains("slow statement") && line.contains(place);
            fleet.latest().lines().find(is_its).map(str::to_owned)
        })
        .await;
        assert!(line.contains("tenant=acme") && line.contains("pg_sleep") && line.contains("milliseconds="), "{line}");
    }
    let said = fleet.latest();
    for value in ["confidential", "271828", "private"] {
        assert!(!said.contains(value), "{said}");
    }
    drop(open);
    fleet.stop(daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_who_use_up_the_budget_leave_the_daemons_own_work_alone() {
    let spec = super::small_budget().setting("[router]", "acquire_timeout", "\"300ms\"").setting(
        "[router]",
        "statement_timeout",
        "\"10m\"",
    );
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    client.tenant("acme").await;
    // By statements: transactions leave some places. Whoever is told to come back does: a connect may take longer.
    let mut held = Vec::new();
    for _ in 0..6 {
        let client = client.clone();
        held.push(tokio::spawn(async move { while client.execute("acme", "SELECT pg_sleep(600)").await.is_err() {} }));
    }
    let judge = fleet.judge("postgres").await;
    let name = format!("{}_acme", fleet.naming.prefix());
    until("all places are taken", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND query LIKE '%pg_sleep%' \
                   AND state = 'active'";
        (judge.query_one(sql, &[&name]).await.unwrap().get::<_, i64>(0) == 6).then_some(())
    })
    .await;
    // Administration, migrations, the catalog, the accounts and a dump have places of their own.
    client.tenant("bolt").await;
    client.backup("acme").await;
    client.key_new(&["viewer"], &[]).await;
    let refusal = client.execute("bolt", "SELECT 1").await.unwrap_err();
    let (code, reason, cause, retry) = told(&refusal, "cause");
    assert_eq!((code, reason.as_str(), cause.as_str()), (Code::ResourceExhausted, "CONNECTION_UNAVAILABLE", "budget"));
    assert!(retry.is_some(), "{refusal:?}");
    held[5].abort();
    until("the place is the other tenant's", async || client.execute("bolt", "SELECT 1").await.ok()).await;
    held.iter().for_each(tokio::task::JoinHandle::abort);
    fleet.stop(daemon).await;
}
