//! Where a client finds the daemon, and what it shows there, a key, a certificate or both: flags first, then the first
//! client file that there is. What a file has to show is only ever shown to the endpoint that the same file names.

use std::fs;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::files::{check_private, read_private};

/// Looked for in this order when no file is named.
const FILE_HERE: &str = ".tenantd/client.toml";
const FILE_HOME: &str = ".config/tenantd/client.toml";

/// What the command line said; everything is optional.
#[derive(Debug, Clone, Default)]
pub struct ClientFlags {
    pub endpoint: Option<String>,
    pub key_file: Option<PathBuf>,
    /// The client file, instead of the usual places.
    pub file: Option<PathBuf>,
}

/// What a client needs.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// As `http://127.0.0.1:7432`.
    pub endpoint: String,
    /// There is a certificate when there is none.
    pub key: Option<SecretString>,
    /// Roots to trust instead of the system's, in PEM.
    pub ca_file: Option<PathBuf>,
    pub certificate: Option<ClientCertificate>,
}

/// The client's own certificate with what it was signed by, and its key, which only its owner may read. In PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

/// Why there is no usable pair of endpoint and key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no daemon is named: there is neither {} nor {}. Run \"tenantd dev\" in this directory, or name a daemon with --endpoint and --key-file, or write such a file (endpoint = \"https://…\", key_file = \"…\")",
        .0.display(),
        .1.display()
    )]
    Nowhere(PathBuf, PathBuf),
    #[error("the client file {path} is not usable: {problem}")]
    File { path: PathBuf, problem: String },
    #[error("the key file {path} is not usable: {problem}")]
    KeyFile { path: PathBuf, problem: String },
    #[error("--endpoint {endpoint} needs --key-file too: the key in {file} belongs to {file_endpoint}")]
    ForeignKey { endpoint: String, file: PathBuf, file_endpoint: String },
    #[error("--endpoint {endpoint} needs --key-file too: no client file has a key for it")]
    KeyMissing { endpoint: String },
    #[error(
        "the endpoint {endpoint} is not usable: it must be https://HOST:PORT, or http:// towards this machine itself (the key would travel in clear)"
    )]
    Endpoint { endpoint: String },
}

/// A client file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    endpoint: String,
    key: Option<SecretString>,
    /// Relative to this file.
    key_file: Option<PathBuf>,
    /// Relative to this file.
    ca_file: Option<PathBuf>,
    /// Both or neither; relative to this file.
    client_certificate_file: Option<PathBuf>,
    client_key_file: Option<PathBuf>,
}

impl ClientConfig {
    /// The flags, completed by the client file.
    pub fn find(flags: &ClientFlags) -> Result<Self, Error> {
        let key = flags.key_file.as_deref().map(key_read).transpose()?;
        let file = match (&flags.endpoint, &key) {
            (Some(_), Some(_)) if flags.file.is_none() => None,
            _ => file_find(flags)?,
        };
        let config = match (flags.endpoint.clone(), key, file) {
            (Some(endpoint), Some(key), None) => Self { endpoint, key: Some(key), ca_file: None, certificate: None },
            (Some(endpoint), Some(key), Some((path, file))) if endpoint != file.endpoint => {
                Self { endpoint, key: Some(key), ca_file: beside(&path, file.ca_file), certificate: None }
            }
            (Some(endpoint), None, None) => return Err(Error::KeyMissing { endpoint }),
            (Some(endpoint), None, Some((path, file))) if endpoint != file.endpoint => {
                return Err(Error::ForeignKey { endpoint, file: path, file_endpoint: file.endpoint });
            }
            (None, key, None) => {
                drop(key);
                return Err(nowhere());
            }
            (_, key, Some((path, file))) => file.into_config(&path, key)?,
        };
        if is_safe(&config.endpoint) { Ok(config) } else { Err(Error::Endpoint { endpoint: config.endpoint }) }
    }

    /// As a client file has it. It has the key in it: write it with [`super::write_private`].
    pub fn to_toml(&self) -> String {
        let certificate = self.certificate.as_ref();
        let files = [
            ("ca_file", self.ca_file.as_ref()),
            ("client_certificate_file", certificate.map(|certificate| &certificate.certificate_file)),
            ("client_key_file", certificate.map(|certificate| &certificate.key_file)),
        ];
        let mut text = format!("endpoint = {:?}\n", self.endpoint);
        text.extend(self.key.iter().map(|key| format!("key = {:?}\n", key.expose_secret())));
        let files = files.into_iter().filter_map(|(name, file)| Some((name, file?.display().to_string())));
        text.extend(files.map(|(name, file)| format!("{name} = {file:?}\n")));
        text
    }
}

