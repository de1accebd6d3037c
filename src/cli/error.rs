//! Why a command did not do what it was asked: as lines for people, as JSON for scripts, and as an exit code.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::exit_code::ExitCode;
use super::{human, json as protobuf_json};
use crate::config::{self, client};
use crate::proto::v1::Operation;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(Box<config::Error>),
    #[error("cannot read {}: {source}", .path.display())]
    Input { path: PathBuf, source: io::Error },
    #[error(
        "the daemon at {endpoint} does not answer: {cause}. Start it with \"tenantd dev\" or \"tenantd serve\", or name another with --endpoint"
    )]
    Unreachable { endpoint: String, cause: String },
    #[error("{}", message(.status))]
    Refused {
        status: Box<Status>,
        /// The place in what was sent that the daemon did not like.
        place: Option<String>,
    },
    #[error("{} {}{}", .0.kind, ended(.0), failure(.0))]
    Operation(Box<Operation>),
    #[error("interrupted; the operation goes on in the daemon: {program} operation watch {id}")]
    Interrupted { program: String, id: String },
    #[error("the daemon's answer has no {0}; is it of another version than this program?")]
    Incomplete(&'static str),
    #[error("the daemon keeps ending the stream; try again later")]
    Silent,
    #[error(
        "the daemon does not answer any more ({cause}); what was begun may go on in it, or in another. When it is back: {program} operation show {id}"
    )]
    Gone { program: String, id: String, cause: String },
    #[error("{cause}: the connection broke off, or what listens there is no tenantd; look at the endpoint")]
    Broken { cause: String },
    #[error(transparent)]
    Json(#[from] protobuf_json::Error),
    /// The daemon itself, in the commands that run it.
    #[error("{source}")]
    Daemon { is_usage: bool, source: Box<dyn StdError + Send + Sync> },
    #[error("cannot write the result: {0}")]
    Output(io::Error),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        // The daemon's own refusals have details; a connection that breaks, or is no gRPC, has a cause.
        let is_unknown = matches!(status.code(), Code::Unknown | Code::Internal) && status.details().is_empty();
        match sources(&status).last() {
            Some(cause) if is_unknown => Self::Broken { cause },
            _ => Self::Refused { status: Box::new(status), place: None },
        }
    }
}

fn ended(operation: &Operation) -> String {
    human::state(operation.state().as_str_name(), "OPERATION_STATE_").to_lowercase()
}

fn failure(operation: &Operation) -> String {
    let Some(error) = &operation.error else { return String::new() };
    let step = if error.step.is_empty() { String::new() } else { format!(" at the step {}", error.step) };
    format!("{step}: {}", human::printable(&error.message))
}

impl Error {
    /// What ended a daemon of this process; `is_usage` when the one who started it can put it right.
    pub fn daemon(is_usage: bool, source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Daemon { is_usage, source: Box::new(source) }
    }

    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Client(_)
            | Self::Usage(_)
            | Self::Config(_)
            | Self::Input { .. }
            | Self::Daemon { is_usage: true, .. } => ExitCode::Usage,
            Self::Unreachable { .. } | Self::Silent | Self::Gone { .. } | Self::Broken { .. } => ExitCode::Unavailable,
            Self::Interrupted { .. } => ExitCode::Interrupted,
            Self::Refused { status, .. } => exit_code_of(status),
            Self::Operation(operation) => match operation.error.as_ref().map(|error| error.reason.as_str()) {
                Some("MIGRATION_DIRECTORY_INVALID") => ExitCode::Usage,
                _ => ExitCode::Failed,
            },
            Self::Daemon { .. } | Self::Incomplete(_) | Self::Json(_) | Self::Output(_) => ExitCode::Failed,
        }
    }

    /// Some lines: what happened, then each detail.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("error: {self}")];
        match self {
            Self::Refused { status, place } => {
                lines.extend(place.iter().flat_map(|place| place.lines()).map(|line| format!("  {line}")));
                lines.extend(details_lines(status));
            }
            Self::Operation(operation) => {
                lines.push(format!("  operation: {}", operation.operation_id));
                if let Some(error) = operation.error.as_ref().filter(|error| !error.reason.is_empty()) {
                    lines.push(format!("  reason: {}", error.reason));
                }
            }
            _ => {}
        }
        lines.join("\n")
    }

    /// `{"error": {…}}`.
    pub fn json(&self) -> Value {
        let mut error = json!({ "message": self.to_string(), "exitCode": self.exit_code().number() });
        match self {
            Self::Refused { status, .. } => details_json(status, &mut error),
            Self::Operation(operation) => {
                error["operation"] = protobuf_json::value(operation.as_ref()).unwrap_or_default();
            }
            _ => {}
        }
        json!({ "error": error })
    }
}

fn exit_code_of(status: &Status) -> ExitCode {
    let details = status.get_error_details();
    let reason = details.error_info().map_or("", |info| info.reason.as_str());
    match (status.code(), reason) {
        (_, "SQL") => ExitCode::Failed,
        (Code::InvalidArgument, _) | (_, "MIGRATION_DIRECTORY_INVALID") => ExitCode::Usage,
        // What this program's own clock cuts off is cancelled, without a reason.
        (Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted, _) | (Code::Cancelled, "") => {
            ExitCode::Unavailable
        }
        (Code::Unauthenticated | Code::PermissionDenied, _) => ExitCode::Denied,
        _ => ExitCode::Failed,
    }
}

