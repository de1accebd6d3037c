//! One tenant with a database and a bucket, without a daemon: what the backup room is given by its callers.

use std::sync::Mutex;
use std::time::Duration;

use tenantd::backup::{
    BackupRef, Check, DumpRequest, Error, RestoreReport, RestoreRequest, VerifyRequest, digests, dump, manifest_write,
    restore_into, verify,
};
use tenantd::config::{BackupConfig, RoleLogin};
use tenantd::domain::backup::{Manifest, TableDigest};
use tenantd::domain::tenant::{DatabaseName, TenantCode, TenantId, TenantRole};
use tenantd::postgres::admin::{NewDatabase, database_connections_allow, database_create};
use tenantd::postgres::identity::{Identity, identity_write};
use tenantd::postgres::roles::{
    TenantContext, TenantLogin, TenantRoles, database_grant, schema_grant, tenant_roles_create,
};
use tenantd::postgres::{ConnectRequest, Connection, Lane, Server, SessionOptions};
use tenantd::secrets::{BackupIdentity, ManifestSigner, keys_new, password_new};
use tenantd::shutdown::Tasks;
use tenantd::store::{PartSizes, Store, UploadId};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::harness::{Fleet, Spec};

/// The smallest that S3 takes.
pub const PART_BYTES: u64 = 5 << 20;

pub struct Place {
    pub fleet: Fleet,
    pub tasks: Tasks,
    pub server: Server,
    /// As the daemon would have it, past a proxy if there is one.
    pub store: Store,
    pub config: BackupConfig,
    pub signer: ManifestSigner,
    pub identity: BackupIdentity,
    pub tenant: TenantId,
    pub code: TenantCode,
    pub roles: TenantRoles,
    /// The tenant's login for migrations and restores.
    pub login: RoleLogin,
    pub database: DatabaseName,
}

impl Place {
    pub async fn new(spec: Spec) -> Self {
        let fleet = Fleet::new(spec).await;
        let (tasks, config) = (fleet.tasks(), fleet.config());
        let code: TenantCode = "acme".parse().unwrap();
        let roles = TenantRoles::new(&fleet.naming, &code).unwrap();
        let place = Self {
            server: fleet.server(&tasks),
            store: Store::new(&config.store).unwrap(),
            config: config.backup,
            signer: ManifestSigner::new(&config.keys.manifest_signing_key).unwrap(),
            identity: BackupIdentity::generate(),
            tenant: TenantId(Uuid::now_v7()),
            login: RoleLogin { role: roles.name(TenantRole::Migrator).unwrap().clone(), password: password_new() },
            database: fleet.naming.tenant_database(&code).unwrap(),
            fleet,
            tasks,
            code,
            roles,
        };
        let admin = place.server.connect_admin(place.server.maintenance_database()).await.unwrap();
        let logins = TenantRole::LOGINS.map(|role| TenantLogin::new(role, &place.login.password, 4));
        tenant_roles_create(&admin, &place.roles, &logins, place.tenant.0).await.unwrap();
        place.database_new(&place.database).await;
        place
    }

    /// A database as a create and a restore make it.
    pub async fn database_new(&self, name: &DatabaseName) {
        let admin = self.server.connect_admin(self.server.maintenance_database()).await.unwrap();
        database_create(&admin, &NewDatabase { name, template: None, locale: None }).await.unwrap();
        let context = TenantContext { tenant: self.tenant, code: &self.code };
        database_grant(&admin, name, &self.roles, &self.server.dump().role, &context).await.unwrap();
        database_connections_allow(&admin, name, true).await.unwrap();
        let inside = self.server.connect_admin(name).await.unwrap();
        schema_grant(&inside, &self.roles).await.unwrap();
        let identity = Identity { tenant: self.tenant, catalog: self.tenant.0, generation: 1 };
        identity_write(&inside, &identity, &self.roles.all()).await.unwrap();
    }

    /// An empty database to restore into.
    pub async fn target(&self) -> DatabaseName {
        let name = DatabaseName::new(format!("{}_{:.8}", self.database, Uuid::new_v4().simple())).unwrap();
        self.database_new(&name).await;
        name
    }

