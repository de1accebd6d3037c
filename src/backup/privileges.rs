//! Grants, default privileges and the roles of policies: read with the snapshot, and given again after a restore,
//! which itself takes none from the archive. Only what differs is changed, by the tenant's own login.
//!
//! A grant that the server does not take again is reported and does not fail the restore: the rows are what a restore
//! is for, and who may read them less than before loses nothing.

use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::escape::escape_identifier;
use postgres_types::Type;
use tokio_postgres::{Client, Row};

use super::Error;
use crate::domain::privilege::{Grantee, Object, ObjectKind, Privilege};
use crate::domain::tenant::TenantRole;
use crate::postgres::roles::TenantRoles;

const PRIVILEGES: &str = include_str!("privileges.sql");
/// Given by PostgreSQL 17 and newer; an owner who got it by the newer default keeps it.
const RIGHT_OF_17: &str = "MAINTAIN";

/// Every right in this database. The session finds only `pg_catalog`. What belongs to others is told as it will be when
/// it is restored: their own rights as the tenant's owner's.
pub(super) async fn privileges(client: &Client, roles: &TenantRoles) -> Result<Vec<Privilege>, Error> {
    let rows = client.query_typed(PRIVILEGES, &[(&roles.owner.as_str(), Type::NAME)]).await?;
    let mut privileges = rows.iter().map(|row| privilege(row, roles)).collect::<Result<Vec<_>, Error>>()?;
    privileges.sort();
    Ok(privileges)
}

fn privilege(row: &Row, roles: &TenantRoles) -> Result<Privilege, Error> {
    let keyword: &str = row.try_get(0)?;
    let kind = ObjectKind::ALL.into_iter().find(|kind| kind.keyword() == keyword);
    let kind = kind.ok_or_else(|| Error::Privilege { object: keyword.to_owned() })?;
    let former_owner: Option<String> = row.try_get(6)?;
    let former_owner = former_owner.filter(|owner| owner != roles.owner.as_str());
    let grantee = match row.try_get::<_, Option<String>>(3)? {
        None => Grantee::Public,
        Some(name) if former_owner.as_ref() == Some(&name) => Grantee::Tenant(TenantRole::Owner),
        Some(name) => TenantRole::ALL
            .into_iter()
            .find(|role| roles.name(*role).is_some_and(|known| known.as_str() == name))
            .map_or(Grantee::Other(name), Grantee::Tenant),
    };
    Ok(Privilege {
        object: Object { kind, name: row.try_get(1)?, part: row.try_get(2)? },
        grantee,
        grantable: row.try_get(4)?,
        rights: row.try_get(5)?,
        former_owner,
    })
}

/// The objects that belonged to others when they were backed up, as `TABLE public.t (of postgres)`.
pub(super) fn owners_changed(expected: &[Privilege]) -> BTreeSet<String> {
    let whole = |privilege: &&Privilege| !matches!(privilege.object.kind, ObjectKind::Column | ObjectKind::Policy);
    let text = |privilege: &Privilege| {
        let Object { kind, name, .. } = &privilege.object;
        privilege.former_owner.as_ref().map(|owner| format!("{} {name} (of {owner})", kind.keyword()))
    };
    expected.iter().filter(whole).filter_map(text).collect()
}

/// Makes the database's privileges those of the backup. Answers with what could not be done, as sentences.
pub(super) async fn privileges_apply(
    client: &Client,
    roles: &TenantRoles,
    expected: &[Privilege],
) -> Result<Vec<String>, Error> {
    let found = privileges(client, roles).await?;
    let mut left_out = Vec::new();
    for statement in statements(expected, &found, roles) {
        if let Err(error) = client.batch_execute(&statement).await {
            let error = crate::postgres::Error::from(error);
            if error.is_transient() {
                return Err(error.into());
            }
            left_out.push(format!("{statement}: {error}"));
        }
    }
    Ok(left_out)
}

/// One right of one grantee.
type Right<'a> = (&'a Grantee, &'a str);

/// What leads from the privileges that are there to those that should be.
fn statements(expected: &[Privilege], found: &[Privilege], roles: &TenantRoles) -> Vec<String> {
    let expected_by_object = by_object(expected);
    let found_by_object = by_object(found);
    let objects: BTreeSet<&Object> = expected_by_object.keys().chain(found_by_object.keys()).copied().collect();
    let mut statements = Vec::new();
    for object in objects {
        let (wanted, there) = (expected_by_object.get(object), found_by_object.get(object));
        // Older manifests are silent about what was not the owner's. It is now, and is of use to it.
        let stays_the_owners = wanted.is_none();
        let (wanted, there) = (wanted.cloned().unwrap_or_default(), there.cloned().unwrap_or_default());
        if wanted == there {
            continue;
        }
        if object.kind == ObjectKind::Policy {
            statements.extend(policy(object, wanted.keys().map(|(grantee, _right)| *grantee), roles));
            continue;
        }
        for (right, grantable) in &there {
            let is_newer_default = right.1 == RIGHT_OF_17 && !expected_has(expected, RIGHT_OF_17);
            let is_kept = is_newer_default || (stays_the_owners && *right.0 == Grantee::Tenant(TenantRole::Owner));
            if wanted.get(right) != Some(grantable) && !is_kept {
                statements.push(change(object, *right, roles, Change::Revoke));
            }
        }
        for (right, grantable) in wanted.iter().filter(|(right, grantable)| there.get(*right) != Some(*grantable)) {
            statements.push(change(object, *right, roles, Change::Grant { grantable: *grantable }));
        }
    }
    statements
}

