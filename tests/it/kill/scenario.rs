//! One kind of operation in a fleet of its own: what it is done to, how it is begun, and what is true afterwards.

use std::collections::BTreeMap;

use tenantd::domain::tenant::Naming;
use tenantd::proto::v1::{
    CreateRolloutRequest, CreateTenantRequest, Operation, OperationState, TenantAdministrator, TenantState,
    VerifyBackupRequest,
};
use uuid::Uuid;

use crate::harness::{Client, Fleet, Process, Spec, reason, result_text, until};

/// What is done. The refused ones fail late, and undo everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Create,
    CreateRefused,
    Migrate,
    MigratePaused,
    Backup,
    BackupRefused,
    RestoreInPlace,
    RestoreInPlaceRefused,
    RestoreAsNew,
    RestoreAsNewRefused,
    Suspend,
    Resume,
}

const SECOND_MIGRATION: (&str, &str) = (
    "V2__colours.sql",
    "ALTER TABLE things ADD COLUMN colour text NOT NULL DEFAULT 'blue';
INSERT INTO things (name, colour) VALUES ('a green thing', 'green');
",
);
/// All rows of the fleet's one table, in one text.
const DIGEST: &str = "SELECT coalesce(md5(string_agg(t::text, ',' ORDER BY id)), 'none') FROM things t";

impl Kind {
    pub fn succeeds(self) -> bool {
        self.refusal().is_none()
    }

    /// What makes the catalog refuse a late step's write.
    fn refusal(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::BackupRefused => {
                Some(("backups", "BEFORE UPDATE ON backups FOR EACH ROW WHEN (NEW.state = 'COMPLETE')"))
            }
            Self::RestoreInPlaceRefused => {
                Some(("retired_databases", "BEFORE INSERT ON retired_databases FOR EACH ROW"))
            }
            Self::CreateRefused | Self::RestoreAsNewRefused => Some((
                "tenants",
                "BEFORE UPDATE ON tenants FOR EACH ROW WHEN (NEW.state = 'ACTIVE' AND OLD.state <> 'ACTIVE')",
            )),
            _ => None,
        }
    }

    fn is_restore(self) -> bool {
        use Kind::{RestoreAsNew, RestoreAsNewRefused, RestoreInPlace, RestoreInPlaceRefused};
        matches!(self, RestoreAsNew | RestoreAsNewRefused | RestoreInPlace | RestoreInPlaceRefused)
    }

    fn is_in_place(self) -> bool {
        matches!(self, Self::RestoreInPlace | Self::RestoreInPlaceRefused)
    }
}

/// A fleet and its daemon, which dies often.
pub struct Scenario {
    pub kind: Kind,
    pub fleet: Fleet,
    process: Option<Process>,
    /// Another daemon beside it, where it does not die but stands still.
    other: Option<Process>,
    /// Tenants to use, in turns.
    tenants: Vec<String>,
    used: usize,
    backups: BTreeMap<String, String>,
    /// The rows of a tenant before the operation.
    digests: BTreeMap<String, String>,
}

impl Scenario {
    pub async fn new(kind: Kind) -> Self {
        let fleet = Fleet::new(Spec::default().setting("[operations]", "lease", "\"3s\"")).await;
        // On a machine that is busy enough a heartbeat comes late, and the operation goes on under another claim.
        fleet.allow_log("the operation stands still until a daemon claims it again");
        let process = Some(fleet.spawn());
        let (tenants, backups, digests) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { kind, fleet, process, other: None, tenants, used: 0, backups, digests }
    }

    /// Two daemons, of which one stands still at times.
    pub async fn of_two(kind: Kind) -> Self {
        let spec = Spec::default().setting("[operations]", "lease", "\"3s\"");
        let fleet = Fleet::new(spec.setting("[[servers]]", "connections_max", "100")).await;
        super::hung::woken_logs(&fleet);
        if kind == Kind::Suspend {
            // Its login is locked before it hears why.
            fleet.allow_log("the tenant cannot be reached");
        }
        let mut named = ["a", "b"].map(|name| {
            fleet.configure(&[("", "instance", format!("{name:?}"))]);
            Some(fleet.spawn())
        });
        let (process, other) = (named[0].take(), named[1].take());
        let (tenants, backups, digests) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { kind, fleet, process, other, tenants, used: 0, backups, digests }
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the daemon runs")
    }

    pub fn other(&self) -> &Process {
        self.other.as_ref().expect("there are two")
    }

    pub fn client(&self) -> Client {
        self.process().client.clone()
    }

    pub fn kill(&mut self) {
        self.process.take().expect("the daemon runs").kill();
    }

    pub fn restart(&mut self) {
        self.process = Some(self.fleet.spawn());
    }

