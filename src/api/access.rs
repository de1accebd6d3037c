//! AccessService: who calls, and the keys of those who may. A key's secret is in one answer and nowhere else. Whoever
//! makes a key could make one for any tenant, so keys are for callers whose scope is the whole fleet.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;

use secrecy::ExposeSecret as _;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::status::BadField;
use super::{Service, auth, convert, scope, status, texts};
use crate::accounts::{Change, NewApiKey};
use crate::domain::permission::Role;
use crate::domain::principal::Scope;
use crate::domain::tenant::TenantCode;
use crate::proto::v1;
use crate::proto::v1::access_service_server::AccessService;
use crate::proto::v1::{
    CreateApiKeyRequest, CreateApiKeyResponse, ListApiKeysRequest, ListApiKeysResponse, RevokeApiKeyRequest,
    RevokeApiKeyResponse, WhoAmIRequest, WhoAmIResponse,
};
use crate::secrets::ApiKeySecret;

const NAME_CHARACTERS_MAX: usize = 100;

#[tonic::async_trait]
impl AccessService for Service {
    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        let principal = auth::caller(&request)?;
        let tenants = match &principal.scope {
            Scope::All => Vec::new(),
            Scope::Tenants(codes) => codes.iter().map(ToString::to_string).collect(),
        };
        Ok(Response::new(WhoAmIResponse {
            principal: principal.name.clone(),
            roles: principal.roles.iter().map(ToString::to_string).collect(),
            tenants,
            all_tenants: principal.scope == Scope::All,
            default_tenant: principal.default_tenant.as_ref().map(ToString::to_string).unwrap_or_default(),
            user_id: principal.user.map(|user| user.to_string()).unwrap_or_default(),
        }))
    }

    async fn create_api_key(
        &self,
        request: Request<CreateApiKeyRequest>,
    ) -> Result<Response<CreateApiKeyResponse>, Status> {
        let principal = auth::caller(&request)?;
        scope::whole_fleet(&principal, "making keys")?;
        let message = texts::checked(request)?;
        let wish = Wish::new(&message, OffsetDateTime::now_utc())?;
        self.tenants_known(&wish).await?;
        if message.validate_only {
            return Ok(Response::new(CreateApiKeyResponse::default()));
        }
        let (secret, hash) = ApiKeySecret::new();
        let key = NewApiKey {
            id: wish.id,
            name: &wish.name,
            hash,
            roles: &wish.roles,
            scope: &wish.scope,
            default_tenant: wish.default_tenant.as_ref(),
            created_by: &principal.name,
            expires_at: wish.expires_at,
        };
        let row = self.api.accounts.api_key_insert(&key).await?;
        let secret = secret.expose_secret().to_owned();
        Ok(Response::new(CreateApiKeyResponse { api_key: Some(convert::api_key(row)), secret }))
    }

    async fn list_api_keys(
        &self,
        request: Request<ListApiKeysRequest>,
    ) -> Result<Response<ListApiKeysResponse>, Status> {
        scope::whole_fleet(&*auth::caller(&request)?, "the list of keys")?;
        let message = texts::checked(request)?;
        let page = convert::page(message.page_size, message.page_token)?;
        let paged = self.api.accounts.api_key_list(&page).await?;
        let api_keys = paged.rows.into_iter().map(convert::api_key).collect();
        let token = |last: &v1::ApiKey| last.api_key_id.clone();
        let (api_keys, next_page_token) = convert::page_cut(api_keys, paged.next, token);
        Ok(Response::new(ListApiKeysResponse { api_keys, next_page_token }))
    }

    async fn revoke_api_key(
        &self,
        request: Request<RevokeApiKeyRequest>,
    ) -> Result<Response<RevokeApiKeyResponse>, Status> {
        scope::whole_fleet(&*auth::caller(&request)?, "revoking keys")?;
        let message = texts::checked(request)?;
        convert::request_id(&message.request_id)?;
        let id = convert::uuid("api_key_id", &message.api_key_id)?;
        let key = if message.validate_only {
            self.api.accounts.api_key_get(id).await?
        } else {
            let key = self.api.accounts.api_key_revoke(id).await?;
            self.api.access.forget(Change::Key(id));
            key
        };
        Ok(Response::new(RevokeApiKeyResponse { api_key: Some(convert::api_key(key)) }))
    }
}

impl Service {
    /// Refuses a key for tenants that are not there: whoever gets such a code later would be the key's.
    async fn tenants_known(&self, wish: &Wish) -> Result<(), Status> {
        let mut named = wish.scope.codes().cloned().unwrap_or_default();
        named.extend(wish.default_tenant.clone());
        if named.is_empty() {
            return Ok(());
        }
        let known = self.api.catalog.tenant_codes_known(&named).await?;
        let is_tenants = |code: &&TenantCode| wish.scope.codes().is_some_and(|codes| codes.contains(*code));
        let bad = |code: &TenantCode| {
            let field = if is_tenants(&code) { "tenants" } else { "default_tenant" };
            (field, format!("there is no tenant {code}"))
        };
        let bad: Vec<BadField> = named.difference(&known).map(bad).collect();
        if bad.is_empty() { Ok(()) } else { Err(status::invalid(bad)) }
    }
}

