//! A tenant's roles: the owner, which cannot log in and owns what the tenant makes, and the logins, which act as the
//! owner in the tenant's database and can enter no other.
//!
//! Works for a role that is no superuser, on PostgreSQL 15 and on 16 and later, where CREATEROLE reaches only the
//! roles that it made. Every role carries the operation that made it, so that an undo drops nothing that it found.

use secrecy::SecretString;
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::errors::Error;
use crate::domain::tenant::{DatabaseName, NameError, Naming, RoleName, TenantCode, TenantId, TenantRole};
use crate::secrets::{scram_verifier, scram_verifier_one_round};

/// What no tenant's role ever is.
const NO_PRIVILEGES: &str = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS";

/// The names of one tenant's roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRoles {
    pub owner: RoleName,
    pub logins: Vec<(TenantRole, RoleName)>,
}

/// How one login role is made.
#[derive(Debug, Clone)]
pub struct TenantLogin {
    pub role: TenantRole,
    /// A SCRAM verifier, never a password.
    pub verifier: String,
    pub connections_max: u32,
}

impl TenantLogin {
    /// Drivers of others may refuse a verifier of few rounds, so direct clients have one of the usual kind.
    pub fn new(role: TenantRole, password: &SecretString, connections_max: u32) -> Self {
        let is_direct = TenantRole::DIRECT.contains(&role);
        let verifier = if is_direct { scram_verifier(password) } else { scram_verifier_one_round(password) };
        Self { role, verifier, connections_max }
    }
}

/// What a tenant's sessions are told about their tenant, as `app.current_tenant_id` and `app.current_tenant`.
#[derive(Debug, Clone)]
pub struct TenantContext<'a> {
    pub tenant: TenantId,
    pub code: &'a TenantCode,
}

impl TenantRoles {
    /// All roles of a tenant, by their names.
    pub fn new(naming: &Naming, code: &TenantCode) -> Result<Self, NameError> {
        let login = |role| Ok((role, naming.tenant_role(code, role)?));
        Ok(Self {
            owner: naming.tenant_role(code, TenantRole::Owner)?,
            logins: TenantRole::LOGINS.into_iter().map(login).collect::<Result<_, NameError>>()?,
        })
    }

    /// The name of one of them.
    pub fn name(&self, role: TenantRole) -> Option<&RoleName> {
        if role == TenantRole::Owner {
            return Some(&self.owner);
        }
        self.logins.iter().find(|(login, _name)| *login == role).map(|(_login, name)| name)
    }

    /// The owner and every login.
    pub fn all(&self) -> Vec<RoleName> {
        std::iter::once(&self.owner).chain(self.logins.iter().map(|(_role, name)| name)).cloned().collect()
    }

    /// Every login.
    pub fn login_names(&self) -> Vec<RoleName> {
        self.logins.iter().map(|(_role, name)| name.clone()).collect()
    }

    /// The logins of the tenant's own programs.
    pub fn direct_names(&self) -> Vec<RoleName> {
        let direct = |role: &TenantRole| TenantRole::DIRECT.contains(role);
        self.logins.iter().filter(|(role, _name)| direct(role)).map(|(_role, name)| name.clone()).collect()
    }

    /// Those who do not act as the owner.
    fn readers(&self) -> impl Iterator<Item = &RoleName> {
        self.logins.iter().filter(|(role, _name)| *role == TenantRole::Reader).map(|(_role, name)| name)
    }
}

