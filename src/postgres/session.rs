//! The task that drives one session. It holds the budget's permit until the backend has closed its end of the socket,
//! whatever becomes of the session and of whoever asked for it.
//!
//! A caller that goes away in the middle of a statement leaves nothing behind: the statement is cancelled on the
//! server, and the permit is free when the backend is.

use std::future::{pending, poll_fn};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::tls::{TlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, Notification};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::budget::Permit;
use super::errors::Error;
use super::lane::Lane;
use super::server::Server;
use super::socket::{self, Lent, lend};
use super::tls::Tls;
use crate::domain::tenant::DatabaseName;
use crate::shutdown::Tasks;

/// How long a backend may take to go away after its session has ended, before its permit is given out regardless.
const BACKEND_END_MAX: Duration = Duration::from_secs(30);
/// A statement that is still running so long after its caller went away is cancelled, and then again and again, as a
/// backend that has not read the statement yet ignores that: each time after three times as long.
const CANCEL_DELAY: Duration = Duration::from_millis(20);
const CANCEL_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// How long sessions may outlive the daemon's last word.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// Notifications that a slow listener may be behind; at more, its session ends, and it has to read everything anew.
const NOTIFICATIONS_MAX: usize = 1024;

/// A client with what belongs to it: when `held` is dropped, the client is taken to be gone.
pub(super) struct Opened {
    pub(super) client: Client,
    pub(super) encoding: Encoding,
    pub(super) notifications: mpsc::Receiver<Notification>,
    pub(super) held: DropGuard,
}

/// Whether a session has ended because its texts began to travel in another encoding.
#[derive(Debug, Clone, Default)]
pub struct Encoding(Arc<AtomicBool>);

impl Encoding {
    pub fn has_changed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

pub(super) type Answer = oneshot::Sender<Result<Opened, Error>>;

/// Everything that the driving task needs.
pub(super) struct Order {
    pub(super) server: Server,
    pub(super) config: Config,
    pub(super) role: String,
    pub(super) database: DatabaseName,
    pub(super) deadline: Instant,
    pub(super) lane: Lane,
}

impl Order {
    /// Opens the session, answers, and drives it to its end. Holds `permit` until the backend has gone.
    /// `gates` are passed once the session is open.
    pub(super) async fn run<G>(self, permit: Permit, gates: G, answer: Answer) {
        match self.server.tls().map(Tls::connector) {
            None => self.run_with(tokio_postgres::NoTls, gates, answer).await,
            Some(tls) => self.run_with(tls, gates, answer).await,
        }
        drop(permit);
    }

    async fn run_with<T, G>(self, tls: T, gates: G, answer: Answer)
    where
        T: TlsConnect<Lent>,
        T::Stream: TlsStream,
    {
        let place = self.server.config();
        let socket = match self.in_time(socket::open(&place.host, place.port)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(cause)) => return reply(answer, Err(self.unreachable(cause))),
            Err(error) => return reply(answer, Err(error)),
        };
        let (lent, returned) = lend(socket);
        let opened = self.in_time(self.config.connect_raw(lent, tls)).await;
        drop(gates);
        match opened {
            Ok(Ok((client, connection))) => {
                let (sender, notifications) = mpsc::channel(NOTIFICATIONS_MAX);
                let gone = CancellationToken::new();
                let (cancel, encoding) = (client.cancel_token(), Encoding::default());
                let held = gone.clone().drop_guard();
                reply(answer, Ok(Opened { client, encoding: encoding.clone(), notifications, held }));
                self.drive(connection, &sender, &gone, &cancel, &encoding).await;
            }
            Ok(Err(cause)) => reply(answer, Err(self.refused(cause))),
            Err(error) => reply(answer, Err(error)),
        }
        // The connection was dropped by now, whatever became of it, so the socket is back.
        if let Ok(socket) = returned.await
            && !socket.close(BACKEND_END_MAX).await
        {
            tracing::warn!(
                server = self.server.name(),
                database = %self.database,
                "a backend is still there {BACKEND_END_MAX:?} after its session ended; its place in the budget is given out again"
            );
        }
    }

