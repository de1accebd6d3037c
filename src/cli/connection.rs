//! The way to the daemon: one channel, and on each call the caller's key.

use std::fs;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use super::error::{Error, sources};
use crate::config::client::ClientConfig;
use crate::proto::v1::access_service_client::AccessServiceClient;
use crate::proto::v1::backup_service_client::BackupServiceClient;
use crate::proto::v1::migration_service_client::MigrationServiceClient;
use crate::proto::v1::operation_service_client::OperationServiceClient;
use crate::proto::v1::query_service_client::QueryServiceClient;
use crate::proto::v1::router_service_client::RouterServiceClient;
use crate::proto::v1::tenant_service_client::TenantServiceClient;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For calls that answer at once. Those that read a whole backup, and those that watch, have none.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);
/// A watch may be silent for long; this notices a daemon that is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_mins(1);
/// A result of 10,000 wide rows is larger than the usual 4 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A channel that shows the caller's key.
pub type Keyed = InterceptedService<Channel, Key>;

/// A connection to one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection {
    channel: Keyed,
}

/// Puts `authorization: Bearer <key>` on each call.
#[derive(Debug, Clone)]
pub struct Key(MetadataValue<Ascii>);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl Key {
    fn new(key: &SecretString) -> Result<Self, Error> {
        let header = format!("Bearer {}", key.expose_secret());
        let mut header: MetadataValue<Ascii> =
            header.parse().map_err(|_| Error::Usage("the key has characters in it that no key has".to_owned()))?;
        header.set_sensitive(true);
        Ok(Self(header))
    }
}

macro_rules! clients {
    ($($name:ident: $client:ident),+ $(,)?) => {
        impl Connection {
            $(pub fn $name(&self) -> $client<Keyed> {
                $client::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
            })+
        }
    };
}

clients! {
    access: AccessServiceClient,
    backups: BackupServiceClient,
    migrations: MigrationServiceClient,
    operations: OperationServiceClient,
    queries: QueryServiceClient,
    router: RouterServiceClient,
    tenants: TenantServiceClient,
}

impl Connection {
    /// Connects, or says why not.
    pub async fn open(config: &ClientConfig) -> Result<Self, Error> {
        let key = Key::new(&config.key)?;
        let channel = endpoint(config)?.connect().await.map_err(|error| Error::Unreachable {
            endpoint: config.endpoint.clone(),
            cause: sources(&error).last().unwrap_or_else(|| error.to_string()),
        })?;
        Ok(Self { channel: InterceptedService::new(channel, key) })
    }
}

fn endpoint(config: &ClientConfig) -> Result<Endpoint, Error> {
    let unusable = |error: tonic::transport::Error| {
        let cause = sources(&error).last().unwrap_or_else(|| error.to_string());
        Error::Usage(format!("the endpoint {} is not usable: {cause}", config.endpoint))
    };
    let endpoint = Endpoint::from_shared(config.endpoint.clone())
        .map_err(unusable)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .user_agent(concat!("tenantd/", env!("CARGO_PKG_VERSION")))
        .map_err(unusable)?;
    if !config.endpoint.starts_with("https:") {
        return Ok(endpoint);
    }
    let tls = match &config.ca_file {
        Some(path) => {
            let pem = fs::read(path).map_err(|source| Error::Input { path: path.clone(), source })?;
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
        }
        None => ClientTlsConfig::new().with_native_roots(),
    };
    endpoint.tls_config(tls).map_err(unusable)
}

/// A request for a call that answers at once.
pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}
