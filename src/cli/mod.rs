//! The command line: a client of the daemon. One file for each noun, named as the command is. Only the commands that
//! are no client's (serving, checking a configuration, preparing a server) may know more of the daemon than its API.

mod backup;
mod check_config;
mod completions;
mod connection;
mod dev;
mod error;
mod exit_code;
mod human;
mod json;
mod key;
mod migrate_all;
mod mutation;
mod operation;
mod output;
mod pages;
mod pool;
mod progress;
mod resolve;
mod restore;
mod routes;
mod serve;
mod server;
mod settle;
mod sql;
mod table;
mod tenant;
mod tenant_host;
mod wait;
mod whoami;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory as _, FromArgMatches as _, ValueEnum as _};

pub use exit_code::ExitCode;

use crate::config::client::{ClientConfig, ClientFlags};
use crate::telemetry;
use connection::Connection;
use error::Error;
use output::{Format, Output};

/// One daemon for fleets in which every customer has its own PostgreSQL database.
#[derive(Debug, clap::Parser)]
#[command(name = "tenantd", version, after_help = exit_code::HELP, max_term_width = 110)]
pub struct CommandLine {
    /// How the program was called, for commands that a person is told to type next.
    #[arg(skip)]
    program: String,
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The daemon's URL, as https://db.example.com:7432; needs --key-file.
    #[arg(long, global = true, value_name = "URL")]
    endpoint: Option<String>,
    /// A file with an API key in it.
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// A file with endpoint, key and certificate, instead of ./.tenantd/client.toml or ~/.config/tenantd/client.toml.
    #[arg(long, global = true, value_name = "FILE", env = "TENANTD_CLIENT_CONFIG")]
    client_config: Option<PathBuf>,
    /// How results are written.
    #[arg(long, short, global = true, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the daemon with everything that it needs: a private PostgreSQL cluster, an S3 server, demo tenants.
    Dev(dev::Arguments),
    /// Run the daemon against servers and a bucket that exist.
    Serve(serve::Arguments),
    /// Prepare PostgreSQL servers.
    #[command(subcommand)]
    Server(server::Command),
    /// Create, show, suspend and resume tenants.
    #[command(subcommand)]
    Tenant(tenant::Command),
    /// Show where a tenant is.
    Resolve(resolve::Arguments),
    /// Follow where tenants are.
    #[command(subcommand)]
    Routes(routes::Command),
    /// Run one SQL statement in a tenant's database.
    Sql(sql::Arguments),
    /// Show and close pools of connections.
    #[command(subcommand)]
    Pool(pool::Command),
    /// Bring every tenant to the newest version of the daemon's migration directory.
    MigrateAll(migrate_all::Arguments),
    /// Make, show and verify backups.
    #[command(subcommand)]
    Backup(backup::Command),
    /// Restore a backup, over its tenant or as a new one.
    Restore(restore::Arguments),
    /// Show and follow operations; have one that is stuck go on, or give it up.
    #[command(subcommand)]
    Operation(operation::Command),
    /// Make, show and revoke API keys.
    #[command(subcommand)]
    Key(key::Command),
    /// Show who you are to the daemon.
    Whoami,
    /// Say everything that is wrong with a configuration.
    CheckConfig(check_config::Arguments),
    /// Print completions for a shell.
    Completions(completions::Arguments),
}

/// How the daemon logs.
#[derive(Debug, clap::Args)]
struct Logs {
    /// What is logged, as "info,tenantd=debug".
    #[arg(long, value_name = "FILTER", default_value = telemetry::FILTER_DEFAULT, hide_default_value = true)]
    log: String,
    /// How log lines look.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: telemetry::LogFormat,
}

impl Logs {
    fn init(&self) -> Result<(), Error> {
        telemetry::init(&self.log, self.log_format).map_err(|error| Error::Usage(error.to_string()))
    }
}

/// What every command gets.
#[derive(Debug)]
struct Context {
    program: String,
    output: Output,
    flags: ClientFlags,
}

impl Context {
    async fn connect(&self) -> Result<Connection, Error> {
        Connection::open(&ClientConfig::find(&self.flags)?).await
    }
}

/// Parses the command line. Prints help, or what is wrong with the arguments, and answers with the code to end with.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<CommandLine, ExitCode> {
    let arguments: Vec<_> = arguments.collect();
    let format = format_wanted(&arguments);
    let program = arguments.first().map_or("tenantd".into(), |name| name.to_string_lossy()).into_owned();
    CommandLine::command()
        .try_get_matches_from(arguments)
        .and_then(|matches| CommandLine::from_arg_matches(&matches))
        .map(|command_line| CommandLine { program, ..command_line })
        .map_err(|error| output::usage(&error, format))
}

