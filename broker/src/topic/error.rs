//! Why a topic refused. One closed enum for producers, consumers and REST alike; what each means on the wire is decided by
//! `service/wire_error.rs` and `rest`, never here.

use crate::namespace::ownership::Member;
use geminga_common::error::Code;
use geminga_common::names::TopicName;

/// A refusal.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum TopicError {
    /// The topic is being unloaded or the broker stops; try again.
    #[error("topic is not loaded on this broker right now; try again")]
    NotReady,
    /// Another broker serves the topic.
    #[error("topic is served by {}; look it up again", .0.pulsar_url)]
    NotOwner(Box<Member>),
    /// No such topic, and it may not be created.
    #[error("topic {0} does not exist")]
    NotFound(TopicName),
    /// No such namespace.
    #[error("namespace of {0} does not exist")]
    NamespaceNotFound(TopicName),
    /// No such subscription, and it may not be created.
    #[error("subscription {0} does not exist")]
    SubscriptionNotFound(String),
    /// A live producer holds the name, or an exclusive one the topic.
    #[error("producer {0} is already connected to the topic")]
    ProducerBusy(String),
    /// An exclusive producer stands in the way.
    #[error("topic has an exclusive producer")]
    ProducerExclusive,
    /// A newer exclusive producer took over.
    #[error("producer is fenced: the topic epoch has moved on")]
    ProducerFenced,
    /// The subscription has a consumer of another kind, or an exclusive one.
    #[error("{0}")]
    ConsumerBusy(&'static str),
    /// Key ranges overlap.
    #[error("{0}")]
    ConsumerAssign(&'static str),
    /// The topic takes no more messages.
    #[error("topic was terminated")]
    Terminated,
    /// Not possible for this kind of thing.
    #[error("{0}")]
    NotAllowed(String),
    /// Something is attached that forbids it.
    #[error("{0}")]
    Precondition(String),
    /// It is there already.
    #[error("{0}")]
    Conflict(String),
    /// The ledger could not take or give entries.
    #[error("{0}: storage: {1}")]
    Persistence(Code, String),
    /// What is asked for is lost for good, and somebody accepted that.
    #[error("{0}")]
    Lost(String),
    /// The disk is full: producers are kept out for so long.
    #[error("{}: the store's disk is full; make room, and try again in {} ms", geminga_common::error::Code::DISK_FULL, .0.as_millis())]
    DiskFull(std::time::Duration),
    /// Metadata could not be read or written.
    #[error("{0}: metadata: {1}")]
    Metadata(Code, String),
    /// Schemas do not match.
    #[error("{0}")]
    IncompatibleSchema(String),
    /// The name is not a topic name.
    #[error("{0}")]
    InvalidName(String),
    /// The backlog is larger or older than its quota allows; the policy says what the client is to do about it.
    #[error("Cannot create producer on topic with backlog quota exceeded ({})", .0.name())]
    QuotaExceeded(super::lifecycle::Exceeded),
    /// A limit of the namespace or topic is reached.
    #[error("{0}")]
    Limit(String),
}

/// An answer that is always given: dropped unanswered, it says `NotReady`.
pub(crate) struct Reply<T>(Option<Box<dyn FnOnce(Result<T, TopicError>) + Send>>);

impl<T: Send + 'static> Reply<T> {
    /// A reply that calls `answer`.
    pub(crate) fn new(answer: impl FnOnce(Result<T, TopicError>) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    /// A reply that can be awaited.
    #[must_use]
    pub(crate) fn channel() -> (Self, tokio::sync::oneshot::Receiver<Result<T, TopicError>>) {
        let (send, receive) = tokio::sync::oneshot::channel();
        // A receiver that is gone no longer wants to know.
        (Self::new(move |answer| drop(send.send(answer))), receive)
    }
}

impl<T> Reply<T> {
    /// Answers.
    pub(crate) fn send(mut self, answer: Result<T, TopicError>) {
        if let Some(call) = self.0.take() {
            call(answer);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call(Err(TopicError::NotReady));
        }
    }
}
