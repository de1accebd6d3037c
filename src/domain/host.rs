//! Host names: the one form that they are compared in, those that a tenant may have, and those that are the daemon's
//! own. A call to one of the daemon's own names means no tenant in particular, so no tenant may have it: whoever had it
//! would be meant by every call that leaves the tenant to its caller's key.

use std::collections::BTreeSet;

/// Why a tenant cannot have a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("{0:?} is no host name; it is written whole, as acme.example.com")]
    Form(String),
    #[error(
        "{0} is a name of the daemon's own (own_hosts in its configuration, or its certificate), by which the callers of every tenant call it"
    )]
    Own(String),
}

/// A host name in the one form that names are compared in: in lower case, international names as `xn--…`, without a
/// final dot.
pub fn host_name(text: &str) -> Result<String, HostError> {
    let bad = || HostError::Form(text.to_owned());
    let ascii = idna::domain_to_ascii(text.strip_suffix('.').unwrap_or(text)).map_err(|_| bad())?;
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if ascii.len() > 253 || !ascii.split('.').all(label) {
        return Err(bad());
    }
    Ok(ascii)
}

/// A host name that may be a tenant's, by its form: whole, and no address.
pub fn tenant_host(text: &str) -> Result<String, HostError> {
    let name = host_name(text.trim())?;
    if is_whole(&name) { Ok(name) } else { Err(HostError::Form(text.to_owned())) }
}

/// Whether a name has a domain, and is no address: names that end in a number are addresses, or nothing.
pub fn is_whole(name: &str) -> bool {
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    name.rsplit_once('.').is_some_and(|(_, last)| !is_number(last))
}

/// The daemon's own names, each in its one form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnHosts(BTreeSet<String>);

impl OwnHosts {
    /// `host` is in its one form.
    pub fn contains(&self, host: &str) -> bool {
        self.0.contains(host)
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The names of both.
    pub fn and(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).cloned().collect())
    }

    /// A host name that is to be given to a tenant, in its one form.
    pub fn tenant_host(&self, text: &str) -> Result<String, HostError> {
        let host = tenant_host(text)?;
        if self.contains(&host) { Err(HostError::Own(host)) } else { Ok(host) }
    }
}

impl FromIterator<String> for OwnHosts {
    fn from_iter<T: IntoIterator<Item = String>>(hosts: T) -> Self {
        Self(hosts.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_gets_whole_names_only() {
        assert_eq!(tenant_host(" Acme.example.com. ").as_deref(), Ok("acme.example.com"));
        for bad in ["acme", "127.0.0.1", "10.1", "acme.example.com:80", "acme.example.com/x", "::1"] {
            assert!(tenant_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_tenant_gets_a_name_of_the_daemons_however_it_is_written() {
        let own: OwnHosts = ["db.example.com".to_owned(), "xn--bs-via.example.com".to_owned()].into_iter().collect();
        for text in ["db.example.com", " DB.Example.com. ", "db。example.com", "bäs.example.com"] {
            assert!(matches!(own.tenant_host(text), Err(HostError::Own(_))), "{text}: {:?}", own.tenant_host(text));
        }
        for text in ["acme.example.com", "acme.db.example.com", "example.com"] {
            assert_eq!(own.tenant_host(text).as_deref(), Ok(text));
        }
        assert_eq!(own.tenant_host("localhost"), Err(HostError::Form("localhost".to_owned())));
    }
}