    pub async fn session(&self, database: &DatabaseName, login: &RoleLogin) -> Connection {
        let request = ConnectRequest {
            lane: Lane::Migration,
            login,
            database,
            application_name: "test",
            options: SessionOptions::default(),
            deadline: tokio::time::Instant::now() + Duration::from_secs(10),
        };
        self.server.connect(&request).await.unwrap()
    }

    /// As the tenant.
    pub async fn run(&self, sql: &str) {
        self.session(&self.database, &self.login).await.batch_execute(sql).await.unwrap();
    }

    /// What the dump role counts.
    pub async fn tables(&self, database: &DatabaseName) -> Vec<TableDigest> {
        let session = self.session(database, self.server.dump()).await;
        digests(&session).await.unwrap().tables
    }

    pub fn backup(&self) -> BackupRef {
        BackupRef { tenant: self.tenant, backup: Uuid::now_v7() }
    }

    /// `on_snapshot` gets the upload, into which nothing was sent yet.
    pub async fn dump<F>(&self, backup: BackupRef, on_snapshot: impl FnOnce(UploadId) -> F) -> Result<Manifest, Error>
    where
        F: Future<Output = std::io::Result<()>>,
    {
        let request = DumpRequest {
            server: &self.server,
            store: &self.store,
            config: &self.config,
            part_sizes: PartSizes::new(PART_BYTES, 1_000),
            backup,
            operation_id: backup.backup,
            catalog_id: self.tenant.0,
            tenant_code: &self.code,
            database: &self.database,
            roles: &self.roles,
            recipients: &[self.identity.recipient(), keys_new().escrow_recipient],
            spool_dir: &self.fleet.config().spool_dir,
        };
        let begun = Mutex::new(None);
        let on_upload = async |upload| {
            *begun.lock().unwrap() = Some(upload);
            Ok(())
        };
        let on_snapshot = || on_snapshot(begun.lock().unwrap().take().unwrap());
        dump(&request, on_upload, on_snapshot).instrument(self.tasks.span().clone()).await
    }

    /// A backup, whole.
    pub async fn backup_new(&self) -> (BackupRef, Manifest) {
        let backup = self.backup();
        let manifest = self.dump(backup, async |_upload| Ok(())).await.unwrap();
        manifest_write(&self.store, &self.signer, &manifest).await.unwrap();
        (backup, manifest)
    }

    pub async fn verify(&self, manifest: &Manifest) -> Result<Vec<Check>, Error> {
        let request = VerifyRequest {
            tasks: &self.tasks,
            store: &self.store,
            manifest,
            identity: &self.identity,
            spool_dir: &self.fleet.config().spool_dir,
            id: Uuid::new_v4(),
            stall_timeout: self.config.stall_timeout,
        };
        verify(&request).await
    }

    pub async fn restore(&self, manifest: &Manifest, database: &DatabaseName) -> Result<RestoreReport, Error> {
        let request = RestoreRequest {
            server: &self.server,
            store: &self.store,
            manifest,
            identity: &self.identity,
            database,
            roles: &self.roles,
            login: &self.login,
            spool_dir: &self.fleet.config().spool_dir,
            operation_id: Uuid::new_v4(),
            stall_timeout: self.config.stall_timeout,
        };
        restore_into(&request).await
    }

    /// Objects and uploads that are in the bucket.
    pub async fn in_bucket(&self) -> Vec<String> {
        let store = self.fleet.store();
        let objects = store.list("").await.unwrap().into_iter().map(|(key, _bytes)| key);
        let uploads = store.uploads_list("").await.unwrap().unwrap().into_iter().map(|(key, _upload)| key);
        objects.chain(uploads).collect()
    }

    /// That no archive and no password was left on the disk, and that nothing was logged.
    pub async fn finish(self) {
        let spool_dir = self.fleet.config().spool_dir;
        let left: Vec<_> = std::fs::read_dir(spool_dir).map(|entries| entries.flatten().collect()).unwrap_or_default();
        assert!(left.is_empty(), "left in the spool: {left:?}");
        drop(self.server);
        assert_eq!(self.tasks.end(Duration::from_secs(30)).await, Vec::<&str>::new());
        self.fleet.finish().await;
    }
}
