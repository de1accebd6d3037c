//! BackupService: backups of the tenants in the caller's scope. Must not know how one is made or restored.

use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Service, auth, convert, scope, status, texts};
use crate::catalog::{Backup, BackupFilter};
use crate::domain::principal::Principal;
use crate::operations::RestoreTarget;
use crate::proto::v1;
use crate::proto::v1::backup_service_server::BackupService;
use crate::proto::v1::restore_backup_request::Target;
use crate::proto::v1::{
    CreateBackupRequest, CreateBackupResponse, GetBackupRequest, GetBackupResponse, ListBackupsRequest,
    ListBackupsResponse, RestoreBackupRequest, RestoreBackupResponse, VerifyBackupRequest, VerifyBackupResponse,
};

impl Service {
    /// The backup, if its tenant is in the caller's scope.
    async fn backup_in_scope(&self, principal: &Principal, id: &str) -> Result<Backup, Status> {
        let id: Uuid = convert::uuid("backup_id", id)?;
        let backup = self.api.catalog.backup_get(id).await?;
        scope::reach(principal, &backup.tenant_code)?;
        Ok(backup)
    }

    fn backup(&self, backup: &Backup) -> v1::Backup {
        convert::backup(backup, &self.api.config.store.bucket)
    }
}

#[tonic::async_trait]
impl BackupService for Service {
    async fn create_backup(
        &self,
        request: Request<CreateBackupRequest>,
    ) -> Result<Response<CreateBackupResponse>, Status> {
        let principal = auth::caller(&request)?;
        let message = texts::checked(request)?;
        let tenant = self.tenant_in_scope(&principal, &message.tenant).await?;
        let request = convert::request(principal.name.clone(), &message.request_id, message.validate_only)?;
        let begun = self.api.operations.backup_create(&request, &tenant.id.to_string()).await?;
        Ok(Response::new(CreateBackupResponse { operation: begun.map(convert::operation) }))
    }

    async fn get_backup(&self, request: Request<GetBackupRequest>) -> Result<Response<GetBackupResponse>, Status> {
        let principal = auth::caller(&request)?;
        let backup = self.backup_in_scope(&principal, &request.get_ref().backup_id).await?;
        let tables = backup.manifest.iter().flat_map(|manifest| &manifest.tables).map(convert::backup_table).collect();
        Ok(Response::new(GetBackupResponse { backup: Some(v1::Backup { tables, ..self.backup(&backup) }) }))
    }

    async fn list_backups(
        &self,
        request: Request<ListBackupsRequest>,
    ) -> Result<Response<ListBackupsResponse>, Status> {
        let principal = auth::caller(&request)?;
        let message = texts::checked(request)?;
        let page = convert::page(message.page_size, message.page_token)?;
        let tenant = match message.tenant.as_str() {
            "" => None,
            tenant => Some(self.tenant_in_scope(&principal, tenant).await?.id),
        };
        let filter = BackupFilter { codes: principal.scope.codes(), tenant };
        let paged = self.api.catalog.backup_list(&page, &filter).await?;
        let backups = paged.rows.iter().map(|backup| self.backup(backup)).collect();
        let token = |last: &v1::Backup| last.backup_id.clone();
        let (backups, next_page_token) = convert::page_cut(backups, paged.next, token);
        Ok(Response::new(ListBackupsResponse { backups, next_page_token }))
    }

    async fn verify_backup(
        &self,
        request: Request<VerifyBackupRequest>,
    ) -> Result<Response<VerifyBackupResponse>, Status> {
        let principal = auth::caller(&request)?;
        let backup = self.backup_in_scope(&principal, &request.get_ref().backup_id).await?;
        let (backup, checks) = self.api.operations.backup_verify(backup.id).await?;
        // Without a good manifest there are no checks of the archive.
        let checks = ["manifest and its signature"].into_iter().chain(checks.iter().map(|check| check.name()));
        let checks = checks.map(str::to_owned).collect();
        Ok(Response::new(VerifyBackupResponse { backup: Some(self.backup(&backup)), checks }))
    }

    async fn restore_backup(
        &self,
        request: Request<RestoreBackupRequest>,
    ) -> Result<Response<RestoreBackupResponse>, Status> {
        let principal = auth::caller(&request)?;
        let message = texts::checked(request)?;
        let target = match message.target {
            Some(Target::InPlace(true)) => RestoreTarget::InPlace,
            Some(Target::NewCode(code)) => {
                scope::whole_fleet(&principal, "restoring as a new tenant")?;
                RestoreTarget::New(code)
            }
            Some(Target::InPlace(false)) | None => {
                let problem = "either in_place must be true, or new_code must be given".to_owned();
                return Err(status::invalid(vec![("target", problem)]));
            }
        };
        let backup = self.backup_in_scope(&principal, &message.backup_id).await?;
        let request = convert::request(principal.name.clone(), &message.request_id, message.validate_only)?;
        let begun = self.api.operations.restore(&request, backup.id, &target, &message.reason).await?;
        Ok(Response::new(RestoreBackupResponse { operation: begun.map(convert::operation) }))
    }
}
