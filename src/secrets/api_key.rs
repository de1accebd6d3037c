//! API keys: a text that the caller keeps, and a hash that the auth database keeps. The text holds 256 random bits,
//! so a plain SHA-256 is no weaker than a slow password hash, and costs nothing per call.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Begins every key, so that a scanner can find a lost one.
const PREFIX: &str = "tnd_";
const SECRET_BYTES: usize = 32;

/// A key's SHA-256; as text, in lower-case hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ApiKeyHash(pub [u8; 32]);

impl std::fmt::Display for ApiKeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Makes and hashes keys.
#[derive(Debug, Clone, Copy)]
pub struct ApiKeySecret;

impl ApiKeySecret {
    /// A fresh key: `tnd_` and 43 characters of URL-safe base64.
    #[expect(clippy::new_ret_no_self, reason = "the key itself is never kept in a value of its own")]
    pub fn new() -> (SecretString, ApiKeyHash) {
        let secret: Zeroizing<[u8; SECRET_BYTES]> = Zeroizing::new(rand::random());
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret.as_slice()));
        let hash = Self::hash(&text);
        (text.into(), hash)
    }

    /// The hash of whatever a caller presents.
    pub fn hash(text: &str) -> ApiKeyHash {
        ApiKeyHash(Sha256::digest(text.as_bytes()).into())
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_key_has_its_prefix_and_its_hash() {
        let (text, hash) = ApiKeySecret::new();
        let text = text.expose_secret();
        assert!(text.starts_with("tnd_") && text.len() == 47);
        assert_eq!(ApiKeySecret::hash(text), hash);
        assert_eq!(hash.to_string().len(), 64);
        assert_ne!(ApiKeySecret::new().1, hash);
    }
}
