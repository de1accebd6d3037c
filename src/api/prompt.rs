//! A connection on which nothing comes is closed. HTTP/2 begins with 24 bytes of the client's, and before them nothing
//! else bounds how long it may be silent; after them it is asked from time to time whether it is there.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use super::incoming::Accepted;

/// The connection preface of RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that is to begin in time.
#[derive(Debug)]
pub(super) struct Prompt<S> {
    stream: S,
    awaited: Option<Awaited>,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Awaited {
    bytes: usize,
    until: Pin<Box<Sleep>>,
}

impl<S> Prompt<S> {
    pub(super) fn new(Accepted { stream, place }: Accepted<S>) -> Self {
        Self::within(stream, place, PREFACE_TIMEOUT)
    }

    fn within(stream: S, place: OwnedSemaphorePermit, timeout: Duration) -> Self {
        let awaited = Awaited { bytes: PREFACE_BYTES, until: Box::pin(sleep(timeout)) };
        Self { stream, awaited: Some(awaited), _place: place }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prompt<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        let Some(awaited) = &mut self.awaited else { return read };
        awaited.bytes = awaited.bytes.saturating_sub(into.filled().len() - before);
        if awaited.bytes == 0 {
            self.awaited = None;
        } else if read.is_pending() && awaited.until.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prompt<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: Connected> Connected for Prompt<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn who_says_nothing_or_too_little_is_cut_off_and_who_has_begun_may_be_silent() {
        let places = Arc::new(Semaphore::new(1));
        for (bytes, is_cut) in [(0, true), (PREFACE_BYTES - 1, true), (PREFACE_BYTES, false)] {
            let (mut client, server) = duplex(64);
            let place = Arc::clone(&places).try_acquire_owned().expect("the one before has given its place back");
            let mut server = Prompt::within(server, place, Duration::from_millis(100));
            client.write_all(&[b'x'; PREFACE_BYTES][..bytes]).await.unwrap();
            let mut all = Vec::new();
            let read = tokio::time::timeout(Duration::from_millis(400), server.read_to_end(&mut all)).await;
            assert_eq!(all.len(), bytes);
            assert_eq!(read.map(|read| read.unwrap_err().kind()).ok(), is_cut.then_some(io::ErrorKind::TimedOut));
        }
    }
}
