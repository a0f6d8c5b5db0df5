//! One subscription of a topic: who consumes, what is acknowledged, what of that is durable yet.
//!
//! Durability of acknowledgements: a receipted ack is written at once, together with whatever else is dirty; others within
//! a second of the first of them. A receipt is sent when the write that carries its ack is durable. Writes end in the order in
//! which they were begun, so one ticket number tells which receipts are due.

use super::messages::Subscribe;
use super::meter::Meter;
use super::producers::Now;
use super::unreadable::Unreadable;
use super::{Reply, TopicError};
use crate::cursor::{AckState, Acked, CursorId};
use crate::dispatch::{
    AddError, ConsumerKey, ConsumerSpec, DispatchConfig, Dispatcher, Effect, ReadId, SubscriptionType,
    TopicShape, WaitReason,
};
use crate::topic::peer::Peer;
use geminga_common::clock::Mono;
use geminga_common::ids::Position;
use geminga_common::names::SubscriptionName;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Messages out, bytes out, messages sent again, entries acknowledged, entries expired.
pub(crate) type Traffic = Meter<5>;

/// A consumer of a subscription.
pub(super) struct Consumer {
    /// What it came with.
    pub(super) spec: Box<Subscribe>,
    /// Echoed in its messages.
    pub(super) epoch: Option<u64>,
    /// When it connected, ms since 1970.
    pub(super) connected_ms: u64,
    /// Last FLOW, ack and delivery, ms since 1970; 0 before the first.
    pub(super) last_flow_ms: u64,
    /// See `last_flow_ms`.
    pub(super) last_acked_ms: u64,
    /// See `last_flow_ms`.
    pub(super) last_consumed_ms: u64,
    /// What it was sent and acknowledged.
    pub(super) traffic: Traffic,
    /// Was told that the topic has ended.
    pub(super) told_end: bool,
}

/// What is under way for a subscription's next entries.
pub(super) struct Reading {
    /// The managed ledger's name for it.
    pub(super) token: crate::managed_ledger::Token,
    /// The dispatcher's name for it.
    pub(super) read: ReadId,
    /// For a replay: where it ends; forward reads end where the entries end.
    pub(super) replay: bool,
    /// First position that was asked for.
    pub(super) from: Position,
}

/// Counters since the topic was loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    /// Messages sent to consumers.
    pub(super) messages_out: u64,
    /// Bytes sent to consumers.
    pub(super) bytes_out: u64,
    /// Messages sent again.
    pub(super) redelivered: u64,
    /// Messages acknowledged.
    pub(super) acked: u64,
    /// Entries expired: by time to live, by a backlog quota, or over REST.
    pub(super) expired: u64,
    /// Entries that were passed because they are lost for good.
    pub(super) lost: u64,
    /// Last time something expired, ms since 1970.
    pub(super) last_expired_ms: u64,
    /// Last FLOW of any consumer, ms since 1970.
    pub(super) last_flow_ms: u64,
    /// Last delivery, ms since 1970.
    pub(super) last_consumed_ms: u64,
    /// Last ack, ms since 1970.
    pub(super) last_acked_ms: u64,
    /// Last time the mark-delete position moved, ms since 1970.
    pub(super) last_floor_ms: u64,
}

/// The record of what was acknowledged out of order, measured now and then: it is too large to be measured for every ack.
#[derive(Clone, Copy, Default)]
pub(super) struct Gaps {
    /// Something was acknowledged since the last measure.
    pub(super) changed: bool,
    measured: Mono,
    full: bool,
}

impl Gaps {
    /// Time between two measures while there is room; a full record is measured whenever it has changed.
    const EVERY: std::time::Duration = std::time::Duration::from_millis(100);

    /// Whether forward reading has to stop. It goes on at seven eighths of the limit.
    pub(super) fn are_full(&mut self, acks: &AckState, limit: usize, now: Mono) -> bool {
        if self.changed && (self.full || now >= self.measured + Self::EVERY) {
            self.changed = false;
            self.measured = now;
            let size = acks.size();
            self.full = if self.full { size > limit - limit / 8 } else { size > limit };
        }
        self.full
    }

    /// As last measured.
    pub(super) fn were_full(&self) -> bool {
        self.full
    }
}

/// What waits for durability.
#[derive(Default)]
pub(super) struct Persisting {
    /// Since when something unwritten waits.
    pub(super) dirty_since: Option<Mono>,
    /// Acks whose receipts are due with the next write.
    pub(super) receipts: Vec<Reply<()>>,
    /// Writes under way, oldest first.
    pub(super) in_flight: VecDeque<InFlight>,
    /// Number of the next write.
    pub(super) next_ticket: u64,
}

/// A cursor write under way.
pub(super) struct InFlight {
    /// Its number.
    pub(super) ticket: u64,
    /// The floor it makes durable.
    pub(super) floor: Position,
    /// Receipts due when it is durable.
    pub(super) receipts: Vec<Reply<()>>,
}

