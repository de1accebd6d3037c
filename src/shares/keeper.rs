//! One server's share: got when the daemon starts, looked after as long as it runs. The rules that make this safe are
//! in the room's header.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Error, Member};
use crate::catalog::{self, Catalog, Share};
use crate::domain::share::{self, BESIDE_RESERVE, DOOR, InstanceName, Part};
use crate::postgres::{Anchor, AnchorLoss, Gone, Server};
use crate::shutdown::Tasks;

/// How long a daemon that comes waits for the others to make room.
const ROOM_WAIT_MAX: Duration = Duration::from_mins(1);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Keeper {
    member: Member,
    server: Server,
    catalog: Catalog,
    /// Sessions that count against the share, and are not drawn from the budget.
    beside: u32,
    /// Since when nobody is seen to hold an anchor that a row names.
    free_since: HashMap<Uuid, Instant>,
    /// What the log was told last: this share, and how many daemons there are.
    told: (u32, usize),
    is_warned: bool,
}

/// What became of a look at the rows.
enum Look {
    Share {
        held: u32,
        shares: Vec<Share>,
    },
    /// Another run of a daemon has this one's name.
    NameTaken(Share),
}

impl Keeper {
    /// `is_home` says that the server has the catalog.
    pub(super) fn new(member: Member, server: Server, catalog: Catalog, is_home: bool) -> Self {
        let beside = if is_home { DOOR } else { DOOR - 1 };
        Self { member, server, catalog, beside, free_since: HashMap::new(), told: (0, 0), is_warned: false }
    }

    pub(super) fn is_of(&self, server: &Server) -> bool {
        self.server.name() == server.name()
    }

    /// Waits until the share has room for more than the reserve.
    pub(super) async fn join(&mut self, anchor: &Anchor) -> Result<(), Error> {
        let needed = self.server.config().connections_reserved + BESIDE_RESERVE;
        let begun = Instant::now();
        loop {
            let is_late = begun.elapsed() >= ROOM_WAIT_MAX;
            match self.look(anchor).await {
                Ok(Look::Share { held, .. }) if held >= needed => return Ok(()),
                Ok(Look::Share { held, .. }) if is_late => {
                    let (server, waited) = (self.server.name().to_owned(), ROOM_WAIT_MAX);
                    return Err(Error::NoRoom { server, held, needed, waited });
                }
                Ok(Look::Share { shares, .. }) => drop(self.bury(anchor, &shares).await?),
                Ok(Look::NameTaken(former)) => {
                    if !self.succeed(anchor, &former).await? && begun.elapsed() >= self.member.config.take_over_after {
                        let (server, instance) = (self.server.name().to_owned(), former.instance);
                        return Err(Error::NameTaken { server, instance });
                    }
                }
                Err(Error::TooSmall { server, too_small }) => {
                    // One of those who are counted may be gone.
                    let shares = self.catalog.shares(&server).await?;
                    if self.bury(anchor, &shares).await? || is_late {
                        return Err(Error::TooSmall { server, too_small });
                    }
                }
                Err(error) => return Err(error),
            }
            sleep(self.member.config.interval.min(RETRY_MAX)).await;
        }
    }

    /// Looks after the share until the daemon goes down.
    pub(super) async fn run(mut self, anchor: Anchor, loss: AnchorLoss, tasks: Tasks) {
        let mut anchored = Some((anchor, loss));
        let mut retry = RETRY_MIN;
        loop {
            if let Some((anchor, mut loss)) = anchored.take() {
                tokio::select! {
                    () = tasks.token().cancelled() => return,
                    () = loss.happened() => {}
                    () = anchor.silence() => {}
                    () = self.keep(&anchor) => {}
                }
                self.server.budget().fence(true);
                let server = self.server.name();
                tracing::info!(
                    server,
                    "the session that stands for the share is lost; nothing is opened until there is a new one"
                );
                retry = RETRY_MIN;
            }
            tokio::select! {
                () = tasks.token().cancelled() => return,
                () = sleep(retry) => {}
            }
            retry = (retry * 2).min(RETRY_MAX);
            let cast = tokio::select! {
                () = tasks.token().cancelled() => return,
                cast = Anchor::cast(&self.server) => cast,
            };
            match cast {
                Ok(cast) => anchored = Some(cast),
                Err(error) => {
                    tracing::debug!(server = self.server.name(), %error, "no session can stand for the share");
                }
            }
        }
    }

