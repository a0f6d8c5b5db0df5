//! A log, a cursor and clients around one dispatcher. Every delivery is checked against what must never happen: two holders of
//! an entry or of a key, a delivery without permits, a wrong redelivery count, an early delayed message, a key out of order.

use std::collections::{BTreeMap, BTreeSet};

use geminga_common::ids::{EntryId, LedgerId, Position};

use crate::dispatch::*;

const LEDGER_ENTRIES: u64 = 50;

pub(super) fn position(index: u64) -> Position {
    Position::new(LedgerId(7 + index / LEDGER_ENTRIES), EntryId(index % LEDGER_ENTRIES))
}

pub(super) fn entry(index: u64) -> EntryMeta {
    EntryMeta {
        position: position(index),
        messages: 1,
        sticky_hash: 1,
        deliver_at_ms: None,
        chunk: None,
        size_bytes: 100,
    }
}

pub(super) fn spec(key: u64) -> ConsumerSpec {
    ConsumerSpec {
        key: ConsumerKey(key),
        name: format!("consumer-{key}"),
        priority: 0,
        key_shared: KeySharedMode::AutoSplit,
        allow_out_of_order: false,
    }
}

pub(super) fn shape() -> TopicShape {
    TopicShape { name: "persistent://public/default/t".into(), partition: None }
}

/// What a client knows of itself.
#[derive(Default, Debug)]
pub(super) struct Client {
    pub(super) permits: i64,
    pub(super) writable: bool,
}

pub(super) struct World {
    pub(super) d: Dispatcher,
    pub(super) log: Vec<EntryMeta>,
    pub(super) now_ms: u64,
    pub(super) clients: BTreeMap<ConsumerKey, Client>,
    pub(super) holder: BTreeMap<Position, ConsumerKey>,
    pub(super) acked: BTreeSet<Position>,
    pub(super) seen: BTreeSet<Position>,
    pub(super) nacks: BTreeMap<Position, u32>,
    pub(super) effects: Vec<Effect>,
    /// Every delivery: consumer and entry number.
    sent: Vec<(u64, u64)>,
    in_flight: Option<Decision>,
    /// Reads that storage has not answered although a later one was asked for.
    overtaken: Vec<ReadId>,
    single: bool,
    ordered: bool,
}

impl World {
    pub(super) fn new(kind: SubscriptionType, config: DispatchConfig) -> Self {
        Self {
            d: Dispatcher::new(kind, &shape(), config, position(0)),
            log: Vec::new(),
            now_ms: 1_000,
            clients: BTreeMap::new(),
            holder: BTreeMap::new(),
            acked: BTreeSet::new(),
            seen: BTreeSet::new(),
            nacks: BTreeMap::new(),
            effects: Vec::new(),
            sent: Vec::new(),
            in_flight: None,
            overtaken: Vec::new(),
            single: matches!(kind, SubscriptionType::Exclusive | SubscriptionType::Failover),
            ordered: kind == SubscriptionType::KeyShared,
        }
    }

    pub(super) fn publish(&mut self, count: u64) {
        self.publish_with(count, |_| {});
    }

    pub(super) fn publish_with(&mut self, count: u64, mut shape: impl FnMut(&mut EntryMeta)) {
        for _ in 0..count {
            let mut meta = entry(self.log.len() as u64);
            shape(&mut meta);
            self.log.push(meta);
        }
    }

    fn end(&self) -> Position {
        self.log
            .last()
            .map_or(position(0), |last| Position::new(last.position.ledger, last.position.entry.next()))
    }

    pub(super) fn floor(&self) -> Position {
        let first = self.log.iter().find(|meta| !self.acked.contains(&meta.position));
        first.map_or(self.end(), |meta| meta.position)
    }

    pub(super) fn join(&mut self, spec: ConsumerSpec) -> Result<(), AddError> {
        let key = spec.key;
        let effects = self.d.add_consumer(spec, self.now_ms)?;
        self.effects.extend(effects);
        self.clients.insert(key, Client { permits: 0, writable: true });
        Ok(())
    }

