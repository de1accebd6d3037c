//! Many tenants, made fast: each database is a copy of one small template, the catalog's rows go in by the hundred, and
//! of the roles there is only the one that the router logs in as. What the router sees of a tenant is as in life:
//! settings of the role in its database, identity row, sealed password.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream;
use secrecy::ExposeSecret as _;
use tenantd::catalog::{Catalog, NewTenant, TenantRef, Txn};
use tenantd::config::{self, RoleLogin};
use tenantd::domain::lifecycle::Transition;
use tenantd::domain::tenant::{DatabaseName, Naming, TenantCode, TenantId, TenantRole};
use tenantd::postgres::identity::{Identity, identity_write};
use tenantd::postgres::roles::{self, TenantContext, TenantLogin, TenantRoles};
use tenantd::postgres::{Server, admin};
use tenantd::router::credentials::role_field;
use tenantd::secrets::{Aad, Envelope, password_new};
use tenantd::shutdown::Tasks;
use uuid::Uuid;

use crate::stage::Stage;

/// Rows of `things`, in every tenant.
pub const THINGS: i64 = 1_000;
/// Databases that are made at the same moment.
const PARALLEL: usize = 3;
const PER_TRANSACTION: usize = 200;
const CONNECTIONS_MAX: u32 = 10_000;

/// The tenants, and what makes more of them.
#[derive(Debug)]
pub struct Fleet {
    naming: Naming,
    server: Server,
    envelope: Envelope,
    dump: tenantd::domain::tenant::RoleName,
    template: DatabaseName,
    dir: PathBuf,
    tasks: Tasks,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Tenant {
    id: TenantId,
    pub code: TenantCode,
    pub database: DatabaseName,
    pub login: RoleLogin,
}

/// The n-th tenant's code.
pub fn code(number: usize) -> String {
    format!("t{number}")
}

impl Fleet {
    pub async fn new(dir: &Path, naming: Naming) -> Self {
        let config = config::load(&dir.join("tenantd.toml")).unwrap();
        let tasks = Tasks::new(tracing::Span::none());
        let server = Server::new(&config.servers[0], &tasks, Uuid::new_v4()).unwrap();
        let catalog = Catalog::new(&server, &naming.shared_database()).unwrap();
        catalog.migrate().await.unwrap();
        catalog.server_register("main", &config.servers[0].host, config.servers[0].port).await.unwrap();
        catalog.close();
        let envelope = Envelope::new(&config.keys.key_encryption_key).unwrap();
        let dump = server.dump().role.clone();
        let template = DatabaseName::new("bench_template").unwrap();
        Self { naming, server, envelope, dump, template, dir: dir.to_owned(), tasks }
    }

    /// To be closed: no daemon starts beside another one, which this looks like.
    fn catalog(&self) -> Catalog {
        Catalog::new(&self.server, &self.naming.shared_database()).unwrap()
    }

    /// The tenants 0 to `count`, those made that are not there yet.
    pub async fn tenants(&self, stage: &Stage, count: usize) -> Arc<[Tenant]> {
        let (file, catalog) = (self.dir.join("passwords"), self.catalog());
        let mut passwords: Vec<String> =
            fs::read_to_string(&file).unwrap_or_default().lines().map(str::to_owned).collect();
        if passwords.len() < count {
            let began = Instant::now();
            let first = passwords.len();
            passwords.resize_with(count, || password_new().expose_secret().to_owned());
            let ids = self.reserve(&catalog, first, &passwords).await;
            self.databases(stage, catalog.id().await.unwrap(), &self.named(first, &ids, &passwords)).await;
            fs::write(&file, passwords.join("\n")).unwrap();
            println!("made the tenants {first} to {count} in {:.1} s", began.elapsed().as_secs_f64());
        }
        passwords.truncate(count);
        let mut ids = Vec::new();
        for number in 0..count {
            let tenant = TenantRef::Code(code(number).parse().unwrap());
            ids.push(catalog.tenant_get(&tenant).await.unwrap().id);
        }
        catalog.close();
        self.named(0, &ids, &passwords).into()
    }

    fn named(&self, first: usize, ids: &[TenantId], passwords: &[String]) -> Vec<Tenant> {
        let named = |(index, id): (usize, &TenantId)| {
            let code: TenantCode = code(first + index).parse().unwrap();
            let role = self.naming.tenant_role(&code, TenantRole::Router).unwrap();
            let login = RoleLogin { role, password: passwords[first + index].as_str().into() };
            Tenant { id: *id, database: self.naming.tenant_database(&code).unwrap(), code, login }
        };
        ids.iter().enumerate().map(named).collect()
    }

    /// Rows of the catalog for the tenants from `first` on, one for each password.
    async fn reserve(&self, catalog: &Catalog, first: usize, passwords: &[String]) -> Vec<TenantId> {
        let mut ids = Vec::new();
        let numbers: Vec<usize> = (first..passwords.len()).collect();
        for part in numbers.chunks(PER_TRANSACTION) {
            let txn = catalog.begin().await.unwrap();
            for number in part {
                let code: TenantCode = code(*number).parse().unwrap();
                ids.push(self.reserve_in_txn((catalog, &txn), &code, &passwords[*number]).await);
            }
            txn.commit().await.unwrap();
        }
        ids
    }