    /// Waits for a part of the opening, until the deadline or until nothing may be opened any more.
    async fn in_time<T>(&self, part: impl Future<Output = T>) -> Result<T, Error> {
        let fenced = async {
            match self.lane {
                // Without these the daemon is not let in again.
                Lane::Share => pending().await,
                _ => self.server.budget().fenced().await,
            }
        };
        tokio::select! {
            biased;
            done = timeout_at(self.deadline, part) => done.map_err(|_elapsed| self.too_slow()),
            () = fenced => Err(self.server.budget().uncertain()),
        }
    }

    /// Moves bytes until the session has ended. `gone` says that nobody holds the client any more.
    async fn drive<S, T>(
        &self,
        mut connection: tokio_postgres::Connection<S, T>,
        notifications: &mpsc::Sender<Notification>,
        gone: &CancellationToken,
        cancel: &CancelToken,
        encoding: &Encoding,
    ) where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        // Their users read and write UTF-8 only.
        let is_utf8_only = self.lane == Lane::Tenant;
        let session = async {
            loop {
                let message = poll_fn(|cx| {
                    let message = connection.poll_message(cx);
                    let is_foreign = || connection.parameter("client_encoding").is_some_and(|name| name != "UTF8");
                    if is_utf8_only && is_foreign() {
                        // Before its user hears that it is over.
                        encoding.0.store(true, Ordering::Release);
                        return Poll::Ready(None);
                    }
                    message
                });
                match message.await {
                    Some(Ok(AsyncMessage::Notification(notification))) => {
                        if notifications.try_send(notification).is_err() && !notifications.is_closed() {
                            return;
                        }
                    }
                    // Notices hold tenants' values, and nobody reads them here.
                    Some(Ok(_notice)) => {}
                    // Whoever uses the client gets the error from it.
                    Some(Err(_)) | None => return,
                }
            }
        };
        let abandoned = async {
            gone.cancelled().await;
            for pause in cancel_pauses() {
                sleep(pause).await;
                if let Err(error) = self.server.cancel_query(cancel).await {
                    tracing::debug!(server = self.server.name(), %error, "an abandoned statement could not be cancelled");
                }
            }
        };
        tokio::select! {
            () = session => {}
            () = abandoned => {}
            () = down_for_good(self.server.tasks()) => {}
        }
    }

    fn too_slow(&self) -> Error {
        Error::ConnectTimeout { server: self.server.name().to_owned(), database: self.database.to_string() }
    }

    fn unreachable(&self, cause: io::Error) -> Error {
        let config = self.server.config();
        let address = socket::address(&config.host, config.port);
        Error::Unreachable { server: config.name.clone(), address, cause }
    }

    fn refused(&self, cause: tokio_postgres::Error) -> Error {
        Error::Connect {
            server: self.server.name().to_owned(),
            database: self.database.to_string(),
            role: self.role.clone(),
            cause,
        }
    }
}

/// What is waited before each cancel request, without end.
fn cancel_pauses() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(CANCEL_DELAY), |pause| Some((*pause * 3).min(CANCEL_INTERVAL_MAX)))
}

/// Resolves when the daemon has gone down and nobody should need a session any more.
pub(super) async fn down_for_good(tasks: &Tasks) {
    tasks.token().cancelled().await;
    sleep(SHUTDOWN_GRACE).await;
}

/// A caller that has gone drops the client, and with it the session.
fn reply(answer: Answer, result: Result<Opened, Error>) {
    drop(answer.send(result));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_cancelled_soon_and_often_at_first_and_never_given_up() {
        let milliseconds: Vec<u128> = cancel_pauses().map(|pause| pause.as_millis()).take(8).collect();
        assert_eq!(milliseconds, [20, 60, 180, 540, 1620, 4860, 5000, 5000]);
    }
}
