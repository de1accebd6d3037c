//! `tenantd check-config`: every problem of a configuration at once.

use std::path::PathBuf;

use serde_json::json;

use super::Context;
use super::error::Error;
use super::table::record;
use crate::config;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration of `tenantd serve`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn run(arguments: &Arguments, context: &Context) -> Result<(), Error> {
    let path = &arguments.config;
    let config = config::load(path).map_err(|error| Error::Config(Box::new(error)))?;
    let servers: Vec<_> = config.servers.iter().map(|server| server.name.as_str()).collect();
    let tiers: Vec<_> = config.limits.tiers.keys().map(String::as_str).collect();
    let own_hosts: Vec<_> = config.limits.own_hosts.iter().collect();
    let warning = config::secret_exposed(path);
    let text = || {
        let warning = warning.as_ref().map(|warning| format!("\nWarning: {warning}.\n")).unwrap_or_default();
        let fields = record(&[
            ("Listen", config.listen.to_string()),
            ("Own hosts", own_hosts.join(", ")),
            ("Prefix", config.naming.prefix().to_owned()),
            ("Instance", config.instance.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("Servers", servers.join(", ")),
            ("Bucket", config.store.bucket.clone()),
            ("Migrations", config.tenant_migrations_dir.display().to_string()),
            ("Tiers", tiers.join(", ")),
        ]);
        format!("{} is in order.\n\n{fields}{warning}", path.display())
    };
    let value = json!({
        "config": path.display().to_string(),
        "listen": config.listen.to_string(),
        "ownHosts": own_hosts,
        "prefix": config.naming.prefix(),
        "instance": config.instance.as_ref().map(ToString::to_string),
        "servers": servers,
        "bucket": config.store.bucket,
        "tenantMigrationsDir": config.tenant_migrations_dir.display().to_string(),
        "tiers": tiers,
        "problems": [],
        "warnings": warning.iter().collect::<Vec<_>>(),
    });
    context.output.local(&value, text)
}
