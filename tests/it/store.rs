//! The object store against the embedded S3 server: what is sent comes back bit by bit, what is given up leaves
//! nothing, and a refusal says what to do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;
use tenantd::config::StoreConfig;
use tenantd::embedded::S3Server;
use tenantd::shutdown::Tasks;
use tenantd::store::{Error, PartSizes, Store, UploadedPart};
use tokio::io::AsyncReadExt as _;

use crate::harness::Authority;

const PART_BYTES: usize = 5 << 20;

struct Bucket {
    store: Store,
    config: StoreConfig,
    tasks: Tasks,
    dir: tempfile::TempDir,
}

impl Bucket {
    async fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap()).await
    }

    async fn open(dir: tempfile::TempDir) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tasks = Tasks::new(tracing::Span::none());
        let secret = SecretString::from("a secret of the test");
        let server = S3Server::start(listener, dir.path(), "test", &secret, &["backups"], &tasks).await.unwrap();
        let config = StoreConfig {
            endpoint: Some(server.endpoint),
            region: "us-east-1".to_owned(),
            bucket: "backups".to_owned(),
            access_key_id: "test".to_owned(),
            secret_access_key: secret,
            path_style: true,
            ca_file: None,
            part_bytes_min: PART_BYTES as u64,
            parts_max: 10_000,
            request_timeout: Duration::from_secs(20),
        };
        Self { store: Store::new(&config).unwrap(), config, tasks, dir }
    }

    async fn restart(self) -> Self {
        assert_eq!(self.tasks.end(Duration::from_secs(10)).await, Vec::<&str>::new());
        Self::open(self.dir).await
    }

    /// Every file below the server's folder but its lock, by its path there.
    fn files(&self) -> Vec<String> {
        fn walk(dir: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, found);
                } else {
                    found.push(path.strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        let mut found = Vec::new();
        walk(self.dir.path(), self.dir.path(), &mut found);
        found.retain(|path| path != ".lock");
        found.sort();
        found
    }
}

/// Bytes that no compression and no accident makes equal.
fn noise(bytes: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(bytes);
    Bytes::from(content)
}

#[tokio::test]
async fn a_small_object_is_written_read_listed_and_deleted() {
    let bucket = Bucket::new().await;
    let (store, content) = (&bucket.store, noise(100_001, 1));
    store.check().await.unwrap();
    store.put("a/manifest.json", content.clone()).await.unwrap();
    store.put("b/other", Bytes::from_static(b"x")).await.unwrap();

    assert_eq!(store.get("a/manifest.json", 1 << 20).await.unwrap(), content);
    assert_eq!(store.head("a/manifest.json").await.unwrap(), Some(100_001));
    assert_eq!(store.head("a/none").await.unwrap(), None);
    assert_eq!(store.list("a/").await.unwrap(), [("a/manifest.json".to_owned(), 100_001)]);
    assert_eq!(store.list("").await.unwrap().len(), 2);
    assert!(matches!(store.get("a/manifest.json", 100_000).await, Err(Error::TooLarge { .. })));
    assert!(store.get("a/none", 10).await.unwrap_err().is_not_found());

    store.delete("a/manifest.json").await.unwrap();
    store.delete("a/manifest.json").await.unwrap();
    store.delete("b/other").await.unwrap();
    assert_eq!(bucket.files(), Vec::<String>::new());
}

#[tokio::test]
async fn a_list_goes_on_after_a_page() {
    let bucket = Bucket::new().await;
    for number in 0..1_002 {
        let path = bucket.dir.path().join(format!("backups/{number:04}"));
        std::fs::write(path, b"12").unwrap();
    }
    let listed = bucket.store.list("").await.unwrap();
    assert_eq!(listed.len(), 1_002);
    assert_eq!(listed.last(), Some(&("1001".to_owned(), 2)));
}

