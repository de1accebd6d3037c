//! `tenantd dev`: the daemon with everything that it needs, in a data directory.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::error::Error;
use super::{Context, Logs};
use crate::app::{self, DevReady, DevRequest};
use crate::shutdown::Tasks;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where the private cluster, the objects and the keys are kept.
    #[arg(long, value_name = "DIR", default_value = ".tenantd")]
    data_dir: PathBuf,
    /// Where to answer calls.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7432")]
    listen: SocketAddr,
    /// The migrations of the tenants' databases.
    #[arg(long, value_name = "DIR", default_value = "tenant-migrations")]
    tenant_migrations: PathBuf,
    #[command(flatten)]
    logs: Logs,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<(), Error> {
    arguments.logs.init()?;
    let request = DevRequest {
        data_dir: arguments.data_dir,
        listen: arguments.listen,
        tenant_migrations_dir: arguments.tenant_migrations,
    };
    let tasks = Tasks::new(tracing::Span::none());
    let progress = |text: &str| context.output.note(&format!("{text} …"));
    let mut printed = Ok(());
    let ready = |ready: &DevReady| printed = context.output.local(&value(ready), || banner(ready));
    app::dev(&request, tasks, progress, ready).await.map_err(|error| Error::daemon(error.is_usage(), error))?;
    printed
}

fn value(ready: &DevReady) -> Value {
    json!({
        "endpoint": ready.endpoint,
        "clientConfig": ready.client_config.display().to_string(),
        "dataDir": ready.data_dir.display().to_string(),
        "clusterDir": ready.cluster_dir.display().to_string(),
        "postgresPort": ready.postgres_port,
        "postgresVersion": ready.postgres_version,
        "objectStore": ready.s3_endpoint,
        "bucket": ready.bucket,
        "tenants": ready.tenants,
    })
}

/// What to type next.
fn banner(ready: &DevReady) -> String {
    let DevReady { endpoint, client_config, data_dir, cluster_dir, postgres_port, postgres_version, .. } = ready;
    let mut text = format!(
        "\ntenantd is up at {endpoint}\n\n\
         \x20 PostgreSQL {postgres_version}   127.0.0.1:{postgres_port}, in {}\n\
         \x20 objects         {} (bucket {}), in {}\n\
         \x20 demo tenants    {}\n\
         \x20 credentials     {}: every tenantd command started in this directory finds it.\n\
         \x20                 Other clients send \"authorization: Bearer <key>\", with the key in {}.\n\n\
         In a second terminal, in this directory:\n",
        cluster_dir.display(),
        ready.s3_endpoint,
        ready.bucket,
        data_dir.join("objects").display(),
        ready.tenants.join(", "),
        client_config.display(),
        data_dir.join("admin.key").display(),
    );
    for (command, what) in [
        ("./tenantd tenant create acme --name \"Acme Steel\" --sample-data", "a tenant with its own database"),
        ("./tenantd resolve acme", "where it is"),
        ("./tenantd sql acme -c \"select count(*) from articles\"", "SQL as the tenant's role"),
        ("./tenantd migrate-all", "the whole fleet to the newest version"),
        ("./tenantd backup create acme", "a backup in the bucket"),
        ("./tenantd backup list", "and its id, for: ./tenantd restore <id> --in-place"),
    ] {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "  {command:<64} {what}");
    }
    text.push_str("\nCtrl-C stops everything; the next start goes on with the same data.\n");
    text
}
