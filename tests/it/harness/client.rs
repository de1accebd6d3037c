//! A caller over real gRPC: the clients generated from our proto, with a key, and what most tests ask for in one call.

use std::net::SocketAddr;

use tenantd::proto::v1::access_service_client::AccessServiceClient;
use tenantd::proto::v1::backup_service_client::BackupServiceClient;
use tenantd::proto::v1::migration_service_client::MigrationServiceClient;
use tenantd::proto::v1::operation_service_client::OperationServiceClient;
use tenantd::proto::v1::query_service_client::QueryServiceClient;
use tenantd::proto::v1::router_service_client::RouterServiceClient;
use tenantd::proto::v1::tenant_service_client::TenantServiceClient;
use tenantd::proto::v1::value::Kind;
use tenantd::proto::v1::{
    Backup, CreateApiKeyRequest, CreateBackupRequest, CreateRolloutRequest, CreateTenantRequest, ExecuteRequest,
    GetBackupRequest, GetOperationRequest, GetRolloutRequest, GetTenantRequest, Operation, OperationState,
    RestoreBackupRequest, ResumeTenantRequest, Rollout, SuspendTenantRequest, Tenant, Value, restore_backup_request,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use super::until;

/// A channel that names its key in every call.
pub type Keyed = InterceptedService<Channel, Key>;

/// A key, or none.
#[derive(Debug, Clone)]
pub struct Key(Option<MetadataValue<Ascii>>);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

/// A caller of one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    channel: Channel,
    key: Key,
}

impl Client {
    /// Connects with the first call.
    pub fn new(address: SocketAddr, key: Option<&str>) -> Self {
        Self::over(&plain(address), key)
    }