/// Makes the roles, all or none, marked with the operation. Those that the same operation made before are altered to
/// what is asked for.
///
/// # Errors
/// [`Error::ForeignRole`] when one is there that the operation did not make.
pub async fn tenant_roles_create(
    client: &Client,
    roles: &TenantRoles,
    logins: &[TenantLogin],
    operation: Uuid,
) -> Result<(), Error> {
    let found = marks(client, &roles.all()).await?;
    for (role, mark) in &found {
        if mark.as_deref() != Some(&mark_of(operation)) {
            return Err(Error::ForeignRole { role: role.clone() });
        }
    }
    // Only a superuser may say again what a role is not; it was said when the role was made.
    let make = |name: &RoleName| {
        if found.iter().any(|(role, _mark)| role == name.as_str()) {
            format!("ALTER ROLE {}", name.quoted())
        } else {
            format!("CREATE ROLE {} {NO_PRIVILEGES}", name.quoted())
        }
    };
    let mark = postgres_protocol::escape::escape_literal(&mark_of(operation));
    let owner = roles.owner.quoted();
    let mut script = vec![format!("{} NOLOGIN", make(&roles.owner)), format!("COMMENT ON ROLE {owner} IS {mark}")];
    for login in logins {
        let Some(name) = roles.name(login.role) else { continue };
        script.push(format!(
            "{} LOGIN CONNECTION LIMIT {} PASSWORD {}",
            make(name),
            login.connections_max,
            postgres_protocol::escape::escape_literal(&login.verifier)
        ));
        script.push(format!("COMMENT ON ROLE {} IS {mark}", name.quoted()));
        if login.role != TenantRole::Reader {
            script.push(format!("GRANT {owner} TO {}", name.quoted()));
        }
    }
    // One message is one transaction.
    client.batch_execute(&script.join("; ")).await?;
    Ok(())
}

/// Drops the roles; those that are not there are no error. Their databases have to be gone. With `operation`, only
/// those that it made.
pub async fn tenant_roles_drop(client: &Client, roles: &TenantRoles, operation: Option<Uuid>) -> Result<(), Error> {
    let found = marks(client, &roles.all()).await?;
    let ours = |mark: &Option<String>| operation.is_none_or(|operation| *mark == Some(mark_of(operation)));
    // The logins before the owner that they are members of.
    let names = roles.all().into_iter().rev();
    let script: Vec<String> = names
        .filter(|name| found.iter().any(|(role, mark)| role == name.as_str() && ours(mark)))
        .map(|name| format!("DROP ROLE IF EXISTS {}", name.quoted()))
        .collect();
    client.batch_execute(&script.join("; ")).await?;
    Ok(())
}

/// Which of the roles are there, in order.
pub async fn roles_existing(client: &Client, roles: &[RoleName]) -> Result<Vec<RoleName>, Error> {
    let found = marks(client, roles).await?;
    Ok(found.into_iter().filter_map(|(role, _mark)| RoleName::new(role).ok()).collect())
}

/// Lets the tenant's roles, and the dump role, into the database, and makes the logins act as the owner there. Has to
/// be repeated for every database that takes the tenant's place: these settings belong to one database's OID.
pub async fn database_grant(
    client: &Client,
    database: &DatabaseName,
    roles: &TenantRoles,
    dump: &RoleName,
    context: &TenantContext<'_>,
) -> Result<(), Error> {
    let (database, owner) = (database.quoted(), roles.owner.quoted());
    let mut script = vec![
        format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
        format!("GRANT CREATE, CONNECT, TEMPORARY ON DATABASE {database} TO {owner}"),
        format!("GRANT CONNECT ON DATABASE {database} TO {}", dump.quoted()),
    ];
    script.extend(roles.readers().map(|name| format!("GRANT CONNECT ON DATABASE {database} TO {}", name.quoted())));
    for (role, name) in &roles.logins {
        script.extend(settings_of(name, &database, &login_settings(*role, roles, context)));
    }
    client.batch_execute(&script.join("; ")).await?;
    Ok(())
}

/// What a login's sessions begin with in its tenant's database.
fn login_settings(role: TenantRole, roles: &TenantRoles, context: &TenantContext<'_>) -> Vec<(&'static str, String)> {
    let acts_as_owner = (role != TenantRole::Reader).then(|| ("role", roles.owner.to_string()));
    let tenant =
        [("app.current_tenant_id", context.tenant.to_string()), ("app.current_tenant", context.code.to_string())];
    acts_as_owner.into_iter().chain(tenant).collect()
}

