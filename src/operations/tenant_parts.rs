//! What several operations do with one tenant: its credentials, roles, database, name, license and logins.
//! Roles and databases that an operation makes carry its id as their comment, and undo drops nothing else.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Parts;
use super::step::{Done, NAME_TAKEN, Run, StepError};
use crate::catalog::{NewLicense, Tenant, TenantRef, TenantSchema};
use crate::config::RoleLogin;
use crate::domain::lifecycle::{TenantState, Transition};
use crate::domain::migration::MigrationFile;
use crate::domain::tenant::{DatabaseName, RoleName, TenantId, TenantRole, database_under_construction};
use crate::migrator::{self, TenantReport};
use crate::postgres::admin::DatabaseLocale;
use crate::postgres::identity::Identity;
use crate::postgres::roles::{TenantContext, TenantLogin, TenantRoles};
use crate::postgres::{ConnectRequest, Connection, Lane, Server, SessionOptions, admin, identity, roles};

/// How long other daemons may take to hear of a gate that was shut before it counts that nobody works behind it. One
/// that needs longer loses what it runs, and its callers are told so.
const HEARD_WITHIN: Duration = Duration::from_millis(250);
/// How often it is asked whether somebody still works in a database.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// For everything together: the queues, the connect, the login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A tenant with the server and the roles that it has there.
pub(super) struct Place {
    pub(super) tenant: Tenant,
    pub(super) server: Server,
    pub(super) roles: TenantRoles,
}

impl Place {
    pub(super) async fn of(run: &Run) -> Result<Self, StepError> {
        Self::of_tenant(&run.parts, run.tenant()?).await
    }

    pub(super) async fn of_tenant(parts: &Parts, tenant: TenantId) -> Result<Self, StepError> {
        Self::at(parts, parts.catalog.tenant_get(&TenantRef::Id(tenant)).await?)
    }

    pub(super) fn at(parts: &Parts, tenant: Tenant) -> Result<Self, StepError> {
        let server = parts.server(&tenant.server).map_err(|e| StepError::internal(e.to_string()))?.clone();
        let roles = TenantRoles::new(&parts.config.naming, &tenant.code)
            .map_err(|error| StepError::internal(error.to_string()))?;
        Ok(Self { tenant, server, roles })
    }

    fn context(&self) -> TenantContext<'_> {
        TenantContext { tenant: self.tenant.id, code: &self.tenant.code }
    }
}

/// What marks a role or a database as made by this operation.
pub(super) fn mark(run: &Run) -> String {
    format!("tenantd operation {}", run.id())
}

/// Deletes the row that was written together with the operation.
pub(super) async fn unreserve(run: &Run) -> Result<(), StepError> {
    let txn = run.parts.catalog.begin().await?;
    run.parts.catalog.tenant_delete_in_txn(&txn, run.tenant()?).await?;
    txn.commit().await?;
    run.parts.router.route_forget(run.tenant()?);
    Ok(())
}

/// Makes the tenant's data key, a password for each login role, and the identity that opens its backups.
/// They go with the tenant's row, so nothing is left to undo.
pub(super) async fn credentials(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    run.parts.tenant_secrets_make(place.tenant.id, &place.roles.login_names()).await?;
    Ok(Done::default())
}

pub(super) async fn roles(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    let limits = run.parts.live.current();
    let tier = limits.tiers.get(&place.tenant.tier);
    let direct_connections_max = tier.map_or(10, |tier| tier.direct_connections_max);
    // The pools of all daemons together stay within the budget, and what a tier says of them may change.
    let (budget, _reserved) = place.server.budget().configured();
    let mut logins = Vec::new();
    for (role, _) in &place.roles.logins {
        let password = login(run, &place, *role).await?.password;
        let connections_max = if *role == TenantRole::Router { budget } else { direct_connections_max };
        logins.push(TenantLogin::new(*role, &password, connections_max));
    }
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    // Looked for early: the database gets this name after all the work.
    if admin::database_oid(&client, &place.tenant.database).await?.is_some() {
        owned_by_us(run, &client, &place.tenant.database).await?;
    }
    roles::tenant_roles_create(&client, &place.roles, &logins, run.id().0).await?;
    Ok(Done::default())
}

pub(super) async fn roles_undo(run: &Run) -> Result<(), StepError> {
    let place = Place::of(run).await?;
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    Ok(roles::tenant_roles_drop(&client, &place.roles, Some(run.id().0)).await?)
}

/// A database to be made for a tenant.
pub(super) struct NewDatabase {
    name: DatabaseName,
    generation: i64,
    locale: DatabaseLocale,
}

impl NewDatabase {
    pub(super) fn empty(name: DatabaseName, generation: i64) -> Self {
        let locale = "C.UTF-8".to_owned();
        let locale = DatabaseLocale { encoding: "UTF8".to_owned(), collate: locale.clone(), ctype: locale };
        Self { name, generation, locale }
    }

