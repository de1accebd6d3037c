//! From what is known of a caller to what it may do, and until when that holds. Pure: `now` is a parameter.

use std::collections::{BTreeMap, BTreeSet};

use time::OffsetDateTime;
use uuid::Uuid;

use super::error::Error;
use crate::accounts::{ApiKey, Standing, Subject, UserStanding};
use crate::domain::permission::Role;
use crate::domain::principal::{Principal, Scope};
use crate::domain::tenant::{TenantCode, TenantId};

/// What a token says, its signature checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claims {
    /// As `jwt:ci:deploy`; a user is called by its own id.
    pub(super) name: String,
    pub(super) subject: Subject,
    pub(super) token: Option<Uuid>,
    pub(super) session: Option<String>,
    pub(super) expires_at: OffsetDateTime,
    /// Of those that the issuer may give.
    pub(super) roles: BTreeSet<Role>,
    /// `None`: the token does not say.
    pub(super) tenants: Option<Scope>,
    pub(super) default_tenant: Option<TenantCode>,
}

/// Everything that was read about a caller, so that what it may do can be worked out again at a later time.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Key(ApiKey),
    Token {
        claims: Claims,
        standing: Standing,
        codes: BTreeMap<TenantId, TenantCode>,
    },
    /// From the configuration.
    Certificate {
        principal: Principal,
        expires_at: OffsetDateTime,
    },
}

/// A principal, and until when it is right without asking again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) principal: Principal,
    pub(super) until: Option<OffsetDateTime>,
}

impl Source {
    pub(super) fn rights(&self, now: OffsetDateTime) -> Result<Rights, Error> {
        match self {
            Self::Key(key) => of_key(key, now),
            Self::Token { claims, standing, codes } => of_token(claims, standing, codes, now),
            Self::Certificate { principal, expires_at } => {
                if *expires_at <= now {
                    return Err(Error::refused("the certificate has expired"));
                }
                Ok(Rights { principal: principal.clone(), until: Some(*expires_at) })
            }
        }
    }
}

fn of_key(key: &ApiKey, now: OffsetDateTime) -> Result<Rights, Error> {
    if key.revoked_at.is_some() {
        return Err(Error::refused("the key was revoked"));
    }
    if key.expires_at.is_some_and(|at| at <= now) {
        return Err(Error::refused("the key has expired"));
    }
    let mut principal = Principal::new(format!("api-key:{}", key.name), key.roles.clone(), key.scope.clone());
    principal.default_tenant = key.default_tenant.clone().filter(|tenant| principal.reaches(tenant));
    Ok(Rights { principal, until: key.expires_at })
}

fn of_token(
    claims: &Claims,
    standing: &Standing,
    codes: &BTreeMap<TenantId, TenantCode>,
    now: OffsetDateTime,
) -> Result<Rights, Error> {
    if claims.expires_at <= now {
        return Err(Error::refused("the token has expired"));
    }
    if standing.is_token_revoked {
        return Err(Error::refused("the token was revoked"));
    }
    match (&claims.subject, &standing.user) {
        (Subject::Program, _) => {
            // A token that names no tenants reaches none.
            let scope = claims.tenants.clone().unwrap_or(Scope::Tenants(BTreeSet::new()));
            let mut principal = Principal::new(claims.name.clone(), claims.roles.clone(), scope);
            principal.default_tenant = claims.default_tenant.clone().filter(|tenant| principal.reaches(tenant));
            Ok(Rights { principal, until: Some(claims.expires_at) })
        }
        (_, None) => Err(Error::refused("the token's subject is no user")),
        (_, Some(user)) => of_user(claims, user, codes, now),
    }
}

