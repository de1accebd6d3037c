//! What each role may call, as people were told: written out, and compared with what the daemon does.

use std::collections::BTreeSet;

use prost_reflect::DescriptorPool;
use tenantd::access::permission;
use tenantd::domain::permission::Role;
use tenantd::domain::principal::{Principal, Scope};
use tenantd::proto::DESCRIPTORS;

/// Viewer, resolver, migrator, backup, operator, admin, user.
const MAY: [(&str, &str); 34] = [
    ("AccessService/WhoAmI", "v r m b o a u"),
    ("AccessService/CreateApiKey", ". . . . . a ."),
    ("AccessService/ListApiKeys", ". . . . . a ."),
    ("AccessService/RevokeApiKey", ". . . . . a ."),
    ("BackupService/CreateBackup", ". . . b o a ."),
    ("BackupService/GetBackup", "v . m b o a ."),
    ("BackupService/ListBackups", "v . m b o a ."),
    ("BackupService/VerifyBackup", ". . . b o a ."),
    ("BackupService/RestoreBackup", ". . . . o a ."),
    ("MigrationService/CreateRollout", ". . m . o a ."),
    ("MigrationService/GetRollout", "v . m b o a ."),
    ("MigrationService/ListRollouts", "v . m b o a ."),
    ("MigrationService/WatchRollout", "v . m b o a ."),
    ("OperationService/GetOperation", "v . m b o a ."),
    ("OperationService/ListOperations", "v . m b o a ."),
    ("OperationService/WatchOperation", "v . m b o a ."),
    ("OperationService/RetryOperation", ". . . . o a ."),
    ("OperationService/AbandonOperation", ". . . . o a ."),
    ("QueryService/Execute", ". r . . . a u"),
    ("QueryService/StreamQuery", ". r . . . a u"),
    ("QueryService/Transact", ". r . . . a u"),
    ("QueryService/Pipeline", ". r . . . a u"),
    ("RouterService/ResolveTenant", ". r . . . a u"),
    ("RouterService/WatchRoutes", ". r . . . a u"),
    ("RouterService/ListPools", "v . m b o a ."),
    ("RouterService/EvictPool", ". . . . o a ."),
    ("RouterService/GetTenantStats", "v . m b o a ."),
    ("TenantService/CreateTenant", ". . . . o a ."),
    ("TenantService/GetTenant", "v . m b o a ."),
    ("TenantService/ListTenants", "v . m b o a ."),
    ("TenantService/SuspendTenant", ". . . . o a ."),
    ("TenantService/ResumeTenant", ". . . . o a ."),
    ("TenantService/AddTenantHost", ". . . . o a ."),
    ("TenantService/RemoveTenantHost", ". . . . o a ."),
];

#[test]
fn each_role_may_call_what_is_written_here_and_nothing_else() {
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let services = pool.services().filter(|service| service.package_name() == "tenantd.v1");
    let methods = services.flat_map(|service| {
        let name = service.name().to_owned();
        service.methods().map(move |method| format!("{name}/{}", method.name())).collect::<Vec<_>>()
    });
    assert_eq!(methods.collect::<BTreeSet<_>>(), MAY.iter().map(|(method, _)| (*method).to_owned()).collect());
    for (method, may) in MAY {
        let needed = permission(&format!("/tenantd.v1.{method}")).unwrap();
        let letter = |role: &Role| {
            let may = Principal::new("somebody", [*role].into(), Scope::All).may(needed);
            if may { &role.name()[..1] } else { "." }
        };
        assert_eq!(Role::ALL.iter().map(letter).collect::<Vec<_>>().join(" "), may, "{method}");
    }
}
