//! The one handle the topic's task holds per subscription, over the machines of the four types.
//!
//! Adds nothing to them but the calls that all types answer alike: fencing, rewinds, the last wait reason, the next wake-up.

use geminga_common::ids::Position;

use super::key_shared::KeyShared;
use super::reader::Reader;
use super::shared::Shared;
use super::single::Single;
use super::types::{
    AddError, ConsumerKey, ConsumerSpec, Decision, Delivery, DispatchConfig, DispatcherStats, Effect,
    EntryMeta, LogView, Offered, ReadId, Released, SubscriptionType, TopicShape, WaitReason,
};

/// Dispatch of one subscription. Its type lasts until the last consumer leaves; for another type make another dispatcher at the
/// cursor's floor.
pub struct Dispatcher(Kind);

// One per subscription and never moved in a hot path: the size difference does not matter, a box would cost a hop.
#[allow(clippy::large_enum_variant)]
enum Kind {
    Single(Single),
    Shared(Shared),
    KeyShared(KeyShared),
}

impl Dispatcher {
    /// A dispatcher without consumers that will read from `floor`, the first unacknowledged position.
    #[must_use]
    pub fn new(kind: SubscriptionType, shape: &TopicShape, config: DispatchConfig, floor: Position) -> Self {
        Self(match kind {
            SubscriptionType::Exclusive => Kind::Single(Single::new(false, shape, &config, floor)),
            SubscriptionType::Failover => Kind::Single(Single::new(true, shape, &config, floor)),
            SubscriptionType::Shared => Kind::Shared(Shared::new(config, floor)),
            SubscriptionType::KeyShared => Kind::KeyShared(KeyShared::new(config, floor)),
        })
    }

    /// The subscription's type.
    #[must_use]
    pub fn kind(&self) -> SubscriptionType {
        match &self.0 {
            Kind::Single(single) if single.is_failover() => SubscriptionType::Failover,
            Kind::Single(_) => SubscriptionType::Exclusive,
            Kind::Shared(_) => SubscriptionType::Shared,
            Kind::KeyShared(_) => SubscriptionType::KeyShared,
        }
    }

