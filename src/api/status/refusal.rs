//! A status in the making: a code, a reason, and the details that fit. Knows no error of any room.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt::Display;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};
use uuid::Uuid;

use super::bounds::bounded;
use crate::api::called::method;
use crate::proto::v1::ErrorReason as Reason;

/// `ErrorInfo.domain`.
const DOMAIN: &str = "tenantd";

/// A status in the making.
pub(super) struct Refusal {
    code: Code,
    reason: Reason,
    message: String,
    metadata: HashMap<String, String>,
    details: ErrorDetails,
}

impl Refusal {
    pub(super) fn new(code: Code, reason: Reason, message: impl Display) -> Self {
        let message = message.to_string();
        Self { code, reason, message, metadata: HashMap::new(), details: ErrorDetails::new() }
    }

    pub(super) fn invalid(fields: Vec<(impl Into<String>, String)>) -> Status {
        let message = match fields.as_slice() {
            [(_, problem)] => problem.clone(),
            several => format!("{} fields of the request are not usable", several.len()),
        };
        let violations: Vec<_> =
            fields.into_iter().map(|(field, problem)| FieldViolation::new(field, problem)).collect();
        Self::new(Code::InvalidArgument, Reason::InvalidArgument, message).with(|details| {
            details.set_bad_request(violations);
        })
    }

    pub(super) fn internal(error: &(dyn StdError + 'static)) -> Status {
        let error_id = Uuid::new_v4();
        let mut causes = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !causes.ends_with(&text) {
                causes = format!("{causes}: {text}");
            }
            source = cause.source();
        }
        tracing::error!(method = method(), %error_id, error = causes, "a call failed for a reason that nobody expected");
        Self::new(
            Code::Internal,
            Reason::Internal,
            format!("an unexpected fault; the daemon's log has it as {error_id}"),
        )
        .meta("error_id", error_id)
        .status()
    }

    pub(super) fn meta(mut self, name: &str, value: impl Display) -> Self {
        self.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    pub(super) fn meta_if(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.meta(name, value),
            None => self,
        }
    }

    pub(super) fn retry_after(mut self, delay: impl Into<Option<Duration>>) -> Self {
        if let Some(delay) = delay.into() {
            self.details.set_retry_info(Some(delay));
        }
        self
    }

    pub(super) fn with(mut self, set: impl FnOnce(&mut ErrorDetails)) -> Status {
        set(&mut self.details);
        self.status()
    }

    pub(super) fn resource(self, kind: &str, name: impl Display) -> Status {
        let description = self.message.clone();
        self.with(|details| {
            details.set_resource_info(kind, name.to_string(), "", description);
        })
    }

    pub(super) fn status(mut self) -> Status {
        let reason = self.reason.as_str_name();
        let reason = reason.strip_prefix("ERROR_REASON_").unwrap_or(reason);
        self.details.set_error_info(reason, DOMAIN, self.metadata);
        bounded(Status::with_error_details(self.code, self.message, self.details))
    }
}
