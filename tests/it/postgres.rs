//! The room that speaks to servers: what a tenant's roles reach, what the daemon's role can do without being a
//! superuser, and that the server never sees more sessions than the budget.

use std::time::Duration;

use tenantd::accounts::Accounts;
use tenantd::config::RoleLogin;
use tenantd::domain::tenant::{
    DatabaseName, RoleName, TenantCode, TenantId, TenantRole, database_replaced, database_under_construction,
};
use tenantd::postgres::admin::{self, NewDatabase};
use tenantd::postgres::identity::{Identity, identity_read, identity_write};
use tenantd::postgres::roles::{self, TenantContext, TenantLogin, TenantRoles};
use tenantd::postgres::{ConnectRequest, Connection, Error, Kind, Lane, Server, SessionOptions, bootstrap, locks};
use tenantd::secrets::password_new;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::harness::{Fleet, PATIENCE, Proxy, Spec, machine, until};

/// More than the budget's part for tenants, so that nothing but the budget holds them back.
const ROLE_CONNECTIONS_MAX: u32 = 100;

/// A tenant as `CreateTenant` makes one, without a catalog.
struct Tenant {
    id: TenantId,
    code: TenantCode,
    roles: TenantRoles,
    password: secrecy::SecretString,
    database: DatabaseName,
    operation: Uuid,
}

impl Tenant {
    /// Every step twice: each may be repeated.
    async fn create(fleet: &Fleet, server: &Server, code: &str) -> Self {
        let code: TenantCode = code.parse().unwrap();
        let tenant = Self {
            id: TenantId(Uuid::now_v7()),
            roles: TenantRoles::new(&fleet.naming, &code).unwrap(),
            password: password_new(),
            database: fleet.naming.tenant_database(&code).unwrap(),
            operation: Uuid::now_v7(),
            code,
        };
        let admin = server.connect_admin(server.maintenance_database()).await.unwrap();
        for _ in 0..2 {
            tenant.roles_create(&admin, tenant.operation).await.unwrap();
        }
        let new = database_under_construction(tenant.operation);
        tenant.database_fill(server, &new, 1).await;
        admin::sessions_end(&admin, &new).await.unwrap();
        admin::database_rename(&admin, &new, &tenant.database).await.unwrap();
        tenant
    }

    async fn roles_create(&self, admin: &Connection, operation: Uuid) -> Result<(), Error> {
        let login = |role| TenantLogin::new(role, &self.password, ROLE_CONNECTIONS_MAX);
        let logins: Vec<TenantLogin> = TenantRole::LOGINS.into_iter().map(login).collect();
        roles::tenant_roles_create(admin, &self.roles, &logins, operation).await
    }

    /// A new database with grants and the identity row.
    async fn database_fill(&self, server: &Server, name: &DatabaseName, generation: i64) {
        let admin = server.connect_admin(server.maintenance_database()).await.unwrap();
        admin::database_create(&admin, &NewDatabase { name, template: None, locale: None }).await.unwrap();
        let context = TenantContext { tenant: self.id, code: &self.code };
        for _ in 0..2 {
            roles::database_grant(&admin, name, &self.roles, &server.dump().role, &context).await.unwrap();
            admin::database_connections_allow(&admin, name, true).await.unwrap();
            let inside = server.connect_admin(name).await.unwrap();
            roles::schema_grant(&inside, &self.roles).await.unwrap();
            identity_write(&inside, &self.identity(generation), &self.roles.all()).await.unwrap();
        }
    }

    fn identity(&self, generation: i64) -> Identity {
        Identity { tenant: self.id, catalog: Uuid::nil(), generation }
    }

    fn login(&self, role: TenantRole) -> RoleLogin {
        RoleLogin { role: self.roles.name(role).unwrap().clone(), password: self.password.clone() }
    }

    async fn enter(&self, server: &Server, role: TenantRole) -> Result<Connection, Error> {
        connect(server, &self.login(role), &self.database).await
    }
}

async fn connect(server: &Server, login: &RoleLogin, database: &DatabaseName) -> Result<Connection, Error> {
    server.connect(&request(login, database)).await
}