/// A subscription.
pub(super) struct Subscription {
    /// Its name.
    pub(super) name: SubscriptionName,
    /// Which life of the name this is.
    pub(super) incarnation: u64,
    /// Its cursor in the bundle's log; `None` when it does not survive its last consumer.
    pub(super) cursor: Option<CursorId>,
    /// What is acknowledged.
    pub(super) acks: AckState,
    /// Who gets what next.
    pub(super) dispatcher: Dispatcher,
    /// Type of the consumers connected now, or of the last.
    pub(super) kind: SubscriptionType,
    /// Consumers.
    pub(super) consumers: BTreeMap<ConsumerKey, Consumer>,
    /// The read under way.
    pub(super) reading: Option<Reading>,
    /// Reads that failed.
    pub(super) unreadable: Unreadable,
    /// Acks on their way to the cursor log.
    pub(super) persisting: Persisting,
    /// How large the record of acknowledgements is, and whether that stops forward reading.
    pub(super) gaps: Gaps,
    /// A seek is under way: nothing is delivered, other seeks are refused.
    pub(super) seeking: bool,
    /// Its state is to be replicated to the namespace's other clusters: stored and shown, there are no others yet.
    pub(super) replicated: bool,
    /// Set by clients and REST.
    pub(super) properties: BTreeMap<String, String>,
    /// Counters.
    pub(super) counters: Counters,
    /// What all its consumers were sent and acknowledged.
    pub(super) traffic: Traffic,
}

impl Subscription {
    /// A subscription without consumers.
    pub(super) fn new(
        name: SubscriptionName,
        incarnation: u64,
        cursor: Option<CursorId>,
        acked: Acked,
        shape: &TopicShape,
        config: DispatchConfig,
    ) -> Self {
        let kind = SubscriptionType::Exclusive;
        let floor = acked.floor;
        let dispatcher = Dispatcher::new(kind, shape, config, floor);
        Self {
            name,
            incarnation,
            cursor,
            acks: if cursor.is_some() { AckState::new(acked) } else { AckState::non_durable(acked) },
            dispatcher,
            kind,
            consumers: BTreeMap::new(),
            reading: None,
            unreadable: Unreadable::default(),
            persisting: Persisting::default(),
            gaps: Gaps { changed: true, ..Gaps::default() },
            seeking: false,
            replicated: false,
            properties: BTreeMap::new(),
            counters: Counters::default(),
            traffic: Traffic::new(Mono::ZERO),
        }
    }

    /// Takes a consumer in. Its type becomes the subscription's when nobody else is connected.
    pub(super) fn join(
        &mut self,
        key: ConsumerKey,
        spec: Box<Subscribe>,
        shape: &TopicShape,
        config: DispatchConfig,
        now: Now,
    ) -> Result<Vec<Effect>, Joining> {
        if self.consumers.is_empty() && spec.kind != self.kind {
            self.kind = spec.kind;
            self.dispatcher = Dispatcher::new(spec.kind, shape, config, self.acks.floor());
            self.reading = None;
        }
        if spec.kind != self.kind {
            return Err(Joining::Refused(TopicError::ConsumerBusy(
                "Subscription is of different type: another type of consumer is connected",
            )));
        }
        let consumer = ConsumerSpec {
            key,
            name: spec.name.clone(),
            priority: spec.priority,
            key_shared: spec.key_shared.clone(),
            allow_out_of_order: spec.allow_out_of_order,
        };
        let effects =
            self.dispatcher.add_consumer(consumer, now.wall_ms).map_err(|error| self.refusal(&error))?;
        let epoch = spec.epoch;
        self.consumers.insert(
            key,
            Consumer {
                spec,
                epoch,
                connected_ms: now.wall_ms,
                traffic: Traffic::new(now.mono),
                last_flow_ms: 0,
                last_acked_ms: 0,
                last_consumed_ms: 0,
                told_end: false,
            },
        );
        Ok(effects)
    }

    fn refusal(&self, error: &AddError) -> Joining {
        const TAKEN: &str = "Exclusive consumer is already connected";
        match error {
            AddError::ExclusiveTaken { holder } => match self.consumers.get(holder) {
                Some(holder) => Joining::HeldBy(holder.spec.peer.clone(), TAKEN),
                None => Joining::Refused(TopicError::ConsumerBusy(TAKEN)),
            },
            AddError::KeySharedModeMismatch => Joining::Refused(TopicError::ConsumerBusy(
                "the subscription's consumers share keys in another mode",
            )),
            AddError::OutOfOrderMismatch => Joining::Refused(TopicError::ConsumerBusy(
                "the subscription's consumers differ on out-of-order delivery",
            )),
            AddError::NoRanges => {
                Joining::Refused(TopicError::ConsumerAssign("a sticky consumer names its key hash ranges"))
            }
            AddError::BadRange { .. } => {
                Joining::Refused(TopicError::ConsumerAssign("a key hash range is not valid"))
            }
            AddError::RangeTaken { .. } => Joining::Refused(TopicError::ConsumerAssign(
                "a key hash range overlaps that of another consumer",
            )),
            AddError::AlreadyAttached { .. } => {
                Joining::Refused(TopicError::ConsumerBusy("the consumer is connected already"))
            }
        }
    }

    /// Why nothing is being delivered, if so.
    pub(super) fn wait_reason(&self) -> Option<WaitReason> {
        self.dispatcher.wait_reason().map(|why| match why {
            // The machine was shown a nearer end than the topic's.
            WaitReason::CaughtUp if self.gaps.were_full() => WaitReason::AckStateFull,
            other => other,
        })
    }

    /// Whether it survives its last consumer.
    pub(super) fn is_durable(&self) -> bool {
        self.cursor.is_some()
    }

    /// Whether something waits to be written to the cursor log.
    pub(super) fn wants_write(&self) -> bool {
        self.is_durable() && (self.acks.is_dirty() || !self.persisting.receipts.is_empty())
    }
}

/// Why a consumer is not in.
pub(super) enum Joining {
    /// Refused.
    Refused(TopicError),
    /// An exclusive consumer holds the subscription.
    HeldBy(Arc<Peer>, &'static str),
}
