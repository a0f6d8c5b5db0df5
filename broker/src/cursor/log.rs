//! [`CursorLog`]: the durable cursors of one bundle in one chain of ordinary ledgers.
//!
//! Owner: the broker that owns the bundle; one task per log owns the writer, everyone else holds a clonable handle. What is
//! queued while an append is on its way goes out as the next append (natural batching, no timer); an idle log writes nothing,
//! and a log that never had a cursor has no ledger. A request is answered once it is durable on its ack quorum.
//!
//! Any failure of the writer or a lost race in metadata poisons the handle: every call then fails with the same reason, and the
//! bundle's owner opens the log anew. This is simpler to trust than going on: what a failed append left behind is decided by
//! recovery alone.

use super::codec::Properties;
use super::log_open;
pub use super::log_open::OpenError;
use super::log_worker::Worker;
use super::record::{CursorId, CursorImage, PROPERTIES_MAX, Record};
use super::state::{Acked, Delta};
use bytes::Bytes;
use geminga_bookie_client::ledgers::{AppendError, Ledgers, WriterEvent};
use geminga_bookie_client::record::ClosedLedger;
use geminga_bookie_client::registry::absence::Suspect;
use geminga_common::clock::Clock;
use geminga_common::ids::{OwnerEpoch, TopicId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetadataStore};
use geminga_common::names::{Bundle, SubscriptionName};
use geminga_common::rng::Rng;
use geminga_common::tasks::{OnFailure, TaskGroup};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};

/// Settings of cursor logs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// A ledger is rolled once so many bytes (or twice its snapshot, if that is more) followed its snapshot.
    pub ledger_bytes_max: u64,
    /// Most bytes that wait to be appended; beyond, [`CursorLog::persist`] hands back what it was given.
    pub queue_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { ledger_bytes_max: 64 << 20, queue_bytes_max: 16 << 20 }
    }
}

/// Writes the tombstone of a ledger: the ledger, its owner's id, the time in ms since 1970.
pub type EncodeTombstone = fn(&ClosedLedger, TopicId, u64) -> Bytes;

/// What a cursor log works with.
#[derive(Clone)]
pub struct Deps {
    /// The ledger protocol.
    pub ledgers: Arc<dyn Ledgers>,
    /// Cluster metadata.
    pub metadata: Arc<dyn MetadataStore>,
    /// Key layout of the cluster.
    pub keys: Keys,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Runs the log's task.
    pub tasks: TaskGroup,
    /// Source of op ids.
    pub rng: Arc<Mutex<Rng>>,
    /// Must hold in every transaction: that this process owns the bundle.
    pub guard: Vec<Compare>,
    /// The epoch of that ownership.
    pub owner_epoch: OwnerEpoch,
    /// Told when a deletion could not be finished: its tombstone stays for the sweep.
    pub tombstones_left: Arc<Notify>,
    /// The stored form of tombstones, which managed ledgers define.
    pub tombstone: EncodeTombstone,
    /// Settings.
    pub config: Config,
}

/// Why a log takes no more writes. The outcome of requests that got this answer is unknown; open the log anew to learn it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failed {
    /// The writer failed.
    #[error("cursor log cannot be written: {0}")]
    Writer(#[from] AppendError),
    /// Another owner has changed the log's record.
    #[error("cursor log has another owner")]
    Lost,
    /// Metadata or bookies could not be reached when a ledger was needed.
    #[error("no ledger for the cursor log can be had now")]
    Unavailable,
    /// The log was closed or its process is stopping.
    #[error("cursor log is closed")]
    Closed,
}

/// Why a write was not made, or is not known to be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WriteError {
    /// The subscription has a cursor already.
    #[error("the subscription exists already")]
    AlreadyExists,
    /// There is no such cursor.
    #[error("cursor {0} does not exist")]
    NoSuchCursor(CursorId),
    /// Properties are too long.
    #[error("properties of {size} bytes are above the limit of {PROPERTIES_MAX}")]
    TooLarge {
        /// Their size in bytes.
        size: usize,
    },
    /// Too much is queued; try again later. Nothing was done.
    #[error("cursor log is busy")]
    Busy,
    /// The log is poisoned.
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// Called once, from the log's task or the caller's; must not block.
pub type Done = Box<dyn FnOnce(Result<(), WriteError>) + Send>;