/// A user reaches the tenants in which it has a role at this moment, and never more than its token names. Beside
/// [`Role::User`] it has the roles in its token.
fn of_user(
    claims: &Claims,
    user: &UserStanding,
    codes: &BTreeMap<TenantId, TenantCode>,
    now: OffsetDateTime,
) -> Result<Rights, Error> {
    if !user.is_active {
        return Err(Error::refused("the user is not active"));
    }
    let mut until = claims.expires_at;
    let mut chosen = None;
    if let Some(session) = &user.session {
        if session.is_ended || session.expires_at.is_some_and(|at| at <= now) {
            return Err(Error::refused("the session has ended"));
        }
        until = session.expires_at.map_or(until, |at| at.min(until));
        chosen = session.tenant.as_ref().and_then(|tenant| codes.get(tenant)).cloned();
    }
    let mut tenants = BTreeSet::new();
    for grant in user.grants.iter().filter(|grant| grant.expires_at.is_none_or(|at| at > now)) {
        let Some(code) = codes.get(&grant.tenant) else { continue };
        let is_named = match &claims.tenants {
            None | Some(Scope::All) => true,
            Some(Scope::Tenants(named)) => named.contains(code),
        };
        if is_named {
            tenants.insert(code.clone());
            until = grant.expires_at.map_or(until, |at| at.min(until));
        }
    }
    let only = if tenants.len() == 1 { tenants.first().cloned() } else { None };
    let mut roles = claims.roles.clone();
    roles.insert(Role::User);
    let mut principal = Principal::new(format!("user:{}", user.id), roles, Scope::Tenants(tenants));
    principal.user = Some(user.id);
    let wishes = [claims.default_tenant.clone(), chosen, only];
    principal.default_tenant = wishes.into_iter().flatten().find(|tenant| principal.reaches(tenant));
    Ok(Rights { principal, until: Some(until) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::accounts::{Grant, SessionStanding};

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
    const LATER: OffsetDateTime = NOW.saturating_add(time::Duration::HOUR);

    fn code(code: &str) -> TenantCode {
        code.parse().unwrap()
    }

    fn tenant(number: u128) -> TenantId {
        TenantId(Uuid::from_u128(number))
    }

    fn codes() -> BTreeMap<TenantId, TenantCode> {
        BTreeMap::from([(tenant(1), code("acme")), (tenant(2), code("bolt"))])
    }

    fn claims() -> Claims {
        Claims {
            name: "jwt:login:x".to_owned(),
            subject: Subject::User(Uuid::nil()),
            token: None,
            session: None,
            expires_at: LATER,
            roles: BTreeSet::new(),
            tenants: None,
            default_tenant: None,
        }
    }

    fn grant(number: u128, expires_at: Option<OffsetDateTime>) -> Grant {
        Grant { tenant: tenant(number), role: "USER".to_owned(), expires_at }
    }

    fn rights(claims: &Claims, user: UserStanding) -> Result<Rights, Error> {
        let standing = Standing { is_token_revoked: false, user: Some(user) };
        of_token(claims, &standing, &codes(), NOW)
    }

    fn user(grants: Vec<Grant>) -> UserStanding {
        UserStanding { id: Uuid::nil(), is_active: true, session: None, grants }
    }

    #[test]
    fn a_key_ends_at_its_time() {
        let key = |expires_at, revoked_at| ApiKey {
            id: Uuid::nil(),
            name: "ci".to_owned(),
            roles: [].into(),
            scope: Scope::All,
            default_tenant: Some(code("acme")),
            created_by: String::new(),
            created_at: NOW,
            expires_at,
            revoked_at,
            last_used_at: None,
        };
        let rights = of_key(&key(Some(NOW + Duration::from_secs(1)), None), NOW).unwrap();
        assert_eq!(rights.principal.default_tenant, Some(code("acme")));
        assert!(rights.until.is_some());
        assert!(of_key(&key(None, None), NOW).is_ok());
        assert!(of_key(&key(Some(NOW), None), NOW).is_err());
        assert!(of_key(&key(None, Some(NOW)), NOW).is_err());
    }

    #[test]
    fn a_program_has_what_its_token_names_and_nothing_else() {
        let standing = Standing { is_token_revoked: false, user: None };
        let program = Claims { subject: Subject::Program, ..claims() };
        let of = |claims: &Claims| of_token(claims, &standing, &BTreeMap::new(), NOW).unwrap().principal;
        assert_eq!(of(&program).scope, Scope::Tenants([].into()));
        assert!(of(&program).roles.is_empty());
        let wide = Claims { tenants: Some(Scope::All), default_tenant: Some(code("acme")), ..program.clone() };
        assert_eq!((of(&wide).scope, of(&wide).default_tenant), (Scope::All, Some(code("acme"))));
        let narrow = Claims { tenants: Some(Scope::Tenants([code("bolt")].into())), ..wide };
        assert_eq!(of(&narrow).default_tenant, None);
        let revoked = Standing { is_token_revoked: true, user: None };
        assert!(of_token(&program, &revoked, &BTreeMap::new(), NOW).is_err());
        assert!(of_token(&program, &standing, &BTreeMap::new(), LATER).is_err());
    }

    #[test]
    fn a_user_reaches_what_it_is_granted_while_that_lasts() {
        let soon = NOW + Duration::from_secs(9);
        let found = rights(&claims(), user(vec![grant(1, None), grant(2, Some(soon)), grant(3, None)])).unwrap();
        assert_eq!(found.principal.scope, Scope::Tenants([code("acme"), code("bolt")].into()));
        assert_eq!((found.until, found.principal.default_tenant), (Some(soon), None));
        assert_eq!(found.principal.roles, [Role::User].into());
        let found = rights(&claims(), user(vec![grant(1, None), grant(2, Some(NOW))])).unwrap();
        assert_eq!(found.principal.scope, Scope::Tenants([code("acme")].into()));
        assert_eq!(found.principal.default_tenant, Some(code("acme")));

        // A token may narrow what its user may reach, and never widens it.
        let narrow = Claims { tenants: Some(Scope::Tenants([code("bolt")].into())), ..claims() };
        let found = rights(&narrow, user(vec![grant(1, None)])).unwrap();
        assert_eq!(found.principal.scope, Scope::Tenants([].into()));
        let wide = Claims { tenants: Some(Scope::All), ..claims() };
        let found = rights(&wide, user(vec![grant(1, None)])).unwrap();
        assert_eq!(found.principal.scope, Scope::Tenants([code("acme")].into()));
    }

    #[test]
    fn a_user_who_is_not_active_and_a_session_that_has_ended_open_nothing() {
        let idle = UserStanding { is_active: false, ..user(vec![grant(1, None)]) };
        assert!(rights(&claims(), idle).is_err());
        let session = |is_ended, expires_at| {
            let session = SessionStanding { is_ended, expires_at, tenant: Some(tenant(2)) };
            UserStanding { session: Some(session), ..user(vec![grant(1, None), grant(2, None)]) }
        };
        assert!(rights(&claims(), session(true, None)).is_err());
        assert!(rights(&claims(), session(false, Some(NOW))).is_err());
        let found = rights(&claims(), session(false, None)).unwrap();
        assert_eq!(found.principal.default_tenant, Some(code("bolt")));
        let claimed = Claims { default_tenant: Some(code("acme")), ..claims() };
        assert_eq!(rights(&claimed, session(false, None)).unwrap().principal.default_tenant, Some(code("acme")));
    }
}
