//! Several daemons on one fleet, none of which may open more connections than its share of each server's budget, so
//! that the server never sees more than the budget. Who has how much is in the catalog; who is alive, each server says
//! itself. How it is divided is [`crate::domain::share`]'s.
//!
//! **No clock decides.** On each server a daemon has one session, its anchor, which holds an advisory lock there. The
//! server ends it when the daemon is killed or cannot be reached any more, and nobody else can take it away; a daemon
//! that stands still keeps its anchor, and with it its share, because it may go on at any instruction. So:
//!
//! - *A share in force stays in force while its anchor lives*, whatever becomes of the catalog. While the catalog is
//!   away nobody can give or take, and everybody works with what it has: tenants go on.
//! - *A daemon without its anchor is fenced:* it begins no connect, and gives up those that it has begun, until it has a
//!   new anchor and has written that into its row. What it has open, it may use: that counts against its share, and ends before the share is another's.
//! - *Taking over* is: find a lock free for `take_over_after`, by when its daemon has found that the server does not
//!   answer any more, and is fenced; seize the lock, so that only one does the following; end the daemon's sessions on the server until
//!   it has none; and only then remove the row, provided that it still names the anchor that was seized. A daemon that
//!   came back before that has written another anchor, and keeps its row; one that comes back later finds none, and
//!   begins as a newcomer. There is no moment in which both may open connections.
//! - *Shares move through rows*, under the lock of the server's row: a daemon first opens nothing beyond its new, smaller
//!   share, and then writes what it still has; another takes only what is free by the rows of all.
//!
//! A daemon that comes needs a connection before it has a share. For this [`crate::domain::share::KEPT`] connections of
//! each server are in nobody's share. However many come at the same moment, one after the other goes through the door, a
//! lock on the catalog's server, and keeps it until its share has what it needs; the others look in from time to time,
//! with one connection, and have none in between. A daemon without a name is taken to be the only one: it needs no anchor
//! and has the whole budget, and is refused beside any other daemon, as those with names are beside it.

mod keeper;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::catalog::{self, Catalog};
use crate::config::{Config, ServerConfig, SharesConfig};
use crate::domain::share::{InstanceName, TooSmall};
use crate::domain::tenant::Naming;
use crate::postgres::admin::ServerVersion;
use crate::postgres::{self, Anchor, AnchorLoss, Server, anchors_held, strangers};
use crate::shutdown::Tasks;
use keeper::Keeper;

/// How long it waits for sessions to go that nobody stands for any more.
const STRANGERS_WAIT_MAX: Duration = Duration::from_secs(5);
const STRANGERS_INTERVAL: Duration = Duration::from_millis(250);
/// How long it waits at the door. Whoever is in it for longer hangs, and keeps nobody out.
const DOOR_WAIT_MAX: Duration = Duration::from_mins(1);
/// At least, and then up to twice as long.
const DOOR_INTERVAL: Duration = Duration::from_millis(150);
/// How long the sessions may take to end in which a share is given back.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// Why a daemon gets no share.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the budget of the server {server} is too small for {} daemons: a share has {} connections, and one of them needs {}; raise servers.{server}.connections_max to {} for all of them, or lower connections_reserved",
        .too_small.daemons, .too_small.share, .too_small.needed, .too_small.connections_max
    )]
    TooSmall { server: String, too_small: TooSmall },
    #[error(
        "another daemon named {instance} has a share of the server {server} and is running; give each daemon a name of its own (instance)"
    )]
    NameTaken { server: String, instance: InstanceName },
    #[error(
        "a daemon without a name works on this fleet, and has the whole budget of each server for itself; give it a name too (instance), or stop it"
    )]
    Unnamed,
    #[error(
        "another daemon without a name works on this fleet, and each would take the whole budget of each server; give every daemon a name of its own (instance), or stop the other one"
    )]
    BothUnnamed,
    #[error(
        "the daemons {instances} share the budget of the server {server}; give this one a name too (instance), or stop them"
    )]
    Named { server: String, instances: String },
    #[error(
        "the other daemons have left this one no room on the server {server} within {waited:?}: it has {held} connections and needs {needed}; end what holds theirs, or start it again later"
    )]
    NoRoom { server: String, held: u32, needed: u32, waited: Duration },
    #[error("the sessions of the daemon {instance}, which is gone, do not end on the server {server}: {source}")]
    Remains { server: String, instance: InstanceName, source: Box<postgres::Error> },
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    #[error("the server {server}: {source}")]
    Server { server: String, source: Box<postgres::Error> },
}

