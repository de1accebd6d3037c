//! Moves bytes between asynchronous streams and a thread that compresses, encrypts or hashes them, over channels with
//! a bound. Memory is bounded by the channels, and whoever is slower sets the pace.

use std::io::{self, Read};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::Error;
use super::archive::CHUNK_BYTES;

/// What a pipe holds; no read gives more.
const READ_BYTES: usize = 64 * 1024;
/// Chunks that may wait for the thread.
const CHUNKS_WAITING_MAX: usize = 4;

pub(super) fn channel() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    mpsc::channel(CHUNKS_WAITING_MAX)
}

/// Why a transfer ended early.
#[derive(Debug)]
pub(super) enum Broken {
    /// Reading or writing failed.
    Io(io::Error),
    /// Nothing moved for the time allowed.
    Stalled(Duration),
}

impl Broken {
    /// `what` was being transferred.
    pub(super) fn into_error(self, what: &'static str) -> Error {
        match self {
            Self::Io(cause) => Error::Transfer { what, cause },
            Self::Stalled(timeout) => Error::Stalled { what, timeout },
        }
    }
}

/// Sends everything that `source` gives, and answers with the number of bytes. `stall_timeout` bounds each wait for
/// `source`, never the wait for the receiver. A receiver that has gone knows why, so this then waits to be dropped.
pub(super) async fn pump(
    source: &mut (impl AsyncRead + Unpin),
    sender: mpsc::Sender<Bytes>,
    stall_timeout: Option<Duration>,
) -> Result<u64, Broken> {
    let mut buffer = BytesMut::new();
    let mut bytes = 0_u64;
    loop {
        if buffer.capacity() < READ_BYTES {
            buffer = BytesMut::with_capacity(CHUNK_BYTES);
        }
        let reading = source.read_buf(&mut buffer);
        let read = match stall_timeout {
            Some(limit) => tokio::time::timeout(limit, reading).await.map_err(|_elapsed| Broken::Stalled(limit))?,
            None => reading.await,
        };
        let read = read.map_err(Broken::Io)?;
        if read == 0 {
            return Ok(bytes);
        }
        bytes += read as u64;
        if sender.send(buffer.split().freeze()).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Writes everything that `chunks` gives to `sink`, and closes it.
pub(super) async fn pour(chunks: &mut mpsc::Receiver<Bytes>, mut sink: impl AsyncWrite + Unpin) -> io::Result<()> {
    while let Some(chunk) = chunks.recv().await {
        sink.write_all(&chunk).await?;
    }
    sink.shutdown().await
}

/// The thread's end of a channel. The end of the channel reads as the end of the stream: whether it was the true end
/// is for the sender's side to know.
pub(super) struct ChannelReader {
    chunks: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl ChannelReader {
    pub(super) fn new(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self { chunks, chunk: Bytes::new() }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let taken = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(buffer.get_mut(..taken).unwrap_or_default());
        Ok(taken)
    }
}
