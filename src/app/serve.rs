//! `tenantd serve`: from the configuration's file to the last call's end.

use std::path::Path;

use super::admin_key::AdminKey;
use super::daemon::App;
use super::error::Error;
use crate::config;
use crate::shutdown::Tasks;

/// Runs until SIGTERM or SIGINT; SIGHUP makes it read the limits again.
pub async fn serve(config: &Path, admin_key_file: Option<&Path>, tasks: Tasks) -> Result<(), Error> {
    let app = App::build(config::load(config)?, tasks).await?;
    if let Some(file) = admin_key_file {
        match app.admin_key_ensure(file).await? {
            AdminKey::Written => tracing::info!(file = %file.display(), "the first admin key is written"),
            AdminKey::Exists => tracing::info!("an admin key exists already; no file is written"),
        }
    }
    app.reload_on_hangup(config)?;
    let signal = async {
        match crate::shutdown::signal().await {
            Ok(name) => tracing::info!(signal = name, "draining"),
            Err(error) => tracing::error!(%error, "signals cannot be heard; stopping"),
        }
    };
    app.start().serve(signal).await
}
