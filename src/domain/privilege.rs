//! Who may do what inside a tenant's database, as a backup keeps it: the tenant's own roles by their purpose, so that
//! another tenant's roles can take their places.

use serde::{Deserialize, Serialize};

use super::tenant::TenantRole;

/// What the grantee may do on one object. Everything that an object's owner has not granted is not there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Privilege {
    pub object: Object,
    pub grantee: Grantee,
    /// May grant it to others.
    pub grantable: bool,
    /// As `SELECT`; sorted. Empty for a policy, and where nobody has any.
    pub rights: Vec<String>,
    /// The role that owned the object, where it was none of the tenant's owner: restored, it is the owner's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_owner: Option<String>,
}

/// An object, its names quoted as SQL writes them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Object {
    pub kind: ObjectKind,
    /// With its schema, a routine's with its arguments; for defaults the kind of objects, as `TABLES`.
    pub name: String,
    /// A table's column or policy; the schema of defaults that hold in one schema.
    pub part: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    Schema,
    Table,
    Column,
    Sequence,
    Routine,
    Type,
    LargeObject,
    /// What objects that the owner makes later will have.
    Default,
    /// A row security policy, and whom it applies to.
    Policy,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grantee {
    Public,
    Tenant(TenantRole),
    /// A role that is none of the tenant's.
    Other(String),
}

impl ObjectKind {
    pub const ALL: [Self; 9] = [
        Self::Schema,
        Self::Table,
        Self::Column,
        Self::Sequence,
        Self::Routine,
        Self::Type,
        Self::LargeObject,
        Self::Default,
        Self::Policy,
    ];

    /// As GRANT names it.
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Schema => "SCHEMA",
            Self::Table => "TABLE",
            Self::Column => "COLUMN",
            Self::Sequence => "SEQUENCE",
            Self::Routine => "ROUTINE",
            Self::Type => "TYPE",
            Self::LargeObject => "LARGE OBJECT",
            Self::Default => "DEFAULT",
            Self::Policy => "POLICY",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_privilege_keeps_the_purpose_of_a_role_and_not_its_name() {
        let privilege = Privilege {
            object: Object { kind: ObjectKind::LargeObject, name: "16400".to_owned(), part: None },
            grantee: Grantee::Tenant(TenantRole::Reader),
            grantable: false,
            rights: vec!["SELECT".to_owned()],
            former_owner: None,
        };
        let text = serde_json::to_string(&privilege).unwrap();
        assert!(text.contains(r#""kind":"large_object""#) && text.contains(r#"{"tenant":"reader"}"#), "{text}");
        assert_eq!(serde_json::from_str::<Privilege>(&text).unwrap(), privilege);
    }
}
