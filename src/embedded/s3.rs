//! An S3 server over a folder, with checked signatures, on a listener that the caller has bound. It serves until its
//! tasks are told to end, and finishes the requests that it has begun.
//!
//! Give it tasks of its own that end after the daemon's: a daemon that goes down still aborts its uploads.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::lock::DirLock;
use super::objects::Objects;
use crate::shutdown::Tasks;

/// When the process has no file handles left, accepting fails at once; others may free some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running server.
#[derive(Debug, Clone)]
pub struct S3Server {
    /// `http://127.0.0.1:PORT`
    pub endpoint: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the S3 server cannot use the folder {}: {reason}", dir.display())]
    Folder { dir: PathBuf, reason: String },
    #[error("the S3 server's listener has no address: {0}")]
    Listener(#[source] io::Error),
}

impl S3Server {
    /// Serves `dir` (made with mode 0700 if it is missing) and makes the buckets that are not there yet. Uploads that
    /// a killed server left without their records are removed. A folder has one server: two would take each other's
    /// unfinished files for leftovers.
    pub async fn start(
        listener: TcpListener,
        dir: &Path,
        access_key: &str,
        secret: &SecretString,
        buckets: &[&str],
        tasks: &Tasks,
    ) -> Result<Self, Error> {
        let folder = |reason: String| Error::Folder { dir: dir.to_owned(), reason };
        for path in std::iter::once(dir.to_owned()).chain(buckets.iter().map(|bucket| dir.join(bucket))) {
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|error| folder(error.to_string()))?;
        }
        let lock = DirLock::take(&dir.join(".lock")).map_err(|error| folder(error.to_string()))?;
        let lock = lock.map_err(|owner| folder(format!("another server (process {}) serves it", owner.0)))?;
        let objects = Objects::open(dir).await.map_err(folder)?;
        let address = listener.local_addr().map_err(Error::Listener)?;
        let mut service = S3ServiceBuilder::new(objects);
        service.set_auth(SimpleAuth::from_single(access_key, secret.expose_secret()));
        let accepting = accept(listener, service.build(), tasks.clone());
        tasks.spawn("s3 server", async move {
            accepting.await;
            drop(lock);
        });
        Ok(Self { endpoint: format!("http://{address}") })
    }
}

async fn accept(listener: TcpListener, service: S3Service, tasks: Tasks) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.token().cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                tasks.spawn("s3 connection", connection(stream, service.clone(), tasks.token().clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "the S3 server could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, service: S3Service, ending: CancellationToken) {
    let http = Builder::new(TokioExecutor::new()).http1_only();
    let serving = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = ending.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an S3 connection broke off");
    }
}
