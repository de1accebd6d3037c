//! How sessions are asked for. Two gates, then the budget, then a task of its own opens and drives the session; whoever
//! asked may go away at any moment.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Notification};
use tokio_util::sync::DropGuard;

use super::budget::Permit;
use super::errors::Error;
use super::lane::Lane;
use super::server::Server;
use super::session::{Encoding, Opened, Order, down_for_good};
use crate::config::RoleLogin;
use crate::domain::tenant::DatabaseName;

/// How long administration waits for a session.
pub const ADMIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The server's side: a daemon that it does not hear any more is noticed after 10 + 3 × 5 seconds, and its sessions end.
/// Every session has this, because the daemon gives the place of one that it does not hear any more out again, and the
/// server's own default takes hours.
pub(super) const KEEPALIVE: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "10"), ("tcp_keepalives_interval", "5"), ("tcp_keepalives_count", "3")];

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
    /// As the startup message takes them, with [`KEEPALIVE`]: `-c name=value`, blanks and backslashes escaped.
    pub(super) fn text(&self) -> String {
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
        let keepalive = KEEPALIVE.map(|(name, value)| (name, value.to_owned()));
        keepalive.into_iter().chain(timeouts).chain(others).map(option).collect::<Vec<_>>().join(" ")
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

impl From<Opened> for Connection {
    fn from(opened: Opened) -> Self {
        Self { client: opened.client, notifications: Some(opened.notifications), _held: opened.held }
    }
}

/// A passage through a lane's connect gate.
#[derive(Debug)]
pub struct Pass(OwnedSemaphorePermit);

impl Server {
    /// Opens a session within the budget.
    pub async fn connect(&self, request: &ConnectRequest<'_>) -> Result<Connection, Error> {
        Ok(self.open(None, None, request).await?.into())
    }

    /// Waits at a lane's connect gate, for whoever chooses then what to connect to.
    pub async fn gate_pass(&self, lane: Lane) -> Pass {
        loop {
            // Nobody closes a gate.
            if let Ok(pass) = Arc::clone(self.gate(lane)).acquire_owned().await {
                return Pass(pass);
            }
        }
    }

    /// Opens a session with a permit that the caller got from [`Server::budget`], as after an eviction.
    pub async fn connect_with(&self, permit: Permit, request: &ConnectRequest<'_>) -> Result<Connection, Error> {
        Ok(self.open(None, Some(permit), request).await?.into())
    }

    /// As [`Server::connect`], in the parts that deadpool wants. The pool aborts the handle when it drops the client; it
    /// is only a sign that the client has gone, and the task that drives the session goes on to its proper end.
    pub async fn connect_raw(
        &self,
        given: Option<(Pass, Permit)>,
        request: &ConnectRequest<'_>,
    ) -> Result<(Client, JoinHandle<()>, Encoding), Error> {
        let (pass, permit) = given.unzip();
        let opened = self.open(pass, permit, request).await?;
        let (held, tasks) = (opened.held, self.tasks().clone());
        let sign = self.tasks().spawn("pooled client", async move {
            let _held = held;
            down_for_good(&tasks).await;
        });
        Ok((opened.client, sign, opened.encoding))
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

    async fn open(
        &self,
        pass: Option<Pass>,
        permit: Option<Permit>,
        request: &ConnectRequest<'_>,
    ) -> Result<Opened, Error> {
        let gate = match pass {
            Some(Pass(gate)) => gate,
            None => self.pass(self.gate(request.lane), request).await?,
        };
        let permit = match permit {
            Some(permit) => permit,
            None => self.budget_of(request.lane).acquire(request.lane, request.deadline).await?,
        };
        let opening = match request.lane {
            // Whatever others connect to may hang, and nobody is let in without these.
            Lane::Catalog | Lane::Share => None,
            _ => Some(self.pass(self.opening(), request).await?),
        };
        self.fence_pass(request)?;
        let (answer, answered) = oneshot::channel();
        // The gates go with the task: a caller that gives up does not let another connect begin before its own ended.
        let order = request.order(self);
        self.tasks().spawn("postgres session", order.run(permit, (gate, opening), answer));
        let opened = answered.await.unwrap_or_else(|_dropped| Err(self.too_slow(request)))?;
        // Whatever has happened meanwhile: a session that may be nobody's any more is never used.
        self.fence_pass(request)?;
        Ok(opened)
    }

    fn fence_pass(&self, request: &ConnectRequest<'_>) -> Result<(), Error> {
        let is_stopped = request.lane != Lane::Share && self.budget().is_fenced();
        if is_stopped { Err(self.budget().uncertain()) } else { Ok(()) }
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

impl ConnectRequest<'_> {
    fn order(&self, server: &Server) -> Order {
        let mut config = Config::new();
        config
            .user(self.login.role.as_str())
            .password(self.login.password.expose_secret())
            .dbname(self.database.as_str())
            .application_name(self.application_name)
            .options(self.options.text())
            .ssl_mode(if server.tls().is_some() { SslMode::Require } else { SslMode::Disable });
        Order {
            server: server.clone(),
            config,
            role: self.login.role.to_string(),
            database: self.database.clone(),
            deadline: self.deadline,
            lane: self.lane,
        }
    }
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
        let keepalive = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3";
        assert_eq!(SessionOptions::default().text(), keepalive);
        let own = r" -c statement_timeout=1500 -c lock_timeout=1 -c search_path=pg_catalog,\ a\\b";
        assert_eq!(options.text(), format!("{keepalive}{own}"));
    }
}
