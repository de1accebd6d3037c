//! Why an operation failed, as the catalog keeps it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// Written by the engine when a step fails.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A name of the protobuf enum ErrorReason, without its prefix.
    pub reason: String,
    pub message: String,
    /// The step that failed.
    pub step: String,
    /// Of an operation that is stuck: why it was being undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Box<Self>>,
    /// The request that last had a stuck operation go on, or gave it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_by: Option<Uuid>,
}

impl Failure {
    /// From an operation's row; a record that cannot be read is shown as it is.
    pub fn read(record: &Value) -> Self {
        serde_json::from_value(record.clone()).unwrap_or_else(|_| Self {
            reason: "INTERNAL".to_owned(),
            message: record.to_string(),
            ..Self::default()
        })
    }

    /// As the catalog keeps it.
    pub(super) fn to_record(&self) -> Value {
        serde_json::to_value(self).unwrap_or_else(|_| Value::String(self.message.clone()))
    }
}
