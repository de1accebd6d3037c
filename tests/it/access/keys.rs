//! Keys: until when they open, how their use is counted, and what becomes of them while the auth database is away.

use std::collections::BTreeSet;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tenantd::access::{Access, Credentials, Denial, Error};
use tenantd::accounts::{Accounts, Change, NewApiKey};
use tenantd::catalog::TenantRef;
use tenantd::config::{AccessConfig, Limits, Live};
use tenantd::domain::permission::Role;
use tenantd::domain::principal::Scope;
use tenantd::domain::route::Route;
use tenantd::secrets::ApiKeySecret;
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::harness::{Spec, until};
use crate::tenants::Rooms;

async fn key(accounts: &Accounts, name: &str, expires_at: Option<OffsetDateTime>) -> (Uuid, String) {
    let (secret, hash) = ApiKeySecret::new();
    let id = Uuid::now_v7();
    let (roles, scope) = (BTreeSet::from([Role::Viewer]), Scope::Tenants(["acme".parse().unwrap()].into()));
    let acme = "acme".parse().unwrap();
    let new = NewApiKey {
        id,
        name,
        hash,
        roles: &roles,
        scope: &scope,
        default_tenant: Some(&acme),
        created_by: "test",
        expires_at,
    };
    accounts.api_key_insert(&new).await.unwrap();
    (id, format!("Bearer {}", secret.expose_secret()))
}

fn bearer(header: &str) -> Credentials<'_> {
    Credentials { header: Some(header), ..Credentials::default() }
}

async fn rooms() -> (Rooms, Accounts, Access) {
    rooms_with(|_| {}).await
}

async fn rooms_with(change: impl FnOnce(&mut Limits)) -> (Rooms, Accounts, Access) {
    let rooms = Rooms::new(Spec::default()).await;
    let accounts = Accounts::new(&rooms.server, &rooms.config.naming.auth_database()).unwrap();
    accounts.migrate().await.unwrap();
    let mut limits = rooms.config.limits.clone();
    change(&mut limits);
    let live = Live::new(limits);
    let access =
        Access::new(&AccessConfig::default(), live, accounts.clone(), rooms.catalog.clone(), &rooms.tasks).unwrap();
    (rooms, accounts, access)
}

#[tokio::test]
async fn a_key_gets_in_until_it_is_revoked_or_expired() {
    let (rooms, accounts, access) = rooms().await;
    let (id, header) = key(&accounts, "ci", None).await;
    let caller = access.authenticate(&bearer(&header)).await.unwrap();
    let principal = &caller.principal;
    assert_eq!(
        (principal.name.as_str(), principal.default_tenant.clone()),
        ("api-key:ci", Some("acme".parse().unwrap()))
    );
    assert!(principal.reaches(&"acme".parse().unwrap()) && !principal.reaches(&"beta".parse().unwrap()));
    assert!(access.authorize(principal, "/tenantd.v1.TenantService/GetTenant").is_ok());
    let denied = access.authorize(principal, "/tenantd.v1.TenantService/CreateTenant");
    assert!(matches!(denied, Err(Error::Denied { .. })));
    assert!(matches!(access.authorize(principal, "/x/Y"), Err(Error::MethodUnknown { .. })));

    accounts.api_key_revoke(id).await.unwrap();
    access.forget(Change::Key(id));
    assert!(matches!(access.authenticate(&bearer(&header)).await, Err(Error::Refused { .. })));

    let header = until("a key gets in before it expires", async || {
        let soon = OffsetDateTime::now_utc() + Duration::from_millis(700);
        let (_, header) = key(&accounts, "short", Some(soon)).await;
        let is_in = access.authenticate(&bearer(&header)).await.is_ok();
        assert!(is_in || OffsetDateTime::now_utc() >= soon);
        is_in.then_some(header)
    })
    .await;
    until("the key expires", async || access.authenticate(&bearer(&header)).await.err().map(|_| ())).await;

    assert!(matches!(access.authenticate(&Credentials::default()).await, Err(Error::Missing)));
    let unknown = access.authenticate(&bearer("Bearer tnd_unknown")).await;
    assert!(matches!(unknown, Err(Error::Refused { .. })));
    rooms.finish().await;
    accounts.close();
}

