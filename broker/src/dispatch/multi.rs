//! What Shared and Key_Shared have in common: who holds which entry, how often it was given back, and the limits on what is
//! unacknowledged.
//!
//! Owned by `Shared` and `KeyShared`. Invariants: a position is in `pending` exactly while one consumer holds it, and then it
//! is in no replay set; the sum of pending messages is the sum of the consumers' unacknowledged counts.

use std::collections::BTreeMap;

use geminga_common::ids::Position;

use super::consumers::{Consumers, Slot};
use super::delayed::Delayed;
use super::position_map::PositionMap;
use super::reader::Reader;
use super::types::{
    AddError, ConsumerKey, ConsumerSpec, Delivery, DispatchConfig, DispatcherStats, EntryMeta, LogView,
    Released, WaitReason,
};

/// An entry that a consumer holds.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Held {
    pub(super) slot: Slot,
    pub(super) messages: u32,
    /// The sticky hash, not its slot: that depends on how keys are shared.
    pub(super) hash: u32,
}

pub(super) struct Core {
    pub(super) config: DispatchConfig,
    pub(super) consumers: Consumers,
    pub(super) pending: PositionMap<Held>,
    /// Only entries that were given back at least once.
    pub(super) counts: PositionMap<u32>,
    pub(super) delayed: Delayed,
    pub(super) reader: Reader,
    unacked: u64,
    blocked: bool,
    pub(super) fenced: bool,
    pub(super) wait: Option<WaitReason>,
}

