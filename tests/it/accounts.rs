//! The auth database against a real server: keys as they are found by their hash, and first administrators.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use tenantd::accounts::{Accounts, Error, KeyUsage, NewApiKey, NewOwner};
use tenantd::domain::page::Page;
use tenantd::domain::permission::Role;
use tenantd::domain::principal::Scope;
use tenantd::domain::tenant::TenantId;
use tenantd::postgres::Server;
use tenantd::secrets::ApiKeySecret;
use tenantd::shutdown::Tasks;
use time::{Duration, OffsetDateTime};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::harness::{Fleet, Spec};

/// A fleet's accounts without a daemon, and a superuser's session on their database.
struct Bench {
    fleet: Fleet,
    accounts: Accounts,
    judge: tokio_postgres::Client,
}

impl Bench {
    async fn new() -> Self {
        let fleet = Fleet::new(Spec::default()).await;
        let config = fleet.config();
        let server = Server::new(&config.servers[0], &Tasks::new(tracing::Span::none()), Uuid::new_v4()).unwrap();
        let database = fleet.naming.auth_database();
        let accounts = Accounts::new(&server, &database).unwrap();
        assert_eq!(accounts.migrate().await.unwrap(), 6);
        assert_eq!(accounts.migrate().await.unwrap(), 0);
        let judge = fleet.judge(database.as_str()).await;
        Self { fleet, accounts, judge }
    }

    async fn finish(self) {
        self.accounts.close();
        drop(self.accounts);
        self.fleet.finish().await;
    }

    async fn count(&self, table: &str) -> i64 {
        self.judge.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
    }
}

fn roles(roles: &[Role]) -> BTreeSet<Role> {
    roles.iter().copied().collect()
}

fn new_key<'a>(name: &'a str, roles: &'a BTreeSet<Role>, scope: &'a Scope) -> NewApiKey<'a> {
    let hash = ApiKeySecret::new().1;
    NewApiKey {
        id: Uuid::now_v7(),
        name,
        hash,
        roles,
        scope,
        default_tenant: None,
        created_by: "test",
        expires_at: None,
    }
}

#[tokio::test]
async fn a_key_is_found_by_its_hash_as_it_was_made() {
    let bench = Bench::new().await;
    let roles = roles(&[Role::Viewer, Role::Backup]);
    let scope = Scope::Tenants(["acme".parse().unwrap(), "bolt".parse().unwrap()].into());
    let expires_at = Some(OffsetDateTime::from_unix_timestamp(4_000_000_000).unwrap() + Duration::microseconds(7));
    let new = NewApiKey { expires_at, ..new_key("ci", &roles, &scope) };
    let made = bench.accounts.api_key_insert(&new).await.unwrap();
    let found = bench.accounts.api_key_by_hash(&new.hash).await.unwrap().unwrap();
    assert_eq!(found, made);
    assert_eq!((&found.roles, &found.scope, found.expires_at), (&roles, &scope, expires_at));
    assert!(bench.accounts.api_key_by_hash(&ApiKeySecret::hash("tnd_guess")).await.unwrap().is_none());

    let now = OffsetDateTime::from_unix_timestamp(3_000_000_000).unwrap();
    let usage = KeyUsage { key: new.id, calls: 3, failures: 1 };
    let gone = KeyUsage { key: Uuid::nil(), ..usage };
    bench.accounts.api_key_usage_add(&[usage, gone, usage], now).await.unwrap();
    bench.accounts.api_key_usage_add(&[usage], now - Duration::HOUR).await.unwrap();
    assert_eq!(bench.count("api_key_usage WHERE (calls, failures) = (9, 3)").await, 1);
    assert_eq!(bench.accounts.api_key_get(new.id).await.unwrap().last_used_at, Some(now));
    let revoked = bench.accounts.api_key_revoke(new.id).await.unwrap();
    assert!(revoked.revoked_at.is_some());
    assert_eq!(bench.accounts.api_key_revoke(new.id).await.unwrap(), revoked);
    let unknown = bench.accounts.api_key_revoke(Uuid::nil()).await;
    assert!(matches!(unknown, Err(Error::ApiKeyUnknown { .. })));
    bench.finish().await;
}