fn settings_of<'a>(
    login: &RoleName,
    database: &str,
    settings: &'a [(&'static str, String)],
) -> impl Iterator<Item = String> + use<'a> {
    let alter = format!("ALTER ROLE {} IN DATABASE {database} SET", login.quoted());
    let literal = postgres_protocol::escape::escape_literal;
    settings.iter().map(move |(name, value)| format!("{alter} {name} = {}", literal(value)))
}

/// Makes a login again what it was made as: with this password, and with no settings but the daemon's in `database`.
/// Every role may change both of its own, and with them shut the daemon out. What a superuser has set stays.
pub async fn login_restore(
    client: &Client,
    database: &DatabaseName,
    roles: &TenantRoles,
    login: &TenantLogin,
    context: &TenantContext<'_>,
) -> Result<(), Error> {
    let Some(name) = roles.name(login.role) else { return Ok(()) };
    let (role, database) = (name.quoted(), database.quoted());
    let verifier = postgres_protocol::escape::escape_literal(&login.verifier);
    let mut script = vec![
        format!("ALTER ROLE {role} PASSWORD {verifier}"),
        format!("ALTER ROLE {role} RESET ALL"),
        format!("ALTER ROLE {role} IN DATABASE {database} RESET ALL"),
    ];
    script.extend(settings_of(name, &database, &login_settings(login.role, roles, context)));
    client.batch_execute(&script.join("; ")).await?;
    Ok(())
}

/// Whether the login whose session `client` is has the settings of [`database_grant`] and no others. Finds nothing by
/// a name that the tenant can have defined.
pub async fn login_is_as_made(
    client: &Client,
    role: TenantRole,
    roles: &TenantRoles,
    context: &TenantContext<'_>,
) -> Result<bool, Error> {
    let sql = "SELECT pg_catalog.unnest(s.setconfig) FROM pg_catalog.pg_db_role_setting AS s \
               JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) s.setrole \
               JOIN pg_catalog.pg_database AS d ON d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database() \
               WHERE r.rolname OPERATOR(pg_catalog.=) session_user \
               AND (s.setdatabase OPERATOR(pg_catalog.=) 0::pg_catalog.oid \
                    OR s.setdatabase OPERATOR(pg_catalog.=) d.oid)";
    let rows = client.query_typed(sql, &[]).await?;
    let mut found = rows.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>()?;
    let settings = login_settings(role, roles, context);
    let mut expected: Vec<_> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    found.sort();
    expected.sort();
    Ok(found == expected)
}

/// Whether the tenant's roles may enter the database; the dump role always may. Open sessions stay.
pub async fn database_connect_allow(
    client: &Client,
    database: &DatabaseName,
    roles: &TenantRoles,
    allow: bool,
) -> Result<(), Error> {
    let (verb, towards) = if allow { ("GRANT", "TO") } else { ("REVOKE", "FROM") };
    let names: Vec<String> = std::iter::once(&roles.owner).chain(roles.readers()).map(RoleName::quoted).collect();
    let sql = format!("{verb} CONNECT ON DATABASE {} {towards} {}", database.quoted(), names.join(", "));
    client.batch_execute(&sql).await?;
    Ok(())
}

/// Lets only the login for restores and migrations, and the dump role, into a database that is being made; nobody of
/// the tenant's finds it half-filled.
pub async fn database_reserve(client: &Client, database: &DatabaseName, roles: &TenantRoles) -> Result<(), Error> {
    database_connect_allow(client, database, roles, false).await?;
    let Some(migrator) = roles.name(TenantRole::Migrator) else { return Ok(()) };
    client.batch_execute(&format!("GRANT CONNECT ON DATABASE {} TO {}", database.quoted(), migrator.quoted())).await?;
    Ok(())
}

