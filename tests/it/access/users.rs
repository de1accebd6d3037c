//! People: a token's subject is a user of the auth database, and reaches what its rows say at this moment.

use jsonwebtoken::Algorithm;
use serde_json::json;
use tenantd::proto::v1::resolve_tenant_request::Selector;
use tenantd::proto::v1::{ListTenantsRequest, ResolveTenantRequest};
use tonic::Code;
use uuid::Uuid;

use super::issuer::{ISSUER, Issuer, SigningKey, claims};
use super::tokens::{refused, unauthenticated, whoami};
use crate::harness::{Client, Fleet, until};

/// A user with a session and roles in these tenants.
pub async fn user(judge: &tokio_postgres::Client, tenants: &[&str]) -> (Uuid, Uuid) {
    let (user, session) = (Uuid::now_v7(), Uuid::now_v7());
    let email = format!("{user}@example.com");
    judge.execute("INSERT INTO users (id, email) VALUES ($1, $2)", &[&user, &email]).await.unwrap();
    let insert = "INSERT INTO sessions (id, user_id, token_hash, expires_at) VALUES ($1, $2, sha256($3), now() + interval '1 day')";
    judge.execute(insert, &[&session, &user, &session.as_bytes().as_slice()]).await.unwrap();
    for tenant in tenants {
        let insert = "INSERT INTO user_tenant_roles (user_id, tenant_id, role_id) SELECT $1, $2, id FROM roles WHERE name = 'USER'";
        judge.execute(insert, &[&user, &tenant.parse::<Uuid>().unwrap()]).await.unwrap();
    }
    (user, session)
}

