//! One GET over HTTPS, or over HTTP from this machine (which the configuration checks). Follows nothing, takes no more
//! than it is told to.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::Uri;
use http::uri::Scheme;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};

use crate::config::roots;

/// An address, and a client for it.
#[derive(Debug)]
pub(super) struct Fetch {
    url: Uri,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl Fetch {
    /// Its certificate is checked with the roots in `ca_file`, or the system's.
    ///
    /// # Errors
    /// What is wrong with the address or the file.
    pub(super) fn new(url: &str, ca_file: Option<&Path>) -> Result<Self, String> {
        let url: Uri = url.parse().map_err(|error| format!("{url:?} is no address: {error}"))?;
        let is_private = url.scheme() == Some(&Scheme::HTTPS);
        let roots = if is_private { roots(ca_file)? } else { RootCertStore::empty() };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        // No connection is kept: the next one is minutes away.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { url, client })
    }

    /// The body of a 200.
    pub(super) async fn get(&self, bytes_max: usize) -> Result<Vec<u8>, String> {
        let answer = self.client.get(self.url.clone()).await.map_err(|error| causes(&error))?;
        if answer.status() != http::StatusCode::OK {
            return Err(format!("the answer is {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), bytes_max).collect().await;
        Ok(body.map_err(|error| error.to_string())?.to_bytes().to_vec())
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