#[tokio::test]
async fn parts_become_one_object_bit_by_bit() {
    let bucket = Bucket::new().await;
    let store = &bucket.store;
    let parts = [noise(PART_BYTES, 2), noise(2 * PART_BYTES, 3), noise(17, 4)];
    let upload = store.upload_begin("t/archive").await.unwrap();
    let mut receipts: Vec<UploadedPart> = Vec::new();
    for (number, part) in (1..).zip(&parts) {
        receipts.push(store.upload_part("t/archive", &upload, number, part.clone()).await.unwrap());
    }
    assert_eq!(store.head("t/archive").await.unwrap(), None, "visible before it is complete");
    assert_eq!(store.uploads_list("t/").await.unwrap(), Some(vec![("t/archive".to_owned(), upload.clone())]));
    assert_eq!(store.uploads_list("u/").await.unwrap(), Some(Vec::new()));

    store.upload_complete("t/archive", &upload, &receipts).await.unwrap();
    store.upload_complete("t/archive", &upload, &receipts).await.expect("its answer may have been lost");
    let mut reader = store.get_stream("t/archive").await.unwrap();
    assert_eq!(reader.bytes(), 3 * PART_BYTES as u64 + 17);
    let mut content = Vec::new();
    reader.read_to_end(&mut content).await.unwrap();
    assert!(content == parts.concat(), "the content differs");

    assert_eq!(store.uploads_list("").await.unwrap(), Some(Vec::new()));
    store.upload_abort("t/archive", &upload).await.expect("an upload that is over");
    assert_eq!(store.head("t/archive").await.unwrap(), Some(3 * PART_BYTES as u64 + 17));
    store.delete("t/archive").await.unwrap();
    assert_eq!(bucket.files(), Vec::<String>::new());
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let bucket = Bucket::new().await;
    let store = &bucket.store;
    let upload = store.upload_begin("t/archive").await.unwrap();
    for number in 1..=3 {
        store.upload_part("t/archive", &upload, number, noise(PART_BYTES, 5)).await.unwrap();
    }
    assert!(bucket.files().len() > 3);
    store.upload_abort("t/archive", &upload).await.unwrap();
    store.upload_abort("t/archive", &upload).await.expect("a second time");
    assert_eq!(bucket.files(), Vec::<String>::new());
    let late = store.upload_part("t/archive", &upload, 4, noise(10, 6)).await.unwrap_err();
    assert!(matches!(late, Error::UploadGone { .. }), "{late}");
    let late = store.upload_complete("t/archive", &upload, &[]).await.unwrap_err();
    assert!(!late.is_retryable(), "{late}");
    assert_eq!(bucket.files(), Vec::<String>::new());
}

#[tokio::test]
async fn an_upload_outlives_a_restart_and_nameless_leftovers_do_not() {
    let bucket = Bucket::new().await;
    let upload = bucket.store.upload_begin("t/archive").await.unwrap();
    bucket.store.upload_part("t/archive", &upload, 1, noise(10, 7)).await.unwrap();
    let kept = bucket.files();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (secret, tasks) = (&bucket.config.secret_access_key, &bucket.tasks);
    let error = S3Server::start(listener, bucket.dir.path(), "test", secret, &[], tasks).await.unwrap_err();
    assert!(error.to_string().contains("another server"), "{error}");
    for name in [
        ".upload_id-00000000-0000-4000-8000-000000000000.part-1",
        ".upload-00000000-0000-4000-8000-000000000001.json",
        ".bucket-YmFja3Vwcw.object-dA.upload-00000000-0000-4000-8000-000000000002.metadata.json",
        ".bucket-YmFja3Vwcw.object-dA.metadata.json",
        ".bucket-YmFja3Vwcw.object-dA.internal.json",
        ".tmp.7.internal.part",
    ] {
        std::fs::write(bucket.dir.path().join(name), b"null").unwrap();
    }
    let bucket = bucket.restart().await;
    assert_eq!(bucket.files(), kept);
    assert_eq!(bucket.store.uploads_list("").await.unwrap().unwrap(), [("t/archive".to_owned(), upload.clone())]);
    bucket.store.upload_abort("t/archive", &upload).await.unwrap();
    assert_eq!(bucket.files(), Vec::<String>::new());
}

