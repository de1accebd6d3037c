//! Whether a status is a denial: for the audit log, which wants no other refusals.

use http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::proto::v1::ErrorReason as Reason;

/// Whether the caller was refused for want of a right of its own, and not by PostgreSQL.
pub(in crate::api) fn is_denial(status: &Status) -> bool {
    let is_ours =
        |reason: &str| Reason::from_str_name(&format!("ERROR_REASON_{reason}")) == Some(Reason::PermissionDenied);
    status.code() == Code::PermissionDenied
        && status.get_error_details().error_info().is_some_and(|info| is_ours(&info.reason))
}

/// As [`is_denial`], of an answer that is a status alone.
pub(in crate::api) fn is_answered(headers: &HeaderMap) -> bool {
    Status::from_header_map(headers).is_some_and(|status| is_denial(&status))
}