    pub async fn finish(mut self) {
        self.process.take().expect("the daemon runs").terminate().await;
        if let Some(other) = self.other {
            other.terminate().await;
        }
        self.fleet.finish().await;
    }

    /// Makes what so many operations need; the first call makes what all of them need.
    pub async fn provide(&mut self, operations: usize) {
        match self.kind {
            Kind::Create | Kind::CreateRefused => {}
            Kind::Migrate | Kind::MigratePaused => self.tenants_behind(operations).await,
            _ if self.tenants.is_empty() => self.tenants_with_rows(3).await,
            _ => {}
        }
        if let (Some((name, event)), 1) = (self.kind.refusal(), operations) {
            let judge = self.fleet.judge(self.fleet.naming.shared_database().as_str()).await;
            let refuse = format!(
                "CREATE FUNCTION refuse_{name}() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN RAISE EXCEPTION 'the test refuses this'; END $$;
                CREATE TRIGGER refuse {event} EXECUTE FUNCTION refuse_{name}()"
            );
            judge.batch_execute(&refuse).await.unwrap();
        }
    }

    async fn tenants_behind(&mut self, count: usize) {
        if !self.tenants.is_empty() {
            self.fleet.migration_remove(SECOND_MIGRATION.0);
        }
        let (first, last) = (self.tenants.len(), self.tenants.len() + count);
        for number in first..last {
            let code = format!("behind{number}");
            self.client().tenant(&code).await;
            self.tenants.push(code);
        }
        self.fleet.migration(SECOND_MIGRATION.0, SECOND_MIGRATION.1);
    }

    async fn tenants_with_rows(&mut self, count: usize) {
        for number in 0..count {
            let (client, code) = (self.client(), format!("full{number}"));
            client.tenant(&code).await;
            if self.kind.is_restore() {
                self.backups.insert(code.clone(), client.backup(&code).await.backup_id);
                self.digests.insert(code.clone(), client.sql(&code, DIGEST).await);
            }
            self.tenants.push(code);
        }
    }

    /// The next tenant to do it to.
    pub async fn subject(&mut self) -> String {
        let number = self.used;
        self.used += 1;
        match self.kind {
            Kind::Create | Kind::CreateRefused | Kind::RestoreAsNew | Kind::RestoreAsNewRefused => {
                format!("new{number}")
            }
            Kind::Migrate | Kind::MigratePaused => self.tenants[number].clone(),
            Kind::Suspend | Kind::Resume => {
                let code = self.tenants[number % self.tenants.len()].clone();
                self.turn(&code).await;
                code
            }
            kind => {
                let code = self.tenants[number % self.tenants.len()].clone();
                if kind.is_in_place() {
                    self.client().sql(&code, "DELETE FROM things WHERE id > 5").await;
                    self.client().sql(&code, "INSERT INTO things (name) VALUES (clock_timestamp()::text)").await;
                }
                code
            }
        }
    }

    /// Submits the operation; its id.
    pub async fn begin(&self, subject: &str, request: Uuid) -> String {
        let client = self.client();
        match self.kind {
            Kind::Create | Kind::CreateRefused => self.create(subject, request).await,
            Kind::Migrate | Kind::MigratePaused => {
                let message = CreateRolloutRequest {
                    request_id: request.to_string(),
                    tenants: vec![subject.to_owned()],
                    pause: self.kind == Kind::MigratePaused,
                    ..CreateRolloutRequest::default()
                };
                client.migrations().create_rollout(message).await.unwrap().into_inner().rollout.unwrap().rollout_id
            }
            Kind::Backup | Kind::BackupRefused => client.backup_create(request, subject).await.unwrap().operation_id,
            Kind::Suspend => client.tenant_suspend(request, subject, "unpaid").await.unwrap().operation_id,
            Kind::Resume => client.tenant_resume(request, subject).await.unwrap().operation_id,
            kind => {
                let source = if kind.is_in_place() { subject } else { &self.tenants[0] };
                let new = (!kind.is_in_place()).then_some(subject);
                client.restore_create(request, &self.backups[source], new).await.unwrap().operation_id
            }
        }
    }

    async fn create(&self, code: &str, request: Uuid) -> String {
        let message = CreateTenantRequest {
            request_id: request.to_string(),
            code: code.to_owned(),
            name: format!("The tenant {code}"),
            hosts: vec![format!("{code}.example.com")],
            administrator: Some(TenantAdministrator {
                email: format!("owner@{code}.example.com"),
                first_name: "Olive".to_owned(),
                last_name: "Owner".to_owned(),
            }),
            ..CreateTenantRequest::default()
        };
        self.client().tenants().create_tenant(message).await.unwrap().into_inner().operation.unwrap().operation_id
    }

