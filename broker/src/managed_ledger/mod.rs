//! A topic's chain of ledgers: append, roll, recover, read, trim. See `README.md` for rules and decisions.
//!
//! A [`ManagedLedger`] is a component, not a task: the topic's owner task owns and drives it. No call blocks. What takes time
//! (metadata, recovery, reads from bookies) is spawned in the task group and comes back as an [`Event`] through [`Events`],
//! which queues it for the owner; the owner hands it to [`ManagedLedger::on_event`] and acts on the [`Output`]s.
//!
//! | module | what it holds |
//! |---|---|
//! | [`state`] | the pure part: chain, positions, roll and trim decisions |
//! | [`record`] | stored form of the topic record and of tombstones |
//! | `open` | reading the record, recovering what is open, creating a topic |
//! | `append` | queue, indexes, acknowledgements |
//! | `change` | transactions on the topic record, one at a time: create, roll, close, trim, terminate, delete |
//! | `commit` | one transaction to its known outcome |
//! | `adopt` | what a repairer moved in the record: taken over by changes and by reads that fail |
//! | `read`, `find` | reads with look-ahead, point reads, searches by time and index |
//! | `heal` | members that are gone are replaced without an append; ledgers that lack copies close early |
//! | `source` | where a ledger's entries come from: bookies or the object store |
//! | `offload` | what the topic's owner asks about offloading, and how a ledger is handed to the uploader |
//! | [`cache`] | entries in memory under one budget for all topics |
//! | `tombstones` | deleting what was trimmed |
//! | `topic_ids` | ids of new topics, leased in blocks |

mod adopt;
mod append;
pub mod cache;
mod change;
mod commit;
mod config;
mod find;
mod heal;
pub(crate) mod offload;
mod open;
mod read;
pub mod record;
mod source;
pub mod state;
mod stats;
#[cfg(test)]
mod tests;
mod tombstones;
pub(crate) mod topic_ids;

pub use cache::CacheBudget;
pub use config::{Config, Retention};
pub use open::{CreateMode, OpenError};
pub use stats::{LedgerStats, Stats};
pub use tombstones::sweep_tombstones;
pub use topic_ids::TopicIds;

use bytes::Bytes;
use geminga_bookie_client::entry::{HEADER_LEN, Header, Payload};
use geminga_bookie_client::ledgers::{AppendError, Ledgers, Writer, WriterEvent};
use geminga_common::clock::Clock;
use geminga_common::ids::{LedgerId, OwnerEpoch, Position, TopicId};
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetadataStore, Revision};
use geminga_common::names::TopicName;
use geminga_common::rng::Rng;
use geminga_common::tasks::TaskGroup;
use geminga_offload::Tier;
use geminga_offload::meters::Meter;
use state::State;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a managed ledger needs from its broker.
#[derive(Clone)]
pub struct Deps {
    /// The replication protocol.
    pub ledgers: Arc<dyn Ledgers>,
    /// Metadata.
    pub meta: Arc<dyn MetadataStore>,
    /// Key layout.
    pub keys: Arc<Keys>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where work beside the owner runs.
    pub tasks: TaskGroup,
    /// Memory for cached entries, shared by all topics of the broker.
    pub cache: Arc<CacheBudget>,
    /// Ids for new topics, shared by all topics of the broker.
    pub topic_ids: Arc<TopicIds>,
    /// Limits.
    pub config: Arc<Config>,
    /// The object store, where one is configured.
    pub tier: Option<Arc<Tier>>,
    /// Epoch at which this broker owns the topic's bundle.
    pub owner_epoch: OwnerEpoch,
    /// Conditions that every transaction carries: the owner key still holds our value. Empty where nobody else can own.
    pub guard: Vec<Compare>,
    /// Told when a deletion could not be finished: its tombstone stays for the sweep.
    pub tombstones_left: Arc<tokio::sync::Notify>,
    /// Whether changes of the record may be begun now. While not, ledgers grow beyond their size instead of rolling.
    pub may_change: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// Queues an event for the owner's task. Called from any thread; must not block.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// Something a managed ledger waits for has happened; opaque.
#[derive(Debug)]
pub struct Event(EventKind);

#[derive(Debug)]
enum EventKind {
    Writer(WriterEvent),
    Allocated(Result<LedgerId, geminga_common::metadata::MetaError>),
    Committed(commit::Outcome),
    Fetched(read::Fetched),
    Points(Token, Result<Vec<ReadEntry>, ReadError>),
    Found(Token, Result<Option<Position>, ReadError>),
    Seen(Arc<adopt::Seen>),
    /// Outputs are waiting.
    Wake,
}

/// Names a request whose answer comes as an [`Output`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// An entry to be appended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    /// Payload: the producer's frame from magic and CRC on.
    pub payload: Payload,
    /// Messages it holds, at least 1.
    pub messages: u32,
}