    pub(super) fn leave(&mut self, key: u64) {
        let key = ConsumerKey(key);
        if self.clients.remove(&key).is_none() {
            return;
        }
        let effects = self.d.remove_consumer(key, self.now_ms);
        self.effects.extend(effects);
        if !self.single {
            self.holder.retain(|_, holder| *holder != key);
        } else if self.d.active_consumer().is_none() {
            self.holder.clear();
        }
        if self.clients.is_empty() {
            self.nacks.clear();
        }
    }

    pub(super) fn flow(&mut self, key: u64, permits: u32) {
        if let Some(client) = self.clients.get_mut(&ConsumerKey(key)) {
            client.permits += i64::from(permits);
            self.d.flow(ConsumerKey(key), permits);
        }
    }

    pub(super) fn set_writable(&mut self, key: u64, writable: bool) {
        if let Some(client) = self.clients.get_mut(&ConsumerKey(key)) {
            client.writable = writable;
            self.d.set_writable(ConsumerKey(key), writable);
        }
    }

    pub(super) fn ack(&mut self, position: Position) {
        self.acked.insert(position);
        let holder = self.holder.remove(&position);
        let released = self.d.acked(position);
        if !self.single {
            assert_eq!(
                released.map(|released| released.consumer),
                holder,
                "the holder of {position} is released"
            );
        }
        self.nacks.remove(&position);
    }

    pub(super) fn ack_all(&mut self) {
        for position in self.holder.keys().copied().collect::<Vec<_>>() {
            self.ack(position);
        }
        let floor = self.floor();
        assert_eq!(self.d.acked_below(floor), [], "everything below was acknowledged one by one");
    }

    pub(super) fn held_by(&self, key: u64) -> Vec<Position> {
        self.holder.iter().filter(|(_, holder)| holder.0 == key).map(|(position, _)| *position).collect()
    }

    pub(super) fn nack(&mut self, key: u64, positions: Option<&[Position]>) {
        if !self.single {
            let all = self.held_by(key);
            for position in all.iter().filter(|p| positions.is_none_or(|only| only.contains(p))) {
                self.holder.remove(position);
                *self.nacks.entry(*position).or_default() += 1;
            }
        }
        self.d.redeliver(ConsumerKey(key), positions, self.floor());
        self.forget_rewound();
    }

    pub(super) fn rewind(&mut self, to: Position) {
        self.d.rewind(to);
        self.forget_rewound();
    }

    /// A rewind of a single consumer takes back everything from the read position on.
    fn forget_rewound(&mut self) {
        if self.single {
            let read_position = self.d.read_position();
            self.holder.retain(|position, _| *position < read_position);
        }
    }

    /// Asks for a decision; a read stays under way until `finish`.
    pub(super) fn decide(&mut self) -> Decision {
        let view = LogView { floor: self.floor(), end: self.end() };
        let decision = self.d.decide(self.now_ms, view, &mut self.effects);
        self.forget_rewound();
        match &decision {
            Decision::Wait(reason) => self.check_wait(*reason),
            Decision::Read { read, .. } | Decision::Replay { read, .. } => {
                if let Some(Decision::Read { read, .. } | Decision::Replay { read, .. }) = self.in_flight {
                    self.overtaken.push(read);
                }
                assert!(!self.overtaken.contains(read), "reads are never named twice");
                self.in_flight = Some(decision.clone());
            }
        }
        decision
    }

    pub(super) fn fail_read(&mut self) {
        if let Some(Decision::Read { read, .. } | Decision::Replay { read, .. }) = self.in_flight.take() {
            self.d.read_failed(read);
        }
    }

