//! The way to the daemon: one channel, which may show a certificate, and on each call the caller's key, if it has one.

use std::fs;
use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
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

/// A channel that shows the caller's key, if there is one.
pub type Keyed = InterceptedService<Channel, Key>;

/// A connection to one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection {
    channel: Keyed,
}

/// Puts `authorization: Bearer <key>` on each call, or nothing.
#[derive(Debug, Clone)]
pub struct Key(Option<MetadataValue<Ascii>>);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

impl Key {
    fn new(key: Option<&SecretString>) -> Result<Self, Error> {
        let Some(key) = key else { return Ok(Self(None)) };
        let header = format!("Bearer {}", key.expose_secret());
        let mut header: MetadataValue<Ascii> =
            header.parse().map_err(|_| Error::Usage("the key has characters in it that no key has".to_owned()))?;
        header.set_sensitive(true);
        Ok(Self(Some(header)))
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
        let key = Key::new(config.key.as_ref())?;
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
    let read = |path: &Path| fs::read(path).map_err(|source| Error::Input { path: path.to_owned(), source });
    let mut tls = match &config.ca_file {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let Some(own) = &config.certificate {
        tls = tls.identity(Identity::from_pem(read(&own.certificate_file)?, read(&own.key_file)?));
    }
    endpoint.tls_config(tls).map_err(unusable)
}

/// A request for a call that answers at once.
pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}
