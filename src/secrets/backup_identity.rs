//! A tenant's backup identity (age, X25519): whoever holds it can open the tenant's backups; destroying it makes
//! them unreadable, except for whoever holds the fleet's escrow identity.

use age::x25519::Identity;
use secrecy::{ExposeSecret as _, SecretString};

use super::Error;

/// An identity, with its recipient.
pub struct BackupIdentity {
    identity: Identity,
}

impl std::fmt::Debug for BackupIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupIdentity").field("recipient", &self.recipient()).finish_non_exhaustive()
    }
}

impl BackupIdentity {
    /// A fresh identity.
    pub fn generate() -> Self {
        Self { identity: Identity::generate() }
    }

    /// Reads what [`BackupIdentity::to_secret`] wrote.
    pub fn parse(text: &SecretString) -> Result<Self, Error> {
        let identity = text.expose_secret().parse().map_err(|reason| Error::BackupIdentity { reason })?;
        Ok(Self { identity })
    }

    /// `AGE-SECRET-KEY-1…`, as the stock `age` program takes it.
    pub fn to_secret(&self) -> SecretString {
        self.identity.to_string()
    }

    /// `age1…`: what a backup is encrypted to.
    pub fn recipient(&self) -> String {
        self.identity.to_public().to_string()
    }

    /// For decryption.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_text() {
        let identity = BackupIdentity::generate();
        let again = BackupIdentity::parse(&identity.to_secret()).unwrap();
        assert_eq!(identity.recipient(), again.recipient());
        assert!(identity.recipient().starts_with("age1"));
        assert!(!format!("{identity:?}").contains("SECRET"));
        assert!(BackupIdentity::parse(&"age1nonsense".to_owned().into()).is_err());
    }
}
