//! `[access]`: whose tokens are taken, and whom a client's certificate names. API keys need no setting.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::duration::duration;
use super::tls::roots;
use crate::domain::permission::Role;
use crate::domain::tenant::TenantCode;

/// Who gets in beside the holders of API keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessConfig {
    pub issuers: Vec<IssuerConfig>,
    pub certificates: Vec<CertificateConfig>,
}

/// Whose tokens are taken, and what they may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerConfig {
    /// Part of its callers' names, as in `jwt:ci:deploy`.
    pub name: String,
    /// As the claim `iss` has it.
    pub issuer: String,
    /// A token must name one of them.
    pub audiences: BTreeSet<String>,
    pub algorithms: BTreeSet<SignatureAlgorithm>,
    pub keys: KeysFrom,
    /// How long a key that the issuer has taken back may go unnoticed.
    pub keys_age_max: Duration,
    pub subject: SubjectKind,
    pub roles_claim: String,
    pub tenants_claim: String,
    pub default_tenant_claim: String,
    /// The roles that the issuer may give; others in its tokens are passed over.
    pub roles: BTreeSet<Role>,
}

/// Where an issuer's public keys are, as a JSON Web Key Set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeysFrom {
    /// `ca_file` has the roots that its certificate is checked with; without one they are the system's.
    Url {
        url: String,
        ca_file: Option<PathBuf>,
    },
    File(PathBuf),
}

/// What a token's subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    /// A program: its claims alone say what it may do.
    #[default]
    Program,
    /// `sub` is the id of a user of the auth database.
    User,
    /// `sub` is an identity that an identity provider with this issuer has given to a user.
    Identity,
}

/// Signatures that anybody can check and only the issuer can make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum SignatureAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// Whom a client certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateConfig {
    /// A subject alternative name: a URI, or a DNS name.
    pub san: String,
    /// The caller's name.
    pub name: String,
    pub roles: BTreeSet<Role>,
    /// `None`: all.
    pub tenants: Option<BTreeSet<TenantCode>>,
    pub default_tenant: Option<TenantCode>,
}

/// As in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Section {
    jwt: Vec<Issuer>,
    certificates: Vec<Certificate>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the fields are the file's own names")]
struct Issuer {
    name: String,
    issuer: String,
    #[serde(default)]
    audiences: BTreeSet<String>,
    #[serde(default = "algorithms_default")]
    algorithms: BTreeSet<SignatureAlgorithm>,
    jwks_url: Option<String>,
    jwks_ca_file: Option<PathBuf>,
    jwks_file: Option<PathBuf>,
    #[serde(default = "keys_age_max_default", deserialize_with = "duration")]
    jwks_age_max: Duration,
    #[serde(default)]
    subject: SubjectKind,
    #[serde(default = "roles_claim_default")]
    roles_claim: String,
    #[serde(default = "tenants_claim_default")]
    tenants_claim: String,
    #[serde(default = "default_tenant_claim_default")]
    default_tenant_claim: String,
    #[serde(default = "roles_default")]
    roles: BTreeSet<Role>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Certificate {
    san: String,
    name: Option<String>,
    #[serde(default)]
    roles: BTreeSet<Role>,
    tenants: Option<BTreeSet<TenantCode>>,
    default_tenant: Option<TenantCode>,
}

fn algorithms_default() -> BTreeSet<SignatureAlgorithm> {
    [SignatureAlgorithm::RS256, SignatureAlgorithm::ES256, SignatureAlgorithm::EdDsa].into()
}
fn keys_age_max_default() -> Duration {
    Duration::from_mins(5)
}
fn roles_claim_default() -> String {
    "roles".to_owned()
}
fn tenants_claim_default() -> String {
    "tenants".to_owned()
}
fn default_tenant_claim_default() -> String {
    "default_tenant".to_owned()
}
/// All but the one that makes keys: who wants an issuer to make administrators has to say so.
fn roles_default() -> BTreeSet<Role> {
    Role::ALL.into_iter().filter(|role| *role != Role::Admin).collect()
}

impl Section {
    pub(super) fn into_config(self, base: &Path, problems: &mut Vec<String>) -> AccessConfig {
        let issuers = self.jwt.into_iter().filter_map(|issuer| issuer.into_config(base, problems)).collect();
        let certificate = |certificate: Certificate| CertificateConfig {
            name: certificate.name.unwrap_or_else(|| format!("certificate:{}", certificate.san)),
            san: certificate.san,
            roles: certificate.roles,
            tenants: certificate.tenants,
            default_tenant: certificate.default_tenant,
        };
        AccessConfig { issuers, certificates: self.certificates.into_iter().map(certificate).collect() }
    }
}

impl Issuer {
    fn into_config(self, base: &Path, problems: &mut Vec<String>) -> Option<IssuerConfig> {
        let keys = match (self.jwks_url, self.jwks_file, self.jwks_ca_file) {
            (Some(url), None, ca_file) => KeysFrom::Url { url, ca_file: ca_file.map(|file| base.join(file)) },
            (None, Some(file), None) => KeysFrom::File(base.join(file)),
            (None, Some(_), Some(_)) => {
                problems.push(format!("access.jwt.{}.jwks_ca_file: is for a jwks_url, and there is none", self.name));
                return None;
            }
            _ => {
                problems.push(format!("access.jwt.{}: either jwks_url or jwks_file is needed", self.name));
                return None;
            }
        };
        Some(IssuerConfig {
            name: self.name,
            issuer: self.issuer,
            audiences: self.audiences,
            algorithms: self.algorithms,
            keys,
            keys_age_max: self.jwks_age_max,
            subject: self.subject,
            roles_claim: self.roles_claim,
            tenants_claim: self.tenants_claim,
            default_tenant_claim: self.default_tenant_claim,
            roles: self.roles,
        })
    }
}

/// Every problem of the settings, beyond their types.
pub(super) fn check(access: &AccessConfig, has_client_ca: bool, problems: &mut Vec<String>) {
    let (mut names, mut issuers, mut sans) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for issuer in &access.issuers {
        let at = format!("access.jwt.{}", issuer.name);
        if issuer.name.is_empty() || !names.insert(&issuer.name) {
            problems.push(format!("{at}.name: is empty or there twice"));
        }
        if issuer.issuer.is_empty() || !issuers.insert(&issuer.issuer) {
            problems.push(format!("{at}.issuer: {:?} is empty or there twice", issuer.issuer));
        }
        if issuer.audiences.is_empty() || issuer.audiences.contains("") {
            problems.push(format!("{at}.audiences: at least one is needed, or tokens for others would be taken"));
        }
        if issuer.algorithms.is_empty() {
            problems.push(format!("{at}.algorithms: at least one is needed"));
        }
        if issuer.keys_age_max.is_zero() {
            problems.push(format!("{at}.jwks_age_max: may not be zero"));
        }
        match &issuer.keys {
            KeysFrom::Url { url, .. } if !is_private(url) => {
                problems.push(format!("{at}.jwks_url: {url:?} is no https address (http is for loopback only)"));
            }
            KeysFrom::Url { ca_file: Some(file), .. } => {
                if let Err(problem) = roots(Some(file)) {
                    problems.push(format!("{at}.jwks_{problem}"));
                }
            }
            KeysFrom::File(file) if !file.is_file() => {
                problems.push(format!("{at}.jwks_file: {} is no file", file.display()));
            }
            KeysFrom::Url { ca_file: None, .. } | KeysFrom::File(_) => {}
        }
    }
    for certificate in &access.certificates {
        let at = format!("access.certificates.{}", certificate.san);
        // A host's name is the same however it is written.
        let san = &certificate.san;
        let san = if san.contains(':') { san.clone() } else { san.to_ascii_lowercase() };
        if san.is_empty() || !sans.insert(san) {
            problems.push(format!("{at}: is empty or there twice"));
        }
        let reached = |tenant: &TenantCode| certificate.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant));
        if certificate.default_tenant.as_ref().is_some_and(|tenant| !reached(tenant)) {
            problems.push(format!("{at}.default_tenant: is none of its tenants"));
        }
    }
    if !access.certificates.is_empty() && !has_client_ca {
        problems.push("access.certificates: [tls] has no client_ca_file to check certificates with".to_owned());
    }
}

