//! `tenantd key`: the keys that callers show.

use std::time::Duration;

use prost_types::Timestamp;
use time::OffsetDateTime;

use super::connection::{Connection, request};
use super::error::Error;
use super::mutation::Mutation;
use super::pages::{self, Limit};
use super::table::{Column, list, record};
use super::{Context, human};
use crate::domain::permission::Role;
use crate::proto::v1::{ApiKey, CreateApiKeyRequest, ListApiKeysRequest, ListApiKeysResponse, RevokeApiKeyRequest};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a key and print its secret, this once.
    Create(Create),
    /// Keys without their secrets, newest first.
    List(Limit),
    /// End a key at once.
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
pub struct Create {
    /// What the key is for, as "ci".
    name: String,
    /// viewer, resolver, user, migrator, backup, operator or admin; may be repeated.
    #[arg(long = "role", value_name = "ROLE", required = true)]
    roles: Vec<Role>,
    /// A tenant's code; may be repeated. Without any, the key reaches all tenants.
    #[arg(long = "tenant", value_name = "CODE")]
    tenants: Vec<String>,
    /// The code of the tenant that calls mean when they name none.
    #[arg(long, value_name = "CODE")]
    default_tenant: Option<String>,
    /// How long the key is good, as 90d or 12h; for ever when not given.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires_in: Option<Duration>,
    #[command(flatten)]
    mutation: Mutation,
}

#[derive(Debug, clap::Args)]
pub struct Revoke {
    /// As in `key list`.
    api_key_id: String,
    #[command(flatten)]
    mutation: Mutation,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let connection = context.connect().await?;
        match self {
            Self::Create(arguments) => create(arguments, context, &connection).await,
            Self::List(limit) => keys_list(limit, context, &connection).await,
            Self::Revoke(arguments) => revoke(arguments, context, &connection).await,
        }
    }
}

async fn create(arguments: Create, context: &Context, connection: &Connection) -> Result<(), Error> {
    let expire_time = arguments.expires_in.map(expiry).transpose()?;
    let message = CreateApiKeyRequest {
        request_id: arguments.mutation.request_id(),
        validate_only: arguments.mutation.validate_only,
        name: arguments.name,
        roles: arguments.roles.iter().map(ToString::to_string).collect(),
        tenants: arguments.tenants,
        default_tenant: arguments.default_tenant.unwrap_or_default(),
        expire_time,
    };
    let answer = connection.access().create_api_key(request(message)).await?.into_inner();
    context.output.answer(&answer, || match &answer.api_key {
        Some(key) if !answer.secret.is_empty() => format!(
            "{}\n  {}\n\nThis is the key. It is shown only now: keep it in a file with mode 0600, for --key-file.\n",
            text(key),
            answer.secret
        ),
        _ => "Everything is in order; nothing was changed.\n".to_owned(),
    })
}

async fn keys_list(limit: Limit, context: &Context, connection: &Connection) -> Result<(), Error> {
    let (api_keys, next_page_token) = pages::collect(limit.items_max(), async |page_size, page_token| {
        let message = ListApiKeysRequest { page_size, page_token };
        let page = connection.access().list_api_keys(request(message)).await?.into_inner();
        Ok((page.api_keys, page.next_page_token))
    })
    .await?;
    let whole = ListApiKeysResponse { api_keys, next_page_token };
    context.output.list(&whole, &whole.api_keys, || list_text(&whole.api_keys))
}

async fn revoke(arguments: Revoke, context: &Context, connection: &Connection) -> Result<(), Error> {
    let message = RevokeApiKeyRequest {
        request_id: arguments.mutation.request_id(),
        validate_only: arguments.mutation.validate_only,
        api_key_id: arguments.api_key_id,
    };
    let answer = connection.access().revoke_api_key(request(message)).await?.into_inner();
    context.output.answer(&answer, || answer.api_key.as_ref().map(text).unwrap_or_default())
}

/// So long from now.
fn expiry(duration: Duration) -> Result<Timestamp, Error> {
    let moment = time::Duration::try_from(duration).ok().and_then(|span| OffsetDateTime::now_utc().checked_add(span));
    let moment = moment.ok_or_else(|| Error::Usage("--expires-in: there is no time so far away".to_owned()))?;
    Ok(Timestamp { seconds: moment.unix_timestamp(), nanos: 0 })
}

fn list_text(keys: &[ApiKey]) -> String {
    let columns = [
        Column::Text("KEY"),
        Column::Text("NAME"),
        Column::Text("ROLES"),
        Column::Text("TENANTS"),
        Column::Text("CREATED"),
        Column::Text("LAST USED"),
        Column::Text("EXPIRES"),
        Column::Text("REVOKED"),
    ];
    let row = |key: &ApiKey| {
        vec![
            key.api_key_id.clone(),
            key.name.clone(),
            key.roles.join(","),
            tenants(key),
            human::time(key.create_time.as_ref()),
            human::time(key.last_use_time.as_ref()),
            human::time(key.expire_time.as_ref()),
            human::time(key.revoke_time.as_ref()),
        ]
    };
    list(&columns, keys.iter().map(row))
}

fn tenants(key: &ApiKey) -> String {
    if key.tenants.is_empty() { "all".to_owned() } else { key.tenants.join(",") }
}

fn text(key: &ApiKey) -> String {
    let expires = human::time(key.expire_time.as_ref());
    record(&[
        ("Key", key.api_key_id.clone()),
        ("Name", key.name.clone()),
        ("Roles", key.roles.join(", ")),
        ("Tenants", tenants(key)),
        ("Created", human::time(key.create_time.as_ref())),
        ("Expires", if expires.is_empty() { "never".to_owned() } else { expires }),
        ("Revoked", human::time(key.revoke_time.as_ref())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_is_too_far_away_is_told() {
        assert!(expiry(Duration::from_hours(24)).is_ok());
        for days in [99_999_999, u64::MAX / 86_400] {
            let error = expiry(Duration::from_secs(days * 86_400)).unwrap_err();
            assert!(error.to_string().contains("--expires-in"), "{error}");
        }
    }
}