/// An entry as it is read. Cloning shares the payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Message count, index of the first message, time stamp.
    pub header: Header,
    /// The payload as it was appended.
    pub payload: Bytes,
}

impl Entry {
    /// Bytes of header and payload.
    #[must_use]
    pub fn size(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }
}

/// An entry and where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadEntry {
    /// Where it is.
    pub position: Position,
    /// What it is.
    pub entry: Entry,
}

/// How much one read may bring; at least one entry comes, whatever its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadLimit {
    /// Entries at most.
    pub entries: usize,
    /// Bytes of headers and payloads at most, beyond the first entry.
    pub bytes: usize,
}

impl ReadLimit {
    fn take<'a>(self, entries: impl Iterator<Item = &'a ReadEntry>) -> Vec<ReadEntry> {
        let mut bytes = 0;
        let within = |(n, e): &(usize, &ReadEntry)| {
            bytes += e.entry.size();
            *n == 0 || bytes <= self.bytes
        };
        entries.take(self.entries.max(1)).enumerate().take_while(within).map(|(_, e)| e.clone()).collect()
    }
}

/// Answer to a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadOutcome {
    /// Entries in order; never empty for [`ManagedLedger::read`].
    Ready(Vec<ReadEntry>),
    /// They come as [`Output::Read`].
    Pending(Token),
    /// Nothing confirmed at or after the position yet.
    AtEnd,
}

/// Why a read failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// The entries were trimmed meanwhile; what is there starts at this position.
    #[error("trimmed: the topic starts at {0}")]
    Trimmed(Position),
    /// No holder answers now; retry later.
    #[error("entry {0} cannot be read now")]
    Unavailable(Position),
    /// It cannot be read, and the only copy of it is damaged: where and what to do, in words.
    #[error("entry {0}: {1}")]
    Damaged(Position, String),
    /// Bookies no longer have it, and the object store cannot be read now; retry later.
    #[error("entry {0} cannot be read from the object store now: {1}")]
    ObjectStore(Position, String),
    /// Bookies no longer have it, and this broker has no object store.
    #[error(
        "entry {0} lies in an object store, and none is configured here: set offload.url to the one it was written to"
    )]
    NoObjectStore(Position),
    /// A quorum proves that a confirmed entry is gone: an incident, never to be skipped.
    #[error("entry {0} was confirmed but is not there")]
    Missing(Position),
    /// These entries were lost with the only copy, and that was accepted: they are gone for good, and whoever reads on passes them.
    #[error("GM-4019: entries {0} to {1} are lost for good")]
    Lost(Position, geminga_common::ids::EntryId),
}

/// Why an append was not taken; nothing of the call was.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendRefused {
    /// This entry of the call (from 0) can never be stored.
    #[error("entry of {size} bytes is above the limit of {limit}")]
    TooLarge {
        /// Which entry of the call.
        nth: usize,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// An entry must hold at least one message.
    #[error("entry {0} of the call holds no message")]
    NoMessages(usize),
    /// Too much is unacknowledged: wait for outputs and try again.
    #[error("too many bytes await acknowledgement")]
    Busy,
    /// The topic takes no more entries.
    #[error("topic is terminated")]
    Terminated,
    /// Being closed or deleted.
    #[error("managed ledger is closing")]
    Closing,
    /// Poisoned or closed: open it again.
    #[error("managed ledger is dead")]
    Dead,
}

/// Why an append that was taken failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendFailure {
    /// The writer gave up; outcomes are unknown until the topic is opened again.
    #[error(transparent)]
    Writer(#[from] AppendError),
    /// No ledger could be created: nothing was sent, the handle goes on.
    #[error("too few writable bookies for a new ledger")]
    NoBookies,
    /// Metadata did not answer in time: nothing was sent, the handle goes on.
    #[error("metadata store is unavailable")]
    MetadataUnavailable,
    /// The handle was poisoned.
    #[error("managed ledger was poisoned")]
    Poisoned,
    /// The topic was deleted.
    #[error("topic was deleted")]
    Deleted,
}

