//! One server, as a cheap handle: where it is, how to log in, its budget and the gates in front of it. Opening
//! sessions on it is [`super::connect`]'s.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{CancelToken, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use super::budget::Budget;
use super::errors::Error;
use super::lane::Lane;
use super::socket::{self, Lent, lend};
use crate::config::{RoleLogin, ServerConfig, ServerTls};
use crate::domain::tenant::DatabaseName;
use crate::shutdown::Tasks;

/// How long a cancel request may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Where sessions go that belong to no database in particular.
const MAINTENANCE_DATABASE: &str = "postgres";

/// A handle on one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: ServerConfig,
    instance: Uuid,
    tasks: Tasks,
    tls: Option<Tls>,
    budget: Budget,
    /// Per lane, taken before the permit: a storm of callers does not queue for permits all at once. One per lane, so
    /// that tenants who wait for a permit do not stand in the catalog's way.
    gates: [Arc<Semaphore>; Lane::ALL.len()],
    /// Over all lanes, held while a session is being opened.
    opening: Arc<Semaphore>,
    maintenance_database: DatabaseName,
}

/// The TLS side of connecting.
pub(super) struct Tls {
    make: MakeRustlsConnect,
    host: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Tls {
    pub(super) fn connector(&self) -> <MakeRustlsConnect as MakeTlsConnect<Lent>>::TlsConnect {
        let mut make = self.make.clone();
        let Ok(connector) = <MakeRustlsConnect as MakeTlsConnect<Lent>>::make_tls_connect(&mut make, &self.host);
        connector
    }
}

impl Server {
    /// Reads the TLS roots; opens nothing. `instance` is this daemon's, and part of its sessions' names.
    pub fn new(config: &ServerConfig, tasks: &Tasks, instance: Uuid) -> Result<Self, Error> {
        let connects = config.connects_parallel_max.max(1) as usize;
        let maintenance_database = DatabaseName::new(MAINTENANCE_DATABASE)
            .map_err(|error| Error::Tls { server: config.name.clone(), reason: error.to_string() })?;
        Ok(Self(Arc::new(Inner {
            config: config.clone(),
            instance,
            tasks: tasks.clone(),
            tls: tls(config)?,
            budget: Budget::new(&config.name, config.connections_max, config.connections_reserved),
            gates: std::array::from_fn(|_lane| Arc::new(Semaphore::new(connects))),
            opening: Arc::new(Semaphore::new(connects)),
            maintenance_database,
        })))
    }

    pub fn name(&self) -> &str {
        &self.0.config.name
    }

    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    /// The role that creates databases and roles.
    pub fn daemon(&self) -> &RoleLogin {
        &self.0.config.credentials.daemon
    }

    /// The role that reads everything.
    pub fn dump(&self) -> &RoleLogin {
        &self.0.config.credentials.dump
    }

    pub fn instance(&self) -> Uuid {
        self.0.instance
    }

    pub fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    pub fn maintenance_database(&self) -> &DatabaseName {
        &self.0.maintenance_database
    }

    /// The `application_name` of a session that is none of the router's: tells whose it is, so that a later daemon can
    /// end what a killed one left behind.
    pub fn session_name(&self, purpose: &str) -> String {
        format!("{} {purpose}", instance_prefix(self.0.instance))
    }

    /// Asks the server to cancel what a session is running. That it was heard is not known.
    ///
    /// (A session's own `cancel_query` cannot find the server, because the socket was ours.)
    pub async fn cancel_query(&self, token: &CancelToken) -> Result<(), Error> {
        let config = self.config();
        let fail = |cause| Error::Unreachable {
            server: config.name.clone(),
            address: socket::address(&config.host, config.port),
            cause,
        };
        let request = async {
            let (lent, returned) = lend(socket::open(&config.host, config.port).await.map_err(fail)?);
            match self.tls().map(Tls::connector) {
                None => token.cancel_query_raw(lent, NoTls).await?,
                Some(tls) => token.cancel_query_raw(lent, tls).await?,
            }
            // The server closes its end when it has passed the signal on.
            if let Ok(socket) = returned.await {
                socket.close(CANCEL_TIMEOUT).await;
            }
            Ok(())
        };
        timeout(CANCEL_TIMEOUT, request).await.unwrap_or_else(|_elapsed| Err(fail(std::io::ErrorKind::TimedOut.into())))
    }

    pub(super) fn tls(&self) -> Option<&Tls> {
        self.0.tls.as_ref()
    }

    /// What a session passes on its way to being open, in this order: the lane's gate, then (with its permit) the
    /// server's.
    pub(super) fn gates(&self, lane: Lane) -> [&Arc<Semaphore>; 2] {
        [&self.0.gates[lane as usize], &self.0.opening]
    }
}

/// How the names of a daemon's sessions begin.
pub(super) fn instance_prefix(instance: Uuid) -> String {
    let hex = instance.simple().to_string();
    format!("tenantd {}", &hex[..8])
}

fn tls(config: &ServerConfig) -> Result<Option<Tls>, Error> {
    if config.tls == ServerTls::Disable {
        return Ok(None);
    }
    let fail = |reason: String| Error::Tls { server: config.name.clone(), reason };
    if config.host.starts_with('/') {
        return Err(fail("a Unix socket has none; set tls = \"disable\" for this server".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(error.to_string()))?
        .with_root_certificates(roots(config).map_err(fail)?)
        .with_no_client_auth();
    Ok(Some(Tls { make: MakeRustlsConnect::new(client), host: config.host.clone() }))
}

fn roots(config: &ServerConfig) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(file) = &config.ca_file else {
        let (taken, _unusable) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if taken > 0 {
            Ok(roots)
        } else {
            Err("this machine has no root certificates; install ca-certificates, or name a ca_file".to_owned())
        };
    };
    let fail = |reason: &dyn std::fmt::Display| format!("ca_file {}: {reason}", file.display());
    let pem = fs::read(file).map_err(|error| fail(&error))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| fail(&error))?;
        roots.add(certificate).map_err(|error| fail(&error))?;
    }
    if roots.is_empty() { Err(fail(&"no certificate in it")) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_named_after_their_instance() {
        let instance = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(instance_prefix(instance), "tenantd 01234567");
    }
}