    /// Storage answers the read under way, with at most `most` entries.
    pub(super) fn finish(&mut self, most: usize) -> Vec<Delivery> {
        for late in self.overtaken.drain(..) {
            let mut out = Vec::new();
            let end = self
                .log
                .last()
                .map_or(position(0), |last| Position::new(last.position.ledger, last.position.entry.next()));
            assert_eq!(self.d.offer(late, &self.log, end, self.now_ms, &mut out), Offered::Stale);
            assert_eq!(out, [], "a stale read delivers nothing");
        }
        let Some(decision) = self.in_flight.take() else { return Vec::new() };
        let (read, found, next) = match decision {
            Decision::Replay { read, positions } => {
                let next = positions.get(most).copied().unwrap_or(self.end());
                let asked: BTreeSet<_> = positions.into_iter().take(most).collect();
                let found = self.log.iter().filter(|meta| asked.contains(&meta.position)).copied().collect();
                (read, found, next)
            }
            Decision::Read { read, from, entries, messages, .. } => {
                let first = self.log.partition_point(|meta| meta.position < from);
                let mut found: Vec<EntryMeta> = Vec::new();
                let mut budget = i64::from(messages);
                for meta in self.log[first..].iter().take(most.min(entries as usize)) {
                    if budget <= 0 {
                        break;
                    }
                    budget -= i64::from(meta.messages);
                    found.push(*meta);
                }
                let next = self.log.get(first + found.len()).map_or(self.end(), |meta| meta.position);
                (read, found, next)
            }
            Decision::Wait(_) => return Vec::new(),
        };
        let found: Vec<_> = found.into_iter().filter(|meta| !self.acked.contains(&meta.position)).collect();
        let mut out = Vec::new();
        if self.d.offer(read, &found, next, self.now_ms, &mut out) == Offered::Stale {
            assert!(out.is_empty(), "a stale read delivers nothing");
        }
        for delivery in &out {
            self.check_delivery(&found[delivery.index as usize], delivery);
        }
        out
    }

    fn finish_numbered(&mut self) -> Vec<(u64, u64)> {
        let before = self.sent.len();
        self.finish(usize::MAX);
        self.sent[before..].to_vec()
    }

    fn check_delivery(&mut self, meta: &EntryMeta, delivery: &Delivery) {
        let at = meta.position;
        let client = self.clients.get_mut(&delivery.consumer).expect("deliveries go to connected consumers");
        assert!(client.permits > 0, "{at} went to {} without permits", delivery.consumer);
        assert!(client.writable, "{at} went to {}, which takes no bytes", delivery.consumer);
        client.permits -= i64::from(meta.messages);
        let before = self.holder.insert(at, delivery.consumer);
        assert_eq!(before, None, "{at} has two holders");
        assert_eq!(delivery.redelivery_count, self.nacks.get(&at).copied().unwrap_or(0), "count of {at}");
        if !self.single {
            assert!(meta.deliver_at_ms.is_none_or(|due| due <= self.now_ms), "{at} is early");
        }
        if self.ordered {
            self.check_key_order(meta, delivery);
        }
        self.seen.insert(at);
        self.sent.push((delivery.consumer.0, number(at)));
    }

    fn check_key_order(&self, meta: &EntryMeta, delivery: &Delivery) {
        for other in self.log.iter().filter(|other| other.sticky_hash == meta.sticky_hash) {
            if let Some(holder) = self.holder.get(&other.position) {
                assert_eq!(*holder, delivery.consumer, "key {} is outstanding twice", meta.sticky_hash);
            }
            let comes_first = other.position < meta.position
                && other.deliver_at_ms.is_none()
                && meta.deliver_at_ms.is_none()
                && !self.acked.contains(&other.position);
            if comes_first && !self.seen.contains(&meta.position) {
                assert!(self.seen.contains(&other.position), "{} overtook {}", meta.position, other.position);
            }
        }
    }

