//! Passwords of roles: made at random, and given to a server only as SCRAM verifiers, so that no statement log ever
//! holds one.

use rand::RngExt as _;
use rand::distr::Alphanumeric;
use secrecy::{ExposeSecret as _, SecretString};

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
}
