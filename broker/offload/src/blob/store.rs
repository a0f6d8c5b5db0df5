//! Real stores, chosen by URL: `s3://bucket/prefix` and `file:///directory`.
//!
//! S3 credentials come the way its ecosystem gives them: environment, web identity, container or instance role; they are never
//! configuration of ours and never logged. A directory is written with fsync of files and directories.

use super::{Answer, BlobError, Blobs, Listed, Part, UploadId};
use crate::config::Config;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::local::LocalFileSystem;
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::{
    ClientOptions, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longest one request may take; a slower one is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Attempts for one call, and how long they may take together: answers 429, 5xx and broken connections are tried again with
/// growing pauses.
const RETRIES: (usize, Duration) = (6, Duration::from_secs(60));
/// Names that a directory's store gives to files it has not finished, behind the key. A key is written once, so these are all.
const STAGED: [&str; 4] = ["#1", "#2", "#3", "#4"];

/// Why no store could be made of a configuration.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The URL is none, or of a kind that is not supported.
    #[error("offload url '{0}' is not supported; it is s3://bucket/prefix or file:///directory")]
    Url(String),
    /// The directory cannot be made.
    #[error("offload directory {0} cannot be made: {1}")]
    Directory(String, std::io::Error),
    /// The store's client refuses the settings.
    #[error("object store {0} cannot be used: {1}")]
    Client(String, object_store::Error),
}

enum Backend {
    S3(AmazonS3),
    /// Uploads under way live in this process: after a crash only their staged files are left.
    Directory(LocalFileSystem, Mutex<HashMap<String, Staged>>),
}

type Staged = Arc<tokio::sync::Mutex<Box<dyn MultipartUpload>>>;

/// A store behind `object_store`.
pub struct Store {
    backend: Backend,
    prefix: String,
    next: AtomicU64,
}

impl Store {
    /// The store of a configuration whose URL is not empty.
    ///
    /// # Errors
    /// See [`SetUpError`]. Whether the store answers is not tried.
    pub fn open(config: &Config) -> Result<Self, SetUpError> {
        let url = config.url.as_str();
        let (backend, prefix) = if let Some(rest) = url.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            (Backend::S3(s3(config, bucket)?), prefix.trim_matches('/'))
        } else if let Some(path) = url.strip_prefix("file://").filter(|path| path.starts_with('/')) {
            let made = std::fs::create_dir_all(path);
            made.map_err(|error| SetUpError::Directory(path.to_owned(), error))?;
            let files = LocalFileSystem::new_with_prefix(path);
            let files = files.map_err(|error| SetUpError::Client(url.to_owned(), error))?;
            let files = files.with_fsync(true).with_automatic_cleanup(true);
            (Backend::Directory(files, Mutex::default()), "")
        } else {
            return Err(SetUpError::Url(url.to_owned()));
        };
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { backend, prefix, next: AtomicU64::new(0) })
    }

    fn objects(&self) -> &dyn ObjectStore {
        match &self.backend {
            Backend::S3(s3) => s3,
            Backend::Directory(files, _) => files,
        }
    }

    fn path(&self, key: &str) -> Path {
        Path::from(format!("{}{key}", self.prefix))
    }
}

fn s3(config: &Config, bucket: &str) -> Result<AmazonS3, SetUpError> {
    if bucket.is_empty() {
        return Err(SetUpError::Url(config.url.clone()));
    }
    let client = ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        // What is not encrypted is asked for by its own scheme, in the endpoint.
        .with_allow_http(config.endpoint.starts_with("http://"));
    let retry = RetryConfig { max_retries: RETRIES.0, retry_timeout: RETRIES.1, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client)
        .with_retry(retry)
        .with_virtual_hosted_style_request(!config.path_style);
    if !config.endpoint.is_empty() {
        builder = builder.with_endpoint(&config.endpoint);
    }
    if !config.region.is_empty() {
        builder = builder.with_region(&config.region);
    }
    builder.build().map_err(|error| SetUpError::Client(config.url.clone(), error))
}

fn blob_error(key: &str, error: object_store::Error) -> BlobError {
    use object_store::Error as E;
    let key = key.to_owned();
    let reason = error.to_string();
    match error {
        E::NotFound { .. } => BlobError::Absent(key),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } | E::InvalidPath { .. } => {
            BlobError::Refused { key, reason }
        }
        _ => BlobError::Failed { key, reason },
    }
}

fn payload(bytes: Vec<Bytes>) -> PutPayload {
    bytes.into_iter().collect()
}

impl Blobs for Store {
    fn put<'a>(&'a self, key: &'a str, bytes: Vec<Bytes>) -> Answer<'a, ()> {
        async move {
            let put = self.objects().put_opts(&self.path(key), payload(bytes), Default::default()).await;
            put.map(drop).map_err(|error| blob_error(key, error))
        }
        .boxed()
    }