    /// "ready > 0 and credit > 0 ⇒ progress": a wait has to be true.
    fn check_wait(&self, reason: WaitReason) {
        let unserved = |meta: &&EntryMeta| {
            !self.acked.contains(&meta.position) && !self.holder.contains_key(&meta.position)
        };
        let free = |client: &Client| client.permits > 0 && client.writable;
        match reason {
            WaitReason::NoConsumer => assert!(self.clients.is_empty()),
            WaitReason::CaughtUp => {
                assert_eq!(self.log.iter().find(unserved), None, "caught up with something left");
            }
            WaitReason::DelayedUntil(due_ms) => {
                assert!(due_ms > self.now_ms);
                let left = self.log.iter().filter(unserved);
                assert!(left.map(|meta| meta.deliver_at_ms).all(|due| due > Some(self.now_ms)));
            }
            WaitReason::NoPermits if self.single => {
                let active = self.d.active_consumer().expect("somebody is active");
                assert!(self.clients[&active].permits <= 0);
            }
            WaitReason::NoPermits => assert!(self.clients.values().all(|client| client.permits <= 0)),
            WaitReason::ConsumersNotWritable if !self.single => {
                let stats = self.d.stats();
                let mut others = stats.consumers.iter().filter(|c| !c.blocked_on_unacked);
                assert!(others.all(|c| !free(&self.clients[&c.key])));
            }
            WaitReason::ConsumerUnackedLimit => {
                let stats = self.d.stats();
                assert!(stats.consumers.iter().any(|c| c.blocked_on_unacked && c.unacked_messages > 0));
                assert!(stats.consumers.iter().all(|c| c.blocked_on_unacked || !free(&self.clients[&c.key])));
            }
            WaitReason::SubscriptionUnackedLimit => assert!(!self.holder.is_empty()),
            WaitReason::KeysBlocked => {
                assert!(self.clients.len() > 1 || !self.holder.is_empty(), "one free consumer blocks nobody");
            }
            WaitReason::AckStateFull => panic!("the machines do not know it"),
            WaitReason::PausedForFailover(at_ms) => assert!(at_ms > self.now_ms),
            WaitReason::DelayedTrackerFull(at_ms) => assert!(at_ms > self.now_ms),
            WaitReason::ConsumersNotWritable | WaitReason::ReadPending | WaitReason::Fenced => {}
        }
    }

    /// Serves until there is a reason to wait; the deliveries as (consumer, entry number).
    pub(super) fn pump(&mut self) -> (Vec<(u64, u64)>, WaitReason) {
        let mut sent = Vec::new();
        for _ in 0..100_000 {
            let asked = self.in_flight.is_some() || !matches!(self.decide(), Decision::Wait(_));
            if !asked {
                return (sent, self.d.wait_reason().expect("the last decision was to wait"));
            }
            sent.extend(self.finish_numbered());
        }
        panic!("the dispatcher is busy without progress: {:?}", self.d.stats());
    }

    /// Everybody becomes well-behaved: then everything has to be acknowledged.
    pub(super) fn drain(&mut self) {
        if self.clients.is_empty() {
            self.join(spec(1_000)).expect("an empty subscription takes a consumer");
        }
        for _ in 0..10_000 {
            let keys: Vec<_> = self.clients.keys().copied().collect();
            for key in keys {
                self.set_writable(key.0, true);
                if self.clients[&key].permits <= 0 {
                    self.flow(key.0, 50);
                }
            }
            let (_, reason) = self.pump();
            self.ack_all();
            if self.acked.len() == self.log.len() {
                break;
            }
            if let WaitReason::DelayedUntil(ms)
            | WaitReason::DelayedTrackerFull(ms)
            | WaitReason::PausedForFailover(ms) = reason
            {
                assert!(self.d.next_wakeup_ms().is_some_and(|at| at <= ms), "somebody wakes us");
                self.now_ms = self.now_ms.max(ms);
            }
        }
        assert_eq!(self.acked.len(), self.log.len(), "nothing is lost: {:?}", self.d.stats());
        let stats = self.d.stats();
        assert_eq!((stats.unacked_messages, stats.replay_entries), (0, 0));
        assert!(stats.consumers.iter().all(|c| c.unacked_messages == 0 && !c.blocked_on_unacked));
        assert!(stats.draining.is_empty());
        for consumer in &stats.consumers {
            let known = self.clients[&consumer.key].permits;
            assert_eq!(consumer.permits, known, "permits of {} agree with the client's", consumer.key);
        }
    }
}

/// The entry number of a position.
pub(super) fn number(at: Position) -> u64 {
    (at.ledger.0 - 7) * LEDGER_ENTRIES + at.entry.0
}