/// A delta that found the queue full: mark it dirty again ([`super::AckState::restore_delta`]) and come back later.
pub struct QueueFull {
    /// What was not queued.
    pub delta: Delta,
    /// Its callback, not called.
    pub done: Done,
}

impl std::fmt::Debug for QueueFull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueFull").field("delta", &self.delta).finish_non_exhaustive()
    }
}

/// A callback that is called in any case: dropped unanswered, it tells that the log is closed.
pub(super) struct Reply(Option<Done>);

impl Reply {
    pub(super) fn new(done: Done) -> Self {
        Self(Some(done))
    }

    pub(super) fn send(mut self, result: Result<(), WriteError>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(Failed::Closed.into()));
        }
    }
}

/// The cursors of a topic: name, id, state.
pub type Subscriptions = Vec<(SubscriptionName, CursorId, CursorImage)>;

pub(super) enum Command {
    Create {
        topic: TopicId,
        subscription: SubscriptionName,
        image: CursorImage,
        reply: oneshot::Sender<Result<CursorId, WriteError>>,
    },
    Write(Record, Reply),
    Query(TopicId, oneshot::Sender<Result<Subscriptions, WriteError>>),
    Close(Reply),
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) commands: Vec<Command>,
    pub(super) bytes: usize,
    pub(super) events: Vec<WriterEvent>,
    /// Bookies that are said to be gone.
    pub(super) suspects: Vec<Arc<Vec<Suspect>>>,
    pub(super) failed: Option<Failed>,
    /// No handle is left.
    pub(super) abandoned: bool,
}

/// What handles and the task share.
pub(super) struct Shared {
    pub(super) queue: Mutex<Queue>,
    pub(super) wake: Notify,
    bytes_max: usize,
}

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.queue.lock().abandoned = true;
        self.0.wake.notify_one();
    }
}

/// A handle on a cursor log.
#[derive(Clone)]
pub struct CursorLog {
    handle: Arc<Handle>,
}

impl std::fmt::Debug for CursorLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CursorLog").finish_non_exhaustive()
    }
}