/// Why a change of the topic record failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    /// Metadata did not answer in time; nothing was written.
    #[error("metadata store is unavailable")]
    MetadataUnavailable,
    /// The topic is terminated already.
    #[error("topic is terminated")]
    Terminated,
    /// The ledger is not where it would have to be for this.
    #[error(transparent)]
    Offload(#[from] geminga_offload::state::Refused),
    /// The handle is dead, or died before the outcome was known.
    #[error("managed ledger is dead")]
    Dead,
}

/// Why a handle is dead. Drop it and open again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoisonReason {
    /// Another owner wrote the topic record.
    #[error("the topic record was written by another owner")]
    RecordLost,
    /// The writer failed.
    #[error("writer failed: {0}")]
    Writer(AppendError),
    /// A transaction's outcome stayed unknown for too long.
    #[error("metadata store does not tell the outcome of a transaction")]
    OutcomeUnknown,
}

/// What the owner is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// The oldest `count` appended entries are durable, at consecutive positions of one ledger.
    Appended {
        /// Position of the first of them.
        first: Position,
        /// How many.
        count: u32,
    },
    /// The oldest `count` appended entries failed.
    AppendFailed {
        /// How many.
        count: u32,
        /// Why.
        error: AppendFailure,
    },
    /// Answer to [`ManagedLedger::read`] or [`ManagedLedger::read_at`].
    Read {
        /// Which.
        token: Token,
        /// The entries.
        result: Result<Vec<ReadEntry>, ReadError>,
    },
    /// Answer to a search; `Ok(None)`: nothing that late is there, the answer is the end.
    Found {
        /// Which.
        token: Token,
        /// First position that satisfies the search.
        result: Result<Option<Position>, ReadError>,
    },
    /// Ledgers were trimmed; the topic now starts here.
    Trimmed {
        /// First position.
        first: Position,
        /// Ledgers gone.
        ledgers: usize,
    },
    /// Outcome of terminate, properties, epoch, roll, close or delete.
    RecordChanged {
        /// Which.
        token: Token,
        /// Whether it is durable.
        result: Result<(), ChangeError>,
    },
    /// The handle is dead; every pending append has been failed before this.
    Poisoned(PoisonReason),
}

/// How alive a handle is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Life {
    Alive,
    /// Takes no more appends; what was taken still goes out.
    Closing,
    /// Closed, deleted or poisoned.
    Dead,
}

/// A topic's chain of ledgers. Owned by the topic's task.
pub struct ManagedLedger {
    deps: Deps,
    topic: TopicName,
    events: Events,
    rng: Rng,
    state: State,
    revision: Revision,
    /// Op id of our last write of the record.
    written: u64,
    looks: Arc<adopt::Looks>,
    life: Life,
    writer: Option<Box<dyn Writer>>,
    appends: append::Appends,
    changes: change::Changes,
    reads: read::Reads,
    cache: cache::TopicCache,
    next_token: u64,
    repair_roll: crate::repair_roll::RepairRoll,
    counters: stats::Counters,
    offloads: offload::Offloads,
    /// Keeps the topic's numbers of offloading while it is loaded.
    meter: Option<Arc<Meter>>,
}

impl std::fmt::Debug for ManagedLedger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManagedLedger")
            .field("topic", &self.topic)
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}

