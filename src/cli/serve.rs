//! `tenantd serve`: the daemon itself, against servers and a bucket that exist.

use std::path::PathBuf;

use super::Logs;
use super::error::Error;
use crate::app;
use crate::shutdown::Tasks;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration, as README shows it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write the first admin key to this new file (mode 0600), only while no admin key exists.
    #[arg(long, value_name = "FILE")]
    init_admin_key_file: Option<PathBuf>,
    #[command(flatten)]
    logs: Logs,
}

pub async fn run(arguments: Arguments) -> Result<(), Error> {
    arguments.logs.init()?;
    let tasks = Tasks::new(tracing::Span::none());
    let served = app::serve(&arguments.config, arguments.init_admin_key_file.as_deref(), tasks).await;
    served.map_err(|error| Error::daemon(error.is_usage(), error))
}
