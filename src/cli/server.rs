//! `tenantd server …`: preparing PostgreSQL servers.

use std::path::PathBuf;

use serde_json::json;

use super::error::Error;
use super::{Context, Logs};
use crate::app::{self, BootstrapRequest};
use crate::config::{self, RoleLogin, ServerTls};
use crate::domain::tenant::RoleName;
use crate::shutdown::Tasks;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Prepare a server, once, as a superuser: the daemon's roles and, for the first server, its databases.
    Bootstrap(Bootstrap),
}

#[derive(Debug, clap::Args)]
pub struct Bootstrap {
    /// Where the server is.
    #[arg(long, value_name = "HOST")]
    host: String,
    /// Its port.
    #[arg(long, value_name = "PORT", default_value_t = 5432)]
    port: u16,
    /// A superuser; its rights are used for this command only.
    #[arg(long, value_name = "ROLE", default_value = "postgres")]
    superuser: String,
    /// A file with the superuser's password, which only you can read; without one, none is sent.
    #[arg(long, value_name = "FILE")]
    superuser_password_file: Option<PathBuf>,
    /// Do not encrypt: only for servers on this machine.
    #[arg(long)]
    no_tls: bool,
    /// Roots to trust instead of the system's, in PEM.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Begins the name of every database and role of the fleet.
    #[arg(long, value_name = "PREFIX")]
    prefix: String,
    /// Where the generated passwords go (mode 0600); an existing file is used as it is.
    #[arg(long, value_name = "FILE")]
    credentials_file: PathBuf,
    /// Where the fleet's keys are, or go when there is no such file.
    #[arg(long, value_name = "FILE")]
    keys_file: Option<PathBuf>,
    /// Only the roles: the shared and the auth database are on another server.
    #[arg(long)]
    no_catalog: bool,
    /// Give the daemon's roles new passwords although the server has them and the credentials file is not there. Daemons
    /// that log in with the old ones are locked out.
    #[arg(long)]
    new_passwords: bool,
    #[command(flatten)]
    logs: Logs,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Bootstrap(arguments) => bootstrap(arguments, context).await,
        }
    }
}

async fn bootstrap(arguments: Bootstrap, context: &Context) -> Result<(), Error> {
    arguments.logs.init()?;
    let usage = |error: &dyn std::fmt::Display| Error::Usage(error.to_string());
    let password = match &arguments.superuser_password_file {
        None => String::new(),
        Some(path) => {
            config::check_private(path).map_err(|problem| usage(&format!("{}: {problem}", path.display())))?;
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|source| Error::Input { path: path.clone(), source })?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
    };
    let role = RoleName::new(arguments.superuser).map_err(|error| usage(&error))?;
    let request = BootstrapRequest {
        host: arguments.host,
        port: arguments.port,
        tls: if arguments.no_tls { ServerTls::Disable } else { ServerTls::VerifyFull },
        ca_file: arguments.ca_file,
        superuser: RoleLogin { role, password: password.into() },
        prefix: arguments.prefix,
        credentials_file: arguments.credentials_file,
        keys_file: arguments.keys_file,
        catalog: !arguments.no_catalog,
        new_passwords: arguments.new_passwords,
    };
    let tasks = Tasks::new(tracing::info_span!("bootstrap"));
    let done = app::bootstrap(&request, &tasks).await.map_err(|error| Error::daemon(error.is_usage(), error))?;
    let _stubborn = tasks.end(std::time::Duration::from_secs(5)).await;
    context.output.local(&json!({ "done": done }), || done.iter().flat_map(|said| ["  ✓ ", said, "\n"]).collect())
}