impl ManagedLedger {
    /// Opens a topic: reads its record, recovers and folds the ledger that its last owner left open. No ledger is created
    /// before the first append.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        deps: Deps,
        topic: TopicName,
        create: CreateMode,
        events: Events,
    ) -> Result<Self, OpenError> {
        let opened = open::open(&deps, &topic, create).await?;
        let cache = cache::TopicCache::new(&deps.cache, deps.config.chunk_bytes);
        let meter =
            deps.tier.as_ref().map(|tier| tier.meters.of(opened.state.topic_id, topic.tenant().as_str()));
        Ok(Self {
            topic,
            events,
            rng: Rng::from_system(),
            state: opened.state,
            revision: opened.revision,
            written: opened.op_id,
            looks: Arc::default(),
            life: Life::Alive,
            writer: None,
            appends: append::Appends::default(),
            changes: change::Changes::default(),
            reads: read::Reads::default(),
            cache,
            next_token: 0,
            repair_roll: Default::default(),
            counters: stats::Counters::default(),
            offloads: offload::Offloads::default(),
            meter,
            deps,
        })
    }

    /// Takes an event in; tells what came of it.
    pub fn on_event(&mut self, event: Event, out: &mut Vec<Output>) {
        match event.0 {
            EventKind::Writer(event) => self.on_writer(event, out),
            EventKind::Allocated(result) => self.on_allocated(result),
            EventKind::Committed(outcome) => self.on_committed(outcome, out),
            EventKind::Fetched(fetched) => self.on_fetched(fetched, out),
            EventKind::Points(token, result) => {
                let result = result.map_err(|e| self.or_trimmed(e));
                out.push(Output::Read { token, result });
            }
            EventKind::Found(token, result) => {
                let result = result.map_err(|e| self.or_trimmed(e));
                out.push(Output::Found { token, result });
            }
            EventKind::Seen(seen) => self.seen(&seen),
            EventKind::Wake => {}
        }
        self.advance();
        self.report(out);
    }

    /// To be called every second or so: ages and idle ledgers, retries what could not be done.
    pub fn on_tick(&mut self, out: &mut Vec<Output>) {
        self.age();
        self.advance();
        self.report(out);
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    // ---- positions -----------------------------------------------------------------------------------------------------

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// The topic's own id.
    #[must_use]
    pub fn topic_id(&self) -> TopicId {
        self.state.topic_id
    }

    /// Properties of the topic.
    #[must_use]
    pub fn properties(&self) -> &BTreeMap<String, String> {
        &self.state.properties
    }

    /// Epoch of exclusive producers; `None` before the first.
    #[must_use]
    pub fn topic_epoch(&self) -> Option<u64> {
        self.state.topic_epoch
    }

    /// Whether the topic is terminated; its last entry then is [`Self::last_confirmed`].
    #[must_use]
    pub fn is_terminated(&self) -> bool {
        self.state.terminated
    }

    /// Whether the handle is poisoned, closed or deleted.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.life == Life::Dead
    }

    /// The last durable entry ever, even if it has been trimmed.
    #[must_use]
    pub fn last_confirmed(&self) -> Option<Position> {
        self.state.last
    }

    /// The first entry that is there, or the end.
    #[must_use]
    pub fn first_position(&self) -> Position {
        self.state.first()
    }

    /// Where the next entry will be read. Once another ledger is opened, [`Self::clamp`] leads from here to it.
    #[must_use]
    pub fn end_position(&self) -> Position {
        self.state.end()
    }

    /// The position after `p`, across ledgers; the end after the last.
    #[must_use]
    pub fn next_position(&self, p: Position) -> Position {
        self.state.next(p)
    }

    /// The last entry before `p` that is there.
    #[must_use]
    pub fn previous_position(&self, p: Position) -> Option<Position> {
        self.state.previous(p)
    }

    /// The first position at or after `p` that holds an entry, or the end.
    #[must_use]
    pub fn clamp(&self, p: Position) -> Position {
        self.state.clamp(p)
    }

    /// Entries from `a` (inclusive) to `b` (exclusive).
    #[must_use]
    pub fn entries_between(&self, a: Position, b: Position) -> u64 {
        self.state.rank(b).0.saturating_sub(self.state.rank(a).0)
    }

    /// Bytes from `a` to `b`: exact for whole ledgers, by the mean entry within one.
    #[must_use]
    pub fn size_between(&self, a: Position, b: Position) -> u64 {
        self.state.rank(b).1.saturating_sub(self.state.rank(a).1)
    }

    /// The first position from which at most `bytes` lie before the end; as exact as [`Self::size_between`].
    #[must_use]
    pub fn position_leaving(&self, bytes: u64) -> Position {
        self.state.position_leaving(bytes)
    }

    /// When [`Self::trim`] would let a ledger go, ms since 1970; `None` while time alone changes nothing.
    #[must_use]
    pub fn next_trim_ms(
        &self,
        durable_floor: Option<Position>,
        retention: Retention,
        now_ms: u64,
    ) -> Option<u64> {
        self.state.next_trim_ms(durable_floor, retention, now_ms)
    }

    /// Messages (not entries) from `a` to `b`: exact for whole ledgers, by the mean entry within one.
    #[must_use]
    pub fn messages_between(&self, a: Position, b: Position) -> u64 {
        self.state.index_rank(b).saturating_sub(self.state.index_rank(a))
    }

    /// When the topic was created, ms since 1970.
    #[must_use]
    pub fn created_ms(&self) -> u64 {
        self.state.created_ms
    }

    /// Whether a ledger is open, whose age and idleness want a look now and then.
    #[must_use]
    pub fn has_open_ledger(&self) -> bool {
        self.state.open().is_some()
    }

    /// The first ledger with an id of at least `from` that holds readable entries, and how many.
    #[must_use]
    pub fn entries_from(&self, from: LedgerId) -> Option<(LedgerId, u64)> {
        self.state.entries_from(from)
    }

    /// Index that the next message will get, if nothing taken before fails.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.state.next_index.0
    }
}