fn request<'a>(login: &'a RoleLogin, database: &'a DatabaseName) -> ConnectRequest<'a> {
    let deadline = Instant::now() + Duration::from_mins(1);
    let options = SessionOptions::default();
    ConnectRequest { lane: Lane::Tenant, login, database, application_name: "the test", options, deadline }
}

/// The SQLSTATE of a statement that has to be refused.
async fn refusal(client: &Connection, sql: &str) -> String {
    let Err(error) = client.batch_execute(sql).await else { panic!("this was allowed: {sql}") };
    error.code().unwrap().code().to_owned()
}

#[tokio::test]
async fn a_tenants_roles_reach_its_own_database_and_no_other() {
    let fleet = Fleet::new(Spec::default()).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let acme = Tenant::create(&fleet, &server, "acme").await;
    let beta = Tenant::create(&fleet, &server, "beta").await;
    let judge = fleet.judge("postgres").await;
    let mut others = admin::database_names(&judge).await.unwrap();
    others.retain(|name| fleet_has(&fleet, name) && *name != acme.database);
    others.extend(["postgres", "template1"].map(|name| DatabaseName::new(name).unwrap()));
    assert!(others.contains(&beta.database) && others.contains(&fleet.naming.shared_database()));
    for role in TenantRole::LOGINS {
        let own = acme.enter(&server, role).await.unwrap();
        assert_eq!(identity_read(&own).await.unwrap(), acme.identity(1));
        for other in &others {
            let error = connect(&server, &acme.login(role), other).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Permission, "{other}: {error}");
        }
    }
    let error = acme.enter(&server, TenantRole::Owner).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Authentication, "{error}");
    fleet.finish().await;
}

fn fleet_has(fleet: &Fleet, database: &DatabaseName) -> bool {
    database.as_str().starts_with(&format!("{}_", fleet.naming.prefix()))
}

#[tokio::test]
async fn what_a_tenants_logins_make_is_the_owners_and_nothing_lifts_their_limits() {
    let fleet = Fleet::new(Spec::default()).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let acme = Tenant::create(&fleet, &server, "acme").await;
    let database = acme.database.quoted();
    let owner = acme.roles.owner.quoted();
    let mine = acme.enter(&server, TenantRole::Migrator).await.unwrap();
    mine.batch_execute("CREATE TABLE things (id int); CREATE SCHEMA side; CREATE TABLE side.things (id int)")
        .await
        .unwrap();
    let query = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname = 'things'";
    let owners = mine.query(query, &[]).await.unwrap();
    assert_eq!(owners.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>(), [acme.roles.owner.as_str()]);
    let settings = "SELECT current_setting('app.current_tenant_id') || ' ' || current_setting('app.current_tenant')";
    let told: String = mine.query_one(settings, &[]).await.unwrap().get(0);
    assert_eq!(told, format!("{} acme", acme.id));
    for sql in [
        "UPDATE tenantd.identity SET generation = 2",
        "DROP SCHEMA tenantd CASCADE",
        "ALTER SCHEMA tenantd RENAME TO elsewhere",
        "CREATE TABLE tenantd.mine ()",
        &format!("DROP DATABASE {database}"),
        &format!("ALTER DATABASE {database} CONNECTION LIMIT -1"),
        &format!("ALTER ROLE {} CONNECTION LIMIT -1", acme.login(TenantRole::Migrator).role.quoted()),
        "CREATE ROLE friend",
        "CREATE DATABASE friend",
        "SET ROLE tenantd",
    ] {
        assert_eq!(refusal(&mine, sql).await, "42501", "{sql}");
    }
    // PostgreSQL answers this with a warning only.
    mine.batch_execute(&format!("GRANT CONNECT ON DATABASE {database} TO PUBLIC")).await.unwrap();
    let query = "SELECT count(*) FROM pg_database, aclexplode(datacl) a WHERE datname = $1 AND a.grantee = 0";
    let public: i64 = mine.query_one(query, &[&acme.database.as_str()]).await.unwrap().get(0);
    assert_eq!(public, 0);

    let reader = acme.enter(&server, TenantRole::Reader).await.unwrap();
    reader.batch_execute("SELECT FROM things; SELECT FROM side.things").await.unwrap();
    for sql in ["INSERT INTO things VALUES (1)", "CREATE TABLE mine ()", &format!("SET ROLE {owner}")] {
        assert_eq!(refusal(&reader, sql).await, "42501", "{sql}");
    }
    fleet.finish().await;
}

