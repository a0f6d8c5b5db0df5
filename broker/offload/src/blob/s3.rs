//! S3, and what speaks like it. `object_store` does most; what it leaves out is here:
//!
//! - Writes that make something new are signed in their URL with the time at which they expire, so that the *store* refuses a
//!   request that was signed in time and arrives late. The signature is looked at once more after it was made: a process that slept
//!   while it signed signs again, one that sleeps later sends what has expired.
//! - Uploads in parts under a key, which a begin whose answer was lost leaves unnamed.
//!
//! Credentials come the way the ecosystem gives them: environment, web identity, container or instance role; they are never
//! configuration of ours and never logged. URLs that carry a signature are not logged either.

use super::metered::Metered;
use super::pace::{Paced, Throttled};
use super::profile;
use super::store::{self, SetUpError, absent_is_fine, blob_error, expired, failed, payload};
use super::{Answer, BlobError, Blobs, Listed, Part, UploadId};
use crate::config::{Config, shown};
use bytes::Bytes;
use futures::FutureExt as _;
use geminga_common::clock::Clock;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer as _, Url};
use object_store::{ClientOptions, PutPayload, RetryConfig};
use serde::Deserialize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Longest one request may take; a slower one is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Attempts for one call, and how long they may take together: answers 429, 5xx and broken connections are tried again with
/// growing pauses.
const RETRIES: (usize, Duration) = (6, Duration::from_secs(60));
/// First pause before a request is tried again; doubled from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest a signature may take to be made: it counts from its own moment, its time from the moment before.
const SIGNING_MS: u64 = 1_000;
/// Longest a signature is good for, by S3's rules.
const SIGNED_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A bucket, below a prefix.
pub(super) struct S3 {
    store: AmazonS3,
    http: HttpClient,
    paced: Paced,
    clock: Arc<dyn Clock>,
    /// With its slash, or empty.
    prefix: String,
}

/// One request beside those of `object_store`.
struct Call<'a> {
    key: &'a str,
    method: Method,
    path: Path,
    query: Vec<(&'static str, String)>,
    body: PutPayload,
    until_ms: u64,
}

