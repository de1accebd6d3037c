//! `tenantd completions`: what a shell needs to complete the command line.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::CommandLine;
use super::error::Error;
use super::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "As: source <(tenantd completions bash)")]
pub struct Arguments {
    shell: Shell,
}

pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut CommandLine::command(), "tenantd", &mut script);
    output::write(&String::from_utf8_lossy(&script))
}
