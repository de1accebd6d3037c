//! Following the routes: all of them, or all since a revision, and then each change, for one reader at its own pace.
//!
//! Nothing is queued for a reader. Changes come from the ring that the feed fills for everybody; a reader that is not
//! where the ring is, because it was slow or has just begun, reads from the catalog what it has missed.
//!
//! A revision says how far a table is only together with what the table is of. So a mark names the catalog, and for a
//! reader that may not see all of it also the tenants that it may see, see [`view`]: who may see others by now cannot go
//! on from there, since what it has not seen so far need not have changed since.
//!
//! A reader is told that nothing has changed only while the feed hears the catalog. When it does not by the time that a
//! word is due, the watch ends: no reader takes an old table for a current one for longer than [`QUIET_MAX`], and an
//! interruption that is over by then ends nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::error::Error;
use super::routes::Batch;
use super::{Inner, Router};
use crate::catalog::{self, RouteChange};
use crate::domain::principal::Scope;
use crate::domain::route::{Position, Route};
use crate::domain::tenant::{TenantCode, TenantId};

/// A reader hears something so often, if only how far the catalog is. Changes that it may not see are no word to it.
const QUIET_MAX: Duration = Duration::from_secs(15);

/// A place in the sequence of one catalog's revisions, for one scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The catalog's id for who sees all of it; for others an id of what they see of it.
    pub catalog_id: Uuid,
    pub revision: i64,
}

/// What a reader hears.
#[derive(Debug)]
pub enum RouteEvent {
    /// Some of the routes. With the last ones comes the mark that they are complete at.
    Snapshot { routes: Vec<Route>, complete_at: Option<Mark> },
    /// What changed up to the mark, oldest first.
    Changes { changes: Vec<RouteChange>, mark: Mark },
    /// Nothing has changed up to the mark.
    Quiet { mark: Mark },
}

/// One reader.
#[derive(Debug)]
pub struct RouteWatch {
    inner: Arc<Inner>,
    /// The tenants that it may see; `None` for all.
    codes: Option<BTreeSet<TenantCode>>,
    /// What its marks are of.
    view: Uuid,
    batches: broadcast::Receiver<Arc<Batch>>,
    catalog_id: Uuid,
    /// Everything up to here was told, or is no business of the reader's.
    revision: i64,
    state: State,
    /// When the next word is due; set once the reader has taken the last one.
    due: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// In the middle of the snapshot, which is complete at the mark.
    Snapshot {
        after: Option<TenantId>,
    },
    /// Reading from the catalog what the ring does not have.
    Behind,
    Following,
}

impl Router {
    /// Follows the routes in `scope`: a snapshot first, or what changed since a mark.
    ///
    /// # Errors
    /// [`catalog::Error::RevisionUnknown`], here or later, for a mark that cannot be gone on from.
    pub async fn routes_watch(&self, scope: &Scope, since: Option<Mark>) -> Result<RouteWatch, Error> {
        // Before the position is read, so that nothing lies between.
        let batches = self.0.routes.batches.subscribe();
        let position = self.0.shared.catalog.position().await.map_err(told)?;
        let codes = scope.codes().cloned();
        let catalog_id = position.catalog_id;
        let view = view(catalog_id, codes.as_ref());
        let (revision, state) = match since {
            None => (position.revision, State::Snapshot { after: None }),
            Some(since) if since.catalog_id == view => (since.revision, State::Behind),
            Some(since) => return Err(unknown(since.revision, position)),
        };
        Ok(RouteWatch { inner: Arc::clone(&self.0), codes, view, batches, catalog_id, revision, state, due: None })
    }
}

impl RouteWatch {
    /// What comes next; waits for it, but never for long.
    ///
    /// # Errors
    /// Among others [`Error::CatalogAway`], when nobody can say whether something has changed.
    pub async fn next(&mut self) -> Result<RouteEvent, Error> {
        let due = *self.due.get_or_insert_with(|| Instant::now() + QUIET_MAX);
        let event = self.event(due).await?;
        self.due = None;
        Ok(event)
    }

    fn mark(&self) -> Mark {
        Mark { catalog_id: self.view, revision: self.revision }
    }

