//! The rooms below the operations, without a daemon: catalog and router on a fleet of the test's own, with tenants that
//! are made by the fewest statements. For tests of pools and statements.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use secrecy::ExposeSecret as _;
use tenantd::catalog::{Catalog, NewTenant, Txn};
use tenantd::config::{Config, Limits, Live};
use tenantd::domain::lifecycle::Transition;
use tenantd::domain::tenant::{TenantCode, TenantId};
use tenantd::postgres::roles::{self, TenantContext, TenantLogin, TenantRoles};
use tenantd::postgres::{Server, admin, identity};
use tenantd::query::Queries;
use tenantd::router::{Lease, Residue, Router, credentials::role_field};
use tenantd::secrets::{Aad, Envelope, password_new};
use tenantd::shutdown::Tasks;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::harness::{Fleet, Spec, root_span, until};

/// A fleet's rooms.
#[derive(Debug)]
pub struct Rooms {
    pub fleet: Fleet,
    pub config: Config,
    pub tasks: Tasks,
    pub server: Server,
    pub catalog: Catalog,
    pub envelope: Arc<Envelope>,
    pub router: Router,
    pub live: Live,
    pub queries: Queries,
}

/// A tenant that was made here.
#[derive(Debug, Clone)]
pub struct Made {
    pub id: TenantId,
    pub code: TenantCode,
    pub database: String,
    pub roles: TenantRoles,
}

impl Rooms {
    pub async fn new(spec: Spec) -> Self {
        let fleet = Fleet::new(spec).await;
        let config = fleet.config();
        let tasks = Tasks::new(root_span(fleet.naming.prefix()));
        let server = Server::new(&config.servers[0], &tasks, Uuid::new_v4()).unwrap();
        let catalog = Catalog::new(&server, &fleet.naming.shared_database()).unwrap();
        catalog.migrate().await.unwrap();
        catalog.server_register("main", &config.servers[0].host, config.servers[0].port).await.unwrap();
        let envelope = Arc::new(Envelope::new(&config.keys.key_encryption_key).unwrap());
        let live = Live::new(config.limits.clone());
        let router = Router::new(
            live.clone(),
            config.naming.clone(),
            BTreeMap::from([("main".to_owned(), server.clone())]),
            catalog.clone(),
            Arc::clone(&envelope),
            &tasks,
        );
        let queries =
            Queries::new(live.clone(), config.naming.clone(), server.clone(), router.clone(), catalog.clone(), &tasks);
        Self { fleet, config, tasks, server, catalog, envelope, router, live, queries }
    }

    /// As when the configuration is read again.
    pub fn limits(&self, change: impl FnOnce(&mut Limits)) {
        let mut limits = (*self.live.current()).clone();
        change(&mut limits);
        self.live.replace(limits);
        self.router.limits_follow();
    }

    /// So many tenants, some at the same time.
    pub async fn tenants(&self, count: usize) -> Vec<Made> {
        let codes = (0..count).map(|number| format!("t{number}"));
        stream::iter(codes).map(async |code| self.tenant(&code).await).buffered(4).collect().await
    }

    /// An active tenant with an empty database of its own.
    pub async fn tenant(&self, code: &str) -> Made {
        self.tenant_of(code, "standard").await
    }

    /// As [`Rooms::tenant`], of this tier.
    pub async fn tenant_of(&self, code: &str, tier: &str) -> Made {
        let id = TenantId(Uuid::now_v7());
        let code: TenantCode = code.parse().unwrap();
        let database = self.config.naming.tenant_database(&code).unwrap();
        let roles = TenantRoles::new(&self.config.naming, &code).unwrap();
        let txn = self.catalog.begin().await.unwrap();
        let new = NewTenant {
            id,
            code: code.clone(),
            name: code.to_string(),
            legal_name: None,
            siret: None,
            vat_number: None,
            tier: tier.to_owned(),
            server: "main".to_owned(),
            database: database.clone(),
            hosts: vec![format!("{code}.example.com")],
        };
        self.catalog.tenant_reserve_in_txn(&txn, &new).await.unwrap();
        let logins = self.logins(&txn, id, &roles).await;
        self.catalog.tenant_transition_in_txn(&txn, id, Transition::Activate).await.unwrap();
        txn.commit().await.unwrap();
        let client = self.server.connect_admin(self.server.maintenance_database()).await.unwrap();
        roles::tenant_roles_create(&client, &roles, &logins, Uuid::nil()).await.unwrap();
        let created = admin::NewDatabase { name: &database, template: None, locale: None };
        admin::database_create(&client, &created).await.unwrap();
        let context = TenantContext { tenant: id, code: &code };
        let dump = &self.server.dump().role;
        roles::database_grant(&client, &database, &roles, dump, &context).await.unwrap();
        admin::database_connections_allow(&client, &database, true).await.unwrap();
        let inside = self.server.connect_admin(&database).await.unwrap();
        roles::schema_grant(&inside, &roles).await.unwrap();
        let row = identity::Identity { tenant: id, catalog: self.catalog.id().await.unwrap(), generation: 1 };
        identity::identity_write(&inside, &row, &roles.all()).await.unwrap();
        let generation = self.catalog.tenant_get(&tenantd::catalog::TenantRef::Id(id)).await.unwrap().generation;
        assert_eq!(generation, row.generation);
        Made { id, code, database: database.to_string(), roles }
    }

