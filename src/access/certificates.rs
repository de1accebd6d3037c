//! Client certificates to principals. That the certificate is one of the right authority's, in its time, and the
//! client's own, was proven when the connection was made; here its names are looked up in the configuration.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::error::Error;
use super::rights::Source;
use crate::config::CertificateConfig;
use crate::domain::principal::{Principal, Scope};

/// A name in a certificate. A host's is the same however it is written; a URI's is not, and neither is the other.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum San {
    Dns(String),
    Uri(String),
}

impl San {
    /// As the configuration has it: what has a scheme is a URI.
    fn written(text: &str) -> Self {
        if text.contains(':') { Self::Uri(text.to_owned()) } else { Self::Dns(text.to_ascii_lowercase()) }
    }

    fn of(name: &GeneralName<'_>) -> Option<Self> {
        match name {
            GeneralName::DNSName(name) => Some(Self::Dns(name.to_ascii_lowercase())),
            GeneralName::URI(uri) => Some(Self::Uri((*uri).to_owned())),
            _ => None,
        }
    }
}

/// The principals by the names in their certificates.
#[derive(Debug)]
pub(super) struct Certificates(BTreeMap<San, Principal>);

impl Certificates {
    pub(super) fn new(certificates: &[CertificateConfig]) -> Self {
        let principal = |config: &CertificateConfig| {
            let scope = config.tenants.clone().map_or(Scope::All, Scope::Tenants);
            let mut principal = Principal::new(config.name.clone(), config.roles.clone(), scope);
            principal.default_tenant.clone_from(&config.default_tenant);
            (San::written(&config.san), principal)
        };
        Self(certificates.iter().map(principal).collect())
    }

    /// Whom the certificate names, if it is anybody. One that names several different callers names nobody.
    pub(super) fn source(&self, der: &[u8]) -> Result<Option<Source>, Error> {
        let unreadable = || Error::refused("the certificate cannot be read");
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| unreadable())?;
        let names = certificate.subject_alternative_name().map_err(|_| unreadable())?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let mut found: Option<&Principal> = None;
        for principal in names.iter().filter_map(|name| self.0.get(&San::of(name)?)) {
            if found.is_some_and(|other| other != principal) {
                return Err(Error::refused("the certificate names several callers"));
            }
            found = Some(principal);
        }
        let expires_at = OffsetDateTime::from_unix_timestamp(certificate.validity().not_after.timestamp());
        let expires_at = expires_at.map_err(|_| unreadable())?;
        Ok(found.map(|principal| Source::Certificate { principal: principal.clone(), expires_at }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;
    use crate::domain::permission::Role;

    fn certificates() -> Certificates {
        let config = |san: &str, name: &str| CertificateConfig {
            san: san.to_owned(),
            name: name.to_owned(),
            roles: [Role::Viewer].into(),
            tenants: None,
            default_tenant: None,
        };
        Certificates::new(&[
            config("spiffe://example.com/ci", "ci"),
            config("ci.example.com", "ci"),
            config("shop.example.com", "shop"),
            config("Ops.Example.com", "ops"),
        ])
    }

    fn der(names: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        for name in names {
            params.subject_alt_names.push(if name.contains("://") {
                SanType::URI((*name).try_into().unwrap())
            } else {
                SanType::DnsName((*name).try_into().unwrap())
            });
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_name_in_the_table_is_a_caller() {
        let certificates = certificates();
        let name = |names: &[&str]| {
            let source = certificates.source(&der(names)).unwrap()?;
            Some(source.rights(OffsetDateTime::now_utc()).unwrap().principal.name)
        };
        assert_eq!(name(&["spiffe://example.com/ci"]).as_deref(), Some("ci"));
        assert_eq!(name(&["else.example.com", "ci.example.com", "spiffe://example.com/ci"]).as_deref(), Some("ci"));
        for written in ["ops.example.com", "OPS.example.COM", "Ops.Example.com"] {
            assert_eq!(name(&[written]).as_deref(), Some("ops"), "{written}");
        }
        assert_eq!(name(&["spiffe://example.com/c"]), None);
        assert_eq!(name(&["spiffe://example.com/CI"]), None);
        assert_eq!(name(&[]), None);
        assert!(certificates.source(&der(&["ci.example.com", "shop.example.com"])).is_err());
        assert!(certificates.source(b"no certificate").is_err());
    }

    #[test]
    fn a_host_is_no_uri_though_it_reads_like_one() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names.push(SanType::DnsName("spiffe://example.com/ci".try_into().unwrap()));
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        assert!(certificates().source(&der).unwrap().is_none());
    }

    #[test]
    fn a_certificate_ends_at_its_time_on_a_connection_that_goes_on() {
        let source = certificates().source(&der(&["ci.example.com"])).unwrap().unwrap();
        let ends = source.rights(OffsetDateTime::now_utc()).unwrap().until.unwrap();
        assert!(source.rights(ends - Duration::from_secs(1)).is_ok());
        assert!(source.rights(ends).is_err());
    }
}