#[tokio::test]
async fn the_use_of_a_key_is_counted_and_nothing_is_lost_at_the_end() {
    let (rooms, accounts, access) = rooms().await;
    let (id, header) = key(&accounts, "ci", None).await;
    for number in 0..7 {
        let caller = access.authenticate(&bearer(&header)).await.unwrap();
        access.count(&caller).unwrap();
        if number < 2 {
            access.count_failure(&caller);
        }
    }
    until("the use is noted", async || accounts.api_key_get(id).await.unwrap().last_used_at).await;
    let caller = access.authenticate(&bearer(&header)).await.unwrap();
    access.count(&caller).unwrap();
    access.flush().await;
    let judge = rooms.fleet.judge(rooms.config.naming.auth_database().as_str()).await;
    let row = judge
        .query_one("SELECT sum(calls)::bigint, sum(failures)::bigint FROM api_key_usage WHERE api_key_id = $1", &[&id])
        .await
        .unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (8, 2));
    rooms.finish().await;
    accounts.close();
}

#[tokio::test]
async fn while_the_auth_database_is_away_who_is_known_goes_on() {
    let (rooms, accounts, access) = rooms().await;
    rooms.fleet.expect_log("the auth database does not answer");
    let ask = async |header: &str| {
        access.authenticate(&bearer(header)).instrument(rooms.tasks.span().clone()).await.map(|_| ())
    };
    let (id, known) = key(&accounts, "ci", None).await;
    let (_, fresh) = key(&accounts, "fresh", None).await;
    let judge = rooms.fleet.judge("postgres").await;
    let database = rooms.config.naming.auth_database();
    // When the daemon begins to listen, it reads everybody anew.
    let listening = "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'LISTEN%' AND state = 'idle'";
    until("the daemon listens", async || judge.query_opt(listening, &[&database.as_str()]).await.unwrap()).await;
    ask(&known).await.unwrap();
    ask(&known).await.unwrap();
    let allow = async |allow: bool| {
        judge.batch_execute(&format!("ALTER DATABASE {database} ALLOW_CONNECTIONS {allow}")).await.unwrap();
    };
    allow(false).await;
    let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1";
    judge.query(end, &[&database.as_str()]).await.unwrap();
    assert!(matches!(ask(&fresh).await, Err(Error::Away { what: "the auth database" })));
    // Older than anything may be while the database answers.
    let read_at = Instant::now();
    until("what is known is old", async || (read_at.elapsed() > Duration::from_secs(6)).then_some(())).await;
    ask(&known).await.unwrap();
    assert!(matches!(ask(&fresh).await, Err(Error::Away { what: "the auth database" })));
    assert!(matches!(ask("Bearer tnd_unknown").await, Err(Error::Away { what: "the auth database" })));

    allow(true).await;
    until("the database answers again", async || ask(&fresh).await.ok()).await;
    accounts.api_key_revoke(id).await.unwrap();
    until("the revocation is known", async || ask(&known).await.err()).await;
    assert!(matches!(ask(&known).await, Err(Error::Refused { .. })));
    rooms.finish().await;
    accounts.close();
}

