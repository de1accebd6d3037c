//! A connection in a caller's hands. Given back by [`Lease::release`] with a word on what its session may still hold;
//! dropped otherwise, as when a call is cancelled in the middle of a statement: then the statement is cancelled on the
//! server, the session ends, and nobody gets the connection again. Its place in the budget is free when the backend
//! has gone.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use deadpool::managed::Object;
use tokio::time::timeout;
use tokio_postgres::{Client, Statement};

use super::pool::{Pooled, PooledObject};
use super::slots::Ticket;
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
#[derive(Debug)]
pub struct Lease {
    // Before the ticket: the connection is back before the lease counts as ended.
    object: Option<PooledObject>,
    ticket: Ticket,
}

impl Lease {
    pub(super) fn new(object: PooledObject, ticket: Ticket) -> Self {
        ticket.connected(object.client.cancel_token());
        Self { object: Some(object), ticket }
    }

    pub fn tenant(&self) -> TenantId {
        self.ticket.slot().route().tenant
    }

    pub fn code(&self) -> &TenantCode {
        &self.ticket.slot().route().code
    }

    /// The statement, prepared once per connection while it is among the most recently used.
    pub async fn prepare(&mut self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        let pooled = self.pooled_mut();
        if let Some(statement) = pooled.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = pooled.client.prepare(sql).await?;
        pooled.statements.put(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Prepares every statement anew from now on.
    pub fn statements_forget(&mut self) {
        self.pooled_mut().statements.clear();
    }

    /// Gives the connection back. Its session is outside a transaction and runs nothing.
    pub fn release(mut self, residue: Residue) {
        match residue {
            Residue::Nothing => self.put_back(),
            Residue::Anything => drop(self),
            Residue::Session => {
                let tasks = self.ticket.slot().place().server.tasks().clone();
                tasks.spawn("lease cleaning", async move {
                    if let Ok(Ok(())) = timeout(CLEAN_TIMEOUT, self.batch_execute(CLEAN)).await {
                        self.put_back();
                    }
                });
            }
        }
    }

    fn put_back(&mut self) {
        let Some(mut object) = self.object.take() else { return };
        let slot = self.ticket.slot();
        let makers = slot.pool().manager();
        if object.client.is_closed() || makers.gives_way(&mut object) {
            drop(Object::take(object));
            return;
        }
        slot.place().idle.put(slot, |key| {
            object.idle = Some(key);
            makers.idles();
            drop(object);
        });
        makers.wake();
    }

    fn pooled(&self) -> &Pooled {
        match &self.object {
            Some(object) => object,
            None => unreachable!("a lease gives its connection back when it ends"),
        }
    }

    fn pooled_mut(&mut self) -> &mut Pooled {
        match &mut self.object {
            Some(object) => object,
            None => unreachable!("a lease gives its connection back when it ends"),
        }
    }
}

impl Deref for Lease {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.pooled().client
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.pooled_mut().client
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}
