//! Counts what is sent to a bucket and what comes back, for the tenant whose topic it is about. It sits below everything that
//! repeats requests, so that it sees what the store sees. What goes elsewhere by the same client (credentials) is not counted.
//!
//! Each request is begun in the lane, whoever asks: a connection belongs to the runtime on which it was made, and encrypting,
//! reading and writing it is what the lane is for.

use crate::cost::{Account, Kind};
use crate::key;
use crate::meters::Meters;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use geminga_common::ids::TopicId;
use geminga_common::lane::Lane;
use http_body_util::BodyExt as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};
use std::fmt;
use std::sync::Arc;

/// Makes clients whose requests to one bucket are counted.
#[derive(Clone)]
pub(super) struct Metered {
    meters: Meters,
    bucket: String,
    lane: Lane,
}

/// A client whose requests are counted.
struct Client {
    to: Metered,
    inner: HttpClient,
}

impl Metered {
    pub(super) fn new(meters: Meters, bucket: &str, lane: Lane) -> Self {
        Self { meters, bucket: bucket.to_owned(), lane }
    }

    /// What a request is and who pays for it; `None` for one that does not go to the bucket.
    fn account(&self, request: &HttpRequest) -> Option<(Kind, Arc<Account>)> {
        let uri = request.uri();
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let own_host = uri.host().and_then(|host| host.strip_prefix(&self.bucket));
        let in_path = path.strip_prefix('/').and_then(|path| path.strip_prefix(&self.bucket));
        let begins = |rest: Option<&str>, with: char| rest.is_some_and(|rest| rest.starts_with(with));
        if !begins(own_host, '.') && !begins(in_path, '/') && in_path != Some("") {
            return None;
        }
        let kind = kind(request.method().as_str(), query)?;
        let topic = topic_of(path, query, request.body().as_bytes().map(AsRef::as_ref));
        Some((kind, self.meters.account(topic)))
    }
}

impl Client {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let inner = self.inner.clone();
        let sent = self.to.lane.run(async move { inner.execute(request).await }).await;
        sent.unwrap_or_else(|stopped| Err(HttpError::new(HttpErrorKind::Interrupted, stopped)))
    }
}

impl HttpConnector for Metered {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Client { to: self.clone(), inner }))
    }
}

impl HttpService for Client {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> BoxFuture<'b, Result<HttpResponse, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        async move {
            let Some((kind, account)) = self.to.account(&request) else {
                return self.send(request).await;
            };
            account.request(kind, request.body().content_length() as u64);
            let (head, body) = self.send(request).await?.into_parts();
            let counted = body.map_frame(move |frame| {
                account.received(frame.data_ref().map_or(0, |data| data.len() as u64));
                frame
            });
            Ok(HttpResponse::from_parts(head, HttpResponseBody::new(counted)))
        }
        .boxed()
    }
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counted requests to {}", self.bucket)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to.fmt(f)
    }
}

