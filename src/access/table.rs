//! What each method needs. Every method of the API is here, which a test compares with the API's own description; a
//! method that is not here is refused.

use crate::domain::permission::Permission;

use Permission::{Administrate, Authenticated, Backup, Migrate, Operate, Reach, View};

const TABLE: &[(&str, Permission)] = &[
    ("/tenantd.v1.AccessService/WhoAmI", Authenticated),
    ("/tenantd.v1.AccessService/CreateApiKey", Administrate),
    ("/tenantd.v1.AccessService/ListApiKeys", Administrate),
    ("/tenantd.v1.AccessService/RevokeApiKey", Administrate),
    ("/tenantd.v1.BackupService/CreateBackup", Backup),
    ("/tenantd.v1.BackupService/GetBackup", View),
    ("/tenantd.v1.BackupService/ListBackups", View),
    ("/tenantd.v1.BackupService/VerifyBackup", Backup),
    ("/tenantd.v1.BackupService/RestoreBackup", Operate),
    ("/tenantd.v1.MigrationService/CreateRollout", Migrate),
    ("/tenantd.v1.MigrationService/GetRollout", View),
    ("/tenantd.v1.MigrationService/ListRollouts", View),
    ("/tenantd.v1.MigrationService/WatchRollout", View),
    ("/tenantd.v1.OperationService/GetOperation", View),
    ("/tenantd.v1.OperationService/ListOperations", View),
    ("/tenantd.v1.OperationService/WatchOperation", View),
    ("/tenantd.v1.OperationService/RetryOperation", Operate),
    ("/tenantd.v1.OperationService/AbandonOperation", Operate),
    // The daemon's own databases as a whole need Administrate too, which the service checks.
    ("/tenantd.v1.QueryService/Execute", Reach),
    ("/tenantd.v1.QueryService/StreamQuery", Reach),
    ("/tenantd.v1.QueryService/Transact", Reach),
    ("/tenantd.v1.QueryService/Pipeline", Reach),
    // With credentials it needs SeeCredentials too, which the service checks.
    ("/tenantd.v1.RouterService/ResolveTenant", Reach),
    ("/tenantd.v1.RouterService/WatchRoutes", Reach),
    ("/tenantd.v1.RouterService/ListPools", View),
    ("/tenantd.v1.RouterService/EvictPool", Operate),
    ("/tenantd.v1.RouterService/GetTenantStats", View),
    ("/tenantd.v1.TenantService/CreateTenant", Operate),
    ("/tenantd.v1.TenantService/GetTenant", View),
    ("/tenantd.v1.TenantService/ListTenants", View),
    ("/tenantd.v1.TenantService/SuspendTenant", Operate),
    ("/tenantd.v1.TenantService/ResumeTenant", Operate),
    ("/tenantd.v1.TenantService/AddTenantHost", Operate),
    ("/tenantd.v1.TenantService/RemoveTenantHost", Operate),
];

/// What the method at `path` (as `/tenantd.v1.TenantService/GetTenant`) needs.
pub fn permission(path: &str) -> Option<Permission> {
    TABLE.iter().find(|(method, _)| *method == path).map(|(_, permission)| *permission)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::domain::permission::Role;
    use crate::proto::DESCRIPTORS;

    #[test]
    fn every_method_is_here_once_and_nothing_else() {
        let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
        let described: BTreeSet<String> = pool
            .services()
            .filter(|service| service.package_name() == "tenantd.v1")
            .flat_map(|service| {
                let name = service.full_name().to_owned();
                service.methods().map(move |method| format!("/{name}/{}", method.name())).collect::<Vec<_>>()
            })
            .collect();
        let listed: BTreeSet<String> = TABLE.iter().map(|(method, _)| (*method).to_owned()).collect();
        assert_eq!(described, listed);
        assert_eq!(listed.len(), TABLE.len());
    }

    #[test]
    fn an_unknown_method_needs_what_nobody_has() {
        assert_eq!(permission("/tenantd.v1.TenantService/Nothing"), None);
    }

    #[test]
    fn a_viewer_changes_nothing() {
        for (method, permission) in TABLE {
            let name = method.rsplit('/').next().unwrap_or_default();
            let reads = ["Get", "List", "Watch", "Who"].iter().any(|verb| name.starts_with(verb));
            assert!(reads || !Role::Viewer.grants(*permission), "{method}");
        }
    }
}
