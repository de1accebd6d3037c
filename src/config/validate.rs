//! What a configuration must hold beyond its types. Every rule reports; none stops the others.

use std::collections::BTreeSet;

use super::{Config, ServerTls, TlsFiles, access, roots};
use crate::domain::share::{BESIDE_RESERVE, KEPT};
use crate::domain::tier::TIER_DEFAULT;

/// The smallest part that S3 takes, except for the last.
const PART_BYTES_MIN: u64 = 5 << 20;

pub(super) fn check(config: &Config, problems: &mut Vec<String>) {
    listener(config, problems);
    let has_client_ca = config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    access::check(&config.access, has_client_ca, problems);
    servers(config, problems);
    shares(config, problems);
    store(config, problems);
    numbers(config, problems);
    tiers(config, problems);
    if !config.tenant_migrations_dir.is_dir() {
        problems.push(format!("tenant_migrations_dir: {} is no directory", config.tenant_migrations_dir.display()));
    }
    // The daemon makes it at its start.
    if let Some(there) = config.spool_dir.ancestors().find(|path| path.exists())
        && !there.is_dir()
    {
        problems.push(format!("spool_dir: {} is no directory", there.display()));
    }
}

fn tiers(config: &Config, problems: &mut Vec<String>) {
    let tiers = &config.limits.tiers;
    if !tiers.contains_key(TIER_DEFAULT) {
        problems.push(format!("tiers: {TIER_DEFAULT:?} is missing"));
    }
    for (name, tier) in tiers {
        let counts = [
            ("pool_connections_max", tier.pool_connections_max),
            ("weight", tier.weight),
            ("queue_max", tier.queue_max),
            ("calls_per_second_max", tier.calls_per_second_max),
        ];
        for (setting, _) in counts.into_iter().filter(|(_, count)| *count == 0) {
            problems.push(format!("tiers.{name}.{setting}: at least 1"));
        }
    }
}

fn listener(config: &Config, problems: &mut Vec<String>) {
    if !config.listen.ip().is_loopback() && config.tls.is_none() {
        problems.push(format!(
            "listen: {} can be reached from outside, and there is no [tls]; name certificate_file and key_file, or listen on a loopback address",
            config.listen
        ));
    }
    let files = |tls: &'_ TlsFiles| {
        let client_ca = tls.client_ca.as_ref().map(|ca| ca.file.clone());
        [Some(tls.certificate_file.clone()), Some(tls.key_file.clone()), client_ca].into_iter().flatten()
    };
    let Some(tls) = &config.tls else { return };
    let missing: Vec<_> = files(tls).filter(|file| !file.is_file()).collect();
    if missing.is_empty()
        && let Err(problem) = tls.server_config()
    {
        problems.push(format!("tls: {problem}"));
    }
    problems.extend(missing.iter().map(|file| format!("tls: {} is no file", file.display())));
}

fn servers(config: &Config, problems: &mut Vec<String>) {
    let mut names = BTreeSet::new();
    for server in &config.servers {
        let name = &server.name;
        if !names.insert(name) {
            problems.push(format!("servers.{name}: the name is there twice"));
        }
        if server.connections_reserved < 4 {
            problems.push(format!(
                "servers.{name}.connections_reserved: at least 4 (catalog, administration, migrations, backups)"
            ));
        }
        if server.connections_max <= server.connections_reserved {
            problems.push(format!(
                "servers.{name}.connections_max: {} leaves nothing for tenants beside the {} reserved",
                server.connections_max, server.connections_reserved
            ));
        }
        if server.connects_parallel_max == 0 {
            problems.push(format!("servers.{name}.connects_parallel_max: at least 1"));
        }
        let local = server.host.starts_with('/')
            || server.host == "localhost"
            || server.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if server.tls == ServerTls::Disable && !local {
            problems.push(format!(
                "servers.{name}.tls: \"disable\" sends passwords and data in clear to {}; use \"verify_full\"",
                server.host
            ));
        }
    }
    if !names.contains(&config.catalog_server) {
        problems.push(format!("catalog_server: {:?} is none of the servers", config.catalog_server));
    }
}

