//! What administrators have given a database beside its contents: limit, comment, settings, rights. All of it belongs to
//! the database's OID, so that another database in its place has none of it.
//!
//! Values are read as PostgreSQL keeps them, and what is there already is not touched: copying may be repeated.

use std::collections::BTreeSet;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::errors::Error;
use crate::domain::tenant::{DatabaseName, RoleName};

/// Settings whose value is a list of names, each quoted by itself where it has to be.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Properties {
    connections_max: i32,
    comment: Option<String>,
    settings: BTreeSet<Setting>,
    rights: BTreeSet<Right>,
}

/// Of the database, or of one role in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Setting {
    role: Option<String>,
    name: String,
    value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    /// `None`: PUBLIC.
    grantee: Option<String>,
    privilege: String,
    grantable: bool,
}

/// Makes the properties of `to` those of `from`, but for the settings of the roles `others`. Answers with what the
/// daemon's role may not do, as sentences.
pub async fn database_properties_copy(
    client: &Client,
    from: &DatabaseName,
    to: &DatabaseName,
    others: &[RoleName],
) -> Result<Vec<String>, Error> {
    let (wanted, found) = (properties(client, from).await?, properties(client, to).await?);
    let mut left_out = Vec::new();
    for statement in statements(&wanted, &found, to, others) {
        if let Err(error) = client.batch_execute(&statement).await.map_err(Error::from) {
            if error.is_transient() {
                return Err(error);
            }
            left_out.push(format!("{statement}: {error}"));
        }
    }
    Ok(left_out)
}

async fn properties(client: &Client, name: &DatabaseName) -> Result<Properties, Error> {
    let missing = || Error::DatabaseMissing { database: name.to_string() };
    let one = async |sql: &str| client.query_typed(sql, &[(&name.as_str(), Type::TEXT)]).await;
    let database = "SELECT datconnlimit, pg_catalog.shobj_description(oid, 'pg_database') \
                    FROM pg_catalog.pg_database WHERE datname = $1";
    let settings = "SELECT r.rolname::pg_catalog.text, pg_catalog.unnest(s.setconfig) \
                    FROM pg_catalog.pg_db_role_setting AS s JOIN pg_catalog.pg_database AS d ON d.oid = s.setdatabase \
                    LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = s.setrole WHERE d.datname = $1";
    let rights = "SELECT r.rolname::pg_catalog.text, a.privilege_type, a.is_grantable FROM pg_catalog.pg_database AS d \
                  CROSS JOIN pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) AS a \
                  LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee WHERE d.datname = $1";
    let rows = one(database).await?;
    let row = rows.first().ok_or_else(missing)?;
    let mut properties = Properties {
        connections_max: row.try_get(0)?,
        comment: row.try_get(1)?,
        settings: BTreeSet::new(),
        rights: BTreeSet::new(),
    };
    for row in one(settings).await? {
        let text: String = row.try_get(1)?;
        if let Some((name, value)) = text.split_once('=') {
            let (name, value) = (name.to_owned(), value.to_owned());
            properties.settings.insert(Setting { role: row.try_get(0)?, name, value });
        }
    }
    for row in one(rights).await? {
        let right = Right { grantee: row.try_get(0)?, privilege: row.try_get(1)?, grantable: row.try_get(2)? };
        properties.rights.insert(right);
    }
    Ok(properties)
}

