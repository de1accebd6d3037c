//! Passwords of roles: made at random, and given to a server only as SCRAM verifiers, so that no statement log ever
//! holds one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::digest::Key;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::RngExt as _;
use rand::distr::Alphanumeric;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

/// 32 letters and digits have 190 bits, as long as a 192-bit key, and need no escape anywhere.
const PASSWORD_LENGTH: usize = 32;

/// A fresh password.
pub fn password_new() -> SecretString {
    rand::rng().sample_iter(Alphanumeric).take(PASSWORD_LENGTH).map(char::from).collect::<String>().into()
}

/// What `CREATE ROLE … PASSWORD` takes instead of the password (SCRAM-SHA-256, salted anew on each call).
pub fn scram_verifier(password: &SecretString) -> String {
    postgres_protocol::password::scram_sha_256(password.expose_secret().as_bytes())
}

/// The same for a password of [`password_new`] that nobody but the daemon logs in with, with one round instead of 4,096.
/// The rounds (RFC 5802, `Hi`) make each guess at a short password dear, and each login as dear on the client's side.
/// Nobody guesses 190 random bits, at whatever price.
pub fn scram_verifier_one_round(password: &SecretString) -> String {
    let salt: [u8; 16] = rand::random();
    let salted = hmac(password.expose_secret().as_bytes(), &[&salt, &1_u32.to_be_bytes()]);
    let stored = Sha256::digest(hmac(&salted, &[b"Client Key"]));
    let server = hmac(&salted, &[b"Server Key"]);
    let [salt, stored, server] = [&salt[..], &stored[..], &server[..]].map(|bytes| STANDARD.encode(bytes));
    format!("SCRAM-SHA-256$1:{salt}${stored}:{server}")
}

/// HMAC-SHA-256 of the parts, one after the other.
fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut block = Key::<Hmac<Sha256>>::default();
    let short = Sha256::digest(key);
    let key = if key.len() > block.len() { &short } else { key };
    block[..key.len()].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_alphanumeric_and_never_the_same() {
        let (one, two) = (password_new(), password_new());
        assert_eq!(one.expose_secret().len(), PASSWORD_LENGTH);
        assert!(one.expose_secret().chars().all(|c| c.is_ascii_alphanumeric()));
        assert_ne!(one.expose_secret(), two.expose_secret());
    }

    #[test]
    fn a_verifier_does_not_hold_the_password() {
        let password = password_new();
        let verifier = scram_verifier(&password);
        assert!(verifier.starts_with("SCRAM-SHA-256$4096:"));
        assert!(!verifier.contains(password.expose_secret()));
    }

    #[test]
    fn one_round_is_one_round_of_the_same() {
        // RFC 2104, the second of RFC 4231's test cases, and a key that is longer than a block (the sixth).
        let hex = |mac: [u8; 32]| hex::encode(mac);
        assert_eq!(
            hex(hmac(b"Jefe", &[b"what do ya want ", b"for nothing?"])),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(hmac(&[0xaa; 131], &[b"Test Using Larger Than Block-Size Key - Hash Key First"])),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
        let password = password_new();
        let verifier = scram_verifier_one_round(&password);
        assert!(verifier.starts_with("SCRAM-SHA-256$1:"));
        assert!(!verifier.contains(password.expose_secret()));
    }
}