#[tokio::test]
async fn the_daemons_role_is_no_superuser_and_can_swap_lock_out_end_and_drop() {
    let fleet = Fleet::new(Spec::default()).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let before = fleet.inventory().await;
    let acme = Tenant::create(&fleet, &server, "acme").await;
    let mut admin = server.connect_admin(server.maintenance_database()).await.unwrap();
    let query = "SELECT rolsuper OR rolreplication OR rolbypassrls FROM pg_roles WHERE rolname = current_user";
    assert!(!admin.query_one(query, &[]).await.unwrap().get::<_, bool>(0));

    let operation = Uuid::now_v7();
    let (new, old) = (database_under_construction(operation), database_replaced(operation));
    acme.database_fill(&server, &new, 2).await;
    let bystander = acme.enter(&server, TenantRole::DirectA).await.unwrap();
    admin::databases_swap(&mut admin, &acme.database, &new, &old).await.unwrap();
    assert!(bystander.batch_execute("SELECT 1").await.is_err());
    let entered = acme.enter(&server, TenantRole::Router).await.unwrap();
    assert_eq!(identity_read(&entered).await.unwrap().generation, 2);
    assert_eq!(connect(&server, &acme.login(TenantRole::Router), &old).await.unwrap_err().kind(), Kind::InUse);

    roles::logins_enable(&admin, &acme.roles.login_names(), false).await.unwrap();
    roles::database_connect_allow(&admin, &acme.database, &acme.roles, false).await.unwrap();
    admin::role_sessions_end(&admin, &acme.database, &acme.roles.all()).await.unwrap();
    assert_eq!(admin::sessions_count(&admin, &acme.database).await.unwrap(), 0);
    assert!(entered.batch_execute("SELECT 1").await.is_err());
    let kind = async || acme.enter(&server, TenantRole::Router).await.err().map(|error| error.kind());
    assert_eq!(kind().await, Some(Kind::Authentication));
    connect(&server, server.dump(), &acme.database).await.unwrap();
    roles::logins_enable(&admin, &acme.roles.login_names(), true).await.unwrap();
    assert_eq!(kind().await, Some(Kind::Permission));
    roles::database_connect_allow(&admin, &acme.database, &acme.roles, true).await.unwrap();
    assert_eq!(kind().await, None);

    let _open = acme.enter(&server, TenantRole::Router).await.unwrap();
    for database in [&acme.database, &old, &old] {
        admin::database_drop(&admin, database).await.unwrap();
    }
    for _ in 0..2 {
        roles::tenant_roles_drop(&admin, &acme.roles, Some(acme.operation)).await.unwrap();
    }
    assert!(fleet.inventory().await.since(&before).is_empty());
    fleet.finish().await;
}

#[tokio::test]
async fn roles_and_databases_of_others_are_left_alone() {
    let fleet = Fleet::new(Spec::default()).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let acme = Tenant::create(&fleet, &server, "acme").await;
    let admin = server.connect_admin(server.maintenance_database()).await.unwrap();
    let another = Uuid::now_v7();
    let error = acme.roles_create(&admin, another).await.unwrap_err();
    assert!(matches!(error, Error::ForeignRole { .. }), "{error}");
    roles::tenant_roles_drop(&admin, &acme.roles, Some(another)).await.unwrap();
    assert_eq!(roles::roles_existing(&admin, &acme.roles.all()).await.unwrap().len(), acme.roles.all().len());

    let (daemon, dump) = (&server.daemon().role, &server.dump().role);
    let stranger = RoleName::new("postgres").unwrap();
    let error = bootstrap::bootstrap_databases(&admin, &fleet.naming, &stranger, dump).await.unwrap_err();
    assert!(matches!(error, Error::ForeignDatabase { .. }), "{error}");
    let said = bootstrap::bootstrap_databases(&admin, &fleet.naming, daemon, dump).await.unwrap();
    assert!(said.iter().all(|line| line.contains("was there already")), "{said:?}");
    let error = bootstrap::bootstrap_roles(&admin, &machine().credentials).await.unwrap_err();
    assert!(matches!(error, Error::NotBootstrapper { .. }), "{error}");
    fleet.finish().await;
}

