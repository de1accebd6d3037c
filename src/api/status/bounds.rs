//! How long a status may be. It travels in headers, of which clients take 8 KiB if they are not told otherwise, and one
//! that is longer arrives as another: without its code, its reason and its SQLSTATE. Knows nothing of what it says.

use tonic::Status;
use tonic_types::{
    BadRequest, ErrorDetails, ErrorInfo, PreconditionFailure, QuotaFailure, ResourceInfo, StatusExt as _,
};

/// What the message and the details may take together, as they are sent.
const HEADER_BYTES_MAX: usize = 6 << 10;
/// Bytes of each text, and violations of a kind, that are tried one after the other: the first ones that fit are kept.
const LIMITS: [(usize, usize); 6] = [(2_048, 32), (1_024, 32), (512, 16), (256, 16), (128, 8), (64, 8)];

/// The status, with its longest texts cut where it is too long as a whole.
pub(super) fn bounded(status: Status) -> Status {
    if fits(&status) {
        return status;
    }
    let details = status.get_error_details();
    let mut cuts = LIMITS.iter().map(|(text_max, violations_max)| {
        let message = cut(status.message(), *text_max);
        Status::with_error_details(status.code(), message, details_cut(&details, *text_max, *violations_max))
    });
    cuts.find(fits).unwrap_or_else(|| Status::new(status.code(), cut(status.message(), 64)))
}

fn fits(status: &Status) -> bool {
    // The message is percent-encoded, the details are in base64.
    let message: usize = status.message().bytes().map(|byte| if is_sent_as_it_is(byte) { 1 } else { 3 }).sum();
    message + status.details().len().div_ceil(3) * 4 <= HEADER_BYTES_MAX
}

fn is_sent_as_it_is(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'#' | b'%' | b'<' | b'>' | b'`' | b'?' | b'{' | b'}')
}

pub(super) fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes_max)])
}

fn details_cut(details: &ErrorDetails, text_max: usize, violations_max: usize) -> ErrorDetails {
    let cut = |text: &str| cut(text, text_max);
    let mut shorter = ErrorDetails::new();
    if let Some(retry) = details.retry_info() {
        shorter.set_retry_info(retry.retry_delay);
    }
    if let Some(ErrorInfo { reason, domain, metadata }) = details.error_info() {
        let metadata = metadata.iter().map(|(name, value)| (name.clone(), cut(value)));
        shorter.set_error_info(reason, domain, metadata.collect::<std::collections::HashMap<_, _>>());
    }
    if let Some(BadRequest { field_violations }) = details.bad_request() {
        for violation in field_violations.iter().take(violations_max) {
            shorter.add_bad_request_violation(cut(&violation.field), cut(&violation.description));
        }
    }
    if let Some(PreconditionFailure { violations }) = details.precondition_failure() {
        for violation in violations.iter().take(violations_max) {
            let (subject, description) = (cut(&violation.subject), cut(&violation.description));
            shorter.add_precondition_failure_violation(&violation.r#type, subject, description);
        }
    }
    if let Some(QuotaFailure { violations }) = details.quota_failure() {
        for violation in violations.iter().take(violations_max) {
            shorter.add_quota_failure_violation(cut(&violation.subject), cut(&violation.description));
        }
    }
    if let Some(ResourceInfo { resource_type, resource_name, owner, description }) = details.resource_info() {
        shorter.set_resource_info(resource_type, cut(resource_name), owner, cut(description));
    }
    shorter
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic::Code;
    use tonic_types::{FieldViolation, PreconditionViolation};

    use super::*;

    fn of(message: &str, set: impl FnOnce(&mut ErrorDetails)) -> Status {
        let mut details = ErrorDetails::new();
        let metadata = [("sqlstate", "42601"), ("detail", message), ("hint", message)];
        let metadata = metadata.map(|(name, value)| (name.to_owned(), value.to_owned()));
        details.set_error_info("SQL", "tenantd", HashMap::from(metadata));
        details.set_retry_info(Some(std::time::Duration::from_secs(1)));
        set(&mut details);
        Status::with_error_details(Code::InvalidArgument, message, details)
    }

    fn header_bytes(status: &Status) -> usize {
        let response = status.clone().into_http::<()>();
        response.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
    }

    #[test]
    fn a_long_status_keeps_its_code_its_reason_and_its_sqlstate() {
        for text in ["x", "é", "\u{1f600}", " ", "a b ", "\u{1}%"] {
            let long = text.repeat(20_000);
            let all = [
                of(&long, |_details| {}),
                of(&long, |details| {
                    details.set_resource_info("tenant", &long, "", &long);
                }),
                of(&long, |details| {
                    details.set_bad_request(vec![FieldViolation::new("sql", &long); 500]);
                    details.set_precondition_failure(vec![PreconditionViolation::new("FILE", &long, &long); 500]);
                    details.set_quota_failure(vec![tonic_types::QuotaViolation::new(&long, &long); 500]);
                }),
            ];
            for status in all {
                let status = bounded(status);
                assert!(header_bytes(&status) < 7 << 10, "{text:?}: {}", header_bytes(&status));
                assert!(status.message().ends_with('…') && long.starts_with(status.message().trim_end_matches('…')));
                let details = status.get_error_details();
                let info = details.error_info().unwrap();
                assert_eq!((status.code(), info.reason.as_str()), (Code::InvalidArgument, "SQL"));
                assert_eq!(info.metadata["sqlstate"], "42601");
                assert!(info.metadata["hint"].ends_with('…') && details.retry_info().is_some());
            }
        }
    }

    #[test]
    fn a_status_that_fits_stays_as_it_is() {
        for length in [0, 1, 500, 1_000] {
            let status = of(&"x".repeat(length), |_details| {});
            let again = bounded(status.clone());
            assert!((status.message(), status.details()) == (again.message(), again.details()), "{length}");
        }
        let detail = of("short", |details| {
            details.set_bad_request(vec![FieldViolation::new("sql", "y".repeat(4_000))]);
        });
        assert!(bounded(detail.clone()).details() == detail.details());
    }
}
