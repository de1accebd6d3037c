//! Multipart uploads: an object of unknown length, sent part by part, visible only once it is complete. Whoever
//! begins one persists its id before the first part, because not every store can list what was left behind.

use std::fmt;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;

use super::{Error, Store};

/// The store's name for an upload that has begun.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UploadId(pub String);

impl fmt::Display for UploadId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The store's receipt for one part.
#[derive(Debug, Clone)]
pub struct UploadedPart {
    number: i32,
    bytes: u64,
    e_tag: Option<String>,
    checksum_sha256: Option<String>,
}

impl Store {
    pub async fn upload_begin(&self, key: &str) -> Result<UploadId, Error> {
        let request = self.client().create_multipart_upload().bucket(self.bucket()).key(key);
        let begun = request.checksum_algorithm(ChecksumAlgorithm::Sha256).send().await;
        let begun = begun.map_err(|error| self.failed("begin to write", key, &error))?;
        begun.upload_id.map(UploadId).ok_or_else(|| Error::Other {
            what: format!("begin to write {}/{key}", self.bucket()),
            reason: "it answered without an upload id".to_owned(),
            retryable: false,
        })
    }

    /// `number` counts from 1. The same number again replaces the part.
    pub async fn upload_part(
        &self,
        key: &str,
        upload: &UploadId,
        number: i32,
        body: Bytes,
    ) -> Result<UploadedPart, Error> {
        let (bytes, timeouts) = (body.len() as u64, self.timeouts_for(body.len()));
        let request = self.client().upload_part().bucket(self.bucket()).key(key).upload_id(&upload.0);
        let request = request.part_number(number).checksum_algorithm(ChecksumAlgorithm::Sha256);
        let sent = request.body(ByteStream::from(body)).customize().config_override(timeouts).send().await;
        let sent = sent.map_err(|error| self.failed(&format!("take part {number} of"), key, &error))?;
        Ok(UploadedPart { number, bytes, e_tag: sent.e_tag, checksum_sha256: sent.checksum_sha256 })
    }

    /// Makes the object visible: all the parts, in this order. A repetition of a call that succeeded succeeds.
    pub async fn upload_complete(&self, key: &str, upload: &UploadId, parts: &[UploadedPart]) -> Result<(), Error> {
        let completed = parts.iter().map(|part| {
            let builder = CompletedPart::builder().part_number(part.number).set_e_tag(part.e_tag.clone());
            builder.set_checksum_sha256(part.checksum_sha256.clone()).build()
        });
        let list = CompletedMultipartUpload::builder().set_parts(Some(completed.collect())).build();
        let request = self.client().complete_multipart_upload().bucket(self.bucket()).key(key);
        let request = request.upload_id(&upload.0).multipart_upload(list);
        let done = request.customize().config_override(self.timeouts_for_complete()).send().await;
        match done.map_err(|error| self.failed("complete", key, &error)) {
            Ok(_) => Ok(()),
            // The answer to an earlier attempt was lost: keys are used once, so the object of that size is this one.
            Err(gone @ Error::UploadGone { .. }) => {
                let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
                let found = self.head(key).await? == Some(bytes);
                if found { Ok(()) } else { Err(gone) }
            }
            Err(error) => Err(error),
        }
    }

    /// Gives an upload up, and its parts with it. One that is over, either way, is fine.
    pub async fn upload_abort(&self, key: &str, upload: &UploadId) -> Result<(), Error> {
        let request = self.client().abort_multipart_upload().bucket(self.bucket()).key(key).upload_id(&upload.0);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => match self.failed("give up", key, &error) {
                Error::UploadGone { .. } | Error::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Uploads that have begun and are neither complete nor given up, of keys that begin with `prefix`. `None` when
    /// the store cannot list them.
    pub async fn uploads_list(&self, prefix: &str) -> Result<Option<Vec<(String, UploadId)>>, Error> {
        let mut found = Vec::new();
        let (mut key_marker, mut upload_marker) = (None, None);
        loop {
            let request = self.client().list_multipart_uploads().bucket(self.bucket()).prefix(prefix);
            let request = request.set_key_marker(key_marker).set_upload_id_marker(upload_marker);
            let page = match request.send().await {
                Ok(page) => page,
                Err(error) if not_implemented(&error) => return Ok(None),
                Err(error) => return Err(self.failed("list the uploads of", prefix, &error)),
            };
            let more = page.is_truncated().unwrap_or(false) && page.next_key_marker().is_some();
            found.extend(
                page.uploads.into_iter().flatten().filter_map(|one| Some((one.key?, UploadId(one.upload_id?)))),
            );
            if !more {
                return Ok(Some(found));
            }
            (key_marker, upload_marker) = (page.next_key_marker, page.next_upload_id_marker);
        }
    }
}

fn not_implemented<E>(error: &aws_sdk_s3::error::SdkError<E>) -> bool {
    error.raw_response().is_some_and(|response| matches!(response.status().as_u16(), 405 | 501))
}
