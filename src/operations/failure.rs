//! Why an operation failed, as the catalog keeps it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Written by the engine when a step fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A name of the protobuf enum ErrorReason, without its prefix.
    pub reason: String,
    pub message: String,
    /// The step that failed.
    pub step: String,
}

impl Failure {
    /// From an operation's row; a record that cannot be read is shown as it is.
    pub fn read(record: &Value) -> Self {
        serde_json::from_value(record.clone()).unwrap_or_else(|_| Self {
            reason: "INTERNAL".to_owned(),
            message: record.to_string(),
            step: String::new(),
        })
    }
}
