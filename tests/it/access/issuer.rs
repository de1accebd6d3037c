//! An issuer of tokens: real keys, real signatures, and a real HTTP server that publishes the keys.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::Spec;

pub const ISSUER: &str = "https://login.example.com/";
pub const AUDIENCE: &str = "tenantd";

/// A key with its id.
#[derive(Debug, Clone)]
pub struct SigningKey {
    pub id: String,
    pub algorithm: Algorithm,
    pub public: Value,
    private: EncodingKey,
}

impl SigningKey {
    pub fn new(id: &str, algorithm: Algorithm) -> Self {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (private, mut public) = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => {
                let (curve, name, length) = match algorithm {
                    Algorithm::ES256 => (&PKCS_ECDSA_P256_SHA256, "P-256", 32),
                    _ => (&PKCS_ECDSA_P384_SHA384, "P-384", 48),
                };
                let pair = KeyPair::generate_for(curve).unwrap();
                // One byte says that both parts follow.
                let (x, y) = pair.public_key_raw()[1..].split_at(length);
                let public = json!({ "kty": "EC", "crv": name, "x": part(x), "y": part(y) });
                (EncodingKey::from_ec_der(&pair.serialize_der()), public)
            }
            Algorithm::EdDSA => {
                let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
                let public = json!({ "kty": "OKP", "crv": "Ed25519", "x": part(pair.public_key_raw()) });
                (EncodingKey::from_ed_der(&pair.serialize_der()), public)
            }
            _ => {
                let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
                // The library takes what is inside of the PKCS #8 envelope, whose head has 26 bytes at this size.
                let private = EncodingKey::from_rsa_der(&pair.serialize_der()[26..]);
                let public = serde_json::to_value(Jwk::from_encoding_key(&private, Algorithm::RS256).unwrap()).unwrap();
                (private, json!({ "kty": "RSA", "n": public["n"], "e": public["e"] }))
            }
        };
        public["kid"] = json!(id);
        public["use"] = json!("sig");
        Self { id: id.to_owned(), algorithm, public, private }
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with(&Header { kid: Some(self.id.clone()), ..Header::new(self.algorithm) }, claims)
    }

    pub fn sign_with(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &self.private).unwrap()
    }
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims of a good token, with these on top.
pub fn claims(extra: Value) -> Value {
    let mut claims = json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "deploy", "iat": now(), "exp": now() + 600 });
    if let Value::Object(extra) = extra {
        claims.as_object_mut().unwrap().extend(extra);
    }
    claims
}

/// A set of these keys.
pub fn key_set(keys: &[&SigningKey]) -> Value {
    json!({ "keys": keys.iter().map(|key| key.public.clone()).collect::<Vec<_>>() })
}

/// A fleet that takes this issuer's tokens, whose keys are to be found as `setting` says.
pub fn spec(setting: (&'static str, &str), subject: &str) -> Spec {
    let quoted = |text: &str| format!("{text:?}");
    Spec::default()
        .setting("[[access.jwt]]", "name", &quoted("login"))
        .setting("[[access.jwt]]", "issuer", &quoted(ISSUER))
        .setting("[[access.jwt]]", "audiences", &format!("[{AUDIENCE:?}]"))
        .setting("[[access.jwt]]", setting.0, &quoted(setting.1))
        .setting("[[access.jwt]]", "subject", &quoted(subject))
}

/// Serves a key set until it is dropped.
#[derive(Debug)]
pub struct Issuer {
    /// Where it publishes them.
    pub address: SocketAddr,
    keys: Arc<Mutex<Value>>,
    silent: Arc<AtomicBool>,
    pub fetches: Arc<AtomicUsize>,
    serving: tokio::task::JoinHandle<()>,
}

impl Issuer {
    pub async fn start(keys: &[&SigningKey]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (published, fetches) = (Arc::new(Mutex::new(Value::Null)), Arc::new(AtomicUsize::new(0)));
        let silent = Arc::new(AtomicBool::new(false));
        let serving = tokio::spawn(serve(listener, Arc::clone(&published), Arc::clone(&silent), Arc::clone(&fetches)));
        let issuer = Self { address, keys: published, silent, fetches, serving };
        issuer.publish(keys);
        issuer
    }

    /// From now on these keys, and no others.
    pub fn publish(&self, keys: &[&SigningKey]) {
        *self.keys.lock().unwrap() = key_set(keys);
    }

    /// From now on it takes questions and answers none.
    pub fn fall_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }

    /// The fleet takes this issuer's tokens.
    pub fn spec(&self, subject: &str) -> Spec {
        spec(("jwks_url", &format!("http://{}/keys", self.address)), subject)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, keys: Arc<Mutex<Value>>, silent: Arc<AtomicBool>, fetches: Arc<AtomicUsize>) {
    let mut unanswered = Vec::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        fetches.fetch_add(1, Ordering::SeqCst);
        if silent.load(Ordering::SeqCst) {
            unanswered.push(stream);
            continue;
        }
        let body = keys.lock().unwrap().to_string();
        drop(answer(&mut stream, &body).await);
    }
}

async fn answer(stream: &mut TcpStream, body: &str) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).await?;
    stream.shutdown().await
}
