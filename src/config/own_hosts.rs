//! `own_hosts`: what the daemon is called, beside the names in its certificate. A wildcard in the certificate is no
//! name: tenants' own hosts may well lie below it.

use super::TlsFiles;
use crate::domain::host::{OwnHosts, host_name};

/// Begins a name that stands for others.
const WILDCARD: &str = "*.";

pub(super) fn read(setting: Option<&[String]>, tls: Option<&TlsFiles>, problems: &mut Vec<String>) -> OwnHosts {
    // A certificate that cannot be read is told of with the other settings of TLS.
    let certified = tls.and_then(|tls| tls.dns_names().ok()).unwrap_or_default();
    if setting.is_none()
        && let Some(wildcard) = certified.iter().find(|name| name.starts_with(WILDCARD))
    {
        problems.push(format!(
            "own_hosts: is missing; the certificate has {wildcard}, so only you know by which names below it the daemon itself is called, which no tenant may be given (own_hosts = [] for none)"
        ));
    }
    let named = setting.unwrap_or_default().iter().filter_map(|text| match host_name(text) {
        Ok(name) => Some(name),
        Err(error) => {
            problems.push(format!("own_hosts: {error}; names have neither a port nor a wildcard"));
            None
        }
    });
    let named: Vec<String> = named.collect();
    let exact = certified.iter().filter(|name| !name.starts_with(WILDCARD)).filter_map(|name| host_name(name).ok());
    named.into_iter().chain(exact).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Files with a certificate for these names.
    fn files(directory: &Path, names: &[&str]) -> TlsFiles {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let pair = rcgen::generate_simple_self_signed(names).unwrap();
        let certificate_file = directory.join("listener.pem");
        std::fs::write(&certificate_file, pair.cert.pem()).unwrap();
        TlsFiles { certificate_file, key_file: directory.join("listener.key"), client_ca: None }
    }

    fn found(setting: Option<&[&str]>, tls: Option<&TlsFiles>) -> (Vec<String>, Vec<String>) {
        let setting: Option<Vec<String>> = setting.map(|names| names.iter().map(|&name| name.to_owned()).collect());
        let mut problems = Vec::new();
        let own = read(setting.as_deref(), tls, &mut problems);
        (own.iter().map(str::to_owned).collect(), problems)
    }

    #[test]
    fn the_setting_and_the_certificate_name_the_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let tls = files(directory.path(), &["DB.example.com", "127.0.0.1", "db"]);
        let (own, problems) = found(Some(&["Bäs.example.com.", "tenantd.internal"]), Some(&tls));
        assert_eq!(
            (own.join(" ").as_str(), problems.len()),
            ("db db.example.com tenantd.internal xn--bs-via.example.com", 0)
        );
        assert_eq!(found(None, Some(&tls)), (vec!["db".to_owned(), "db.example.com".to_owned()], Vec::new()));
        assert_eq!(found(None, None), (Vec::new(), Vec::new()));
        for bad in ["db.example.com:7432", "*.example.com", "", "https://db.example.com"] {
            assert_eq!(found(Some(&[bad]), None).1.len(), 1, "{bad}");
        }
    }

    #[test]
    fn below_a_wildcard_only_the_setting_says_which_names_are_the_daemons() {
        let directory = tempfile::tempdir().unwrap();
        let tls = files(directory.path(), &["example.com", "*.example.com"]);
        let (_, problems) = found(None, Some(&tls));
        assert!(matches!(problems.as_slice(), [problem] if problem.starts_with("own_hosts: ")), "{problems:?}");
        let own = found(Some(&["db.example.com"]), Some(&tls));
        assert_eq!(own, (vec!["db.example.com".to_owned(), "example.com".to_owned()], Vec::new()));
        assert_eq!(found(Some(&[]), Some(&tls)), (vec!["example.com".to_owned()], Vec::new()));
    }
}