impl Written {
    /// `key` is one that counts more than the file's.
    fn into_config(self, path: &Path, key: Option<SecretString>) -> Result<ClientConfig, Error> {
        let problem = |problem: &str| Error::File { path: path.to_owned(), problem: problem.to_owned() };
        let certificate = match (beside(path, self.client_certificate_file), beside(path, self.client_key_file)) {
            (Some(certificate_file), Some(key_file)) => Some(ClientCertificate { certificate_file, key_file }),
            (None, None) => None,
            (Some(_), None) => return Err(problem("it has client_certificate_file without client_key_file; add it")),
            (None, Some(_)) => return Err(problem("it has client_key_file without client_certificate_file; add it")),
        };
        if let Some(certificate) = &certificate {
            private(&certificate.key_file)?;
            if !self.endpoint.starts_with("https:") {
                return Err(problem(
                    "it has client_certificate_file, and its endpoint is not https: nothing would be shown there",
                ));
            }
        }
        let key = match (key, self.key, beside(path, self.key_file)) {
            (Some(key), ..) | (None, Some(key), None) => Some(key),
            (None, None, Some(key_file)) => Some(key_read(&key_file)?),
            (None, Some(_), Some(_)) => return Err(problem("it has both key and key_file; keep one")),
            (None, None, None) if certificate.is_some() => None,
            (None, None, None) => {
                return Err(problem(
                    "it has nothing to show: no key, no key_file, no client_certificate_file; add one",
                ));
            }
        };
        Ok(ClientConfig { endpoint: self.endpoint, key, ca_file: beside(path, self.ca_file), certificate })
    }
}

/// The file that was named, or else the first of the usual ones.
fn file_find(flags: &ClientFlags) -> Result<Option<(PathBuf, Written)>, Error> {
    let path = match &flags.file {
        Some(path) => Some(path.clone()),
        None => usual_places().into_iter().find(|path| path.is_file()),
    };
    let Some(path) = path else { return Ok(None) };
    let file = read_private(&path).map_err(|problem| Error::File { path: path.clone(), problem })?;
    Ok(Some((path, file)))
}

fn usual_places() -> [PathBuf; 2] {
    let home = std::env::home_dir().unwrap_or_else(|| PathBuf::from("~"));
    [PathBuf::from(FILE_HERE), home.join(FILE_HOME)]
}

fn nowhere() -> Error {
    let [here, home] = usual_places();
    Error::Nowhere(here, home)
}

fn beside(path: &Path, file: Option<PathBuf>) -> Option<PathBuf> {
    file.map(|file| path.parent().unwrap_or(Path::new(".")).join(file))
}

/// Refuses a key's file that others can read.
fn private(path: &Path) -> Result<(), Error> {
    check_private(path).map_err(|problem| Error::KeyFile { path: path.to_owned(), problem })
}

/// A file with nothing but a key in it, which only its owner may read.
fn key_read(path: &Path) -> Result<SecretString, Error> {
    let fail = |problem: String| Error::KeyFile { path: path.to_owned(), problem };
    private(path)?;
    let text = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let key = text.trim();
    if key.is_empty() || key.contains(char::is_whitespace) {
        return Err(fail("it must have one key in it and nothing else".to_owned()));
    }
    Ok(SecretString::from(key))
}

