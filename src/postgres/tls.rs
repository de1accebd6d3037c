//! TLS towards a server: the certificate and the host's name are checked, against the system's roots or those of one file.

use std::sync::Arc;

use rustls::ClientConfig;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::errors::Error;
use super::socket::Lent;
use crate::config::{ServerConfig, ServerTls, roots};

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
    /// `None` when the server is to be spoken to in clear.
    pub(super) fn new(config: &ServerConfig) -> Result<Option<Self>, Error> {
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
            .with_root_certificates(roots(config.ca_file.as_deref()).map_err(fail)?)
            .with_no_client_auth();
        Ok(Some(Self { make: MakeRustlsConnect::new(client), host: config.host.clone() }))
    }

    pub(super) fn connector(&self) -> <MakeRustlsConnect as MakeTlsConnect<Lent>>::TlsConnect {
        let mut make = self.make.clone();
        let Ok(connector) = <MakeRustlsConnect as MakeTlsConnect<Lent>>::make_tls_connect(&mut make, &self.host);
        connector
    }
}
