//! `tenantd dev`: a private cluster and an S3 server in a data directory, and the same daemon as ever on top of them.
//! Everything that is made is found again at the next start, and each file is written before what depends on it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::bootstrap::{self, credentials, keys};
use super::daemon::{App, TASKS_END_MAX};
use super::error::Error;
use crate::config::{self, ServerConfig, ServerTls};
use crate::domain::operation::OperationState;
use crate::domain::tenant::Naming;
use crate::embedded::{Cluster, ClusterRequest, S3Server};
use crate::operations::{CreateTenant, Failure, Operations, Request, deterministic_id};
use crate::postgres::Server;
use crate::secrets::password_new;
use crate::shutdown::{Tasks, stop_signals};

const PREFIX: &str = "erp_topsteel";
const BUCKET: &str = "tenantd-backups";
const S3_ACCESS_KEY: &str = "tenantd-dev";
/// Code and name of the tenants that a new data directory begins with.
const DEMO_TENANTS: [(&str, &str); 2] = [("nordacier", "Nord Acier SARL"), ("alpes_inox", "Alpes Inox SAS")];

/// Where to keep everything, and where to listen.
#[derive(Debug, Clone)]
pub struct DevRequest {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub tenant_migrations_dir: PathBuf,
}

/// What a person needs to know once it is up.
#[derive(Debug, Clone)]
pub struct DevReady {
    pub endpoint: String,
    pub client_config: PathBuf,
    pub data_dir: PathBuf,
    pub cluster_dir: PathBuf,
    pub postgres_port: u16,
    pub postgres_version: String,
    pub s3_endpoint: String,
    pub bucket: String,
    pub tenants: Vec<String>,
}

/// Runs until SIGTERM or SIGINT. `progress` hears what is being done; `ready` is called once, when all of it is up.
pub async fn dev(
    request: &DevRequest,
    tasks: Tasks,
    progress: impl Fn(&str) + Send + Sync,
    ready: impl FnOnce(&DevReady) + Send,
) -> Result<(), Error> {
    let stop = stop_signals(&tasks).map_err(Error::Signals)?;
    std::fs::create_dir_all(&request.data_dir).map_err(|source| Error::file(&request.data_dir, source))?;
    progress("starting PostgreSQL");
    let cluster = Cluster::start(ClusterRequest::dev(&request.data_dir), &tasks).await?;
    let served = serve_on(request, &cluster, &tasks, &stop, progress, ready).await;
    drop(tasks.end(TASKS_END_MAX).await);
    cluster.stop().await?;
    served
}

async fn serve_on(
    request: &DevRequest,
    cluster: &Cluster,
    tasks: &Tasks,
    stop: &CancellationToken,
    progress: impl Fn(&str) + Send + Sync,
    ready: impl FnOnce(&DevReady) + Send,
) -> Result<(), Error> {
    let files = Files::new(&request.data_dir);
    let naming = Naming::new(PREFIX).map_err(|error| Error::Usage(error.to_string()))?;
    prepare(&files, cluster, &naming, tasks).await?;
    let s3_secret = password_new();
    let s3 = object_server(&files, &s3_secret, tasks).await?;
    let text = configuration(request, cluster, &s3, &s3_secret);
    replace_private(&files.config, &text)?;
    let config = config::load(&files.config)?;
    let Some(app) = App::build(config, tasks.clone(), stop.cancelled()).await? else { return Ok(()) };
    app.admin_key_ensure(&files.admin_key).await?;
    let endpoint = format!("http://{}", app.address());
    replace_private(&files.client, &format!("endpoint = {endpoint:?}\nkey_file = \"admin.key\"\n"))?;
    let running = app.start();
    let operations = running.operations().clone();
    let serving = running.serve(stop.clone().cancelled_owned());
    tokio::pin!(serving);
    let demo = demo_tenants(&operations, &files, &progress);
    tokio::pin!(demo);
    tokio::select! {
        served = &mut serving => return served,
        made = &mut demo => made?,
    }
    ready(&DevReady {
        endpoint,
        client_config: files.client.clone(),
        data_dir: request.data_dir.clone(),
        cluster_dir: cluster.data_dir().to_owned(),
        postgres_port: cluster.port(),
        postgres_version: cluster.version().to_owned(),
        s3_endpoint: s3.endpoint.clone(),
        bucket: BUCKET.to_owned(),
        tenants: DEMO_TENANTS.iter().map(|(code, _)| (*code).to_owned()).collect(),
    });
    serving.await
}

/// What lies in the data directory, beside the cluster and the objects.
struct Files {
    config: PathBuf,
    credentials: PathBuf,
    keys: PathBuf,
    admin_key: PathBuf,
    client: PathBuf,
    demo_done: PathBuf,
    objects: PathBuf,
}

