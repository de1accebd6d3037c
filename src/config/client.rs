//! Where a client finds the daemon, and the key that it shows: flags first, then the first client file that there is.
//! A key from a file is only ever sent to the endpoint that the same file names.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::files::read_private;

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
    pub key: SecretString,
    /// Roots to trust instead of the system's, in PEM.
    pub ca_file: Option<PathBuf>,
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
            (Some(endpoint), Some(key), file) => {
                Self { endpoint, key, ca_file: file.and_then(|(path, file)| beside(&path, file.ca_file)) }
            }
            (Some(endpoint), None, None) => return Err(Error::KeyMissing { endpoint }),
            (Some(endpoint), None, Some((path, file))) if endpoint != file.endpoint => {
                return Err(Error::ForeignKey { endpoint, file: path, file_endpoint: file.endpoint });
            }
            (None, key, None) => {
                drop(key);
                return Err(nowhere());
            }
            (_, Some(key), Some((path, file))) => {
                Self { endpoint: file.endpoint, key, ca_file: beside(&path, file.ca_file) }
            }
            (_, None, Some((path, file))) => file.into_config(&path)?,
        };
        if is_safe(&config.endpoint) { Ok(config) } else { Err(Error::Endpoint { endpoint: config.endpoint }) }
    }

    /// As a client file has it. It has the key in it: write it with [`super::write_private`].
    pub fn to_toml(&self) -> String {
        let ca_file = self.ca_file.as_ref().map(|file| format!("ca_file = {:?}\n", file.display().to_string()));
        format!("endpoint = {:?}\nkey = {:?}\n{}", self.endpoint, self.key.expose_secret(), ca_file.unwrap_or_default())
    }
}

impl Written {
    fn into_config(self, path: &Path) -> Result<ClientConfig, Error> {
        let problem = |problem: &str| Error::File { path: path.to_owned(), problem: problem.to_owned() };
        let key = match (self.key, beside(path, self.key_file)) {
            (Some(key), None) => key,
            (None, Some(key_file)) => key_read(&key_file)?,
            (Some(_), Some(_)) => return Err(problem("it has both key and key_file; keep one")),
            (None, None) => return Err(problem("it has neither key nor key_file; add one")),
        };
        Ok(ClientConfig { endpoint: self.endpoint, key, ca_file: beside(path, self.ca_file) })
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

/// A file with nothing but a key in it, which only its owner may read.
fn key_read(path: &Path) -> Result<SecretString, Error> {
    let fail = |problem: String| Error::KeyFile { path: path.to_owned(), problem };
    let mode = fs::metadata(path).map_err(|error| fail(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(fail(format!("others can read it (mode {:o}); run chmod 600", mode & 0o777)));
    }
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
        let config = ClientConfig {
            endpoint: "http://127.0.0.1:7432".to_owned(),
            key: SecretString::from("tnd_x"),
            ca_file: None,
        };
        let (_directory, path) = file(&config.to_toml());
        let found = ClientConfig::find(&flags(None, &path)).unwrap();
        assert_eq!(found.endpoint, config.endpoint);
        assert_eq!(found.key.expose_secret(), "tnd_x");
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
