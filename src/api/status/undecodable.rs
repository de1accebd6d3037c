//! Requests that are no message of their method: tonic says so as if it were the server's fault.

use http::HeaderMap;
use tonic::{Code, Status};

use super::Refusal;

/// What is to be said instead, if that was it.
pub(in crate::api) fn instead_of(said: &Status) -> Option<Status> {
    let is_so = said.code() == Code::Internal && said.message().starts_with("failed to decode Protobuf message");
    is_so.then(|| Refusal::invalid(vec![("request", said.message().to_owned())]))
}

/// As [`instead_of`], of an answer's headers.
pub(in crate::api) fn instead_of_headers(headers: &HeaderMap) -> Option<Status> {
    let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
    instead_of(&Status::from_header_map(headers).filter(|_| code == Code::Internal)?)
}
