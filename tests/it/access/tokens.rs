//! Tokens: what a good one opens, and that every flaw is refused with the same words.

use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tenantd::proto::v1::{WhoAmIRequest, WhoAmIResponse};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use super::issuer::{Issuer, SigningKey, claims, key_set, now, spec};
use crate::harness::{Authority, Client, Daemon, Fleet, reason, until};

pub async fn whoami(daemon: &Daemon, token: &str) -> Result<WhoAmIResponse, Status> {
    let answer = Client::new(daemon.address, Some(token)).access().who_am_i(WhoAmIRequest {}).await?;
    Ok(answer.into_inner())
}

pub async fn refused(daemon: &Daemon, token: &str) -> (Code, String, String) {
    let status = whoami(daemon, token).await.unwrap_err();
    (status.code(), reason(&status), status.message().to_owned())
}

pub fn unauthenticated() -> (Code, String, String) {
    let message = "the credentials are unknown, expired or revoked";
    (Code::Unauthenticated, "UNAUTHENTICATED".to_owned(), message.to_owned())
}

#[tokio::test]
async fn a_token_opens_what_it_names() {
    let keys = [
        SigningKey::new("ec", Algorithm::ES256),
        SigningKey::new("ed", Algorithm::EdDSA),
        SigningKey::new("rsa", Algorithm::RS256),
    ];
    let issuer = Issuer::start(&keys.each_ref()).await;
    let fleet = Fleet::new(issuer.spec("program")).await;
    let daemon = fleet.start().await;
    for key in &keys {
        let token = key.sign(&claims(json!({
            "aud": ["else", "tenantd"], "roles": ["viewer", "admin", "king"], "tenants": ["acme", "bolt"],
            "default_tenant": "bolt",
        })));
        let me = whoami(&daemon, &token).await.unwrap();
        assert_eq!((me.principal.as_str(), me.roles.join(" ").as_str()), ("jwt:login:deploy", "viewer"), "{}", key.id);
        assert_eq!(
            (me.tenants, me.all_tenants, me.default_tenant.as_str()),
            (vec!["acme".to_owned(), "bolt".to_owned()], false, "bolt")
        );
    }
    let me = whoami(&daemon, &keys[0].sign(&claims(json!({ "roles": "viewer", "tenants": "*" })))).await.unwrap();
    assert!(me.all_tenants);
    // Nothing named, nothing opened.
    let me = whoami(&daemon, &keys[0].sign(&claims(json!({})))).await.unwrap();
    assert!(me.roles.is_empty() && me.tenants.is_empty() && !me.all_tenants);
    assert_eq!(issuer.fetches.load(Ordering::SeqCst), 1);
    fleet.stop(daemon).await;
}

