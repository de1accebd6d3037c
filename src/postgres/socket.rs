//! The socket under a session. It is lent to the PostgreSQL client and comes back when the client is done with it
//! for whatever reason, so that its owner can wait until the server has closed its end: only then is the backend gone.

use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A peer that vanished without a word is noticed after about 30 + 3 × 10 seconds: later than the server notices by
/// [`super::connect::KEEPALIVE`] that it does not hear us, so that the backend is gone by then.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
/// The same where something was sent, which the system would else send again and again for a quarter of an hour: so long
/// a network that has come back would find us waiting for an answer that nobody gives.
#[cfg(target_os = "linux")]
const UNHEARD_MAX: Duration = Duration::from_mins(1);
/// A process that stood still (SIGSTOP, a suspended machine) finds its clocks run out before it hears of its sockets:
/// the signal that wakes it interrupts `epoll_wait`, and the runtime turns to its timers. So the socket has a last word.
const LAST_LOOK: Duration = Duration::from_millis(100);

pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Where a server listens, in words: `host:port`, or the path of its Unix socket.
pub(super) fn address(host: &str, port: u16) -> String {
    if host.starts_with('/') { format!("{host}/.s.PGSQL.{port}") } else { format!("{host}:{port}") }
}

/// Opens a socket; a host that begins with a slash is the directory of a Unix socket.
pub(super) async fn open(host: &str, port: u16) -> io::Result<Socket> {
    if host.starts_with('/') {
        return Ok(Socket::Unix(UnixStream::connect(Path::new(&address(host, port))).await?));
    }
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNHEARD_MAX))?;
    Ok(Socket::Tcp(stream))
}

impl Socket {
    /// Says that nothing more will be sent, and reads until the server closes its end. Answers whether it did in time.
    pub(super) async fn close(mut self, wait_max: Duration) -> bool {
        let mut closed = pin!(async {
            // An error means that the other end has gone, which is what is waited for.
            if self.shutdown().await.is_err() {
                return;
            }
            let mut rest = [0; 4096];
            while let Ok(1..) = self.read(&mut rest).await {}
        });
        timeout(wait_max, &mut closed).await.is_ok() || timeout(LAST_LOOK, closed).await.is_ok()
    }
}

/// A socket in the hands of the PostgreSQL client; sent back when it is dropped.
pub(super) struct Lent {
    socket: Option<Socket>,
    back: Option<oneshot::Sender<Socket>>,
}

/// Lends `socket`; the receiver gets it back.
pub(super) fn lend(socket: Socket) -> (Lent, oneshot::Receiver<Socket>) {
    let (back, returned) = oneshot::channel();
    (Lent { socket: Some(socket), back: Some(back) }, returned)
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(socket), Some(back)) = (self.socket.take(), self.back.take()) {
            // Without a receiver nobody waits for the backend's end, and the socket just closes.
            let _unwanted = back.send(socket);
        }
    }
}

/// Passes a call on to whichever socket it is; a lent socket has one until it is dropped.
macro_rules! forward {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match &mut $self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Socket::Unix(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_read(cx, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_shutdown(cx))
    }
}

impl Lent {
    fn socket(self: Pin<&mut Self>) -> Option<Pin<&mut Socket>> {
        self.get_mut().socket.as_mut().map(Pin::new)
    }
}

fn gone<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl AsyncRead for Lent {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.socket().map_or_else(gone, |socket| socket.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Lent {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.socket().map_or_else(gone, |socket| socket.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().map_or_else(gone, |socket| socket.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().map_or_else(gone, |socket| socket.poll_shutdown(cx))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_acknowledges_is_given_up_in_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let Socket::Tcp(stream) = open("127.0.0.1", address.port()).await.unwrap() else { panic!("it is TCP") };
        assert_eq!(socket2::SockRef::from(&stream).tcp_user_timeout().unwrap(), Some(UNHEARD_MAX));
    }
}