#[tokio::test]
async fn uploads_are_listed_over_several_pages() {
    let bucket = Bucket::new().await;
    let mut begun = Vec::new();
    for number in 0..1_003 {
        begun.push((format!("t/{}", number % 7), format!("00000000-0000-4000-8000-{number:012}")));
    }
    for (key, id) in &begun {
        use base64::Engine as _;
        let key = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(key);
        let target = format!(".bucket-YmFja3Vwcw.object-{key}.upload-{id}.metadata.json");
        std::fs::write(bucket.dir.path().join(target), b"{}").unwrap();
        std::fs::write(bucket.dir.path().join(format!(".upload-{id}.json")), b"\"test\"").unwrap();
    }
    begun.sort();
    let listed = bucket.store.uploads_list("t/").await.unwrap().unwrap();
    let listed: Vec<(String, String)> = listed.into_iter().map(|(key, id)| (key, id.0)).collect();
    assert_eq!(listed, begun);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let bucket = Bucket::new().await;
    let with = |change: &dyn Fn(&mut StoreConfig)| {
        let mut config = bucket.config.clone();
        change(&mut config);
        Store::new(&config).unwrap()
    };

    let wrong_secret = with(&|config| config.secret_access_key = SecretString::from("another secret"));
    for error in [
        wrong_secret.check().await.unwrap_err(),
        wrong_secret.put("k", noise(10, 8)).await.unwrap_err(),
        wrong_secret.head("k").await.unwrap_err(),
        wrong_secret.upload_begin("k").await.unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(matches!(error, Error::Denied { .. }) && !error.is_retryable(), "{text}");
        assert!(text.contains("store.secret_access_key") && !text.contains("another secret"), "{text}");
    }
    let text = wrong_secret.check().await.unwrap_err().to_string();
    assert!(text.contains("SignatureDoesNotMatch"), "{text}");

    let wrong_key = with(&|config| config.access_key_id = "nobody".to_owned());
    assert!(matches!(wrong_key.check().await, Err(Error::Denied { .. })));

    let wrong_bucket = with(&|config| config.bucket = "elsewhere".to_owned());
    let error = wrong_bucket.check().await.unwrap_err();
    assert!(matches!(error, Error::NoBucket { .. }) && error.to_string().contains("\"elsewhere\""), "{error}");

    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody_there = with(&|config| config.endpoint = Some(format!("http://{free}")));
    let error = nobody_there.check().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_retryable(), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_store_with_a_private_authority_is_known_by_its_roots() {
    let bucket = Bucket::new().await;
    let (company, stranger) = (Authority::new(), Authority::new());
    let plain = bucket.config.endpoint.clone().unwrap();
    let front = company.front(plain.trim_start_matches("http://").parse().unwrap()).await;
    let with = |roots: &str| {
        let file = bucket.dir.path().join("roots.pem");
        std::fs::write(&file, roots).unwrap();
        let endpoint = Some(format!("https://localhost:{front}"));
        Store::new(&StoreConfig { endpoint, ca_file: Some(file), ..bucket.config.clone() })
    };
    let store = with(&company.pem).unwrap();
    store.put("k", noise(10, 8)).await.unwrap();
    assert_eq!(bucket.store.get("k", 10).await.unwrap(), noise(10, 8));
    let error = with(&stranger.pem).unwrap().check().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.to_string().contains("certificate"), "{error}");
    for bad in ["", "no certificate", &company.pem[..company.pem.len() / 2]] {
        let error = with(bad).unwrap_err().to_string();
        assert!(error.contains("store.ca_file") && error.contains("roots.pem"), "{error}");
    }
}

#[tokio::test]
async fn a_part_that_is_too_small_fails_the_completion_and_leaves_nothing() {
    let bucket = Bucket::new().await;
    let store = &bucket.store;
    let upload = store.upload_begin("t/archive").await.unwrap();
    let mut parts = Vec::new();
    for number in 1..=2 {
        parts.push(store.upload_part("t/archive", &upload, number, noise(1_000, 9)).await.unwrap());
    }
    let error = store.upload_complete("t/archive", &upload, &parts).await.unwrap_err();
    assert!(error.to_string().contains("EntityTooSmall"), "{error}");
    store.upload_abort("t/archive", &upload).await.unwrap();
    assert_eq!(bucket.files(), Vec::<String>::new());
    assert!(PartSizes::new(PART_BYTES as u64, 10).bytes(1).is_some_and(|bytes| bytes >= PART_BYTES as u64));
}
