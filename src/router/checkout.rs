//! How a caller gets one of its tenant's connections: one that idles, one that another caller gives back, or a new one.
//! Of one tenant only one caller at a time makes a connection and waits for the budget, so that the budget's queue holds
//! each tenant once: tenants take turns, however many callers each has.

use tokio::time::Instant;

use super::error::Error;
use super::pool::PooledObject;
use super::slots::Slot;

impl Slot {
    /// A connection. The wait may be given up at any moment.
    pub(super) async fn checkout(&self, deadline: Instant) -> Result<PooledObject, Error> {
        let makers = self.pool().manager();
        tokio::select! {
            biased;
            () = makers.closed() => Err(Error::PoolClosed),
            object = self.checkout_open(deadline) => {
                // Of two that came back together, one may have woken nobody.
                makers.wake();
                object
            }
        }
    }

    async fn checkout_open(&self, deadline: Instant) -> Result<PooledObject, Error> {
        let pool = self.pool();
        let makers = pool.manager();
        loop {
            let status = pool.status();
            if makers.idle_count() > 0 || status.size >= status.max_size {
                return Ok(pool.get().await?);
            }
            let waiting = makers.wait();
            tokio::select! {
                biased;
                () = waiting.returned() => {}
                turn = makers.turn(deadline) => {
                    drop(waiting);
                    // The budget's permit goes to the connection that the pool makes.
                    let _turn = turn?;
                    return Ok(pool.get().await?);
                }
            }
        }
    }
}
