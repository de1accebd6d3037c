//! One server, as a cheap handle: where it is, how to log in, its budget and the gates in front of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::{CancelToken, NoTls};
use uuid::Uuid;

use super::budget::Budget;
use super::errors::Error;
use super::lane::Lane;
use super::socket::{self, lend};
use super::tls::Tls;
use crate::config::{RoleLogin, ServerConfig};
use crate::domain::tenant::{DatabaseName, maintenance_database};
use crate::shutdown::Tasks;

/// How long a cancel request may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle on one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: ServerConfig,
    instance: Uuid,
    tasks: Tasks,
    tls: Option<Tls>,
    budget: Budget,
    /// Per lane, taken before the permit: a storm of callers does not queue for permits all at once. One per lane, so
    /// that tenants who wait for a permit do not stand in the catalog's way.
    gates: [Arc<Semaphore>; Lane::ALL.len()],
    /// Over all lanes, held while a session is being opened.
    opening: Arc<Semaphore>,
    maintenance_database: DatabaseName,
}

impl Server {
    /// Reads the TLS roots; opens nothing. `instance` is this daemon's, and part of its sessions' names.
    pub fn new(config: &ServerConfig, tasks: &Tasks, instance: Uuid) -> Result<Self, Error> {
        let connects = config.connects_parallel_max.max(1) as usize;
        Ok(Self(Arc::new(Inner {
            config: config.clone(),
            instance,
            tasks: tasks.clone(),
            tls: Tls::new(config)?,
            budget: Budget::new(&config.name, config.connections_max, config.connections_reserved),
            gates: std::array::from_fn(|_lane| Arc::new(Semaphore::new(connects))),
            opening: Arc::new(Semaphore::new(connects)),
            maintenance_database: maintenance_database(),
        })))
    }

    pub fn name(&self) -> &str {
        &self.0.config.name
    }

    pub fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    /// The role that creates databases and roles.
    pub fn daemon(&self) -> &RoleLogin {
        &self.0.config.credentials.daemon
    }

    /// The role that reads everything.
    pub fn dump(&self) -> &RoleLogin {
        &self.0.config.credentials.dump
    }

    pub fn instance(&self) -> Uuid {
        self.0.instance
    }

    pub fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    pub fn maintenance_database(&self) -> &DatabaseName {
        &self.0.maintenance_database
    }

    /// The `application_name` of a session that is none of the router's: tells whose it is, so that a later daemon can
    /// end what a killed one left behind.
    pub fn session_name(&self, purpose: &str) -> String {
        format!("{} {purpose}", instance_prefix(self.0.instance))
    }

    /// Asks the server to cancel what a session is running. That it was heard is not known.
    ///
    /// (A session's own `cancel_query` cannot find the server, because the socket was ours.)
    pub async fn cancel_query(&self, token: &CancelToken) -> Result<(), Error> {
        let config = self.config();
        let fail = |cause| Error::Unreachable {
            server: config.name.clone(),
            address: socket::address(&config.host, config.port),
            cause,
        };
        let request = async {
            let (lent, returned) = lend(socket::open(&config.host, config.port).await.map_err(fail)?);
            match self.tls().map(Tls::connector) {
                None => token.cancel_query_raw(lent, NoTls).await?,
                Some(tls) => token.cancel_query_raw(lent, tls).await?,
            }
            // The server closes its end when it has passed the signal on.
            if let Ok(socket) = returned.await {
                socket.close(CANCEL_TIMEOUT).await;
            }
            Ok(())
        };
        timeout(CANCEL_TIMEOUT, request).await.unwrap_or_else(|_elapsed| Err(fail(std::io::ErrorKind::TimedOut.into())))
    }

    pub(super) fn tls(&self) -> Option<&Tls> {
        self.0.tls.as_ref()
    }

    /// How many callers of this lane may be on their way to a session.
    pub(super) fn gate(&self, lane: Lane) -> &Arc<Semaphore> {
        &self.0.gates[lane as usize]
    }

    /// How many sessions may be opened at the same moment, over all lanes.
    pub(super) fn opening(&self) -> &Arc<Semaphore> {
        &self.0.opening
    }
}

/// How the names of a daemon's sessions begin: with the end of its id, because ids of one minute may begin alike.
pub(super) fn instance_prefix(instance: Uuid) -> String {
    let hex = instance.simple().to_string();
    format!("tenantd {}", &hex[hex.len() - 8..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_named_after_their_instance() {
        let instance = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(instance_prefix(instance), "tenantd 89abcdef");
    }
}