/// What leads from the properties that are there to those that should be.
fn statements(wanted: &Properties, found: &Properties, to: &DatabaseName, others: &[RoleName]) -> Vec<String> {
    let database = to.quoted();
    let mut statements = Vec::new();
    if wanted.connections_max != found.connections_max {
        statements.push(format!("ALTER DATABASE {database} CONNECTION LIMIT {}", wanted.connections_max));
    }
    if wanted.comment != found.comment {
        let comment = wanted.comment.as_deref().map_or_else(|| "NULL".to_owned(), literal);
        statements.push(format!("COMMENT ON DATABASE {database} IS {comment}"));
    }
    let is_ours = |setting: &&Setting| {
        setting.role.as_ref().is_none_or(|role| !others.iter().any(|other| other.as_str() == role))
    };
    let alter = |setting: &Setting| match &setting.role {
        None => format!("ALTER DATABASE {database}"),
        Some(role) => format!("ALTER ROLE {} IN DATABASE {database}", escape_identifier(role)),
    };
    for setting in found.settings.difference(&wanted.settings).filter(is_ours) {
        statements.push(format!("{} RESET {}", alter(setting), name(&setting.name)));
    }
    for setting in wanted.settings.difference(&found.settings).filter(is_ours) {
        let value = if LISTS.contains(&setting.name.as_str()) { list(&setting.value) } else { literal(&setting.value) };
        statements.push(format!("{} SET {} = {value}", alter(setting), name(&setting.name)));
    }
    let grantee =
        |right: &Right| right.grantee.as_ref().map_or_else(|| "PUBLIC".to_owned(), |name| escape_identifier(name));
    for right in found.rights.difference(&wanted.rights) {
        statements.push(format!("REVOKE {} ON DATABASE {database} FROM {}", right.privilege, grantee(right)));
    }
    for right in wanted.rights.difference(&found.rights) {
        let option = if right.grantable { " WITH GRANT OPTION" } else { "" };
        statements.push(format!("GRANT {} ON DATABASE {database} TO {}{option}", right.privilege, grantee(right)));
    }
    statements
}

/// A setting's name, whose parts may be keywords.
fn name(name: &str) -> String {
    name.split('.').map(escape_identifier).collect::<Vec<_>>().join(".")
}

fn literal(text: &str) -> String {
    escape_literal(text).trim_start().to_owned()
}

/// A list of names as it is kept, `"a b", c`, as a list of literals. An empty one is one empty name.
fn list(value: &str) -> String {
    let (mut names, mut name, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if is_quoted && characters.peek() == Some(&'"') => name.extend(characters.next()),
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => names.push(std::mem::take(&mut name)),
            ' ' if !is_quoted => {}
            other => name.push(other),
        }
    }
    names.push(name);
    names.iter().map(|name| literal(name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_taken_apart() {
        assert_eq!(list("\"$user\", public"), "'$user', 'public'");
        assert_eq!(list("\"a, \"\"b\"\"\",c"), "'a, \"b\"', 'c'");
        assert_eq!(list("\"\""), "''");
    }

    #[test]
    fn only_what_differs_is_said_and_the_daemons_settings_are_its_own() {
        let setting = |role: Option<&str>, name: &str, value: &str| Setting {
            role: role.map(str::to_owned),
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let right = |grantee: Option<&str>, privilege: &str, grantable| Right {
            grantee: grantee.map(str::to_owned),
            privilege: privilege.to_owned(),
            grantable,
        };
        let wanted = Properties {
            connections_max: 7,
            comment: None,
            settings: [
                setting(None, "search_path", "a, \"B\""),
                setting(Some("x\"y"), "app.name", "it's"),
                setting(Some("erp_acme__m"), "statement_timeout", "1"),
            ]
            .into(),
            rights: [right(Some("analyst"), "CONNECT", true), right(Some("erp_acme"), "CREATE", false)].into(),
        };
        let found = Properties {
            connections_max: -1,
            comment: Some("made by an operation".to_owned()),
            settings: [setting(Some("erp_acme__a"), "role", "erp_acme")].into(),
            rights: [right(None, "TEMPORARY", false), right(Some("erp_acme"), "CREATE", false)].into(),
        };
        let to = DatabaseName::new("new").unwrap();
        assert_eq!(
            statements(&wanted, &found, &to, &[RoleName::new("erp_acme__m").unwrap()]),
            [
                "ALTER DATABASE \"new\" CONNECTION LIMIT 7",
                "COMMENT ON DATABASE \"new\" IS NULL",
                "ALTER ROLE \"erp_acme__a\" IN DATABASE \"new\" RESET \"role\"",
                "ALTER DATABASE \"new\" SET \"search_path\" = 'a', 'B'",
                "ALTER ROLE \"x\"\"y\" IN DATABASE \"new\" SET \"app\".\"name\" = 'it''s'",
                "REVOKE TEMPORARY ON DATABASE \"new\" FROM PUBLIC",
                "GRANT CONNECT ON DATABASE \"new\" TO \"analyst\" WITH GRANT OPTION",
            ]
        );
        assert!(statements(&wanted, &wanted, &to, &[]).is_empty());
    }
}