/// The format that was asked for, as far as that can be seen in arguments that do not parse.
fn format_wanted(arguments: &[OsString]) -> Format {
    let texts: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
    let mut named = texts.iter().enumerate().filter_map(|(place, text)| match text.as_ref() {
        "-o" | "--output" => texts.get(place + 1).map(AsRef::as_ref),
        text => text.strip_prefix("--output=").or_else(|| text.strip_prefix("-o")),
    });
    named.next_back().and_then(|name| Format::from_str(name.trim_start_matches('='), false).ok()).unwrap_or_default()
}

/// Runs the command, and prints why it failed if it did.
pub async fn run(command_line: CommandLine) -> ExitCode {
    let CommandLine { program, global, command } = command_line;
    let output = Output::new(global.output);
    let flags = ClientFlags { endpoint: global.endpoint, key_file: global.key_file, file: global.client_config };
    match command.run(&Context { program, output, flags }).await {
        Ok(code) => code,
        Err(error) => {
            output.error(&error);
            error.exit_code()
        }
    }
}

/// Reports that the process could not even begin.
pub fn fail(error: &std::io::Error) -> ExitCode {
    output::note(&format!("error: the process cannot start: {error}"));
    ExitCode::Failed
}

impl Command {
    async fn run(self, context: &Context) -> Result<ExitCode, Error> {
        match self {
            Self::Dev(arguments) => dev::run(arguments, context).await?,
            Self::Serve(arguments) => serve::run(arguments).await?,
            Self::Server(command) => command.run(context).await?,
            Self::Tenant(command) => command.run(context).await?,
            Self::Resolve(arguments) => resolve::run(arguments, context).await?,
            Self::Routes(command) => command.run(context).await?,
            Self::Sql(arguments) => sql::run(arguments, context).await?,
            Self::Pool(command) => command.run(context).await?,
            Self::MigrateAll(arguments) => return migrate_all::run(arguments, context).await,
            Self::Backup(command) => command.run(context).await?,
            Self::Restore(arguments) => restore::run(arguments, context).await?,
            Self::Operation(command) => command.run(context).await?,
            Self::Key(command) => command.run(context).await?,
            Self::Whoami => whoami::run(context).await?,
            Self::CheckConfig(arguments) => check_config::run(&arguments, context)?,
            Self::Completions(arguments) => completions::run(&arguments)?,
        }
        Ok(ExitCode::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(line: &str) -> Option<u8> {
        let arguments = line.split_whitespace().map(OsString::from);
        parse(arguments).err().map(ExitCode::number)
    }

    #[test]
    fn the_tree_of_commands_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn usage_errors_end_with_64_and_help_with_0() {
        assert_eq!(code("tenantd frobnicate"), Some(64));
        assert_eq!(code("tenantd tenant create"), Some(64));
        assert_eq!(code("tenantd restore x --in-place --as y"), Some(64));
        assert_eq!(code("tenantd restore x"), Some(64));
        assert_eq!(code("tenantd migrate-all --max-failures many"), Some(64));
        assert_eq!(code("tenantd --help"), Some(0));
        assert_eq!(code("tenantd --version"), Some(0));
    }

    #[test]
    fn usage_errors_have_the_format_that_was_asked_for() {
        let wanted = |line: &str| format_wanted(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>());
        for json in ["tenantd -o json x", "tenantd x --output json", "tenantd --output=json", "tenantd -ojson"] {
            assert_eq!(wanted(json), Format::Json, "{json}");
        }
        assert_eq!(wanted("tenantd tenant list -o jsonl"), Format::Jsonl);
        for text in ["tenantd x", "tenantd -o", "tenantd -o xml", "tenantd -o table"] {
            assert_eq!(wanted(text), Format::Table, "{text}");
        }
    }

    #[test]
    fn the_commands_of_the_manual_parse() {
        for line in [
            "tenantd tenant create acme --name Acme --tier standard --sample-data",
            "tenantd resolve acme --output json",
            "tenantd resolve acme --watch",
            "tenantd tenant host add acme acme.example.com",
            "tenantd routes watch",
            "tenantd routes watch --after-revision 7 --catalog-id 0193",
            "tenantd sql acme -c select",
            "tenantd pool list --output jsonl",
            "tenantd pool evict acme --reason test",
            "tenantd tenant stats acme",
            "tenantd migrate-all",
            "tenantd backup create acme",
            "tenantd backup verify 0193",
            "tenantd restore 0193 --in-place",
            "tenantd restore 0193 --as acme_copy",
            "tenantd operation retry 0193",
            "tenantd operation abandon 0193 --reason gone",
        ] {
            assert_eq!(code(line), None, "{line}");
        }
    }
}