impl Error {
    fn on(server: &Server, source: postgres::Error) -> Self {
        Self::Server { server: server.name().to_owned(), source: Box::new(source) }
    }

    /// Whether the one who started the daemon can put it right: a setting, or another daemon.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::TooSmall { .. } | Self::NameTaken { .. } | Self::Unnamed | Self::BothUnnamed | Self::Named { .. }
        )
    }
}

/// This daemon, as the others know it.
#[derive(Debug, Clone)]
struct Member {
    instance: InstanceName,
    daemon: Uuid,
    naming: Naming,
    config: SharesConfig,
}

/// What a daemon has of the servers' budgets, from before it asks for it until it has given it back.
#[derive(Debug, Clone)]
pub struct Shares {
    member: Member,
    home: ServerConfig,
    /// Whether there may be rows in the catalog.
    is_listed: Arc<AtomicBool>,
}

/// The sessions that stand for a daemon which has no shares yet.
#[derive(Debug)]
pub struct Anchors {
    shares: Shares,
    cast: Vec<(Server, Anchor, AnchorLoss)>,
}

impl Anchors {
    /// Opens the session that stands for the daemon on a server, and says what the server is. On the catalog's server
    /// first: there it waits at the door.
    pub async fn cast(&mut self, server: &Server) -> Result<ServerVersion, postgres::Error> {
        let is_home = server.name() == self.shares.home.name;
        let (anchor, loss) = if is_home { self.come_in(server).await? } else { Anchor::cast(server).await? };
        let version = anchor.server_version().await?;
        self.cast.push((server.clone(), anchor, loss));
        Ok(version)
    }

    async fn come_in(&self, home: &Server) -> Result<(Anchor, AnchorLoss), postgres::Error> {
        let begun = Instant::now();
        loop {
            let cast = Anchor::cast(home).await?;
            if cast.0.door_enter(&self.shares.member.naming).await? || begun.elapsed() >= DOOR_WAIT_MAX {
                return Ok(cast);
            }
            drop(cast);
            sleep(DOOR_INTERVAL.mul_f64(rand::rng().random_range(1.0..2.0))).await;
        }
    }

    /// Gets a share of each server that leaves room for more than the reserve, and keeps it until the daemon goes down.
    /// `catalog` is [`Catalog::for_shares`], and has the servers.
    pub async fn join(self, home: &Server, catalog: &Catalog, tasks: &Tasks) -> Result<(), Error> {
        let Self { shares: Shares { member, is_listed, .. }, cast } = self;
        is_listed.store(true, Ordering::Relaxed);
        let mut keepers = Vec::new();
        for (server, anchor, loss) in cast {
            let is_home = server.name() == home.name();
            let mut keeper = Keeper::new(member.clone(), server, catalog.clone(), is_home);
            keeper.join(&anchor).await?;
            if is_home {
                strangers_refuse(&member, home, catalog, &anchor).await?;
            }
            keepers.push((keeper, anchor, loss));
        }
        for (keeper, anchor, loss) in keepers {
            if keeper.is_of(home) {
                anchor.door_leave(&member.naming).await.map_err(|source| Error::on(home, source))?;
            }
            tasks.spawn("share of a budget", keeper.run(anchor, loss, tasks.clone()));
        }
        Ok(())
    }
}

