//! What can be put into a topic's mailbox.

use super::peer::Peer;
use super::{ProducerKey, Reply};
use crate::dispatch::ConsumerKey;
use crate::managed_ledger;
use geminga_bookie_client::entry::Payload;
use geminga_bookie_client::registry::absence::Suspect;
use geminga_common::budget::Permit;
use geminga_common::ids::{ConsumerId, Position, ProducerId, RequestId};
use geminga_common::names::SubscriptionName;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A message to a topic's owner task.
pub(crate) enum Message {
    /// Messages to be stored, in order.
    Publish(Publish),
    /// Acknowledgements of one consumer.
    Ack(Ack),
    /// More permits for a consumer.
    Flow(ConsumerKey, u32),
    /// Messages to be delivered again.
    Redeliver(Redeliver),
    /// A consumer's connection takes messages again.
    Writable(ConsumerKey),
    /// Something the managed ledger waited for has happened.
    Ledger(managed_ledger::Event),
    /// A cursor write ended.
    Persisted(Persisted),
    /// A producer wants in.
    AddProducer(Box<AddProducer>, Reply<Admission>),
    /// A producer has left or its connection has ended; answered once its last send is decided.
    RemoveProducer(ProducerKey, Option<Reply<()>>),
    /// A consumer wants in.
    Subscribe(Box<Subscribe>, Reply<SubscribeOutcome>),
    /// A consumer has left or its connection has ended.
    RemoveConsumer(ConsumerKey, Option<Reply<()>>),
    /// Delete the subscription of a consumer.
    Unsubscribe {
        /// The consumer that asks.
        consumer: ConsumerKey,
        /// Even when others are attached.
        force: bool,
        /// Answer.
        reply: Reply<()>,
    },
    /// Move a subscription.
    Seek {
        /// Which one.
        subscription: SubscriptionName,
        /// The consumer that wants it; `None` for an administrator.
        asks: Option<ConsumerKey>,
        /// Where to.
        to: SeekTarget,
        /// Answer, once the move is durable.
        reply: Reply<()>,
    },
    /// The last message and a subscription's mark-delete position.
    LastMessageId(Option<SubscriptionName>, Reply<LastMessage>),
    /// Whether nobody has used the topic yet: no producer, no consumer, no data.
    IsIdle(Reply<bool>),
    /// Figures of a consumer.
    ConsumerStats(ConsumerKey, Reply<ConsumerFigures>),
    /// What REST asks.
    Admin(super::admin::Request),
    /// A policy of some namespace or topic has changed: read again what holds here.
    PoliciesChanged,
    /// These bookies are said to be gone: does the open ledger have one of them?
    Bookies(Arc<Vec<Suspect>>),
    /// Something asynchronous has ended; goes on on the owner's task.
    Done(Box<dyn FnOnce(&mut super::worker::Worker) + std::marker::Send>),
    /// Leave this broker: drain, persist, close the ledger.
    Unload(Reply<()>),
    /// Leave at once: the topic is another broker's, nothing of it may be closed or written here.
    Leave(Reply<()>),
}

/// A run of sends of one producer.
pub(crate) struct Publish {
    /// The producer.
    pub(crate) producer: ProducerKey,
    /// The sends, in order.
    pub(crate) sends: Vec<Send>,
    /// Their share of the broker's publish budget; released when they are acknowledged.
    pub(crate) permit: Permit,
}

/// One SEND.
pub(crate) struct Send {
    /// First sequence id.
    pub(crate) sequence_id: u64,
    /// Highest sequence id of a batch, echoed as sent.
    pub(crate) highest_sequence_id: Option<u64>,
    /// Messages in the entry.
    pub(crate) messages: u32,
    /// The frame from magic and checksum on.
    pub(crate) payload: Payload,
    /// Whether it is a chunk of a larger message, for stats.
    pub(crate) chunk: bool,
}

/// An acknowledged entry or part of one.
pub(crate) struct AckedId {
    /// The entry.
    pub(crate) position: Position,
    /// Messages of the batch; 0 when the client does not say.
    pub(crate) batch_size: u32,
    /// Bits still to be processed when only part of a batch is acknowledged; empty for the whole entry.
    pub(crate) ack_set: Vec<u64>,
}

/// Acknowledgements.
pub(crate) struct Ack {
    /// Who acknowledges.
    pub(crate) consumer: ConsumerKey,
    /// Everything up to and including the id, else just the ids.
    pub(crate) cumulative: bool,
    /// The ids.
    pub(crate) ids: Vec<AckedId>,
    /// Key-value pairs stored with the mark-delete position.
    pub(crate) properties: Vec<(String, u64)>,
    /// Answered when durable; without it a crash may bring the messages back.
    pub(crate) receipt: Option<Reply<()>>,
}

/// A request for redelivery.
pub(crate) struct Redeliver {
    /// Who asks.
    pub(crate) consumer: ConsumerKey,
    /// These; `None`: everything pending.
    pub(crate) positions: Option<Vec<Position>>,
    /// The consumer's epoch, echoed in messages sent from now on.
    pub(crate) epoch: Option<u64>,
}

/// The end of a cursor write.
pub(crate) struct Persisted {
    /// The subscription.
    pub(crate) subscription: SubscriptionName,
    /// Which life of it: a subscription that was deleted and made again ignores old answers.
    pub(crate) incarnation: u64,
    /// What was written.
    pub(crate) ticket: u64,
    /// Whether it is durable.
    pub(crate) result: Result<(), crate::cursor::WriteError>,
}