    /// Looks again and again, until the anchor fails.
    async fn keep(&mut self, anchor: &Anchor) {
        loop {
            let done = match self.look(anchor).await {
                Ok(Look::Share { shares, .. }) => self.bury(anchor, &shares).await.map(drop),
                Ok(Look::NameTaken(former)) => {
                    let (server, instance) = (self.server.name().to_owned(), former.instance);
                    Err(Error::NameTaken { server, instance })
                }
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => self.is_warned = false,
                Err(Error::Server { .. }) => return,
                Err(error) => self.complain(&error),
            }
            sleep(self.member.config.interval).await;
        }
    }

    /// Says once what is wrong, until all is well.
    fn complain(&mut self, error: &Error) {
        let server = self.server.name();
        match error {
            _ if std::mem::replace(&mut self.is_warned, true) => {}
            Error::Catalog(error) => {
                tracing::info!(server, %error, "the shares of the budget stay as they are until the catalog answers");
            }
            Error::Remains { .. } => {
                tracing::warn!(server, %error, "this daemon's share of the budget does not grow yet");
            }
            error => tracing::error!(server, %error, "this daemon has no share of the budget, and opens nothing there"),
        }
    }

    /// Brings the row and the budget to what the rows of all allow.
    async fn look(&mut self, anchor: &Anchor) -> Result<Look, Error> {
        let budget = self.server.budget();
        let (connections_max, connections_reserved) = budget.configured();
        let in_use = || budget.held().saturating_add(self.beside);
        let txn = self.catalog.begin().await?;
        let name = self.server.name();
        let mut shares = self.catalog.shares_lock_in_txn(&txn, name).await?;
        let own = shares.iter().position(|share| share.instance == self.member.instance);
        let index = match own {
            Some(index) if shares[index].daemon != self.member.daemon => {
                budget.fence(true);
                return Ok(Look::NameTaken(shares.swap_remove(index)));
            }
            Some(index) => index,
            None => {
                // A newcomer, or one whose share was taken, who has to let go of what it may still have.
                budget.share(0);
                let part = Part { connections_max, connections_reserved, held: in_use().max(DOOR) };
                let Member { instance, daemon, .. } = &self.member;
                let share = Share { instance: instance.clone(), daemon: *daemon, anchor: anchor.key(), part };
                self.catalog.share_put_in_txn(&txn, name, &share).await?;
                // In the order that the catalog has them in.
                shares = self.catalog.shares_lock_in_txn(&txn, name).await?;
                if let Some(too_small) = share::too_small(&parts(&shares)) {
                    budget.fence(true);
                    return Err(Error::TooSmall { server: name.to_owned(), too_small });
                }
                shares.iter().position(|share| share.daemon == *daemon).unwrap_or_default()
            }
        };
        let before = shares[index].clone();
        shares[index].part = Part { connections_max, connections_reserved, ..before.part };
        shares[index].anchor = anchor.key();
        let equal = share::equal(&parts(&shares), index);
        if before.part.held > equal {
            // First nothing is opened beyond it, and then what is there is counted.
            budget.share(equal.saturating_sub(self.beside));
        }
        let held = share::next(&parts(&shares), index, in_use());
        shares[index].part.held = held;
        if shares[index] != before {
            self.catalog.share_set_in_txn(&txn, name, &shares[index]).await?;
        }
        txn.commit().await.map_err(catalog::Error::from)?;
        budget.share(held.min(equal).saturating_sub(self.beside));
        budget.fence(false);
        self.tell(held.min(equal), &shares);
        Ok(Look::Share { held, shares })
    }

