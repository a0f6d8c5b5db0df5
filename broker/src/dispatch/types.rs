//! The words dispatch speaks: what the owner task tells the machines, and what they answer.
//!
//! Everything here is plain data. Positions and small metas only: payload bytes never pass through dispatch, so the hot path
//! copies a few words per entry and holds no reference to a buffer.

use std::fmt;

use geminga_common::ids::Position;

/// One consumer of the broker, numbered by the caller; never reused while the process lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConsumerKey(pub u64);

impl fmt::Display for ConsumerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// One read that a machine asked for. A rewind, a seek or a lost owner makes an outstanding read stale; offering a stale read
/// changes nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReadId(pub(super) u64);

/// Which chunk of which chunked message an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkRef {
    /// A 64-bit hash of the message's uuid.
    pub uuid_hash: u64,
    /// From 0.
    pub chunk_id: u32,
    /// How many chunks the message has.
    pub total: u32,
}

/// What dispatch needs to know of an entry it may hand out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryMeta {
    /// Where the entry is.
    pub position: Position,
    /// Messages still to deliver: the batch's size less the indexes already acknowledged. At least 1.
    pub messages: u32,
    /// `hashing::sticky_hash` of the entry's key; only Key_Shared and key-range readers look at it, any value does elsewhere.
    pub sticky_hash: u32,
    /// Not before this wall-clock time in milliseconds; only Shared and Key_Shared honour it.
    pub deliver_at_ms: Option<u64>,
    /// Set for a chunk of a chunked message.
    pub chunk: Option<ChunkRef>,
    /// Stored size in bytes, for the byte counters.
    pub size_bytes: u32,
}

/// The log and the cursor as they stand when a decision is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogView {
    /// The first position the cursor has not acknowledged: mark-delete + 1. A rewind goes here.
    pub floor: Position,
    /// The first position that cannot be read yet: one past the last readable entry.
    pub end: Position,
}

/// What the owner task has to do next for a subscription.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Read these positions again, then offer them under `read`.
    Replay {
        /// The read's name.
        read: ReadId,
        /// Ascending; no more than one read's worth.
        positions: Vec<Position>,
    },
    /// Read forward, then offer what was found under `read`.
    Read {
        /// The read's name.
        read: ReadId,
        /// Where to start.
        from: Position,
        /// At most so many entries.
        entries: u32,
        /// Enough once the entries found hold this many messages.
        messages: u32,
        /// Enough once the entries found hold this many bytes; the first entry is always taken.
        bytes: u32,
    },
    /// Nothing can be done until something changes; the reason says what.
    Wait(WaitReason),
}

/// Why a subscription is not dispatching.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitReason {
    /// Nobody is connected.
    NoConsumer,
    /// A seek or an unload holds the subscription.
    Fenced,
    /// A read is under way.
    ReadPending,
    /// Everything readable was handed out; unacknowledged entries may be outstanding.
    CaughtUp,
    /// Everything left is delayed; the earliest is due at this time in milliseconds.
    DelayedUntil(u64),
    /// The delayed-message tracker is full; the earliest entry leaves it at this time in milliseconds.
    DelayedTrackerFull(u64),
    /// There are entries, and every consumer has used up its permits.
    NoPermits,
    /// There are permits, and every consumer holding one has a full send buffer.
    ConsumersNotWritable,
    /// Every consumer that could receive holds its maximum of unacknowledged messages.
    ConsumerUnackedLimit,
    /// The subscription holds its maximum of unacknowledged messages.
    SubscriptionUnackedLimit,
    /// Consumers are ready, but every entry within the look-ahead belongs to keys (or chunked messages) bound to others.
    KeysBlocked,
    /// A failover is being settled; reading starts at this time in milliseconds.
    PausedForFailover(u64),
    /// So much was acknowledged out of order that no new entries are read until acknowledgements close some gaps. Told by the
    /// caller, who shows the machine an end of the log before the gaps' end.
    AckStateFull,
}

