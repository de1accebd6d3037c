//! The objects behind the S3 server: `s3s-fs`, and around it what the daemon relies on and that server lacks. Uploads
//! can be listed (it answers 501), an upload that is over is `NoSuchUpload` (it says `AccessDenied`), and neither an
//! abort, a completion nor a delete leaves files behind (it forgets parts and side files).
//!
//! It knows the names that `s3s-fs` 0.14 gives its files, all at the root of the folder:
//! `.upload-ID.json`, `.upload_id-ID.part-N`, `.bucket-B.object-K.upload-ID.metadata.json`,
//! `.bucket-B.object-K.metadata.json` and `.bucket-B.object-K.internal.json`, where B and K are base64url.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, GetObjectInput,
    GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListMultipartUploadsInput,
    ListMultipartUploadsOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput,
    MultipartUpload, PutObjectInput, PutObjectOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

/// As S3 pages them.
const UPLOADS_PER_PAGE_MAX: usize = 1_000;

/// The folder with all buckets.
#[derive(Debug)]
pub(super) struct Objects {
    files: FileSystem,
    root: PathBuf,
}

/// What a file at the root of the folder belongs to.
#[derive(Debug, PartialEq, Eq)]
enum Record {
    /// That an upload has begun.
    Upload {
        id: String,
    },
    Part {
        id: String,
    },
    /// Which object an upload is for.
    Target {
        bucket: String,
        key: String,
        id: String,
    },
    /// An object's attributes or checksums.
    Side {
        bucket: String,
        key: String,
    },
    Other,
}

impl Objects {
    /// Opens a folder that exists, and removes what a killed server left of uploads that nobody can name any more.
    pub(super) async fn open(root: &Path) -> Result<Self, String> {
        let files = FileSystem::new(root).map_err(|error| format!("{error:?}"))?;
        let objects = Self { files, root: root.to_owned() };
        objects.sweep().await.map_err(|error| error.to_string())?;
        Ok(objects)
    }

    /// An upload counts when both its record and its target are there, a side file when its object is; all else is
    /// removed.
    async fn sweep(&self) -> io::Result<()> {
        let records = self.records().await?;
        let ids = |wanted: fn(&Record) -> Option<&String>| -> BTreeSet<String> {
            records.iter().filter_map(|(_, record)| wanted(record).cloned()).collect()
        };
        let begun = ids(|record| if let Record::Upload { id } = record { Some(id) } else { None });
        let aimed = ids(|record| if let Record::Target { id, .. } = record { Some(id) } else { None });
        for (path, record) in &records {
            let alive = match record {
                Record::Upload { id } => aimed.contains(id),
                Record::Part { id } | Record::Target { id, .. } => begun.contains(id) && aimed.contains(id),
                Record::Side { bucket, key } => self.object_exists(bucket, key).await?,
                Record::Other => true,
            };
            if !alive {
                remove(path).await?;
            }
        }
        Ok(())
    }

    async fn records(&self) -> io::Result<Vec<(PathBuf, Record)>> {
        let mut found = Vec::new();
        let mut entries = tokio::fs::read_dir(&self.root).await?;
        while let Some(entry) = entries.next_entry().await? {
            if let Some(name) = entry.file_name().to_str() {
                found.push((entry.path(), Record::parse(name)));
            }
        }
        Ok(found)
    }

    /// The files of one upload that is over.
    async fn upload_sweep(&self, upload: &str) -> io::Result<()> {
        for (path, record) in self.records().await? {
            let (Record::Upload { id } | Record::Part { id } | Record::Target { id, .. }) = &record else { continue };
            if id == upload {
                remove(&path).await?;
            }
        }
        Ok(())
    }

    async fn upload_exists(&self, upload: &str) -> S3Result<bool> {
        // Ids are UUIDs; anything else could name another file.
        if uuid::Uuid::parse_str(upload).is_err() {
            return Ok(false);
        }
        let record = self.root.join(format!(".upload-{upload}.json"));
        tokio::fs::try_exists(record).await.map_err(s3s::S3Error::internal_error)
    }

    async fn upload_require(&self, upload: &str) -> S3Result<()> {
        if self.upload_exists(upload).await? {
            return Ok(());
        }
        Err(s3_error!(NoSuchUpload, "The upload does not exist: it was completed or given up, or never began."))
    }

    async fn object_exists(&self, bucket: &str, key: &str) -> io::Result<bool> {
        tokio::fs::try_exists(self.root.join(bucket).join(key)).await
    }

    /// The side files of an object, which name its bucket and key in base64.
    async fn side_files_remove(&self, bucket: &str, key: &str) -> io::Result<()> {
        let stem = format!(".bucket-{}.object-{}", URL_SAFE_NO_PAD.encode(bucket), URL_SAFE_NO_PAD.encode(key));
        for suffix in ["metadata.json", "internal.json"] {
            remove(&self.root.join(format!("{stem}.{suffix}"))).await?;
        }
        Ok(())
    }
}

