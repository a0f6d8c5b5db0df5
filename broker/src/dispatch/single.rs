//! Exclusive and Failover: one active consumer reads everything, in order.
//!
//! Owned by the topic's task through `Dispatcher`. Nothing is remembered per entry: what was sent and not acknowledged is what
//! lies between the cursor's floor and the read position, and every way of giving it back (redeliver, disconnect, change of the
//! active consumer) is a rewind to that floor. So redelivery counts stay 0 and no consumer is ever blocked on unacknowledged
//! messages, as on Pulsar.
//!
//! A new active consumer on Failover reads only after `failover_delay_ms`: the one before may still be working on what it was
//! sent, and its late acknowledgements move the floor. Changes within the delay do not prolong it.

use std::collections::BTreeMap;

use geminga_common::ids::Position;

use super::hashing::{FAILOVER_POINTS, declared_slot, murmur3_31};
use super::reader::{ReadKind, Reader};
use super::selector::check_ranges;
use super::types::{
    AddError, ConsumerKey, ConsumerSpec, ConsumerStats, Decision, Delivery, DispatchConfig, DispatcherStats,
    Effect, EntryMeta, HashRange, KeySharedMode, LogView, Offered, ReadId, TopicShape, WaitReason,
};

struct Consumer {
    spec: ConsumerSpec,
    permits: i64,
    writable: bool,
    sent_entries: u64,
    sent_messages: u64,
    sent_bytes: u64,
}

impl Consumer {
    fn ranges(&self) -> &[HashRange] {
        match &self.spec.key_shared {
            KeySharedMode::AutoSplit => &[],
            KeySharedMode::Sticky(ranges) => ranges,
        }
    }
}

pub(super) struct Single {
    failover: bool,
    shape: TopicShape,
    failover_delay_ms: u64,
    /// Failover: by priority, then name.
    consumers: Vec<Consumer>,
    active: Option<ConsumerKey>,
    /// When the active consumer, chosen but not settled, begins to read from the floor.
    settles_at_ms: Option<u64>,
    pub(super) reader: Reader,
    pub(super) fenced: bool,
    pub(super) wait: Option<WaitReason>,
}

impl Single {
    pub(super) fn new(failover: bool, shape: &TopicShape, config: &DispatchConfig, floor: Position) -> Self {
        Self {
            failover,
            shape: shape.clone(),
            failover_delay_ms: if failover { config.failover_delay_ms } else { 0 },
            consumers: Vec::new(),
            active: None,
            settles_at_ms: None,
            reader: Reader::new(floor, config),
            fenced: false,
            wait: None,
        }
    }

    pub(super) fn is_failover(&self) -> bool {
        self.failover
    }

    pub(super) fn is_empty(&self) -> bool {
        self.consumers.is_empty()
    }

    pub(super) fn settles_at_ms(&self) -> Option<u64> {
        self.settles_at_ms
    }

    pub(super) fn active(&self) -> Option<ConsumerKey> {
        self.active
    }

    pub(super) fn add_consumer(&mut self, spec: ConsumerSpec, now_ms: u64) -> Result<Vec<Effect>, AddError> {
        let key = spec.key;
        if self.consumers.iter().any(|other| other.spec.key == key) {
            return Err(AddError::AlreadyAttached { key });
        }
        if let Some(holder) = self.consumers.first().filter(|_| !self.failover) {
            return Err(AddError::ExclusiveTaken { holder: holder.spec.key });
        }
        if let KeySharedMode::Sticky(ranges) = &spec.key_shared
            && !self.failover
        {
            check_ranges(ranges)?;
        }
        self.consumers.push(Consumer {
            spec,
            permits: 0,
            writable: true,
            sent_entries: 0,
            sent_messages: 0,
            sent_bytes: 0,
        });
        let changed = self.choose_active(now_ms);
        if changed || !self.failover {
            return Ok(Vec::new());
        }
        // While a change is being settled the newcomer hears of it with all others; it only needs to know now that it is idle.
        Ok(vec![Effect::ActiveConsumerChange { consumer: key, active: self.active == Some(key) }])
    }

    pub(super) fn remove_consumer(&mut self, key: ConsumerKey, now_ms: u64) {
        self.consumers.retain(|consumer| consumer.spec.key != key);
        self.choose_active(now_ms);
    }

    /// Chooses again; true if another consumer became active.
    fn choose_active(&mut self, now_ms: u64) -> bool {
        self.consumers.sort_by(|a, b| (a.spec.priority, &a.spec.name).cmp(&(b.spec.priority, &b.spec.name)));
        let chosen = self.best_index().map(|index| self.consumers[index].spec.key);
        if chosen == self.active {
            return false;
        }
        self.active = chosen;
        self.reader.cancel();
        self.settles_at_ms = match chosen {
            None => None,
            Some(_) => Some(self.settles_at_ms.unwrap_or(now_ms.saturating_add(self.failover_delay_ms))),
        };
        chosen.is_some()
    }

    /// Which of the sorted consumers should be active: among the best priority, by partition number, or on a plain topic by a
    /// hash ring over the names.
    fn best_index(&self) -> Option<usize> {
        let best = self.consumers.first()?.spec.priority;
        let candidates = self.consumers.partition_point(|consumer| consumer.spec.priority == best);
        if let Some(partition) = self.shape.partition {
            return Some(partition as usize % candidates);
        }
        if candidates == 1 {
            return Some(0);
        }
        let mut ring = BTreeMap::new();
        for (index, consumer) in self.consumers[..candidates].iter().enumerate() {
            for point in 0..FAILOVER_POINTS {
                ring.insert(murmur3_31(format!("{}{point}", consumer.spec.name).as_bytes()), index);
            }
        }
        let topic = murmur3_31(self.shape.name.as_bytes());
        ring.range(topic..).next().or_else(|| ring.iter().next()).map(|(_, index)| *index)
    }

