//! Messages as the protobuf JSON mapping gives them, through the descriptors of `proto/`.
//! Fields at their default are written too, so that scripts always find them.

use std::sync::OnceLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

use crate::proto::DESCRIPTORS;

/// A message that has no JSON form.
#[derive(Debug, thiserror::Error)]
#[error("{message} cannot be written as JSON: {problem}")]
pub struct Error {
    message: String,
    problem: String,
}

/// The message as a JSON value.
///
/// # Errors
/// When the message is not one of `proto/`.
pub fn value<M: Message + Name>(message: &M) -> Result<Value, Error> {
    let name = M::full_name();
    let fail = |what: &str| Error { message: name.clone(), problem: what.to_owned() };
    let descriptor =
        pool().and_then(|pool| pool.get_message_by_name(&name)).ok_or_else(|| fail("it has no descriptor"))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .map_err(|error| fail(&error.to_string()))?;
    let options = SerializeOptions::new().skip_default_fields(false);
    dynamic.serialize_with_options(serde_json::value::Serializer, &options).map_err(|error| fail(&error.to_string()))
}

fn pool() -> Option<&'static DescriptorPool> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(DESCRIPTORS).ok()).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1;
    use serde_json::json;

    #[test]
    fn names_numbers_times_and_enums_follow_the_mapping() {
        let tenant = v1::Tenant {
            tenant_id: "t".to_owned(),
            state: v1::TenantState::Active.into(),
            epoch: 3,
            create_time: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            ..v1::Tenant::default()
        };
        let value = value(&v1::GetTenantResponse { tenant: Some(tenant) }).unwrap();
        assert_eq!(value["tenant"]["tenantId"], json!("t"));
        assert_eq!(value["tenant"]["state"], json!("TENANT_STATE_ACTIVE"));
        assert_eq!(value["tenant"]["epoch"], json!("3"));
        assert_eq!(value["tenant"]["createTime"], json!("1970-01-01T00:00:00Z"));
        assert_eq!(value["tenant"]["hosts"], json!([]));
        assert_eq!(value["tenant"].get("updateTime"), None);
    }

    #[test]
    fn null_is_a_value() {
        let kind = v1::value::Kind::NullValue(v1::NullValue::Unspecified.into());
        let value = value(&v1::Value { kind: Some(kind) }).unwrap();
        assert_eq!(value, json!({"nullValue": "NULL_VALUE_UNSPECIFIED"}));
    }
}
