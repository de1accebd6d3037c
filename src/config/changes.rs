//! Which settings count only after a restart and have changed: all but [`Limits`](super::Limits), the servers' budgets,
//! and what the listener's TLS is made of. Says their names, as the file has them, and never a value. A setting that is new does not compile before it
//! is compared here, or set aside as one that counts at once.

use secrecy::{ExposeSecret as _, SecretString};

use super::{
    BackupConfig, Config, Credentials, Keys, MigratorConfig, OperationsConfig, RoleLogin, ServerConfig, SharesConfig,
    StoreConfig,
};

/// Each field with whether it differs. Every field of the type is either compared or named among the others.
macro_rules! compare {
    ($old:expr, $new:expr, $type:ident { $($field:ident),+ $(,)? } others { $($other:ident),* $(,)? }) => {{
        let (old, new): (&$type, &$type) = ($old, $new);
        let $type { $($field: _,)+ $($other: _,)* } = old;
        [$((stringify!($field), old.$field != new.$field)),+]
    }};
}

impl Config {
    /// The settings that differ in `new` and count only after a restart.
    pub fn waiting_for_restart(&self, new: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let own = compare!(self, new, Config {
            instance, listen, access, spool_dir, tenant_migrations_dir, catalog_server, drain_timeout,
        } others {
            naming, keys, tls, shares, servers, store, operations, migrator, backup, limits,
        });
        let prefix = ("prefix", self.naming != new.naming);
        let keys = ("keys_file", keys_differ(&self.keys, &new.keys));
        let tls = ("tls", self.tls.is_some() != new.tls.is_some());
        note(&mut found, "", own.into_iter().chain([prefix, keys, tls]));
        let shares = compare!(&self.shares, &new.shares, SharesConfig { interval, take_over_after } others {});
        note(&mut found, "shares.", shares);
        servers(&self.servers, &new.servers, &mut found);
        store(&self.store, &new.store, &mut found);
        let operations = compare!(&self.operations, &new.operations, OperationsConfig {
            lease, concurrency_max, poll_interval, repeat_max,
        } others {});
        note(&mut found, "operations.", operations);
        let migrator = compare!(&self.migrator, &new.migrator, MigratorConfig {
            concurrency_max, lock_timeout, statement_timeout, advisory_lock_wait_max,
        } others {});
        note(&mut found, "migrator.", migrator);
        let backup = compare!(&self.backup, &new.backup, BackupConfig {
            zstd_level, concurrency_max, verify_concurrency_max, stall_timeout, pause_drain_max, restore_timeout,
            retired_keep,
        } others {});
        note(&mut found, "backup.", backup);
        found
    }
}

