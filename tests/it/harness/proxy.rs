//! A TCP proxy in front of a server that can stop reading: whatever a daemon sends then stays in its socket, as with a
//! store that has stalled. It can also lead new connections elsewhere, and be a network that is parted: then nothing
//! comes through in either direction, not even that an end has gone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A running proxy; it ends with the test's runtime.
#[derive(Debug, Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    /// Bytes that may still go upstream.
    allowance: watch::Sender<u64>,
    upstream: watch::Sender<SocketAddr>,
    is_parted: watch::Sender<bool>,
    forwarded: Arc<AtomicU64>,
}

impl Proxy {
    /// Forwards everything to `upstream`.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (allowance, _) = watch::channel(u64::MAX);
        let (upstream, _) = watch::channel(upstream);
        let (is_parted, _) = watch::channel(false);
        let proxy = Self { address, allowance, upstream, is_parted, forwarded: Arc::default() };
        let this = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(this.clone().connection(client));
            }
        });
        proxy
    }

    /// Reads so many bytes more, over all connections, and then no more until [`Proxy::flow`].
    pub fn stall_after(&self, bytes: u64) {
        self.forwarded.store(0, Ordering::SeqCst);
        self.allowance.send_replace(bytes);
    }

    /// Reads on.
    pub fn flow(&self) {
        self.allowance.send_replace(u64::MAX);
    }

    /// Nothing comes through any more, until [`Proxy::join`]; what is sent meanwhile comes through then.
    pub fn part(&self) {
        self.is_parted.send_replace(true);
    }

    /// The network is whole again.
    pub fn join(&self) {
        self.is_parted.send_replace(false);
    }

    /// Cuts every connection; new ones go to `upstream`.
    pub fn redirect(&self, upstream: SocketAddr) {
        self.upstream.send_replace(upstream);
    }

    /// Waits until the proxy stands still with the bytes that it was allowed.
    pub async fn stalled(&self) {
        let allowed = *self.allowance.borrow();
        super::until("the proxy has taken what it may", || async {
            (self.forwarded.load(Ordering::SeqCst) >= allowed).then_some(())
        })
        .await;
    }

    async fn connection(self, mut client: TcpStream) {
        let mut redirected = self.upstream.subscribe();
        let upstream = *redirected.borrow_and_update();
        let mut is_parted = self.is_parted.subscribe();
        drop(is_parted.wait_for(|is_parted| !is_parted).await);
        let Ok(mut server) = TcpStream::connect(upstream).await else { return };
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        // Whichever side ends first ends both: HTTP/1.1 has no half-open connections worth keeping.
        tokio::select! {
            _ = self.requests(&mut from_client, &mut to_server) => {}
            _ = self.answers(&mut from_server, &mut to_client) => {}
            _ = redirected.changed() => {}
        }
        drop(is_parted.wait_for(|is_parted| !is_parted).await);
    }

    async fn answers(&self, from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Option<()> {
        let mut is_parted = self.is_parted.subscribe();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = from.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
            is_parted.wait_for(|is_parted| !is_parted).await.ok()?;
            to.write_all(&buffer[..read]).await.ok()?;
        }
    }

    async fn requests(&self, from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Option<()> {
        let (mut allowance, mut is_parted) = (self.allowance.subscribe(), self.is_parted.subscribe());
        let mut buffer = vec![0; 16 << 10];
        loop {
            allowance.wait_for(|allowed| self.forwarded.load(Ordering::SeqCst) < *allowed).await.ok()?;
            let read = from.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
            is_parted.wait_for(|is_parted| !is_parted).await.ok()?;
            self.forwarded.fetch_add(read as u64, Ordering::SeqCst);
            to.write_all(&buffer[..read]).await.ok()?;
        }
    }
}