fn details_lines(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let mut lines = Vec::new();
    for violation in details.bad_request().into_iter().flat_map(|bad| &bad.field_violations) {
        // The problem of a single field is the message already.
        if violation.description == status.message() {
            lines.push(format!("  field: {}", violation.field));
        } else {
            lines.push(format!("  {}: {}", violation.field, human::printable(&violation.description)));
        }
    }
    for violation in details.precondition_failure().into_iter().flat_map(|failure| &failure.violations) {
        if !status.message().contains(&violation.description) {
            lines.push(format!("  {}", violation_line(&violation.subject, &violation.description)));
        }
    }
    if let Some(info) = details.error_info() {
        let mut metadata: Vec<_> = info.metadata.iter().collect();
        metadata.sort();
        lines.extend(metadata.iter().map(|(name, value)| {
            let value = human::printable(value).replace('\n', "\n    ");
            format!("  {}: {value}", name.replace('_', " "))
        }));
        lines.push(format!("  reason: {}", info.reason));
    } else {
        // Not the daemon's own refusal: the connection's, which keeps its cause in its sources.
        lines.extend(sources(status).map(|source| format!("  because: {source}")));
    }
    if let Some(delay) = retry_delay(&details) {
        lines.push(format!("  try again in: {}", human::duration(delay)));
    }
    lines
}

/// One line; a description that names its subject is all that there is to say.
fn violation_line(subject: &str, description: &str) -> String {
    let text = match description.strip_prefix(subject) {
        Some(rest) if rest.starts_with(':') => description.to_owned(),
        _ => format!("{subject}: {description}"),
    };
    human::printable(&text).replace('\n', "\\n")
}

/// What happened. Where it was too long for a status, it ends with the last line that is whole: the details say the rest.
fn message(status: &Status) -> String {
    let text = status.message();
    let has_list = status.get_error_details().precondition_failure().is_some();
    let whole =
        if has_list && text.ends_with('…') { text.rsplit_once('\n').map_or(text, |(whole, _)| whole) } else { text };
    human::printable(whole)
}

fn details_json(status: &Status, error: &mut Value) {
    let details = status.get_error_details();
    error["code"] = json!(code_name(status.code()));
    if let Some(info) = details.error_info() {
        error["reason"] = json!(info.reason);
        error["metadata"] = json!(info.metadata);
    }
    if let Some(bad) = details.bad_request() {
        let pair = |v: &tonic_types::FieldViolation| json!({"field": v.field, "description": v.description});
        error["fieldViolations"] = bad.field_violations.iter().map(pair).collect();
    }
    if let Some(delay) = retry_delay(&details) {
        error["retryDelay"] = json!(format!("{}s", delay.as_secs_f64()));
    }
}

/// As gRPC writes it: `NOT_FOUND`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

fn retry_delay(details: &ErrorDetails) -> Option<std::time::Duration> {
    details.retry_info().and_then(|info| info.retry_delay)
}

/// The causes of an error, outermost first.
pub fn sources(error: &dyn StdError) -> impl Iterator<Item = String> {
    std::iter::successors(error.source(), |error| (*error).source()).map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::FieldViolation;

    fn refusal(fields: Vec<FieldViolation>, message: &str) -> Error {
        let mut details = ErrorDetails::new();
        details.set_bad_request(fields).set_error_info("INVALID_ARGUMENT", "tenantd", std::collections::HashMap::new());
        Status::with_error_details(Code::InvalidArgument, message, details).into()
    }

    #[test]
    fn every_bad_field_is_a_line() {
        let fields = vec![FieldViolation::new("code", "it is reserved"), FieldViolation::new("tier", "it is unknown")];
        let error = refusal(fields, "2 fields of the request are not usable");
        insta::assert_snapshot!(error.text(), @r"
        error: 2 fields of the request are not usable
          code: it is reserved
          tier: it is unknown
          reason: INVALID_ARGUMENT
        ");
        assert_eq!(error.exit_code(), ExitCode::Usage);
        assert_eq!(error.json()["error"]["code"], json!("INVALID_ARGUMENT"));
        assert_eq!(error.json()["error"]["fieldViolations"][1]["field"], json!("tier"));
    }

    #[test]
    fn a_long_list_of_files_is_whole_and_names_each_once() {
        let mut details = ErrorDetails::new();
        let violation = |file: &str| {
            tonic_types::PreconditionViolation::new("MIGRATION_FILE", file, format!("{file}: it is bad; mend it"))
        };
        details
            .set_error_info("MIGRATION_DIRECTORY_INVALID", "tenantd", std::collections::HashMap::new())
            .set_precondition_failure(vec![violation("V2.sql"), violation("V3\nx.sql")]);
        let message = "the directory has 2 problems:\n  V2.sql: it is b…";
        let error: Error = Status::with_error_details(Code::FailedPrecondition, message, details).into();
        insta::assert_snapshot!(error.text(), @r"
        error: the directory has 2 problems:
          V2.sql: it is bad; mend it
          V3\nx.sql: it is bad; mend it
          reason: MIGRATION_DIRECTORY_INVALID
        ");
    }

    #[test]
    fn a_single_problem_is_said_once() {
        let error = refusal(vec![FieldViolation::new("code", "it is reserved")], "it is reserved");
        insta::assert_snapshot!(error.text(), @r"
        error: it is reserved
          field: code
          reason: INVALID_ARGUMENT
        ");
    }
}