impl WaitReason {
    /// A stable snake-case name, for metrics and REST.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoConsumer => "no_consumer",
            Self::Fenced => "fenced",
            Self::ReadPending => "read_pending",
            Self::CaughtUp => "caught_up",
            Self::DelayedUntil(_) => "delayed",
            Self::DelayedTrackerFull(_) => "delayed_tracker_full",
            Self::NoPermits => "no_permits",
            Self::ConsumersNotWritable => "consumers_not_writable",
            Self::ConsumerUnackedLimit => "consumer_unacked_limit",
            Self::SubscriptionUnackedLimit => "subscription_unacked_limit",
            Self::KeysBlocked => "keys_blocked",
            Self::PausedForFailover(_) => "paused_for_failover",
            Self::AckStateFull => "ack_state_full",
        }
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConsumer => f.write_str("no consumer is connected"),
            Self::Fenced => f.write_str("the subscription is fenced by a seek or an unload"),
            Self::ReadPending => f.write_str("waiting for storage to answer a read"),
            Self::CaughtUp => f.write_str("caught up: everything readable was handed out"),
            Self::DelayedUntil(ms) => write!(f, "everything left is delayed, the earliest until {ms} ms"),
            Self::DelayedTrackerFull(ms) => {
                write!(f, "too many delayed messages, the earliest is due at {ms} ms")
            }
            Self::NoPermits => f.write_str("consumers granted no more permits"),
            Self::ConsumersNotWritable => f.write_str("consumers do not read from their connections"),
            Self::ConsumerUnackedLimit => {
                f.write_str("consumers hold their maximum of unacknowledged messages")
            }
            Self::SubscriptionUnackedLimit => {
                f.write_str("the subscription holds its maximum of unacknowledged messages")
            }
            Self::KeysBlocked => {
                f.write_str("the next messages are bound to consumers that cannot take them")
            }
            Self::AckStateFull => f.write_str(
                "too many gaps between acknowledged messages; acknowledge or redeliver the oldest ones",
            ),
            Self::PausedForFailover(ms) => write!(f, "settling a failover until {ms} ms"),
        }
    }
}

/// One entry goes to one consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// Index into the offered slice.
    pub index: u32,
    /// Who gets it.
    pub consumer: ConsumerKey,
    /// How often it was given back before; 0 on Exclusive and Failover.
    pub redelivery_count: u32,
}

/// Something to tell a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Send ACTIVE_CONSUMER_CHANGE. From `add_consumer` it goes out before the SUCCESS of the SUBSCRIBE.
    ActiveConsumerChange {
        /// Who is told.
        consumer: ConsumerKey,
        /// Whether it is the active one.
        active: bool,
    },
}

/// Messages that left a consumer's unacknowledged count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Released {
    /// Who held them; any consumer of the subscription may have acknowledged.
    pub consumer: ConsumerKey,
    /// How many messages.
    pub messages: u32,
}

/// What became of an offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offered {
    /// The entries were delivered or kept for later.
    Taken,
    /// The read was overtaken by a rewind, a seek or a disconnect: nothing was done with the entries, ask again.
    Stale,
}

/// The type of a subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubscriptionType {
    /// One consumer.
    Exclusive,
    /// Several, one of them active.
    Failover,
    /// Entries spread over all.
    Shared,
    /// Entries spread by key.
    KeyShared,
}

impl fmt::Display for SubscriptionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "Exclusive",
            Self::Failover => "Failover",
            Self::Shared => "Shared",
            Self::KeyShared => "Key_Shared",
        })
    }
}

/// An inclusive range of sticky hashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashRange {
    /// First hash.
    pub start: u16,
    /// Last hash.
    pub end: u16,
}

impl HashRange {
    /// Whether `hash` is in the range.
    #[must_use]
    pub fn contains(&self, hash: u16) -> bool {
        self.start <= hash && hash <= self.end
    }
}

/// How a Key_Shared consumer wants keys shared.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum KeySharedMode {
    /// The broker spreads the hashes.
    #[default]
    AutoSplit,
    /// The consumer names its hashes.
    Sticky(Vec<HashRange>),
}

/// A consumer that wants to join.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerSpec {
    /// Its number.
    pub key: ConsumerKey,
    /// Its name: orders Failover and places Key_Shared hashes. Need not be unique.
    pub name: String,
    /// 0 is served first.
    pub priority: i32,
    /// From KeySharedMeta. On Exclusive a `Sticky` list makes the consumer see only entries of those hashes.
    pub key_shared: KeySharedMode,
    /// Key_Shared only: keys may be outstanding on two consumers after a change.
    pub allow_out_of_order: bool,
}

/// Why a consumer may not join.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddError {
    /// Exclusive and taken: probe the holder, then try again or answer ConsumerBusy.
    #[error("exclusive consumer {holder} is already connected")]
    ExclusiveTaken {
        /// Who holds it.
        holder: ConsumerKey,
    },
    /// ConsumerBusy: auto-split meets sticky.
    #[error("the subscription shares keys in another mode")]
    KeySharedModeMismatch,
    /// ConsumerBusy: the out-of-order flags differ.
    #[error("the subscription's consumers differ on out-of-order delivery")]
    OutOfOrderMismatch,
    /// ConsumerAssign: sticky without a range.
    #[error("a sticky consumer has to name its hash ranges")]
    NoRanges,
    /// ConsumerAssign: a range ends before it starts, or two of its own overlap.
    #[error("hash range {start}..={end} is not valid", start = .range.start, end = .range.end)]
    BadRange {
        /// The range.
        range: HashRange,
    },
    /// ConsumerAssign: taken.
    #[error("hash range {start}..={end} overlaps one of consumer {holder}", start = .range.start, end = .range.end)]
    RangeTaken {
        /// The range asked for.
        range: HashRange,
        /// Who has it.
        holder: ConsumerKey,
    },
    /// The caller used a key twice.
    #[error("consumer {key} is already attached")]
    AlreadyAttached {
        /// The key.
        key: ConsumerKey,
    },
}

