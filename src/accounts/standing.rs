//! What the auth database says of the subject of a token: whether the token was taken back, who the user is, whether
//! the session goes on, and the user's roles in tenants. Judges nothing: rows come out as they are, expired ones too.

use sea_query::{Alias, Expr, ExprTrait as _, JoinType, Query, SelectStatement};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Accounts;
use super::errors::{Error, sound};
use crate::domain::tenant::TenantId;
use crate::postgres::read::Reader;
use crate::postgres::statement::{self, Run};

/// Whom to look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Nobody in the auth database.
    Program,
    User(Uuid),
    Identity {
        issuer: String,
        subject: String,
    },
}

/// One token's standing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub is_token_revoked: bool,
    /// `None` when the subject is nobody, or nobody that is known.
    pub user: Option<UserStanding>,
}

/// A user, and what it may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserStanding {
    pub id: Uuid,
    pub is_active: bool,
    /// Of the session that the token names; `None` when it names none that has to be looked at.
    pub session: Option<SessionStanding>,
    /// One for each tenant.
    pub grants: Vec<Grant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStanding {
    /// Revoked, or nobody's.
    pub is_ended: bool,
    pub expires_at: Option<OffsetDateTime>,
    /// The tenant that the person has chosen.
    pub tenant: Option<TenantId>,
}

/// A role of a user in a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub tenant: TenantId,
    /// As `OWNER`: one of the application's roles.
    pub role: String,
    pub expires_at: Option<OffsetDateTime>,
}

/// The user behind a subject.
struct Found {
    id: Uuid,
    is_active: bool,
    /// The identities with this subject; none for a user who is named directly.
    identities: Vec<Uuid>,
    /// The tenants that its providers may speak for; `None`: any.
    tenants: Option<Vec<Uuid>>,
}

impl Accounts {
    /// Looks a token up. `session` is the claim `sid`.
    pub async fn standing(
        &self,
        token: Option<Uuid>,
        subject: &Subject,
        session: Option<&str>,
    ) -> Result<Standing, Error> {
        let on = self.session().await?;
        let is_token_revoked = match token {
            None => false,
            Some(jti) => {
                let select =
                    Query::select().column("jti").from("revoked_tokens").and_where(Expr::col("jti").eq(jti)).take();
                statement::row(&on, &select).await?.is_some()
            }
        };
        let found = match subject {
            Subject::Program => None,
            Subject::User(id) => user(&on, *id).await?,
            Subject::Identity { issuer, subject } => identity(&on, issuer, subject).await?,
        };
        let user = match found {
            None => None,
            Some(found) => Some(UserStanding {
                id: found.id,
                is_active: found.is_active,
                session: match session {
                    None => None,
                    Some(sid) if found.identities.is_empty() => Some(session_of(&on, found.id, sid).await?),
                    Some(sid) => session_of_provider(&on, &found.identities, sid).await?,
                },
                grants: grants(&on, &found).await?,
            }),
        };
        Ok(Standing { is_token_revoked, user })
    }
}

async fn user(on: &impl Run, id: Uuid) -> Result<Option<Found>, Error> {
    let select = Query::select().columns(["id", "is_active"]).from("users").and_where(Expr::col("id").eq(id)).take();
    let Some(row) = statement::row(on, &select).await? else { return Ok(None) };
    let reader = Reader::new("users", &row);
    let is_active = reader.get("is_active")?;
    Ok(Some(Found { id, is_active, identities: Vec::new(), tenants: None }))
}

/// Several providers may have the issuer, as one for each tenant. A subject that they give to different users is
/// nobody's.
async fn identity(on: &impl Run, issuer: &str, subject: &str) -> Result<Option<Found>, Error> {
    let column = |table: &'static str, name: &'static str| Expr::col((Alias::new(table), Alias::new(name)));
    let select = Query::select()
        .expr_as(column("users", "id"), "user_id")
        .expr_as(column("users", "is_active"), "is_active")
        .expr_as(column("user_identities", "id"), "identity_id")
        .expr_as(column("identity_providers", "tenant_id"), "tenant_id")
        .from("user_identities")
        .join(
            JoinType::InnerJoin,
            "identity_providers",
            column("identity_providers", "id").eq(column("user_identities", "provider_id")),
        )
        .join(JoinType::InnerJoin, "users", column("users", "id").eq(column("user_identities", "user_id")))
        .and_where(column("identity_providers", "issuer").eq(issuer))
        .and_where(column("identity_providers", "is_active"))
        .and_where(column("user_identities", "subject").eq(subject))
        .take();
    let mut found: Option<Found> = None;
    for row in &statement::rows(on, &select).await? {
        let reader = Reader { table: "user_identities", key: "identity_id", row };
        let (id, identity, tenant): (Uuid, Uuid, Option<Uuid>) =
            (reader.get("user_id")?, reader.get("identity_id")?, reader.get("tenant_id")?);
        let known = found.get_or_insert(Found {
            id,
            is_active: reader.get("is_active")?,
            identities: Vec::new(),
            tenants: Some(Vec::new()),
        });
        if known.id != id {
            return Ok(None);
        }
        known.identities.push(identity);
        match (tenant, &mut known.tenants) {
            (Some(tenant), Some(tenants)) => tenants.push(tenant),
            _ => known.tenants = None,
        }
    }
    Ok(found)
}

