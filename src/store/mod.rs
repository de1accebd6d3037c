//! Object storage: one bucket behind the S3 protocol, for archives and manifests.
//!
//! It knows keys and bytes; what an object means, and which of them belong together, is its callers' business. What
//! always holds: an object becomes visible whole or not at all, every byte that is sent carries a declared SHA-256,
//! every request has a time limit, and no error's text contains a secret.

mod error;
mod objects;
mod parts;
mod uploads;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, SharedHttpClient, StalledStreamProtectionConfig};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use secrecy::ExposeSecret as _;

pub use error::Error;
pub use objects::ByteReader;
pub use parts::PartSizes;
pub use uploads::{UploadId, UploadedPart};

use crate::config::{StoreConfig, roots};

/// A request is sent at most so often; the pauses between grow, with jitter.
const ATTEMPTS_MAX: u32 = 4;
/// No store that works takes longer to accept a connection.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// A body of which nothing moves for so long is given up (the SDK counts throughput under one byte per second).
const STALL_GRACE: Duration = Duration::from_secs(30);
/// The slowest line that a large part's time limit allows for.
const BYTES_PER_SECOND_MIN: u64 = 256 << 10;
/// Assembling the parts of a large object takes a store longer than any other request.
const COMPLETE_TIMEOUT_FACTOR: u32 = 10;

/// One bucket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: aws_sdk_s3::Client,
    bucket: String,
    endpoint: String,
    request_timeout: Duration,
}

impl Store {
    /// Opens no connection; see [`Store::check`].
    ///
    /// # Errors
    /// Only [`Error::Roots`].
    pub fn new(config: &StoreConfig) -> Result<Self, Error> {
        let credentials = Credentials::new(
            config.access_key_id.clone(),
            config.secret_access_key.expose_secret().to_owned(),
            None,
            None,
            "tenantd configuration",
        );
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT_MAX.min(config.request_timeout))
            .operation_attempt_timeout(config.request_timeout)
            .build();
        let mut sdk = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(credentials)
            .region(Region::new(config.region.clone()))
            .force_path_style(config.path_style)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX))
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(STALL_GRACE).build());
        if let Some(endpoint) = &config.endpoint {
            sdk = sdk.endpoint_url(endpoint);
        }
        if let Some(file) = &config.ca_file {
            sdk = sdk.http_client(client_with_roots(file).map_err(Error::Roots)?);
        }
        Ok(Self {
            inner: Arc::new(Inner {
                client: aws_sdk_s3::Client::from_conf(sdk.build()),
                bucket: config.bucket.clone(),
                endpoint: config.endpoint.clone().unwrap_or_else(|| format!("S3 in {}", config.region)),
                request_timeout: config.request_timeout,
            }),
        })
    }

    /// Asks whether the bucket is there and takes these credentials. Reads at most one key.
    pub async fn check(&self) -> Result<(), Error> {
        // HeadBucket would answer without a body, and so without the reason for a refusal.
        let request = self.client().list_objects_v2().bucket(self.bucket()).max_keys(1);
        request.send().await.map_err(|error| self.failed("list", "", &error))?;
        Ok(())
    }

    /// As configured, for messages and manifests.
    pub fn bucket(&self) -> &str {
        &self.inner.bucket
    }

    fn client(&self) -> &aws_sdk_s3::Client {
        &self.inner.client
    }

    /// The time limit of one attempt at a request with a body of so many bytes.
    fn timeouts_for(&self, bytes: usize) -> aws_sdk_s3::config::Builder {
        let transfer = Duration::from_secs(u64::try_from(bytes).unwrap_or(u64::MAX) / BYTES_PER_SECOND_MIN);
        self.timeouts(self.inner.request_timeout.saturating_add(transfer))
    }

    fn timeouts_for_complete(&self) -> aws_sdk_s3::config::Builder {
        self.timeouts(self.inner.request_timeout.saturating_mul(COMPLETE_TIMEOUT_FACTOR))
    }

    fn timeouts(&self, attempt: Duration) -> aws_sdk_s3::config::Builder {
        let connect = CONNECT_TIMEOUT_MAX.min(self.inner.request_timeout);
        aws_sdk_s3::Config::builder().timeout_config(
            TimeoutConfig::builder().connect_timeout(connect).operation_attempt_timeout(attempt).build(),
        )
    }
}

/// As the SDK's own, but with the roots of one file. They are read first, because the SDK panics at what it cannot read.
fn client_with_roots(ca_file: &Path) -> Result<SharedHttpClient, String> {
    let _readable = roots(Some(ca_file))?;
    let text = std::fs::read(ca_file).map_err(|error| format!("ca_file {}: {error}", ca_file.display()))?;
    let context = TlsContext::builder().with_trust_store(TrustStore::empty().with_pem_certificate(text)).build();
    let context = context.map_err(|error| error.to_string())?;
    let builder = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
    Ok(builder.tls_context(context).build_https())
}