    /// Tenants that have nothing but their row, for who only wants to know where they are.
    pub async fn routes(&self, stage: &Stage, prefix: &str, count: usize) -> Vec<String> {
        let catalog = self.catalog();
        let revision = catalog.revision().await.unwrap();
        catalog.close();
        let shared = stage.judge(self.naming.shared_database().as_str()).await;
        let sql = format!(
            "INSERT INTO tenants (id, code, name, tier, server, database, state, revision)
             SELECT gen_random_uuid(), code, code, 'standard', 'main', '{}_' || code, 'ACTIVE', {revision}
             FROM (SELECT '{prefix}' || n AS code FROM generate_series(0, {count} - 1) AS n) AS wanted
             WHERE NOT EXISTS (SELECT FROM tenants AS made WHERE made.code = wanted.code)",
            self.naming.prefix()
        );
        shared.batch_execute(&sql).await.unwrap();
        (0..count).map(|number| format!("{prefix}{number}")).collect()
    }

    async fn reserve_in_txn(&self, (catalog, txn): (&Catalog, &Txn), code: &TenantCode, password: &str) -> TenantId {
        let id = TenantId(Uuid::now_v7());
        let new = NewTenant {
            id,
            code: code.clone(),
            name: code.to_string(),
            legal_name: None,
            siret: None,
            vat_number: None,
            tier: "standard".to_owned(),
            server: "main".to_owned(),
            database: self.naming.tenant_database(code).unwrap(),
            hosts: vec![format!("{code}.example.com")],
        };
        catalog.tenant_reserve_in_txn(txn, &new).await.unwrap();
        catalog.tenant_transition_in_txn(txn, id, Transition::Activate).await.unwrap();
        let key = self.envelope.data_key_new().unwrap();
        catalog.tenant_data_key_put_in_txn(txn, id, &key).await.unwrap();
        let field = role_field(&self.naming.tenant_role(code, TenantRole::Router).unwrap());
        let aad = Aad { tenant: id.0, field: &field, version: 1 };
        let sealed = self.envelope.seal(&key, &aad, password.as_bytes()).unwrap();
        catalog.tenant_secret_put_in_txn(txn, id, &field, 1, &sealed).await.unwrap();
        id
    }

    async fn databases(&self, stage: &Stage, catalog: Uuid, tenants: &[Tenant]) {
        self.template(stage, catalog).await;
        stream::iter(tenants.chunks(tenants.len().div_ceil(PARALLEL)))
            .for_each_concurrent(PARALLEL, |part| async move {
                let client = stage.connect_daemon("postgres").await;
                for tenant in part {
                    self.database(stage, &client, tenant, catalog).await;
                }
            })
            .await;
        // What was just written is on its way to the disk, and would be during the measurements.
        stage.judge("postgres").await.batch_execute("CHECKPOINT").await.unwrap();
    }

    /// Everything that the databases have in common.
    async fn template(&self, stage: &Stage, catalog: Uuid) {
        let client = stage.connect_daemon("postgres").await;
        if admin::database_oid(&client, &self.template).await.unwrap().is_some() {
            return;
        }
        let new = admin::NewDatabase { name: &self.template, template: None, locale: None };
        admin::database_create(&client, &new).await.unwrap();
        admin::database_connections_allow(&client, &self.template, true).await.unwrap();
        let inside = stage.connect_daemon(self.template.as_str()).await;
        let nobody = Identity { tenant: TenantId(Uuid::nil()), catalog, generation: 1 };
        identity_write(&inside, &nobody, &[]).await.unwrap();
        let things = format!(
            "CREATE TABLE public.things (id bigint PRIMARY KEY, name text NOT NULL);
             INSERT INTO public.things SELECT n, 'thing ' || n FROM generate_series(1, {THINGS}) AS n;
             GRANT SELECT ON public.things TO PUBLIC"
        );
        inside.batch_execute(&things).await.unwrap();
        inside.batch_execute("VACUUM FREEZE ANALYZE public.things").await.unwrap();
        drop(inside);
        admin::sessions_end(&client, &self.template).await.unwrap();
    }

    async fn database(&self, stage: &Stage, client: &tokio_postgres::Client, tenant: &Tenant, catalog: Uuid) {
        let Tenant { id, code, database, login } = tenant;
        let all = TenantRoles::new(&self.naming, code).unwrap();
        let roles = TenantRoles { owner: all.owner, logins: vec![(TenantRole::Router, login.role.clone())] };
        let logins = [TenantLogin::new(TenantRole::Router, &login.password, CONNECTIONS_MAX)];
        roles::tenant_roles_create(client, &roles, &logins, Uuid::nil()).await.unwrap();
        let (name, template) = (database.quoted(), self.template.quoted());
        let create = format!("CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy");
        client.batch_execute(&create).await.unwrap();
        let context = TenantContext { tenant: *id, code };
        roles::database_grant(client, database, &roles, &self.dump, &context).await.unwrap();
        let inside = stage.connect_daemon(database.as_str()).await;
        let identity = Identity { tenant: *id, catalog, generation: 1 };
        identity_write(&inside, &identity, &roles.all()).await.unwrap();
    }

    pub fn close(&self) {
        self.tasks.token().cancel();
    }
}
