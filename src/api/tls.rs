//! The listener's TLS. What connections are accepted with may be replaced while it listens; those that are there keep
//! what they were made with.

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{Stream, TryStreamExt as _};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::incoming::Accepted;

/// A client that does not get on with its handshake is cut off.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at the same moment; more wait in the listener's queue.
const HANDSHAKES_MAX: usize = 4_096;

/// What connections are accepted with from now on.
#[derive(Debug, Clone)]
pub struct Tls(Arc<ArcSwap<ServerConfig>>);

impl Tls {
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self(Arc::new(ArcSwap::new(config)))
    }

    pub fn replace(&self, config: Arc<ServerConfig>) {
        self.0.store(config);
    }

    /// The connections of those who get through their handshakes, as they do.
    pub(super) fn accept(
        self,
        sockets: impl Stream<Item = io::Result<Accepted<TcpStream>>> + Send,
    ) -> impl Stream<Item = io::Result<Accepted<TlsStream<TcpStream>>>> + Send {
        sockets
            .map_ok(move |Accepted { stream, place }| {
                let handshake = TlsAcceptor::from(self.0.load_full()).accept(stream);
                async move {
                    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
                        Ok(Ok(stream)) => return Ok(Some(Accepted { stream, place })),
                        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                        Err(_elapsed) => tracing::debug!("a TLS handshake took too long"),
                    }
                    Ok(None)
                }
            })
            .try_buffer_unordered(HANDSHAKES_MAX)
            .try_filter_map(|stream| ready(Ok(stream)))
    }
}
