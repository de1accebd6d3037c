//! The session that stands for a daemon on a server: it holds an advisory lock that others can see, and the server
//! itself ends it when the daemon is gone. Whoever sees that a lock is free may seize it, and end what its daemon has
//! left behind.
//!
//! Knows nothing of shares. It lives in the maintenance database, where no tenant gets in to take such a lock.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Notification;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::admin::{self, Parameter, SESSIONS_END_MAX, SESSIONS_POLL_INTERVAL, ServerVersion};
use super::connect::{ADMIN_CONNECT_TIMEOUT, ConnectRequest, Connection, SessionOptions};
use super::errors::Error;
use super::lane::Lane;
use super::locks::{advisory_key, advisory_lock_poll, advisory_unlock};
use super::server::{Server, instance_mark, instance_prefix};
use crate::domain::share::InstanceName;
use crate::domain::tenant::{DatabaseName, Naming, TenantRole};

/// How often the server is asked, and how long it may take to answer before the session counts as lost: together less
/// than the server takes, by [`super::connect::KEEPALIVE`], to find that the daemon is lost, and less than others wait
/// before they take over, as the server may have been restarted meanwhile.
const ASK_INTERVAL: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(7);
/// What these sessions are for, in their names.
const PURPOSE: &str = "share";
const LOCK_PURPOSE: &str = "tenantd share";
const DOOR_PURPOSE: &str = "tenantd door";

/// The session. Dropped, it ends.
#[derive(Debug)]
pub struct Anchor {
    key: Uuid,
    server: Server,
    connection: Connection,
}

/// Hears of the session's end.
#[derive(Debug)]
pub struct AnchorLoss(Option<mpsc::Receiver<Notification>>);

/// A daemon that is gone.
#[derive(Debug, Clone, Copy)]
pub struct Gone<'a> {
    pub instance: &'a InstanceName,
    pub daemon: Uuid,
    /// All others that may be alive: what is theirs stays.
    pub others: &'a [(InstanceName, Uuid)],
}

impl AnchorLoss {
    /// Resolves once the session has ended.
    pub async fn happened(&mut self) {
        let Some(ended) = &mut self.0 else { return };
        // Nobody listens to anything there, so nothing comes but the end.
        while ended.recv().await.is_some() {}
    }
}

impl Anchor {
    /// Opens the session, under a lock that nobody has had before.
    pub async fn cast(server: &Server) -> Result<(Self, AnchorLoss), Error> {
        let settings = [("search_path", "pg_catalog,pg_temp"), ("idle_session_timeout", "0")];
        let settings = settings.map(|(name, value)| (name, value.to_owned())).to_vec();
        let request = ConnectRequest {
            lane: Lane::Share,
            login: server.daemon(),
            database: server.maintenance_database(),
            application_name: &server.session_name(PURPOSE),
            options: SessionOptions { settings, ..SessionOptions::default() },
            deadline: Instant::now() + ADMIN_CONNECT_TIMEOUT,
        };
        let mut connection = server.connect(&request).await?;
        let loss = AnchorLoss(connection.notifications());
        let anchor = Self { key: Uuid::new_v4(), server: server.clone(), connection };
        // Nobody else knows the key.
        anchor.seize(anchor.key).await?;
        Ok((anchor, loss))
    }

    pub async fn server_version(&self) -> Result<ServerVersion, Error> {
        self.answer(admin::server_version(&self.connection)).await
    }

    /// What others know the session by.
    pub fn key(&self) -> Uuid {
        self.key
    }

    /// Which of these are held by somebody: the session that stands for a daemon, or one that takes its place.
    pub async fn held(&self, keys: &[Uuid]) -> Result<BTreeSet<Uuid>, Error> {
        let sql = "SELECT (classid::pg_catalog.int8 << 32) | objid::pg_catalog.int8 FROM pg_catalog.pg_locks \
                   WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND database = \
                   (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";
        let rows = self.answer(async { Ok(self.connection.query_typed(sql, &[]).await?) }).await?;
        let held = rows.iter().map(|row| row.try_get(0)).collect::<Result<BTreeSet<i64>, _>>()?;
        Ok(keys.iter().copied().filter(|key| held.contains(&advisory_key(LOCK_PURPOSE, *key))).collect())
    }

    /// Takes a daemon's lock, if it is free.
    pub async fn seize(&self, key: Uuid) -> Result<bool, Error> {
        self.answer(advisory_lock_poll(&self.connection, advisory_key(LOCK_PURPOSE, key), Duration::ZERO)).await
    }

    pub async fn release(&self, key: Uuid) -> Result<(), Error> {
        self.answer(advisory_unlock(&self.connection, advisory_key(LOCK_PURPOSE, key))).await.map(drop)
    }

    /// Takes the fleet's one place for a daemon that comes, if it is free. It is given back with the session, too.
    pub async fn door_enter(&self, naming: &Naming) -> Result<bool, Error> {
        self.answer(advisory_lock_poll(&self.connection, door(naming), Duration::ZERO)).await
    }

    pub async fn door_leave(&self, naming: &Naming) -> Result<(), Error> {
        self.answer(advisory_unlock(&self.connection, door(naming))).await.map(drop)
    }

