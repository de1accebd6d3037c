//! One session: asked for in a [`ConnectRequest`], opened and driven by a task of its own, which holds the budget's
//! permit until the backend has closed its end of the socket.
//!
//! A caller that goes away in the middle of a statement leaves nothing behind: the statement is cancelled on the
//! server, and the permit is free when the backend is.

use std::future::poll_fn;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{TlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, Notification};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::budget::Permit;
use super::errors::Error;
use super::lane::Lane;
use super::server::{Server, Tls};
use super::socket::{self, Lent, lend};
use crate::config::RoleLogin;
use crate::domain::tenant::DatabaseName;

/// How long administration waits for a session.
pub const ADMIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a backend may take to go away after its session has ended, before its permit is given out regardless.
const BACKEND_END_MAX: Duration = Duration::from_secs(30);
/// A statement that is still running so long after its caller went away is cancelled, and then again and again.
const CANCEL_DELAY: Duration = Duration::from_millis(20);
const CANCEL_INTERVAL: Duration = Duration::from_secs(5);
/// How long sessions may outlive the daemon's last word.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// Notifications that a slow listener may be behind; at more, its session ends, and it has to read everything anew.
const NOTIFICATIONS_MAX: usize = 1024;

/// What session is wanted.
#[derive(Debug, Clone)]
pub struct ConnectRequest<'a> {
    pub lane: Lane,
    pub login: &'a RoleLogin,
    pub database: &'a DatabaseName,
    /// Seen in `pg_stat_activity`; see [`Server::session_name`].
    pub application_name: &'a str,
    pub options: SessionOptions,
    /// For everything together: the queues, the connect, the login.
    pub deadline: Instant,
}

/// Settings that a session begins with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionOptions {
    pub statement_timeout: Option<Duration>,
    pub lock_timeout: Option<Duration>,
    pub idle_in_transaction_session_timeout: Option<Duration>,
    /// Any others, as `("search_path", "pg_catalog")`.
    pub settings: Vec<(&'static str, String)>,
}

impl SessionOptions {
    /// As the startup message takes them: `-c name=value`, blanks and backslashes escaped.
    fn text(&self) -> String {
        let milliseconds = |time: Duration| time.as_millis().clamp(1, i32::MAX as u128).to_string();
        let timeouts = [
            ("statement_timeout", self.statement_timeout),
            ("lock_timeout", self.lock_timeout),
            ("idle_in_transaction_session_timeout", self.idle_in_transaction_session_timeout),
        ];
        let timeouts = timeouts.into_iter().filter_map(|(name, time)| Some((name, milliseconds(time?))));
        let others = self.settings.iter().map(|(name, value)| (*name, value.clone()));
        let option =
            |(name, value): (&str, String)| format!("-c {name}={}", value.replace('\\', "\\\\").replace(' ', "\\ "));
        timeouts.chain(others).map(option).collect::<Vec<_>>().join(" ")
    }
}

/// A session. It ends when this is dropped; a statement that is still running is cancelled.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    notifications: Option<mpsc::Receiver<Notification>>,
    _held: DropGuard,
}