/// Takes [`database_reserve`] back.
pub async fn database_release(client: &Client, database: &DatabaseName, roles: &TenantRoles) -> Result<(), Error> {
    database_connect_allow(client, database, roles, true).await?;
    let Some(migrator) = roles.name(TenantRole::Migrator) else { return Ok(()) };
    client
        .batch_execute(&format!("REVOKE CONNECT ON DATABASE {} FROM {}", database.quoted(), migrator.quoted()))
        .await?;
    Ok(())
}

/// Inside the tenant's database, as the daemon's role: `public` is the owner's to use, and the reader may read what
/// the owner makes, anywhere.
pub async fn schema_grant(client: &Client, roles: &TenantRoles) -> Result<(), Error> {
    let owner = roles.owner.quoted();
    let mut script = vec![format!("GRANT ALL ON SCHEMA public TO {owner}")];
    // Default privileges are the owner's to give, so the daemon joins it, for this transaction only.
    script.push(format!("GRANT {owner} TO CURRENT_USER"));
    for reader in roles.readers().map(RoleName::quoted) {
        script.push(format!("GRANT USAGE ON SCHEMA public TO {reader}"));
        for (right, kind) in [("SELECT", "TABLES"), ("SELECT", "SEQUENCES"), ("USAGE", "SCHEMAS")] {
            script.push(format!("ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT {right} ON {kind} TO {reader}"));
        }
    }
    script.push(format!("REVOKE {owner} FROM CURRENT_USER"));
    client.batch_execute(&script.join("; ")).await?;
    Ok(())
}

/// Those of the roles that may log in.
pub async fn logins_enabled(client: &Client, logins: &[RoleName]) -> Result<Vec<String>, Error> {
    let sql = "SELECT rolname::pg_catalog.text FROM pg_catalog.pg_roles \
               WHERE rolname::pg_catalog.text = ANY ($1) AND rolcanlogin";
    let names: Vec<&str> = logins.iter().map(RoleName::as_str).collect();
    let rows = client.query_typed(sql, &[(&names, Type::TEXT_ARRAY)]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Whether these roles may log in. Open sessions stay.
pub async fn logins_enable(client: &Client, logins: &[RoleName], enable: bool) -> Result<(), Error> {
    let attribute = if enable { "LOGIN" } else { "NOLOGIN" };
    let alter = |name: &RoleName| format!("ALTER ROLE {} {attribute}", name.quoted());
    client.batch_execute(&logins.iter().map(alter).collect::<Vec<_>>().join("; ")).await?;
    Ok(())
}

/// What a role's comment says about who made it.
fn mark_of(operation: Uuid) -> String {
    format!("tenantd operation {operation}")
}

/// Those of the roles that are there, with their comments.
async fn marks(client: &Client, roles: &[RoleName]) -> Result<Vec<(String, Option<String>)>, Error> {
    let sql = "SELECT rolname::pg_catalog.text, pg_catalog.shobj_description(oid, 'pg_authid') \
               FROM pg_catalog.pg_roles WHERE rolname::pg_catalog.text = ANY ($1) ORDER BY 1";
    let names: Vec<&str> = roles.iter().map(RoleName::as_str).collect();
    let rows = client.query_typed(sql, &[(&names, Type::TEXT_ARRAY)]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_roles_are_found_by_purpose() {
        let roles = TenantRoles::new(&Naming::new("erp").unwrap(), &"acme".parse().unwrap()).unwrap();
        assert_eq!(roles.name(TenantRole::Owner).unwrap().as_str(), "erp_acme");
        assert_eq!(roles.name(TenantRole::Migrator).unwrap().as_str(), "erp_acme__m");
        assert_eq!(roles.all().len(), 6);
        let direct: Vec<_> = roles.direct_names().into_iter().map(String::from).collect();
        assert_eq!(direct, ["erp_acme__a", "erp_acme__b", "erp_acme__ro"]);
    }
}