    async fn event(&mut self, due: Instant) -> Result<RouteEvent, Error> {
        loop {
            let changes = match self.state {
                State::Snapshot { after } => return self.snapshot(after).await,
                State::Behind => self.catch_up().await?,
                State::Following => match timeout_at(due, self.batches.recv()).await {
                    Err(_elapsed) => return self.quiet(),
                    Ok(Ok(batch)) => self.follow(&batch).await?,
                    Ok(Err(RecvError::Lagged(_))) => {
                        self.state = State::Behind;
                        continue;
                    }
                    Ok(Err(RecvError::Closed)) => std::future::pending().await,
                },
            };
            let sees = |change: &RouteChange| self.codes.as_ref().is_none_or(|codes| codes.contains(change.code()));
            let changes: Vec<_> = changes.into_iter().filter(sees).collect();
            if !changes.is_empty() {
                return Ok(RouteEvent::Changes { changes, mark: self.mark() });
            }
            if Instant::now() >= due {
                return self.quiet();
            }
        }
    }

    /// A word is due, and there is none.
    fn quiet(&self) -> Result<RouteEvent, Error> {
        // Whoever is behind asks the catalog itself, next.
        if matches!(self.state, State::Following) && !self.inner.routes.table.is_followed() {
            return Err(Error::CatalogAway { cause: "its changes are not heard".to_owned() });
        }
        Ok(RouteEvent::Quiet { mark: self.mark() })
    }

    async fn snapshot(&mut self, after: Option<TenantId>) -> Result<RouteEvent, Error> {
        let routes = self.inner.shared.catalog.routes_page(after, self.codes.as_ref()).await.map_err(told)?;
        let complete_at = if let Some(last) = routes.last() {
            self.state = State::Snapshot { after: Some(last.tenant) };
            None
        } else {
            // Some routes may be newer than the mark already; their changes come once more.
            self.state = State::Behind;
            Some(self.mark())
        };
        Ok(RouteEvent::Snapshot { routes, complete_at })
    }

    async fn catch_up(&mut self) -> Result<Vec<RouteChange>, Error> {
        let found = self.inner.shared.catalog.routes_since(self.revision).await.map_err(told)?;
        self.revision = found.upto;
        if !found.is_cut {
            self.state = State::Following;
        }
        Ok(found.changes)
    }

    async fn follow(&mut self, batch: &Batch) -> Result<Vec<RouteChange>, Error> {
        if batch.catalog_id != self.catalog_id {
            let position = self.inner.shared.catalog.position().await.map_err(told)?;
            return Err(unknown(self.revision, position));
        }
        let seen = self.revision;
        if batch.is_gap() || batch.from > seen {
            self.state = State::Behind;
            return Ok(Vec::new());
        }
        self.revision = seen.max(batch.upto);
        Ok(batch.changes.iter().filter(|change| change.revision() > seen).cloned().collect())
    }
}

/// What a reader's table is of: the catalog, or these tenants in it.
fn view(catalog_id: Uuid, codes: Option<&BTreeSet<TenantCode>>) -> Uuid {
    let Some(codes) = codes else { return catalog_id };
    let mut hasher = Sha256::new_with_prefix(catalog_id);
    for code in codes {
        hasher.update(code.as_str());
        // In no code.
        hasher.update([0]);
    }
    let [digest @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = <[u8; 32]>::from(hasher.finalize());
    uuid::Builder::from_custom_bytes(digest).into_uuid()
}

fn unknown(revision: i64, position: Position) -> Error {
    catalog::Error::RevisionUnknown { revision, position }.into()
}

fn told(error: catalog::Error) -> Error {
    if error.is_away() { Error::CatalogAway { cause: error.to_string() } } else { error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_catalog_and_of_those_tenants() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let of = |catalog, codes: &[&str]| {
            let codes: BTreeSet<TenantCode> = codes.iter().map(|code| code.parse().unwrap()).collect();
            view(catalog, Some(&codes))
        };
        assert_eq!(view(one, None), one);
        assert_eq!(of(one, &["acme", "beta"]), of(one, &["beta", "acme"]));
        let views = [
            one,
            of(one, &[]),
            of(one, &["acme"]),
            of(one, &["acme", "beta"]),
            of(one, &["acmebeta"]),
            of(other, &["acme"]),
        ];
        assert_eq!(BTreeSet::from(views).len(), views.len());
    }
}
