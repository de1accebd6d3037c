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
use crate::domain::share::{DOOR, InstanceName};
use crate::domain::tenant::{DatabaseName, IDENTIFIER_BYTES_MAX, maintenance_database};
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
    /// What it is called among the daemons that share the budget.
    name: Option<InstanceName>,
    tasks: Tasks,
    tls: Option<Tls>,
    budget: Budget,
    /// For the sessions without which this daemon has no share.
    anchorage: Budget,
    /// Per lane, taken before the permit: a storm of callers does not queue for permits all at once. One per lane, so
    /// that tenants who wait for a permit do not stand in the catalog's way.
    gates: [Arc<Semaphore>; Lane::ALL.len()],
    /// Over all lanes but the catalog's and the share's, held while a session is being opened.
    opening: Arc<Semaphore>,
    maintenance_database: DatabaseName,
}

impl Server {
    /// Reads the TLS roots; opens nothing. `instance` is this daemon's, and part of its sessions' names.
    pub fn new(config: &ServerConfig, tasks: &Tasks, instance: Uuid) -> Result<Self, Error> {
        Self::named(config, tasks, instance, None)
    }

    /// As [`Server::new`], for a daemon that has a name among others: it opens nothing but the lane of shares until it
    /// has one of the budget, and its tenants' sessions are told from those of others by its name.
    pub fn named(
        config: &ServerConfig,
        tasks: &Tasks,
        instance: Uuid,
        name: Option<&InstanceName>,
    ) -> Result<Self, Error> {
        let budget = Budget::new(&config.name, config.connections_max, config.connections_reserved);
        if name.is_some() {
            budget.share(0);
        }
        let connects = config.connects_parallel_max.max(1) as usize;
        Ok(Self(Arc::new(Inner {
            config: config.clone(),
            instance,
            name: name.cloned(),
            tasks: tasks.clone(),
            tls: Tls::new(config)?,
            budget,
            anchorage: Budget::new(&config.name, DOOR, 0),
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

    /// Where a lane's permits come from.
    pub(super) fn budget_of(&self, lane: Lane) -> &Budget {
        if lane == Lane::Share { &self.0.anchorage } else { &self.0.budget }
    }

    pub fn maintenance_database(&self) -> &DatabaseName {
        &self.0.maintenance_database
    }

    /// The `application_name` of a session that is none of the router's: tells whose it is, so that a later daemon can
    /// end what a killed one left behind.
    pub fn session_name(&self, purpose: &str) -> String {
        format!("{} {purpose}", instance_prefix(self.0.instance))
    }

    /// The `application_name` of a session of the router's: the tenant's database as it was named at first, and whose
    /// session it is where that is not plain. PostgreSQL cuts such names, so the tenant's part gives way.
    pub fn session_name_of_tenant(&self, tenant: &str) -> String {
        let Some(name) = &self.0.name else { return tenant.to_owned() };
        let mark = instance_mark(name);
        tenant.chars().take(IDENTIFIER_BYTES_MAX - mark.len()).chain(mark.chars()).collect()
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

    /// How many sessions may be opened at the same moment, over all lanes but the catalog's and the share's.
    pub(super) fn opening(&self) -> &Arc<Semaphore> {
        &self.0.opening
    }
}

/// How the names of a daemon's sessions begin: with the end of its id, because ids of one minute may begin alike.
pub(super) fn instance_prefix(instance: Uuid) -> String {
    let hex = instance.simple().to_string();
    format!("tenantd {}", &hex[hex.len() - 8..])
}

/// How the names of tenants' sessions end in a daemon that shares the budget.
pub(super) fn instance_mark(name: &InstanceName) -> String {
    format!("@{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Credentials, ServerTls};
    use crate::domain::tenant::RoleName;

    #[test]
    fn sessions_are_named_after_their_instance() {
        let instance = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(instance_prefix(instance), "tenantd 89abcdef");
    }

    #[test]
    fn a_tenants_session_tells_whose_it_is_even_when_its_name_is_cut() {
        let login = || RoleLogin { role: RoleName::new("x").unwrap(), password: String::new().into() };
        let config = ServerConfig {
            name: "main".to_owned(),
            host: "localhost".to_owned(),
            port: 5432,
            tls: ServerTls::Disable,
            ca_file: None,
            connections_max: 40,
            connections_reserved: 5,
            connects_parallel_max: 4,
            credentials: Credentials { daemon: login(), dump: login() },
        };
        let tasks = Tasks::new(tracing::Span::none());
        let server = |name: Option<&InstanceName>| Server::named(&config, &tasks, Uuid::nil(), name).unwrap();
        assert_eq!(server(None).session_name_of_tenant("erp_acme"), "erp_acme");
        let name = "node-1".parse().unwrap();
        assert_eq!(server(Some(&name)).session_name_of_tenant("erp_acme"), "erp_acme@node-1");
        let long = "x".repeat(60);
        assert_eq!(server(Some(&name)).session_name_of_tenant(&long), format!("{}@node-1", "x".repeat(56)));
    }
}