/// How a producer shares the topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AccessMode {
    /// With others.
    Shared,
    /// Alone, or not at all.
    Exclusive,
    /// Alone, waiting for its turn.
    WaitForExclusive,
    /// Alone, throwing the others out.
    ExclusiveWithFencing,
}

/// A producer that wants in.
pub(crate) struct AddProducer {
    /// Its connection.
    pub(crate) peer: Arc<Peer>,
    /// Its id there.
    pub(crate) id: ProducerId,
    /// What its client asked with.
    pub(crate) request: RequestId,
    /// Its name; generated when empty.
    pub(crate) name: String,
    /// Raised by the client at each reconnect.
    pub(crate) epoch: u64,
    /// Access mode.
    pub(crate) mode: AccessMode,
    /// The exclusive term the client believes to hold.
    pub(crate) topic_epoch: Option<u64>,
    /// Metadata, for stats.
    pub(crate) metadata: BTreeMap<String, String>,
    /// Subscription to be created with it.
    pub(crate) initial_subscription: Option<SubscriptionName>,
    /// Encrypts its messages.
    pub(crate) encrypted: bool,
    /// Told when a waiting producer gets its turn.
    pub(crate) turn: Arc<dyn Fn(Admitted) + std::marker::Send + Sync>,
}

/// A producer that is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Admitted {
    /// Its key in the topic.
    pub(crate) key: ProducerKey,
    /// Its name.
    pub(crate) name: String,
    /// Epoch of its exclusive term.
    pub(crate) topic_epoch: Option<u64>,
    /// May publish now; else it waits for its turn.
    pub(crate) ready: bool,
}

/// How admission ended.
pub(crate) enum Admission {
    /// In.
    Admitted(Admitted),
    /// Someone holds the name: see whether they live, then ask again.
    HeldBy(Arc<Peer>, String),
}

/// Where a new subscription starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InitialPosition {
    /// After the last message.
    Latest,
    /// At the first message.
    Earliest,
}

/// A position as clients send it: −1 (2^64−1) fields mean earliest or latest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SeekTarget {
    /// First message.
    Earliest,
    /// After the last message.
    Latest,
    /// This entry; with an ack set, part of it stays acknowledged.
    Entry(Position, Vec<u64>),
    /// First message published at or after, ms since 1970.
    Time(u64),
}

/// A consumer that wants in.
pub(crate) struct Subscribe {
    /// Its connection.
    pub(crate) peer: Arc<Peer>,
    /// Its id there.
    pub(crate) id: ConsumerId,
    /// What its client asked with.
    pub(crate) request: RequestId,
    /// Its name.
    pub(crate) name: String,
    /// The subscription.
    pub(crate) subscription: SubscriptionName,
    /// Kind of subscription.
    pub(crate) kind: crate::dispatch::SubscriptionType,
    /// 0 is served first.
    pub(crate) priority: i32,
    /// Survives its last consumer.
    pub(crate) durable: bool,
    /// Where a non-durable subscription starts.
    pub(crate) start: Option<SeekTarget>,
    /// Where a new durable subscription starts.
    pub(crate) initial: InitialPosition,
    /// Start this much before now instead.
    pub(crate) rollback_secs: u64,
    /// Metadata, for stats.
    pub(crate) metadata: BTreeMap<String, String>,
    /// Properties of a new subscription.
    pub(crate) properties: BTreeMap<String, String>,
    /// Key_Shared settings.
    pub(crate) key_shared: crate::dispatch::KeySharedMode,
    /// Key_Shared: keys may be outstanding on two consumers after a change.
    pub(crate) allow_out_of_order: bool,
    /// The consumer's epoch.
    pub(crate) epoch: Option<u64>,
    /// Create the subscription when it does not exist.
    pub(crate) may_create: bool,
    /// A new subscription's state is to be replicated to other clusters.
    pub(crate) replicated: bool,
    /// Wants the compacted view.
    pub(crate) reads_compacted: bool,
}

impl Subscribe {
    /// Whether it sees only entries of certain key hashes.
    pub(crate) fn has_ranges(&self) -> bool {
        matches!(self.key_shared, crate::dispatch::KeySharedMode::Sticky(_))
    }
}

/// How subscribing ended.
pub(crate) enum SubscribeOutcome {
    /// In.
    Subscribed(ConsumerKey),
    /// An exclusive consumer stands in the way: see whether it lives, then ask again.
    HeldBy(Arc<Peer>, &'static str),
}

/// The end of a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LastMessage {
    /// Last entry; `None` when there is none.
    pub(crate) position: Option<Position>,
    /// Index of the last message in its batch; `None` when it is not a batch.
    pub(crate) batch_index: Option<i32>,
    /// Last position acknowledged in order, as clients see it: ledger and entry, the entry −1 before the first.
    pub(crate) mark_delete: Option<(u64, i64)>,
}

/// Figures of one consumer.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct ConsumerFigures {
    /// Name.
    pub(crate) name: String,
    /// Remote address.
    pub(crate) address: String,
    /// When it connected, ISO 8601.
    pub(crate) connected_since: String,
    /// Type of its subscription.
    pub(crate) kind: String,
    /// Permits left; below 0 after a large batch.
    pub(crate) permits: i64,
    /// Messages sent and not acknowledged.
    pub(crate) unacked: u64,
    /// Held up by the limit on them.
    pub(crate) blocked: bool,
    /// Messages a second.
    pub(crate) msg_rate_out: f64,
    /// Bytes a second.
    pub(crate) msg_throughput_out: f64,
    /// Entries not acknowledged.
    pub(crate) backlog: u64,
}
