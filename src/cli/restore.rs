//! `tenantd restore`: a backup over its tenant, or as a new tenant.

use super::connection::request;
use super::error::Error;
use super::mutation::{Mutation, Wait};
use super::settle::settle;
use super::{Context, operation};
use crate::proto::v1::restore_backup_request::Target;
use crate::proto::v1::{RestoreBackupRequest, RestoreBackupResponse};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    backup_id: String,
    #[command(flatten)]
    target: TargetFlags,
    /// For the record.
    #[arg(long, value_name = "TEXT", default_value = "restored from the command line")]
    reason: String,
    #[command(flatten)]
    mutation: Mutation,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct TargetFlags {
    /// Replace the database of the tenant that the backup was taken from; the present one is kept beside it.
    #[arg(long)]
    in_place: bool,
    /// Create a tenant of this code from the backup.
    #[arg(long = "as", value_name = "CODE")]
    new_code: Option<String>,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<(), Error> {
    let connection = context.connect().await?;
    let message = RestoreBackupRequest {
        request_id: arguments.mutation.request_id(),
        validate_only: arguments.mutation.validate_only,
        backup_id: arguments.backup_id,
        target: Some(match arguments.target.new_code {
            Some(code) => Target::NewCode(code),
            None => Target::InPlace(true),
        }),
        reason: arguments.reason,
    };
    let answer = connection.backups().restore_backup(request(message)).await?.into_inner();
    let settled = settle(context, &connection, arguments.wait, answer.operation).await?;
    let answer = RestoreBackupResponse { operation: settled.operation().cloned() };
    context.output.answer(&answer, || settled.text(context, operation::summary))
}
