//! Symmetric keys and seeds as text: 32 bytes in base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::{Error, KEY_BYTES};

/// Decodes a key that is 32 bytes in base64.
pub(super) fn key_decode(what: &'static str, text: &SecretString) -> Result<Zeroizing<[u8; KEY_BYTES]>, Error> {
    let format = Error::KeyFormat { what };
    let Ok(bytes) = STANDARD.decode(text.expose_secret().trim()).map(Zeroizing::new) else { return Err(format) };
    let key: [u8; KEY_BYTES] = bytes.as_slice().try_into().map_err(|_length| format)?;
    Ok(Zeroizing::new(key))
}
