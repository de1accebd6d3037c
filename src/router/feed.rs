//! Follows the catalog: one session that hears of each revision, and one task that brings the table of routes up to it.
//! Every tenant is read when the session begins, and again when it had to be opened anew; after that only what changed.
//!
//! A session that says nothing is asked so often that a catalog which froze, or cannot be reached any more, goes
//! unnoticed for [`ASK_INTERVAL`] and one answer's time at most. From then on routes have their ordinary age again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Inner;
use super::routes::Batch;
use crate::catalog::{self, Follower, RouteChange};
use crate::domain::tenant::TenantCode;

/// How long a session may say nothing before it is asked.
const ASK_INTERVAL: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Runs until the daemon goes down.
pub(super) async fn run(inner: Arc<Inner>) {
    let token = inner.shared.tasks.token().clone();
    let mut feed = Feed { inner, seen: None, warned: false, told: BTreeSet::new(), retry: RETRY_MIN };
    loop {
        let lost = tokio::select! {
            () = token.cancelled() => return,
            lost = feed.follow() => lost,
        };
        feed.lost(lost);
        tokio::select! {
            () = token.cancelled() => return,
            () = sleep(feed.retry) => {}
        }
        feed.retry = (feed.retry * 2).min(RETRY_MAX);
    }
}

/// Why a session is over.
enum Lost {
    /// It was open, and broke or is out of step.
    Session(String),
    /// There was none.
    Away(catalog::Error),
}

struct Feed {
    inner: Arc<Inner>,
    /// The catalog's id, and the revision that the table is at.
    seen: Option<(uuid::Uuid, i64)>,
    warned: bool,
    /// Tenants that have a name of the daemon's own, with the name.
    told: BTreeSet<(TenantCode, String)>,
    retry: Duration,
}

impl Feed {
    /// Opens a session and follows it to its end.
    async fn follow(&mut self) -> Lost {
        match self.open().await {
            Ok((follower, revision)) => self.keep_up(follower, revision).await,
            Err(error) => Lost::Away(error),
        }
    }

    fn lost(&mut self, lost: Lost) {
        let routes = &self.inner.routes;
        routes.table.unfollow();
        match lost {
            Lost::Session(cause) => tracing::info!(cause, "the session that follows the shared database is over"),
            Lost::Away(error) => {
                if error.is_away() {
                    routes.away_since(&error.to_string());
                }
                if !self.warned {
                    self.warned = true;
                    tracing::warn!(
                        cause = %error,
                        "the shared database cannot be followed; tenants that are known are served as they were"
                    );
                }
            }
        }
    }

    /// Opens a session and reads every tenant. What changes meanwhile is announced to it, and read next.
    async fn open(&mut self) -> Result<(Follower, i64), catalog::Error> {
        let follower = self.inner.shared.catalog.follow().await?;
        let begun = Instant::now();
        let position = follower.position().await?;
        let table = &self.inner.routes.table;
        if let Some((catalog, revision)) = self.seen
            && (catalog != position.catalog_id || revision > position.revision)
        {
            // Revisions say nothing any more: the shared database was restored, or replaced.
            tracing::warn!(
                seen = revision,
                now = position.revision,
                "the shared database is an older one than before; every tenant is read anew"
            );
            table.clear(begun);
        }
        let _already = self.inner.shared.catalog_id.set(position.catalog_id);
        let mut after = None;
        loop {
            let read_at = Instant::now();
            let page = follower.routes_page(after).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.tenant);
            self.inner.shared.logins_keep(&follower, page.iter()).await?;
            for route in page {
                table.put(route, read_at);
            }
        }
        table.loaded(begun);
        self.seen = Some((position.catalog_id, position.revision));
        // A gap, which watches close from the catalog.
        self.announce(position.revision, position.revision, Vec::new());
        Ok((follower, position.revision))
    }

    async fn keep_up(&mut self, mut follower: Follower, mut revision: i64) -> Lost {
        self.retry = RETRY_MIN;
        let inner = Arc::clone(&self.inner);
        loop {
            // Also right after the beginning: something may have changed while everything was read.
            if let Err(error) = self.catch_up(&follower, &mut revision).await {
                return Lost::Session(error.to_string());
            }
            if std::mem::take(&mut self.warned) {
                tracing::info!(revision, "the shared database is followed again");
            }
            self.own_hosts_tell();
            tokio::select! {
                is_alive = follower.changed() => if !is_alive {
                    return Lost::Session("the session has ended".to_owned());
                },
                () = inner.routes.wanted_some.notified() => {}
                () = sleep(ASK_INTERVAL) => {}
            }
        }
    }

    /// Brings the table up to the catalog's newest revision.
    async fn catch_up(&mut self, follower: &Follower, revision: &mut i64) -> Result<(), catalog::Error> {
        let routes = &self.inner.routes;
        loop {
            let (wanted, forgets) = routes.wanted();
            let read_at = Instant::now();
            if !wanted.is_empty() {
                let found = follower.routes_of(&wanted).await?;
                self.inner.shared.logins_keep(follower, found.iter()).await?;
                for route in found {
                    routes.table.put(route, read_at);
                }
            }
            let read_at = Instant::now();
            let found = follower.routes_since(*revision).await?;
            let set = found.changes.iter().filter_map(|change| match change {
                RouteChange::Set(route) => Some(route.as_ref()),
                RouteChange::Removed { .. } => None,
            });
            self.inner.shared.logins_keep(follower, set).await?;
            for change in &found.changes {
                match change {
                    RouteChange::Set(route) => drop(routes.table.put(route.as_ref().clone(), read_at)),
                    RouteChange::Removed { tenant, .. } => routes.table.remove(*tenant, Instant::now()),
                }
            }
            let from = std::mem::replace(revision, found.upto);
            if let Some((_, seen)) = &mut self.seen {
                *seen = found.upto;
            }
            if from != found.upto {
                self.announce(from, found.upto, found.changes);
            } else if !wanted.is_empty() {
                self.inner.gates.notify_waiters();
            }
            if !found.is_cut {
                routes.table.settle(forgets);
                routes.table.confirm(read_at);
                routes.back();
                return Ok(());
            }
        }
    }

    /// Tells once of each tenant that has a name of the daemon's own: it had the name before, or was given it by a daemon
    /// that is called otherwise. Such a name counts for nothing.
    fn own_hosts_tell(&mut self) {
        let found = self.inner.routes.with_hosts(self.inner.shared.limits().own_hosts.iter());
        for (tenant, host) in found.difference(&self.told) {
            tracing::warn!(
                %tenant,
                host,
                "a tenant has a name of the daemon's own, which is passed over; take it away with tenantd tenant host remove"
            );
        }
        self.told = found;
    }

    fn announce(&self, from: i64, upto: i64, changes: Vec<RouteChange>) {
        let catalog_id = self.seen.map(|(catalog_id, _)| catalog_id).unwrap_or_default();
        let batch = Batch { catalog_id, from, upto, changes };
        // Nobody may be watching, which is fine.
        drop(self.inner.routes.batches.send(Arc::new(batch)));
        self.inner.gates.notify_waiters();
    }
}
