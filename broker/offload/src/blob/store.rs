//! Real stores, chosen by URL: `s3://bucket/prefix` and `file:///directory`; and what they have in common.

use super::directory::Directory;
use super::metered::Metered;
use super::s3::{self, S3};
use super::{Answer, BlobError, Blobs, Listed, SMALL_MAX};
use crate::config::{Config, shown};
use crate::meters::Meters;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use geminga_common::clock::Clock;
use geminga_common::lane::Lane;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use std::ops::Range;
use std::sync::Arc;

/// Why no store could be made of a configuration.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The URL is none, or of a kind that is not supported.
    #[error("offload url '{0}' is not supported; it is s3://bucket/prefix or file:///directory")]
    Url(String),
    /// An address holds more than where the store is: who asks, or a query. Nothing of it would be used.
    #[error(
        "offload.{key} holds more than an address; write it as '{plain}', and give credentials by the environment \
         (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE), a web identity or a role, the region by offload.region"
    )]
    More {
        /// The setting.
        key: &'static str,
        /// What it is without the rest.
        plain: String,
    },
    /// What the machine has of credentials cannot be used.
    #[error("credentials of the object store: {0}")]
    Profile(String),
    /// The store's client refuses the settings.
    #[error("object store {0} cannot be used: {1}")]
    Client(String, object_store::Error),
}

/// The store of a configuration whose URL is not empty. What a bucket is asked for is counted in `meters`, and its connections are
/// served in `lane`; a directory costs nothing and has no connections.
///
/// # Errors
/// See [`SetUpError`]. Whether the store answers is not tried.
pub fn open(
    config: &Config,
    clock: Arc<dyn Clock>,
    meters: &Meters,
    lane: Lane,
) -> Result<Arc<dyn Blobs>, SetUpError> {
    addresses_only(config)?;
    let url = config.url.as_str();
    if let Some(rest) = url.strip_prefix("s3://") {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let counted = Metered::new(meters.clone(), bucket, lane);
        return Ok(Arc::new(S3::open(config, bucket, prefix.trim_matches('/'), clock, counted)?));
    }
    match url.strip_prefix("file://").filter(|path| path.starts_with('/')) {
        Some(path) => Ok(Arc::new(Directory::open(path, clock))),
        None => Err(SetUpError::Url(shown(url))),
    }
}

/// Refuses who asks, queries and fragments in what says where the store is. A directory's name may hold any of these letters.
fn addresses_only(config: &Config) -> Result<(), SetUpError> {
    for (key, url) in [("url", &config.url), ("endpoint", &config.endpoint)] {
        let Some((scheme, rest)) = url.split_once("://") else { continue };
        let host = rest.split('/').next().unwrap_or_default();
        if scheme != "file" && (host.contains('@') || rest.contains(['?', '#'])) {
            return Err(SetUpError::More { key, plain: shown(url) });
        }
    }
    Ok(())
}

/// What to add when a store does not answer, if its credentials may be the reason; goes on after the text.
pub(crate) fn wanting_credentials(config: &Config) -> Option<String> {
    config.url.starts_with("s3://").then(s3::wanting_credentials).flatten()
}

pub(super) fn blob_error(key: &str, error: object_store::Error) -> BlobError {
    use object_store::Error as E;
    let key = key.to_owned();
    let reason = line(&error.to_string());
    match error {
        // Not the object is missing: a person has to act.
        E::NotFound { .. } if reason.ends_with("NoSuchBucket") => BlobError::Refused { key, reason },
        E::NotFound { .. } => BlobError::Absent(key),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } | E::InvalidPath { .. } => {
            BlobError::Refused { key, reason }
        }
        _ => BlobError::Failed { key, reason },
    }
}

/// An error in one line. Of what a server wrote only its code is told: the rest may hold key ids and signatures, or lines of its own.
fn line(text: &str) -> String {
    let head = text.split(['<', '\n']).next().unwrap_or_default().trim();
    let head: String = head.chars().filter(|c| !c.is_control()).take(240).collect();
    let code =
        text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    match code.filter(|code| code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric())) {
        Some(code) => format!("{head} {code}"),
        None => head,
    }
}

pub(super) fn failed(key: &str, reason: impl Into<String>) -> BlobError {
    BlobError::Failed { key: key.to_owned(), reason: reason.into() }
}

/// An answer that a request's time is up, before it is sent.
pub(super) fn expired(key: &str) -> BlobError {
    failed(key, "its time was up before it was sent")
}

pub(super) fn payload(bytes: Vec<Bytes>) -> PutPayload {
    bytes.into_iter().collect()
}