/// Limits and delays; every default is Pulsar's.
#[derive(Clone, Debug)]
pub struct DispatchConfig {
    /// Most entries asked for in one read.
    pub read_entries_max: u32,
    /// Most bytes asked for in one read.
    pub read_bytes_max: u32,
    /// Most entries one consumer gets in a round-robin turn.
    pub round_robin_entries_max: u32,
    /// Unacknowledged messages after which a consumer is blocked until half of them are gone; 0 = no limit.
    pub unacked_messages_per_consumer_max: u32,
    /// The same for the whole subscription; 0 = no limit.
    pub unacked_messages_per_subscription_max: u32,
    /// Milliseconds between the choice of a new active Failover consumer and its first read.
    pub failover_delay_ms: u64,
    /// Points of each consumer on the Key_Shared ring.
    pub key_shared_points: u32,
    /// Entries read past blocked keys, for each consumer; 0 = only the total counts.
    pub look_ahead_per_consumer: u32,
    /// Entries read past blocked keys in all; 0 = no limit but that on unacknowledged messages.
    pub look_ahead_total: u32,
    /// Whether `deliver_at_ms` is honoured.
    pub delayed_delivery: bool,
    /// Entries the delayed tracker keeps in memory (24 bytes each) before forward reading waits.
    pub delayed_entries_max: usize,
}

impl Default for DispatchConfig {
    fn default() -> Self {
        Self {
            read_entries_max: 100,
            read_bytes_max: 5 << 20,
            round_robin_entries_max: 20,
            unacked_messages_per_consumer_max: 50_000,
            unacked_messages_per_subscription_max: 200_000,
            failover_delay_ms: 1000,
            key_shared_points: 100,
            look_ahead_per_consumer: 2000,
            look_ahead_total: 20_000,
            delayed_delivery: true,
            delayed_entries_max: 4_000_000,
        }
    }
}

/// Where a subscription of one topic stands in the world.
#[derive(Clone, Debug)]
pub struct TopicShape {
    /// Full name with `-partition-N`: places Failover consumers of a plain topic.
    pub name: String,
    /// Partition number; `None` on a plain topic.
    pub partition: Option<u32>,
}

/// What is known of one consumer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerStats {
    /// Which.
    pub key: ConsumerKey,
    /// Its name.
    pub name: String,
    /// Messages it may still be sent; below 0 after a batch larger than what was left.
    pub permits: i64,
    /// Permits granted while it was blocked, credited when it no longer is.
    pub parked_permits: u64,
    /// Messages sent and not acknowledged; always 0 on Exclusive and Failover.
    pub unacked_messages: u64,
    /// Whether the unacknowledged limit holds it up.
    pub blocked_on_unacked: bool,
    /// Whether its connection takes more bytes.
    pub writable: bool,
    /// Active consumer of Failover, the only one of Exclusive, any other.
    pub active: bool,
    /// Entries sent since it joined.
    pub sent_entries: u64,
    /// Messages sent since it joined.
    pub sent_messages: u64,
    /// Bytes sent since it joined.
    pub sent_bytes: u64,
    /// Messages sent to it that were given back before.
    pub redelivered_messages: u64,
    /// Hash ranges it serves; Key_Shared only.
    pub hash_ranges: Vec<HashRange>,
}

/// A hash whose old owner still holds messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DrainingHash {
    /// The hash.
    pub hash: u16,
    /// Who has to acknowledge.
    pub holder: ConsumerKey,
    /// Entries it holds.
    pub unacked_entries: u32,
    /// How often an entry had to wait for it.
    pub blocked_attempts: u32,
}

/// What is known of a subscription's dispatch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DispatcherStats {
    /// Next forward read.
    pub read_position: Position,
    /// Entries waiting to be sent again, or held for their key.
    pub replay_entries: u64,
    /// Entries waiting for their time.
    pub delayed_entries: u64,
    /// Messages sent and not acknowledged.
    pub unacked_messages: u64,
    /// Whether the subscription's unacknowledged limit holds everybody up.
    pub blocked_on_unacked: bool,
    /// The last decision, if it was to wait.
    pub wait: Option<WaitReason>,
    /// Key_Shared: hashes being drained.
    pub draining: Vec<DrainingHash>,
    /// Key_Shared: hashes drained since the start.
    pub draining_cleared_total: u64,
    /// All consumers, in serving order.
    pub consumers: Vec<ConsumerStats>,
}
