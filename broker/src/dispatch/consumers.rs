//! The consumers of one Shared or Key_Shared subscription: permits, limits, and whose turn it is.
//!
//! Owned by `multi::Core`. A consumer lives in a slot, so that a pending acknowledgement names its holder in four bytes; a slot
//! is reused only after everything its consumer held was taken away. `available` is kept up to date after every change, so that
//! the per-entry questions need no scan.

use std::collections::HashMap;

use super::types::{ConsumerKey, ConsumerSpec, ConsumerStats, EntryMeta, WaitReason};

/// Index of a consumer within its subscription.
pub(super) type Slot = u32;

pub(super) struct Consumer {
    pub(super) spec: ConsumerSpec,
    permits: i64,
    parked: u64,
    unacked: u64,
    blocked: bool,
    writable: bool,
    available: bool,
    sent_entries: u64,
    sent_messages: u64,
    sent_bytes: u64,
    redelivered_messages: u64,
}

impl Consumer {
    pub(super) fn stats(&self) -> ConsumerStats {
        ConsumerStats {
            key: self.spec.key,
            name: self.spec.name.clone(),
            permits: self.permits,
            parked_permits: self.parked,
            unacked_messages: self.unacked,
            blocked_on_unacked: self.blocked,
            writable: self.writable,
            active: true,
            sent_entries: self.sent_entries,
            sent_messages: self.sent_messages,
            sent_bytes: self.sent_bytes,
            redelivered_messages: self.redelivered_messages,
            hash_ranges: Vec::new(),
        }
    }
}

pub(super) struct Consumers {
    slots: Vec<Option<Consumer>>,
    by_key: HashMap<ConsumerKey, Slot>,
    /// By priority, then by joining.
    order: Vec<Slot>,
    available: usize,
    unacked_max: u64,
    turn_entries: u32,
    /// Whose turn it is, and how many entries are left of it.
    turn: Option<(Slot, u32)>,
    /// Index into `order` of the last turn.
    last: usize,
}