fn unsigned(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

#[tokio::test]
async fn every_flaw_is_refused_with_the_same_words() {
    let (key, other) = (SigningKey::new("ec", Algorithm::ES256), SigningKey::new("ec", Algorithm::ES256));
    let rsa = SigningKey::new("rsa", Algorithm::RS512);
    let issuer = Issuer::start(&[&key, &rsa]).await;
    let fleet = Fleet::new(issuer.spec("program")).await;
    let daemon = fleet.start().await;
    let good = claims(json!({ "roles": ["viewer"] }));
    let token = key.sign(&good);
    whoami(&daemon, &token).await.unwrap();

    let with = |extra: Value| key.sign(&claims(extra));
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        key.sign(&claims)
    };
    let headed = |header: Header| key.sign_with(&Header { kid: Some("ec".to_owned()), ..header }, &good);
    let public = serde_json::to_vec(&key.public).unwrap();
    let shared = |header: Header| encode(&header, &good, &EncodingKey::from_secret(&public)).unwrap();
    let signature = token.rsplit('.').next().unwrap();
    let flaws = [
        ("alg none", unsigned(&json!({ "alg": "none", "typ": "JWT" }), &good, "")),
        ("alg None", unsigned(&json!({ "alg": "None", "kid": "ec" }), &good, signature)),
        ("no alg", unsigned(&json!({ "typ": "JWT", "kid": "ec" }), &good, signature)),
        ("HS256 with the public key", shared(Header { kid: Some("ec".to_owned()), ..Header::new(Algorithm::HS256) })),
        ("an algorithm that is not listed", rsa.sign(&good)),
        ("another's signature", other.sign(&good)),
        ("a changed payload", {
            let parts: Vec<_> = token.split('.').collect();
            let changed = URL_SAFE_NO_PAD.encode(claims(json!({ "roles": ["admin"] })).to_string());
            format!("{}.{changed}.{}", parts[0], parts[2])
        }),
        ("no signature", token.rsplit_once('.').unwrap().0.to_owned() + "."),
        ("wrong issuer", with(json!({ "iss": "https://else.example.com/" }))),
        ("no issuer", without("iss")),
        ("wrong audience", with(json!({ "aud": "else" }))),
        ("no audience", without("aud")),
        ("expired", with(json!({ "iat": now() - 900, "exp": now() - 61 }))),
        ("no expiry", without("exp")),
        ("an expiry that is no time", with(json!({ "exp": "tomorrow" }))),
        ("not yet valid", with(json!({ "nbf": now() + 120 }))),
        ("from the future", with(json!({ "iat": now() + 120 }))),
        ("no subject", without("sub")),
        ("an empty subject", with(json!({ "sub": "" }))),
        ("a subject with a line break", with(json!({ "sub": "a\nb" }))),
        ("unknown key", key.sign_with(&Header { kid: Some("x".to_owned()), ..Header::new(key.algorithm) }, &good)),
        (
            "a token for logging out",
            headed(Header { typ: Some("logout+jwt".to_owned()), ..Header::new(key.algorithm) }),
        ),
        ("an extension", headed(Header { crit: Some(vec!["exp".to_owned()]), ..Header::new(key.algorithm) })),
        ("no token at all", "abc".to_owned()),
        ("no JSON", "abc.abc.abc".to_owned()),
    ];
    for (flaw, token) in flaws {
        assert_eq!(refused(&daemon, &token).await, unauthenticated(), "{flaw}");
    }
    let large = with(json!({ "ballast": "x".repeat(8 << 10) }));
    assert_eq!(refused(&daemon, &large).await.0, Code::Unauthenticated);
    // A clock that is a little off is no flaw, and neither is a token for as long as there is a calendar.
    whoami(&daemon, &with(json!({ "iat": now() + 5, "nbf": now() + 5 }))).await.unwrap();
    for end in [253_402_300_799_u64 - 31, 253_402_300_799 - 29, 253_402_300_799] {
        whoami(&daemon, &with(json!({ "exp": end, "iat": -62_135_596_800_i64 }))).await.unwrap();
    }
    for extreme in [json!({ "exp": 253_402_300_800_u64 }), json!({ "exp": i64::MAX }), json!({ "iat": i64::MIN })] {
        assert_eq!(refused(&daemon, &with(extreme)).await, unauthenticated());
    }
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_new_key_counts_at_once_and_one_that_was_taken_back_no_longer() {
    let (old, new) = (SigningKey::new("old", Algorithm::ES256), SigningKey::new("new", Algorithm::EdDSA));
    let issuer = Issuer::start(&[&old]).await;
    let fleet = Fleet::new(issuer.spec("program").setting("[[access.jwt]]", "jwks_age_max", "\"1s\"")).await;
    let daemon = fleet.start().await;
    let (by_old, by_new) = (old.sign(&claims(json!({}))), new.sign(&claims(json!({}))));
    whoami(&daemon, &by_old).await.unwrap();
    assert_eq!(refused(&daemon, &by_new).await, unauthenticated());
    issuer.publish(&[&new]);
    until("the new key is known", async || whoami(&daemon, &by_new).await.ok()).await;
    until("the old key is gone", async || whoami(&daemon, &by_old).await.err()).await;
    assert_eq!(refused(&daemon, &by_old).await, unauthenticated());
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn tokens_with_unknown_keys_do_not_make_the_daemon_ask_the_issuer_each_time() {
    let key = SigningKey::new("key", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let fleet = Fleet::new(issuer.spec("program")).await;
    let daemon = fleet.start().await;
    for number in 0..30 {
        let header = Header { kid: Some(format!("unknown-{number}")), ..Header::new(key.algorithm) };
        assert_eq!(refused(&daemon, &key.sign_with(&header, &claims(json!({})))).await, unauthenticated());
    }
    assert!(issuer.fetches.load(Ordering::SeqCst) <= 6, "{issuer:?}");
    whoami(&daemon, &key.sign(&claims(json!({})))).await.unwrap();
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn an_issuer_that_is_silent_keeps_no_key_waiting() {
    let key = SigningKey::new("key", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let fleet = Fleet::new(issuer.spec("program")).await;
    fleet.allow_log("the issuer's keys cannot be read");
    let daemon = fleet.start().await;
    let fresh = daemon.client.key_new(&["viewer"], &[]).await;
    issuer.fall_silent();
    // Enough that every lane would have one of them; on one connection, for the issuer is waited for only for seconds.
    let mut waiting = tokio::task::JoinSet::new();
    let keyless = Client::new(daemon.address, None);
    for number in 0..100 {
        let token = key.sign(&claims(json!({ "jti": number.to_string() })));
        let mut request = Request::new(WhoAmIRequest {});
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let client = keyless.clone();
        waiting.spawn(async move { client.access().who_am_i(request).await.map(|_| ()) });
    }
    until("the issuer is asked", async || (issuer.fetches.load(Ordering::SeqCst) > 0).then_some(())).await;
    whoami(&daemon, &fresh).await.unwrap();
    assert!(waiting.try_join_next().is_none(), "the tokens wait meanwhile");
    waiting.shutdown().await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_token_that_was_taken_back_is_refused_at_once() {
    let key = SigningKey::new("key", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let fleet = Fleet::new(issuer.spec("program")).await;
    let daemon = fleet.start().await;
    let jti = Uuid::new_v4();
    let token = key.sign(&claims(json!({ "jti": jti.to_string() })));
    whoami(&daemon, &token).await.unwrap();
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let revoke = "INSERT INTO revoked_tokens (jti, expires_at) VALUES ($1, now() + interval '1 hour')";
    judge.execute(revoke, &[&jti]).await.unwrap();
    until("the token is refused", async || whoami(&daemon, &token).await.err()).await;
    assert_eq!(refused(&daemon, &token).await, unauthenticated());
    whoami(&daemon, &key.sign(&claims(json!({ "jti": Uuid::new_v4().to_string() })))).await.unwrap();
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn every_algorithm_that_can_be_named_is_checked() {
    use Algorithm::{ES384, PS256, PS384, PS512, RS256, RS384, RS512};
    let (rsa, ec) = (SigningKey::new("rsa", RS256), SigningKey::new("ec", ES384));
    let mut bound = SigningKey::new("bound", PS384);
    bound.public["alg"] = json!("PS384");
    let issuer = Issuer::start(&[&rsa, &ec, &bound]).await;
    let named = r#"["RS384", "RS512", "PS256", "PS384", "PS512", "ES384"]"#;
    let fleet = Fleet::new(issuer.spec("program").setting("[[access.jwt]]", "algorithms", named)).await;
    let daemon = fleet.start().await;
    let sign = |key: &SigningKey, algorithm| {
        key.sign_with(&Header { kid: Some(key.id.clone()), ..Header::new(algorithm) }, &claims(json!({})))
    };
    for algorithm in [RS384, RS512, PS256, PS384, PS512, ES384] {
        let key = if algorithm == ES384 { &ec } else { &rsa };
        let token = sign(key, algorithm);
        whoami(&daemon, &token).await.unwrap_or_else(|status| panic!("{algorithm:?}: {status:?}"));
        // With another's signature, and with another algorithm in the header than it was signed with.
        let stranger = SigningKey::new(&key.id, algorithm);
        assert_eq!(refused(&daemon, &sign(&stranger, algorithm)).await, unauthenticated(), "{algorithm:?}");
        let other = if algorithm == PS512 { PS256 } else { PS512 };
        let (_, rest) = token.split_once('.').unwrap();
        let header = json!({ "alg": other, "typ": "JWT", "kid": key.id }).to_string();
        let swapped = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header));
        assert_eq!(refused(&daemon, &swapped).await, unauthenticated(), "{algorithm:?} as {other:?}");
    }
    assert_eq!(refused(&daemon, &sign(&rsa, RS256)).await, unauthenticated(), "RS256 is not named");
    // A key that is for one algorithm.
    whoami(&daemon, &sign(&bound, PS384)).await.unwrap();
    assert_eq!(refused(&daemon, &sign(&bound, PS256)).await, unauthenticated());
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_file_of_keys_is_read_again() {
    let (old, new) = (SigningKey::new("old", Algorithm::ES256), SigningKey::new("new", Algorithm::ES256));
    let spec = spec(("jwks_file", "issuer.json"), "program").setting("[[access.jwt]]", "jwks_age_max", "\"1s\"");
    let fleet = Fleet::new(spec).await;
    let publish = |key: &SigningKey| {
        // As a whole: the daemon never reads half of it.
        let (file, draft) = (fleet.dir.join("issuer.json"), fleet.dir.join("issuer.json.new"));
        std::fs::write(&draft, key_set(&[key]).to_string()).unwrap();
        std::fs::rename(draft, file).unwrap();
    };
    publish(&old);
    let daemon = fleet.start().await;
    let (by_old, by_new) = (old.sign(&claims(json!({}))), new.sign(&claims(json!({}))));
    whoami(&daemon, &by_old).await.unwrap();
    assert_eq!(refused(&daemon, &by_new).await, unauthenticated());
    publish(&new);
    until("the new key is known", async || whoami(&daemon, &by_new).await.ok()).await;
    until("the old key is gone", async || whoami(&daemon, &by_old).await.err()).await;
    assert_eq!(refused(&daemon, &by_old).await, unauthenticated());

    // A file that is not there any more: who has a key that is known goes on.
    fleet.expect_log("the issuer's keys cannot be read");
    std::fs::remove_file(fleet.dir.join("issuer.json")).unwrap();
    until("the file is missed", async || {
        whoami(&daemon, &new.sign(&claims(json!({ "jti": Uuid::new_v4().to_string() })))).await.unwrap();
        fleet.has_logged("the issuer's keys cannot be read").then_some(())
    })
    .await;
    publish(&new);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn an_issuer_with_a_private_authority_is_known_by_its_roots() {
    let key = SigningKey::new("key", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let (company, stranger) = (Authority::new(), Authority::new());
    let url = format!("https://localhost:{}/keys", company.front(issuer.address).await);
    let spec = spec(("jwks_url", &url), "program").setting("[[access.jwt]]", "jwks_ca_file", "\"company.pem\"");
    let fleet = Fleet::new(spec).await;
    let roots = fleet.dir.join("company.pem");
    let problem = tenantd::config::load(&fleet.config_file()).unwrap_err().to_string();
    assert!(problem.contains("access.jwt.login.jwks_ca_file") && problem.contains("company.pem"), "{problem}");
    std::fs::write(&roots, &stranger.pem).unwrap();
    fleet.expect_log("the issuer's keys cannot be read");
    let token = key.sign(&claims(json!({})));
    let daemon = fleet.start().await;
    assert_eq!(refused(&daemon, &token).await.0, Code::Unavailable);
    assert_eq!(issuer.fetches.load(Ordering::SeqCst), 0, "a stranger was asked");
    daemon.stop().await;
    std::fs::write(&roots, &company.pem).unwrap();
    let daemon = fleet.start().await;
    whoami(&daemon, &token).await.unwrap();
    fleet.stop(daemon).await;
}