    /// Says what this daemon may have, when that has changed.
    fn tell(&mut self, share: u32, shares: &[Share]) {
        let told = (share, shares.len());
        if std::mem::replace(&mut self.told, told) != told {
            let (server, whole) = (self.server.name(), share::whole(&parts(shares)));
            tracing::info!(server, share, whole, daemons = shares.len(), "this daemon's share of the server's budget");
        }
    }

    /// Takes over from daemons whose anchor has been gone for long. Answers whether all others are there.
    async fn bury(&mut self, anchor: &Anchor, shares: &[Share]) -> Result<bool, Error> {
        let others: Vec<&Share> = shares.iter().filter(|share| share.daemon != self.member.daemon).collect();
        self.free_since.retain(|key, _| others.iter().any(|share| share.anchor == *key));
        if others.is_empty() {
            return Ok(true);
        }
        let keys: Vec<Uuid> = others.iter().map(|share| share.anchor).collect();
        let held = anchor.held(&keys).await.map_err(|source| Error::on(&self.server, source))?;
        let now = Instant::now();
        for share in others {
            if held.contains(&share.anchor) {
                self.free_since.remove(&share.anchor);
            } else if now - *self.free_since.entry(share.anchor).or_insert(now) >= self.member.config.take_over_after {
                self.replace(anchor, share, None).await?;
            }
        }
        Ok(self.free_since.is_empty())
    }

    /// Takes the row over that an earlier run under this name has left. False while that cannot be.
    async fn succeed(&self, anchor: &Anchor, former: &Share) -> Result<bool, Error> {
        let own = Share { daemon: self.member.daemon, anchor: anchor.key(), ..former.clone() };
        self.replace(anchor, former, Some(own)).await
    }

    /// Ends what a daemon has left on the server, and puts `successor` or nothing in its place. False when it is not
    /// gone, or somebody else does this at the moment.
    async fn replace(&self, anchor: &Anchor, gone: &Share, successor: Option<Share>) -> Result<bool, Error> {
        let failed = |source| Error::on(&self.server, source);
        if !anchor.seize(gone.anchor).await.map_err(failed)? {
            return Ok(false);
        }
        let replaced = self.replace_seized(anchor, gone, successor).await;
        anchor.release(gone.anchor).await.map_err(failed)?;
        replaced
    }

    async fn replace_seized(&self, anchor: &Anchor, gone: &Share, successor: Option<Share>) -> Result<bool, Error> {
        let name = self.server.name();
        let shares = self.catalog.shares(name).await?;
        if !shares.iter().any(|share| share.anchor == gone.anchor) {
            return Ok(false);
        }
        let others: Vec<(InstanceName, Uuid)> = shares
            .into_iter()
            .filter(|share| share.anchor != gone.anchor)
            .map(|share| (share.instance, share.daemon))
            .collect();
        let dead = Gone { instance: &gone.instance, daemon: gone.daemon, others: &others };
        let (server, instance) = (name.to_owned(), gone.instance.clone());
        let remains = |source| Error::Remains { server, instance, source: Box::new(source) };
        anchor.sessions_end(&self.member.naming, &dead).await.map_err(remains)?;
        let txn = self.catalog.begin().await?;
        self.catalog.shares_lock_in_txn(&txn, name).await?;
        let replaced = self.catalog.share_replace_in_txn(&txn, name, gone, successor.as_ref()).await?;
        txn.commit().await.map_err(catalog::Error::from)?;
        if replaced {
            tracing::info!(server = name, instance = %gone.instance, "a daemon is gone, and its sessions are ended; its share is free");
        }
        Ok(replaced)
    }
}

fn parts(shares: &[Share]) -> Vec<Part> {
    shares.iter().map(|share| share.part).collect()
}