    fn begin<'a>(&'a self, key: &'a str) -> Answer<'a, UploadId> {
        async move {
            let path = self.path(key);
            let begun = match &self.backend {
                Backend::S3(s3) => s3.create_multipart(&path).await,
                Backend::Directory(files, uploads) => {
                    files.put_multipart_opts(&path, Default::default()).await.map(|upload| {
                        let id = self.next.fetch_add(1, Ordering::Relaxed).to_string();
                        uploads.lock().insert(id.clone(), Arc::new(tokio::sync::Mutex::new(upload)));
                        id
                    })
                }
            };
            begun.map(UploadId).map_err(|error| blob_error(key, error))
        }
        .boxed()
    }

    fn part<'a>(
        &'a self,
        key: &'a str,
        upload: &'a UploadId,
        number: usize,
        bytes: Vec<Bytes>,
    ) -> Answer<'a, Part> {
        async move {
            let stored = match &self.backend {
                Backend::S3(s3) => {
                    let part = s3.put_part(&self.path(key), &upload.0, number, payload(bytes)).await;
                    part.map(|part| part.content_id)
                }
                Backend::Directory(_, uploads) => {
                    let staged = uploads.lock().get(&upload.0).cloned();
                    let staged = staged.ok_or_else(|| gone(key))?;
                    // Parts are given in order; the file grows by each.
                    let put = staged.lock().await.put_part(payload(bytes));
                    put.await.map(|()| String::new())
                }
            };
            stored.map(Part).map_err(|error| blob_error(key, error))
        }
        .boxed()
    }

    fn complete<'a>(&'a self, key: &'a str, upload: &'a UploadId, parts: Vec<Part>) -> Answer<'a, ()> {
        async move {
            let completed = match &self.backend {
                Backend::S3(s3) => {
                    let parts = parts.into_iter().map(|part| PartId { content_id: part.0 }).collect();
                    s3.complete_multipart(&self.path(key), &upload.0, parts).await
                }
                Backend::Directory(_, uploads) => {
                    let staged = uploads.lock().remove(&upload.0).ok_or_else(|| gone(key))?;
                    let mut staged = staged.lock().await;
                    staged.complete().await
                }
            };
            completed.map(drop).map_err(|error| blob_error(key, error))
        }
        .boxed()
    }

    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, u64> {
        async move {
            let head = self.objects().head(&self.path(key)).await;
            head.map(|meta| meta.size).map_err(|error| blob_error(key, error))
        }
        .boxed()
    }

    fn range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        async move {
            let wanted = range.end - range.start;
            let got = self.objects().get_range(&self.path(key), range).await;
            let got = got.map_err(|error| blob_error(key, error))?;
            if got.len() as u64 == wanted {
                return Ok(got);
            }
            let reason = format!("{} of {wanted} bytes came", got.len());
            Err(BlobError::Failed { key: key.to_owned(), reason })
        }
        .boxed()
    }

    fn discard<'a>(&'a self, key: &'a str, upload: Option<&'a UploadId>) -> Answer<'a, ()> {
        async move {
            let path = self.path(key);
            if let (Backend::S3(s3), Some(upload)) = (&self.backend, upload) {
                absent_is_fine(key, s3.abort_multipart(&path, &upload.0).await)?;
            }
            if let Backend::Directory(files, uploads) = &self.backend {
                if let Some(upload) = upload {
                    uploads.lock().remove(&upload.0);
                }
                remove_staged(key, files, &path).await?;
            }
            absent_is_fine(key, self.objects().delete(&path).await)
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<Listed>> {
        async move {
            let below = self.path(prefix);
            let found = match after {
                Some(after) => self.objects().list_with_offset(Some(&below), &self.path(after)),
                None => self.objects().list(Some(&below)),
            };
            let listed = |meta: object_store::ObjectMeta| {
                let key = meta.location.as_ref();
                Listed { key: key.strip_prefix(&self.prefix).unwrap_or(key).to_owned(), size: meta.size }
            };
            let found = found.take(limit).map_ok(listed).try_collect::<Vec<_>>().await;
            let mut found = found.map_err(|error| blob_error(prefix, error))?;
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        }
        .boxed()
    }
}

fn gone(key: &str) -> BlobError {
    BlobError::Failed { key: key.to_owned(), reason: "its upload was ended".to_owned() }
}

fn absent_is_fine(key: &str, done: object_store::Result<()>) -> Result<(), BlobError> {
    match done.map_err(|error| blob_error(key, error)) {
        Err(BlobError::Absent(_)) => Ok(()),
        other => other,
    }
}

/// Removes what an unfinished write of a key left in a directory.
#[allow(clippy::disallowed_methods)] // this is the seam; the directory's store does its file system calls in the same pool
async fn remove_staged(key: &str, files: &LocalFileSystem, path: &Path) -> Result<(), BlobError> {
    let file = files.path_to_filesystem(path).map_err(|error| blob_error(key, error))?;
    let removed = tokio::task::spawn_blocking(move || {
        for suffix in STAGED {
            let mut staged = file.clone().into_os_string();
            staged.push(suffix);
            match std::fs::remove_file(staged) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.to_string()),
                _ => {}
            }
        }
        Ok(())
    });
    let failed = |reason| BlobError::Failed { key: key.to_owned(), reason };
    removed.await.map_err(|error| failed(error.to_string()))?.map_err(failed)
}
