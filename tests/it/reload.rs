//! A configuration that is read again while the daemon runs: what counts at once, and one with a problem.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use tenantd::config::{Credentials, Keys, RoleLogin, write_private};
use tenantd::proto::v1::CreateTenantRequest;
use tenantd::secrets::keys_new;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::harness::{Fleet, Spec, tenantd, until};

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
    let request = CreateTenantRequest {
        request_id: Uuid::new_v4().to_string(),
        code: "golden".to_owned(),
        name: "Golden".to_owned(),
        tier: "gold".to_owned(),
        ..CreateTenantRequest::default()
    };
    let operation = daemon.client.tenants().create_tenant(request).await.unwrap().into_inner().operation.unwrap();
    daemon.client.succeeded(&operation).await;
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
