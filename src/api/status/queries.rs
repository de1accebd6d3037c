//! PostgreSQL's codes as gRPC's, and a status as part of a stream that goes on.

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::proto::v1::{self, ErrorReason as Reason};
use crate::query;

/// A status as part of a stream that goes on.
pub(in crate::api) fn in_band(status: &Status) -> v1::StatementError {
    let details = status.get_error_details();
    let metadata = details.error_info().map(|info| info.metadata.clone()).unwrap_or_default();
    let reason = details.error_info().and_then(|info| Reason::from_str_name(&format!("ERROR_REASON_{}", info.reason)));
    let text = |name: &str| metadata.get(name).cloned().unwrap_or_default();
    v1::StatementError {
        code: status.code().into(),
        reason: reason.unwrap_or_default().into(),
        message: status.message().to_owned(),
        sqlstate: text("sqlstate"),
        position: text("position").parse().unwrap_or_default(),
        constraint: text("constraint"),
        detail: text("detail"),
        hint: text("hint"),
        retry_delay: details
            .retry_info()
            .and_then(|info| info.retry_delay)
            .and_then(|delay| prost_types::Duration::try_from(delay).ok()),
    }
}

/// Why a statement failed, as part of a stream that goes on; unlike a status, it may be of any length.
pub(in crate::api) fn explained(error: query::Error) -> v1::StatementError {
    let refusal = if let query::Error::Sql(refusal) = &error { Some(refusal.clone()) } else { None };
    let answer = in_band(&error.into());
    let Some(refusal) = refusal else { return answer };
    v1::StatementError {
        message: refusal.message,
        constraint: refusal.constraint.unwrap_or_default(),
        detail: refusal.detail.unwrap_or_default(),
        hint: refusal.hint.unwrap_or_default(),
        ..answer
    }
}

/// The code that fits a refusal of PostgreSQL's, by its class.
pub(super) fn sql_code(sqlstate: &str) -> Code {
    match (sqlstate, sqlstate.get(..2).unwrap_or_default()) {
        ("40001" | "40P01" | "55P03", _) => Code::Aborted,
        ("57014", _) => Code::DeadlineExceeded,
        ("42501", _) => Code::PermissionDenied,
        (_, "23" | "25" | "2F" | "55" | "P0") => Code::FailedPrecondition,
        (_, "53") => Code::ResourceExhausted,
        (_, "57" | "08") => Code::Unavailable,
        _ => Code::InvalidArgument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_of_a_sqlstate_decides_the_code() {
        assert_eq!(sql_code("42601"), Code::InvalidArgument);
        assert_eq!(sql_code("23505"), Code::FailedPrecondition);
        assert_eq!(sql_code("40001"), Code::Aborted);
        assert_eq!(sql_code("42501"), Code::PermissionDenied);
        assert_eq!(sql_code("57014"), Code::DeadlineExceeded);
        assert_eq!(sql_code("53100"), Code::ResourceExhausted);
    }
}