impl Consumers {
    pub(super) fn new(unacked_max: u32, turn_entries: u32) -> Self {
        Self {
            slots: Vec::new(),
            by_key: HashMap::new(),
            order: Vec::new(),
            available: 0,
            unacked_max: if unacked_max == 0 { u64::MAX } else { u64::from(unacked_max) },
            turn_entries: turn_entries.max(1),
            turn: None,
            last: usize::MAX,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn slot_of(&self, key: ConsumerKey) -> Option<Slot> {
        self.by_key.get(&key).copied()
    }

    /// The consumer in an occupied slot.
    pub(super) fn at(&self, slot: Slot) -> &Consumer {
        self.slots[slot as usize].as_ref().expect("slots named by pending entries and selectors are occupied")
    }

    /// Slots in serving order.
    pub(super) fn order(&self) -> &[Slot] {
        &self.order
    }

    pub(super) fn add(&mut self, spec: ConsumerSpec) -> Slot {
        let slot = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        let priority = spec.priority;
        let key = spec.key;
        self.slots[slot] = Some(Consumer {
            spec,
            permits: 0,
            parked: 0,
            unacked: 0,
            blocked: false,
            writable: true,
            available: false,
            sent_entries: 0,
            sent_messages: 0,
            sent_bytes: 0,
            redelivered_messages: 0,
        });
        let slot = slot as Slot;
        self.by_key.insert(key, slot);
        let place = self.order.partition_point(|other| self.at(*other).spec.priority <= priority);
        self.order.insert(place, slot);
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        let Some(consumer) = self.slots[slot as usize].take() else { return };
        self.by_key.remove(&consumer.spec.key);
        self.order.retain(|other| *other != slot);
        self.available -= usize::from(consumer.available);
        self.turn = None;
    }

    /// Changes a consumer and re-evaluates whether it is available.
    fn change(&mut self, slot: Slot, how: impl FnOnce(&mut Consumer)) {
        let Some(consumer) = self.slots[slot as usize].as_mut() else { return };
        let before = consumer.available;
        how(consumer);
        consumer.available = consumer.permits > 0 && consumer.writable && !consumer.blocked;
        match (before, consumer.available) {
            (false, true) => self.available += 1,
            (true, false) => self.available -= 1,
            _ => {}
        }
    }

    pub(super) fn flow(&mut self, slot: Slot, permits: u32) {
        self.change(slot, |consumer| {
            if consumer.blocked {
                consumer.parked += u64::from(permits);
            } else {
                consumer.permits += i64::from(permits);
            }
        });
    }

    pub(super) fn set_writable(&mut self, slot: Slot, writable: bool) {
        self.change(slot, |consumer| consumer.writable = writable);
    }

    /// Books an entry that goes to `slot`.
    pub(super) fn sent(&mut self, slot: Slot, entry: &EntryMeta, redelivery_count: u32) {
        let unacked_max = self.unacked_max;
        self.change(slot, |consumer| {
            let messages = u64::from(entry.messages);
            consumer.permits -= i64::from(entry.messages);
            consumer.unacked += messages;
            consumer.blocked = consumer.unacked >= unacked_max;
            consumer.sent_entries += 1;
            consumer.sent_messages += messages;
            consumer.sent_bytes += u64::from(entry.size_bytes);
            if redelivery_count > 0 {
                consumer.redelivered_messages += messages;
            }
        });
    }

    /// Books messages that `slot` no longer holds; at half the limit it is unblocked and its parked permits count.
    pub(super) fn released(&mut self, slot: Slot, messages: u32) {
        let unblock_at = self.unacked_max / 2;
        self.change(slot, |consumer| {
            consumer.unacked = consumer.unacked.saturating_sub(u64::from(messages));
            if consumer.blocked && consumer.unacked <= unblock_at {
                consumer.blocked = false;
                consumer.permits =
                    consumer.permits.saturating_add_unsigned(std::mem::take(&mut consumer.parked));
            }
        });
    }

    /// A new limit on each consumer's unacknowledged messages, 0 = none.
    pub(super) fn set_unacked_max(&mut self, unacked_max: u32) {
        self.unacked_max = if unacked_max == 0 { u64::MAX } else { u64::from(unacked_max) };
        let unacked_max = self.unacked_max;
        for slot in self.order.clone() {
            self.change(slot, |consumer| {
                let was = std::mem::replace(&mut consumer.blocked, consumer.unacked >= unacked_max);
                if was && !consumer.blocked {
                    consumer.permits =
                        consumer.permits.saturating_add_unsigned(std::mem::take(&mut consumer.parked));
                }
            });
        }
    }

    pub(super) fn is_available(&self, slot: Slot) -> bool {
        self.slots.get(slot as usize).and_then(Option::as_ref).is_some_and(|consumer| consumer.available)
    }

    pub(super) fn any_available(&self) -> bool {
        self.available > 0
    }

    pub(super) fn permits(&self, slot: Slot) -> u64 {
        u64::try_from(self.at(slot).permits).unwrap_or(0)
    }

    /// Messages that all available consumers together may be sent.
    pub(super) fn credit(&self) -> u64 {
        if self.available == 0 {
            return 0;
        }
        self.order.iter().filter(|slot| self.is_available(**slot)).map(|slot| self.permits(*slot)).sum()
    }

    /// Why nobody is available.
    pub(super) fn why_none(&self) -> WaitReason {
        let all = || self.order.iter().map(|slot| self.at(*slot));
        if all().any(|c| c.permits > 0 && !c.blocked && !c.writable) {
            WaitReason::ConsumersNotWritable
        } else if all().any(|c| c.blocked) {
            WaitReason::ConsumerUnackedLimit
        } else {
            WaitReason::NoPermits
        }
    }

    /// Ends the turn: the next entry goes to the next consumer.
    pub(super) fn end_turn(&mut self) {
        self.turn = None;
    }

    /// Whose turn it is among the best priority that has an available consumer.
    pub(super) fn pick(&mut self) -> Option<Slot> {
        if let Some((slot, left @ 1..)) = self.turn
            && self.is_available(slot)
        {
            self.turn = Some((slot, left - 1));
            return Some(slot);
        }
        if self.available == 0 {
            return None;
        }
        let first = self.order.iter().position(|slot| self.is_available(*slot))?;
        let priority = self.at(self.order[first]).spec.priority;
        let end = self.order.partition_point(|slot| self.at(*slot).spec.priority <= priority);
        let after = self.last.wrapping_add(1);
        let next =
            (after..end).find(|at| *at >= first && self.is_available(self.order[*at])).unwrap_or(first);
        self.last = next;
        let slot = self.order[next];
        self.turn = Some((slot, self.turn_entries - 1));
        Some(slot)
    }
}
