//! A topic: one owner task that holds its managed ledger, its producers and its subscriptions, and a cheap handle that puts
//! messages into its mailbox.
//!
//! | file | thought |
//! |---|---|
//! | [`mod@self`] | the handle and what can be asked of a topic |
//! | `worker` | the owner task: drains the mailbox, then appends, dispatches and persists once per drain |
//! | `codes` | which code a failure of storage or metadata has |
//! | `producers` | access modes, names, epochs (pure) |
//! | `subscription` | one subscription: dispatcher, acknowledgement state, what is dirty |
//! | `delivery` | entries on their way to consumers |
//! | `lifecycle` | time to live, backlog quotas, retention (pure) |
//! | `aging` | carries out what the lifecycle engine decides; policies as they change |
//! | `offload`, `release` | closed ledgers on their way to the object store, and their bookie copies let go |
//! | `meter` | counters with rates (pure) |
//! | `throttle` | the bound on publishing (pure) |
//! | `requests` | subscribe, seek, unsubscribe and what REST asks |
//! | `peer`, `outbox` | the client at the other end |
//! | `mailbox` | many put in, one takes all |
//!
//! Order within one drain: everything taken in, one append, then events of the ledger, then dispatch, then persistence. A
//! receipt is queued only when the ledger says that the entry is acknowledged.

pub(crate) mod admin;
mod admission;
pub(crate) mod aging;
mod codes;
mod delivery;
mod error;
mod farewell;
pub(crate) mod lifecycle;
mod log;
mod lost;
pub(crate) mod mailbox;
pub(crate) mod messages;
pub(crate) mod meter;
pub(crate) mod offload;
pub(crate) mod outbox;
pub(crate) mod peer;
mod producers;
mod release;
mod requests;
pub(crate) mod setbacks;
mod subscription;
mod throttle;
mod unreadable;
pub(crate) mod worker;

pub(crate) use error::{Reply, TopicError};
use geminga_common::names::{SubscriptionName, TopicName};
pub(crate) use lost::LOST_CURSORS;
use mailbox::Mailbox;
use messages::Message;
use std::sync::Arc;

/// A producer of a topic; unique in the topic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct ProducerKey(pub(crate) u64);

/// Where a connection's producer publishes to.
#[derive(Clone)]
pub(crate) struct ProducerRef {
    /// The topic.
    pub(crate) topic: TopicHandle,
    /// The producer there.
    pub(crate) key: ProducerKey,
    /// Its name, told again when the client asks again.
    pub(crate) name: Arc<str>,
    /// Version of its schema; empty without one.
    pub(crate) schema_version: bytes::Bytes,
}

/// Where a connection's consumer consumes from.
#[derive(Clone)]
pub(crate) struct ConsumerRef {
    /// The topic.
    pub(crate) topic: TopicHandle,
    /// The subscription there.
    pub(crate) subscription: SubscriptionName,
    /// The consumer there.
    pub(crate) key: crate::dispatch::ConsumerKey,
}

/// A loaded topic. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct TopicHandle {
    name: Arc<TopicName>,
    mailbox: Mailbox<Message>,
}

impl TopicHandle {
    /// A handle on a topic whose worker takes from the other end of `mailbox`.
    pub(crate) fn new(name: Arc<TopicName>, mailbox: Mailbox<Message>) -> Self {
        Self { name, mailbox }
    }

    /// The topic's name.
    pub(crate) fn name(&self) -> &Arc<TopicName> {
        &self.name
    }

    /// Hands a message to the topic's task.
    pub(crate) fn put(&self, message: Message) {
        self.mailbox.put(message);
    }

    /// Whether both lead to the same life of the topic.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.mailbox.is_same(&other.mailbox)
    }

    /// Asks something and waits for the answer.
    ///
    /// # Errors
    /// The topic's refusal, or `NotReady` when it is gone.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(Reply<T>) -> Message,
    ) -> Result<T, TopicError> {
        let (reply, answer) = Reply::channel();
        self.put(question(reply));
        answer.await.unwrap_or(Err(TopicError::NotReady))
    }
}