pub(super) fn absent_is_fine<T: Default>(done: Result<T, BlobError>) -> Result<T, BlobError> {
    match done {
        Err(BlobError::Absent(_)) => Ok(T::default()),
        other => other,
    }
}

/// Bytes of an object.
pub(super) fn size<'a>(objects: &'a dyn ObjectStore, path: Path, key: &'a str) -> Answer<'a, u64> {
    async move {
        let head = objects.head(&path).await;
        head.map(|meta| meta.size).map_err(|error| blob_error(key, error))
    }
    .boxed()
}

/// Bytes of a range, all of them.
pub(super) fn range<'a>(
    objects: &'a dyn ObjectStore,
    path: Path,
    key: &'a str,
    range: Range<u64>,
) -> Answer<'a, Bytes> {
    async move {
        let wanted = range.end - range.start;
        let got = objects.get_range(&path, range).await.map_err(|error| blob_error(key, error))?;
        if got.len() as u64 == wanted {
            return Ok(got);
        }
        Err(failed(key, format!("{} of {wanted} bytes came", got.len())))
    }
    .boxed()
}

/// Stores an object where there is none.
pub(super) fn create<'a>(
    objects: &'a dyn ObjectStore,
    path: Path,
    key: &'a str,
    bytes: Bytes,
) -> Answer<'a, bool> {
    async move {
        match objects.put_opts(&path, bytes.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(false)
            }
            Err(error) => Err(blob_error(key, error)),
        }
    }
    .boxed()
}

/// A whole small object. Asked by GET: of a bucket that does not exist, S3 says so in an answer's body alone.
pub(super) fn small<'a>(objects: &'a dyn ObjectStore, path: Path, key: &'a str) -> Answer<'a, Bytes> {
    async move {
        let found = objects.get(&path).await.map_err(|error| blob_error(key, error))?;
        if found.meta.size > SMALL_MAX {
            return Err(failed(key, format!("it has {} bytes", found.meta.size)));
        }
        found.bytes().await.map_err(|error| blob_error(key, error))
    }
    .boxed()
}

/// Removes an object.
pub(super) fn remove<'a>(objects: &'a dyn ObjectStore, path: Path, key: &'a str) -> Answer<'a, ()> {
    async move { absent_is_fine(objects.delete(&path).await.map_err(|error| blob_error(key, error))) }.boxed()
}

/// Objects below `root` + `prefix`, as [`Blobs::list`] tells of them: keys are told without the root.
pub(super) fn list<'a>(
    objects: &'a dyn ObjectStore,
    root: &'a str,
    prefix: &'a str,
    after: Option<&'a str>,
    limit: usize,
) -> Answer<'a, Vec<Listed>> {
    async move {
        let below = Path::from(format!("{root}{prefix}"));
        let found = match after {
            Some(after) => objects.list_with_offset(Some(&below), &Path::from(format!("{root}{after}"))),
            None => objects.list(Some(&below)),
        };
        let listed = |meta: object_store::ObjectMeta| {
            let key = meta.location.as_ref();
            Listed { key: key.strip_prefix(root).unwrap_or(key).to_owned(), size: meta.size }
        };
        let found = found.map_ok(listed).take(limit).try_collect::<Vec<_>>().await;
        let mut found = found.map_err(|error| blob_error(prefix, error))?;
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_server_writes_only_the_code_is_told() {
        let text = "refused: <?xml?>\n<Error><Code>SignatureDoesNotMatch</Code>\n<AWSAccessKeyId>AKID</AWSAccessKeyId></Error>";
        assert_eq!(line(text), "refused: SignatureDoesNotMatch");
        assert_eq!(line("a\u{1b}[1mb\nc"), "a[1mb");
        assert_eq!(line("x <Code>a b\n</Code>"), "x");
    }

    #[test]
    fn an_address_that_holds_more_is_refused_without_its_secrets() {
        let with = |url: &str, endpoint: &str| {
            addresses_only(&Config { url: url.into(), endpoint: endpoint.into(), ..Config::default() })
                .map_err(|error| error.to_string())
        };
        let refused = with("s3://AKID:secret@bucket/a", "").unwrap_err();
        assert!(
            refused.starts_with("offload.url holds more than an address; write it as 's3://bucket/a', "),
            "{refused}"
        );
        assert!(!refused.contains("secret") && !refused.contains("AKID"), "{refused}");
        assert!(with("s3://bucket/a?region=x", "").unwrap_err().starts_with("offload.url "));
        assert!(with("s3://bucket", "http://u:p@h:1").unwrap_err().starts_with("offload.endpoint "));
        assert_eq!(with("s3://bucket/a@b", "https://h:1/"), Ok(()));
        assert_eq!(with("file:///a?b@c#d", ""), Ok(()));
    }
}