/// A key goes over the network encrypted, or does not leave the machine.
fn is_safe(endpoint: &str) -> bool {
    let Ok(uri) = endpoint.parse::<http::Uri>() else { return false };
    let Some(host) = uri.host() else { return false };
    let host = host.trim_matches(['[', ']']);
    let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match uri.scheme_str() {
        Some("https") => true,
        Some("http") => local,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::write_private;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client.toml");
        write_private(&path, text).unwrap();
        (directory, path)
    }

    fn flags(endpoint: Option<&str>, file: &Path) -> ClientFlags {
        ClientFlags { endpoint: endpoint.map(str::to_owned), key_file: None, file: Some(file.to_owned()) }
    }

    #[test]
    fn a_file_that_was_written_reads_back() {
        let (directory, path) = file("");
        let key_file = directory.path().join("laptop.key");
        write_private(&key_file, "PEM").unwrap();
        let certificate = ClientCertificate { certificate_file: directory.path().join("laptop.pem"), key_file };
        for key in [Some("tnd_x"), None] {
            let config = ClientConfig {
                endpoint: "https://db.example.com:7432".to_owned(),
                key: key.map(SecretString::from),
                ca_file: Some(directory.path().join("ca.pem")),
                certificate: Some(certificate.clone()),
            };
            fs::write(&path, config.to_toml()).unwrap();
            let found = ClientConfig::find(&flags(None, &path)).unwrap();
            assert_eq!((&found.endpoint, &found.ca_file), (&config.endpoint, &config.ca_file));
            assert_eq!(found.certificate.as_ref(), Some(&certificate));
            assert_eq!(found.key.as_ref().map(SecretString::expose_secret), key);
        }
    }

    const WITH_CERTIFICATE: &str = "endpoint = \"https://db.example.com:7432\"
        client_certificate_file = \"tls/laptop.pem\"
        client_key_file = \"tls/laptop.key\"
    ";

    /// A directory with a client file that has a certificate, and its key.
    fn certified(text: &str) -> (tempfile::TempDir, PathBuf) {
        let (directory, path) = file(text);
        fs::create_dir(directory.path().join("tls")).unwrap();
        write_private(&directory.path().join("tls/laptop.key"), "PEM").unwrap();
        (directory, path)
    }

    #[test]
    fn a_certificate_lies_beside_its_file_and_needs_no_key() {
        let (directory, path) = certified(WITH_CERTIFICATE);
        let found = ClientConfig::find(&flags(None, &path)).unwrap();
        let certificate_file = directory.path().join("tls/laptop.pem");
        let key_file = directory.path().join("tls/laptop.key");
        assert_eq!(found.certificate, Some(ClientCertificate { certificate_file, key_file: key_file.clone() }));
        assert!(found.key.is_none());

        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o640)).unwrap();
        let text = ClientConfig::find(&flags(None, &path)).unwrap_err().to_string();
        assert!(text.contains("tls/laptop.key") && text.contains("chmod 600"), "{text}");
    }

    #[test]
    fn half_a_certificate_and_one_in_clear_are_refused() {
        for (text, explanation) in [
            (WITH_CERTIFICATE.replace("client_key_file = \"tls/laptop.key\"", ""), "without client_key_file"),
            (
                WITH_CERTIFICATE.replace("client_certificate_file = \"tls/laptop.pem\"", "key = \"tnd_x\""),
                "without client_certificate_file",
            ),
            (WITH_CERTIFICATE.replace("https://db.example.com", "http://localhost"), "not https"),
            ("endpoint = \"https://db.example.com:7432\"".to_owned(), "nothing to show"),
        ] {
            let (_directory, path) = certified(&text);
            let error = ClientConfig::find(&flags(None, &path)).unwrap_err().to_string();
            assert!(error.contains(explanation), "{error}");
        }
    }

    #[test]
    fn a_certificate_stays_with_its_endpoint() {
        let (directory, path) = certified(WITH_CERTIFICATE);
        let key_file = directory.path().join("key");
        write_private(&key_file, "tnd_x").unwrap();
        let at = |endpoint: Option<&str>| {
            let flags = ClientFlags { key_file: Some(key_file.clone()), ..flags(endpoint, &path) };
            ClientConfig::find(&flags).unwrap()
        };
        for own in [at(None), at(Some("https://db.example.com:7432"))] {
            assert!(own.certificate.is_some());
            assert_eq!(own.key.as_ref().map(SecretString::expose_secret), Some("tnd_x"));
        }
        assert_eq!(at(Some("https://elsewhere:1")).certificate, None);
        let error = ClientConfig::find(&flags(Some("https://elsewhere:1"), &path)).unwrap_err();
        assert!(matches!(error, Error::ForeignKey { .. }), "{error}");
    }

    #[test]
    fn a_key_stays_with_its_endpoint() {
        let (_directory, path) = file("endpoint = \"http://127.0.0.1:7432\"\nkey = \"tnd_x\"\n");
        let error = ClientConfig::find(&flags(Some("https://elsewhere:1"), &path)).unwrap_err();
        assert!(matches!(error, Error::ForeignKey { .. }), "{error}");
        assert!(ClientConfig::find(&flags(Some("http://127.0.0.1:7432"), &path)).is_ok());
    }

    #[test]
    fn a_key_never_travels_in_clear() {
        assert!(
            is_safe("https://db.example.com:7432") && is_safe("http://[::1]:7432") && is_safe("http://localhost:1")
        );
        assert!(!is_safe("http://db.example.com:7432") && !is_safe("127.0.0.1:7432") && !is_safe("ftp://localhost"));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let (_directory, path) = file("endpoint = \"http://127.0.0.1:7432\"\nkey = \"tnd_x\"\n");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let text = ClientConfig::find(&flags(None, &path)).unwrap_err().to_string();
        assert!(text.contains("chmod 600") && !text.contains("tnd_x"), "{text}");
    }
}
