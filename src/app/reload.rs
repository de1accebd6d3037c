//! SIGHUP: the configuration is read again, and what may change while the daemon runs counts from then on: tiers,
//! time-outs, callers' limits, and the servers' budgets. A configuration with a problem changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{self, Config, Live};
use crate::postgres::Server;
use crate::shutdown::Tasks;

/// What a reload changes.
#[derive(Debug)]
pub(super) struct Reload {
    pub(super) live: Live,
    pub(super) servers: BTreeMap<String, Server>,
    /// As the daemon was started.
    pub(super) started: Arc<Config>,
}

impl Reload {
    /// Reads `file` at each SIGHUP, as long as the daemon runs.
    ///
    /// # Errors
    /// When the process may not listen to the signal.
    pub(super) fn on_hangup(self, file: &Path, tasks: &Tasks) -> std::io::Result<()> {
        let hangup = signal(SignalKind::hangup())?;
        tasks.spawn("configuration reload", self.run(hangup, file.to_owned(), tasks.clone()));
        Ok(())
    }

    async fn run(self, mut hangup: Signal, file: PathBuf, tasks: Tasks) {
        loop {
            tokio::select! {
                () = tasks.token().cancelled() => return,
                heard = hangup.recv() => if heard.is_none() { return },
            }
            match config::load(&file) {
                Ok(config) => self.apply(config),
                Err(error) => tracing::error!(%error, "the configuration is not read again; the former one counts"),
            }
        }
    }

    fn apply(&self, config: Config) {
        let waiting = self.waiting_for_restart(&config);
        if !waiting.is_empty() {
            tracing::warn!(settings = waiting.join(", "), "these settings changed and count only after a restart");
        }
        for server in &config.servers {
            if let Some(running) = self.servers.get(&server.name) {
                running.budget().resize(server.connections_max, server.connections_reserved);
            }
        }
        self.live.replace(config.limits);
        tracing::info!("the configuration was read again; its limits count from now on");
    }

    /// The settings that differ from those that the daemon was started with and cannot change while it runs.
    fn waiting_for_restart(&self, new: &Config) -> Vec<&'static str> {
        let old = &*self.started;
        let servers = |config: &Config| -> Vec<_> {
            let place = |server: &config::ServerConfig| {
                let address = (server.name.clone(), server.host.clone(), server.port);
                (address, server.tls, server.ca_file.clone(), server.connects_parallel_max)
            };
            config.servers.iter().map(place).collect()
        };
        let differences = [
            ("prefix", old.naming.prefix() != new.naming.prefix()),
            ("instance", old.instance != new.instance),
            ("shares", old.shares != new.shares),
            ("listen", old.listen != new.listen),
            ("tls", old.tls != new.tls),
            ("access", old.access != new.access),
            ("spool_dir", old.spool_dir != new.spool_dir),
            ("tenant_migrations_dir", old.tenant_migrations_dir != new.tenant_migrations_dir),
            ("catalog_server", old.catalog_server != new.catalog_server),
            ("servers", servers(old) != servers(new)),
            ("store", old.store.bucket != new.store.bucket || old.store.endpoint != new.store.endpoint),
            ("operations", old.operations != new.operations),
            ("migrator", old.migrator != new.migrator),
            ("backup", old.backup != new.backup),
            ("drain_timeout", old.drain_timeout != new.drain_timeout),
        ];
        differences.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}