    /// Opens or closes a tenant for the next operation on it.
    async fn turn(&self, code: &str) {
        let (client, is_active) = (self.client(), self.is_active(code).await);
        let turned = match self.kind {
            Kind::Suspend if !is_active => client.tenant_resume(Uuid::new_v4(), code).await,
            Kind::Resume if is_active => client.tenant_suspend(Uuid::new_v4(), code, "unpaid").await,
            _ => return,
        };
        client.succeeded(&turned.unwrap()).await;
    }

    async fn is_active(&self, code: &str) -> bool {
        self.client().tenant_get(code).await.unwrap().state() == TenantState::Active
    }

    /// Open with its logins, or closed without, and then without a session, as the server has it.
    async fn verify_gate(&self, subject: &str, is_open: bool) {
        assert_eq!(self.is_active(subject).await, is_open);
        let read = async || self.client().execute(subject, DIGEST).await;
        if is_open {
            // Who has just woken may not have heard yet that it is in service.
            until("the tenant is served", async || read().await.ok()).await;
        } else {
            read().await.expect_err("nobody may be served, not even for a moment");
        }
        let database = self.fleet.naming.tenant_database(&subject.parse().unwrap()).unwrap();
        let judge = self.fleet.judge("postgres").await;
        let sql =
            "SELECT (SELECT bool_and(rolcanlogin) FROM pg_roles WHERE rolname = ANY (ARRAY[$1 || '__r', $1 || '__a'])),
            ARRAY(SELECT concat_ws(' ', usename, application_name, state, query) FROM pg_stat_activity
                WHERE datname = $1 AND backend_type = 'client backend')";
        let row = judge.query_one(sql, &[&database.as_str()]).await.unwrap();
        let (logins, sessions): (bool, Vec<String>) = (row.get(0), row.get(1));
        assert_eq!((logins, !sessions.is_empty()), (is_open, is_open), "in {database}: {sessions:?}");
    }

    /// Succeeded with the right data, or failed as if it had never begun.
    pub async fn verify(&self, subject: &str, operation: &Operation) {
        let (client, succeeded) = (self.client(), operation.state() == OperationState::Succeeded);
        match self.kind {
            Kind::Create | Kind::CreateRefused | Kind::RestoreAsNew | Kind::RestoreAsNewRefused if !succeeded => {
                let refused = client.tenant_get(subject).await.unwrap_err();
                assert_eq!(reason(&refused), "TENANT_NOT_FOUND", "{refused:?}");
            }
            Kind::Create | Kind::CreateRefused => {
                assert_eq!(client.tenant_get(subject).await.unwrap().state(), TenantState::Active);
                assert_eq!(client.sql(subject, "SELECT count(*) FROM things").await, "20");
            }
            Kind::RestoreAsNew | Kind::RestoreAsNewRefused => {
                // Who has just woken may not have heard yet that it is in service.
                until("the tenant is served", async || client.execute(subject, DIGEST).await.ok()).await;
                assert_eq!(client.sql(subject, DIGEST).await, self.digests[&self.tenants[0]]);
            }
            Kind::RestoreInPlace | Kind::RestoreInPlaceRefused => {
                let restored = client.sql(subject, DIGEST).await == self.digests[subject];
                assert_eq!(restored, succeeded, "{operation:#?}");
            }
            Kind::Suspend => self.verify_gate(subject, !succeeded).await,
            Kind::Resume => self.verify_gate(subject, succeeded).await,
            Kind::Backup | Kind::BackupRefused if succeeded => {
                let backup_id = result_text(operation, "backup_id");
                client.backups().verify_backup(VerifyBackupRequest { backup_id }).await.unwrap();
            }
            Kind::Backup | Kind::BackupRefused => {}
            Kind::Migrate => self.verify_migrated(subject, succeeded).await,
            Kind::MigratePaused => {
                self.verify_gate(subject, true).await;
                self.verify_migrated(subject, succeeded).await;
            }
        }
    }

    async fn verify_migrated(&self, subject: &str, succeeded: bool) {
        let client = self.client();
        let (version, rows) = if succeeded { (2, "21") } else { (1, "20") };
        assert_eq!(client.tenant_get(subject).await.unwrap().schema_version, version);
        assert_eq!(client.sql(subject, "SELECT count(*) FROM things").await, rows);
        let naming: &Naming = &self.fleet.naming;
        let database = naming.tenant_database(&subject.parse().unwrap()).unwrap();
        let judge = self.fleet.judge(database.as_str()).await;
        let history = judge.query_one("SELECT count(*) FROM refinery_schema_history", &[]).await.unwrap();
        assert_eq!(history.get::<_, i64>(0), version, "each migration once");
    }
}
