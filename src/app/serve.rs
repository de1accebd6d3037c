//! `tenantd serve`: from the configuration's file to the last call's end.

use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};

use super::admin_key::AdminKey;
use super::daemon::App;
use super::error::Error;
use crate::config;
use crate::shutdown::{Tasks, stop_signals};

/// Runs until SIGTERM or SIGINT; SIGHUP makes it read the limits again.
pub async fn serve(config: &Path, admin_key_file: Option<&Path>, tasks: Tasks) -> Result<(), Error> {
    // From the first moment on: whoever is told to go while it starts leaves nothing behind, and a hangup ends nobody.
    let stop = stop_signals(&tasks).map_err(Error::Signals)?;
    let hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    let loaded = config::load(config)?;
    if let Some(problem) = config::secret_exposed(config) {
        tracing::warn!(file = %config.display(), "the configuration is not private: {problem}");
    }
    let Some(app) = App::build(loaded, tasks, stop.cancelled()).await? else { return Ok(()) };
    if let Some(file) = admin_key_file {
        match app.admin_key_ensure(file).await {
            Ok(AdminKey::Written) => tracing::info!(file = %file.display(), "the first admin key is written"),
            Ok(AdminKey::Exists) => tracing::info!("an admin key exists already; no file is written"),
            Err(error) => {
                app.abandon().await;
                return Err(error);
            }
        }
    }
    app.reload_on(hangup, config);
    app.start().serve(stop.cancelled_owned()).await
}
