//! What REST asks of the broker. The broker implements [`BrokerApi`]; tests bring a small fake. REST itself fans out over
//! partitions and looks at policies; every topic named here is a plain topic or one partition.
//!
//! Why a trait: the routes, bodies and status codes are a large surface that must be testable without topics and ledgers.

use super::stats::{InternalStats, TopicStats};
use bytes::Bytes;
use futures::future::BoxFuture;
use geminga_bookie_client::placement::Figures as PlacementFigures;
use geminga_common::ids::{EntryId, LedgerId, Position};
use geminga_common::names::{BundleRange, NamespaceName, SubscriptionName, TopicName};
use std::collections::BTreeMap;

/// Why the broker did not do it; split by what REST answers.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ApiError {
    /// No such topic (404).
    #[error("Topic {0} not found")]
    TopicNotFound(TopicName),
    /// No such subscription (404).
    #[error("Subscription {subscription} not found for topic {topic}")]
    SubscriptionNotFound {
        /// The topic.
        topic: TopicName,
        /// The subscription.
        subscription: SubscriptionName,
    },
    /// No such message (404).
    #[error("{0}")]
    MessageNotFound(String),
    /// It is there already (409).
    #[error("{0}")]
    Exists(String),
    /// Producers, consumers or another operation stand in the way (412).
    #[error("{0}")]
    Busy(String),
    /// Nothing was to be done, where Pulsar says so with 409.
    #[error("{0}")]
    NothingToDo(String),
    /// Not possible for this kind of topic (405).
    #[error("{0}")]
    NotAllowed(String),
    /// The request does not fit the topic's state (412).
    #[error("{0}")]
    Precondition(String),
    /// This release does not do that (501).
    #[error("{0}")]
    NotSupported(String),
    /// Another broker serves it, whose HTTP service URL this is (307).
    #[error("served by {0}")]
    Elsewhere(String),
    /// More than can be stored; asking again does not help (413).
    #[error("{0}")]
    TooLarge(String),
    /// Not now; ask again (503).
    #[error("{0}")]
    Unavailable(String),
    /// Storage or metadata failed (500).
    #[error("{0}")]
    Internal(String),
}

/// What every operation answers with.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ApiError>>;

/// A place at or before an entry: `entry` is `None` in a ledger without entries, `ledger` is `None` in a topic that has never
/// had one. REST prints both as −1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The ledger.
    pub ledger: Option<LedgerId>,
    /// The entry.
    pub entry: Option<EntryId>,
}

impl From<Position> for Place {
    fn from(at: Position) -> Self {
        Self { ledger: Some(at.ledger), entry: Some(at.entry) }
    }
}

/// Where a subscription is put.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Before the oldest message.
    Earliest,
    /// Behind the newest.
    Latest,
    /// At a message; `exclusive` begins behind it. Within a batch, the members before `batch_index` are skipped.
    At {
        /// The entry; clamped to what the topic has.
        position: Position,
        /// The member of a batch, if one is meant.
        batch_index: Option<u32>,
        /// Whether the message itself is left out.
        exclusive: bool,
    },
    /// At the first message published at or after this time, in milliseconds since 1970.
    Time(u64),
}

/// A stored entry as dispatch would send it: optional broker-entry block, magic, checksum, metadata, payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredEntry {
    /// Where it is.
    pub position: Position,
    /// Its bytes.
    pub bytes: Bytes,
}

/// What to compute for stats beyond the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatsOptions {
    /// Count backlogs exactly, in messages not acknowledged instead of entries.
    pub precise_backlog: bool,
    /// Fill `backlogSize` per subscription.
    pub subscription_backlog_size: bool,
    /// Fill `earliestMsgPublishTimeInBacklog`, which reads an entry per subscription.
    pub earliest_time_in_backlog: bool,
}

/// How an offload that somebody asked for goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum OffloadState {
    /// None was asked for.
    #[default]
    NotRun,
    /// It is under way.
    Running,
    /// It is done; the first ledger that is not in the object store, if there is one.
    Success(Option<LedgerId>),
    /// It has failed.
    Error(String),
}