/// A daemon without a name that starts now is refused by our row; one that has started before is seen here.
async fn strangers_refuse(member: &Member, home: &Server, catalog: &Catalog, anchor: &Anchor) -> Result<(), Error> {
    let deadline = Instant::now() + STRANGERS_WAIT_MAX;
    let database = member.naming.shared_database();
    loop {
        let known: Vec<Uuid> = catalog.shares(home.name()).await?.iter().map(|share| share.daemon).collect();
        if anchor.strangers(&database, &known).await.map_err(|source| Error::on(home, source))? == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Unnamed);
        }
        sleep(member.config.interval).await;
    }
}

/// Refuses to start a daemon without a name beside others that have one.
pub async fn named_refuse(catalog: &Catalog, servers: &BTreeMap<String, Server>) -> Result<(), Error> {
    for server in servers.values() {
        let shares = catalog.shares(server.name()).await?;
        if shares.is_empty() {
            continue;
        }
        let keys: Vec<Uuid> = shares.iter().map(|share| share.anchor).collect();
        let held = anchors_held(server, &keys).await.map_err(|source| Error::on(server, source))?;
        let alive: Vec<_> = shares.iter().filter(|share| held.contains(&share.anchor)).collect();
        if !alive.is_empty() {
            let names: Vec<&str> = alive.iter().map(|share| share.instance.as_str()).collect();
            return Err(Error::Named { server: server.name().to_owned(), instances: names.join(", ") });
        }
    }
    Ok(())
}

/// Refuses to start a daemon without a name beside another one. Of one that was killed the last sessions end soon.
pub async fn unnamed_refuse(home: &Server, naming: &Naming, own: Uuid) -> Result<(), Error> {
    let deadline = Instant::now() + STRANGERS_WAIT_MAX;
    let database = naming.shared_database();
    while strangers(home, &database, own).await.map_err(|source| Error::on(home, source))? > 0 {
        if Instant::now() >= deadline {
            return Err(Error::BothUnnamed);
        }
        sleep(STRANGERS_INTERVAL).await;
    }
    Ok(())
}

impl Shares {
    /// For a daemon with a name, which has nothing yet.
    pub fn new(config: &Config, daemon: Uuid) -> Option<Self> {
        let instance = config.instance.clone()?;
        // Nobody starts without it.
        let home = config.servers.iter().find(|server| server.name == config.catalog_server)?.clone();
        let member = Member { instance, daemon, naming: config.naming.clone(), config: config.shares.clone() };
        Some(Self { member, home, is_listed: Arc::default() })
    }

    /// To be called before the daemon connects to anything.
    pub fn anchors(&self) -> Anchors {
        Anchors { shares: self.clone(), cast: Vec::new() }
    }

    /// Gives everything back, so that the others grow at once. To be called when no session of the daemon is left.
    pub async fn leave(self, tasks: &Tasks) {
        if !self.is_listed.load(Ordering::Relaxed) {
            return;
        }
        // The daemon's own tasks are over, and with them its sessions.
        let tasks = Tasks::new(tasks.span().clone());
        if let Err(error) = self.rows_remove(&tasks).await {
            tracing::info!(%error, "the shares of the servers' budgets could not be given back; the other daemons take them");
        }
        drop(tasks.end(LEAVE_MAX).await);
    }

    async fn rows_remove(&self, tasks: &Tasks) -> Result<(), Error> {
        let Member { instance, daemon, naming, .. } = &self.member;
        let server = |source| Error::Server { server: self.home.name.clone(), source: Box::new(source) };
        let home = Server::named(&self.home, tasks, *daemon, Some(instance)).map_err(server)?;
        let catalog = Catalog::for_shares(&home, &naming.shared_database())?;
        let left = catalog.shares_leave(*daemon).await;
        catalog.close();
        Ok(left?)
    }
}