    /// Connects with the first call, as the endpoint says.
    pub fn over(endpoint: &Endpoint, key: Option<&str>) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], endpoint.uri().port_u16().unwrap_or_default()));
        let key = Key(key.map(|key| format!("Bearer {key}").parse().unwrap()));
        Self { address, channel: endpoint.connect_lazy(), key }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same caller of another daemon.
    pub fn moved(&self, address: SocketAddr) -> Self {
        Self { address, channel: plain(address).connect_lazy(), key: self.key.clone() }
    }

    /// The same caller, who knows the daemon by another name.
    pub fn at(&self, origin: &str) -> Self {
        let channel = plain(self.address).origin(origin.parse().unwrap()).connect_lazy();
        Self { channel, ..self.clone() }
    }

    /// Another caller of the same daemon.
    pub fn with_key(&self, key: &str) -> Self {
        Self::new(self.address, Some(key))
    }

    /// A new key with these roles for these tenants.
    pub async fn key_new(&self, roles: &[&str], tenants: &[&str]) -> String {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let (roles, tenants) = (owned(roles), owned(tenants));
        let wish = CreateApiKeyRequest { name: "test".to_owned(), roles, tenants, ..CreateApiKeyRequest::default() };
        self.access().create_api_key(wish).await.unwrap().into_inner().secret
    }

    /// For calls that have no client here.
    pub fn keyed(&self) -> Keyed {
        InterceptedService::new(self.channel.clone(), self.key.clone())
    }

    pub fn tenants(&self) -> TenantServiceClient<Keyed> {
        TenantServiceClient::new(self.keyed())
    }

    pub fn router(&self) -> RouterServiceClient<Keyed> {
        RouterServiceClient::new(self.keyed())
    }

    pub fn query(&self) -> QueryServiceClient<Keyed> {
        QueryServiceClient::new(self.keyed())
    }

    pub fn migrations(&self) -> MigrationServiceClient<Keyed> {
        MigrationServiceClient::new(self.keyed())
    }

    pub fn backups(&self) -> BackupServiceClient<Keyed> {
        BackupServiceClient::new(self.keyed())
    }

    pub fn operations(&self) -> OperationServiceClient<Keyed> {
        OperationServiceClient::new(self.keyed())
    }

    pub fn access(&self) -> AccessServiceClient<Keyed> {
        AccessServiceClient::new(self.keyed())
    }

    /// Begins to create a tenant.
    pub async fn tenant_create(&self, request: Uuid, code: &str) -> Result<Operation, Status> {
        let request = CreateTenantRequest {
            request_id: request.to_string(),
            code: code.to_owned(),
            name: format!("The tenant {code}"),
            ..CreateTenantRequest::default()
        };
        Ok(self.tenants().create_tenant(request).await?.into_inner().operation.expect("an operation"))
    }

    /// Creates a tenant and waits for it.
    pub async fn tenant(&self, code: &str) -> Tenant {
        let operation = self.tenant_create(Uuid::new_v4(), code).await.unwrap();
        self.succeeded(&operation).await;
        self.tenant_get(code).await.unwrap()
    }

    pub async fn tenant_get(&self, tenant: &str) -> Result<Tenant, Status> {
        let request = GetTenantRequest { tenant: tenant.to_owned() };
        Ok(self.tenants().get_tenant(request).await?.into_inner().tenant.expect("a tenant"))
    }

    /// One statement; rows as texts.
    pub async fn execute(&self, tenant: &str, sql: &str) -> Result<Vec<Vec<String>>, Status> {
        self.rows(ExecuteRequest { tenant: tenant.to_owned(), sql: sql.to_owned(), ..ExecuteRequest::default() }).await
    }

    /// The rows of a statement's result as texts.
    pub async fn rows(&self, request: ExecuteRequest) -> Result<Vec<Vec<String>>, Status> {
        let rows = self.query().execute(request).await?.into_inner().rows;
        Ok(rows.into_iter().map(|row| row.values.iter().map(text).collect()).collect())
    }

    /// One statement that gives one value.
    pub async fn sql(&self, tenant: &str, sql: &str) -> String {
        let rows = self.execute(tenant, sql).await.unwrap();
        rows.into_iter().flatten().next().unwrap_or_default()
    }

    pub async fn rollout_create(&self, request: Uuid, max_failures: i32) -> Result<Rollout, Status> {
        let request =
            CreateRolloutRequest { request_id: request.to_string(), max_failures, ..CreateRolloutRequest::default() };
        Ok(self.migrations().create_rollout(request).await?.into_inner().rollout.expect("a rollout"))
    }

    /// The rollout once its operation has ended.
    pub async fn rollout_ended(&self, rollout: &str) -> Rollout {
        self.ended(rollout).await;
        let request = GetRolloutRequest { rollout_id: rollout.to_owned(), ..GetRolloutRequest::default() };
        self.migrations().get_rollout(request).await.unwrap().into_inner().rollout.expect("a rollout")
    }

    pub async fn backup_create(&self, request: Uuid, tenant: &str) -> Result<Operation, Status> {
        let request = CreateBackupRequest {
            request_id: request.to_string(),
            tenant: tenant.to_owned(),
            ..CreateBackupRequest::default()
        };
        Ok(self.backups().create_backup(request).await?.into_inner().operation.expect("an operation"))
    }

    /// Backs a tenant up and waits for it.
    pub async fn backup(&self, tenant: &str) -> Backup {
        let operation = self.backup_create(Uuid::new_v4(), tenant).await.unwrap();
        let id = result_text(&self.succeeded(&operation).await, "backup_id");
        let request = GetBackupRequest { backup_id: id };
        self.backups().get_backup(request).await.unwrap().into_inner().backup.expect("a backup")
    }

    /// Begins a restore, in place or as a new tenant.
    pub async fn restore_create(&self, request: Uuid, backup: &str, new: Option<&str>) -> Result<Operation, Status> {
        let target = match new {
            Some(code) => restore_backup_request::Target::NewCode(code.to_owned()),
            None => restore_backup_request::Target::InPlace(true),
        };
        let request = RestoreBackupRequest {
            request_id: request.to_string(),
            backup_id: backup.to_owned(),
            target: Some(target),
            reason: "a test".to_owned(),
            ..RestoreBackupRequest::default()
        };
        Ok(self.backups().restore_backup(request).await?.into_inner().operation.expect("an operation"))
    }

    /// Begins to suspend a tenant.
    pub async fn tenant_suspend(&self, request: Uuid, tenant: &str, reason: &str) -> Result<Operation, Status> {
        let (request_id, tenant, reason) = (request.to_string(), tenant.to_owned(), reason.to_owned());
        let request = SuspendTenantRequest { request_id, tenant, reason, validate_only: false };
        Ok(self.tenants().suspend_tenant(request).await?.into_inner().operation.expect("an operation"))
    }

    /// Begins to resume a tenant.
    pub async fn tenant_resume(&self, request: Uuid, tenant: &str) -> Result<Operation, Status> {
        let (request_id, tenant) = (request.to_string(), tenant.to_owned());
        let request = ResumeTenantRequest { request_id, tenant, validate_only: false };
        Ok(self.tenants().resume_tenant(request).await?.into_inner().operation.expect("an operation"))
    }

    /// The operation as it is now.
    pub async fn operation(&self, operation_id: &str) -> Operation {
        let request = GetOperationRequest { operation_id: operation_id.to_owned() };
        self.operations().get_operation(request).await.unwrap().into_inner().operation.expect("an operation")
    }

    /// The operation once it has ended, however.
    pub async fn ended(&self, operation_id: &str) -> Operation {
        let ends =
            [OperationState::Succeeded, OperationState::Failed, OperationState::Cancelled, OperationState::Stuck];
        until("the operation ends", || async {
            let request = GetOperationRequest { operation_id: operation_id.to_owned() };
            let operation = self.operations().get_operation(request).await.ok()?.into_inner().operation?;
            ends.contains(&operation.state()).then_some(operation)
        })
        .await
    }

    /// The operation once it has succeeded.
    pub async fn succeeded(&self, operation: &Operation) -> Operation {
        let ended = self.ended(&operation.operation_id).await;
        assert_eq!(ended.state(), OperationState::Succeeded, "{ended:#?}");
        ended
    }
}

fn plain(address: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}")).unwrap()
}

/// A text in an operation's result.
pub fn result_text(operation: &Operation, field: &str) -> String {
    let fields = &operation.result.as_ref().expect("a result").fields;
    match fields.get(field).and_then(|value| value.kind.as_ref()) {
        Some(prost_types::value::Kind::StringValue(text)) => text.clone(),
        other => panic!("{field} is {other:?} in {fields:?}"),
    }
}

/// The reason in a refusal's ErrorInfo.
pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map_or_else(String::new, |info| info.reason.clone())
}

fn text(value: &Value) -> String {
    match value.kind.as_ref() {
        None | Some(Kind::NullValue(_)) => "NULL".to_owned(),
        Some(Kind::BoolValue(value)) => value.to_string(),
        Some(Kind::Int64Value(value)) => value.to_string(),
        Some(Kind::DoubleValue(value)) => value.to_string(),
        Some(Kind::TextValue(value)) => value.clone(),
        Some(Kind::BytesValue(value)) => hex::encode(value),
        Some(Kind::ArrayValue(array)) => array.elements.iter().map(text).collect::<Vec<_>>().join(","),
    }
}
