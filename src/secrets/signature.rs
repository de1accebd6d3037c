//! The Ed25519 signature under a backup's manifest: proof that this fleet's daemon wrote it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey};
use secrecy::SecretString;

use super::Error;
use super::key_text::key_decode;

/// Signs, and checks its own signatures.
pub struct ManifestSigner {
    key: SigningKey,
}

impl std::fmt::Debug for ManifestSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManifestSigner").finish_non_exhaustive()
    }
}

impl ManifestSigner {
    /// Takes the seed, 32 bytes in base64.
    pub fn new(seed: &SecretString) -> Result<Self, Error> {
        Ok(Self { key: SigningKey::from_bytes(&*key_decode("manifest signing key", seed)?) })
    }

    /// The signature in base64.
    pub fn sign(&self, message: &[u8]) -> String {
        STANDARD.encode(self.key.sign(message).to_bytes())
    }

    /// Refuses what was not signed with this key, bit for bit.
    pub fn verify(&self, message: &[u8], signature: &str) -> Result<(), Error> {
        let bytes = STANDARD.decode(signature).map_err(|_text| Error::Signature)?;
        let signature = Signature::from_slice(&bytes).map_err(|_length| Error::Signature)?;
        self.key.verifying_key().verify_strict(message, &signature).map_err(|_mismatch| Error::Signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::keys_new;

    #[test]
    fn only_the_signed_message_under_the_same_key_is_taken() {
        let signer = ManifestSigner::new(&keys_new().manifest_signing_key).unwrap();
        let signature = signer.sign(b"manifest");
        signer.verify(b"manifest", &signature).unwrap();
        assert!(signer.verify(b"manifesT", &signature).is_err());
        assert!(signer.verify(b"manifest", "no base64!").is_err());
        let other = ManifestSigner::new(&keys_new().manifest_signing_key).unwrap();
        assert!(other.verify(b"manifest", &signature).is_err());
    }
}