    pub(super) fn like(name: DatabaseName, generation: i64, manifest: &crate::domain::backup::Manifest) -> Self {
        let locale = DatabaseLocale {
            encoding: manifest.encoding.clone(),
            collate: manifest.collate.clone(),
            ctype: manifest.ctype.clone(),
        };
        Self { name, generation, locale }
    }
}

/// Makes the database anew, closed to everybody but who fills it, with its identity row. What an earlier attempt
/// left under this name, which carries the operation's id, is dropped first.
pub(super) async fn new_database(run: &Run, place: &Place, new: &NewDatabase) -> Result<(), StepError> {
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    admin::database_drop(&client, &new.name).await?;
    let request = admin::NewDatabase { name: &new.name, template: None, locale: Some(new.locale.clone()) };
    admin::database_create(&client, &request).await?;
    admin::database_comment_set(&client, &new.name, &mark(run)).await?;
    roles::database_grant(&client, &new.name, &place.roles, &place.server.dump().role, &place.context()).await?;
    roles::database_reserve(&client, &new.name, &place.roles).await?;
    admin::database_connections_allow(&client, &new.name, true).await?;
    drop(client);
    let inside = place.server.connect_admin(&new.name).await?;
    roles::schema_grant(&inside, &place.roles).await?;
    let identity = Identity { tenant: place.tenant.id, catalog: run.parts.catalog_id, generation: new.generation };
    identity::identity_write(&inside, &identity, &place.roles.all()).await?;
    Ok(())
}

/// Drops what was made under the operation's own name.
pub(super) async fn new_database_undo(run: &Run) -> Result<(), StepError> {
    let place = Place::of(run).await?;
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    Ok(admin::database_drop(&client, &database_under_construction(run.id().0)).await?)
}

/// Gives the finished database the name that the router knows.
pub(super) async fn name(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    let new = database_under_construction(run.id().0);
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    if admin::database_oid(&client, &new).await?.is_none() {
        // Renamed already, and the result was not stored.
        return owned_by_us(run, &client, &place.tenant.database).await.map(|()| Done::default());
    }
    run.claim_check().await?;
    roles::database_release(&client, &new, &place.roles).await?;
    admin::sessions_end(&client, &new).await?;
    admin::database_rename(&client, &new, &place.tenant.database).await?;
    Ok(Done::detail(place.tenant.database.to_string()))
}

async fn owned_by_us(run: &Run, client: &Connection, name: &DatabaseName) -> Result<(), StepError> {
    match admin::database_comment(client, name).await? {
        Some(comment) if comment == mark(run) => Ok(()),
        _ => Err(StepError::failed(
            NAME_TAKEN,
            format!(
                "the database {name} is on the server already, and was not made by this operation; drop or rename it, or choose another code"
            ),
        )),
    }
}

pub(super) async fn name_undo(run: &Run) -> Result<(), StepError> {
    let place = Place::of(run).await?;
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    if owned_by_us(run, &client, &place.tenant.database).await.is_ok() {
        admin::database_drop(&client, &place.tenant.database).await?;
    }
    Ok(())
}

pub(super) async fn license(run: &Run) -> Result<Done, StepError> {
    let place = Place::of(run).await?;
    let limits = run.parts.live.current();
    let tier = limits.tiers.get(&place.tenant.tier);
    let (users_max, sites_max) = tier.map_or((5, 1), |tier| (tier.users_max, tier.sites_max));
    let license = NewLicense {
        // The same each time that the step is repeated.
        id: run.id().0,
        license_key: run.id().0.simple().to_string(),
        tier: place.tenant.tier.clone(),
        users_max: users_max.into(),
        sites_max: sites_max.into(),
        valid_from: time::OffsetDateTime::now_utc().date(),
        valid_until: None,
    };
    let txn = run.parts.catalog.begin().await?;
    run.parts.catalog.license_put_in_txn(&txn, place.tenant.id, &license).await?;
    run.parts.catalog.site_primary_put_in_txn(&txn, place.tenant.id, run.id().0, &place.tenant.name).await?;
    txn.commit().await?;
    Ok(Done::detail(format!("{}: {users_max} users, {sites_max} sites", place.tenant.tier)))
}

/// The last step of everything that makes a tenant.
pub(super) async fn activate(run: &Run, schema: &TenantSchema<'_>) -> Result<Done, StepError> {
    let catalog = &run.parts.catalog;
    let tenant = run.tenant()?;
    let txn = catalog.begin().await?;
    catalog.tenant_schema_set_in_txn(&txn, tenant, schema).await?;
    if catalog.tenant_lock_in_txn(&txn, tenant).await?.state != TenantState::Active {
        catalog.tenant_transition_in_txn(&txn, tenant, Transition::Activate).await?;
    }
    txn.commit().await?;
    run.parts.router.route_forget(tenant);
    let row = catalog.tenant_get(&TenantRef::Id(tenant)).await?;
    let output =
        json!({ "tenant_id": tenant, "code": row.code, "database": row.database, "schema_version": schema.version });
    Ok(Done { output, detail: None })
}