/// The daemon's own kind of session. One that is not there, or another's, has ended.
async fn session_of(on: &impl Run, user: Uuid, sid: &str) -> Result<SessionStanding, Error> {
    let ended = SessionStanding { is_ended: true, expires_at: None, tenant: None };
    let Ok(id) = sid.parse::<Uuid>() else { return Ok(ended) };
    let select = session_select().and_where(Expr::col("id").eq(id)).and_where(Expr::col("user_id").eq(user)).take();
    let Some(row) = statement::row(on, &select).await? else { return Ok(ended) };
    let reader = Reader::new("sessions", &row);
    Ok(SessionStanding {
        is_ended: reader.moment_option("revoked_at")?.is_some(),
        expires_at: reader.expiry("expires_at")?,
        tenant: reader.get::<Option<Uuid>>("tenant_id")?.map(TenantId),
    })
}

fn session_select() -> SelectStatement {
    Query::select().columns(["id", "revoked_at", "expires_at", "tenant_id"]).from("sessions").take()
}

/// A provider's session, which the auth database need not know: then only the token's expiry counts.
async fn session_of_provider(on: &impl Run, identities: &[Uuid], sid: &str) -> Result<Option<SessionStanding>, Error> {
    let select = Query::select()
        .columns(["id", "session_id", "revoked_at", "expires_at"])
        .from("sso_sessions")
        .and_where(Expr::col("identity_id").is_in(identities.iter().copied()))
        .and_where(Expr::col("provider_session").eq(sid))
        .take();
    let mut standing: Option<SessionStanding> = None;
    for row in &statement::rows(on, &select).await? {
        let reader = Reader::new("sso_sessions", row);
        let known = standing.get_or_insert(SessionStanding { is_ended: false, expires_at: None, tenant: None });
        known.is_ended |= reader.moment_option("revoked_at")?.is_some();
        known.expires_at = earlier(known.expires_at, reader.expiry("expires_at")?);
        let Some(id) = reader.get::<Option<Uuid>>("session_id")? else { continue };
        let select = session_select().and_where(Expr::col("id").eq(id)).take();
        if let Some(row) = statement::row(on, &select).await? {
            let reader = Reader::new("sessions", &row);
            known.is_ended |= reader.moment_option("revoked_at")?.is_some();
            known.expires_at = earlier(known.expires_at, reader.expiry("expires_at")?);
            known.tenant = reader.get::<Option<Uuid>>("tenant_id")?.map(TenantId);
        }
    }
    Ok(standing)
}

fn earlier(one: Option<OffsetDateTime>, other: Option<OffsetDateTime>) -> Option<OffsetDateTime> {
    one.into_iter().chain(other).min()
}

async fn grants(on: &impl Run, found: &Found) -> Result<Vec<Grant>, Error> {
    let column = |table: &'static str, name: &'static str| Expr::col((Alias::new(table), Alias::new(name)));
    let select = Query::select()
        .expr_as(column("user_tenant_roles", "id"), "id")
        .expr_as(column("user_tenant_roles", "tenant_id"), "tenant_id")
        .expr_as(column("user_tenant_roles", "expires_at"), "expires_at")
        .expr_as(column("roles", "name"), "role")
        .from("user_tenant_roles")
        .join(JoinType::InnerJoin, "roles", column("roles", "id").eq(column("user_tenant_roles", "role_id")))
        .and_where(column("user_tenant_roles", "user_id").eq(found.id))
        .and_where(column("user_tenant_roles", "is_active"))
        .and_where_option(
            found.tenants.as_ref().map(|tenants| column("user_tenant_roles", "tenant_id").is_in(tenants.clone())),
        )
        .take();
    let rows = statement::rows(on, &select).await?;
    let grant = |row| {
        let reader = Reader::new("user_tenant_roles", row);
        Ok(Grant {
            tenant: TenantId(reader.get("tenant_id")?),
            role: reader.get("role")?,
            expires_at: reader.expiry("expires_at")?,
        })
    };
    Ok(sound(rows.iter().map(grant)))
}
