//! One fleet of a test's own: prefix, shared and auth database, bucket, keys, migrations, configuration. It knows how
//! its daemon is started, in this process or as one of its own, and ends with a look at what was logged.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use secrecy::ExposeSecret as _;
use tenantd::catalog::Catalog;
use tenantd::config::{self, Config, Keys};
use tenantd::domain::tenant::Naming;
use tenantd::postgres::Server;
use tenantd::secrets::keys_new;
use tenantd::shutdown::Tasks;
use tenantd::store::Store;
use uuid::Uuid;

use super::leftovers::Inventory;
use super::logs;
use super::machine::{ACCESS_KEY, Machine, machine};

/// What every fleet's tenants have unless the test says otherwise: small, and not empty.
pub const THINGS: (&str, &str) = (
    "V1__things.sql",
    "CREATE TABLE things (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE);
INSERT INTO things (name) SELECT 'thing ' || n FROM generate_series(1, 20) AS n;
",
);

/// What is peculiar about a fleet. `Spec::default()` is good for most tests.
#[derive(Debug, Clone)]
pub struct Spec {
    /// File names and texts.
    pub migrations: Vec<(String, String)>,
    /// Settings beside the usual ones, as `("operations", "lease", "\"2s\"")`.
    pub settings: Vec<(&'static str, &'static str, String)>,
    /// Where the daemon finds the S3 server, when not directly.
    pub store: Option<SocketAddr>,
    /// Another cluster than everybody's.
    pub machine: Option<&'static Machine>,
}

impl Default for Spec {
    fn default() -> Self {
        let things = (THINGS.0.to_owned(), THINGS.1.to_owned());
        Self { migrations: vec![things], settings: Vec::new(), store: None, machine: None }
    }
}

impl Spec {
    pub fn setting(mut self, section: &'static str, name: &'static str, value: &str) -> Self {
        self.settings.push((section, name, value.to_owned()));
        self
    }
}

/// A fleet whose databases, bucket and configuration exist. No daemon runs yet.
#[derive(Debug)]
pub struct Fleet {
    pub naming: Naming,
    pub bucket: String,
    /// Configuration, keys, migrations and spool.
    pub dir: PathBuf,
    pub machine: &'static Machine,
    store: SocketAddr,
    settings: Vec<(&'static str, &'static str, String)>,
    logs: logs::Expectations,
}

impl Fleet {
    pub async fn new(spec: Spec) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("f{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let machine = spec.machine.unwrap_or_else(machine);
        let dir = machine.dir.join(&name);
        std::fs::create_dir_all(dir.join("migrations")).unwrap();
        let bucket = format!("{name}-bucket");
        std::fs::create_dir_all(machine.objects_dir().join(&bucket)).unwrap();
        let fleet = Self {
            naming: Naming::new(&name).unwrap(),
            bucket,
            dir,
            machine,
            store: spec.store.unwrap_or(machine.s3),
            settings: spec.settings,
            logs: logs::Expectations::new(&name),
        };
        fleet.write_keys();
        config::write_private(&fleet.dir.join("credentials.toml"), &machine.credentials.to_toml()).unwrap();
        fleet.configure(&[]);
        for (file, text) in &spec.migrations {
            fleet.migration(file, text);
        }
        machine.databases_create(&fleet.naming).await;
        fleet
    }

    fn write_keys(&self) {
        let new = keys_new();
        let keys = Keys {
            key_encryption_key: new.key_encryption_key,
            manifest_signing_key: new.manifest_signing_key,
            escrow_recipient: new.escrow_recipient,
        };
        config::write_private(&self.dir.join("keys.toml"), &keys.to_toml()).unwrap();
    }

    /// Writes a file into the fleet's migration directory.
    pub fn migration(&self, file: &str, text: &str) {
        std::fs::write(self.dir.join("migrations").join(file), text).unwrap();
    }

    pub fn migration_remove(&self, file: &str) {
        std::fs::remove_file(self.dir.join("migrations").join(file)).unwrap();
    }

