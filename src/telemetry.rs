//! Logs: plain lines on a terminal, JSON lines elsewhere when asked for; filtered by a directive as `tenantd=info`.
//! Knows nothing of what is logged; nobody logs a password, a token, a key or a connection string.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What of others' logs is worth a line by default. s3s calls every refusal and every missing key an ERROR.
pub const FILTER_DEFAULT: &str =
    "info,aws=warn,h2=warn,hyper=warn,refinery_core=warn,s3s=off,s3s::service=error,tower=warn";

/// Sends the process's logs to standard error, and with them what panics say.
///
/// # Errors
/// When `filter` is no filter directive, or a subscriber is set already.
pub fn init(filter: &str, format: LogFormat) -> Result<(), Error> {
    let filter: Targets = filter.parse().map_err(|source| Error::Filter { filter: filter.to_owned(), source })?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Json => registry.with(lines.json()).try_init()?,
        LogFormat::Text => {
            registry.with(lines.with_ansi(std::io::stderr().is_terminal()).with_target(false)).try_init()?;
        }
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("no text");
        tracing::error!(place, "a defect of the daemon: a panic: {what}");
    }));
    Ok(())
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{filter:?} is no log filter (as \"info,tenantd=debug\"): {source}")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("logs are set up already: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}