/// What is asked of a daemon that shares the servers' budgets with others.
fn shares(config: &Config, problems: &mut Vec<String>) {
    if config.shares.interval.is_zero() {
        problems.push("shares.interval: may not be zero".to_owned());
    }
    if config.instance.is_none() {
        return;
    }
    let connect_timeout = config.limits.router.connect_timeout;
    if config.shares.take_over_after < connect_timeout {
        problems.push(format!(
            "shares.take_over_after: {:?} is less than router.connect_timeout ({connect_timeout:?}); a connect that has begun must be over before a share is used again",
            config.shares.take_over_after
        ));
    }
    for server in &config.servers {
        let least = server.connections_reserved.saturating_add(BESIDE_RESERVE + KEPT);
        if server.connections_max < least {
            problems.push(format!(
                "servers.{}.connections_max: with an instance at least {least} ({} reserved, {BESIDE_RESERVE} for what stands for the share and for tenants, {KEPT} kept for daemons that start)",
                server.name, server.connections_reserved
            ));
        }
    }
}

fn store(config: &Config, problems: &mut Vec<String>) {
    let store = &config.store;
    if store.bucket.is_empty() {
        problems.push("store.bucket: may not be empty".to_owned());
    }
    if store.part_bytes_min < PART_BYTES_MIN {
        problems
            .push(format!("store.part_bytes_min: {} is less than S3 takes ({PART_BYTES_MIN})", store.part_bytes_min));
    }
    if !(1..=10_000).contains(&store.parts_max) {
        problems.push(format!("store.parts_max: {} is not between 1 and 10000", store.parts_max));
    }
    if let Some(endpoint) = &store.endpoint
        && !(endpoint.starts_with("http://") || endpoint.starts_with("https://"))
    {
        problems.push(format!("store.endpoint: {endpoint:?} must begin with http:// or https://"));
    }
    if let Some(file) = &store.ca_file
        && let Err(problem) = roots(Some(file))
    {
        problems.push(format!("store.{problem}"));
    }
}

fn numbers(config: &Config, problems: &mut Vec<String>) {
    let router = &config.limits.router;
    if !(1..=19).contains(&config.backup.zstd_level) {
        problems.push(format!("backup.zstd_level: {} is not between 1 and 19", config.backup.zstd_level));
    }
    let counts = [
        ("operations.concurrency_max", config.operations.concurrency_max),
        ("migrator.concurrency_max", config.migrator.concurrency_max),
        ("backup.concurrency_max", config.backup.concurrency_max),
        ("backup.verify_concurrency_max", config.backup.verify_concurrency_max),
        ("router.pools_max", router.pools_max),
    ];
    for (name, count) in counts {
        if count == 0 {
            problems.push(format!("{name}: at least 1"));
        }
    }
    let counts = [
        ("router.connection_uses_max", router.connection_uses_max),
        ("callers.calls_per_second_max", config.limits.callers.calls_per_second_max),
    ];
    for (name, _) in counts.into_iter().filter(|(_, count)| *count == 0) {
        problems.push(format!("{name}: at least 1"));
    }
    let times = [
        ("operations.lease", config.operations.lease),
        ("operations.poll_interval", config.operations.poll_interval),
        ("operations.repeat_max", config.operations.repeat_max),
        ("router.acquire_timeout", router.acquire_timeout),
        ("router.connect_timeout", router.connect_timeout),
        ("router.statement_timeout", router.statement_timeout),
        ("router.connection_lifetime_max", router.connection_lifetime_max),
        ("router.lease_warn_after", router.lease_warn_after),
        ("query.transaction_idle_max", config.limits.query.transaction_idle_max),
        ("query.stream_idle_max", config.limits.query.stream_idle_max),
        ("migrator.lock_timeout", config.migrator.lock_timeout),
        ("migrator.statement_timeout", config.migrator.statement_timeout),
        ("backup.stall_timeout", config.backup.stall_timeout),
        ("backup.restore_timeout", config.backup.restore_timeout),
        ("backup.retired_keep", config.backup.retired_keep),
    ];
    for (name, time) in times {
        if time.is_zero() {
            problems.push(format!("{name}: may not be zero"));
        }
    }
}