    /// Ends every session of a daemon that is gone, and waits until the server has none. The names of the daemon's own
    /// sessions tell whose they are; tenants can give theirs any name, so of those every one ends that is not plainly
    /// another daemon's.
    pub async fn sessions_end(&self, naming: &Naming, gone: &Gone<'_>) -> Result<(), Error> {
        let sql = "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity s \
                   WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid() AND ( \
                     pg_catalog.starts_with(application_name, $1) OR \
                     pg_catalog.starts_with(usename::pg_catalog.text, $2) AND EXISTS (\
                       SELECT FROM pg_catalog.unnest($3) suffix \
                       WHERE pg_catalog.right(s.usename::pg_catalog.text, pg_catalog.length(suffix)) = suffix) \
                     AND NOT EXISTS (\
                       SELECT FROM ROWS FROM (pg_catalog.unnest($4), pg_catalog.unnest($5)) AS other (prefix, mark) \
                       WHERE pg_catalog.starts_with(s.application_name, other.prefix) \
                       OR pg_catalog.right(s.application_name, pg_catalog.length(other.mark)) = other.mark))";
        let own = format!("{} ", instance_prefix(gone.daemon));
        let fleet = format!("{}_", naming.prefix());
        let suffixes = [TenantRole::Router.suffix(), TenantRole::Migrator.suffix()].to_vec();
        let (mut prefixes, mut marks) = (Vec::new(), Vec::new());
        for (instance, daemon) in gone.others {
            prefixes.push(format!("{} ", instance_prefix(*daemon)));
            marks.push(instance_mark(instance));
        }
        let parameters: [Parameter<'_>; 5] = [
            (&own, Type::TEXT),
            (&fleet, Type::TEXT),
            (&suffixes, Type::TEXT_ARRAY),
            (&prefixes, Type::TEXT_ARRAY),
            (&marks, Type::TEXT_ARRAY),
        ];
        let deadline = Instant::now() + SESSIONS_END_MAX;
        loop {
            let told = async { admin::count(self.connection.query_typed(sql, &parameters).await) };
            let count = self.answer(told).await?;
            if count == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let instance = gone.instance.to_string();
                return Err(Error::InstanceRemains { instance, count, waited: SESSIONS_END_MAX });
            }
            sleep(SESSIONS_POLL_INTERVAL).await;
        }
    }

    /// Resolves once the server does not answer any more.
    pub async fn silence(&self) {
        loop {
            sleep(ASK_INTERVAL).await;
            if self.answer(async { Ok(self.connection.batch_execute("").await?) }).await.is_err() {
                return;
            }
        }
    }

    /// Sessions in the shared database of daemons that are none of `known`, and for which no session like this stands.
    pub async fn strangers(&self, shared_database: &DatabaseName, known: &[Uuid]) -> Result<i64, Error> {
        let sql = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity s \
                   WHERE datname = $1 AND usename::pg_catalog.text = $2 \
                   AND application_name ~ '^tenantd [0-9a-f]{8} ' \
                   AND pg_catalog.left(application_name, 17) <> ALL ($4) AND NOT EXISTS (\
                     SELECT FROM pg_catalog.pg_stat_activity a \
                     WHERE a.application_name = pg_catalog.left(s.application_name, 17) || $3)";
        let (database, daemon) = (shared_database.as_str(), self.server.daemon().role.as_str());
        let known: Vec<String> = known.iter().map(|daemon| format!("{} ", instance_prefix(*daemon))).collect();
        let parameters: [Parameter<'_>; 4] =
            [(&database, Type::TEXT), (&daemon, Type::TEXT), (&PURPOSE, Type::TEXT), (&known, Type::TEXT_ARRAY)];
        let rows = self.answer(async { Ok(self.connection.query_typed(sql, &parameters).await?) }).await?;
        rows.first().map_or(Ok(0), |row| Ok(row.try_get(0)?))
    }

    async fn answer<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let silent = || Error::Silent { server: self.server.name().to_owned(), waited: ANSWER_TIMEOUT };
        timeout(ANSWER_TIMEOUT, asked).await.unwrap_or_else(|_elapsed| Err(silent()))
    }
}

fn door(naming: &Naming) -> i64 {
    advisory_key(&format!("{DOOR_PURPOSE} {}", naming.prefix()), Uuid::nil())
}

/// As [`Anchor::strangers`], for a daemon without such a session.
pub async fn strangers(server: &Server, shared_database: &DatabaseName, own: Uuid) -> Result<i64, Error> {
    let connection = server.connect_admin(server.maintenance_database()).await?;
    Anchor { key: Uuid::nil(), server: server.clone(), connection }.strangers(shared_database, &[own]).await
}

/// Which of these keys are held on the server, for a daemon without such a session.
pub async fn anchors_held(server: &Server, keys: &[Uuid]) -> Result<BTreeSet<Uuid>, Error> {
    let connection = server.connect_admin(server.maintenance_database()).await?;
    Anchor { key: Uuid::nil(), server: server.clone(), connection }.held(keys).await
}
