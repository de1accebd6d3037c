//! A connection in a caller's hands. Given back by [`Lease::release`] with a word on what its session may still hold;
//! dropped otherwise, as when a call is cancelled in the middle of a statement: then the statement is cancelled on the
//! server, the session ends, and nobody gets the connection again. Its place in the budget is free when the backend
//! has gone.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::{Client, Statement};

use super::place::Seat;
use super::pool::PooledObject;
use super::slot::Ticket;
use crate::domain::tenant::{TenantCode, TenantId};

/// What the session of a returned connection may still hold of its last user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residue {
    /// Nothing: the next caller gets it as it is.
    Nothing,
    /// Settings, advisory locks, cursors, temporary tables: it is cleaned first.
    Session,
    /// Anything: the session ends.
    Anything,
}

/// Everything that a session keeps, but for the statements that the daemon itself has prepared (`DISCARD ALL` would
/// drop those behind the driver's back). The `role` setting comes back last, to the one that the database prescribes.
const CLEAN: &str = "CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ALL; RESET ROLE; UNLISTEN *; \
                     SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";
/// How long the cleaning may take.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(5);

/// One connection to a tenant's database.
// Dropped in this order: the connection is back in its pool, marked as not to be used, before the seat ends it, and it
// has ended before the lease counts as over.
#[derive(Debug)]
pub struct Lease {
    object: PooledObject,
    seat: Seat,
    ticket: Ticket,
}

impl Lease {
    pub(super) fn new((object, seat): (PooledObject, Seat), ticket: Ticket) -> Self {
        Self { object, seat, ticket }
    }

    pub fn tenant(&self) -> TenantId {
        self.ticket.slot().route.tenant
    }

    pub fn code(&self) -> &TenantCode {
        &self.ticket.slot().route.code
    }

    /// The statement, prepared once per connection while it is among the most recently used.
    pub async fn prepare(&mut self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        let pooled = &mut *self.object;
        if let Some(statement) = pooled.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = Box::pin(pooled.client.prepare(sql)).await?;
        pooled.statements.put(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Prepares every statement anew from now on.
    pub fn statements_forget(&mut self) {
        self.object.statements.clear();
    }

    /// Gives the connection back. Its session is outside a transaction and runs nothing.
    pub fn release(self, residue: Residue) {
        match residue {
            Residue::Nothing => self.put_back(),
            Residue::Anything => {
                let Self { object, seat, ticket } = self;
                ticket.slot().end(object, seat);
            }
            Residue::Session => {
                let tasks = self.ticket.slot().place.server.tasks().clone();
                tasks.spawn("lease cleaning", async move {
                    if let Ok(Ok(())) = timeout(CLEAN_TIMEOUT, self.batch_execute(CLEAN)).await {
                        self.put_back();
                    }
                });
            }
        }
    }

    fn put_back(self) {
        let Self { object, seat, ticket } = self;
        ticket.slot().give_back(object, seat);
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