/// Whether nobody on the way can put other keys in the place of the issuer's.
fn is_private(url: &str) -> bool {
    let Ok(url) = url.parse::<http::Uri>() else { return false };
    let host = url.host().unwrap_or_default();
    let is_loopback = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match url.scheme_str() {
        Some("https") => !host.is_empty(),
        Some("http") => is_loopback,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_over_https_or_from_this_machine() {
        for good in
            ["https://login.example.com/keys", "http://127.0.0.1:80/k", "http://localhost/k", "http://[::1]:8080/k"]
        {
            assert!(is_private(good), "{good}");
        }
        for bad in ["http://login.example.com/keys", "ftp://127.0.0.1/k", "login.example.com", "", "http://10.0.0.1/k"]
        {
            assert!(!is_private(bad), "{bad}");
        }
    }

    #[test]
    fn no_algorithm_with_a_shared_secret_can_be_named() {
        for name in ["HS256", "HS384", "HS512", "none", "None", "ES512"] {
            assert!(serde_json::from_value::<SignatureAlgorithm>(name.into()).is_err(), "{name}");
        }
        assert_eq!(serde_json::from_value::<SignatureAlgorithm>("EdDSA".into()).unwrap(), SignatureAlgorithm::EdDsa);
    }

    #[test]
    fn every_problem_is_named() {
        let issuer = IssuerConfig {
            name: "login".to_owned(),
            issuer: "https://login.example.com".to_owned(),
            audiences: BTreeSet::new(),
            algorithms: BTreeSet::new(),
            keys: KeysFrom::Url { url: "http://login.example.com/keys".to_owned(), ca_file: None },
            keys_age_max: Duration::ZERO,
            subject: SubjectKind::Program,
            roles_claim: String::new(),
            tenants_claim: String::new(),
            default_tenant_claim: String::new(),
            roles: roles_default(),
        };
        let certificate = CertificateConfig {
            san: "spiffe://example.com/ci".to_owned(),
            name: "ci".to_owned(),
            roles: BTreeSet::new(),
            tenants: Some(BTreeSet::new()),
            default_tenant: Some("acme".parse().unwrap()),
        };
        let access = AccessConfig {
            issuers: vec![issuer.clone(), issuer],
            certificates: vec![certificate.clone(), certificate],
        };
        let mut problems = Vec::new();
        check(&access, false, &mut problems);
        for part in
            ["name:", "issuer:", "audiences:", "algorithms:", "jwks_age_max:", "jwks_url:", "twice", "client_ca_file"]
        {
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:#?}");
        }
        assert_eq!(problems.iter().filter(|problem| problem.contains("default_tenant")).count(), 2);
    }
}
