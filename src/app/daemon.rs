//! The daemon: configuration → build (ports bound, catalog ready, nothing running) → start → serve → drain with a
//! deadline. Knows neither where its configuration came from nor what began it.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::Signal;
use tracing::Instrument as _;
use uuid::Uuid;

use super::admin_key::{self, AdminKey};
use super::error::Error;
use super::open_files;
use super::reload::Reload;
use crate::access::Access;
use crate::accounts::Accounts;
use crate::api::{self, Api, Tls};
use crate::backup::SpoolDir;
use crate::catalog::Catalog;
use crate::config::{Config, Live, TlsFiles};
use crate::domain::tenant::Naming;
use crate::operations::{Operations, Parts};
use crate::postgres::admin::ServerVersion;
use crate::postgres::{self, Server, admin, readers};
use crate::query::Queries;
use crate::router::Router;
use crate::secrets::{Envelope, ManifestSigner};
use crate::shares::{self, Anchors, Shares};
use crate::shutdown::Tasks;
use crate::store::Store;

/// The oldest PostgreSQL that is served.
const POSTGRES_MAJOR_MIN: i32 = 15;
/// How long operations may take to give their claims back.
const OPERATIONS_STOP_MAX: Duration = Duration::from_secs(5);
/// How long tasks may take to end after the drain.
pub(super) const TASKS_END_MAX: Duration = Duration::from_secs(10);

/// A daemon that is built and bound, and not yet running.
#[derive(Debug)]
pub struct App {
    config: Arc<Config>,
    tasks: Tasks,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Tls>,
    access: Access,
    parts: Parts,
    queries: Queries,
    shares: Option<Shares>,
    spool: SpoolDir,
}

impl App {
    /// Binds the port, reaches the servers, and brings the shared and the auth database to this version's schema. None
    /// when `stop` resolves before that is done. Whoever is not built has no task and no share of a budget any more.
    pub async fn build(config: Config, tasks: Tasks, stop: impl Future<Output = ()>) -> Result<Option<Self>, Error> {
        let instance = Uuid::new_v4();
        let shares = Shares::new(&config, instance);
        let built = tokio::select! {
            built = Self::build_all(config, instance, shares.clone(), tasks.clone()) => built.map(Some),
            () = stop => Ok(None),
        };
        if !matches!(built, Ok(Some(_))) {
            end(&tasks, shares).await;
        }
        built
    }

    async fn build_all(config: Config, instance: Uuid, shares: Option<Shares>, tasks: Tasks) -> Result<Self, Error> {
        let listen_error = |source| Error::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let tls = config.tls.as_ref().map(TlsFiles::server_config).transpose().map_err(Error::Tls)?.map(Tls::new);
        let mut anchors = shares.as_ref().map(Shares::anchors);
        let servers = servers(&config, &tasks, instance, anchors.as_mut()).await?;
        let home = servers.get(&config.catalog_server).cloned().ok_or_else(|| {
            Error::Usage(format!("catalog_server {:?} is none of the servers", config.catalog_server))
        })?;
        let catalog = Catalog::new(&home, &config.naming.shared_database())?;
        if let Some(anchors) = anchors {
            let catalog = Catalog::for_shares(&home, &config.naming.shared_database())?;
            catalog_prepare(&catalog, &config).await?;
            anchors.join(&home, &catalog, &tasks).await?;
        } else {
            catalog_prepare(&catalog, &config).await?;
            shares::named_refuse(&catalog, &servers).await?;
            shares::unnamed_refuse(&home, &config.naming, instance).await?;
        }
        shared_readers(&home, &config.naming).await?;
        let accounts = Accounts::new(&home, &config.naming.auth_database())?;
        accounts.migrate().await?;
        let catalog_id = catalog.id().await?;
        let store = Store::new(&config.store)?;
        store.check().await?;
        // A restore that is resumed fetches its archive again, so nothing in the spool is anybody's.
        let spool = SpoolDir::open(&config.spool_dir)?;
        if spool.removed > 0 {
            tracing::info!(left = spool.removed, "removed what an earlier daemon left in the spool");
        }
        let envelope = Arc::new(Envelope::new(&config.keys.key_encryption_key)?);
        let signer = ManifestSigner::new(&config.keys.manifest_signing_key)?;
        let live = Live::new(config.limits.clone());
        let router = Router::new(
            live.clone(),
            config.naming.clone(),
            servers.clone(),
            catalog.clone(),
            Arc::clone(&envelope),
            &tasks,
        );
        let access = Access::new(&config.access, live.clone(), accounts.clone(), catalog.clone(), &tasks)
            .map_err(Error::Access)?;
        let config = Arc::new(config);
        let parts = Parts {
            config: Arc::clone(&config),
            live,
            catalog_id,
            instance,
            tasks: tasks.clone(),
            catalog,
            accounts,
            servers,
            router,
            store,
            envelope,
            signer,
        };
        let queries = Queries::new(
            parts.live.clone(),
            config.naming.clone(),
            home,
            parts.router.clone(),
            parts.catalog.clone(),
            &tasks,
        );
        Ok(Self { config, tasks, listener, address, tls, access, parts, queries, shares, spool })
    }

    /// Writes the first admin key to `file`, while no admin key exists.
    pub async fn admin_key_ensure(&self, file: &Path) -> Result<AdminKey, Error> {
        admin_key::ensure(&self.parts.accounts, file).await
    }