impl Connection {
    /// What `LISTEN` brings, once. The channel's end means that the session has ended, or that its reader fell so far
    /// behind that it must connect again and read everything anew.
    pub fn notifications(&mut self) -> Option<mpsc::Receiver<Notification>> {
        self.notifications.take()
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// A client with what belongs to it: when `held` is dropped, the client is taken to be gone.
pub(super) struct Opened {
    pub(super) client: Client,
    pub(super) notifications: mpsc::Receiver<Notification>,
    pub(super) held: DropGuard,
}

impl From<Opened> for Connection {
    fn from(opened: Opened) -> Self {
        Self { client: opened.client, notifications: Some(opened.notifications), _held: opened.held }
    }
}

/// Opening sessions.
impl Server {
    /// Opens a session within the budget.
    pub async fn connect(&self, request: &ConnectRequest<'_>) -> Result<Connection, Error> {
        Ok(self.open(None, request).await?.into())
    }

    /// Opens a session with a permit that the caller got from [`Server::budget`], as after an eviction.
    pub async fn connect_with(&self, permit: Permit, request: &ConnectRequest<'_>) -> Result<Connection, Error> {
        Ok(self.open(Some(permit), request).await?.into())
    }

    /// As [`Server::connect`], in the parts that deadpool wants. The pool aborts the handle when it drops the client; it
    /// is only a sign that the client has gone, and the task that drives the session goes on to its proper end.
    pub async fn connect_raw(
        &self,
        permit: Option<Permit>,
        request: &ConnectRequest<'_>,
    ) -> Result<(Client, JoinHandle<()>), Error> {
        let opened = self.open(permit, request).await?;
        let (held, down) = (opened.held, self.tasks().token().clone());
        let sign = self.tasks().spawn("pooled client", async move {
            let _held = held;
            down.cancelled().await;
        });
        Ok((opened.client, sign))
    }

    /// Opens a session of the daemon's role for administration. Its search path holds nothing that a tenant can fill.
    pub async fn connect_admin(&self, database: &DatabaseName) -> Result<Connection, Error> {
        self.connect(&ConnectRequest {
            lane: Lane::Administration,
            login: self.daemon(),
            database,
            application_name: &self.session_name("administration"),
            options: SessionOptions {
                settings: vec![("search_path", "pg_catalog,pg_temp".to_owned())],
                ..SessionOptions::default()
            },
            deadline: Instant::now() + ADMIN_CONNECT_TIMEOUT,
        })
        .await
    }

    async fn open(&self, permit: Option<Permit>, request: &ConnectRequest<'_>) -> Result<Opened, Error> {
        let [gate, opening] = self.gates(request.lane);
        let gate = self.pass(gate, request).await?;
        let permit = match permit {
            Some(permit) => permit,
            None => self.budget().acquire(request.lane, request.deadline).await?,
        };
        let opening = self.pass(opening, request).await?;
        let (answer, answered) = oneshot::channel();
        // The gates go with the task: a caller that gives up does not let another connect begin before its own ended.
        let order = Order::new(self, request);
        self.tasks().spawn("postgres session", order.run(permit, (gate, opening), answer));
        answered.await.unwrap_or_else(|_dropped| Err(self.too_slow(request)))
    }

    async fn pass(&self, gate: &Arc<Semaphore>, request: &ConnectRequest<'_>) -> Result<OwnedSemaphorePermit, Error> {
        match timeout_at(request.deadline, Arc::clone(gate).acquire_owned()).await {
            Ok(Ok(pass)) => Ok(pass),
            Ok(Err(_)) | Err(_) => Err(self.too_slow(request)),
        }
    }

    fn too_slow(&self, request: &ConnectRequest<'_>) -> Error {
        Error::ConnectTimeout { server: self.name().to_owned(), database: request.database.to_string() }
    }
}

type Answer = oneshot::Sender<Result<Opened, Error>>;

/// Everything that the driving task needs.
pub(super) struct Order {
    server: Server,
    config: Config,
    role: String,
    database: DatabaseName,
    deadline: Instant,
}

impl Order {
    pub(super) fn new(server: &Server, request: &ConnectRequest<'_>) -> Self {
        let mut config = Config::new();
        config
            .user(request.login.role.as_str())
            .password(request.login.password.expose_secret())
            .dbname(request.database.as_str())
            .application_name(request.application_name)
            .ssl_mode(if server.tls().is_some() { SslMode::Require } else { SslMode::Disable });
        let options = request.options.text();
        if !options.is_empty() {
            config.options(options);
        }
        Self {
            server: server.clone(),
            config,
            role: request.login.role.to_string(),
            database: request.database.clone(),
            deadline: request.deadline,
        }
    }

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
        let socket = match timeout_at(self.deadline, socket::open(&place.host, place.port)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(cause)) => return reply(answer, Err(self.unreachable(cause))),
            Err(_elapsed) => return reply(answer, Err(self.too_slow())),
        };
        let (lent, returned) = lend(socket);
        let opened = timeout_at(self.deadline, self.config.connect_raw(lent, tls)).await;
        drop(gates);
        match opened {
            Ok(Ok((client, connection))) => {
                let (sender, notifications) = mpsc::channel(NOTIFICATIONS_MAX);
                let gone = CancellationToken::new();
                let cancel = client.cancel_token();
                reply(answer, Ok(Opened { client, notifications, held: gone.clone().drop_guard() }));
                self.drive(connection, &sender, &gone, &cancel).await;
            }
            Ok(Err(cause)) => reply(answer, Err(self.refused(cause))),
            Err(_elapsed) => reply(answer, Err(self.too_slow())),
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

    /// Moves bytes until the session has ended. `gone` says that nobody holds the client any more.
    async fn drive<S, T>(
        &self,
        mut connection: tokio_postgres::Connection<S, T>,
        notifications: &mpsc::Sender<Notification>,
        gone: &CancellationToken,
        cancel: &CancelToken,
    ) where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let session = async {
            loop {
                match poll_fn(|cx| connection.poll_message(cx)).await {
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
        let ended_from_outside = async {
            tokio::select! {
                () = gone.cancelled() => {}
                () = async { self.server.tasks().token().cancelled().await; sleep(SHUTDOWN_GRACE).await; } => return,
            }
            sleep(CANCEL_DELAY).await;
            loop {
                if let Err(error) = self.server.cancel_query(cancel).await {
                    tracing::debug!(server = self.server.name(), %error, "an abandoned statement could not be cancelled");
                }
                sleep(CANCEL_INTERVAL).await;
            }
        };
        tokio::select! {
            () = session => {}
            () = ended_from_outside => {}
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

/// A caller that has gone drops the client, and with it the session.
fn reply(answer: Answer, result: Result<Opened, Error>) {
    drop(answer.send(result));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_escaped() {
        let options = SessionOptions {
            statement_timeout: Some(Duration::from_millis(1500)),
            lock_timeout: Some(Duration::from_nanos(1)),
            settings: vec![("search_path", "pg_catalog, a\\b".to_owned())],
            ..SessionOptions::default()
        };
        assert_eq!(options.text(), r"-c statement_timeout=1500 -c lock_timeout=1 -c search_path=pg_catalog,\ a\\b");
        assert_eq!(SessionOptions::default().text(), "");
    }
}
