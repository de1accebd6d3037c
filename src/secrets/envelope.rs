//! Envelope encryption: each tenant has a data key, stored only wrapped under the daemon's key-encryption key; each
//! secret is sealed under its tenant's data key. XChaCha20-Poly1305 with random nonces, so that nobody counts.
//!
//! A sealed secret is bound to its tenant, field and version: moved elsewhere, it does not open.

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use secrecy::SecretString;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::key_text::key_decode;
use super::{Error, KEY_BYTES};

/// The first byte of everything sealed, so that another algorithm can follow.
const FORMAT: u8 = 1;
const NONCE_BYTES: usize = 24;
/// What a wrapped data key is bound to. Its tenant is bound by every secret that is sealed under it.
const DATA_KEY_AAD: &[u8] = b"tenantd data key";

/// Holds the key-encryption key.
pub struct Envelope {
    key: Zeroizing<[u8; KEY_BYTES]>,
}

/// What a sealed secret is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aad<'a> {
    pub tenant: Uuid,
    pub field: &'a str,
    pub version: i32,
}

impl std::fmt::Debug for Envelope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Envelope").finish_non_exhaustive()
    }
}

impl Envelope {
    /// Takes the key-encryption key, 32 bytes in base64.
    pub fn new(key_encryption_key: &SecretString) -> Result<Self, Error> {
        Ok(Self { key: key_decode("key-encryption key", key_encryption_key)? })
    }

    /// A fresh data key, wrapped; only this form is ever stored.
    pub fn data_key_new(&self) -> Result<Vec<u8>, Error> {
        let key: Zeroizing<[u8; KEY_BYTES]> = Zeroizing::new(rand::random());
        encrypt(&self.key, DATA_KEY_AAD, key.as_slice())
    }

    /// Seals `plain` under the wrapped data key.
    pub fn seal(&self, wrapped_key: &[u8], aad: &Aad<'_>, plain: &[u8]) -> Result<Vec<u8>, Error> {
        encrypt(&*self.data_key(wrapped_key)?, &aad.bytes(), plain)
    }

    /// Opens what [`Envelope::seal`] sealed with the same data key and `aad`.
    pub fn open(&self, wrapped_key: &[u8], aad: &Aad<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        decrypt(&*self.data_key(wrapped_key)?, &aad.bytes(), sealed)
    }

    fn data_key(&self, wrapped: &[u8]) -> Result<Zeroizing<[u8; KEY_BYTES]>, Error> {
        let plain = decrypt(&self.key, DATA_KEY_AAD, wrapped)?;
        let key: [u8; KEY_BYTES] = plain.as_slice().try_into().map_err(|_length| Error::Open)?;
        Ok(Zeroizing::new(key))
    }
}

impl Aad<'_> {
    /// Unambiguous: the parts before the field have a fixed length.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.tenant.as_bytes().to_vec();
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(self.field.as_bytes());
        bytes
    }
}

fn encrypt(key: &[u8; KEY_BYTES], aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
    let nonce: [u8; NONCE_BYTES] = rand::random();
    let cipher = XChaCha20Poly1305::new(&Key::from(*key));
    let payload = Payload { msg: plain, aad };
    let sealed = cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_opaque| Error::Seal)?;
    Ok([&[FORMAT], nonce.as_slice(), &sealed].concat())
}

fn decrypt(key: &[u8; KEY_BYTES], aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let (format, rest) = sealed.split_first().ok_or(Error::Open)?;
    let (nonce, message) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(Error::Open)?;
    if *format != FORMAT {
        return Err(Error::Open);
    }
    let cipher = XChaCha20Poly1305::new(&Key::from(*key));
    let payload = Payload { msg: message, aad };
    cipher.decrypt(&XNonce::from(*nonce), payload).map(Zeroizing::new).map_err(|_opaque| Error::Open)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope { key: Zeroizing::new(rand::random()) }
    }

    #[test]
    fn a_secret_opens_only_where_it_was_sealed() {
        let (envelope, tenant) = (envelope(), Uuid::from_u128(1));
        let key = envelope.data_key_new().unwrap();
        let aad = Aad { tenant, field: "router", version: 1 };
        let sealed = envelope.seal(&key, &aad, b"open sesame").unwrap();
        assert_eq!(envelope.open(&key, &aad, &sealed).unwrap().as_slice(), b"open sesame");

        let refused = |aad: Aad<'_>| matches!(envelope.open(&key, &aad, &sealed), Err(Error::Open));
        assert!(refused(Aad { tenant: Uuid::from_u128(2), ..aad }));
        assert!(refused(Aad { field: "migrator", ..aad }));
        assert!(refused(Aad { version: 2, ..aad }));

        let other_key = envelope.data_key_new().unwrap();
        assert!(envelope.open(&other_key, &aad, &sealed).is_err());
        assert!(super::tests::envelope().open(&key, &aad, &sealed).is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let envelope = envelope();
        let key = envelope.data_key_new().unwrap();
        let aad = Aad { tenant: Uuid::from_u128(1), field: "router", version: 1 };
        let sealed = envelope.seal(&key, &aad, b"x").unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(envelope.open(&key, &aad, &changed).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(envelope.open(&key, &aad, &sealed[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn a_bad_key_is_refused_without_being_quoted() {
        let error = Envelope::new(&SecretString::from("c2hvcnQ=")).unwrap_err().to_string();
        assert!(error.contains("32 bytes in base64") && !error.contains("c2hvcnQ"), "{error}");
    }
}