fn expected_has(expected: &[Privilege], right: &str) -> bool {
    expected.iter().any(|privilege| privilege.rights.iter().any(|known| known == right))
}

/// The rights on each object, with whether they may be granted on.
fn by_object(privileges: &[Privilege]) -> BTreeMap<&Object, BTreeMap<Right<'_>, bool>> {
    let mut objects: BTreeMap<&Object, BTreeMap<Right<'_>, bool>> = BTreeMap::new();
    for privilege in privileges {
        let rights = objects.entry(&privilege.object).or_default();
        if privilege.object.kind == ObjectKind::Policy {
            rights.insert((&privilege.grantee, ""), false);
        }
        for right in &privilege.rights {
            *rights.entry((&privilege.grantee, right)).or_default() |= privilege.grantable;
        }
    }
    objects
}

#[derive(Clone, Copy)]
enum Change {
    Revoke,
    Grant { grantable: bool },
}

fn change(object: &Object, (grantee, right): Right<'_>, roles: &TenantRoles, change: Change) -> String {
    let Object { kind, name, part } = object;
    let grantee = role(grantee, roles);
    let (begin, target) = match (kind, part) {
        (ObjectKind::Column, Some(column)) => (String::new(), format!("{right} ({column}) ON TABLE {name}")),
        (ObjectKind::Default, None) => ("ALTER DEFAULT PRIVILEGES ".to_owned(), format!("{right} ON {name}")),
        (ObjectKind::Default, Some(schema)) => {
            (format!("ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} "), format!("{right} ON {name}"))
        }
        _ => (String::new(), format!("{right} ON {} {name}", kind.keyword())),
    };
    match change {
        Change::Revoke => format!("{begin}REVOKE {target} FROM {grantee}"),
        Change::Grant { grantable: false } => format!("{begin}GRANT {target} TO {grantee}"),
        Change::Grant { grantable: true } => format!("{begin}GRANT {target} TO {grantee} WITH GRANT OPTION"),
    }
}

/// A policy applies to somebody, or it would have been dropped.
fn policy<'a>(object: &Object, grantees: impl Iterator<Item = &'a Grantee>, roles: &TenantRoles) -> Option<String> {
    let names: Vec<String> = grantees.map(|grantee| role(grantee, roles)).collect();
    let policy = object.part.as_ref().filter(|_| !names.is_empty())?;
    Some(format!("ALTER POLICY {policy} ON {} TO {}", object.name, names.join(", ")))
}

/// As SQL writes it.
fn role(grantee: &Grantee, roles: &TenantRoles) -> String {
    match grantee {
        Grantee::Public => "PUBLIC".to_owned(),
        Grantee::Tenant(role) => roles.name(*role).unwrap_or(&roles.owner).quoted(),
        Grantee::Other(name) => escape_identifier(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tenant::Naming;

    fn roles() -> TenantRoles {
        TenantRoles::new(&Naming::new("erp").unwrap(), &"copy".parse().unwrap()).unwrap()
    }

    fn on(kind: ObjectKind, name: &str, part: Option<&str>, grantee: Grantee, rights: &[&str]) -> Privilege {
        let object = Object { kind, name: name.to_owned(), part: part.map(str::to_owned) };
        let rights = rights.iter().map(|right| (*right).to_owned()).collect();
        Privilege { object, grantee, grantable: false, rights, former_owner: None }
    }

    #[test]
    fn only_what_differs_is_changed_and_roles_take_the_names_of_the_new_tenant() {
        let reader = Grantee::Tenant(TenantRole::Reader);
        let owner = Grantee::Tenant(TenantRole::Owner);
        let table = |grantee: &Grantee, rights| on(ObjectKind::Table, "public.t", None, grantee.clone(), rights);
        let grantable = Privilege {
            grantable: true,
            ..on(ObjectKind::Column, "public.t", Some("\"a b\""), Grantee::Other("x\"y".to_owned()), &["SELECT"])
        };
        let expected = [
            table(&owner, &["INSERT", "SELECT"]),
            grantable,
            on(ObjectKind::Default, "TABLES", Some("app"), reader.clone(), &["SELECT"]),
            on(ObjectKind::Policy, "public.t", Some("p"), reader.clone(), &[]),
        ];
        let found = [
            table(&owner, &["INSERT", "SELECT", "MAINTAIN"]),
            table(&reader, &["SELECT"]),
            on(ObjectKind::Table, "public.unknown", None, owner.clone(), &["SELECT"]),
            on(ObjectKind::Table, "public.unknown", None, Grantee::Public, &["SELECT"]),
            on(ObjectKind::Policy, "public.t", Some("p"), Grantee::Other("erp_acme__ro".to_owned()), &[]),
        ];
        assert_eq!(
            statements(&expected, &found, &roles()),
            [
                "REVOKE SELECT ON TABLE public.t FROM \"erp_copy__ro\"",
                "REVOKE SELECT ON TABLE public.unknown FROM PUBLIC",
                "GRANT SELECT (\"a b\") ON TABLE public.t TO \"x\"\"y\" WITH GRANT OPTION",
                "ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO \"erp_copy__ro\"",
                "ALTER POLICY p ON public.t TO \"erp_copy__ro\"",
            ]
        );
        assert!(statements(&expected, &expected, &roles()).is_empty());
    }
}