impl CursorLog {
    /// Recovers and replays the log of a bundle, and starts its task. Writes nothing unless a ledger was left open.
    ///
    /// # Errors
    /// The log cannot be read in full now; without all of it, nothing of it may be used.
    pub async fn open(deps: Deps, bundle: &Bundle) -> Result<Self, OpenError> {
        let opened = log_open::open(&deps, bundle).await?;
        let bytes_max = deps.config.queue_bytes_max;
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Notify::new(), bytes_max });
        let worker = Worker::new(deps.clone(), bundle, opened, shared.clone());
        deps.tasks.spawn(format!("cursor log {bundle}"), OnFailure::Log, worker.run());
        Ok(Self { handle: Arc::new(Handle(shared)) })
    }

    /// The cursors of a topic, as durable as they are told.
    ///
    /// # Errors
    /// The log is poisoned.
    pub async fn subscriptions(&self, topic: TopicId) -> Result<Subscriptions, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.push(Command::Query(topic, reply), 64)?;
        answer.await.unwrap_or_else(|_| Err(self.failure().into()))
    }

    /// Makes a cursor durable.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn create(
        &self,
        topic: TopicId,
        subscription: SubscriptionName,
        image: CursorImage,
    ) -> Result<CursorId, WriteError> {
        check_properties(&image.properties)?;
        check_numbers(&image.ack_properties)?;
        let size = 128 + subscription.as_str().len() + image.acked.size();
        let (reply, answer) = oneshot::channel();
        self.push(Command::Create { topic, subscription, image, reply }, size)?;
        answer.await.unwrap_or_else(|_| Err(self.failure().into()))
    }

    /// Removes a cursor.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn delete(&self, cursor: CursorId) -> Result<(), WriteError> {
        self.write(Record::Delete(cursor), 64).await
    }

    /// Removes all cursors of a topic; fine if there are none.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn delete_topic(&self, topic: TopicId) -> Result<(), WriteError> {
        self.write(Record::DeleteTopic(topic), 64).await
    }

    /// Makes a seek durable: replaces what is acked, goes back too. Deltas queued before it come before it.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn reset(&self, cursor: CursorId, acked: Acked) -> Result<(), WriteError> {
        let size = 64 + acked.size();
        self.write(Record::Reset(cursor, acked), size).await
    }

    /// Replaces the properties of a subscription.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn update_properties(
        &self,
        cursor: CursorId,
        properties: Properties,
    ) -> Result<(), WriteError> {
        let size = 64 + check_properties(&properties)?;
        self.write(Record::Properties(cursor, properties), size).await
    }

    /// Queues acks; `done` is called once they are durable, or with the reason why that is not known.
    ///
    /// # Errors
    /// The queue is full: everything comes back.
    pub fn persist(&self, cursor: CursorId, delta: Delta, done: Done) -> Result<(), QueueFull> {
        if let Err(error) = check_numbers(delta.ack_properties.as_deref().unwrap_or_default()) {
            done(Err(error));
            return Ok(());
        }
        let shared = &self.handle.0;
        let size = delta.size();
        let mut queue = shared.queue.lock();
        if let Some(failed) = queue.failed.clone() {
            drop(queue); // the callback may call back in
            done(Err(failed.into()));
            return Ok(());
        }
        if queue.bytes > 0 && queue.bytes + size > shared.bytes_max {
            return Err(QueueFull { delta, done });
        }
        queue.bytes += size;
        queue.commands.push(Command::Write(Record::Delta(cursor, delta), Reply::new(done)));
        drop(queue);
        shared.wake.notify_one();
        Ok(())
    }

    /// Writes what is queued and closes the open ledger, so that the next owner need not recover it. The handle is of no use
    /// afterwards.
    ///
    /// # Errors
    /// The log is poisoned, or the close could not be committed; the next owner recovers.
    pub async fn close(&self) -> Result<(), WriteError> {
        let (done, answer) = oneshot::channel();
        self.push(Command::Close(reply_to(done)), 0)?;
        answer.await.unwrap_or_else(|_| Err(self.failure().into()))
    }

    async fn write(&self, record: Record, size: usize) -> Result<(), WriteError> {
        let (done, answer) = oneshot::channel();
        self.push(Command::Write(record, reply_to(done)), size)?;
        answer.await.unwrap_or_else(|_| Err(self.failure().into()))
    }

    /// These bookies are said to be gone: a member of the open ledger among them is asked, and replaced if it does not answer as
    /// who it was.
    pub fn probe(&self, suspects: Arc<Vec<Suspect>>) {
        self.handle.0.queue.lock().suspects.push(suspects);
        self.handle.0.wake.notify_one();
    }

    /// Whether it takes nothing any more: open it again.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.handle.0.queue.lock().failed.is_some()
    }

    fn push(&self, command: Command, size: usize) -> Result<(), WriteError> {
        let shared = &self.handle.0;
        let mut queue = shared.queue.lock();
        if let Some(failed) = &queue.failed {
            let failed = failed.clone();
            drop(queue); // before the command, whose reply may call back in
            return Err(failed.into());
        }
        if queue.bytes > 0 && queue.bytes + size > shared.bytes_max {
            drop(queue);
            return Err(WriteError::Busy);
        }
        queue.bytes += size;
        queue.commands.push(command);
        drop(queue);
        shared.wake.notify_one();
        Ok(())
    }

    fn failure(&self) -> Failed {
        self.handle.0.queue.lock().failed.clone().unwrap_or(Failed::Closed)
    }
}

fn reply_to(done: oneshot::Sender<Result<(), WriteError>>) -> Reply {
    Reply::new(Box::new(move |result| drop(done.send(result))))
}

fn check_properties(properties: &Properties) -> Result<usize, WriteError> {
    check_size(properties.iter().map(|(key, value)| key.len() + value.len() + 20).sum())
}

fn check_numbers(properties: &[(String, u64)]) -> Result<usize, WriteError> {
    check_size(properties.iter().map(|(key, _)| key.len() + 20).sum())
}

fn check_size(size: usize) -> Result<usize, WriteError> {
    if size > PROPERTIES_MAX { Err(WriteError::TooLarge { size }) } else { Ok(size) }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
