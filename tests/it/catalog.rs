//! The catalog against a real server: who wins when two meet, what a lost claim may still do, and that every type of
//! column comes back as it went in.

mod claims;
mod creation;
mod exclusion;
mod lists;
mod tenants;
mod values;

use tenantd::catalog::{Catalog, NewOperation, NewTenant, Operation, Tenant};
use tenantd::domain::lifecycle::Transition;
use tenantd::domain::operation::{OperationId, OperationKind};
use tenantd::domain::tenant::{DatabaseName, TenantId};
use tenantd::postgres::Server;
use tenantd::shutdown::Tasks;
use uuid::Uuid;

use crate::harness::{Fleet, Spec, until};

/// A fleet's catalog without a daemon, and a superuser's session on its database.
struct Bench {
    fleet: Fleet,
    catalog: Catalog,
    judge: tokio_postgres::Client,
}

impl Bench {
    async fn new() -> Self {
        let fleet = Fleet::new(Spec::default()).await;
        let config = fleet.config();
        let server = Server::new(&config.servers[0], &Tasks::new(tracing::Span::none()), Uuid::new_v4()).unwrap();
        let database = fleet.naming.shared_database();
        let catalog = Catalog::new(&server, &database).unwrap();
        catalog.migrate().await.unwrap();
        catalog.server_register("main", "127.0.0.1", 5432).await.unwrap();
        let judge = fleet.judge(database.as_str()).await;
        Self { fleet, catalog, judge }
    }

    async fn finish(self) {
        self.catalog.close();
        drop(self.catalog);
        self.fleet.finish().await;
    }

    /// A tenant in state PROVISIONING.
    async fn reserve(&self, code: &str) -> Tenant {
        let txn = self.catalog.begin().await.unwrap();
        let tenant = self.catalog.tenant_reserve_in_txn(&txn, &new_tenant(code)).await.unwrap();
        txn.commit().await.unwrap();
        tenant
    }

    /// A tenant in state ACTIVE.
    async fn active(&self, code: &str) -> Tenant {
        let id = self.reserve(code).await.id;
        let txn = self.catalog.begin().await.unwrap();
        let tenant = self.catalog.tenant_transition_in_txn(&txn, id, Transition::Activate).await.unwrap();
        txn.commit().await.unwrap();
        tenant
    }

    /// A new operation that nobody has claimed.
    async fn operation(&self, tenant: Option<TenantId>) -> Operation {
        let txn = self.catalog.begin().await.unwrap();
        let created = self.catalog.operation_create_in_txn(&txn, &new_operation(tenant)).await.unwrap();
        txn.commit().await.unwrap();
        created.into_operation()
    }

    /// Returns when a session of the catalog's waits for a lock.
    async fn waiting_session(&self) {
        until("a session waits for a lock", async || (self.waiting_sessions().await > 0).then_some(())).await;
    }

    /// Returns when none does any more.
    async fn no_waiting_session(&self) {
        until("no session waits for a lock", async || (self.waiting_sessions().await == 0).then_some(())).await;
    }

    async fn waiting_sessions(&self) -> i64 {
        let database = self.fleet.naming.shared_database();
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'";
        // Inside of a transaction, the first look would be repeated for ever.
        self.judge.batch_execute("SELECT pg_stat_clear_snapshot()").await.unwrap();
        self.judge.query_one(sql, &[&database.as_str()]).await.unwrap().get(0)
    }

    async fn sql(&self, sql: &str) {
        self.judge.batch_execute(sql).await.unwrap();
    }
}

fn new_tenant(code: &str) -> NewTenant {
    NewTenant {
        id: TenantId(Uuid::now_v7()),
        code: code.parse().unwrap(),
        name: format!("The tenant {code}"),
        legal_name: None,
        siret: None,
        vat_number: None,
        tier: "standard".to_owned(),
        server: "main".to_owned(),
        database: DatabaseName::new(format!("fleet_{code}")).unwrap(),
        hosts: Vec::new(),
    }
}

fn new_operation(tenant: Option<TenantId>) -> NewOperation<'static> {
    NewOperation {
        id: OperationId(Uuid::now_v7()),
        kind: OperationKind::Backup,
        tenant,
        tenant_code: None,
        request_id: Uuid::new_v4(),
        request_hash: b"the request",
        created_by: "api-key:test",
        input: serde_json::json!({}),
        steps: &["first", "second"],
    }
}