    /// Reads the limits in `file` and the listener's certificates again at each hangup.
    pub fn reload_on(&self, hangup: Signal, file: &Path) {
        let (live, servers) = (self.parts.live.clone(), self.parts.servers.clone());
        let (tls, router) = (self.tls.clone(), self.parts.router.clone());
        let reload = Reload { live, servers, tls, router, started: Arc::clone(&self.config) };
        reload.on(hangup, file, &self.tasks);
    }

    /// Ends everything that was built, instead of starting it.
    pub async fn abandon(self) {
        let (tasks, shares) = (self.tasks.clone(), self.shares.clone());
        drop(self);
        end(&tasks, shares).await;
    }

    /// Where the daemon listens; the port is real even when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to drive operations, those included that an earlier daemon has left.
    pub fn start(self) -> Running {
        let Self { config, tasks, listener, address, tls, access, parts, queries, shares, spool } = self;
        let api = Api {
            config: Arc::clone(&config),
            tls,
            live: parts.live.clone(),
            catalog: parts.catalog.clone(),
            accounts: parts.accounts.clone(),
            access,
            router: parts.router.clone(),
            queries,
            tasks: tasks.clone(),
            operations: Operations::start(parts),
        };
        Running { config, tasks, listener, address, api, shares, spool }
    }
}

/// A daemon that drives operations and is about to answer calls.
#[derive(Debug)]
pub struct Running {
    config: Arc<Config>,
    tasks: Tasks,
    listener: TcpListener,
    address: SocketAddr,
    api: Api,
    shares: Option<Shares>,
    spool: SpoolDir,
}

impl Running {
    pub fn operations(&self) -> &Operations {
        &self.api.operations
    }

    /// Serves until `shutdown` resolves, then drains: health says so, new calls are refused, running ones end within
    /// the deadline, operations give their claims back, and every task is joined.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
        // Whoever awaits this is no task of ours, and what is logged here is the daemon's all the same.
        let span = self.tasks.span().clone();
        self.serve_in_span(shutdown).instrument(span).await
    }

    async fn serve_in_span(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
        let Self { config, tasks, listener, address, api, shares, spool } = self;
        open_files::raise();
        tracing::info!(%address, prefix = config.naming.prefix(), "serving");
        let (operations, access) = (api.operations.clone(), api.access.clone());
        let served = api::serve(listener, api, shutdown).await;
        access.flush().await;
        operations.stop(OPERATIONS_STOP_MAX).await;
        end(&tasks, shares).await;
        drop(spool);
        tracing::info!("stopped");
        Ok(served?)
    }
}

/// Ends every task, and then, as no session is left, gives the shares back.
async fn end(tasks: &Tasks, shares: Option<Shares>) {
    let stubborn = tasks.end(TASKS_END_MAX).await;
    if !stubborn.is_empty() {
        tracing::warn!(?stubborn, "tasks that did not end in time were cut off");
    } else if let Some(shares) = shares {
        shares.leave(tasks).await;
    }
}

/// Reaches every server once and learns its version, the catalog's first. From then on a daemon with a name can be seen
/// there.
async fn servers(
    config: &Config,
    tasks: &Tasks,
    instance: Uuid,
    mut anchors: Option<&mut Anchors>,
) -> Result<BTreeMap<String, Server>, Error> {
    let mut servers = BTreeMap::new();
    let (home, others): (Vec<_>, Vec<_>) =
        config.servers.iter().partition(|server| server.name == config.catalog_server);
    for server in home.into_iter().chain(others) {
        let failed = |source: postgres::Error| Error::Server {
            name: server.name.clone(),
            host: server.host.clone(),
            port: server.port,
            source: Box::new(source),
        };
        let handle = Server::named(server, tasks, instance, config.instance.as_ref()).map_err(failed)?;
        let version = match &mut anchors {
            Some(anchors) => anchors.cast(&handle).await,
            None => version(&handle).await,
        };
        check(version.map_err(failed)?).map_err(failed)?;
        servers.insert(server.name.clone(), handle);
    }
    Ok(servers)
}

/// Lets tenants' logins read what is theirs in the shared database, once each has joined the role.
async fn shared_readers(home: &Server, naming: &Naming) -> Result<(), Error> {
    let database = naming.shared_database();
    let made = async {
        let client = home.connect_admin(&database).await?;
        readers::shared_readers_make(&client, &database, &naming.shared_readers()).await
    };
    made.await.map_err(|source: postgres::Error| Error::Server {
        name: home.name().to_owned(),
        host: home.config().host.clone(),
        port: home.config().port,
        source: Box::new(source),
    })
}

/// Brings the shared database to this version's schema, with the servers in it.
async fn catalog_prepare(catalog: &Catalog, config: &Config) -> Result<(), Error> {
    catalog.migrate().await?;
    for server in &config.servers {
        catalog.server_register(&server.name, &server.host, server.port).await?;
    }
    Ok(())
}

/// Logs in once.
async fn version(server: &Server) -> Result<ServerVersion, postgres::Error> {
    let client = server.connect_admin(server.maintenance_database()).await?;
    admin::server_version(&client).await
}

/// Refuses what is too old.
fn check(version: ServerVersion) -> Result<(), postgres::Error> {
    if version.major() < POSTGRES_MAJOR_MIN {
        return Err(postgres::Error::ServerTooOld { version: version.text, major_min: POSTGRES_MAJOR_MIN });
    }
    Ok(())
}
