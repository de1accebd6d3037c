//! Operations: everything that can outlast a call, as persisted steps with do and undo, and whatever joins two rooms
//! of rank 5 (a restore pauses the router, a rollout drives the migrator). One file per operation; the engine knows
//! none of them. Must not know gRPC, nor write SQL of its own.

mod backup;
mod backup_verify;
mod contents;
mod create_tenant;
mod engine;
mod error;
mod failed_backups;
mod failure;
mod gone;
mod housekeeping;
mod kinds;
mod migrate_fleet;
mod migrate_target;
mod patience;
mod paused_target;
mod restore_as_new;
mod restore_in_place;
mod retired;
pub mod sample_data;
mod step;
mod stuck;
mod submit;
mod submit_rollout;
mod suspend_tenant;
mod tenant_parts;
mod tenant_secrets;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::accounts::Accounts;
use crate::catalog::Catalog;
use crate::config::{Config, Live};
use crate::domain::operation::OperationId;
use crate::postgres::Server;
use crate::router::Router;
use crate::secrets::{Envelope, ManifestSigner};
use crate::shutdown::Tasks;
use crate::store::Store;

pub use engine::deterministic_id;
pub use error::{BadField, Error};
pub use failure::Failure;
pub use stuck::Settling;
pub use submit::{CreateTenant, Request, RestoreTarget, Submitted};
pub use submit_rollout::RolloutRequest;

/// How many changes a slow watcher may be behind before it reads the catalog again.
const CHANGES_BUFFERED_MAX: usize = 1_024;

/// What operations work with. Made once by the app.
pub struct Parts {
    pub config: Arc<Config>,
    pub live: Live,
    /// This daemon, as leases and application names know it.
    pub instance: Uuid,
    pub tasks: Tasks,
    pub catalog: Catalog,
    /// The catalog's own id, part of every identity row.
    pub catalog_id: Uuid,
    pub accounts: Accounts,
    pub servers: BTreeMap<String, Server>,
    pub router: Router,
    pub store: Store,
    pub envelope: Arc<Envelope>,
    pub signer: ManifestSigner,
}

impl Parts {
    /// The server by its name in the catalog.
    pub(crate) fn server(&self, name: &str) -> Result<&Server, Error> {
        self.servers.get(name).ok_or_else(|| Error::ServerUnknown { name: name.to_owned() })
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// Submits operations and tells how they fare. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Operations {
    parts: Arc<Parts>,
    changed: broadcast::Sender<OperationId>,
    wake: Arc<Notify>,
    stop: CancellationToken,
    /// One permit for each operation that may be driven at the same moment.
    slots: Arc<Semaphore>,
    /// As many for rollouts.
    rollout_slots: Arc<Semaphore>,
    /// One permit for each backup that may be verified at the same moment.
    verify_slots: Arc<Semaphore>,
}

impl Operations {
    /// Begins to drive what is due, here and left over from daemons that are gone.
    pub fn start(parts: Parts) -> Self {
        let parts = Arc::new(parts);
        let (changed, _) = broadcast::channel(CHANGES_BUFFERED_MAX);
        let wake = Arc::new(Notify::new());
        let stop = parts.tasks.token().child_token();
        let slots = Arc::new(Semaphore::new(parts.config.operations.concurrency_max));
        let rollout_slots = Arc::new(Semaphore::new(parts.config.operations.concurrency_max));
        let engine = engine::Engine {
            parts: Arc::clone(&parts),
            gone: gone::Gone::new(Arc::clone(&parts), Arc::clone(&wake), stop.clone()),
            changed: changed.clone(),
            wake: Arc::clone(&wake),
            stop: stop.clone(),
            slots: Arc::clone(&slots),
            rollout_slots: Arc::clone(&rollout_slots),
            backup_slots: Arc::new(Semaphore::new(parts.config.backup.concurrency_max)),
            driven: std::sync::Mutex::default(),
            patience: std::sync::Mutex::default(),
        };
        parts.tasks.spawn("operations", engine.run());
        parts.tasks.spawn("housekeeping", housekeeping::run(Arc::clone(&parts), stop.clone()));
        let verify_slots = Arc::new(Semaphore::new(parts.config.backup.verify_concurrency_max));
        Self { parts, changed, wake, stop, slots, rollout_slots, verify_slots }
    }

    /// Claims nothing more, gives the present claims back, and closes the sessions that only operations and lookups
    /// need. Whatever is half done goes on in another daemon, or at the next start.
    pub async fn stop(&self, wait_max: Duration) {
        self.stop.cancel();
        let all = u32::try_from(self.parts.config.operations.concurrency_max).unwrap_or(u32::MAX);
        let ended = async { tokio::join!(self.slots.acquire_many(all), self.rollout_slots.acquire_many(all)) };
        if tokio::time::timeout(wait_max, ended).await.is_err() {
            tracing::warn!(?wait_max, "an operation's claim was not given back in time; it runs out by itself");
        }
        self.parts.catalog.close();
        self.parts.accounts.close();
    }
}