#[tokio::test]
async fn a_tier_that_was_taken_from_the_configuration_is_the_lowest_and_not_without_a_limit() {
    let low = |limits: &mut Limits| limits.tiers.get_mut("free").unwrap().calls_per_second_max = 2;
    let (rooms, accounts, access) = rooms_with(low).await;
    let acme = rooms.tenant("acme").await;
    let route = rooms.catalog.tenant_get(&TenantRef::Id(acme.id)).await.unwrap().into_route();
    let refused = |tier: &str| {
        let route = Route { tier: tier.to_owned(), ..route.clone() };
        (0..20).find_map(|_| access.count_tenant(&route).err())
    };
    assert!(refused("standard").is_none());
    let refusal = refused("a tier of last year").expect("there is a limit");
    assert!(matches!(refusal, Error::TooManyCalls { calls_per_second_max: 2, .. }), "{refusal:?}");
    rooms.finish().await;
    accounts.close();
}

#[tokio::test]
async fn another_daemons_revocation_is_heard() {
    let (rooms, accounts, access) = rooms().await;
    let (id, header) = key(&accounts, "ci", None).await;
    access.authenticate(&bearer(&header)).await.unwrap();
    let judge = rooms.fleet.judge(rooms.config.naming.auth_database().as_str()).await;
    let listening = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    until("the daemon listens", async || judge.query_opt(listening, &[]).await.unwrap()).await;
    judge.execute("UPDATE api_keys SET revoked_at = now() WHERE id = $1", &[&id]).await.unwrap();
    until("the revocation is known", async || access.authenticate(&bearer(&header)).await.err()).await;
    // A key whose roles change has the new ones.
    let (id, header) = key(&accounts, "changing", None).await;
    access.authenticate(&bearer(&header)).await.unwrap();
    let grant = "INSERT INTO api_key_roles (api_key_id, role) VALUES ($1, 'user')";
    judge.execute(grant, &[&id]).await.unwrap();
    until("the role is known", async || {
        let caller = access.authenticate(&bearer(&header)).await.unwrap();
        caller.principal.roles.contains(&Role::User).then_some(())
    })
    .await;
    rooms.finish().await;
    accounts.close();
}

#[tokio::test]
async fn who_is_denied_and_hangs_up_is_in_the_audit_log() {
    let (rooms, _accounts, access) = rooms().await;
    let denial = Denial {
        principal: Some("api-key:curious"),
        user: None,
        path: "/tenantd.v1.TenantService/GetTenant",
        reason: "PERMISSION_DENIED",
        tenant: Some("acme".to_owned()),
        address: None,
        user_agent: Some("test"),
    };
    {
        let mut call = Box::pin(access.denied(&denial));
        assert!(futures_util::poll!(&mut call).is_pending());
    }
    let judge = rooms.fleet.judge(&rooms.config.naming.auth_database().to_string()).await;
    let sql = "SELECT action, user_agent, details ->> 'calls' FROM audit_log WHERE principal = 'api-key:curious'";
    let row = until("it is in the log", async || judge.query_opt(sql, &[]).await.unwrap()).await;
    let (action, agent, calls): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((action.as_str(), agent.as_str(), calls.as_str()), ("TenantService/GetTenant", "test", "1"));
    rooms.finish().await;
}

#[tokio::test]
async fn who_guesses_and_hangs_up_has_guessed() {
    let (rooms, _accounts, access) = rooms().await;
    let from = Some("192.0.2.7".parse().unwrap());
    let guess = || format!("Bearer {}", ApiKeySecret::new().0.expose_secret());
    for _ in 0..60 {
        let header = guess();
        let asked = Credentials { header: Some(&header), address: from, ..Credentials::default() };
        let mut call = Box::pin(access.authenticate(&asked));
        assert!(futures_util::poll!(&mut call).is_pending());
    }
    // Far fewer than there may be; the first of them wait behind those that nobody waits for any more.
    let mut answers = Vec::new();
    for _ in 0..25 {
        let header = guess();
        let asked = Credentials { header: Some(&header), address: from, ..Credentials::default() };
        answers.push(access.authenticate(&asked).await.unwrap_err());
    }
    let is_over = |error: &Error| matches!(error, Error::TooManyFailures { .. });
    assert!(answers.iter().any(is_over), "{answers:?}");
    rooms.finish().await;
}