    /// Writes the configuration anew, with these settings on top; daemons that run already do not read it.
    pub fn configure(&self, extra: &[(&'static str, &'static str, String)]) {
        let mut sections: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
        for (section, name, value) in self.usual().into_iter().chain(self.settings.clone()).chain(extra.to_vec()) {
            sections.entry(section).or_default().insert(name, value);
        }
        // Daemons side by side have a spool each.
        let outside = sections.entry("").or_default();
        if let Some(instance) = outside.get("instance") {
            outside.insert("spool_dir", format!("\"spool-{}\"", instance.trim_matches('"')));
        }
        let mut text = String::new();
        for (section, values) in sections {
            if !section.is_empty() {
                text = text + "\n" + section + "\n";
            }
            text.extend(values.into_iter().map(|(name, value)| format!("{name} = {value}\n")));
        }
        std::fs::write(self.config_file(), text).unwrap();
        // It has a secret in it.
        std::fs::set_permissions(self.config_file(), Permissions::from_mode(0o600)).unwrap();
    }

    fn usual(&self) -> Vec<(&'static str, &'static str, String)> {
        let machine = self.machine;
        let quoted = |text: &str| format!("{text:?}");
        vec![
            ("", "prefix", quoted(self.naming.prefix())),
            ("", "listen", quoted("127.0.0.1:0")),
            ("", "spool_dir", quoted("spool")),
            ("", "tenant_migrations_dir", quoted("migrations")),
            ("", "keys_file", quoted("keys.toml")),
            ("", "drain_timeout", quoted("5s")),
            ("[[servers]]", "name", quoted("main")),
            ("[[servers]]", "host", quoted(&machine.host)),
            ("[[servers]]", "port", machine.port.to_string()),
            ("[[servers]]", "tls", quoted("disable")),
            ("[[servers]]", "connections_max", "40".to_owned()),
            ("[[servers]]", "connections_reserved", "20".to_owned()),
            ("[[servers]]", "credentials_file", quoted("credentials.toml")),
            ("[store]", "endpoint", quoted(&format!("http://{}", self.store))),
            ("[store]", "bucket", quoted(&self.bucket)),
            ("[store]", "access_key_id", quoted(ACCESS_KEY)),
            ("[store]", "secret_access_key", quoted(machine.s3_secret.expose_secret())),
            ("[store]", "path_style", "true".to_owned()),
            ("[operations]", "poll_interval", quoted("100ms")),
        ]
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.join("tenantd.toml")
    }

    /// The configuration as `serve` reads it.
    pub fn config(&self) -> Config {
        config::load(&self.config_file()).unwrap()
    }

    /// The fleet's bucket, past any proxy.
    pub fn store(&self) -> Store {
        let mut config = self.config().store;
        config.endpoint = Some(format!("http://{}", self.machine.s3));
        config.secret_access_key = self.machine.s3_secret.clone();
        Store::new(&config).unwrap()
    }

    /// Tasks that log as this fleet's daemon, for tests of a room without one.
    pub fn tasks(&self) -> Tasks {
        Tasks::new(logs::root_span(self.naming.prefix()))
    }

    /// The fleet's server, for tests of a room without a daemon.
    pub fn server(&self, tasks: &Tasks) -> Server {
        Server::new(&self.config().servers[0], tasks, Uuid::new_v4()).unwrap()
    }

    /// The shared database, migrated and with its server registered.
    pub async fn catalog(&self, server: &Server) -> Catalog {
        let catalog = Catalog::new(server, &self.naming.shared_database()).unwrap();
        catalog.migrate().await.unwrap();
        catalog.server_register(server.name(), &self.machine.host, self.machine.port).await.unwrap();
        catalog
    }

    /// A superuser's session on the private cluster.
    pub async fn judge(&self, database: &str) -> tokio_postgres::Client {
        self.machine.judge(database).await
    }

    pub async fn inventory(&self) -> Inventory {
        Inventory::take(self).await
    }

    /// Declares a WARN or ERROR line that must come, by a part of it.
    pub fn expect_log(&self, part: &str) {
        self.logs.expect(part);
    }

    /// Declares a WARN or ERROR line that may come.
    pub fn allow_log(&self, part: &str) {
        self.logs.allow(part);
    }

    /// Whether a WARN or ERROR has this part by now.
    pub fn has_logged(&self, part: &str) -> bool {
        logs::problems(self.naming.prefix()).iter().any(|line| line.contains(part))
    }

    /// The latest lines, whatever their level.
    pub fn latest(&self) -> String {
        logs::latest(self.naming.prefix())
    }

    /// Drops the fleet's databases and fails on lines that nobody declared.
    pub async fn finish(self) {
        self.logs.check();
        self.machine.databases_drop(&self).await;
    }
}