/// What a scan of a backlog found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BacklogAnalysis {
    /// Entries not fully acknowledged.
    pub entries: u64,
    /// Messages in them.
    pub messages: u64,
    /// Marker messages among them.
    pub markers: u64,
    /// Whether the scan stopped at its bound.
    pub aborted: bool,
    /// First and last entry of the backlog.
    pub span: Option<(Position, Position)>,
}

/// Where a topic is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Served {
    /// The broker's id, `host:port` of its HTTP address.
    pub broker_id: String,
    /// `pulsar://…`.
    pub broker_url: String,
    /// `pulsar+ssl://…`, when there is one.
    pub broker_url_tls: Option<String>,
    /// `http://…`.
    pub http_url: String,
    /// `https://…`, when there is one.
    pub http_url_tls: Option<String>,
}

/// The broker, as REST sees it. Methods on a topic answer [`ApiError::TopicNotFound`] for one that is nowhere; a stored topic
/// that is not loaded is loaded.
pub trait BrokerApi: Send + Sync + 'static {
    // --- this broker and its neighbours
    /// This broker's addresses.
    fn this_broker(&self) -> Served;
    /// Ids of the live brokers.
    fn brokers(&self) -> Answer<'_, Vec<String>>;
    /// The broker that runs the controller's duties.
    fn leader(&self) -> Answer<'_, Served>;
    /// Ids of the bookies that accept writes or reads.
    fn bookies(&self) -> Answer<'_, Vec<String>>;
    /// Writes and reads a message end to end.
    fn health(&self) -> Answer<'_, ()>;
    /// Who serves a topic; `listener` names one of several advertised addresses.
    fn lookup<'a>(&'a self, topic: &'a TopicName, listener: Option<&'a str>) -> Answer<'a, Served>;
    /// Gives up the loaded topics of a namespace, or of one of its bundles.
    fn unload_bundles<'a>(
        &'a self,
        namespace: &'a NamespaceName,
        range: Option<BundleRange>,
    ) -> Answer<'a, ()>;

    // --- topics
    /// Loaded topics of a namespace, both domains: the only listing that unstored topics have.
    fn loaded_topics(&self, namespace: &NamespaceName) -> Vec<TopicName>;
    /// Every loaded topic with its stats, as counted already: no reading, no waiting on topics that do not answer.
    fn snapshot(&self) -> BoxFuture<'_, Vec<(TopicName, TopicStats)>>;
    /// How repairs of ledgers stand in this broker; `None` where there is nothing to repair from.
    fn repairs(&self) -> Option<crate::repair::Figures> {
        None
    }
    /// How placing ledgers stands; `None` where there is nothing to place on.
    fn placement(&self) -> Option<PlacementFigures> {
        None
    }
    /// What offloading has done for topics that are not loaded here: objects of topics that were deleted.
    fn offload_of_others(&self) -> Option<geminga_offload::meters::Figures> {
        None
    }
    /// Whether and how the object store is asked less because it said that it was too much; `None` without one.
    fn offload_throttled(&self) -> Option<geminga_offload::blob::Throttled> {
        None
    }
    /// What reading offloaded ledgers back has cost, and what is under way; `None` without an object store.
    fn offload_reads(&self) -> Option<geminga_offload::reader::Figures> {
        None
    }
    /// What the object store was asked for on behalf of each tenant, by name.
    fn offload_bills(&self) -> Vec<(String, geminga_offload::cost::Bill)> {
        Vec::new()
    }
    /// Creates a topic. [`ApiError::Exists`] when it is there.
    fn create_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()>;
    /// Deletes a topic and its ledgers. Without `force`, [`ApiError::Busy`] while clients are connected.
    fn delete_topic<'a>(&'a self, topic: &'a TopicName, force: bool) -> Answer<'a, ()>;
    /// Closes a topic; clients look it up again. One that is stored but not loaded needs nothing.
    fn unload_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()>;
    /// Ends a topic for good; the place of its last message. Repeatable.
    fn terminate_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, Place>;
    /// Drops all messages: every subscription is moved to the end and full ledgers are deleted.
    fn truncate_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()>;
    /// Deletes ledgers that nobody needs any more, now.
    fn trim_topic<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, ()>;
    /// Kind of the configured object store, in Pulsar's words (`aws-s3`, `filesystem`); `None` without one.
    fn offload_driver(&self) -> Option<&'static str>;
    /// Sends every closed ledger before a position to the object store, in the background. [`ApiError::Exists`] while that is
    /// under way already.
    fn offload_topic<'a>(&'a self, topic: &'a TopicName, before: Position) -> Answer<'a, ()>;
    /// How that goes.
    fn offload_status<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, OffloadState>;
    /// Stats of a topic.
    fn topic_stats<'a>(&'a self, topic: &'a TopicName, options: StatsOptions) -> Answer<'a, TopicStats>;
    /// Ledgers and cursors of a topic.
    fn internal_stats<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, InternalStats>;

    // --- messages
    /// Place of the last message.
    fn last_message_id<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, Place>;
    /// Place of the first message published at or after a time; the end when there is none.
    fn find_by_time<'a>(&'a self, topic: &'a TopicName, since_ms: u64) -> Answer<'a, Place>;
    /// One entry. [`ApiError::MessageNotFound`] beyond the end and in unknown ledgers.
    fn read_entry<'a>(&'a self, topic: &'a TopicName, at: Position) -> Answer<'a, StoredEntry>;
    /// The n-th entry (from 1) from the beginning or the end, clamped to what there is; `None` in an empty topic.
    fn examine<'a>(
        &'a self,
        topic: &'a TopicName,
        from_start: bool,
        nth: u64,
    ) -> Answer<'a, Option<StoredEntry>>;
    /// Stored bytes behind an entry, itself included.
    fn backlog_bytes_from<'a>(&'a self, topic: &'a TopicName, from: Place) -> Answer<'a, u64>;

    // --- subscriptions
    /// Names of the durable subscriptions, sorted.
    fn subscriptions<'a>(&'a self, topic: &'a TopicName) -> Answer<'a, Vec<String>>;
    /// Creates a durable subscription. [`ApiError::Exists`] when it is there.
    fn create_subscription<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        at: Target,
        properties: BTreeMap<String, String>,
    ) -> Answer<'a, ()>;
    /// Deletes a subscription. Without `force`, [`ApiError::Busy`] while consumers are connected.
    fn delete_subscription<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        force: bool,
    ) -> Answer<'a, ()>;
    /// Acknowledges the whole backlog.
    fn skip_all<'a>(&'a self, topic: &'a TopicName, subscription: &'a SubscriptionName) -> Answer<'a, ()>;
    /// Acknowledges the next `count` entries; more than there are is fine.
    fn skip<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        count: u64,
    ) -> Answer<'a, ()>;
    /// Acknowledges what is older than this many seconds; 0 is everything. [`ApiError::NothingToDo`] when nothing is.
    fn expire_by_age<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        seconds: u64,
    ) -> Answer<'a, ()>;
    /// Acknowledges everything up to a message; `exclusive` leaves that message out.
    fn expire_to<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        at: Position,
        exclusive: bool,
    ) -> Answer<'a, ()>;
    /// Moves a subscription; its consumers reconnect.
    fn reset_cursor<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        to: Target,
    ) -> Answer<'a, ()>;
    /// The n-th entry (from 1) of the backlog, without acknowledging it. [`ApiError::MessageNotFound`] beyond its end.
    fn peek<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        nth: u64,
    ) -> Answer<'a, StoredEntry>;
    /// Counts a backlog by reading it.
    fn analyze_backlog<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
    ) -> Answer<'a, BacklogAnalysis>;
    /// A subscription's free properties.
    fn subscription_properties<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
    ) -> Answer<'a, BTreeMap<String, String>>;
    /// Replaces a subscription's free properties.
    fn set_subscription_properties<'a>(
        &'a self,
        topic: &'a TopicName,
        subscription: &'a SubscriptionName,
        properties: BTreeMap<String, String>,
    ) -> Answer<'a, ()>;
}