/// A key that can be made.
struct Wish {
    id: Uuid,
    name: String,
    roles: BTreeSet<Role>,
    scope: Scope,
    default_tenant: Option<TenantCode>,
    expires_at: Option<OffsetDateTime>,
}

impl Wish {
    /// Checks every field. A request id becomes the key's id, so that the same request, repeated, cannot make a second
    /// key; its secret cannot be told twice.
    fn new(message: &CreateApiKeyRequest, now: OffsetDateTime) -> Result<Self, Status> {
        let mut bad: Vec<BadField> = Vec::new();
        let request_id = request_id(&message.request_id, &mut bad);
        let name = message.name.trim().to_owned();
        if name.is_empty() || name.chars().count() > NAME_CHARACTERS_MAX {
            bad.push(("name", format!("a key's name has 1 to {NAME_CHARACTERS_MAX} characters")));
        }
        let roles: BTreeSet<Role> = parsed("roles", &message.roles, &mut bad);
        if message.roles.is_empty() {
            bad.push(("roles", "at least one role is needed".to_owned()));
        }
        let tenants: BTreeSet<TenantCode> = parsed("tenants", &message.tenants, &mut bad);
        let default_tenant = match message.default_tenant.as_str() {
            "" => None,
            code => match code.parse::<TenantCode>() {
                Ok(code) if tenants.is_empty() || tenants.contains(&code) => Some(code),
                Ok(code) => {
                    bad.push(("default_tenant", format!("{code} is none of the key's tenants")));
                    None
                }
                Err(error) => {
                    bad.push(("default_tenant", error.to_string()));
                    None
                }
            },
        };
        let expires_at = message.expire_time.map(convert::moment);
        if expires_at.is_some_and(|expiry| expiry.is_none_or(|moment| moment <= now)) {
            bad.push(("expire_time", "it is in the past, or no time at all".to_owned()));
        }
        if !bad.is_empty() {
            return Err(status::invalid(bad));
        }
        Ok(Self {
            id: request_id.unwrap_or_else(Uuid::now_v7),
            name,
            roles,
            default_tenant,
            scope: if tenants.is_empty() { Scope::All } else { Scope::Tenants(tenants) },
            expires_at: expires_at.flatten(),
        })
    }
}

/// None when it is empty, or bad. Anybody may have sent the nil UUID, and forgotten to make one.
fn request_id(text: &str, bad: &mut Vec<BadField>) -> Option<Uuid> {
    if text.is_empty() {
        return None;
    }
    let problem = match text.parse::<Uuid>() {
        Ok(id) if !id.is_nil() => return Some(id),
        Ok(_nil) => "the nil UUID is no request's own",
        Err(_) => "it is no UUID",
    };
    bad.push(("request_id", format!("{text:?}: {problem}")));
    None
}

/// Every text that can be read; the others are bad.
fn parsed<T>(field: &'static str, texts: &[String], bad: &mut Vec<BadField>) -> BTreeSet<T>
where
    T: FromStr<Err: Display> + Ord,
{
    let mut values = BTreeSet::new();
    for text in texts {
        match text.parse::<T>() {
            Ok(value) => {
                values.insert(value);
            }
            Err(error) => bad.push((field, error.to_string())),
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt as _;

    #[test]
    fn every_bad_field_is_named_at_once() {
        let message = CreateApiKeyRequest {
            request_id: "x".to_owned(),
            name: " ".to_owned(),
            roles: vec!["king".to_owned(), "admin".to_owned()],
            tenants: vec!["Acme".to_owned()],
            expire_time: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            ..CreateApiKeyRequest::default()
        };
        let Err(status) = Wish::new(&message, OffsetDateTime::now_utc()) else { panic!("it was taken") };
        let details = status.get_error_details();
        let fields: Vec<_> =
            details.bad_request().unwrap().field_violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["request_id", "name", "roles", "tenants", "expire_time"]);
        assert_eq!(details.error_info().unwrap().reason, "INVALID_ARGUMENT");
    }

    #[test]
    fn a_request_id_is_any_uuid_but_nil() {
        let mut bad = Vec::new();
        let id = Uuid::new_v4();
        assert_eq!(request_id(&id.to_string(), &mut bad), Some(id));
        assert_eq!((request_id("", &mut bad), bad.len()), (None, 0));
        assert_eq!(request_id(&Uuid::nil().to_string(), &mut bad), None);
        assert_eq!(bad.iter().map(|(field, _)| *field).collect::<Vec<_>>(), ["request_id"]);
    }
}
