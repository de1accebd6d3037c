//! TLS as the files say: the listener's chain and key, checked to belong together, and roots to check others against.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The listener's certificate chain and key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
    pub client_ca: Option<ClientCa>,
}

/// Whose certificates callers may show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCa {
    /// Roots, in PEM.
    pub file: PathBuf,
    /// Whether a connection without a certificate is refused.
    pub is_required: bool,
}

impl TlsFiles {
    /// What connections are accepted with, for HTTP/2. The error names the file and what is wrong with it.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = match &self.client_ca {
            None => config.with_no_client_auth(),
            Some(authority) => {
                let roots = Arc::new(roots_read(&authority.file)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = if authority.is_required { verifier } else { verifier.allow_unauthenticated() };
                let unusable = |error| format!("{}: {error}", authority.file.display());
                config.with_client_cert_verifier(verifier.build().map_err(unusable)?)
            }
        };
        let (chain, key) = (certificates_read(&self.certificate_file)?, key_read(&self.key_file)?);
        let mut config = config.with_single_cert(chain, key).map_err(|error| {
            format!("{} with the key {}: {error}", self.certificate_file.display(), self.key_file.display())
        })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// The DNS names in the listener's certificate, as they are written there. The error names the file.
    pub(super) fn dns_names(&self) -> Result<Vec<String>, String> {
        let fail = || format!("{}: the certificate's names cannot be read", self.certificate_file.display());
        let chain = certificates_read(&self.certificate_file)?;
        let leaf = chain.first().ok_or_else(fail)?;
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_damaged| fail())?;
        let names = certificate.subject_alternative_name().map_err(|_damaged| fail())?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let dns = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        Ok(dns.collect())
    }
}

/// The roots in `ca_file`, or the system's. The error says what to do, and names the file.
pub fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    if let Some(file) = ca_file {
        return roots_read(file).map_err(|problem| format!("ca_file {problem}"));
    }
    let mut roots = RootCertStore::empty();
    let (taken, _unusable) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if taken > 0 {
        Ok(roots)
    } else {
        Err("this machine has no root certificates; install ca-certificates, or name a ca_file".to_owned())
    }
}

/// The roots in a file. The error names the file.
fn roots_read(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates_read(file)? {
        roots.add(certificate).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(roots)
}

fn certificates_read(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let fail = |reason: &dyn std::fmt::Display| format!("{}: {reason}", file.display());
    let pem = fs::read(file).map_err(|error| fail(&error))?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|error| fail(&error))?;
    if found.is_empty() { Err(fail(&"there is no certificate in it")) } else { Ok(found) }
}

/// What is wrong with it does not quote it.
fn key_read(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_damaged| format!("{}: there is no private key in it that can be read", file.display()))
}

#[cfg(test)]
mod tests {
    use rcgen::generate_simple_self_signed;

    use super::*;

    #[test]
    fn what_is_wrong_with_the_files_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let (own, other) = (generate_simple_self_signed(["a".into()]), generate_simple_self_signed(["b".into()]));
        let (own, other) = (own.unwrap(), other.unwrap());
        let key = own.signing_key.serialize_pem();
        for (file, text) in [
            ("own.pem", own.cert.pem()),
            ("own.key", key.clone()),
            ("other.key", other.signing_key.serialize_pem()),
            ("empty", String::new()),
            ("cut.key", key[..key.len() / 2].to_owned()),
        ] {
            fs::write(at(file), text).unwrap();
        }
        let files = |certificate: &str, key: &str, client_ca: Option<&str>| TlsFiles {
            certificate_file: at(certificate),
            key_file: at(key),
            client_ca: client_ca.map(|file| ClientCa { file: at(file), is_required: false }),
        };
        assert_eq!(files("own.pem", "own.key", Some("own.pem")).server_config().unwrap().alpn_protocols, [b"h2"]);
        for (files, file, reason) in [
            (files("own.pem", "other.key", None), "other.key", "keys may not be consistent"),
            (files("empty", "own.key", None), "empty", "no certificate"),
            (files("own.pem", "empty", None), "empty", "no private key"),
            (files("own.pem", "cut.key", None), "cut.key", "no private key"),
            (files("own.pem", "own.key", Some("own.key")), "own.key", "no certificate"),
            (files("own.pem", "missing", None), "missing", "No such file"),
        ] {
            let error = files.server_config().unwrap_err();
            assert!(error.contains(file) && error.contains(reason), "{error}");
            assert!(!error.contains(key.lines().nth(1).unwrap()), "{error}");
        }
    }
}
