//! What can go wrong with the bucket, told apart by what a person has to do about it. Reads the SDK's error once, and
//! keeps text only: no request, no header, no secret.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::Store;

/// In the SDK's words; the error's type is not for others.
const CHECKSUM_MISMATCH: &str = "checksum mismatch";

/// What passes whatever the status says: S3 has answered with 200 already when completing an upload fails.
const PASSING: &[&str] = &["InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "OperationAborted"];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the object store refused to {what} ({reason}); check store.access_key_id, store.secret_access_key and what \
         this key is allowed to do in the bucket"
    )]
    Denied { what: String, reason: String },

    #[error("the object store could not {what}: {missing} does not exist")]
    NotFound { what: String, missing: String },

    #[error(
        "the object store could not {what}: the multipart upload is gone; if nobody has given it up, look at the \
         bucket's lifecycle rules, and back up again"
    )]
    UploadGone { what: String },

    #[error("the roots to check the object store with cannot be used: {0}; correct store.ca_file")]
    Roots(String),

    #[error("the bucket {bucket:?} does not exist at {endpoint}; create it, or correct store.bucket")]
    NoBucket { bucket: String, endpoint: String },

    #[error(
        "the object store at {endpoint} could not be reached to {what}: {reason}; check store.endpoint and the network"
    )]
    Unreachable { endpoint: String, what: String, reason: String },

    #[error("the object store could not {what}: {reason}")]
    Other { what: String, reason: String, retryable: bool },

    #[error("the object {key:?} has more than the {bytes_max} bytes that are expected here; it is not what it claims")]
    TooLarge { key: String, bytes_max: usize },

    #[error("reading the object {key:?} broke off: {reason}")]
    Interrupted { key: String, reason: String },

    #[error("the object {key:?} is not what was stored: {reason}")]
    Damaged { key: String, reason: String },
}

impl Error {
    /// Whether the same request may succeed later without anyone's help. The SDK's own retries are used up by then.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Interrupted { .. } => true,
            Self::Other { retryable, .. } => *retryable,
            Self::Roots(_)
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::UploadGone { .. }
            | Self::NoBucket { .. }
            | Self::TooLarge { .. }
            | Self::Damaged { .. } => false,
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the object itself is gone or spoiled.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Damaged { .. } | Self::TooLarge { .. })
    }

    /// Why a body stopped before its end. The store told its checksum in front of it.
    pub(super) fn of_body(key: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let (key, reason) = (key.to_owned(), chain(error));
        if reason.contains(CHECKSUM_MISMATCH) {
            Self::Damaged { key, reason }
        } else {
            Self::Interrupted { key, reason }
        }
    }
}

impl Store {
    /// `verb` and `key` say what was tried; an empty key means the bucket as a whole.
    pub(super) fn failed<E>(&self, verb: &str, key: &str, error: &SdkError<E>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let (bucket, endpoint) = (self.inner.bucket.clone(), self.inner.endpoint.clone());
        let missing = if key.is_empty() { format!("{bucket:?}") } else { format!("{key:?}") };
        let what = if key.is_empty() { format!("{verb} {bucket}") } else { format!("{verb} {bucket}/{key}") };
        let Some(status) = error.raw_response().map(|response| response.status().as_u16()) else {
            let reason = match error {
                SdkError::TimeoutError(_) => "it did not answer in time".to_owned(),
                other => chain(other),
            };
            return match error {
                SdkError::ConstructionFailure(_) => Error::Other { what, reason, retryable: false },
                _ => Error::Unreachable { endpoint, what, reason },
            };
        };
        let reason = answer(status, error);
        match (status, error.code()) {
            (_, Some("NoSuchBucket")) => Error::NoBucket { bucket, endpoint },
            (_, Some("NoSuchUpload")) => Error::UploadGone { what },
            (404, _) => Error::NotFound { what, missing },
            (401 | 403, _) => Error::Denied { what, reason },
            (_, code) => {
                let passes =
                    status >= 500 || matches!(status, 408 | 429) || code.is_some_and(|it| PASSING.contains(&it));
                Error::Other { what, reason, retryable: passes }
            }
        }
    }
}

/// The store's own words: code, message, request id.
fn answer<E>(status: u16, error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let mut text = error.code().map_or_else(|| format!("HTTP status {status}"), str::to_owned);
    if let Some(message) = error.message() {
        text = format!("{text}: {message}");
    } else if error.code().is_none() && !matches!(error, SdkError::ServiceError(_)) {
        text = format!("{text}: {}", chain(error));
    }
    match error.raw_response().and_then(|response| response.headers().get("x-amz-request-id")) {
        Some(id) => format!("{text}, request {id}"),
        None => text,
    }
}

/// An error and its causes; the SDK's outer layers only say "dispatch failure".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