fn names(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn kind(method: &str, query: &str) -> Option<Kind> {
    let has = |wanted: &str| names(query).any(|(name, _)| name == wanted);
    Some(match method {
        "HEAD" => Kind::Head,
        "DELETE" => Kind::Delete,
        "POST" if has("delete") => Kind::Delete,
        "GET" if has("uploads") || has("list-type") => Kind::List,
        "GET" => Kind::Get,
        "POST" if has("uploads") || has("uploadId") => Kind::Multipart,
        "PUT" if has("uploadId") => Kind::Multipart,
        "PUT" => Kind::Put,
        _ => return None,
    })
}

/// The topic whose object a request is about: by its path; a listing by its prefix; a removal of several by the first.
fn topic_of(path: &str, query: &str, body: Option<&[u8]>) -> Option<TopicId> {
    let listed = || {
        let (_, prefix) = names(query).find(|(name, _)| *name == "prefix")?;
        key::topic_of(&prefix.replace("%2F", "/"))
    };
    let removed = || {
        let text = std::str::from_utf8(body?).ok()?;
        key::topic_of(text.split_once("<Key>")?.1.split_once("</Key>")?.0)
    };
    key::topic_of(path).or_else(listed).or_else(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Bill;
    use geminga_common::clock::ManualClock;

    const KEY: &str = "/bucket/pre/c/202611/dd/1/7-000000000000000a";

    #[test]
    fn requests_have_the_kinds_that_stores_bill() {
        let kinds = [
            ("PUT", "", Kind::Put),
            ("PUT", "X-Amz-Expires=60&X-Amz-Signature=uploads", Kind::Put),
            ("GET", "", Kind::Get),
            ("HEAD", "", Kind::Head),
            ("GET", "list-type=2&prefix=c", Kind::List),
            ("GET", "uploads=&prefix=c", Kind::List),
            ("POST", "delete", Kind::Delete),
            ("DELETE", "", Kind::Delete),
            ("DELETE", "uploadId=x", Kind::Delete),
            ("POST", "uploads=", Kind::Multipart),
            ("PUT", "partNumber=1&uploadId=x", Kind::Multipart),
            ("POST", "uploadId=x", Kind::Multipart),
        ];
        for (method, query, wanted) in kinds {
            assert_eq!(kind(method, query), Some(wanted), "{method} {query}");
        }
    }

    #[test]
    fn the_topic_is_read_from_path_prefix_and_body() {
        let object = key::object(
            "c",
            1_790_000_000_000,
            TopicId(41),
            geminga_common::ids::LedgerId(9),
            key::AttemptId(5),
        );
        let body = format!("<Delete><Object><Key>pre/{object}</Key></Object></Delete>");
        assert_eq!(topic_of(&format!("/bucket/pre/{object}"), "", None), Some(TopicId(41)));
        let prefix = format!("uploads=&prefix=pre%2F{}", object.replace('/', "%2F"));
        assert_eq!(topic_of("/bucket", &prefix, None), Some(TopicId(41)));
        assert_eq!(topic_of("/bucket", "delete", Some(body.as_bytes())), Some(TopicId(41)));
        for other in ["/bucket/pre/c/geminga.id", KEY, "/", ""] {
            assert_eq!(topic_of(other, "", None), None, "{other}: its hash is not that of a topic 1");
        }
    }

    #[test]
    fn what_does_not_go_to_the_bucket_is_not_counted() {
        let meters = Meters::new(Arc::new(ManualClock::at_wall_ms(0)));
        let metered = Metered::new(meters.clone(), "bucket", Lane::here());
        let counted = |uri: &str| {
            let mut request = HttpRequest::new(Vec::new().into());
            *request.uri_mut() = uri.parse().unwrap();
            metered.account(&request).is_some()
        };
        for ours in
            ["http://s3:9/bucket/c/x", "http://s3/bucket?uploads", "https://bucket.s3.eu.amazonaws.com/c/x"]
        {
            assert!(counted(ours), "{ours}");
        }
        for other in
            ["http://169.254.169.254/latest/api/token", "http://s3/bucket2/c/x", "https://sts.amazonaws.com/"]
        {
            assert!(!counted(other), "{other}");
        }
        assert!(meters.bills().iter().all(|(_, bill)| *bill == Bill::default()));
    }

    /// Tells on which thread it is called.
    #[derive(Debug)]
    struct Probe(std::sync::mpsc::SyncSender<std::thread::ThreadId>);

    impl HttpService for Probe {
        fn call<'a, 'b>(&'a self, _: HttpRequest) -> BoxFuture<'b, Result<HttpResponse, HttpError>>
        where
            'a: 'b,
            Self: 'b,
        {
            async move {
                self.0.send(std::thread::current().id()).unwrap();
                Ok(HttpResponse::new(HttpResponseBody::new(
                    http_body_util::Empty::new().map_err(|e| match e {}),
                )))
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn requests_are_begun_in_the_lane_whether_they_are_counted_or_not() {
        let tasks = geminga_common::tasks::TaskGroup::new();
        let lane = Lane::new(&tasks, "lane", 1).unwrap();
        let meters = Meters::new(Arc::new(ManualClock::at_wall_ms(0)));
        let (tell, told) = std::sync::mpsc::sync_channel(4);
        let to = Metered::new(meters, "bucket", lane.clone());
        let client = Client { to, inner: HttpClient::new(Probe(tell)) };
        let theirs = lane.run(async { std::thread::current().id() }).await.unwrap();
        for uri in ["http://s3/bucket/c/x", "http://169.254.169.254/latest/api/token"] {
            let mut request = HttpRequest::new(Vec::new().into());
            *request.uri_mut() = uri.parse().unwrap();
            client.call(request).await.unwrap();
            assert_eq!(told.recv().unwrap(), theirs, "{uri}");
        }
        tasks.stop();
    }
}
