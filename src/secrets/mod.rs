//! What is secret, and how it is kept: envelope encryption of stored passwords and keys, generated passwords and
//! their SCRAM verifiers, API keys, the signature under manifests, and backup identities.
//!
//! Knows nothing of where a secret is stored or sent. No secret is ever part of an error's text, and every random
//! byte comes from the operating system's generator.

mod api_key;
mod backup_identity;
mod envelope;
mod key_text;
mod keys;
mod password;
mod signature;

pub use api_key::{ApiKeyHash, ApiKeySecret};
pub use backup_identity::BackupIdentity;
pub use envelope::{Aad, Envelope};
pub use keys::{NewKeys, keys_new};
pub use password::{password_new, scram_verifier, scram_verifier_one_round};
pub use signature::ManifestSigner;

/// The length of every symmetric key and of a signing seed.
const KEY_BYTES: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the {what} is not {KEY_BYTES} bytes in base64; take it from the keys file that this fleet was made with")]
    KeyFormat { what: &'static str },
    #[error(
        "a stored secret cannot be opened: the key, the tenant, the field or the version is not the one that it was sealed with, or it was changed; check that the keys file belongs to this catalog"
    )]
    Open,
    #[error("a secret cannot be sealed")]
    Seal,
    #[error("the manifest's signature does not fit its content: it was changed, or it was signed with another key")]
    Signature,
    #[error("the backup identity cannot be read: {reason}")]
    BackupIdentity { reason: &'static str },
}