impl Record {
    fn parse(name: &str) -> Self {
        Self::target(name).or_else(|| Self::upload(name)).or_else(|| Self::part(name)).unwrap_or(Self::Other)
    }

    fn upload(name: &str) -> Option<Self> {
        let id = name.strip_prefix(".upload-")?.strip_suffix(".json")?;
        Some(Self::Upload { id: id.to_owned() })
    }

    fn part(name: &str) -> Option<Self> {
        let (id, _number) = name.strip_prefix(".upload_id-")?.split_once(".part-")?;
        Some(Self::Part { id: id.to_owned() })
    }

    fn target(name: &str) -> Option<Self> {
        let (bucket, rest) = name.strip_prefix(".bucket-")?.split_once(".object-")?;
        let (key, rest) = rest.split_once('.')?;
        let text = |encoded: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok();
        let (bucket, key) = (text(bucket)?, text(key)?);
        match rest {
            "metadata.json" | "internal.json" => Some(Self::Side { bucket, key }),
            _ => {
                let id = rest.strip_prefix("upload-")?.strip_suffix(".metadata.json")?.to_owned();
                Some(Self::Target { bucket, key, id })
            }
        }
    }
}

async fn remove(path: &Path) -> io::Result<()> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[async_trait::async_trait]
impl S3 for Objects {
    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(request).await
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.files.put_object(request).await
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.files.get_object(request).await
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.files.head_object(request).await
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        let deleted = self.files.delete_object(request).await?;
        self.side_files_remove(&bucket, &key).await.map_err(s3s::S3Error::internal_error)?;
        Ok(deleted)
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        if !self.root.join(&request.input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        self.files.create_multipart_upload(request).await
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let upload = request.input.upload_id.clone();
        self.upload_require(&upload).await?;
        let uploaded = self.files.upload_part(request).await?;
        if !self.upload_exists(&upload).await? {
            // It was given up while the part arrived, and the part came to lie there after the clean-up.
            self.upload_sweep(&upload).await.map_err(s3s::S3Error::internal_error)?;
            self.upload_require(&upload).await?;
        }
        Ok(uploaded)
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        self.upload_require(&request.input.upload_id).await?;
        self.files.list_parts(request).await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let CompleteMultipartUploadInput { bucket, key, upload_id: upload, .. } = request.input.clone();
        self.upload_require(&upload).await?;
        let completed = self.files.complete_multipart_upload(request).await;
        // Also after a failure: the record goes first, and without it nobody can use the parts.
        if !self.upload_exists(&upload).await? {
            self.upload_sweep(&upload).await.map_err(s3s::S3Error::internal_error)?;
        }
        if completed.is_err() && !self.object_exists(&bucket, &key).await.map_err(s3s::S3Error::internal_error)? {
            self.side_files_remove(&bucket, &key).await.map_err(s3s::S3Error::internal_error)?;
        }
        completed
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let upload = request.input.upload_id.clone();
        self.upload_require(&upload).await?;
        let aborted = self.files.abort_multipart_upload(request).await?;
        // A part that arrived in the meantime was overlooked.
        self.upload_sweep(&upload).await.map_err(s3s::S3Error::internal_error)?;
        Ok(aborted)
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        if !self.root.join(&input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = (input.key_marker.clone().unwrap_or_default(), input.upload_id_marker.clone().unwrap_or_default());
        let page_max = input.max_uploads.and_then(|count| usize::try_from(count).ok()).unwrap_or(UPLOADS_PER_PAGE_MAX);
        let page_max = page_max.clamp(1, UPLOADS_PER_PAGE_MAX);

        let mut found = BTreeSet::new();
        for (_, record) in self.records().await.map_err(s3s::S3Error::internal_error)? {
            let Record::Target { bucket, key, id } = record else { continue };
            if bucket == input.bucket && key.starts_with(&prefix) && self.upload_exists(&id).await? {
                found.insert((key, id));
            }
        }
        let mut rest = found.into_iter().filter(|upload| is_after(upload, &after));
        let page: Vec<(String, String)> = rest.by_ref().take(page_max).collect();
        let truncated = rest.next().is_some();
        let last = page.last().filter(|_| truncated).cloned();
        let uploads = page.into_iter().map(|(key, id)| MultipartUpload {
            key: Some(key),
            upload_id: Some(id),
            ..MultipartUpload::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            bucket: Some(input.bucket),
            prefix: input.prefix,
            key_marker: input.key_marker,
            upload_id_marker: input.upload_id_marker,
            max_uploads: i32::try_from(page_max).ok(),
            is_truncated: Some(truncated),
            next_key_marker: last.as_ref().map(|(key, _)| key.clone()),
            next_upload_id_marker: last.map(|(_, id)| id),
            ..ListMultipartUploadsOutput::default()
        }))
    }
}

/// Markers as S3 reads them: a key marker alone skips all of that key's uploads.
fn is_after((key, id): &(String, String), (key_marker, id_marker): &(String, String)) -> bool {
    key > key_marker || (key == key_marker && !id_marker.is_empty() && id > id_marker) || key_marker.is_empty()
}