impl Files {
    fn new(dir: &Path) -> Self {
        Self {
            config: dir.join("tenantd.toml"),
            credentials: dir.join("credentials.toml"),
            keys: dir.join("keys.toml"),
            admin_key: dir.join("admin.key"),
            client: dir.join("client.toml"),
            demo_done: dir.join("demo-tenants"),
            objects: dir.join("objects"),
        }
    }
}

/// Roles and databases, with least privilege; harmless when they are there.
async fn prepare(files: &Files, cluster: &Cluster, naming: &Naming, tasks: &Tasks) -> Result<(), Error> {
    let mut done = Vec::new();
    keys(&files.keys, &mut done)?;
    let credentials = credentials(&files.credentials, &mut done)?;
    let config = ServerConfig {
        name: "bootstrap".to_owned(),
        host: cluster.host().to_owned(),
        port: cluster.port(),
        tls: ServerTls::Disable,
        ca_file: None,
        connections_max: 8,
        connections_reserved: 4,
        connects_parallel_max: 1,
        credentials: credentials.clone(),
    };
    let server = Server::new(&config, tasks, Uuid::new_v4())?;
    done.extend(bootstrap::prepare(&server, cluster.superuser(), &credentials, Some(naming)).await?);
    for sentence in done {
        tracing::debug!("{sentence}");
    }
    Ok(())
}

async fn object_server(files: &Files, secret: &SecretString, tasks: &Tasks) -> Result<S3Server, Error> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    Ok(S3Server::start(listener, &files.objects, S3_ACCESS_KEY, secret, &[BUCKET], tasks).await?)
}

/// The same file as a user of `serve` would write.
fn configuration(request: &DevRequest, cluster: &Cluster, s3: &S3Server, s3_secret: &SecretString) -> String {
    let migrations = std::path::absolute(&request.tenant_migrations_dir);
    let migrations = migrations.unwrap_or_else(|_| request.tenant_migrations_dir.clone());
    // As a TOML string: its escapes are Rust's.
    let migrations = format!("{:?}", migrations.to_string_lossy());
    format!(
        r#"# Written anew at each start of `tenantd dev`.
prefix = {PREFIX:?}
listen = "{listen}"
spool_dir = "spool"
tenant_migrations_dir = {migrations}
keys_file = "keys.toml"

[[servers]]
name = "dev"
host = {host:?}
port = {port}
tls = "disable"
connections_max = 80
connections_reserved = 20
credentials_file = "credentials.toml"

[store]
endpoint = {endpoint:?}
bucket = {BUCKET:?}
access_key_id = {S3_ACCESS_KEY:?}
secret_access_key = {secret:?}
path_style = true
"#,
        listen = request.listen,
        host = cluster.host(),
        port = cluster.port(),
        endpoint = s3.endpoint,
        secret = s3_secret.expose_secret(),
    )
}

/// Writes the file anew, readable by its owner only; a reader sees the old one or the new one.
fn replace_private(path: &Path, text: &str) -> Result<(), Error> {
    let fresh = path.with_extension("new");
    if fresh.exists() {
        std::fs::remove_file(&fresh).map_err(|source| Error::file(&fresh, source))?;
    }
    config::write_private(&fresh, text).map_err(|source| Error::file(&fresh, source))?;
    std::fs::rename(&fresh, path).map_err(|source| Error::file(path, source))
}

/// Creates the demo tenants once per data directory; a start that was cut off goes on where it was.
async fn demo_tenants(
    operations: &Operations,
    files: &Files,
    progress: &(impl Fn(&str) + Send + Sync),
) -> Result<(), Error> {
    if files.demo_done.exists() {
        return Ok(());
    }
    for (code, name) in DEMO_TENANTS {
        progress(&format!("creating the demo tenant {code}"));
        let request = Request {
            request_id: Some(deterministic_id(&format!("demo tenant {code}"))),
            validate_only: false,
            caller: "dev".to_owned(),
        };
        let wish =
            CreateTenant { code: code.to_owned(), name: name.to_owned(), sample_data: true, ..CreateTenant::default() };
        let Some(operation) = operations.create_tenant(&request, wish).await? else { continue };
        let mut states = Box::pin(operations.watch(operation.id));
        while let Some(row) = states.next().await {
            let row = row?;
            if row.state.has_ended() && row.state != OperationState::Succeeded {
                let why = row.error.map_or_else(String::new, |record| Failure::read(&record).message);
                tracing::warn!(code, why, "the demo tenant could not be created; going on without it");
            }
        }
    }
    std::fs::write(&files.demo_done, "made\n").map_err(|source| Error::file(&files.demo_done, source))
}
