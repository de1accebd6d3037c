//! Every text of every request, looked at in one place before a method sees it: by the API's own description, so that a
//! field that is new is looked at too. Whoever takes texts apart (ids, codes, hosts) does so afterwards, and `query` looks
//! at statements.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, Value};
use tonic::{Request, Status};

use super::status;
use crate::domain::text::{self, Kind};
use crate::proto::DESCRIPTORS;

/// Items of one list of texts.
const ITEMS_MAX: usize = 1_000;

static POOL: LazyLock<Result<DescriptorPool, prost_reflect::DescriptorError>> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS));

/// What a field's text is, by the field's own name.
fn kind(field: &str) -> Kind {
    match field {
        "name" | "legal_name" | "first_name" | "last_name" => Kind::Name,
        "email" => Kind::Address,
        "reason" => Kind::Prose,
        _ => Kind::Word,
    }
}

/// The message, if all of its texts may be kept.
pub(super) fn checked<M: Message + Name>(request: Request<M>) -> Result<M, Status> {
    let message = request.into_inner();
    let pool = POOL.as_ref().map_err(|error| status::internal(error))?;
    let mut bad = Vec::new();
    if let Some(descriptor) = pool.get_message_by_name(&M::full_name()) {
        let reflected = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice());
        look(&reflected.map_err(|error| status::internal(&error))?, "", &mut bad);
    }
    if bad.is_empty() { Ok(message) } else { Err(status::invalid(bad)) }
}

fn look(message: &DynamicMessage, at: &str, bad: &mut Vec<(String, String)>) {
    for (field, value) in message.fields() {
        let path = format!("{at}{}", field.name());
        match value {
            Value::List(items) if items.len() > ITEMS_MAX => {
                bad.push((path, format!("there are {} of them, and {ITEMS_MAX} is the most", items.len())));
            }
            Value::List(items) => items.iter().for_each(|item| look_at(item, field.name(), &path, bad)),
            value => look_at(value, field.name(), &path, bad),
        }
    }
}

fn look_at(value: &Value, name: &str, path: &str, bad: &mut Vec<(String, String)>) {
    match value {
        Value::String(text) => bad.extend(text::problem(text, kind(name)).map(|problem| (path.to_owned(), problem))),
        Value::Message(inner) if inner.descriptor().package_name() == "tenantd.v1" => {
            look(inner, &format!("{path}."), bad);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{CreateTenantRequest, TenantAdministrator};
    use tonic_types::StatusExt as _;

    #[test]
    fn each_bad_text_is_named() {
        let administrator = TenantAdministrator { first_name: "a\0".to_owned(), ..TenantAdministrator::default() };
        let message = CreateTenantRequest {
            name: "\u{200b}".to_owned(),
            hosts: vec!["good.example.com".to_owned(), "\0".to_owned()],
            legal_name: "x".repeat(3 << 20),
            administrator: Some(administrator),
            ..CreateTenantRequest::default()
        };
        let status = checked(Request::new(message)).unwrap_err();
        let details = status.get_error_details();
        let fields: Vec<_> =
            details.bad_request().unwrap().field_violations.iter().map(|bad| bad.field.as_str()).collect();
        assert_eq!(fields, ["name", "administrator.first_name", "hosts", "legal_name"]);
        let many = CreateTenantRequest { hosts: vec![String::new(); ITEMS_MAX + 1], ..CreateTenantRequest::default() };
        assert!(checked(Request::new(many)).unwrap_err().message().contains("1001"));
        assert!(checked(Request::new(CreateTenantRequest::default())).is_ok());
    }
}
