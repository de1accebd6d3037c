//! A new fleet's keys, made once: `dev` and the first `server bootstrap` write them to the keys file.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::{BackupIdentity, KEY_BYTES};

/// The parts of a keys file, and the escrow identity, which belongs off the machine.
#[derive(Debug)]
pub struct NewKeys {
    pub key_encryption_key: SecretString,
    pub manifest_signing_key: SecretString,
    pub escrow_recipient: String,
    /// Opens every backup of the fleet; the daemon never needs it.
    pub escrow_identity: SecretString,
}

/// Fresh keys for a new fleet.
pub fn keys_new() -> NewKeys {
    let escrow = BackupIdentity::generate();
    NewKeys {
        key_encryption_key: random_base64(),
        manifest_signing_key: random_base64(),
        escrow_recipient: escrow.recipient(),
        escrow_identity: escrow.to_secret(),
    }
}

fn random_base64() -> SecretString {
    let key: Zeroizing<[u8; KEY_BYTES]> = Zeroizing::new(rand::random());
    STANDARD.encode(key.as_slice()).into()
}
