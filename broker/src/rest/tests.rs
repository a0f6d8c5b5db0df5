//! Table-driven: method, path, body → status, body. The server is the real one on a loopback port; the broker is a fake that
//! keeps topics and subscriptions in memory.

use super::api::*;
use super::stats::{InternalStats, SubscriptionStats, TopicStats};
use super::{Rest, message, metrics, time};
use crate::namespace::{Defaults, Namespaces};
use crate::schema::SchemaRegistry;
use bytes::BytesMut;
use geminga_common::clock::ManualClock;
use geminga_common::ids::{EntryId, LedgerId, Position};
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::metadata::{MetadataStore, Op, Txn};
use geminga_common::names::{BundleRange, NamespaceName, SubscriptionName, TopicName};
use geminga_common::tasks::{OnFailure, TaskGroup};
use geminga_proto::pulsar::{KeyValue, MessageMetadata};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Subs = BTreeMap<String, BTreeMap<String, String>>;

struct Fake {
    topics: Mutex<BTreeMap<TopicName, Subs>>,
    calls: Mutex<Vec<String>>,
    namespaces: Namespaces,
}

impl Fake {
    fn with<T>(
        &self,
        topic: &TopicName,
        f: impl FnOnce(&mut Subs) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        match self.topics.lock().get_mut(topic) {
            Some(subs) => f(subs),
            None => Err(ApiError::TopicNotFound(topic.clone())),
        }
    }

    fn on_sub(&self, what: &str, topic: &TopicName, sub: &SubscriptionName) -> Result<(), ApiError> {
        self.with(topic, |subs| match subs.contains_key(sub.as_str()) {
            true => {
                self.calls.lock().push(format!("{what} {} {sub}", topic.local()));
                Ok(())
            }
            false => Err(ApiError::SubscriptionNotFound { topic: topic.clone(), subscription: sub.clone() }),
        })
    }

    fn stats(subs: &Subs) -> TopicStats {
        let sub =
            SubscriptionStats { msg_backlog: 3, subscription_type: "Shared".into(), ..Default::default() };
        let subscriptions = subs.keys().map(|name| (name.clone(), sub.clone())).collect();
        TopicStats { msg_in_counter: 5, subscriptions, ..TopicStats::unused() }
    }
}

fn ready<'a, T: Send + 'a>(answer: Result<T, ApiError>) -> Answer<'a, T> {
    Box::pin(async move { answer })
}