#[tokio::test]
async fn a_user_reaches_its_tenants_and_nothing_else() {
    let key = SigningKey::new("key", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let fleet = Fleet::new(issuer.spec("user")).await;
    let daemon = fleet.start().await;
    let (acme, bolt) = (daemon.client.tenant("acme").await, daemon.client.tenant("bolt").await);
    daemon.client.tenant("cusp").await;
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let (id, session) = user(&judge, &[&acme.tenant_id, &bolt.tenant_id]).await;
    let token = key.sign(&claims(json!({ "sub": id.to_string(), "sid": session.to_string() })));

    let me = whoami(&daemon, &token).await.unwrap();
    assert_eq!((me.principal, me.user_id), (format!("user:{id}"), id.to_string()));
    assert_eq!((me.roles.join(" ").as_str(), me.tenants.join(" ").as_str()), ("user", "acme bolt"));
    let caller = Client::new(daemon.address, Some(&token));
    assert_eq!(caller.sql("acme", "SELECT count(*) FROM things").await, "20");
    assert_eq!(caller.execute("cusp", "SELECT 1").await.unwrap_err().code(), Code::PermissionDenied);
    let listed = caller.tenants().list_tenants(ListTenantsRequest::default()).await;
    assert_eq!(listed.unwrap_err().code(), Code::PermissionDenied);
    let wanted = ResolveTenantRequest { selector: Some(Selector::Code("acme".to_owned())), include_credentials: true };
    assert_eq!(caller.router().resolve_tenant(wanted).await.unwrap_err().code(), Code::PermissionDenied);

    // The tenant that the person has chosen, and what a token narrows.
    judge
        .execute(
            "UPDATE sessions SET tenant_id = $2 WHERE id = $1",
            &[&session, &bolt.tenant_id.parse::<Uuid>().unwrap()],
        )
        .await
        .unwrap();
    until("the choice is known", async || {
        (whoami(&daemon, &token).await.unwrap().default_tenant == "bolt").then_some(())
    })
    .await;
    let chosen = caller.router().resolve_tenant(ResolveTenantRequest::default()).await.unwrap().into_inner();
    assert_eq!(chosen.route.unwrap().code, "bolt");
    let narrow = key.sign(&claims(json!({ "sub": id.to_string(), "tenants": ["acme", "cusp"], "roles": ["viewer"] })));
    let me = whoami(&daemon, &narrow).await.unwrap();
    assert_eq!((me.tenants.join(" ").as_str(), me.roles.join(" ").as_str()), ("acme", "viewer user"));
    assert_eq!(me.default_tenant, "acme");

    // A role that ends, ends at its time.
    let expire =
        "UPDATE user_tenant_roles SET expires_at = now() + interval '1 second' WHERE user_id = $1 AND tenant_id = $2";
    judge.execute(expire, &[&id, &acme.tenant_id.parse::<Uuid>().unwrap()]).await.unwrap();
    until("the role has ended", async || caller.execute("acme", "SELECT 1").await.err()).await;
    assert_eq!(caller.sql("bolt", "SELECT 1").await, "1");
    judge.execute("UPDATE user_tenant_roles SET is_active = false WHERE user_id = $1", &[&id]).await.unwrap();
    until("no role is left", async || caller.execute("bolt", "SELECT 1").await.err()).await;
    assert!(whoami(&daemon, &token).await.unwrap().tenants.is_empty());
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_grant_and_a_session_may_be_for_ever() {
    let key = SigningKey::new("key", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let fleet = Fleet::new(issuer.spec("user")).await;
    let daemon = fleet.start().await;
    let acme = daemon.client.tenant("acme").await;
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let (id, session) = user(&judge, &[&acme.tenant_id]).await;
    let token = key.sign(&claims(json!({ "sub": id.to_string(), "sid": session.to_string() })));
    // Only what is written by then is known: a token that was not seen before.
    let reached = async |table: &str, expires_at: &str| {
        let column = if table == "sessions" { "id" } else { "user_id" };
        let update = format!("UPDATE {table} SET expires_at = '{expires_at}' WHERE {column} = $1");
        let row = if table == "sessions" { session } else { id };
        assert_eq!(judge.execute(&update, &[&row]).await.unwrap(), 1);
        let jti = Uuid::new_v4().to_string();
        let new = key.sign(&claims(json!({ "sub": id.to_string(), "sid": session.to_string(), "jti": jti })));
        whoami(&daemon, &new).await.map(|me| me.tenants.join(" "))
    };
    let caller = Client::new(daemon.address, Some(&token));
    for moment in ["infinity", "294276-12-31", "10000-01-01", "9999-12-31 23:59:59+00"] {
        assert_eq!(reached("user_tenant_roles", moment).await.unwrap(), "acme", "{moment}");
        assert_eq!(reached("sessions", moment).await.unwrap(), "acme", "{moment}");
        assert_eq!(caller.sql("acme", "SELECT 1").await, "1");
    }
    for moment in ["-infinity", "4713-01-01 BC", "1999-12-31"] {
        assert_eq!(reached("user_tenant_roles", moment).await.unwrap(), "", "{moment}");
    }
    assert_eq!(reached("sessions", "-infinity").await.unwrap_err().code(), Code::Unauthenticated);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn a_session_that_was_ended_and_a_user_who_is_not_active_open_nothing() {
    let key = SigningKey::new("key", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let fleet = Fleet::new(issuer.spec("user")).await;
    let daemon = fleet.start().await;
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let token =
        |user: Uuid, session: Uuid| key.sign(&claims(json!({ "sub": user.to_string(), "sid": session.to_string() })));
    let (ada, session) = user(&judge, &[]).await;
    let (bob, of_bob) = user(&judge, &[]).await;
    let (of_ada, of_bob) = (token(ada, session), token(bob, of_bob));
    whoami(&daemon, &of_ada).await.unwrap();
    whoami(&daemon, &of_bob).await.unwrap();
    // Another's session, one that nobody has, a user that nobody is, and a subject that is none.
    let nobody = Uuid::now_v7();
    for flaw in [token(bob, session), token(bob, nobody), token(nobody, nobody), key.sign(&claims(json!({})))] {
        assert_eq!(refused(&daemon, &flaw).await, unauthenticated());
    }
    judge.execute("UPDATE sessions SET revoked_at = now() WHERE id = $1", &[&session]).await.unwrap();
    until("the session has ended", async || whoami(&daemon, &of_ada).await.err()).await;
    assert_eq!(refused(&daemon, &of_ada).await, unauthenticated());
    judge.execute("UPDATE users SET is_active = false WHERE id = $1", &[&bob]).await.unwrap();
    until("the user is out", async || whoami(&daemon, &of_bob).await.err()).await;
    assert_eq!(refused(&daemon, &of_bob).await, unauthenticated());
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn an_identity_of_a_provider_is_its_user_where_the_provider_may_speak() {
    let key = SigningKey::new("key", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let fleet = Fleet::new(issuer.spec("identity")).await;
    let daemon = fleet.start().await;
    let (acme, bolt) = (daemon.client.tenant("acme").await, daemon.client.tenant("bolt").await);
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let (id, _session) = user(&judge, &[&acme.tenant_id, &bolt.tenant_id]).await;
    let provider = Uuid::now_v7();
    let insert =
        "INSERT INTO identity_providers (id, name, protocol, issuer, tenant_id) VALUES ($1, 'login', 'oidc', $2, $3)";
    judge.execute(insert, &[&provider, &ISSUER, &acme.tenant_id.parse::<Uuid>().unwrap()]).await.unwrap();
    let identity = Uuid::now_v7();
    let insert = "INSERT INTO user_identities (id, user_id, provider_id, subject) VALUES ($1, $2, $3, 'ada')";
    judge.execute(insert, &[&identity, &id, &provider]).await.unwrap();
    let token = key.sign(&claims(json!({ "sub": "ada", "sid": "s1" })));

    // One tenant's provider speaks for its people in that tenant alone.
    let me = whoami(&daemon, &token).await.unwrap();
    assert_eq!((me.user_id, me.tenants.join(" ").as_str()), (id.to_string(), "acme"));
    assert_eq!(refused(&daemon, &key.sign(&claims(json!({ "sub": "eve" })))).await, unauthenticated());
    judge.execute("UPDATE identity_providers SET tenant_id = NULL", &[]).await.unwrap();
    until("the provider speaks for all", async || {
        (whoami(&daemon, &token).await.unwrap().tenants == ["acme", "bolt"]).then_some(())
    })
    .await;
    // What the provider has ended.
    let insert =
        "INSERT INTO sso_sessions (id, identity_id, provider_session, revoked_at) VALUES ($1, $2, 's1', now())";
    judge.execute(insert, &[&Uuid::now_v7(), &identity]).await.unwrap();
    until("the session has ended", async || whoami(&daemon, &token).await.err()).await;
    assert_eq!(refused(&daemon, &token).await, unauthenticated());
    let next = key.sign(&claims(json!({ "sub": "ada", "sid": "s2" })));
    whoami(&daemon, &next).await.unwrap();
    judge.execute("UPDATE identity_providers SET is_active = false", &[]).await.unwrap();
    until("the provider is out", async || whoami(&daemon, &next).await.err()).await;
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn while_the_shared_database_is_away_only_people_are_told_so() {
    let key = SigningKey::new("key", Algorithm::ES256);
    let issuer = Issuer::start(&[&key]).await;
    let fleet = Fleet::new(issuer.spec("user")).await;
    let daemon = fleet.start().await;
    let acme = daemon.client.tenant("acme").await;
    let judge = fleet.judge(fleet.naming.auth_database().as_str()).await;
    let (id, session) = user(&judge, &[&acme.tenant_id]).await;
    let mut fresh = Vec::new();
    for _ in 0..3 {
        fresh.push(daemon.client.key_new(&["viewer"], &["acme"]).await);
    }
    for expected in ["does not answer", "the catalog", "no operation can be claimed"] {
        fleet.allow_log(expected);
    }
    fleet.expect_log("the shared database does not answer: callers that are known go on");
    let shared = fleet.naming.shared_database();
    judge.batch_execute(&format!("ALTER DATABASE {shared} ALLOW_CONNECTIONS false")).await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
    until("the shared database has no sessions", async || {
        judge.query(end, &[&shared.as_str()]).await.unwrap().is_empty().then_some(())
    })
    .await;
    for fresh in &fresh {
        let jti = Uuid::new_v4().to_string();
        let token = key.sign(&claims(json!({ "sub": id.to_string(), "sid": session.to_string(), "jti": jti })));
        let away = whoami(&daemon, &token).await.unwrap_err();
        assert_eq!(away.code(), Code::Unavailable, "{away:?}");
        assert!(away.message().contains("the shared database does not answer"), "{away:?}");
        // At the same moment, with a key that nobody has shown before.
        assert_eq!(whoami(&daemon, fresh).await.unwrap().roles, ["viewer"]);
    }
    judge.batch_execute(&format!("ALTER DATABASE {shared} ALLOW_CONNECTIONS true")).await.unwrap();
    let token = key.sign(&claims(json!({ "sub": id.to_string(), "sid": session.to_string() })));
    let me = until("people get in again", async || whoami(&daemon, &token).await.ok()).await;
    assert_eq!(me.tenants, ["acme"]);
    fleet.stop(daemon).await;
}