#[tokio::test]
async fn the_server_never_sees_more_sessions_than_the_budget_whatever_callers_do() {
    const CALLERS: u64 = 150;
    let fleet = Fleet::new(Spec::default()).await;
    let mut config = fleet.config().servers[0].clone();
    (config.connections_max, config.connections_reserved) = (12, 6);
    let tasks = fleet.tasks();
    let admin_server = fleet.server(&tasks);
    let acme = Tenant::create(&fleet, &admin_server, "acme").await;
    let server = Server::new(&config, &tasks, Uuid::now_v7()).unwrap();

    let call = async |number: u64| {
        let work = async {
            let client = acme.enter(&server, TenantRole::Router).await.unwrap();
            client.batch_execute(&format!("SELECT pg_sleep(0.0{})", number % 7)).await.unwrap();
        };
        // Two of three go away at some moment: while queueing, connecting, logging in, or in the statement.
        let patience = if number.is_multiple_of(3) { 60_000 } else { number * 13 % 400 };
        timeout(Duration::from_millis(patience), work).await.is_ok()
    };
    let judge = fleet.judge("postgres").await;
    let query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'the test' AND usename = $1";
    let login = acme.login(TenantRole::Router).role;
    let sessions = async || judge.query_one(query, &[&login.as_str()]).await.unwrap().get::<_, i64>(0);
    let storm = futures_util::future::join_all((0..CALLERS).map(call));
    tokio::pin!(storm);
    let (mut most, mut served) = (0, None);
    while served.is_none() {
        tokio::select! {
            all = &mut storm => served = Some(all.into_iter().filter(|served| *served).count()),
            now = sessions() => most = most.max(now),
        }
    }
    assert!(served.unwrap() >= usize::try_from(CALLERS / 3).unwrap(), "{served:?}");
    assert!((1..=6).contains(&most), "{most} sessions at one moment");
    until("every permit is back", async || (server.budget().in_use() == 0).then_some(())).await;
    assert_eq!(sessions().await, 0);
    fleet.finish().await;
}

#[tokio::test]
async fn an_abandoned_statement_is_cancelled_and_its_permit_comes_back() {
    let fleet = Fleet::new(Spec::default()).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let acme = Tenant::create(&fleet, &server, "acme").await;
    let login = acme.login(TenantRole::Router);
    let judge = fleet.judge("postgres").await;
    let running = "SELECT true FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'SELECT pg_sleep%'";
    let begun = async || judge.query_opt(running, &[&acme.database.as_str()]).await.unwrap().map(drop);

    // Those that made the tenant may still be ending.
    until("the permits are back", async || (server.budget().in_use() == 0).then_some(())).await;
    let client = connect(&server, &login, &acme.database).await.unwrap();
    tokio::select! {
        _ = client.batch_execute("SELECT pg_sleep(3600)") => panic!("it should sleep"),
        () = until("the statement runs", begun) => {}
    }
    assert_eq!(server.budget().in_use(), 1);
    drop(client);
    until("the permit is back", async || (server.budget().in_use() == 0).then_some(())).await;

    // As deadpool does it: it aborts the handle.
    let (client, handle, _encoding) = server.connect_raw(None, &request(&login, &acme.database)).await.unwrap();
    tokio::select! {
        _ = client.batch_execute("SELECT pg_sleep(3600)") => panic!("it should sleep"),
        () = until("the statement runs", begun) => {}
    }
    drop(client);
    handle.abort();
    until("the permit is back", async || (server.budget().in_use() == 0).then_some(())).await;
    assert!(begun().await.is_none());
    fleet.finish().await;
}

