//! The two files with secrets that stand beside the configuration: a server's credentials (`server bootstrap` writes
//! them) and the daemon's keys. Both are TOML, mode 0600; a file that others can read is refused.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::domain::tenant::RoleName;

/// How the daemon logs in to one server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Creates databases and roles; never a superuser.
    pub daemon: RoleLogin,
    /// Reads everything, bypasses row security, and can do nothing else.
    pub dump: RoleLogin,
}

/// A role with its password.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleLogin {
    pub role: RoleName,
    pub password: SecretString,
}

/// The daemon's own keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// 32 bytes in base64: wraps every stored password and key.
    pub key_encryption_key: SecretString,
    /// 32 bytes in base64: the Ed25519 seed that signs backup manifests.
    pub manifest_signing_key: SecretString,
    /// `age1…`: can open every backup. Its identity belongs off this machine.
    pub escrow_recipient: String,
}

impl Credentials {
    /// In the place of credentials that cannot be read, while the rest of the configuration is checked.
    pub(super) fn stand_in() -> Self {
        let login = || RoleLogin { role: RoleName::stand_in(), password: String::new().into() };
        Self { daemon: login(), dump: login() }
    }

    pub fn read(path: &Path) -> Result<Self, String> {
        read_private(path)
    }

    /// As [`Credentials::read`] takes it.
    pub fn to_toml(&self) -> String {
        let section = |name: &str, login: &RoleLogin| {
            let (role, password) = (login.role.as_str(), login.password.expose_secret());
            format!("[{name}]\nrole = {role:?}\npassword = {password:?}\n")
        };
        format!("{}\n{}", section("daemon", &self.daemon), section("dump", &self.dump))
    }
}

impl Keys {
    /// In the place of keys that cannot be read, while the rest of the configuration is checked.
    pub(super) fn stand_in() -> Self {
        let empty = || SecretString::from(String::new());
        Self { key_encryption_key: empty(), manifest_signing_key: empty(), escrow_recipient: String::new() }
    }

    pub fn read(path: &Path) -> Result<Self, String> {
        read_private(path)
    }

    /// As [`Keys::read`] takes it.
    pub fn to_toml(&self) -> String {
        format!(
            "key_encryption_key = {:?}\nmanifest_signing_key = {:?}\nescrow_recipient = {:?}\n",
            self.key_encryption_key.expose_secret(),
            self.manifest_signing_key.expose_secret(),
            self.escrow_recipient
        )
    }
}

/// Refuses a file that others can read. The problem does not name it.
pub fn check_private(path: &Path) -> Result<(), String> {
    let mode = fs::metadata(path).map_err(|error| error.to_string())?.permissions().mode();
    let of_others = mode & 0o077;
    if of_others == 0 {
        return Ok(());
    }
    Err(format!("others can read it (mode {:o}); run chmod 600", mode & 0o777))
}

/// What is wrong with a configuration that has a secret in it and that others can read: its other secrets are in files of
/// their own, which must be private.
pub fn secret_exposed(config: &Path) -> Option<String> {
    let has_secret = fs::read_to_string(config).is_ok_and(|text| text.contains("secret_access_key"));
    let problem = check_private(config).err().filter(|_problem| has_secret)?;
    Some(format!("store.secret_access_key is in it, and {problem}"))
}

pub(super) fn read_private<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, String> {
    check_private(path).map_err(|problem| format!("{}: {problem}", path.display()))?;
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    // The parser's message would quote the offending line, and with it a secret.
    let place = |error: &figment::Error| error.path.join(".");
    figment::Figment::from(<figment::providers::Toml as figment::providers::Format>::string(&text))
        .extract()
        .map_err(|error| format!("{}: not the TOML that is expected here (at {:?})", path.display(), place(&error)))
}

/// Writes a new file that only its owner can read. An existing file is an error: secrets are never overwritten.
pub fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
