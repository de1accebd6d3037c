//! A configuration that is read again while the daemon runs: what counts at once, and one with a problem.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use tenantd::config::{Credentials, Keys, RoleLogin, write_private};
use tenantd::proto::v1::CreateTenantRequest;
use tenantd::secrets::keys_new;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::{Client, Fleet, PATIENCE, Spec, tenantd, until};
use crate::router::Watch;
use crate::tenants::{Callers, sessions};

const SLEEPING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' AND datname = $1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiers_and_budgets_change_without_a_restart() {
    let spec = Spec::default()
        .setting("[[servers]]", "connections_max", "18")
        .setting("[[servers]]", "connections_reserved", "16")
        .setting("[router]", "acquire_timeout", "\"10m\"")
        .setting("[router]", "statement_timeout", "\"10m\"");
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.spawn();
    daemon.client.tenant("acme").await;
    let judge = fleet.judge("postgres").await;
    let database = format!("{}_acme", fleet.naming.prefix());
    let mut sleepers = JoinSet::new();
    for _ in 0..5 {
        let client = daemon.client.clone();
        sleepers.spawn(async move { client.execute("acme", "SELECT pg_sleep(600)").await });
    }
    let asleep = async || -> i64 { judge.query_one(SLEEPING, &[&database]).await.unwrap().get(0) };
    until("the budget is used up", async || (asleep().await == 2).then_some(())).await;

    fleet.expect_log("the configuration is not read again");
    fleet.configure(&[("[router]", "pools_max", "0".to_owned())]);
    daemon.hang_up();
    until("the problem is told", async || fleet.has_logged("the configuration is not read again").then_some(())).await;
    assert_eq!(asleep().await, 2);

    let gold =
        "{ direct_connections_max = 7, pool_connections_max = 3, users_max = 1, sites_max = 1, storage_bytes_max = 1 }";
    fleet.configure(&[("[[servers]]", "connections_max", "20".to_owned()), ("[tiers]", "gold", gold.to_owned())]);
    daemon.hang_up();
    until("the larger budget is used up", async || (asleep().await == 4).then_some(())).await;
    sleepers.shutdown().await;
    tenant(&daemon.client, "golden", "gold").await;
    daemon.terminate().await;
    fleet.finish().await;
}

/// A tenant of this tier.
async fn tenant(client: &Client, code: &str, tier: &str) {
    let request = CreateTenantRequest {
        request_id: Uuid::new_v4().to_string(),
        code: code.to_owned(),
        name: code.to_owned(),
        tier: tier.to_owned(),
        ..CreateTenantRequest::default()
    };
    let operation = client.tenants().create_tenant(request).await.unwrap().into_inner().operation.unwrap();
    client.succeeded(&operation).await;
}

/// A tier as the configuration says it.
fn tier(pool_connections_max: u32, queue_max: u32, weight: u32) -> String {
    format!(
        "{{ pool_connections_max = {pool_connections_max}, queue_max = {queue_max}, weight = {weight}, \
         direct_connections_max = 1, users_max = 1, sites_max = 1, storage_bytes_max = 1 }}"
    )
}

/// The next of them to be answered is refused because so many wait.
async fn assert_refused(callers: &mut JoinSet<Result<Vec<Vec<String>>, Status>>, why: &str) {
    let answer = timeout(PATIENCE, callers.join_next()).await.expect("nobody is refused");
    let refusal = answer.unwrap().unwrap().unwrap_err();
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal}");
    assert!(refusal.message().starts_with(why), "{refusal}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_pool_and_its_queue_become_as_its_tier_says_now() {
    let spec = Spec::default()
        .setting("[tiers]", "standard", &tier(1, 2, 1))
        .setting("[router]", "acquire_timeout", "\"10m\"")
        .setting("[router]", "statement_timeout", "\"10m\"");
    let fleet = Fleet::new(spec).await;
    fleet.allow_log("a connection has been held for long");
    let daemon = fleet.spawn();
    daemon.client.tenant("acme").await;
    let judge = fleet.judge("postgres").await;
    let database = format!("{}_acme", fleet.naming.prefix());
    let asleep = async || -> i64 { judge.query_one(SLEEPING, &[&database]).await.unwrap().get(0) };
    let mut callers = JoinSet::new();
    let come = |callers: &mut JoinSet<_>, count: usize| {
        for _ in 0..count {
            let client = daemon.client.clone();
            callers.spawn(async move { client.execute("acme", "SELECT pg_sleep(600)").await });
        }
    };
    come(&mut callers, 1);
    until("the pool is used up", async || (asleep().await == 1).then_some(())).await;
    // One more than may wait, whichever of them.
    come(&mut callers, 3);
    assert_refused(&mut callers, "2 callers wait").await;

    fleet.configure(&[("[tiers]", "standard", tier(3, 4, 1))]);
    daemon.hang_up();
    until("who waited gets through", async || (asleep().await == 3).then_some(())).await;
    come(&mut callers, 5);
    assert_refused(&mut callers, "4 callers wait").await;
    assert!(callers.try_join_next().is_none(), "the others wait");
    assert_eq!(asleep().await, 3);
    callers.shutdown().await;
    daemon.terminate().await;
    fleet.finish().await;
}

/// Callers of a tenant whose statements take equally long.
fn callers(client: &Client, tenant: &'static str, count: usize) -> Callers {
    let client = client.clone();
    Callers::new(count, move || {
        let client = client.clone();
        async move { drop(client.execute(tenant, "SELECT pg_sleep(0.05)").await.unwrap()) }
    })
}

/// So many places for tenants.
fn places(count: u32) -> (&'static str, &'static str, String) {
    ("[[servers]]", "connections_max", (16 + count).to_string())
}