impl BrokerApi for Fake {
    fn this_broker(&self) -> Served {
        Served {
            broker_id: "h:8080".into(),
            broker_url: "pulsar://h:6650".into(),
            broker_url_tls: None,
            http_url: "http://h:8080".into(),
            http_url_tls: None,
        }
    }
    fn brokers(&self) -> Answer<'_, Vec<String>> {
        ready(Ok(vec!["h:8080".into()]))
    }
    fn leader(&self) -> Answer<'_, Served> {
        ready(Ok(self.this_broker()))
    }
    fn bookies(&self) -> Answer<'_, Vec<String>> {
        ready(Ok(vec!["b1".into()]))
    }
    fn health(&self) -> Answer<'_, ()> {
        ready(Ok(()))
    }
    fn lookup<'a>(&'a self, _: &'a TopicName, _: Option<&'a str>) -> Answer<'a, Served> {
        ready(Ok(self.this_broker()))
    }
    fn unload_bundles<'a>(
        &'a self,
        namespace: &'a NamespaceName,
        range: Option<BundleRange>,
    ) -> Answer<'a, ()> {
        self.calls
            .lock()
            .push(format!("unload {namespace} {}", range.map_or("all".into(), |r| r.to_string())));
        ready(Ok(()))
    }
    fn loaded_topics(&self, namespace: &NamespaceName) -> Vec<TopicName> {
        self.topics.lock().keys().filter(|t| t.namespace() == namespace).cloned().collect()
    }
    fn snapshot(&self) -> futures::future::BoxFuture<'_, Vec<(TopicName, TopicStats)>> {
        let all = self.topics.lock().iter().map(|(t, s)| (t.clone(), Fake::stats(s))).collect();
        Box::pin(async move { all })
    }
    fn create_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()> {
        Box::pin(async move {
            if self.topics.lock().contains_key(topic) {
                return Err(ApiError::Exists("there".into()));
            }
            self.topics.lock().insert(topic.clone(), Subs::new());
            if topic.is_persistent() {
                let key = self.namespaces.cluster_keys().topic(topic);
                let txn = Txn { compares: vec![], ops: vec![Op::put(key, &b"t"[..])] };
                self.namespaces.metadata().txn(txn).await.unwrap();
            }
            Ok(())
        })
    }
    fn delete_topic<'a>(&'a self, topic: &'a TopicName, force: bool) -> Answer<'a, ()> {
        Box::pin(async move {
            if topic.local().contains("busy") && !force {
                return Err(ApiError::Busy("Topic has active producers/subscriptions".into()));
            }
            self.topics.lock().remove(topic).ok_or_else(|| ApiError::TopicNotFound(topic.clone()))?;
            let key = self.namespaces.cluster_keys().topic(topic);
            let txn = Txn { compares: vec![], ops: vec![Op::delete(key)] };
            self.namespaces.metadata().txn(txn).await.unwrap();
            Ok(())
        })
    }
    fn unload_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()> {
        ready(self.with(topic, |_| Ok(())))
    }
    fn terminate_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, Place> {
        ready(self.with(topic, |_| Ok(Position::new(LedgerId(3), EntryId(2)).into())))
    }
    fn truncate_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()> {
        ready(self.with(topic, |_| Ok(())))
    }
    fn trim_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()> {
        ready(self.with(topic, |_| Ok(())))
    }
    fn topic_stats<'a>(&'a self, topic: &'a TopicName, _: StatsOptions) -> Answer<'a, TopicStats> {
        ready(self.with(topic, |subs| Ok(Fake::stats(subs))))
    }
    fn internal_stats<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, InternalStats> {
        ready(self.with(topic, |_| Ok(InternalStats::default())))
    }
    fn last_message_id<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, Place> {
        ready(self.with(topic, |_| Ok(Place { ledger: Some(LedgerId(3)), entry: None })))
    }
    fn find_by_time<'a>(&'a self, topic: &'a TopicName, since: u64) -> Answer<'a, Place> {
        ready(self.with(topic, |_| Ok(Position::new(LedgerId(3), EntryId(since)).into())))
    }
    fn read_entry<'a>(&'a self, topic: &'a TopicName, at: Position) -> Answer<'a, StoredEntry> {
        ready(self.with(topic, |_| match at.entry.0 {
            0 => Ok(entry(at)),
            _ => Err(ApiError::MessageNotFound("Message not found".into())),
        }))
    }
    fn examine<'a>(&'a self, topic: &'a TopicName, _: bool, _: u64) -> Answer<'a, Option<StoredEntry>> {
        ready(self.with(topic, |_| Ok(None)))
    }
    fn backlog_bytes_from<'a>(&'a self, topic: &'a TopicName, _: Place) -> Answer<'a, u64> {
        ready(self.with(topic, |_| Ok(102)))
    }
    fn subscriptions<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, Vec<String>> {
        ready(self.with(topic, |subs| Ok(subs.keys().cloned().collect())))
    }
    fn create_subscription<'a>(
        &'a self,
        topic: &'a TopicName,
        sub: &'a SubscriptionName,
        at: Target,
        properties: BTreeMap<String, String>,
    ) -> Answer<'a, ()> {
        self.calls.lock().push(format!("create {sub} {at:?}"));
        let mut topics = self.topics.lock();
        let subs = topics.entry(topic.clone()).or_default();
        let old = subs.insert(sub.to_string(), properties);
        ready(if old.is_some() { Err(ApiError::Exists("there".into())) } else { Ok(()) })
    }
    fn delete_subscription<'a>(
        &'a self,
        topic: &'a TopicName,
        sub: &'a SubscriptionName,
        _: bool,
    ) -> Answer<'a, ()> {
        let found = self.on_sub("delete", topic, sub);
        ready(found.and_then(|()| {
            self.with(topic, |subs| {
                subs.remove(sub.as_str());
                Ok(())
            })
        }))
    }
    fn skip_all<'a>(&'a self, topic: &'a TopicName, sub: &'a SubscriptionName) -> Answer<'a, ()> {
        ready(self.on_sub("skip_all", topic, sub))
    }
    fn skip<'a>(&'a self, topic: &'a TopicName, sub: &'a SubscriptionName, n: u64) -> Answer<'a, ()> {
        ready(self.on_sub(&format!("skip {n}"), topic, sub))
    }
    fn expire_by_age<'a>(
        &'a self,
        topic: &'a TopicName,
        sub: &'a SubscriptionName,
        s: u64,
    ) -> Answer<'a, ()> {
        let found = self.on_sub("expire", topic, sub);
        ready(found.and_then(|()| if s > 99 { Err(ApiError::NothingToDo("nothing".into())) } else { Ok(()) }))
    }
    fn expire_to<'a>(
        &'a self,
        topic: &'a TopicName,
        sub: &'a SubscriptionName,
        at: Position,
        _: bool,
    ) -> Answer<'a, ()> {
        ready(self.on_sub(&format!("expire_to {at}"), topic, sub))
    }
    fn reset_cursor<'a>(
        &'a self,
        topic: &'a TopicName,
        sub: &'a SubscriptionName,
        to: Target,
    ) -> Answer<'a, ()> {
        ready(self.on_sub(&format!("reset {to:?}"), topic, sub))
    }
    fn peek<'a>(
        &'a self,
        topic: &'a TopicName,
        sub: &'a SubscriptionName,
        nth: u64,
    ) -> Answer<'a, StoredEntry> {
        let found = self.on_sub("peek", topic, sub);
        ready(found.and_then(|()| match nth {
            1 => Ok(entry(Position::new(LedgerId(3), EntryId(0)))),
            _ => Err(ApiError::MessageNotFound("beyond".into())),
        }))
    }
    fn analyze_backlog<'a>(
        &'a self,
        topic: &'a TopicName,
        sub: &'a SubscriptionName,
    ) -> Answer<'a, BacklogAnalysis> {
        ready(self.on_sub("analyze", topic, sub).map(|()| BacklogAnalysis {
            entries: 2,
            messages: 3,
            ..Default::default()
        }))
    }
    fn subscription_properties<'a>(
        &'a self,
        topic: &'a TopicName,
        sub: &'a SubscriptionName,
    ) -> Answer<'a, BTreeMap<String, String>> {
        let found = self.on_sub("properties", topic, sub);
        ready(found.and_then(|()| self.with(topic, |subs| Ok(subs[sub.as_str()].clone()))))
    }
    fn set_subscription_properties<'a>(
        &'a self,
        topic: &'a TopicName,
        sub: &'a SubscriptionName,
        properties: BTreeMap<String, String>,
    ) -> Answer<'a, ()> {
        let found = self.on_sub("set", topic, sub);
        ready(found.and_then(|()| {
            self.with(topic, |subs| {
                subs.insert(sub.to_string(), properties);
                Ok(())
            })
        }))
    }
}

