//! A connection in a caller's hands. Given back by [`Lease::release`] with a word on what its session may still hold;
//! dropped otherwise, as when a call is cancelled in the middle of a statement: then the statement is cancelled on the
//! server, the session ends, and nobody gets the connection again. Its place in the budget is free when the backend
//! has gone.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Client, Statement};

use super::error::Error;
use super::long::LongPass;
use super::place::Seat;
use super::pool::PooledObject;
use super::slot::Ticket;
use crate::domain::tenant::{TenantCode, TenantId};
use crate::postgres;
use crate::postgres::types::{self, Unprepared};

/// The gate is paused by then, and tells whoever comes again.
const INTERRUPTED_RETRY_AFTER: Duration = Duration::from_millis(100);

/// What the session of a returned connection may still hold of its last user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residue {
    /// Nothing: the next caller gets it as it is.
    Nothing,
    /// As [`Residue::Session`], and most likely nothing: it is cleaned when somebody comes for it, or after a while, and
    /// not at all if it is closed before that.
    Perhaps,
    /// Settings, advisory locks, cursors, temporary tables: it is cleaned first.
    Session,
    /// Anything: the session ends.
    Anything,
}

/// One connection to a tenant's database.
// Dropped in this order: the connection is back in its pool, marked as not to be used, before the seat ends it, and it
// has ended before the lease counts as over.
#[derive(Debug)]
pub struct Lease {
    object: PooledObject,
    seat: Seat,
    ticket: Ticket,
    /// Those that were before it.
    interruptions: u64,
    /// Of a lease that lasts as long as its holder likes.
    long: Option<LongPass>,
}

impl Lease {
    pub(super) fn new((object, seat): (PooledObject, Seat), ticket: Ticket, long: Option<LongPass>) -> Self {
        let interruptions = ticket.slot().leases.interruptions();
        Self { object, seat, ticket, interruptions, long }
    }

    /// Why a statement was cancelled, if it was for an operation that needs the tenant's database to itself.
    pub fn interrupted(&self) -> Option<Error> {
        let slot = self.ticket.slot();
        (slot.leases.interruptions() != self.interruptions).then(|| Error::Paused {
            tenant: slot.route.code.clone(),
            operation: slot.leases.interrupter(),
            retry_after: INTERRUPTED_RETRY_AFTER,
        })
    }

    pub fn tenant(&self) -> TenantId {
        self.ticket.slot().route.tenant
    }

    pub fn code(&self) -> &TenantCode {
        &self.ticket.slot().route.code
    }

    /// The statement, prepared once per connection while it is among the most recently used.
    pub async fn prepare(&mut self, sql: &str) -> Result<Statement, Unprepared> {
        if let Some(statement) = self.prepared(sql) {
            return Ok(statement);
        }
        let statement = Box::pin(types::prepare(&self.object.client, sql)).await?;
        self.keep_prepared(sql, &statement);
        Ok(statement)
    }

    /// The statement, if this connection has it prepared.
    pub fn prepared(&mut self, sql: &str) -> Option<Statement> {
        self.object.statements.get(sql)
    }

    /// Remembers what was prepared on this connection, unless it is too long.
    pub fn keep_prepared(&mut self, sql: &str, statement: &Statement) {
        self.object.statements.put(sql, statement);
    }

    /// Whether the session has ended because its texts began to travel in another encoding.
    pub fn has_changed_encoding(&self) -> bool {
        self.object.encoding.has_changed()
    }

    /// Has the server cancel the statement that runs. When this is `Ok`, the signal has arrived, and meets no later one.
    pub async fn cancel(&self) -> Result<(), postgres::Error> {
        self.ticket.slot().place.server.cancel_query(&self.object.client.cancel_token()).await
    }

    /// Prepares every statement anew from now on.
    pub fn statements_forget(&mut self) {
        self.object.statements.clear();
    }

    /// Whether nobody has had it before.
    pub fn is_new(&self) -> bool {
        self.object.is_new
    }

    /// So many callers were served by this one lease: it counts when it is decided whose connections are kept, and in
    /// the tenant's numbers.
    pub fn came_with(&self, callers: u32) {
        let slot = self.ticket.slot();
        slot.account.served(callers);
        slot.place.change(|floor| floor.came_with(slot.id, self.seat.connection, callers, Instant::now()));
    }

    /// Gives the connection back. Its session is outside a transaction and runs nothing.
    pub fn release(mut self, residue: Residue) {
        match residue {
            Residue::Nothing => self.put_back(),
            Residue::Perhaps => {
                self.object.residue_perhaps = true;
                self.put_back();
            }
            Residue::Anything => {
                let Self { object, seat, ticket, long, .. } = self;
                ticket.slot().end(object, seat);
                drop(long);
            }
            Residue::Session => {
                let Self { object, seat, ticket, long, .. } = self;
                Arc::clone(ticket.slot()).give_back_clean(object, seat, ticket);
                drop(long);
            }
        }
    }

    fn put_back(self) {
        let Self { mut object, seat, ticket, long, .. } = self;
        object.is_new = false;
        ticket.slot().give_back(object, seat);
        drop(long);
    }
}

impl Deref for Lease {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.object.client
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.object.client
    }
}
