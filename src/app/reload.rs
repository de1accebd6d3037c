//! SIGHUP: the configuration is read again, and what may change while the daemon runs counts from then on: tiers,
//! time-outs, callers' limits, the servers' budgets, and the listener's certificates with the names in them. A configuration with a problem changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::Signal;

use crate::api::Tls;
use crate::config::{self, Config, Live};
use crate::postgres::Server;
use crate::router::Router;
use crate::shutdown::Tasks;

const NOT_READ: &str = "the configuration is not read again; the former one counts";

/// What a reload changes.
#[derive(Debug)]
pub(super) struct Reload {
    pub(super) live: Live,
    pub(super) servers: BTreeMap<String, Server>,
    pub(super) tls: Option<Tls>,
    pub(super) router: Router,
    /// As the daemon was started.
    pub(super) started: Arc<Config>,
}

impl Reload {
    /// Reads `file` at each hangup, as long as the daemon runs.
    pub(super) fn on(self, hangup: Signal, file: &Path, tasks: &Tasks) {
        tasks.spawn("configuration reload", self.run(hangup, file.to_owned(), tasks.clone()));
    }

    async fn run(self, mut hangup: Signal, file: PathBuf, tasks: Tasks) {
        loop {
            tokio::select! {
                () = tasks.token().cancelled() => return,
                heard = hangup.recv() => if heard.is_none() { return },
            }
            match config::load(&file) {
                Ok(config) => self.apply(config),
                Err(error) => tracing::error!(%error, "{NOT_READ}"),
            }
        }
    }

    fn apply(&self, mut config: Config) {
        if let (Some(tls), Some(files)) = (&self.tls, &config.tls) {
            match files.server_config() {
                Ok(config) => tls.replace(config),
                // They were right a moment ago, when the configuration was read.
                Err(error) => return tracing::error!(error, "{NOT_READ}"),
            }
        }
        let waiting = self.started.waiting_for_restart(&config);
        if !waiting.is_empty() {
            tracing::warn!(settings = waiting.join(", "), "these settings changed and count only after a restart");
        }
        for server in &config.servers {
            if let Some(running) = self.servers.get(&server.name) {
                running.budget().resize(server.connections_max, server.connections_reserved);
            }
        }
        let former = self.live.current();
        if self.tls.is_some() && config.tls.is_none() {
            // The former certificate is served until a restart.
            config.limits.own_hosts = config.limits.own_hosts.and(&former.own_hosts);
        }
        let is_for_sessions = former.router.statement_timeout != config.limits.router.statement_timeout;
        self.live.replace(config.limits);
        self.router.limits_follow();
        if is_for_sessions {
            self.router.pools_renew();
        }
        tracing::info!("the configuration was read again; its limits and certificates count from now on");
    }
}