#[tokio::test]
async fn a_dead_daemons_sessions_are_ended_and_its_locks_with_them() {
    let fleet = Fleet::new(Spec::default()).await;
    let tasks = fleet.tasks();
    let (dead, heir) = (fleet.server(&tasks), fleet.server(&tasks));
    let left = dead.connect_admin(dead.maintenance_database()).await.unwrap();
    let admin = heir.connect_admin(heir.maintenance_database()).await.unwrap();
    let key = locks::advisory_key("test", dead.instance());
    assert!(locks::advisory_lock_poll(&left, key, Duration::ZERO).await.unwrap());
    assert!(!locks::advisory_lock_poll(&admin, key, Duration::from_millis(30)).await.unwrap());
    admin::instance_sessions_end(&admin, dead.instance()).await.unwrap();
    assert!(left.batch_execute("SELECT 1").await.is_err());
    assert!(locks::advisory_lock_poll(&admin, key, Duration::ZERO).await.unwrap());
    assert!(locks::advisory_unlock(&admin, key).await.unwrap());
    fleet.finish().await;
}

#[tokio::test]
async fn what_listeners_hear_arrives() {
    let fleet = Fleet::new(Spec::default()).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let shared = fleet.naming.shared_database();
    let mut listener = server.connect_admin(&shared).await.unwrap();
    let mut heard = listener.notifications().unwrap();
    listener.batch_execute("LISTEN somebody").await.unwrap();
    fleet.judge(shared.as_str()).await.batch_execute("NOTIFY somebody, 'news'").await.unwrap();
    assert_eq!(heard.recv().await.unwrap().payload(), "news");
    drop(listener);
    assert!(heard.recv().await.is_none());
    fleet.finish().await;
}