fn note(found: &mut Vec<String>, at: &str, fields: impl IntoIterator<Item = (&'static str, bool)>) {
    let differing = fields.into_iter().filter(|(_, differs)| *differs);
    found.extend(differing.map(|(field, _)| format!("{at}{field}")));
}

fn servers(old: &[ServerConfig], new: &[ServerConfig], found: &mut Vec<String>) {
    // New tenants go to the first.
    if !old.iter().map(|server| &server.name).eq(new.iter().map(|server| &server.name)) {
        found.push("servers".to_owned());
    }
    for old in old {
        let Some(new) = new.iter().find(|new| new.name == old.name) else { continue };
        let fields = compare!(old, new, ServerConfig { host, port, tls, ca_file, connects_parallel_max } others {
            name, connections_max, connections_reserved, credentials,
        });
        let credentials = ("credentials_file", credentials_differ(&old.credentials, &new.credentials));
        note(found, &format!("servers.{}.", old.name), fields.into_iter().chain([credentials]));
    }
}

fn store(old: &StoreConfig, new: &StoreConfig, found: &mut Vec<String>) {
    let fields = compare!(old, new, StoreConfig {
        endpoint, region, bucket, access_key_id, path_style, ca_file, part_bytes_min, parts_max, request_timeout,
    } others { secret_access_key });
    let secret = ("secret_access_key", secrets_differ(&old.secret_access_key, &new.secret_access_key));
    note(found, "store.", fields.into_iter().chain([secret]));
}

fn keys_differ(old: &Keys, new: &Keys) -> bool {
    let Keys { key_encryption_key, manifest_signing_key, escrow_recipient } = old;
    secrets_differ(key_encryption_key, &new.key_encryption_key)
        || secrets_differ(manifest_signing_key, &new.manifest_signing_key)
        || *escrow_recipient != new.escrow_recipient
}

fn credentials_differ(old: &Credentials, new: &Credentials) -> bool {
    let Credentials { daemon, dump } = old;
    logins_differ(daemon, &new.daemon) || logins_differ(dump, &new.dump)
}

fn logins_differ(old: &RoleLogin, new: &RoleLogin) -> bool {
    let RoleLogin { role, password } = old;
    *role != new.role || secrets_differ(password, &new.password)
}

fn secrets_differ(old: &SecretString, new: &SecretString) -> bool {
    old.expose_secret() != new.expose_secret()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::{load, write_private};

    const CONFIG: &str = r#"
        prefix = "erp"
        instance = "a"
        listen = "127.0.0.1:7432"
        spool_dir = "spool"
        tenant_migrations_dir = "migrations"
        keys_file = "keys.toml"
        catalog_server = "db1"
        drain_timeout = "30s"
        [shares]
        interval = "1s"
        take_over_after = "15s"
        [tls]
        certificate_file = "a.pem"
        key_file = "a.key"
        client_certificate = "optional"
        [[access.jwt]]
        name = "login"
        issuer = "https://login.example.com"
        audiences = ["tenantd"]
        jwks_url = "https://login.example.com/keys"
        [[servers]]
        name = "db1"
        host = "localhost"
        port = 5432
        tls = "verify_full"
        ca_file = "a.pem"
        connections_max = 80
        connections_reserved = 20
        connects_parallel_max = 4
        credentials_file = "credentials.toml"
        [[servers]]
        name = "db2"
        host = "db2.example.com"
        credentials_file = "credentials2.toml"
        [store]
        endpoint = "https://s3.example.com"
        region = "eu-west-3"
        bucket = "backups"
        access_key_id = "somebody"
        secret_access_key = "hunter2"
        path_style = false
        part_bytes_min = 8388608
        parts_max = 10000
        request_timeout = "1m"
        [tiers.gold]
        direct_connections_max = 7
        pool_connections_max = 3
        users_max = 1
        sites_max = 1
        storage_bytes_max = 1
        [router]
        acquire_timeout = "10s"
        [query]
        stream_idle_max = "1m"
        [callers]
        calls_per_second_max = 20000
        [operations]
        lease = "16s"
        concurrency_max = 8
        poll_interval = "1s"
        repeat_max = "10m"
        [migrator]
        concurrency_max = 9
        lock_timeout = "3s"
        statement_timeout = "10m"
        advisory_lock_wait_max = "10s"
        [backup]
        zstd_level = 3
        concurrency_max = 2
        verify_concurrency_max = 3
        stall_timeout = "1m"
        pause_drain_max = "5s"
        restore_timeout = "12h"
        retired_keep = "7d"
    "#;
    const TLS: &str = r#"[tls]
        certificate_file = "a.pem"
        key_file = "a.key"
        client_certificate = "optional"
"#;
    const KEYS: &str = r#"
        key_encryption_key = "one"
        manifest_signing_key = "two"
        escrow_recipient = "three"
    "#;
    const CREDENTIALS: &str = r#"
        daemon = { role = "tenantd", password = "four" }
        dump = { role = "tenantd_dump", password = "five" }
    "#;

    /// What is written, and what waits for a restart then.
    const CHANGES: &[(&str, &str, &[&str])] = &[
        ("prefix = \"erp\"", "prefix = \"crm\"", &["prefix"]),
        ("instance = \"a\"", "instance = \"b\"", &["instance"]),
        ("7432", "7433", &["listen"]),
        ("\"spool\"", "\"spool2\"", &["spool_dir"]),
        ("\"migrations\"", "\"more\"", &["tenant_migrations_dir"]),
        ("keys.toml", "keys2.toml", &["keys_file"]),
        ("keys.toml", "same-keys.toml", &[]),
        ("catalog_server = \"db1\"", "catalog_server = \"db2\"", &["catalog_server"]),
        ("drain_timeout = \"30s\"", "drain_timeout = \"31s\"", &["drain_timeout"]),
        ("interval = \"1s\"\n        take", "interval = \"2s\"\n        take", &["shares.interval"]),
        ("\"15s\"", "\"17s\"", &["shares.take_over_after"]),
        (TLS, "", &["tls"]),
        ("audiences = [\"tenantd\"]", "audiences = [\"tenantd\", \"other\"]", &["access"]),
        ("localhost", "::1", &["servers.db1.host"]),
        ("port = 5432", "port = 5433", &["servers.db1.port"]),
        ("\"verify_full\"", "\"disable\"", &["servers.db1.tls"]),
        ("ca_file = \"a.pem\"", "ca_file = \"c.pem\"", &["servers.db1.ca_file"]),
        ("connects_parallel_max = 4", "connects_parallel_max = 5", &["servers.db1.connects_parallel_max"]),
        ("\"credentials.toml\"", "\"credentials2.toml\"", &["servers.db1.credentials_file"]),
        ("name = \"db2\"", "name = \"db3\"", &["servers"]),
        ("s3.example.com", "s4.example.com", &["store.endpoint"]),
        ("eu-west-3", "eu-west-1", &["store.region"]),
        ("\"backups\"", "\"others\"", &["store.bucket"]),
        ("somebody", "nobody", &["store.access_key_id"]),
        ("hunter2", "hunter3", &["store.secret_access_key"]),
        ("path_style = false", "path_style = true", &["store.path_style"]),
        ("8388608", "8388609", &["store.part_bytes_min"]),
        ("parts_max = 10000", "parts_max = 9999", &["store.parts_max"]),
        ("request_timeout = \"1m\"", "request_timeout = \"2m\"", &["store.request_timeout"]),
        ("lease = \"16s\"", "lease = \"17s\"", &["operations.lease"]),
        ("concurrency_max = 8", "concurrency_max = 7", &["operations.concurrency_max"]),
        ("poll_interval = \"1s\"", "poll_interval = \"2s\"", &["operations.poll_interval"]),
        ("repeat_max = \"10m\"", "repeat_max = \"9m\"", &["operations.repeat_max"]),
        ("concurrency_max = 9", "concurrency_max = 7", &["migrator.concurrency_max"]),
        ("lock_timeout = \"3s\"", "lock_timeout = \"4s\"", &["migrator.lock_timeout"]),
        ("statement_timeout = \"10m\"", "statement_timeout = \"11m\"", &["migrator.statement_timeout"]),
        ("wait_max = \"10s\"", "wait_max = \"11s\"", &["migrator.advisory_lock_wait_max"]),
        ("zstd_level = 3", "zstd_level = 4", &["backup.zstd_level"]),
        ("concurrency_max = 2", "concurrency_max = 4", &["backup.concurrency_max"]),
        ("concurrency_max = 3", "concurrency_max = 4", &["backup.verify_concurrency_max"]),
        ("stall_timeout = \"1m\"", "stall_timeout = \"2m\"", &["backup.stall_timeout"]),
        ("pause_drain_max = \"5s\"", "pause_drain_max = \"6s\"", &["backup.pause_drain_max"]),
        ("restore_timeout = \"12h\"", "restore_timeout = \"1h\"", &["backup.restore_timeout"]),
        ("retired_keep = \"7d\"", "retired_keep = \"8d\"", &["backup.retired_keep"]),
        // What counts at once.
        ("connections_max = 80", "connections_max = 81", &[]),
        ("connections_reserved = 20", "connections_reserved = 21", &[]),
        ("acquire_timeout = \"10s\"", "acquire_timeout = \"11s\"", &[]),
        ("stream_idle_max = \"1m\"", "stream_idle_max = \"2m\"", &[]),
        ("20000", "20001", &[]),
        ("users_max = 1", "users_max = 2", &[]),
        ("drain_timeout = \"30s\"", "drain_timeout = \"30s\"\n        own_hosts = [\"db.example.com\"]", &[]),
        ("certificate_file = \"a.pem\"", "certificate_file = \"c.pem\"", &[]),
        ("key_file = \"a.key\"", "key_file = \"c.key\"", &[]),
        ("\"optional\"", "\"optional\"\n        client_ca_file = \"c.pem\"", &[]),
    ];

    fn read(directory: &Path, text: &str) -> Config {
        let file = directory.join("tenantd.toml");
        fs::write(&file, text).unwrap();
        load(&file).unwrap()
    }

    #[test]
    fn every_setting_that_waits_for_a_restart_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for folder in ["migrations", "more"] {
            fs::create_dir(at(folder)).unwrap();
        }
        // The same pair under two names.
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        for (file, text) in [("pem", pair.cert.pem()), ("key", pair.signing_key.serialize_pem())] {
            for name in ["a", "c"] {
                fs::write(at(&format!("{name}.{file}")), &text).unwrap();
            }
        }
        write_private(&at("keys.toml"), KEYS).unwrap();
        write_private(&at("same-keys.toml"), KEYS).unwrap();
        write_private(&at("keys2.toml"), &KEYS.replace("two", "another")).unwrap();
        write_private(&at("credentials.toml"), CREDENTIALS).unwrap();
        write_private(&at("credentials2.toml"), &CREDENTIALS.replace("five", "another")).unwrap();
        let old = read(directory.path(), CONFIG);
        assert_eq!(old.waiting_for_restart(&old), Vec::<String>::new());
        for (from, to, names) in CHANGES {
            assert_eq!(CONFIG.matches(from).count(), 1, "{from}");
            let new = read(directory.path(), &CONFIG.replace(from, to));
            assert_eq!(old.waiting_for_restart(&new), *names, "{to}");
        }
    }
}