fn places_spec(count: u32) -> Spec {
    let (section, name, value) = places(count);
    Spec::default().setting(section, name, &value).setting("[[servers]]", "connections_reserved", "16").setting(
        "[router]",
        "acquire_timeout",
        "\"10m\"",
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_weighs_more_now_has_more_of_the_places() {
    let spec =
        places_spec(5).setting("[tiers]", "one", &tier(10, 100, 4)).setting("[tiers]", "other", &tier(10, 100, 1));
    let fleet = Fleet::new(spec).await;
    let daemon = fleet.spawn();
    tenant(&daemon.client, "alpha", "one").await;
    tenant(&daemon.client, "beta", "other").await;
    let judge = fleet.judge("postgres").await;
    let have = async |tenant: &str| -> i64 {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
        let database = format!("{}_{tenant}", fleet.naming.prefix());
        judge.query_one(sql, &[&database]).await.unwrap().get(0)
    };
    let [alpha, beta] = ["alpha", "beta"].map(|tenant| callers(&daemon.client, tenant, 16));
    until("alpha has four", async || ((have("alpha").await, have("beta").await) == (4, 1)).then_some(())).await;
    fleet.configure(&[("[tiers]", "one", tier(10, 100, 1)), ("[tiers]", "other", tier(10, 100, 4))]);
    daemon.hang_up();
    until("beta has four", async || ((have("alpha").await, have("beta").await) == (1, 4)).then_some(())).await;
    alpha.go_on(20).await;
    beta.go_on(20).await;
    alpha.end().await;
    beta.end().await;
    daemon.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smaller_budget_is_kept_while_calls_go_on() {
    let fleet = Fleet::new(places_spec(12)).await;
    let daemon = fleet.spawn();
    let tenants = ["alpha", "beta", "gamma"];
    for tenant in tenants {
        daemon.client.tenant(tenant).await;
    }
    let judge = fleet.judge("postgres").await;
    let all = async || sessions(&judge, fleet.naming.prefix()).await;
    let calling = tenants.map(|tenant| callers(&daemon.client, tenant, 8));
    until("there are more than will be", async || (all().await >= 8).then_some(())).await;
    fleet.configure(&[places(4)]);
    daemon.hang_up();
    until("the smaller one is kept", async || (all().await <= 4).then_some(())).await;
    let watch = Watch::of(&fleet).await;
    for callers in &calling {
        callers.go_on(50).await;
    }
    let most = watch.end().await;
    assert!((1..=4).contains(&most), "{most} sessions, and there are 4 places");
    for callers in calling {
        callers.end().await;
    }
    daemon.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_may_take_as_long_as_the_new_configuration_says() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.spawn();
    daemon.client.tenant("acme").await;
    let timeout = async || daemon.client.sql("acme", "SELECT current_setting('statement_timeout')").await;
    assert_ne!(timeout().await, "7s");
    fleet.configure(&[("[router]", "statement_timeout", "\"7s\"".to_owned())]);
    daemon.hang_up();
    until("the new time counts", async || (timeout().await == "7s").then_some(())).await;

    fleet.expect_log("the configuration is not read again");
    fleet.configure(&[("[router]", "connection_lifetime_max", "\"5000000000000h\"".to_owned())]);
    daemon.hang_up();
    let told = "\"5000000000000h\" is too long";
    until("the problem is told", async || fleet.latest().contains(told).then_some(())).await;
    fleet.configure(&[]);
    daemon.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_restart_is_named_and_secrets_are_not_shown() {
    const SECRET: &str = "hunter2";
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.spawn();
    let new = keys_new();
    let keys = Keys {
        key_encryption_key: SECRET.into(),
        manifest_signing_key: new.manifest_signing_key,
        escrow_recipient: new.escrow_recipient,
    };
    write_private(&fleet.dir.join("other-keys.toml"), &keys.to_toml()).unwrap();
    let own = &fleet.machine.credentials;
    let dump = RoleLogin { password: SECRET.into(), ..own.dump.clone() };
    let credentials = Credentials { dump, ..own.clone() };
    write_private(&fleet.dir.join("other-credentials.toml"), &credentials.to_toml()).unwrap();
    let quoted = |text: &str| format!("{text:?}");
    fleet.configure(&[
        ("", "keys_file", quoted("other-keys.toml")),
        ("[[servers]]", "credentials_file", quoted("other-credentials.toml")),
        ("[store]", "region", quoted("eu-west-3")),
        ("[store]", "secret_access_key", quoted(SECRET)),
        ("[router]", "acquire_timeout", quoted("11s")),
    ]);
    let named = "keys_file, servers.main.credentials_file, store.region, store.secret_access_key\"";
    fleet.expect_log(named);
    daemon.hang_up();
    until("the settings are named", async || fleet.has_logged(named).then_some(())).await;
    assert!(!fleet.latest().contains(SECRET), "{}", fleet.latest());
    // What counts until then is what it was started with.
    daemon.client.tenant("acme").await;
    daemon.client.backup("acme").await;
    daemon.terminate().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_with_a_secret_that_others_can_read_is_told_by_the_check_and_by_the_daemon() {
    let fleet = Fleet::new(Spec::default()).await;
    let check = || {
        let output = tenantd().arg("check-config").arg("--config").arg(fleet.config_file()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!check().contains("others can read it"));
    std::fs::set_permissions(fleet.config_file(), Permissions::from_mode(0o644)).unwrap();
    let told = "store.secret_access_key is in it, and others can read it (mode 644); run chmod 600";
    assert!(check().contains(told));
    fleet.expect_log("the configuration is not private");
    let daemon = fleet.spawn();
    until("the daemon says so too", async || fleet.has_logged(told).then_some(())).await;
    daemon.terminate().await;
    fleet.finish().await;
}