impl Core {
    pub(super) fn new(config: DispatchConfig, floor: Position) -> Self {
        Self {
            consumers: Consumers::new(
                config.unacked_messages_per_consumer_max,
                config.round_robin_entries_max,
            ),
            pending: PositionMap::new(),
            counts: PositionMap::new(),
            delayed: Delayed::default(),
            reader: Reader::new(floor, &config),
            config,
            unacked: 0,
            blocked: false,
            fenced: false,
            wait: None,
        }
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(super) fn add(&mut self, spec: ConsumerSpec) -> Result<Slot, AddError> {
        if self.consumers.slot_of(spec.key).is_some() {
            return Err(AddError::AlreadyAttached { key: spec.key });
        }
        Ok(self.consumers.add(spec))
    }

    /// The reasons to wait that come before any look at the entries.
    pub(super) fn gate(&mut self, log: &LogView) -> Option<WaitReason> {
        if self.fenced {
            return Some(WaitReason::Fenced);
        }
        if self.consumers.is_empty() {
            return Some(WaitReason::NoConsumer);
        }
        self.reader.skip_to(log.floor);
        self.reader.is_busy().then_some(WaitReason::ReadPending)
    }

    /// With nothing in the log or the replay sets: caught up, or waiting for time to pass.
    pub(super) fn idle_reason(&self) -> WaitReason {
        self.delayed.first_ms().map_or(WaitReason::CaughtUp, WaitReason::DelayedUntil)
    }

    /// Why nothing may be sent now although there is something to send.
    pub(super) fn no_credit(&self) -> Option<WaitReason> {
        if self.blocked {
            return Some(WaitReason::SubscriptionUnackedLimit);
        }
        (!self.consumers.any_available()).then(|| self.consumers.why_none())
    }

    pub(super) fn delayed_full(&self) -> Option<WaitReason> {
        let full = self.delayed.len() >= self.config.delayed_entries_max;
        self.delayed.first_ms().filter(|_| full).map(WaitReason::DelayedTrackerFull)
    }

    /// Keeps the entry for later if its time has not come.
    pub(super) fn delay(&mut self, entry: &EntryMeta, now_ms: u64) -> bool {
        match entry.deliver_at_ms {
            Some(due_ms) if due_ms > now_ms && self.config.delayed_delivery => {
                self.delayed.push(due_ms, entry.position, entry.sticky_hash);
                true
            }
            _ => false,
        }
    }

    /// Hands the entry to `slot`.
    pub(super) fn deliver(&mut self, slot: Slot, index: usize, entry: &EntryMeta, out: &mut Vec<Delivery>) {
        let held = Held { slot, messages: entry.messages, hash: entry.sticky_hash };
        let before = self.pending.insert(entry.position, held);
        debug_assert!(before.is_none(), "{} has one holder", entry.position);
        let redelivery_count = self.counts.get(entry.position).unwrap_or(0);
        self.consumers.sent(slot, entry, redelivery_count);
        self.reader.saw_entry(entry.messages);
        self.unacked += u64::from(entry.messages);
        let limit = u64::from(self.config.unacked_messages_per_subscription_max);
        self.blocked |= limit > 0 && self.unacked >= limit;
        out.push(Delivery {
            index: index as u32,
            consumer: self.consumers.at(slot).spec.key,
            redelivery_count,
        });
    }

    /// Books messages that are no longer outstanding.
    pub(super) fn release(&mut self, slot: Slot, messages: u32) -> Released {
        self.consumers.released(slot, messages);
        self.unacked = self.unacked.saturating_sub(u64::from(messages));
        let limit = u64::from(self.config.unacked_messages_per_subscription_max);
        self.blocked &= self.unacked > limit / 2;
        Released { consumer: self.consumers.at(slot).spec.key, messages }
    }

    /// New limits, 0 = none.
    pub(super) fn set_unacked_limits(&mut self, per_consumer: u32, per_subscription: u32) {
        self.config.unacked_messages_per_consumer_max = per_consumer;
        self.config.unacked_messages_per_subscription_max = per_subscription;
        self.consumers.set_unacked_max(per_consumer);
        self.blocked = per_subscription > 0 && self.unacked >= u64::from(per_subscription);
    }

    /// Takes one entry from whoever holds it, for an acknowledgement.
    pub(super) fn take_acked(&mut self, position: Position) -> Option<Held> {
        self.counts.remove(position);
        self.pending.remove(position)
    }

    /// Some messages of a batch were acknowledged; `left` remain.
    pub(super) fn acked_partly(&mut self, position: Position, left: u32) -> Option<Released> {
        let held = self.pending.get_mut(position)?;
        let gone = held.messages.checked_sub(left).filter(|gone| *gone > 0)?;
        held.messages = left;
        let slot = held.slot;
        Some(self.release(slot, gone))
    }

    /// Takes everything below `floor` from its holders; `each` learns of every entry.
    pub(super) fn acked_below(&mut self, floor: Position, mut each: impl FnMut(&Held)) -> Vec<Released> {
        let mut by_slot: BTreeMap<Slot, u32> = BTreeMap::new();
        self.pending.drain_below(floor, |_, held| {
            each(&held);
            let messages = by_slot.entry(held.slot).or_default();
            *messages = messages.saturating_add(held.messages);
        });
        self.counts.drain_below(floor, |_, _| {});
        self.reader.skip_to(floor);
        by_slot.into_iter().map(|(slot, messages)| self.release(slot, messages)).collect()
    }

    /// Takes back what `key` holds, all or the listed part, and counts the redelivery. Entries that it does not hold are not
    /// its to give back.
    pub(super) fn take_redelivered(
        &mut self,
        key: ConsumerKey,
        positions: Option<&[Position]>,
    ) -> Vec<(Position, Held)> {
        let Some(slot) = self.consumers.slot_of(key) else { return Vec::new() };
        let taken = match positions {
            None => self.pending.extract(|held| held.slot == slot),
            Some(positions) => positions
                .iter()
                .filter_map(|&position| {
                    self.pending.get(position).filter(|held| held.slot == slot)?;
                    self.pending.remove(position).map(|held| (position, held))
                })
                .collect(),
        };
        for &(position, held) in &taken {
            self.release(slot, held.messages);
            let count = self.counts.get(position).unwrap_or(0);
            self.counts.insert(position, count.saturating_add(1));
        }
        taken
    }

    /// Takes everything a leaving consumer holds, without counting a redelivery, and frees its slot. Counts are forgotten with
    /// the last consumer.
    pub(super) fn take_leaving(&mut self, slot: Slot) -> Vec<(Position, Held)> {
        let taken = self.pending.extract(|held| held.slot == slot);
        for &(_, held) in &taken {
            self.release(slot, held.messages);
        }
        self.consumers.remove(slot);
        if self.consumers.is_empty() {
            self.counts.clear();
        }
        // A replay under way may hold later entries of a key or a chunked message whose earlier ones just came back.
        self.reader.cancel_replay();
        taken
    }

    /// Forgets all entries, for a seek.
    pub(super) fn reset(&mut self, to: Position) {
        for (_, held) in self.pending.extract(|_| true) {
            self.release(held.slot, held.messages);
        }
        self.counts.clear();
        self.delayed.clear();
        self.reader.go_to(to);
    }

    pub(super) fn stats(&self, replay_entries: u64) -> DispatcherStats {
        DispatcherStats {
            read_position: self.reader.position(),
            replay_entries,
            delayed_entries: self.delayed.len() as u64,
            unacked_messages: self.unacked,
            blocked_on_unacked: self.blocked,
            wait: self.wait,
            draining: Vec::new(),
            draining_cleared_total: 0,
            consumers: self.consumers.order().iter().map(|slot| self.consumers.at(*slot).stats()).collect(),
        }
    }
}

/// Calls `gone` for every asked position below `next` that was not offered: it was acknowledged or trimmed meanwhile. Both
/// lists ascend.
pub(super) fn missing(
    asked: &[Position],
    offered: &[EntryMeta],
    next: Position,
    mut gone: impl FnMut(Position),
) {
    let mut offered = offered.iter().map(|entry| entry.position).peekable();
    for &position in asked.iter().take_while(|position| **position < next) {
        while offered.next_if(|seen| *seen < position).is_some() {}
        if offered.peek() != Some(&position) {
            gone(position);
        }
    }
}