#[tokio::test]
async fn a_key_for_no_tenant_never_becomes_one_for_all() {
    let bench = Bench::new().await;
    let roles = roles(&[Role::Resolver]);
    let none = Scope::Tenants(BTreeSet::new());
    for scope in [none, Scope::All] {
        let new = new_key("k", &roles, &scope);
        assert_eq!(bench.accounts.api_key_insert(&new).await.unwrap().scope, scope);
        assert_eq!(bench.accounts.api_key_by_hash(&new.hash).await.unwrap().unwrap().scope, scope);
    }
    bench.finish().await;
}

#[tokio::test]
async fn keys_come_newest_first_with_the_revoked_ones() {
    let bench = Bench::new().await;
    let roles = roles(&[Role::Viewer]);
    let mut made = Vec::new();
    for name in ["a", "b", "c"] {
        made.push(bench.accounts.api_key_insert(&new_key(name, &roles, &Scope::All)).await.unwrap().id);
    }
    bench.accounts.api_key_revoke(made[1]).await.unwrap();
    // Whatever the ids are that clients have chosen.
    for id in [Uuid::max(), Uuid::from_u128(1), Uuid::new_v4()] {
        let chosen = NewApiKey { id, ..new_key("chosen", &roles, &Scope::All) };
        made.push(bench.accounts.api_key_insert(&chosen).await.unwrap().id);
    }
    made.reverse();
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = bench.accounts.api_key_list(&Page { size: 2, after }).await.unwrap();
        listed.extend(page.rows.iter().map(|key| key.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed, made);
    let nobodys = Page { size: 2, after: Some(Uuid::new_v4().to_string()) };
    assert!(matches!(bench.accounts.api_key_list(&nobodys).await, Err(Error::PageToken(_))));
    bench.finish().await;
}

#[tokio::test]
async fn a_key_of_any_time_is_listed_and_a_damaged_one_hides_no_other() {
    let bench = Bench::new().await;
    let roles = roles(&[Role::Viewer]);
    let some = Scope::Tenants(["acme".parse().unwrap()].into());
    let (mut made, mut hashes) = (Vec::new(), Vec::new());
    for name in ["never", "later", "over", "damaged", "plain"] {
        let new = new_key(name, &roles, &some);
        made.push(bench.accounts.api_key_insert(&new).await.unwrap().id);
        hashes.push(new.hash);
    }
    for (id, column, moment) in [
        (made[0], "expires_at", "infinity"),
        (made[0], "created_at", "infinity"),
        (made[1], "expires_at", "294276-12-31 23:59:59.999999+00"),
        (made[1], "created_at", "20000-01-01+00"),
        (made[2], "expires_at", "-infinity"),
        (made[2], "created_at", "-infinity"),
        (made[2], "last_used_at", "4713-01-01+00 BC"),
    ] {
        let update = format!("UPDATE api_keys SET {column} = '{moment}' WHERE id = '{id}'");
        bench.judge.batch_execute(&update).await.unwrap();
    }
    let damage = format!("UPDATE api_key_tenants SET tenant_code = 'Not A Code' WHERE api_key_id = '{}'", made[3]);
    bench.judge.batch_execute(&damage).await.unwrap();
    // What is passed over is told.
    bench.fleet.expect_log("a row of the auth database is passed over");
    let tasks = bench.fleet.tasks();
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = Page { size: 1, after };
        let page = bench.accounts.api_key_list(&page).instrument(tasks.span().clone()).await.unwrap();
        listed.extend(page.rows.iter().map(|key| key.name.clone()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed, ["never", "later", "plain", "over"]);
    let mut found = Vec::new();
    for hash in &hashes {
        found.push(bench.accounts.api_key_by_hash(hash).await);
    }
    let expiry = |at: usize| found[at].as_ref().unwrap().as_ref().unwrap().expires_at;
    assert_eq!((expiry(0), expiry(1), expiry(4)), (None, None, None));
    assert_eq!(expiry(2).map(OffsetDateTime::year), Some(1));
    assert!(matches!(found[3], Err(Error::Corrupt(_))), "{:?}", found[3]);
    bench.finish().await;
}

#[tokio::test]
async fn of_many_first_admin_keys_exactly_one_is_made() {
    let bench = Bench::new().await;
    let (admin, now) = (roles(&[Role::Admin]), OffsetDateTime::from_unix_timestamp(3_000_000_000).unwrap());
    let expired = NewApiKey { expires_at: Some(now - Duration::HOUR), ..new_key("old", &admin, &Scope::All) };
    bench.accounts.api_key_insert(&expired).await.unwrap();
    assert!(!bench.accounts.admin_key_exists(now).await.unwrap());
    // One for some tenants makes no keys, so that nobody could make the next.
    let some = Scope::Tenants(["acme".parse().unwrap()].into());
    bench.accounts.api_key_insert(&new_key("narrow", &admin, &some)).await.unwrap();
    assert!(!bench.accounts.admin_key_exists(now).await.unwrap());
    let keys: Vec<_> = (0..6).map(|_| new_key("admin", &admin, &Scope::All)).collect();
    let outcomes = join_all(keys.iter().map(|key| bench.accounts.api_key_insert_first_admin(key, now))).await;
    let made: Vec<_> = outcomes.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(made.len(), 1);
    assert!(bench.accounts.admin_key_exists(now).await.unwrap());
    bench.accounts.api_key_revoke(made[0].id).await.unwrap();
    assert!(!bench.accounts.admin_key_exists(now).await.unwrap());
    bench.finish().await;
}

#[tokio::test]
async fn a_first_administrator_comes_and_goes_with_the_tenant() {
    let bench = Bench::new().await;
    let (acme, bolt) = (TenantId(Uuid::now_v7()), TenantId(Uuid::now_v7()));
    let ada = NewOwner { email: "Ada@Example.com", first_name: "Ada", last_name: "L." };
    let user = bench.accounts.user_upsert_owner_in(acme, &ada).await.unwrap();
    assert_eq!(bench.accounts.user_upsert_owner_in(acme, &ada).await.unwrap(), user);
    let same_mailbox = NewOwner { email: "ada@example.com", first_name: "", last_name: "" };
    assert_eq!(bench.accounts.user_upsert_owner_in(bolt, &same_mailbox).await.unwrap(), user);
    let row = bench.judge.query_one("SELECT u.first_name, r.name FROM users u JOIN user_tenant_roles t ON t.user_id = u.id JOIN roles r ON r.id = t.role_id WHERE t.tenant_id = $1", &[&bolt.0]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("Ada", "OWNER"));

    assert_eq!(bench.accounts.user_tenant_roles_delete(acme).await.unwrap(), 1);
    assert_eq!((bench.count("users").await, bench.count("user_tenant_roles").await), (1, 1));
    assert_eq!(bench.accounts.user_tenant_roles_delete(bolt).await.unwrap(), 1);
    assert_eq!((bench.count("users").await, bench.count("user_tenant_roles").await), (0, 0));
    assert_eq!(bench.accounts.user_tenant_roles_delete(bolt).await.unwrap(), 0);
    let refusal = bench.accounts.user_upsert_owner_in(acme, &NewOwner { email: "nobody", ..ada }).await;
    assert!(matches!(refusal, Err(Error::EmailInvalid(_))));
    bench.finish().await;
}

#[tokio::test]
async fn an_audit_row_of_any_month_has_a_place() {
    let bench = Bench::new().await;
    let insert = "INSERT INTO audit_log (id, occurred_at, principal, action, outcome) VALUES (gen_random_uuid(), $1::text::timestamptz, 'p', 'a', 'DONE') RETURNING tableoid::regclass::text";
    let place = |moment: &'static str| {
        let judge = &bench.judge;
        async move { judge.query_one(insert, &[&moment]).await.unwrap().get::<_, String>(0) }
    };
    assert_eq!(place("1999-01-01").await, "audit_log_default");
    bench.judge.batch_execute("SELECT audit_log_month_create('2031-05-31 23:59:59.999+00')").await.unwrap();
    assert_eq!(place("2031-05-01 00:00+00").await, "audit_log_2031_05");
    assert_eq!(place("2031-06-01 00:00+00").await, "audit_log_default");
    bench.finish().await;
}