fn entry(position: Position) -> StoredEntry {
    let packed = lz4_flex::block::compress(b"hello hello hello");
    let metadata = MessageMetadata {
        producer_name: "p\n1".into(),
        sequence_id: 7,
        publish_time: 1_795_520_926_783,
        properties: vec![KeyValue { key: "a".into(), value: "b".into() }],
        compression: Some(1),
        uncompressed_size: Some(17),
        ..Default::default()
    };
    let mut bytes = BytesMut::new();
    geminga_proto::payload::encode_payload(&metadata, &packed, &mut bytes);
    StoredEntry { position, bytes: bytes.freeze() }
}

struct Server {
    port: u16,
    tasks: TaskGroup,
    fake: Arc<Fake>,
    rest: Rest,
}

async fn server() -> Server {
    let clock = Arc::new(ManualClock::at_wall_ms(1000));
    let store: Arc<dyn MetadataStore> = Arc::new(MemoryStore::new(clock.clone()));
    let tasks = TaskGroup::new();
    let namespaces = Namespaces::start(store.clone(), Defaults::of_cluster("c1"), &tasks).await.unwrap();
    namespaces.bootstrap().await.unwrap();
    let fake =
        Arc::new(Fake { topics: Mutex::default(), calls: Mutex::default(), namespaces: namespaces.clone() });
    let rest = Rest {
        namespaces,
        schemas: SchemaRegistry::new(store, "c1"),
        broker: fake.clone(),
        clock,
        version: "0.1.0".into(),
        metadata_url: "memory".into(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (served, stop) = (rest.clone(), tasks.token());
    tasks.spawn("rest", OnFailure::Log, async move { served.serve(listener, stop).await.unwrap() });
    Server { port, tasks, fake, rest }
}

impl Server {
    /// The status, the head and the body.
    async fn ask(&self, method: &str, path: &str, kind: &str, body: &str) -> (u16, String, String) {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let kind = if kind.is_empty() { String::new() } else { format!("content-type: {kind}\r\n") };
        let size = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{kind}content-length: {size}\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
    }

    async fn table(&self, rows: &[(&str, &str, &str, u16, &str)]) {
        for (method, path, body, status, wanted) in rows {
            let path =
                if path.starts_with("/lookup") { (*path).to_owned() } else { format!("/admin/v2{path}") };
            let kind = if body.is_empty() { "" } else { "application/json" };
            let (got, _, text) = self.ask(method, &path, kind, body).await;
            assert_eq!(got, *status, "{method} {path} {body} answered {text}");
            let whole = wanted.strip_prefix('=');
            assert!(
                whole.map_or(text.contains(wanted), |w| text == w),
                "{method} {path} {body}: {text} is not {wanted}"
            );
        }
    }
}

const T: &str = "/persistent/public/default";

#[tokio::test]
async fn names_bodies_and_values_that_cannot_be_get_a_status_and_a_reason() {
    let s = server().await;
    s.table(&[
        (
            "PUT",
            "/tenants/..",
            r#"{"allowedClusters":["c1"]}"#,
            412,
            r#"{"reason":"Tenant name is not valid"#,
        ),
        (
            "PUT",
            "/tenants/%2E",
            r#"{"allowedClusters":["c1"]}"#,
            412,
            r#"{"reason":"Tenant name is not valid"#,
        ),
        ("PUT", "/tenants/t", "{not json", 400, r#"{"reason":"the body is no JSON"#),
        ("PUT", "/tenants/t", "5", 400, r#"{"reason":"the body does not fit"#),
        (
            "GET",
            "/namespaces/public/default/topics?mode=FOO",
            "",
            404,
            "there are PERSISTENT, NON_PERSISTENT and ALL",
        ),
        ("PUT", "/namespaces/public/zero", r#"{"bundles":{"numBundles":0}}"#, 204, "="),
        ("GET", "/namespaces/public/zero/bundles", "", 200, r#""numBundles":4"#),
        ("DELETE", "/namespaces/public/zero", "", 204, "="),
    ])
    .await;
    s.tasks.stop();
}

#[tokio::test]
async fn tenants_and_namespaces_answer_as_pulsar_does() {
    let s = server().await;
    let ns = "/namespaces/public/n1";
    s.table(&[
        ("GET", "/clusters", "", 200, r#"=["c1"]"#),
        ("GET", "/clusters/nope", "", 404, r#"={"reason":"Cluster does not exist"}"#),
        ("GET", "/brokers/health", "", 200, "=ok"),
        ("GET", "/brokers/any", "", 200, r#"=["h:8080"]"#),
        ("GET", "/bookies/all", "", 200, r#"={"bookies":[{"bookieId":"b1"}]}"#),
        ("GET", "/tenants", "", 200, r#"=["public","pulsar"]"#),
        ("GET", "/tenants/public", "", 200, r#"={"adminRoles":[],"allowedClusters":["c1"]}"#),
        ("PUT", "/tenants/t2", "", 412, "TenantInfo is null"),
        ("PUT", "/tenants/t2", "{}", 412, "Clusters cannot be null"),
        ("PUT", "/tenants/t2", r#"{"allowedClusters":["x"]}"#, 412, "Clusters do not exist"),
        ("PUT", "/tenants/t2", r#"{"allowedClusters":["c1"]}"#, 204, "="),
        ("PUT", "/tenants/t2", r#"{"allowedClusters":["c1"]}"#, 409, "Tenant already exist"),
        ("POST", "/tenants/t9", r#"{"allowedClusters":["c1"]}"#, 404, "Tenant t9 not found"),
        ("DELETE", "/tenants/public", "", 409, "active namespaces"),
        ("DELETE", "/tenants/public?force=true", "", 405, "forced"),
        ("DELETE", "/tenants/t2", "", 204, "="),
        ("DELETE", "/tenants/t2", "", 404, "Tenant doesn't exist"),
        ("PUT", "/tenants/t+2", r#"{"allowedClusters":["c1"]}"#, 412, "Tenant name is not valid"),
        ("PUT", "/tenants/t4", "{bad", 400, "key must be a string"),
        ("PUT", ns, "", 204, "="),
        ("PUT", ns, "null", 409, "Namespace already exists"),
        ("GET", ns, "", 200, r#""offload_threshold":-1"#),
        ("GET", ns, "", 200, r#""is_allow_auto_update_schema":true"#),
        ("GET", "/namespaces/nope", "", 404, "Tenant not found"),
        ("GET", "/namespaces/public/nope", "", 404, "Namespace does not exist"),
        ("PUT", "/namespaces/nope/n", "", 404, "Tenant does not exist"),
        ("PUT", "/namespaces/public/b2", r#"{"bundles":{"numBundles":2}}"#, 204, "="),
        (
            "GET",
            "/namespaces/public/b2/bundles",
            "",
            200,
            r#"={"boundaries":["0x00000000","0x80000000","0xffffffff"],"numBundles":2}"#,
        ),
        ("PUT", "/namespaces/public/b3", r#"{"bundles":{"numBundles":1000}}"#, 412, "128"),
        ("PUT", "/namespaces/public/c", r#"{"replication_clusters":["x"]}"#, 403, "Cluster [x]"),
        ("PUT", "/namespaces/public/c", r#"{"encryption_required":true}"#, 501, "encryptionRequired"),
        (
            "PUT",
            "/namespaces/public/c",
            r#"{"max_producers_per_topic":"2","auth_policies":{"namespace_auth":{"a":["produce"]}}}"#,
            204,
            "=",
        ),
        ("GET", "/namespaces/public/c/permissions", "", 200, r#"={"a":["produce"]}"#),
        ("POST", "/namespaces/public/c/permissions/r", r#"["fly"]"#, 400, "fly"),
        ("GET", "/namespaces/public/c/maxProducersPerTopic", "", 200, "=2"),
        ("PUT", &format!("{ns}/unload"), "", 204, "="),
        ("PUT", &format!("{ns}/0x00000000_0x40000000/unload"), "", 204, "="),
        ("PUT", &format!("{ns}/0x00000000_0x30000000/unload"), "", 412, "Invalid bundle range"),
        ("PUT", "/namespaces/public/zz/unload", "", 404, "Namespace not found"),
        ("DELETE", ns, "", 204, "="),
        ("DELETE", ns, "", 404, "does not exist"),
    ])
    .await;
    let calls = s.fake.calls.lock().clone();
    assert_eq!(calls, ["unload public/n1 all", "unload public/n1 0x00000000_0x40000000"]);
    s.tasks.stop();
}

#[tokio::test]
async fn what_is_not_enforced_is_refused_and_off_is_fine() {
    let s = server().await;
    let at = |p: &str| format!("/namespaces/public/default/{p}");
    let new = "/namespaces/public/c";
    s.table(&[
        ("POST", &at("deduplication"), "true", 501, "deduplication"),
        ("POST", &at("deduplication"), "false", 204, "="),
        ("POST", &at("subscriptionExpirationTime"), "0", 204, "="),
        ("POST", &at("subscriptionExpirationTime"), "5", 501, "subscriptionExpirationTime"),
        ("PUT", new, r#"{"clusterDispatchRate":{"standalone":{}}}"#, 501, "clusterDispatchRate"),
        ("PUT", new, r#"{"migrated":true}"#, 501, "migrated"),
        ("PUT", new, r#"{"deduplicationEnabled":true}"#, 501, "deduplication"),
        ("PUT", new, r#"{"deduplicationEnabled":false,"compaction_threshold":0}"#, 204, "="),
    ])
    .await;
    s.tasks.stop();
}

#[tokio::test]
async fn policies_are_set_read_and_refused_as_pulsar_does() {
    let s = server().await;
    let n = "/namespaces/public/default";
    let at = |p: &str| format!("{n}/{p}");
    let quota = r#"{"limit":"10240","policy":"producer_request_hold"}"#;
    s.table(&[
        ("GET", &at("retention"), "", 200, "="),
        ("GET", &at("maxTopicsPerNamespace"), "", 200, "=0"),
        ("GET", &at("subscriptionTypesEnabled"), "", 200, "=[]"),
        ("GET", &at("schemaCompatibilityStrategy"), "", 200, r#"="UNDEFINED""#),
        ("GET", &at("fooBar"), "", 405, "reason"),
        ("GET", &at("foo/bar"), "", 404, "reason"),
        ("DELETE", &at("fooBar"), "", 412, "Invalid bundle range: fooBar"),
        ("POST", &at("messageTTL"), r#""7""#, 204, "="),
        ("GET", &at("messageTTL"), "", 200, "=7"),
        ("POST", &at("messageTTL"), "-5", 412, "must >= 0"),
        ("POST", &at("messageTTL"), "abc", 400, "expected value"),
        ("DELETE", &at("messageTTL"), "", 204, "="),
        ("GET", &at("messageTTL"), "", 200, "="),
        (
            "POST",
            &at("retention"),
            r#"{"retentionTimeInMinutes":0,"retentionSizeInMB":20}"#,
            400,
            "single time or size",
        ),
        ("POST", &at("backlogQuota"), quota, 204, "="),
        (
            "GET",
            &at("backlogQuotaMap"),
            "",
            200,
            r#"{"destination_storage":{"limit":10240,"limitSize":10240,"#,
        ),
        ("POST", &at("retention"), r#"{"retentionTimeInMinutes":10,"retentionSizeInMB":20}"#, 204, "="),
        (
            "POST",
            &at("backlogQuota"),
            r#"{"limitSize":1073741824,"policy":"producer_exception"}"#,
            412,
            "retention",
        ),
        ("POST", &at("backlogQuota"), r#"{"limitSize":1,"policy":"fly"}"#, 400, "policy cannot be null"),
        ("DELETE", &at("backlogQuota"), "", 204, "="),
        ("POST", &at("publishRate"), r#"{"publishThrottlingRateInMsg":10}"#, 204, "="),
        (
            "GET",
            &at("publishRate"),
            "",
            200,
            r#"={"publishThrottlingRateInByte":-1,"publishThrottlingRateInMsg":10}"#,
        ),
        ("POST", &at("maxProducersPerTopic"), "-1", 412, "maxProducersPerTopic must be 0 or more"),
        (
            "POST",
            &at("autoTopicCreation"),
            r#"{"allowAutoTopicCreation":true,"topicType":"x"}"#,
            412,
            "Unknown topic type [x]",
        ),
        ("POST", &at("deduplication"), r#""x""#, 400, "boolean"),
        ("POST", &at("dispatchRate"), "{}", 501, "dispatchRate"),
        ("GET", &at("dispatchRate"), "", 200, "="),
        ("POST", &at("replication"), r#"["nope"]"#, 403, "Invalid cluster id: nope"),
        ("POST", &at("replication"), "[]", 412, "ClusterIds"),
        ("PUT", &at("property/a/b%20c"), "", 204, "="),
        ("GET", &at("property/a"), "", 200, "=b c"),
        ("PUT", &format!("{T}/t"), "", 204, "="),
        ("GET", &format!("{T}/t/maxUnackedMessagesOnConsumer"), "", 200, "="),
        ("GET", &format!("{T}/t/maxUnackedMessagesOnConsumer?applied=true"), "", 200, "=50000"),
        ("POST", &format!("{T}/t/maxUnackedMessagesOnConsumer"), "5", 204, "="),
        ("GET", &format!("{T}/t/maxUnackedMessagesOnConsumer"), "", 200, "=5"),
        ("DELETE", &format!("{T}/t/maxUnackedMessagesOnConsumer"), "", 204, "="),
        ("GET", &format!("{T}/nope/maxUnackedMessagesOnConsumer"), "", 404, "not found"),
        ("POST", &format!("{T}/t/messageTTL?messageTTL=30"), "", 204, "="),
        ("GET", &format!("{T}/t/messageTTL"), "", 200, "=30"),
        ("GET", &format!("{T}/t/fooBar"), "", 404, "reason"),
        ("POST", &format!("{T}/t-partition-0/maxConsumers"), "5", 412, "partition"),
    ])
    .await;
    let (status, _, _) = s.ask("POST", &format!("/admin/v2{n}/messageTTL"), "text/plain", "5").await;
    assert_eq!(status, 415);
    s.tasks.stop();
}

#[tokio::test]
async fn topics_and_partitions_answer_as_pulsar_does() {
    let s = server().await;
    let p = |path: &str| format!("{T}/{path}");
    s.table(&[
        ("PUT", &p("t"), "null", 204, "="),
        ("PUT", &p("t"), "", 409, "This topic already exists"),
        ("PUT", "/persistent/public/zz/t", "", 404, "Namespace not found"),
        ("PUT", &p("x-partition-3"), "", 412, "there isn't a partitioned topic"),
        ("PUT", &p("pp/partitions"), r#""3""#, 204, "="),
        ("PUT", &p("pp/partitions"), "3", 409, "already exists"),
        ("PUT", &p("t/partitions"), "3", 409, "already exists"),
        ("PUT", &p("q/partitions"), "0", 406, "more than 0"),
        ("PUT", &p("q/partitions"), "abc", 400, ""),
        ("PUT", &p("q/partitions"), "", 400, "cannot be empty"),
        ("PUT", &p("x-partition-3/partitions"), "3", 412, "-partition-"),
        ("GET", &p("pp/partitions"), "", 200, r#"={"partitions":3,"deleted":false}"#),
        ("GET", &p("t/partitions"), "", 200, r#"={"partitions":0,"deleted":false}"#),
        ("GET", &p("nope/partitions"), "", 404, "Topic persistent://public/default/nope not found"),
        ("GET", &p("nope/partitions?checkAllowAutoCreation=true"), "", 200, r#"{"partitions":0"#),
        ("POST", &p("pp/partitions"), "5", 204, "="),
        (
            "POST",
            &p("pp/partitions"),
            "4",
            422,
            "Desired partitions 4 can't be less than the current partitions 5.",
        ),
        ("POST", &p("nope/partitions"), "4", 409, "is not the partitioned topic."),
        ("DELETE", &p("pp"), "", 409, "delete-partitioned-topic"),
        ("GET", &p("pp/stats"), "", 404, "not found"),
        ("GET", &p("pp-partition-4/stats"), "", 200, r#""msgInCounter":0"#),
        ("GET", &p("pp/partitioned-stats"), "", 200, r#""metadata":{"deleted":false,"partitions":5}"#),
        ("GET", &p("t/partitioned-stats"), "", 404, "Partitioned Topic"),
        ("GET", &format!("{T}//t/stats"), "", 200, r#""msgInCounter":5"#),
        ("GET", T, "", 200, r#""persistent://public/default/pp-partition-4""#),
        ("GET", &format!("{T}/partitioned"), "", 200, r#"=["persistent://public/default/pp"]"#),
        ("PUT", &p("pp/unload"), "", 204, "="),
        ("PUT", &p("nope/unload"), "", 404, "not found"),
        ("POST", &p("t/terminate"), "", 200, r#""ledgerId":3"#),
        ("POST", &p("pp/terminate"), "", 405, "partitioned"),
        (
            "GET",
            &p("t/lastMessageId"),
            "",
            200,
            r#"={"batchIndex":-1,"batchSize":0,"entryId":-1,"ledgerId":3,"partitionIndex":-1}"#,
        ),
        ("GET", &p("t/messageid/abc"), "", 404, ""),
        ("GET", &p("t/ledger/3/entry/9"), "", 404, "Message not found"),
        ("GET", &p("pp/ledger/3/entry/0"), "", 405, "partitioned-topic"),
        ("GET", &p("t/examinemessage"), "", 412, "total message is zero"),
        ("PUT", &p("t/properties"), r#"{"a":"b","c":"d"}"#, 204, "="),
        ("DELETE", &p("t/properties?key=a"), "", 204, "="),
        ("GET", &p("t/properties"), "", 200, r#"={"c":"d"}"#),
        ("PUT", &p("nope/properties"), "{}", 404, "not found"),
        ("PUT", &p("busy"), "", 204, "="),
        ("DELETE", &p("busy"), "", 412, "active"),
        ("DELETE", &p("busy?force=true"), "", 204, "="),
        ("DELETE", &p("t/partitions"), "", 409, "please call delete"),
        ("DELETE", &p("pp/partitions"), "", 204, "="),
        ("DELETE", &p("pp/partitions"), "", 404, "not found."),
        ("DELETE", &p("t"), "", 204, "="),
        ("DELETE", &p("t"), "", 404, "not found"),
        ("GET", &p("a%2Fb/stats"), "", 412, "Topic name is not valid"),
        ("PUT", &p("t/compaction"), "", 501, "compaction"),
        ("GET", "/lookup/v2/topic/persistent/public/default/t", "", 200, r#""brokerUrlSsl":"""#),
        ("GET", "/lookup/v2/topic/persistent/public/zz/t", "", 404, "Namespace not found"),
        ("PUT", "/non-persistent/public/default/n", "", 204, "="),
        ("GET", "/non-persistent/public/default", "", 200, r#"=["non-persistent://public/default/n"]"#),
        ("GET", "/namespaces/public/default/topics?mode=ALL", "", 200, "non-persistent://public/default/n"),
        ("GET", "/namespaces/public/default/topics?mode=BAD", "", 404, "mode"),
        ("GET", "/worker/cluster", "", 409, "Function Worker"),
        ("GET", "/nothing", "", 404, "reason"),
    ])
    .await;
    s.tasks.stop();
}

#[tokio::test]
async fn subscriptions_answer_as_pulsar_does() {
    let s = server().await;
    let p = |path: &str| format!("{T}/{path}");
    s.table(&[
        ("PUT", &p("t/subscription/s1"), "", 204, "="),
        ("PUT", &p("t/subscription/s1"), "", 409, "Subscription already exists for topic"),
        ("PUT", &p("t/subscription/s2"), r#""earliest""#, 204, "="),
        ("PUT", &p("t/subscription/s3"), r#""fly""#, 400, "fly"),
        ("PUT", &p("t/subscription/s4"), r#"{"ledgerId":3,"entryId":"1","properties":{"a":"b"}}"#, 204, "="),
        ("GET", &p("t/subscription/s4/properties"), "", 200, r#"={"a":"b"}"#),
        ("PUT", &p("t/subscription/s4/properties"), r#"{"x":"y"}"#, 204, "="),
        ("GET", &p("t/subscription/s4/properties"), "", 200, r#"={"x":"y"}"#),
        ("PUT", &p("t/subscription/a%2520b"), "", 204, "="),
        ("GET", &p("t/subscriptions"), "", 200, r#"=["a b","s1","s2","s4"]"#),
        ("GET", &p("nope/subscriptions"), "", 404, "Topic persistent://public/default/nope not found"),
        ("PUT", &p("x-partition-9/subscription/s"), "", 412, "cannot be auto-created"),
        ("POST", &p("t/subscription/s1/skip/2"), "", 204, "="),
        (
            "POST",
            &p("t/subscription/none/skip/2"),
            "",
            404,
            "Subscription none not found for topic persistent://public/default/t",
        ),
        ("POST", &p("t/subscription/s1/expireMessages/100"), "", 409, "not issued"),
        ("POST", &p("t/subscription/s1/expireMessages/0"), "", 204, "="),
        ("POST", &p("t/subscription/s1/resetcursor/5"), "", 204, "="),
        (
            "POST",
            &p("t/subscription/s1/resetcursor"),
            r#"{"ledgerId":3,"entryId":1,"isExcluded":true}"#,
            204,
            "=",
        ),
        ("POST", &p("t/subscription/none/skip_all"), "", 404, "none"),
        ("GET", &p("t/subscription/s1/position/2"), "", 404, "Message not found"),
        ("POST", &p("t/subscription/s1/analyzeBacklog"), "", 200, r#""messages":3"#),
        ("PUT", &p("pp/partitions"), "2", 204, "="),
        ("GET", &p("pp/subscriptions"), "", 200, "=[]"),
        ("POST", &p("pp/subscription/s/skip_all"), "", 404, "Subscription s not found"),
        ("PUT", &p("pp/subscription/s"), "", 204, "="),
        ("POST", &p("pp/subscription/s/skip_all"), "", 204, "="),
        ("POST", &p("pp/subscription/s/skip/1"), "", 405, "partitioned"),
        ("DELETE", &p("pp/subscription/s"), "", 204, "="),
        ("DELETE", &p("pp/subscription/s"), "", 404, "s not found"),
    ])
    .await;
    let calls = s.fake.calls.lock().clone();
    let said =
        |text: &str| assert!(calls.iter().any(|call| call.contains(text)), "{text} is not in {calls:?}");
    said("create s1 Latest");
    said("create s2 Earliest");
    said("skip 2 t s1");
    said("reset Time(5) t s1");
    said("exclusive: true");
    said("skip_all pp-partition-1 s");
    s.tasks.stop();
}

#[tokio::test]
async fn schemas_answer_as_pulsar_does() {
    let s = server().await;
    let a = r#"{"type":"JSON","schema":"{\"type\":\"record\"}","properties":{"a":"b"}}"#;
    let b = r#"{"type":"JSON","schema":"{\"type\":\"other\"}","properties":{}}"#;
    let kv = r#"{"type":"KEY_VALUE","schema":"{\"key\":{\"z\":1,\"a\":2},\"value\":\"\"}","properties":{}}"#;
    let at = |p: &str| format!("/schemas/public/default/{p}");
    s.table(&[
        ("GET", &at("t/schema"), "", 404, "Schema not found"),
        ("GET", &at("t/schemas"), "", 200, r#"={"getSchemaResponses":[]}"#),
        ("POST", &at("t/schema"), a, 200, r#"={"version":{"version":0}}"#),
        ("POST", &at("t/schema"), a, 200, r#"={"version":{"version":0}}"#),
        ("POST", &at("t/schema"), b, 409, "reason"),
        ("GET", &at("t/schema/0"), "", 200, r#""timestamp":1000"#),
        ("GET", &at("t/schema/7"), "", 404, "Schema not found"),
        ("POST", &at("t/version"), b, 200, r#"={"version":-1}"#),
        ("POST", &at("t/compatibility"), a, 202, r#""compatibility":true"#),
        ("POST", &at("t/compatibility"), b, 501, "not judged"),
        ("DELETE", &at("t/schema"), "", 200, r#"={"version":1}"#),
        ("POST", &at("t/schema"), a, 200, r#"={"version":{"version":2}}"#),
        ("POST", &at("u/schema"), r#"{"type":"FLY","schema":""}"#, 422, "FLY"),
        ("POST", &at("u/schema"), r#"{"type":"AVRO","schema":"bad"}"#, 422, "JSON"),
        ("POST", &at("kv/schema"), kv, 200, r#"={"version":{"version":0}}"#),
        ("GET", &at("kv/schema"), "", 200, r#"{\"key\":{\"z\":1,\"a\":2},\"value\":\"\"}"#),
    ])
    .await;
    s.tasks.stop();
}

#[tokio::test]
async fn a_message_is_shown_unfolded_with_its_metadata() {
    let s = server().await;
    s.table(&[("PUT", &format!("{T}/t"), "", 204, "=")]).await;
    let (status, head, body) = s.ask("GET", &format!("/admin/v2{T}/t/ledger/3/entry/0"), "", "").await;
    assert_eq!((status, body.as_str()), (200, "hello hello hello"));
    for line in [
        "x-pulsar-message-id: 3:0",
        r#"x-pulsar-property: {"a":"b"}"#,
        "x-pulsar-publish-time: 2026-11-24t11:48:46.783z",
        "x-pulsar-producer-name: p?1",
        "x-pulsar-compression: lz4",
    ] {
        assert!(head.contains(line), "{line} is not in {head}");
    }
    s.tasks.stop();
}

#[tokio::test]
async fn metrics_redirect_and_carry_topic_labels() {
    let s = server().await;
    s.table(&[("PUT", &format!("{T}/t/subscription/s"), "", 204, "=")]).await;
    let (status, head, _) = s.ask("GET", "/metrics", "", "").await;
    assert!(status == 301 && head.contains("location: /metrics/"));
    let (status, _, body) = s.ask("GET", "/metrics/", "", "").await;
    assert_eq!(status, 200);
    let labels = r#"cluster="c1",namespace="public/default",topic="persistent://public/default/t""#;
    assert!(body.contains(&format!("pulsar_msg_backlog{{{labels}}} 3.0\n")), "{body}");
    assert!(body.contains(&format!("pulsar_subscription_back_log{{{labels},subscription=\"s\"}} 3.0\n")));
    assert!(body.contains("pulsar_topics_count{cluster=\"c1\",namespace=\"public/default\"} 1.0\n"));
    assert!(body.contains("process_cpu_seconds_total{"));
    assert_eq!(body.matches("# TYPE pulsar_msg_backlog gauge").count(), 1);
    assert!(!metrics::render(&s.rest, &[]).contains("pulsar_msg_backlog"));
    s.tasks.stop();
}

#[test]
fn small_forms() {
    assert_eq!(time::iso_utc(0), "1970-01-01T00:00:00.000Z");
    assert_eq!(time::iso_utc(951_782_400_000), "2000-02-29T00:00:00.000Z");
    assert_eq!(message::base64(&[0; 8]), "AAAAAAAAAAA=");
    assert_eq!(message::base64(b"ab"), "YWI=");
    assert_eq!(metrics::cpu_ticks("1 (a ) b) S 2 3 4 5 6 7 8 9 10 11 30 12 13"), Some(42));
}