/// Why a request brought nothing, and whether it may be tried again.
type Tried = Result<Bytes, (BlobError, bool)>;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Begun {
    upload_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Uploads {
    #[serde(default)]
    upload: Vec<UnderWay>,
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UnderWay {
    key: String,
    upload_id: String,
}

/// What a store waits for to which the environment gives no credentials; `None` when something there does.
pub(super) fn wanting_credentials() -> Option<String> {
    without_credentials(&from_machine().ok()?)
}

/// The environment's settings, and a profile's where the environment has no credentials.
///
/// # Errors
/// See [`profile::read`].
fn from_machine() -> Result<AmazonS3Builder, SetUpError> {
    with_profile(AmazonS3Builder::from_env(), &|name| std::env::var(name).ok())
}

fn with_profile(
    builder: AmazonS3Builder,
    environment: profile::Environment<'_>,
) -> Result<AmazonS3Builder, SetUpError> {
    use AmazonS3ConfigKey as Key;
    if without_credentials(&builder).is_none() {
        return Ok(builder);
    }
    let has = |key: Key| builder.get_config_value(&key).is_some();
    let found = profile::read(environment).map_err(SetUpError::Profile)?;
    let Some(profile) = found else { return Ok(builder) };
    let region = profile.region.filter(|_| !has(Key::Region) && !has(Key::DefaultRegion));
    let mut builder = builder.with_access_key_id(profile.key_id).with_secret_access_key(profile.secret);
    if let Some(token) = profile.token {
        builder = builder.with_token(token);
    }
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    Ok(builder)
}

fn without_credentials(builder: &AmazonS3Builder) -> Option<String> {
    use AmazonS3ConfigKey as Key;
    let ways = [
        Key::AccessKeyId,
        Key::WebIdentityTokenFile,
        Key::ContainerCredentialsRelativeUri,
        Key::ContainerCredentialsFullUri,
    ];
    let unsigned = builder.get_config_value(&Key::SkipSignature).is_some_and(|skip| skip == "true");
    let given = unsigned || ways.iter().any(|key| builder.get_config_value(key).is_some());
    (!given).then(|| {
        ". No credentials are given, so the machine's own role is asked for, at 169.254.169.254. On a machine without one set \
         AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, in the server's environment"
            .to_owned()
    })
}

impl S3 {
    pub(super) fn open(
        config: &Config,
        bucket: &str,
        prefix: &str,
        clock: Arc<dyn Clock>,
        counted: Metered,
    ) -> Result<Self, SetUpError> {
        if bucket.is_empty() {
            return Err(SetUpError::Url(shown(&config.url)));
        }
        let client = ClientOptions::new()
            .with_timeout(REQUEST_TIMEOUT)
            .with_connect_timeout(CONNECT_TIMEOUT)
            // What is not encrypted is asked for by its own scheme, in the endpoint.
            .with_allow_http(config.endpoint.starts_with("http://"));
        let retry =
            RetryConfig { max_retries: RETRIES.0, retry_timeout: RETRIES.1, ..RetryConfig::default() };
        let paced = Paced::new(clock.clone(), Arc::new(counted));
        let mut builder = from_machine()?
            .with_http_connector(paced.clone())
            .with_bucket_name(bucket)
            .with_client_options(client.clone())
            .with_retry(retry)
            .with_virtual_hosted_style_request(!config.path_style);
        if !config.endpoint.is_empty() {
            builder = builder.with_endpoint(&config.endpoint);
        }
        if !config.region.is_empty() {
            builder = builder.with_region(&config.region);
        }
        let refused = |error| SetUpError::Client(config.place(), error);
        let store = builder.build().map_err(refused)?;
        let http = paced.connect(&client).map_err(refused)?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { store, http, paced, clock, prefix })
    }

    fn path(&self, key: &str) -> Path {
        Path::from(format!("{}{key}", self.prefix))
    }

    /// A URL that the store takes until then.
    async fn signed(&self, call: &Call<'_>) -> Result<Url, BlobError> {
        let options = SignedUrlOptions::default().with_query(call.query.clone());
        loop {
            let now_ms = self.clock.wall_ms();
            // Whole seconds, rounded down: one that is not left is not signed for.
            let left = Duration::from_secs(call.until_ms.saturating_sub(now_ms) / 1000).min(SIGNED_MAX);
            if left.is_zero() {
                return Err(expired(call.key));
            }
            let signed = self.store.signed_url_opts(call.method.clone(), &call.path, left, &options).await;
            let url = signed.map_err(|error| blob_error(call.key, error))?;
            // Fetching credentials takes its time once; a process that slept looks at what is left again.
            if self.clock.wall_ms() <= now_ms + SIGNING_MS {
                return Ok(url);
            }
        }
    }

    async fn send(&self, call: &Call<'_>, url: &Url) -> Tried {
        let transport = |error: &dyn std::fmt::Display| (failed(call.key, error.to_string()), true);
        let mut request = HttpRequest::new(HttpRequestBody::from(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = url.as_str().parse().map_err(|_| (failed(call.key, "not a URL"), false))?;
        request.headers_mut().insert("content-length", (call.body.content_length() as u64).into());
        let answer = self.http.execute(request).await.map_err(|error| transport(&error))?;
        let status = answer.status();
        let body = answer.into_body().bytes().await.map_err(|error| transport(&error))?;
        if status.is_success() {
            return Ok(body);
        }
        let reason = format!("{} {}", status.as_u16(), code(&body));
        match status.as_u16() {
            404 => Err((BlobError::Absent(call.key.to_owned()), false)),
            401 | 403 => Err((BlobError::Refused { key: call.key.to_owned(), reason }, false)),
            408 | 429 | 500.. => Err((failed(call.key, reason), true)),
            _ => Err((failed(call.key, reason), false)),
        }
    }

    /// Sends a request until it is answered, with growing pauses.
    async fn call(&self, call: Call<'_>) -> Result<Bytes, BlobError> {
        let until = self.clock.mono() + RETRIES.1;
        let mut pause = FIRST_PAUSE;
        for _ in 0..RETRIES.0 {
            let url = self.signed(&call).await?;
            match self.send(&call, &url).await {
                Ok(body) => return Ok(body),
                Err((error, again)) if !again || self.clock.mono() >= until => return Err(error),
                Err((error, _)) => tracing::debug!(%error, "tried again"),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        let url = self.signed(&call).await?;
        self.send(&call, &url).await.map_err(|(error, _)| error)
    }

    /// A page of the uploads in parts under a path, behind a place.
    async fn uploads_page(&self, prefix: &str, after: &(String, String)) -> Result<Uploads, BlobError> {
        let mut query = vec![("uploads", String::new()), ("prefix", format!("{}{prefix}", self.prefix))];
        if !after.0.is_empty() {
            query.push(("key-marker", after.0.clone()));
            query.push(("upload-id-marker", after.1.clone()));
        }
        let (path, until_ms) = (Path::default(), self.clock.wall_ms() + RETRIES.1.as_millis() as u64);
        let body = PutPayload::default();
        let answer =
            self.call(Call { key: prefix, method: Method::GET, path, query, body, until_ms }).await?;
        opened(prefix, &answer)
    }
}

fn opened<'a, T: Deserialize<'a>>(key: &str, answer: &'a [u8]) -> Result<T, BlobError> {
    let text = std::str::from_utf8(answer).map_err(|error| failed(key, error.to_string()))?;
    quick_xml::de::from_str(text).map_err(|error| failed(key, format!("an answer that is none: {error}")))
}

/// What the store calls an error.
fn code(body: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Error {
        code: String,
    }
    opened::<Error>("", body).map(|error| error.code).unwrap_or_default()
}

impl Blobs for S3 {
    fn throttled(&self) -> Throttled {
        self.paced.told()
    }

    fn create<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, bool> {
        store::create(&self.store, self.path(key), key, bytes)
    }

    fn small<'a>(&'a self, key: &'a str) -> Answer<'a, Bytes> {
        store::small(&self.store, self.path(key), key)
    }

    fn put<'a>(&'a self, key: &'a str, bytes: Vec<Bytes>, until_ms: u64) -> Answer<'a, ()> {
        async move {
            let (path, body, query) = (self.path(key), payload(bytes), Vec::new());
            self.call(Call { key, method: Method::PUT, path, query, body, until_ms }).await.map(drop)
        }
        .boxed()
    }

    fn begin<'a>(&'a self, key: &'a str, until_ms: u64) -> Answer<'a, UploadId> {
        async move {
            let (path, body) = (self.path(key), PutPayload::default());
            let query = vec![("uploads", String::new())];
            let answer = self.call(Call { key, method: Method::POST, path, query, body, until_ms }).await?;
            Ok(UploadId(opened::<Begun>(key, &answer)?.upload_id))
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
            let part = self.store.put_part(&self.path(key), &upload.0, number, payload(bytes)).await;
            part.map(|part| Part(part.content_id)).map_err(|error| blob_error(key, error))
        }
        .boxed()
    }

    fn complete<'a>(&'a self, key: &'a str, upload: &'a UploadId, parts: Vec<Part>) -> Answer<'a, ()> {
        async move {
            let parts = parts.into_iter().map(|part| PartId { content_id: part.0 }).collect();
            let completed = self.store.complete_multipart(&self.path(key), &upload.0, parts).await;
            completed.map(drop).map_err(|error| blob_error(key, error))
        }
        .boxed()
    }

    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, u64> {
        store::size(&self.store, self.path(key), key)
    }

    fn range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        store::range(&self.store, self.path(key), key, range)
    }

    fn uploads<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<(String, UploadId)>> {
        async move {
            let (mut found, mut after) = (Vec::new(), (String::new(), String::new()));
            loop {
                let page = self.uploads_page(prefix, &after).await?;
                for upload in page.upload {
                    let key = upload.key.strip_prefix(&self.prefix).unwrap_or(&upload.key).to_owned();
                    found.push((key, UploadId(upload.upload_id)));
                }
                let next = (page.next_key_marker, page.next_upload_id_marker);
                if !page.is_truncated || next == after {
                    return Ok(found);
                }
                after = next;
            }
        }
        .boxed()
    }

    fn abort<'a>(&'a self, key: &'a str, upload: &'a UploadId) -> Answer<'a, ()> {
        async move {
            let aborted = self.store.abort_multipart(&self.path(key), &upload.0).await;
            absent_is_fine(aborted.map_err(|error| blob_error(key, error)))
        }
        .boxed()
    }

    fn remove<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        store::remove(&self.store, self.path(key), key)
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<Listed>> {
        store::list(&self.store, &self.prefix, prefix, after, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::real_s3;
    use super::*;
    use crate::meters::Meters;
    use geminga_common::clock::SystemClock;
    use geminga_common::lane::Lane;

    #[test]
    fn a_profile_counts_where_the_environment_has_no_credentials() {
        use AmazonS3ConfigKey as Key;
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("keys");
        let text = "[default]\naws_access_key_id=A\naws_secret_access_key=s\nregion=r\n";
        #[allow(clippy::disallowed_methods)] // a file of a test
        std::fs::write(&file, text).unwrap();
        let environment =
            |name: &str| (name == "AWS_SHARED_CREDENTIALS_FILE").then(|| file.to_str().unwrap().to_owned());
        let with = |builder| {
            let builder = with_profile(builder, &environment).unwrap();
            [Key::AccessKeyId, Key::Region].map(|key| builder.get_config_value(&key))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(with(AmazonS3Builder::new()), [some("A"), some("r")]);
        assert_eq!(with(AmazonS3Builder::new().with_region("own")), [some("A"), some("own")]);
        let own = AmazonS3Builder::new().with_access_key_id("own").with_secret_access_key("t");
        assert_eq!(with(own), [some("own"), None]);
        assert_eq!(with(AmazonS3Builder::new().with_skip_signature(true)), [None, None]);
    }

    /// What a broker that is paused between signing and sending does. `call` itself looks at the time before it signs, so the
    /// request is held here by hand.
    #[tokio::test]
    async fn real_s3_refuses_what_was_signed_in_time_and_arrives_late() {
        let clock = SystemClock::shared();
        let Some(config) = real_s3("late") else { return };
        let counted = Metered::new(Meters::new(clock.clone()), "conformance", Lane::here());
        let s3 = S3::open(&config, "conformance", "late", clock.clone(), counted).unwrap();
        for (method, query) in [(Method::PUT, Vec::new()), (Method::POST, vec![("uploads", String::new())])] {
            let (path, body) = (s3.path("k"), PutPayload::from_static(b""));
            let until_ms = clock.wall_ms() + 2_000;
            let call = Call { key: "k", method, path, query, body, until_ms };
            let url = s3.signed(&call).await.unwrap();
            tokio::time::sleep(Duration::from_millis(3_500)).await;
            let late = s3.send(&call, &url).await;
            assert!(matches!(late, Err((BlobError::Refused { .. }, false))), "{late:?}");
            assert!(matches!(s3.signed(&call).await, Err(BlobError::Failed { .. })));
        }
        assert!(matches!(s3.size("k").await, Err(BlobError::Absent(_))));
        assert_eq!(s3.uploads("k").await, Ok(vec![]));
    }

    #[test]
    fn answers_are_read() {
        let page = "<?xml version=\"1.0\"?><ListMultipartUploadsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <Bucket>b</Bucket><KeyMarker/><NextKeyMarker>k2</NextKeyMarker><NextUploadIdMarker>u2</NextUploadIdMarker>\
            <IsTruncated>true</IsTruncated><Upload><Key>k1</Key><UploadId>u1</UploadId><Initiator><ID>i</ID></Initiator></Upload>\
            <Upload><Key>k2</Key><UploadId>u2</UploadId></Upload></ListMultipartUploadsResult>";
        let page: Uploads = opened("k", page.as_bytes()).unwrap();
        let found: Vec<_> =
            page.upload.iter().map(|upload| (&upload.key[..], &upload.upload_id[..])).collect();
        assert_eq!(found, [("k1", "u1"), ("k2", "u2")]);
        assert_eq!((page.is_truncated, &page.next_key_marker[..]), (true, "k2"));
        let none: Uploads =
            opened("k", b"<ListMultipartUploadsResult></ListMultipartUploadsResult>").unwrap();
        assert!(none.upload.is_empty() && !none.is_truncated);
        assert_eq!(code(b"<Error><Code>SlowDown</Code><Message>m</Message></Error>"), "SlowDown");
        assert_eq!(code(b"<html>"), "");
    }

    #[test]
    fn who_gives_no_credentials_is_told_what_is_waited_for_and_how_to_give_them() {
        let said = without_credentials(&AmazonS3Builder::new()).unwrap();
        for word in ["169.254.169.254", "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"] {
            assert!(said.contains(word), "`{word}` is missing in {said}");
        }
        let given = AmazonS3Builder::new().with_access_key_id("a").with_secret_access_key("b");
        assert_eq!(without_credentials(&given), None);
        let file = AmazonS3Builder::new().with_config(AmazonS3ConfigKey::WebIdentityTokenFile, "/token");
        assert_eq!(without_credentials(&file), None);
        assert_eq!(without_credentials(&AmazonS3Builder::new().with_skip_signature(true)), None);
    }
}
