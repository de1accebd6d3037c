//! `tenantd backup`: backups of one tenant at a time.

use prost_types::value::Kind;

use super::connection::{Connection, request};
use super::error::Error;
use super::mutation::{Mutation, Wait};
use super::pages::{self, Limit};
use super::settle::{Settled, settle};
use super::table::{Column, list, record};
use super::{Context, human};
use crate::proto::v1::{
    Backup, BackupTable, CreateBackupRequest, CreateBackupResponse, GetBackupRequest, GetBackupResponse,
    ListBackupsRequest, ListBackupsResponse, Operation, VerifyBackupRequest, VerifyBackupResponse,
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Dump a tenant's database into the bucket.
    Create(Create),
    /// Complete backups, newest first.
    List(List),
    /// One backup with its tables.
    Show { backup_id: String },
    /// Read every byte of a backup and check its signature, checksum, encryption and archive.
    Verify { backup_id: String },
}

#[derive(Debug, clap::Args)]
pub struct Create {
    /// A tenant's id or code.
    tenant: String,
    #[command(flatten)]
    mutation: Mutation,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
pub struct List {
    /// Only this tenant's (id or code).
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    limit: Limit,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let connection = context.connect().await?;
        match self {
            Self::Create(arguments) => create(arguments, context, &connection).await,
            Self::List(arguments) => backups_list(arguments, context, &connection).await,
            Self::Show { backup_id } => {
                let backup = backup_get(&connection, backup_id).await?;
                let answer = GetBackupResponse { backup: Some(backup.clone()) };
                context.output.answer(&answer, || format!("{}\n{}", text(&backup), tables_text(&backup.tables)))
            }
            Self::Verify { backup_id } => verify(backup_id, context, &connection).await,
        }
    }
}

async fn create(arguments: Create, context: &Context, connection: &Connection) -> Result<(), Error> {
    let Create { tenant, mutation, wait } = arguments;
    let (request_id, validate_only) = (mutation.request_id(), mutation.validate_only);
    let message = CreateBackupRequest { request_id, validate_only, tenant };
    let answer = connection.backups().create_backup(request(message)).await?.into_inner();
    let settled = settle(context, connection, wait, answer.operation).await?;
    let ended = match &settled {
        Settled::Ended(operation) => {
            created_text(&context.program, &backup_get(connection, backup_id(operation)?).await?)
        }
        Settled::Valid | Settled::Begun(_) => String::new(),
    };
    let answer = CreateBackupResponse { operation: settled.operation().cloned() };
    context.output.answer(&answer, || settled.text(context, |_| ended))
}

/// The id that a backup's operation has as its result.
fn backup_id(operation: &Operation) -> Result<String, Error> {
    let result = operation.result.as_ref().and_then(|result| result.fields.get("backup_id"));
    match result.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(id)) => Ok(id.clone()),
        _ => Err(Error::Incomplete("backup_id")),
    }
}

fn created_text(program: &str, backup: &Backup) -> String {
    let id = &backup.backup_id;
    format!(
        "{}\nCheck it:    {program} backup verify {id}\nRestore it:  {program} restore {id} --in-place\n",
        text(backup)
    )
}

async fn backup_get(connection: &Connection, backup_id: String) -> Result<Backup, Error> {
    let response = connection.backups().get_backup(request(GetBackupRequest { backup_id })).await?.into_inner();
    response.backup.ok_or(Error::Incomplete("backup"))
}

async fn backups_list(arguments: List, context: &Context, connection: &Connection) -> Result<(), Error> {
    let tenant = arguments.tenant.unwrap_or_default();
    let (backups, next_page_token) = pages::collect(arguments.limit.items_max(), async |page_size, page_token| {
        let message = ListBackupsRequest { page_size, page_token, tenant: tenant.clone() };
        let page = connection.backups().list_backups(request(message)).await?.into_inner();
        Ok((page.backups, page.next_page_token))
    })
    .await?;
    let whole = ListBackupsResponse { backups, next_page_token };
    context.output.list(&whole, &whole.backups, || list_text(&whole.backups))
}

async fn verify(backup_id: String, context: &Context, connection: &Connection) -> Result<(), Error> {
    // Without a deadline: every byte is read, and a backup may have many.
    let message = VerifyBackupRequest { backup_id };
    let answer = connection.backups().verify_backup(message).await?.into_inner();
    context.output.answer(&answer, || verified_text(&answer))
}

fn verified_text(answer: &VerifyBackupResponse) -> String {
    let mut lines: Vec<_> = answer.checks.iter().map(|check| format!("  ✓ {}", human::printable(check))).collect();
    lines.push(String::new());
    let checks = lines.join("\n");
    let Some(backup) = &answer.backup else { return checks };
    format!("{checks}\nThe backup {} of {} is good.\n", backup.backup_id, backup.tenant_code)
}

fn list_text(backups: &[Backup]) -> String {
    if backups.is_empty() {
        return "There are no such backups.\n".to_owned();
    }
    let columns = [
        Column::Text("BACKUP"),
        Column::Text("TENANT"),
        Column::Text("SNAPSHOT"),
        Column::Number("ROWS"),
        Column::Number("ARCHIVE"),
        Column::Number("SCHEMA"),
        Column::Text("VERIFIED"),
    ];
    let row = |backup: &Backup| {
        vec![
            backup.backup_id.clone(),
            backup.tenant_code.clone(),
            human::time(backup.snapshot_time.as_ref()),
            human::count(backup.row_count),
            human::bytes(backup.archive_bytes),
            backup.schema_version.to_string(),
            human::time(backup.verify_time.as_ref()),
        ]
    };
    list(&columns, backups.iter().map(row))
}

fn text(backup: &Backup) -> String {
    let tables = match backup.tables.len() {
        0 => String::new(),
        count => format!(" in {}", human::plural(i64::try_from(count).unwrap_or(i64::MAX), "table")),
    };
    let verified = human::time(backup.verify_time.as_ref());
    record(&[
        ("Backup", backup.backup_id.clone()),
        ("Tenant", backup.tenant_code.clone()),
        ("Snapshot", human::time(backup.snapshot_time.as_ref())),
        ("Completed", human::time(backup.end_time.as_ref())),
        ("Verified", if verified.is_empty() { "not yet".to_owned() } else { verified }),
        ("Rows", format!("{}{tables}", human::count(backup.row_count))),
        ("Archive", format!("{} (the dump: {})", human::bytes(backup.archive_bytes), human::bytes(backup.dump_bytes))),
        ("Object", format!("s3://{}/{}", backup.bucket, backup.archive_key)),
        ("Manifest", format!("s3://{}/{}", backup.bucket, backup.manifest_key)),
        ("SHA-256", backup.sha256.clone()),
        ("Schema version", backup.schema_version.to_string()),
        ("PostgreSQL", backup.server_version.clone()),
        ("pg_dump", backup.dump_version.trim_start_matches("pg_dump (PostgreSQL) ").to_owned()),
    ])
}

fn tables_text(tables: &[BackupTable]) -> String {
    let columns = [Column::Text("TABLE"), Column::Number("ROWS"), Column::Text("DIGEST")];
    let row = |table: &BackupTable| {
        vec![format!("{}.{}", table.schema, table.name), human::count(table.row_count), table.digest.clone()]
    };
    list(&columns, tables.iter().map(row))
}
