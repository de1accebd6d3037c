//! Why a statement failed: as a status, with PostgreSQL's codes as gRPC's, and as part of a stream that goes on.

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::bounds::cut;
use super::{RETRY_AFTER, Refusal};
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

/// Bytes of each text of an error in a stream. A tenant's code writes them, and a message that is larger than its reader
/// takes ends the stream.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// Why a statement failed, as part of a stream that goes on; unlike a status, it fits into no header.
pub(in crate::api) fn explained(error: query::Error) -> v1::StatementError {
    let refusal = if let query::Error::Sql(refusal) = &error { Some(refusal.clone()) } else { None };
    let answer = in_band(&error.into());
    let Some(refusal) = refusal else { return answer };
    v1::StatementError {
        message: cut(&refusal.message, TEXT_BYTES_MAX),
        constraint: refusal.constraint.unwrap_or_default(),
        detail: cut(&refusal.detail.unwrap_or_default(), TEXT_BYTES_MAX),
        hint: cut(&refusal.hint.unwrap_or_default(), TEXT_BYTES_MAX),
        ..answer
    }
}

impl From<query::Error> for Status {
    fn from(error: query::Error) -> Self {
        use query::Error as E;
        let retry_after = error.retry_after();
        match &error {
            E::Empty
            | E::Nul
            | E::Several
            | E::Refused { .. }
            | E::NotReading { .. }
            | E::Unsupported { .. }
            | E::TypesMax
            | E::Malformed { .. } => Refusal::invalid(vec![("sql", error.to_string())]),
            E::ParametersMax { .. } | E::ParameterCount { .. } | E::Parameter { .. } => {
                Refusal::invalid(vec![("parameters", error.to_string())])
            }
            E::RowsMax { .. } => Refusal::invalid(vec![("max_rows", error.to_string())]),
            E::BatchRows { .. } => Refusal::invalid(vec![("batch_rows", error.to_string())]),
            E::NoAction | E::BegunAlready => Refusal::invalid(vec![("action", error.to_string())]),
            E::SavepointUnknown { .. } | E::SavepointsMax { .. } => {
                Refusal::invalid(vec![("savepoint", error.to_string())])
            }
            E::TransactionFailed => {
                Refusal::new(Code::FailedPrecondition, Reason::Sql, &error).meta("sqlstate", "25P02").status()
            }
            E::CallerSilent { .. } => Refusal::new(Code::Aborted, Reason::Cancelled, &error).status(),
            E::CallerGone => Refusal::new(Code::Cancelled, Reason::Cancelled, &error).status(),
            E::TargetBusy { .. } => Refusal::new(Code::ResourceExhausted, Reason::ConnectionUnavailable, &error)
                .retry_after(RETRY_AFTER)
                .status(),
            E::SharedElsewhere { .. } => {
                Refusal::new(Code::FailedPrecondition, Reason::ConnectionUnavailable, &error).status()
            }
            E::TooManyRows { .. } | E::TooManyBytes { .. } => {
                Refusal::new(Code::OutOfRange, Reason::ResultTooLarge, &error).status()
            }
            E::Sql(sql) => Refusal::new(sql_code(&sql.sqlstate), Reason::Sql, &sql.message)
                .meta("sqlstate", &sql.sqlstate)
                .meta_if("position", sql.position)
                .meta_if("constraint", sql.constraint.as_ref())
                .meta_if("detail", sql.detail.as_ref())
                .meta_if("hint", sql.hint.as_ref())
                .retry_after(retry_after)
                .status(),
            E::TypeChanged { .. } | E::Stale | E::WroteLate => {
                Refusal::new(Code::Aborted, Reason::Sql, &error).retry_after(retry_after).status()
            }
            E::EncodingChanged => Refusal::new(Code::FailedPrecondition, Reason::Sql, &error).status(),
            E::Connection(_) | E::NotCancelled(_) => {
                Refusal::new(Code::Unavailable, Reason::ConnectionUnavailable, &error).status()
            }
            E::Router(_) | E::Open(_) | E::Catalog(_) => match error {
                E::Router(error) => (*error).into(),
                E::Open(error) => (*error).into(),
                E::Catalog(error) => (*error).into(),
                other => Refusal::internal(&other),
            },
        }
    }
}

/// The code that fits a refusal of PostgreSQL's, by its class.
fn sql_code(sqlstate: &str) -> Code {
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
