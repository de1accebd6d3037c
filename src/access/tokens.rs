//! JSON Web Tokens to claims. Each issuer has its own algorithms, all of them asymmetric; the algorithm in a token's
//! header only selects among these. Nothing in a token is believed before its signature is checked, but for which
//! issuer's key to check it with.

use std::collections::{BTreeMap, BTreeSet};

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::error::Error;
use super::key_sets::KeySet;
use super::rights::Claims;
use crate::accounts::Subject;
use crate::config::{IssuerConfig, SignatureAlgorithm, SubjectKind};
use crate::domain::permission::Role;
use crate::domain::principal::Scope;
use crate::domain::tenant::TenantCode;

/// How far the issuer's clock and this one's may be apart.
const LEEWAY: Duration = Duration::seconds(30);
const SUBJECT_CHARACTERS_MAX: usize = 200;
/// In the claim of tenants: all of them.
const ALL_TENANTS: &str = "*";

/// Every issuer whose tokens are taken, by the claim `iss`.
#[derive(Debug)]
pub(super) struct Tokens(BTreeMap<String, Issuer>);

#[derive(Debug)]
struct Issuer {
    config: IssuerConfig,
    keys: KeySet,
}

impl Tokens {
    pub(super) fn new(issuers: &[IssuerConfig]) -> Result<Self, String> {
        let issuer = |config: &IssuerConfig| {
            let keys = KeySet::new(&config.name, &config.keys, config.keys_age_max)?;
            Ok((config.issuer.clone(), Issuer { config: config.clone(), keys }))
        };
        Ok(Self(issuers.iter().map(issuer).collect::<Result<_, String>>()?))
    }

    /// Checks a token by itself: signature, issuer, audience, times.
    pub(super) async fn verify(&self, token: &str, now: OffsetDateTime) -> Result<Claims, Error> {
        let header = decode_header(token).map_err(|_| Error::refused("the token's header cannot be read"))?;
        check_header(&header)?;
        let issuer = self.issuer(token)?;
        if !issuer.config.algorithms.iter().any(|allowed| algorithm(*allowed) == header.alg) {
            return Err(Error::refused("the token's algorithm is not allowed"));
        }
        let key = issuer.keys.key(header.kid.as_deref(), header.alg).await?;
        let claims = decode::<Map<String, Value>>(token, &key, &issuer.validation(header.alg));
        let claims = claims.map_err(|error| Error::refused(reason(error.kind())))?.claims;
        issuer.claims(&claims, now)
    }

    /// Whose token it says to be.
    fn issuer(&self, token: &str) -> Result<&Issuer, Error> {
        #[derive(Deserialize)]
        struct Unverified {
            iss: String,
        }
        let unverified: Unverified =
            insecure_decode_claims(token).map_err(|_| Error::refused("the token has no issuer"))?;
        self.0.get(&unverified.iss).ok_or(Error::refused("the token's issuer is not known"))
    }
}

fn check_header(header: &Header) -> Result<(), Error> {
    if header.crit.is_some() {
        return Err(Error::refused("the token's header asks for an extension"));
    }
    // Tokens for other purposes are signed with the same keys, as logout tokens are.
    let is_access = header
        .typ
        .as_deref()
        .is_none_or(|typ| ["jwt", "at+jwt", "application/at+jwt"].iter().any(|ours| typ.eq_ignore_ascii_case(ours)));
    if is_access { Ok(()) } else { Err(Error::refused("the token is for another purpose")) }
}

fn algorithm(algorithm: SignatureAlgorithm) -> Algorithm {
    match algorithm {
        SignatureAlgorithm::RS256 => Algorithm::RS256,
        SignatureAlgorithm::RS384 => Algorithm::RS384,
        SignatureAlgorithm::RS512 => Algorithm::RS512,
        SignatureAlgorithm::PS256 => Algorithm::PS256,
        SignatureAlgorithm::PS384 => Algorithm::PS384,
        SignatureAlgorithm::PS512 => Algorithm::PS512,
        SignatureAlgorithm::ES256 => Algorithm::ES256,
        SignatureAlgorithm::ES384 => Algorithm::ES384,
        SignatureAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}

fn reason(kind: &jsonwebtoken::errors::ErrorKind) -> &'static str {
    use jsonwebtoken::errors::ErrorKind as K;
    match kind {
        K::InvalidSignature => "the token's signature is wrong",
        K::ExpiredSignature => "the token has expired",
        K::ImmatureSignature => "the token is not valid yet",
        K::InvalidIssuer => "the token's issuer is not known",
        K::InvalidAudience => "the token is for another audience",
        K::MissingRequiredClaim(_) => "the token lacks a claim",
        _ => "the token cannot be read",
    }
}

