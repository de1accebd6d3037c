//! Daemons that are gone. Their sessions are ended before anybody goes on with what they drove: they may hold locks, and
//! none of them may act beside us. Each server is asked by a task of its own, so that nobody waits for one that is away
//! or hangs but what works on it. Must not know what an operation does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Error, Parts};
use crate::catalog::{Remains, TenantRef};
use crate::domain::tenant::TenantId;
use crate::postgres::{self, Server, admin};

/// How long it counts that a daemon had no session on a server: it may have woken and stand still again since. Longer
/// than any server takes to say so (15 s to connect, at most): an operation needs the word of two at the same
/// moment.
const ENDED_AGE_MAX: Duration = Duration::from_secs(20);

/// What was asked of the servers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Gone {
    parts: Arc<Parts>,
    wake: Arc<Notify>,
    stop: CancellationToken,
    asked: Arc<Mutex<BTreeMap<(Uuid, String), Asked>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    UnderWay,
    Ended { at: Instant },
}

impl Gone {
    pub(super) fn new(parts: Arc<Parts>, wake: Arc<Notify>, stop: CancellationToken) -> Self {
        Self { parts, wake, stop, asked: Arc::default() }
    }

    /// Where these daemons may still have sessions. They are being ended there when this returns, and `wake` is rung
    /// after each server that has none any more.
    pub(super) fn remains(&self, gone: &[Uuid]) -> Vec<Remains> {
        self.asked().retain(|(daemon, _), _| gone.contains(daemon));
        gone.iter().map(|daemon| self.remains_of(*daemon)).filter(|remains| !remains.servers.is_empty()).collect()
    }

    fn remains_of(&self, daemon: Uuid) -> Remains {
        let ends_here = |server: &&String| !self.has_ended(daemon, server);
        let mut servers: BTreeSet<String> = self.parts.servers.keys().filter(ends_here).cloned().collect();
        if servers.contains(&self.parts.config.catalog_server) {
            // Every operation works there.
            servers.extend(self.parts.servers.keys().cloned());
        }
        Remains { daemon, servers: servers.into_iter().collect() }
    }

    /// Asks the server, unless it is being asked.
    fn has_ended(&self, daemon: Uuid, server: &str) -> bool {
        let key = (daemon, server.to_owned());
        let mut asked = self.asked();
        match asked.get(&key) {
            Some(Asked::UnderWay) => false,
            Some(Asked::Ended { at }) if at.elapsed() < ENDED_AGE_MAX => true,
            Some(Asked::Ended { .. }) | None => {
                asked.insert(key.clone(), Asked::UnderWay);
                let this = self.clone();
                self.parts.tasks.spawn("sessions of a daemon that is gone", async move { this.ask(key).await });
                false
            }
        }
    }

    async fn ask(&self, key: (Uuid, String)) {
        let (daemon, name) = &key;
        let Some(server) = self.parts.servers.get(name) else { return };
        let ended = tokio::select! {
            ended = sessions_end(server, *daemon) => ended,
            () = self.stop.cancelled() => return,
        };
        match ended {
            Ok(()) => {
                self.asked().insert(key, Asked::Ended { at: Instant::now() });
                self.wake.notify_one();
            }
            // Not rung: it is asked again when somebody looks for work by himself.
            Err(error) => {
                tracing::warn!(%daemon, server = name, %error, "sessions of a daemon that is gone cannot be ended; what it drove there waits");
                self.asked().remove(&key);
            }
        }
    }

    /// Ends what the daemon has left where an operation works: on the tenant's server and the catalog's, or on all when
    /// it is about no single tenant.
    pub(super) async fn end_for(&self, daemon: Uuid, tenant: Option<TenantId>) -> Result<(), Error> {
        let parts = &self.parts;
        let tenant = match tenant {
            Some(tenant) => parts.catalog.tenant_get(&TenantRef::Id(tenant)).await.ok(),
            None => None,
        };
        let works_on = |name: &String| {
            tenant.as_ref().is_none_or(|tenant| *name == tenant.server || *name == parts.config.catalog_server)
        };
        let servers = parts.servers.iter().filter(|(name, _)| works_on(name));
        try_join_all(servers.map(|(_, server)| sessions_end(server, daemon))).await?;
        Ok(())
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<(Uuid, String), Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sessions_end(server: &Server, daemon: Uuid) -> Result<(), postgres::Error> {
    let client = server.connect_admin(server.maintenance_database()).await?;
    admin::instance_sessions_end(&client, daemon).await
}