    async fn logins(&self, txn: &Txn, id: TenantId, roles: &TenantRoles) -> Vec<TenantLogin> {
        let key = self.envelope.data_key_new().unwrap();
        self.catalog.tenant_data_key_put_in_txn(txn, id, &key).await.unwrap();
        let mut logins = Vec::new();
        for (role, name) in &roles.logins {
            let password = password_new();
            let field = role_field(name);
            let aad = Aad { tenant: id.0, field: &field, version: 1 };
            let sealed = self.envelope.seal(&key, &aad, password.expose_secret().as_bytes()).unwrap();
            self.catalog.tenant_secret_put_in_txn(txn, id, &field, 1, &sealed).await.unwrap();
            logins.push(TenantLogin::new(*role, &password, 50));
        }
        logins
    }

    pub async fn lease(&self, tenant: &Made) -> Result<Lease, tenantd::router::Error> {
        self.router.acquire(tenant.id, Instant::now() + Duration::from_secs(30)).await
    }

    /// A caller that comes, asks for one value and goes.
    pub async fn call(&self, tenant: &Made) -> Result<String, tenantd::router::Error> {
        let lease = self.lease(tenant).await?;
        let row = lease.query_one("SELECT current_database()::text", &[]).await.unwrap();
        lease.release(Residue::Nothing);
        Ok(row.get(0))
    }

    /// Sessions of tenants' databases on the server, as a superuser sees them.
    pub async fn sessions(&self) -> i64 {
        let judge = self.fleet.judge("postgres").await;
        sessions(&judge, self.config.naming.prefix()).await
    }

    /// Awaits that the server has so many sessions of tenants.
    pub async fn sessions_become(&self, count: i64) {
        until(&format!("there are {count} sessions"), async || (self.sessions().await == count).then_some(())).await;
    }

    /// Ends everything; nothing may be left on the server.
    pub async fn finish(self) {
        self.catalog.close();
        let late = self.tasks.end(Duration::from_secs(20)).await;
        assert!(late.is_empty(), "still running: {late:?}");
        self.fleet.finish().await;
    }
}

/// Callers who come again as soon as they are served.
#[derive(Debug)]
pub struct Callers {
    tasks: JoinSet<()>,
    done: Arc<AtomicUsize>,
}

impl Callers {
    pub fn new<F>(count: usize, call: impl Fn() -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let (mut tasks, done) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..count {
            let (call, done) = (call.clone(), Arc::clone(&done));
            tasks.spawn(async move {
                loop {
                    call().await;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { tasks, done }
    }

    /// Calls that they have made.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Awaits so many more.
    pub async fn go_on(&self, count: usize) {
        let before = self.done();
        until("callers are served", async || (self.done() >= before + count).then_some(())).await;
    }

    /// Sends them away. None may have gone by itself.
    pub async fn end(mut self) {
        self.tasks.abort_all();
        while let Some(ended) = self.tasks.join_next().await {
            assert!(ended.is_err_and(|error| error.is_cancelled()));
        }
    }
}

/// Sessions of the router's: those that are named after a tenant.
pub async fn sessions(judge: &tokio_postgres::Client, prefix: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, $1 || '_')";
    judge.query_one(sql, &[&prefix]).await.unwrap().get(0)
}
