//! A broker that keeps topics and subscriptions in memory, and the real REST server over it.

use super::super::Rest;
use super::super::api::*;
use super::super::stats::{InternalStats, SubscriptionStats, TopicStats};
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
pub(super) type Subs = BTreeMap<String, BTreeMap<String, String>>;

pub(super) struct Fake {
    pub(super) topics: Mutex<BTreeMap<TopicName, Subs>>,
    pub(super) calls: Mutex<Vec<String>>,
    pub(super) namespaces: Namespaces,
    pub(super) driver: Mutex<Option<&'static str>>,
    /// A topic that another broker serves.
    pub(super) away: Mutex<Option<TopicName>>,
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

pub(super) fn ready<'a, T: Send + 'a>(answer: Result<T, ApiError>) -> Answer<'a, T> {
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
    fn offload_driver(&self) -> Option<&'static str> {
        *self.driver.lock()
    }
    fn offload_topic<'a>(&'a self, _: &'a TopicName, _: Position) -> Answer<'a, ()> {
        ready(Ok(()))
    }
    fn offload_status<'a>(&'a self, _: &'a TopicName) -> Answer<'a, OffloadState> {
        ready(Ok(OffloadState::NotRun))
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
        if self.away.lock().as_ref() == Some(topic) {
            return ready(Err(ApiError::Elsewhere("http://other:8080".into())));
        }
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

pub(super) fn entry(position: Position) -> StoredEntry {
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

pub(super) struct Server {
    pub(super) port: u16,
    pub(super) tasks: TaskGroup,
    pub(super) fake: Arc<Fake>,
    pub(super) rest: Rest,
}

pub(super) async fn server() -> Server {
    let clock = Arc::new(ManualClock::at_wall_ms(1000));
    let store: Arc<dyn MetadataStore> = Arc::new(MemoryStore::new(clock.clone()));
    let tasks = TaskGroup::new();
    let namespaces = Namespaces::start(store.clone(), Defaults::of_cluster("c1"), &tasks).await.unwrap();
    namespaces.bootstrap().await.unwrap();
    let fake = Arc::new(Fake {
        topics: Mutex::default(),
        calls: Mutex::default(),
        namespaces: namespaces.clone(),
        driver: Mutex::default(),
        away: Mutex::default(),
    });
    let rest = Rest {
        namespaces,
        schemas: SchemaRegistry::new(store, "c1"),
        broker: fake.clone(),
        clock,
        version: "0.1.0".into(),
        metadata_url: "memory".into(),
        failures: Arc::default(),
        doors: crate::doors::Doors::new(crate::doors::Bounds::NONE),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (served, stop) = (rest.clone(), tasks.token());
    tasks.spawn("rest", OnFailure::Log, async move { served.serve(listener, stop).await });
    Server { port, tasks, fake, rest }
}

impl Server {
    /// The status, the head and the body.
    pub(super) async fn ask(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &str,
    ) -> (u16, String, String) {
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

    pub(super) async fn table(&self, rows: &[(&str, &str, &str, u16, &str)]) {
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