#[tokio::test]
async fn administration_gets_its_place_although_the_catalog_is_in_use_all_the_time() {
    let spec = Spec::default().setting("[[servers]]", "connections_max", "10");
    let fleet = Fleet::new(spec.setting("[[servers]]", "connections_reserved", "4")).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let catalog = fleet.catalog(&server).await;
    let tenants: Vec<_> = std::iter::from_fn(|| server.budget().try_acquire(Lane::Tenant)).collect();
    assert_eq!(tenants.len(), 6);
    let mut transactions = Vec::new();
    while server.budget().in_use() < 10 {
        transactions.push(catalog.begin().await.unwrap());
    }
    drop(transactions);
    let busy = async {
        loop {
            catalog.position().await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let admin = tokio::select! {
        admin = server.connect_admin(server.maintenance_database()) => admin.unwrap(),
        () = busy => unreachable!("it is busy for ever"),
    };
    assert_eq!(admin.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    // The reserve has a place for both.
    catalog.position().await.unwrap();
    drop((admin, tenants));
    fleet.finish().await;
}

#[tokio::test]
async fn the_auth_database_gets_its_place_although_idle_sessions_on_the_shared_one_fill_the_reserve() {
    let spec = Spec::default().setting("[[servers]]", "connections_max", "10");
    let fleet = Fleet::new(spec.setting("[[servers]]", "connections_reserved", "4")).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let catalog = fleet.catalog(&server).await;
    let accounts = Accounts::new(&server, &fleet.naming.auth_database()).unwrap();
    let tenants: Vec<_> = std::iter::from_fn(|| server.budget().try_acquire(Lane::Tenant)).collect();
    assert_eq!(tenants.len(), 6);
    let mut transactions = Vec::new();
    while server.budget().in_use() < 10 {
        transactions.push(catalog.begin().await.unwrap());
    }
    let kept = transactions.pop();
    drop(transactions);
    assert_eq!(server.budget().in_use(), 10, "three of the sessions are idle");
    // Nobody uses the others, so that none of them comes back.
    accounts.migrate().await.unwrap();
    drop((kept, tenants));
    fleet.finish().await;
}

#[tokio::test]
async fn idle_sessions_stay_while_a_smaller_budget_takes_what_comes_free() {
    let spec = Spec::default().setting("[[servers]]", "connections_max", "10");
    let fleet = Fleet::new(spec.setting("[[servers]]", "connections_reserved", "4")).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let catalog = fleet.catalog(&server).await;
    let tenants: Vec<_> = std::iter::from_fn(|| server.budget().try_acquire(Lane::Tenant)).collect();
    let transactions = futures_util::future::join_all((0..2).map(|_| catalog.begin())).await;
    drop(transactions);
    server.budget().resize(6, 4);
    let sessions = server.budget().in_use();
    assert!(sessions >= tenants.len() + 2, "two more than may be: {sessions}");
    let soon = Instant::now() + Duration::from_millis(300);
    server.budget().acquire(Lane::Catalog, soon).await.unwrap_err();
    assert_eq!(server.budget().in_use(), sessions);
    // They are still there for whoever asks.
    catalog.position().await.unwrap();
    drop(tenants);
    server.budget().acquire(Lane::Catalog, Instant::now() + Duration::from_mins(1)).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn logins_that_hang_keep_nobody_from_the_catalog_and_end_when_nothing_may_be_opened() {
    let spec = Spec::default().setting("[[servers]]", "connects_parallel_max", "2");
    let fleet = Fleet::new(spec).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let acme = Tenant::create(&fleet, &server, "acme").await;
    let judge = fleet.judge("postgres").await;
    // Whoever logs in waits for the end of this transaction.
    let rename = format!("BEGIN; ALTER DATABASE \"{}\" RENAME TO \"{}_never\"", acme.database, acme.database);
    until("nobody is in the database", async || match judge.batch_execute(&rename).await {
        Ok(()) => Some(()),
        Err(_still_there) => {
            judge.batch_execute("ROLLBACK").await.unwrap();
            None
        }
    })
    .await;
    let login = acme.login(TenantRole::LOGINS[0]);
    let (first, second) = (request(&login, &acme.database), request(&login, &acme.database));
    let logging_in = async { tokio::join!(server.connect(&first), server.connect(&second)) };
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND classid = 'pg_database'::regclass
        AND objid = (SELECT oid FROM pg_database WHERE datname = $1)";
    let meanwhile = async {
        until("both wait", async || {
            (judge.query_one(waiting, &[&format!("{}_never", acme.database)]).await.unwrap().get::<_, i64>(0) == 2)
                .then_some(())
        })
        .await;
        fleet.catalog(&server).await.position().await.unwrap();
        // Nor do they go on once the daemon may open nothing more.
        server.budget().fence(true);
    };
    let ((one, other), ()) = tokio::join!(logging_in, meanwhile);
    for answer in [one, other] {
        assert!(matches!(answer, Err(Error::ShareUncertain { .. })), "{answer:?}");
    }
    judge.batch_execute("ROLLBACK").await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn the_server_notices_soon_that_it_does_not_hear_a_session_whatever_it_is_for() {
    let fleet = Fleet::new(Spec::default()).await;
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let tenant = Tenant::create(&fleet, &server, "acme").await;
    let seconds = async |session: &Connection| {
        let sql = "SELECT sum(setting::int * CASE name WHEN 'tcp_keepalives_count' THEN 5 ELSE 1 END) FROM pg_settings
            WHERE name IN ('tcp_keepalives_idle', 'tcp_keepalives_count')";
        session.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    let admin = server.connect_admin(server.maintenance_database()).await.unwrap();
    assert_eq!(seconds(&admin).await, 25);
    let session = tenant.enter(&server, TenantRole::Router).await.unwrap();
    // Before the daemon gives its place out again.
    assert_eq!(seconds(&session).await, 25);
    drop((admin, session));
    fleet.finish().await;
}

#[tokio::test]
async fn a_server_that_falls_silent_while_it_ends_sessions_is_not_waited_for_for_ever() {
    let upstream = format!("{}:{}", machine().host, machine().port).parse().unwrap();
    let proxy = Proxy::start(upstream).await;
    let fleet = Fleet::new(Spec::default().setting("[[servers]]", "port", &proxy.address.port().to_string())).await;
    fleet.allow_log("a backend is still there");
    let tasks = fleet.tasks();
    let server = fleet.server(&tasks);
    let admin = server.connect_admin(server.maintenance_database()).await.unwrap();
    // The connection stays, and leads nowhere: nothing but a clock can tell.
    proxy.part();
    let ended = timeout(PATIENCE, admin::instance_sessions_end(&admin, Uuid::new_v4())).await.expect("it is given up");
    assert_eq!(ended.unwrap_err().kind(), Kind::Unreachable);
    proxy.join();
    drop(admin);
    fleet.finish().await;
}