    fn active_consumer(&self) -> Option<&Consumer> {
        self.consumers.iter().find(|consumer| Some(consumer.spec.key) == self.active)
    }

    fn consumer(&mut self, key: ConsumerKey) -> Option<&mut Consumer> {
        self.consumers.iter_mut().find(|consumer| consumer.spec.key == key)
    }

    pub(super) fn flow(&mut self, key: ConsumerKey, permits: u32) {
        if let Some(consumer) = self.consumer(key) {
            consumer.permits += i64::from(permits);
        }
    }

    pub(super) fn set_writable(&mut self, key: ConsumerKey, writable: bool) {
        if let Some(consumer) = self.consumer(key) {
            consumer.writable = writable;
        }
    }

    pub(super) fn decide(&mut self, now_ms: u64, log: &LogView, effects: &mut Vec<Effect>) -> Decision {
        if self.fenced {
            return Decision::Wait(WaitReason::Fenced);
        }
        if self.active.is_none() {
            return Decision::Wait(WaitReason::NoConsumer);
        }
        if let Some(at_ms) = self.settles_at_ms {
            if now_ms < at_ms {
                return Decision::Wait(WaitReason::PausedForFailover(at_ms));
            }
            self.settle(log.floor, effects);
        }
        self.reader.skip_to(log.floor);
        if self.reader.is_busy() {
            return Decision::Wait(WaitReason::ReadPending);
        }
        if self.reader.position() >= log.end {
            return Decision::Wait(WaitReason::CaughtUp);
        }
        let Some(active) = self.active_consumer() else { return Decision::Wait(WaitReason::NoConsumer) };
        match (u64::try_from(active.permits), active.writable) {
            (Err(_) | Ok(0), _) => Decision::Wait(WaitReason::NoPermits),
            (Ok(_), false) => Decision::Wait(WaitReason::ConsumersNotWritable),
            (Ok(credit), true) => self.reader.forward(credit, u32::MAX),
        }
    }

    /// The active consumer starts from the floor; on Failover all are told.
    fn settle(&mut self, floor: Position, effects: &mut Vec<Effect>) {
        self.settles_at_ms = None;
        self.reader.go_to(floor);
        if self.failover {
            effects.extend(self.consumers.iter().map(|consumer| Effect::ActiveConsumerChange {
                consumer: consumer.spec.key,
                active: Some(consumer.spec.key) == self.active,
            }));
        }
    }

    pub(super) fn offer(
        &mut self,
        read: ReadId,
        entries: &[EntryMeta],
        next: Position,
        out: &mut Vec<Delivery>,
    ) -> Offered {
        let Some(ReadKind::Forward) = self.reader.finish(read) else { return Offered::Stale };
        let (active, failover) = (self.active, self.failover);
        let consumer = self.consumers.iter_mut().find(|consumer| Some(consumer.spec.key) == active);
        let Some(consumer) = consumer else { return Offered::Stale };
        let mut reached = next;
        for (index, entry) in entries.iter().enumerate() {
            let ranges = if failover { &[] } else { consumer.ranges() };
            let slot = declared_slot(entry.sticky_hash);
            if !ranges.is_empty() && !ranges.iter().any(|range| range.contains(slot)) {
                continue;
            }
            if consumer.permits <= 0 || !consumer.writable {
                reached = entry.position;
                break;
            }
            consumer.permits -= i64::from(entry.messages);
            consumer.sent_entries += 1;
            consumer.sent_messages += u64::from(entry.messages);
            consumer.sent_bytes += u64::from(entry.size_bytes);
            self.reader.saw_entry(entry.messages);
            out.push(Delivery { index: index as u32, consumer: consumer.spec.key, redelivery_count: 0 });
        }
        self.reader.advance(reached);
        Offered::Taken
    }

    /// Sends everything unacknowledged again; only the active consumer may ask for it.
    pub(super) fn redeliver(&mut self, key: ConsumerKey, floor: Position) {
        if self.active == Some(key) && self.settles_at_ms.is_none() {
            self.reader.go_to(floor);
        }
    }

    pub(super) fn stats(&self) -> DispatcherStats {
        DispatcherStats {
            read_position: self.reader.position(),
            replay_entries: 0,
            delayed_entries: 0,
            unacked_messages: 0,
            blocked_on_unacked: false,
            wait: self.wait,
            draining: Vec::new(),
            draining_cleared_total: 0,
            consumers: self.consumers.iter().map(|consumer| self.consumer_stats(consumer)).collect(),
        }
    }

    fn consumer_stats(&self, consumer: &Consumer) -> ConsumerStats {
        ConsumerStats {
            key: consumer.spec.key,
            name: consumer.spec.name.clone(),
            permits: consumer.permits,
            parked_permits: 0,
            unacked_messages: 0,
            blocked_on_unacked: false,
            writable: consumer.writable,
            active: Some(consumer.spec.key) == self.active,
            sent_entries: consumer.sent_entries,
            sent_messages: consumer.sent_messages,
            sent_bytes: consumer.sent_bytes,
            redelivered_messages: 0,
            hash_ranges: if self.failover { Vec::new() } else { consumer.ranges().to_vec() },
        }
    }
}