/// How the daemon logs in as one of the tenant's roles.
pub(super) async fn login(run: &Run, place: &Place, role: TenantRole) -> Result<RoleLogin, StepError> {
    Ok(run.parts.router.route_login(&place.tenant.route(), role).await?)
}

/// A direct connection as one of the tenant's roles, which is made what it was if somebody has changed it.
pub(super) async fn connect_as(
    run: &Run,
    place: &Place,
    role: TenantRole,
    database: &DatabaseName,
    purpose: &str,
) -> Result<Connection, StepError> {
    let login = login(run, place, role).await?;
    match connect(&place.server, &login, database, purpose).await {
        Ok(client) if roles::login_is_as_made(&client, role, &place.roles, &place.context()).await.unwrap_or(false) => {
            return Ok(client);
        }
        Err(error) if error.is_transient() || !error.refused_session() => return Err(error.into()),
        _ => {}
    }
    login_restore(run, place, role, database).await?;
    Ok(connect(&place.server, &login, database, purpose).await?)
}

async fn connect(
    server: &Server,
    login: &RoleLogin,
    database: &DatabaseName,
    purpose: &str,
) -> Result<Connection, crate::postgres::Error> {
    let request = ConnectRequest {
        lane: Lane::Migration,
        login,
        database,
        application_name: &server.session_name(purpose),
        options: SessionOptions::default(),
        deadline: Instant::now() + CONNECT_TIMEOUT,
    };
    server.connect(&request).await
}

/// Applies what is pending, as the tenant's own role.
pub(super) async fn migrate(
    run: &Run,
    place: &Place,
    database: &DatabaseName,
    files: &[MigrationFile],
) -> Result<TenantReport, StepError> {
    let mut client = connect_as(run, place, TenantRole::Migrator, database, "migrate").await?;
    // What an earlier attempt left is dropped before, so that nothing is known of the database.
    migrator::migrate_tenant(&mut client, files, &run.parts.config.migrator, place.tenant.id, 0)
        .await
        .map_err(|error| StepError::failed("SQL", error.to_string()))
}

/// Those of these logins that are not locked.
pub(super) async fn logins_enabled(place: &Place, which: &[TenantRole]) -> Result<Vec<TenantRole>, StepError> {
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    let names: Vec<RoleName> = which.iter().filter_map(|role| place.roles.name(*role)).cloned().collect();
    let enabled = roles::logins_enabled(&client, &names).await?;
    let is_enabled = |role: &&TenantRole| {
        place.roles.name(**role).is_some_and(|name| enabled.iter().any(|other| other == name.as_str()))
    };
    Ok(which.iter().filter(is_enabled).copied().collect())
}

/// Locks or unlocks logins on the server. Sessions that are there already stay.
pub(super) async fn logins_enable(place: &Place, which: &[TenantRole], enabled: bool) -> Result<(), StepError> {
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    let names: Vec<RoleName> = which.iter().filter_map(|role| place.roles.name(*role)).cloned().collect();
    Ok(roles::logins_enable(&client, &names, enabled).await?)
}

/// Gives a login of the daemon's the password that the catalog has, and the settings that it was made with. PostgreSQL
/// lets whoever gets SQL to run as a role change both, and with them shut the daemon out.
pub(super) async fn login_restore(
    run: &Run,
    place: &Place,
    role: TenantRole,
    database: &DatabaseName,
) -> Result<(), StepError> {
    // Its limit is not touched.
    let made = TenantLogin::new(role, &login(run, place, role).await?.password, 0);
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    Ok(roles::login_restore(&client, database, &place.roles, &made, &place.context()).await?)
}

/// Waits for whoever works in the tenant's database, through whichever daemon or none, and ends what is left, until the
/// server has no session there. The gate is shut by now.
pub(super) async fn drain(run: &Run, place: &Place) -> Result<(), StepError> {
    let until = Instant::now() + run.parts.config.backup.pause_drain_max;
    // A daemon without a name is alone.
    if run.parts.config.instance.is_some() {
        sleep(HEARD_WITHIN).await;
    }
    let client = place.server.connect_admin(place.server.maintenance_database()).await?;
    let callers: Vec<_> = TenantRole::CALLERS.iter().filter_map(|role| place.roles.name(*role)).cloned().collect();
    while admin::role_sessions_busy(&client, &place.tenant.database, &callers).await? > 0 && Instant::now() < until {
        sleep(BUSY_POLL_INTERVAL).await;
    }
    drop(client);
    Ok(run.parts.router.drain(place.tenant.id, until.saturating_duration_since(Instant::now())).await?)
}