impl Issuer {
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY.unsigned_abs().as_secs();
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&self.config.issuer]);
        validation.aud = Some(self.config.audiences.iter().cloned().collect());
        validation
    }

    /// What the claims mean here. Roles and tenants that are none of ours are passed over: tokens are made for other
    /// programs too.
    fn claims(&self, claims: &Map<String, Value>, now: OffsetDateTime) -> Result<Claims, Error> {
        let config = &self.config;
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        let is_name = !subject.is_empty()
            && subject.chars().count() <= SUBJECT_CHARACTERS_MAX
            && !subject.chars().any(char::is_control);
        if !is_name {
            return Err(Error::refused("the token's subject is no name"));
        }
        let expires_at = moment(claims, "exp")?.ok_or(Error::refused("the token does not expire"))?;
        if moment(claims, "iat")?.is_some_and(|at| at > now.saturating_add(LEEWAY) || at > expires_at) {
            return Err(Error::refused("the token is from the future"));
        }
        let default_tenant = claims.get(&config.default_tenant_claim).and_then(Value::as_str);
        Ok(Claims {
            name: format!("jwt:{}:{subject}", config.name),
            subject: self.subject(subject)?,
            token: text(claims, "jti").and_then(|id| id.parse::<Uuid>().ok()),
            session: text(claims, "sid").map(str::to_owned),
            // Whoever is good until the end of time is good until then.
            expires_at: expires_at.saturating_add(LEEWAY),
            roles: roles(claims.get(&config.roles_claim), &config.roles),
            tenants: claims.get(&config.tenants_claim).map(tenants),
            default_tenant: default_tenant.and_then(|code| code.parse().ok()),
        })
    }

    fn subject(&self, subject: &str) -> Result<Subject, Error> {
        Ok(match self.config.subject {
            SubjectKind::Program => Subject::Program,
            SubjectKind::User => {
                Subject::User(subject.parse().map_err(|_| Error::refused("the token's subject is no user"))?)
            }
            SubjectKind::Identity => {
                Subject::Identity { issuer: self.config.issuer.clone(), subject: subject.to_owned() }
            }
        })
    }
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    claims.get(name).and_then(Value::as_str)
}

/// Seconds since 1970, whole or not.
fn moment(claims: &Map<String, Value>, name: &str) -> Result<Option<OffsetDateTime>, Error> {
    let bad = || Error::refused("a time in the token is none");
    let Some(value) = claims.get(name) else { return Ok(None) };
    #[expect(clippy::cast_possible_truncation, reason = "it saturates, and what is out of range is refused below")]
    let seconds = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds.floor() as i64)).ok_or_else(bad)?;
    OffsetDateTime::from_unix_timestamp(seconds).map(Some).map_err(|_| bad())
}

/// One text, several parted by blanks, or a list.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => text.split_whitespace().collect(),
        Value::Array(values) => values.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn roles(claim: Option<&Value>, allowed: &BTreeSet<Role>) -> BTreeSet<Role> {
    let named = claim.map(texts).unwrap_or_default();
    named.into_iter().filter_map(|name| name.parse().ok()).filter(|role| allowed.contains(role)).collect()
}

fn tenants(claim: &Value) -> Scope {
    let named = texts(claim);
    if named.contains(&ALL_TENANTS) {
        return Scope::All;
    }
    Scope::Tenants(named.into_iter().filter_map(|code| code.parse::<TenantCode>().ok()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn roles_and_tenants_are_read_in_every_form() {
        let allowed = [Role::Viewer, Role::Migrator].into();
        for claim in [json!("viewer migrator admin king"), json!(["viewer", "migrator", "admin", "king", 7])] {
            assert_eq!(roles(Some(&claim), &allowed), allowed, "{claim}");
        }
        assert!(roles(None, &allowed).is_empty());
        assert!(roles(Some(&json!({ "viewer": true })), &allowed).is_empty());
        let scope = Scope::Tenants(["acme".parse().unwrap(), "bolt".parse().unwrap()].into());
        assert_eq!(tenants(&json!(["acme", "bolt", "Not a code"])), scope);
        assert_eq!(tenants(&json!("*")), Scope::All);
        assert_eq!(tenants(&json!([])), Scope::Tenants([].into()));
        assert_eq!(tenants(&json!(true)), Scope::Tenants([].into()));
    }

    #[test]
    fn times_are_numbers_that_lie_in_time() {
        let claims = |value: Value| json!({ "exp": value }).as_object().cloned().unwrap();
        let at = |value| moment(&claims(value), "exp");
        assert_eq!(at(json!(1.9)).unwrap().unwrap().unix_timestamp(), 1);
        assert!(moment(&Map::new(), "exp").unwrap().is_none());
        for bad in [json!("1"), json!(null), json!(1e300), json!([1])] {
            assert!(at(bad.clone()).is_err(), "{bad}");
        }
    }
}