    /// Whether nobody is connected; then another type may take over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Kind::Single(single) => single.is_empty(),
            Kind::Shared(shared) => shared.core.consumers.is_empty(),
            Kind::KeyShared(keys) => keys.core.consumers.is_empty(),
        }
    }

    /// The active consumer of Exclusive or Failover; `None` on the other types.
    #[must_use]
    pub fn active_consumer(&self) -> Option<ConsumerKey> {
        match &self.0 {
            Kind::Single(single) => single.active(),
            Kind::Shared(_) | Kind::KeyShared(_) => None,
        }
    }

    fn reader(&self) -> &Reader {
        match &self.0 {
            Kind::Single(single) => &single.reader,
            Kind::Shared(shared) => &shared.core.reader,
            Kind::KeyShared(keys) => &keys.core.reader,
        }
    }

    fn reader_mut(&mut self) -> &mut Reader {
        match &mut self.0 {
            Kind::Single(single) => &mut single.reader,
            Kind::Shared(shared) => &mut shared.core.reader,
            Kind::KeyShared(keys) => &mut keys.core.reader,
        }
    }

    /// Where the next forward read starts.
    #[must_use]
    pub fn read_position(&self) -> Position {
        self.reader().position()
    }

    /// The last decision, if it was to wait.
    #[must_use]
    pub fn wait_reason(&self) -> Option<WaitReason> {
        match &self.0 {
            Kind::Single(single) => single.wait,
            Kind::Shared(shared) => shared.core.wait,
            Kind::KeyShared(keys) => keys.core.wait,
        }
    }

    /// When `decide` has to be asked again although nothing happened, in milliseconds of wall-clock time.
    #[must_use]
    pub fn next_wakeup_ms(&self) -> Option<u64> {
        match &self.0 {
            Kind::Single(single) => single.settles_at_ms(),
            Kind::Shared(shared) => shared.core.delayed.first_ms(),
            Kind::KeyShared(keys) => keys.core.delayed.first_ms(),
        }
    }

    /// A consumer joins with no permits. The effects go out before the answer to its SUBSCRIBE.
    ///
    /// # Errors
    /// See [`AddError`]; nothing has changed then.
    pub fn add_consumer(&mut self, spec: ConsumerSpec, now_ms: u64) -> Result<Vec<Effect>, AddError> {
        match &mut self.0 {
            Kind::Single(single) => single.add_consumer(spec, now_ms),
            Kind::Shared(shared) => shared.add_consumer(spec).map(|()| Vec::new()),
            Kind::KeyShared(keys) => keys.add_consumer(spec).map(|()| Vec::new()),
        }
    }

    /// A consumer is gone: what it held goes to others, in order, without counting as a redelivery.
    pub fn remove_consumer(&mut self, key: ConsumerKey, now_ms: u64) -> Vec<Effect> {
        match &mut self.0 {
            Kind::Single(single) => single.remove_consumer(key, now_ms),
            Kind::Shared(shared) => shared.remove_consumer(key),
            Kind::KeyShared(keys) => keys.remove_consumer(key),
        }
        Vec::new()
    }

    /// New limits on unacknowledged messages, 0 = none; whoever is below them now is no longer held up, whoever is above stops.
    pub fn set_unacked_limits(&mut self, per_consumer: u32, per_subscription: u32) {
        match &mut self.0 {
            Kind::Single(_) => {}
            Kind::Shared(Shared { core, .. }) | Kind::KeyShared(KeyShared { core, .. }) => {
                core.set_unacked_limits(per_consumer, per_subscription);
            }
        }
    }

    /// The consumer may be sent `permits` more messages. Unknown consumers are ignored, as on Pulsar.
    pub fn flow(&mut self, key: ConsumerKey, permits: u32) {
        match &mut self.0 {
            Kind::Single(single) => single.flow(key, permits),
            Kind::Shared(Shared { core, .. }) | Kind::KeyShared(KeyShared { core, .. }) => {
                if let Some(slot) = core.consumers.slot_of(key) {
                    core.consumers.flow(slot, permits);
                }
            }
        }
    }

    /// The consumer's connection takes bytes again, or no longer does.
    pub fn set_writable(&mut self, key: ConsumerKey, writable: bool) {
        match &mut self.0 {
            Kind::Single(single) => single.set_writable(key, writable),
            Kind::Shared(Shared { core, .. }) | Kind::KeyShared(KeyShared { core, .. }) => {
                if let Some(slot) = core.consumers.slot_of(key) {
                    core.consumers.set_writable(slot, writable);
                }
            }
        }
    }

    /// What to do next. Ask after every event, until the answer is to wait.
    pub fn decide(&mut self, now_ms: u64, log: LogView, effects: &mut Vec<Effect>) -> Decision {
        let (decision, wait) = match &mut self.0 {
            Kind::Single(single) => (single.decide(now_ms, &log, effects), &mut single.wait),
            Kind::Shared(shared) => (shared.decide(now_ms, &log), &mut shared.core.wait),
            Kind::KeyShared(keys) => (keys.decide(now_ms, &log), &mut keys.core.wait),
        };
        *wait = match decision {
            Decision::Wait(reason) => Some(reason),
            Decision::Read { .. } | Decision::Replay { .. } => None,
        };
        decision
    }

    /// The read is done. `entries` ascend and hold nothing that the cursor has acknowledged by now; `next` is the first position
    /// the read did not examine. Deliveries are appended to `out`, in sending order.
    ///
    /// Of a replay, asked positions below `next` that are not offered are forgotten: they were acknowledged or trimmed.
    pub fn offer(
        &mut self,
        read: ReadId,
        entries: &[EntryMeta],
        next: Position,
        now_ms: u64,
        out: &mut Vec<Delivery>,
    ) -> Offered {
        debug_assert!(entries.windows(2).all(|pair| pair[0].position < pair[1].position), "entries ascend");
        debug_assert!(entries.last().is_none_or(|last| last.position < next), "next is past the last entry");
        match &mut self.0 {
            Kind::Single(single) => single.offer(read, entries, next, out),
            Kind::Shared(shared) => shared.offer(read, entries, next, now_ms, out),
            Kind::KeyShared(keys) => keys.offer(read, entries, next, now_ms, out),
        }
    }

    /// The read gave nothing because storage failed: it may be asked again at once, with a read of one entry. Backing off is the
    /// caller's.
    pub fn read_failed(&mut self, read: ReadId) {
        self.reader_mut().fail(read);
    }

    /// The whole entry is acknowledged. Returns whose messages were released, if somebody held it.
    pub fn acked(&mut self, position: Position) -> Option<Released> {
        match &mut self.0 {
            Kind::Single(_) => None,
            Kind::Shared(shared) => shared.acked(position),
            Kind::KeyShared(keys) => keys.acked(position),
        }
    }

    /// Part of a batch is acknowledged; `left` messages remain, at least one.
    pub fn acked_partly(&mut self, position: Position, left: u32) -> Option<Released> {
        match &mut self.0 {
            Kind::Single(_) => None,
            Kind::Shared(Shared { core, .. }) | Kind::KeyShared(KeyShared { core, .. }) => {
                core.acked_partly(position, left)
            }
        }
    }

    /// Everything below `floor` is acknowledged: mark-delete moved, messages expired, the backlog was skipped or cleared.
    pub fn acked_below(&mut self, floor: Position) -> Vec<Released> {
        match &mut self.0 {
            Kind::Single(single) => {
                single.reader.skip_to(floor);
                Vec::new()
            }
            Kind::Shared(shared) => shared.acked_below(floor),
            Kind::KeyShared(keys) => keys.acked_below(floor),
        }
    }

    /// The consumer gives entries back: the listed ones that it holds, or all. Counts as a redelivery on Shared and Key_Shared;
    /// on Exclusive and Failover the active consumer gets everything from `floor` again.
    pub fn redeliver(&mut self, key: ConsumerKey, positions: Option<&[Position]>, floor: Position) {
        match &mut self.0 {
            Kind::Single(single) => single.redeliver(key, floor),
            Kind::Shared(shared) => shared.redeliver(key, positions),
            Kind::KeyShared(keys) => keys.redeliver(key, positions),
        }
    }

    /// Reads again from `to`; entries that are held by a consumer or wait already are not sent twice.
    pub fn rewind(&mut self, to: Position) {
        self.reader_mut().go_to(to);
    }

    /// Forgets every entry and reads from `to`: a seek. Permits stay.
    pub fn reset(&mut self, to: Position) {
        match &mut self.0 {
            Kind::Single(single) => single.reader.go_to(to),
            Kind::Shared(shared) => shared.reset(to),
            Kind::KeyShared(keys) => keys.reset(to),
        }
    }

    /// Stops (or resumes) dispatch for a seek or an unload; a read under way becomes stale.
    pub fn set_fenced(&mut self, fenced: bool) {
        if fenced {
            self.reader_mut().cancel();
        }
        match &mut self.0 {
            Kind::Single(single) => single.fenced = fenced,
            Kind::Shared(shared) => shared.core.fenced = fenced,
            Kind::KeyShared(keys) => keys.core.fenced = fenced,
        }
    }

    /// All that is known, for stats, metrics and `explain`.
    #[must_use]
    pub fn stats(&self) -> DispatcherStats {
        match &self.0 {
            Kind::Single(single) => single.stats(),
            Kind::Shared(shared) => shared.stats(),
            Kind::KeyShared(keys) => keys.stats(),
        }
    }
}
