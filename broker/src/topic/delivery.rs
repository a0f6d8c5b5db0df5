//! Entries on their way to consumers: decide, read, offer, queue; and what comes back: flow, acks, redelivery, durability.

use super::error::{Reply, TopicError};
use super::messages::{Ack, Message, Persisted, Redeliver};
use super::subscription::{InFlight, Reading, Subscription};
use super::worker::{ReadFor, Worker};
use crate::cursor::{self, Log as _};
use crate::dispatch::hashing::sticky_hash;
use crate::dispatch::{
    ChunkRef, ConsumerKey, Decision, Delivery, Effect, EntryMeta, LogView, Offered, ReadId, SubscriptionType,
};
use crate::managed_ledger::{self as ml, ReadEntry, ReadLimit, ReadOutcome};
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::clock::Mono;
use geminga_common::error::Coded as _;
use geminga_common::ids::Position;
use geminga_common::names::SubscriptionName;
use geminga_proto::encode::{self, MessageHeader};
use geminga_proto::metadata_view::MetadataView;
use geminga_proto::payload::parse_payload;
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire};

/// Reads of one subscription in one turn before others get theirs.
const ROUNDS_MAX: usize = 64;

/// Memory that turns reuse.
#[derive(Default)]
pub(super) struct Scratch {
    metas: Vec<EntryMeta>,
    /// Index of each meta's entry in what was read.
    origin: Vec<u32>,
    deliveries: Vec<Delivery>,
    effects: Vec<Effect>,
    ack_set: Vec<i64>,
}

impl Worker {
    /// Dispatches every subscription until it has to wait.
    pub(super) fn dispatch_all(&mut self) {
        self.unfinished = false;
        if self.is_ending() {
            return;
        }
        let names: Vec<SubscriptionName> =
            self.subscriptions.values().filter(|s| !s.consumers.is_empty()).map(|s| s.name.clone()).collect();
        for name in names {
            if let Some(mut sub) = self.subscriptions.remove(&name) {
                self.dispatch(&mut sub);
                self.subscriptions.insert(name, sub);
            }
        }
    }

    fn dispatch(&mut self, sub: &mut Subscription) {
        // The clock is asked only where a read has failed.
        if sub.unreadable.wake().is_some() && !sub.unreadable.may_read(self.broker.clock.mono()) {
            return;
        }
        let end = self.readable_end(sub);
        // Every round may be one run between two acknowledged entries: when they are used up more may be ready, and nobody else would
        // come back for it.
        let mut more = true;
        for _ in 0..ROUNDS_MAX {
            if sub.reading.is_some() {
                return;
            }
            let now_ms = self.broker.clock.wall_ms();
            let view = LogView { floor: self.ledger.settle(sub.acks.floor()), end };
            let mut effects = std::mem::take(&mut self.scratch.effects);
            let decision = sub.dispatcher.decide(now_ms, view, &mut effects);
            tell(sub, &mut effects);
            self.scratch.effects = effects;
            match decision {
                Decision::Wait(_) => {
                    more = false;
                    break;
                }
                Decision::Read { read, from, entries, bytes, .. } => {
                    self.forward(
                        sub,
                        read,
                        from,
                        end,
                        ReadLimit { entries: entries as usize, bytes: bytes as usize },
                    );
                }
                Decision::Replay { read, positions } => self.replay(sub, read, &positions),
            }
        }
        if !more {
            self.tell_end(sub);
        } else if sub.reading.is_none() {
            self.unfinished = true;
        }
    }

    /// How far a subscription may read: to the end of the topic, or, when what it acknowledged out of order has become too much, to
    /// the last of that. What lies before must go on being delivered, because only its acknowledgement closes the gaps.
    fn readable_end(&self, sub: &mut Subscription) -> Position {
        let end = self.ledger.end();
        let limit = self.broker.config.ack_state_max.0 as usize;
        if !sub.gaps.are_full(&sub.acks, limit, self.broker.clock.mono()) {
            return end;
        }
        sub.acks.last_touched().map_or(end, |last| self.ledger.next(last).min(end))
    }

    fn forward(
        &mut self,
        sub: &mut Subscription,
        read: ReadId,
        from: Position,
        end: Position,
        limit: ReadLimit,
    ) {
        // Whole stretches that are acknowledged need not be read.
        let Some(run) = sub.acks.next_unacked_run(from, end, limit.entries as u64, &self.ledger) else {
            self.offer(sub, read, &[], end);
            return;
        };
        let limit = ReadLimit { entries: (run.entries as usize).min(limit.entries), ..limit };
        match self.ledger.read(run.first, limit, ReadClass::Tail) {
            ReadOutcome::Ready(found) => {
                let next = self.after(&found, run.first);
                self.offer(sub, read, &found, next);
            }
            ReadOutcome::Pending(token) => {
                self.reads.insert(token, ReadFor::Dispatch(sub.name.clone(), sub.incarnation));
                sub.reading = Some(Reading { token, read, replay: false, from: run.first });
            }
            ReadOutcome::AtEnd => self.offer(sub, read, &[], end),
        }
    }

    fn replay(&mut self, sub: &mut Subscription, read: ReadId, positions: &[Position]) {
        let wanted: Vec<Position> =
            positions.iter().copied().filter(|p| !sub.acks.is_acked(*p) && self.ledger.holds(*p)).collect();
        let last = positions.last().map_or(sub.acks.floor(), |p| Position::new(p.ledger, p.entry.next()));
        if wanted.is_empty() {
            self.offer(sub, read, &[], last);
            return;
        }
        match self.ledger.read_at(&wanted) {
            ReadOutcome::Ready(found) => self.offer(sub, read, &found, last),
            ReadOutcome::Pending(token) => {
                self.reads.insert(token, ReadFor::Dispatch(sub.name.clone(), sub.incarnation));
                sub.reading = Some(Reading { token, read, replay: true, from: last });
            }
            ReadOutcome::AtEnd => self.offer(sub, read, &[], last),
        }
    }

    /// The first position after what was read.
    fn after(&self, found: &[ReadEntry], from: Position) -> Position {
        found.last().map_or(from, |last| self.ledger.next(last.position))
    }

    /// A read has ended.
    pub(super) fn read_done(&mut self, token: ml::Token, result: Result<Vec<ReadEntry>, ml::ReadError>) {
        let (name, incarnation) = match self.reads.remove(&token) {
            None => return,
            Some(ReadFor::Then(then)) => {
                return then(result.map_err(|error| TopicError::read(&error)));
            }
            Some(ReadFor::Dispatch(name, incarnation)) => (name, incarnation),
        };
        let Some(mut sub) = self.subscriptions.remove(&name) else { return };
        let ours = sub.incarnation == incarnation && sub.reading.as_ref().is_some_and(|r| r.token == token);
        if ours && let Some(reading) = sub.reading.take() {
            match result {
                Ok(found) => {
                    if let Some(after) = sub.unreadable.over(self.broker.clock.mono()) {
                        tracing::info!(topic = %self.name, subscription = %sub.name, ?after, "reads work again");
                    }
                    let next = if reading.replay { reading.from } else { self.after(&found, reading.from) };
                    self.offer(&mut sub, reading.read, &found, next);
                }
                Err(ml::ReadError::Lost(first, last)) => {
                    self.pass_lost(&mut sub, reading.read, first, last);
                }
                Err(error) => self.read_failed(&mut sub, reading.read, &error),
            }
        }
        self.subscriptions.insert(name, sub);
    }

    fn read_failed(&self, sub: &mut Subscription, read: ReadId, error: &ml::ReadError) {
        sub.dispatcher.read_failed(read);
        // What was trimmed is left out by the next decision.
        if matches!(error, ml::ReadError::Trimmed(_)) {
            return;
        }
        let why = format!("{}: {error}", error.code());
        if let Some((since, pause)) = sub.unreadable.failed(why, self.broker.clock.mono()) {
            tracing::warn!(
                code = %error.code(), topic = %self.name, subscription = %sub.name, %error, ?since, ?pause,
                "a read failed; its consumers wait, it is tried again"
            );
        }
    }

    /// Offers what was read to the dispatcher and queues what it assigns.
    fn offer(&mut self, sub: &mut Subscription, read: ReadId, found: &[ReadEntry], next: Position) {
        let now_ms = self.broker.clock.wall_ms();
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.metas.clear();
        scratch.origin.clear();
        scratch.deliveries.clear();
        let needs_metadata = matches!(sub.kind, SubscriptionType::Shared | SubscriptionType::KeyShared)
            || sub.consumers.values().any(|c| c.spec.has_ranges());
        for (index, entry) in found.iter().enumerate() {
            if !sub.acks.is_acked(entry.position) {
                scratch.metas.push(meta(sub, entry, needs_metadata));
                scratch.origin.push(index as u32);
            }
        }
        let offered = sub.dispatcher.offer(read, &scratch.metas, next, now_ms, &mut scratch.deliveries);
        if offered == Offered::Taken {
            self.queue(sub, found, &mut scratch, now_ms);
        }
        self.scratch = scratch;
    }

    /// Queues deliveries, consumer by consumer as they come, one lock for each stretch.
    fn queue(&mut self, sub: &mut Subscription, found: &[ReadEntry], scratch: &mut Scratch, now_ms: u64) {
        let mono = self.broker.clock.mono();
        let mut at = 0;
        while at < scratch.deliveries.len() {
            let key = scratch.deliveries[at].consumer;
            let stretch = scratch.deliveries[at..].iter().take_while(|d| d.consumer == key).count();
            if let Some(consumer) = sub.consumers.get_mut(&key) {
                consumer.last_consumed_ms = now_ms;
                let before = (sub.counters.messages_out, sub.counters.bytes_out, sub.counters.redelivered);
                let mut push = consumer.spec.peer.outbox.push();
                for delivery in &scratch.deliveries[at..at + stretch] {
                    let entry = &found[scratch.origin[delivery.index as usize] as usize];
                    scratch.ack_set.clear();
                    if let Some(left) = sub.acks.remaining(entry.position) {
                        scratch.ack_set.extend(left.iter().map(|word| *word as i64));
                    }
                    let header = MessageHeader {
                        consumer_id: consumer.spec.id.0,
                        ledger: entry.position.ledger.0,
                        entry: entry.position.entry.0,
                        partition: self.partition,
                        redelivery_count: delivery.redelivery_count,
                        ack_set: &scratch.ack_set,
                        consumer_epoch: consumer.epoch,
                    };
                    let body = &entry.entry.payload;
                    push.frame_with_body(|out| encode::message_header(&header, body.len(), out), body);
                    sub.counters.messages_out += u64::from(entry.entry.header.messages);
                    sub.counters.bytes_out += body.len() as u64;
                    sub.counters.redelivered += u64::from(delivery.redelivery_count > 0);
                }
                drop(push);
                sub.counters.last_consumed_ms = now_ms;
                let sent = [
                    sub.counters.messages_out - before.0,
                    sub.counters.bytes_out - before.1,
                    sub.counters.redelivered - before.2,
                    0,
                    0,
                ];
                sub.traffic.add(sent, mono);
                consumer.traffic.add(sent, mono);
                let handle = self.handle.clone();
                let waiter =
                    || -> super::outbox::Drained { Box::new(move || handle.put(Message::Writable(key))) };
                if !consumer.spec.peer.outbox.writable_or(waiter) {
                    sub.dispatcher.set_writable(key, false);
                }
            }
            at += stretch;
        }
    }

    /// Tells the consumers of a terminated topic that they have seen everything.
    fn tell_end(&mut self, sub: &mut Subscription) {
        if !self.ledger.is_terminated() || sub.acks.backlog(&self.ledger) > 0 {
            return;
        }
        for consumer in sub.consumers.values_mut().filter(|c| !c.told_end) {
            consumer.told_end = true;
            let peer = &consumer.spec.peer;
            // C++ and Go clients drop the connection on a command they do not know (`pulsar-map` 1.7).
            let version = peer.announced().map_or("", |a| a.client_version.as_str()).to_ascii_lowercase();
            if version.contains("cpp")
                || version.contains("c++")
                || version.contains("go")
                || version.contains("python")
            {
                continue;
            }
            let consumer_id = consumer.spec.id.0;
            crate::service::command(peer, Type::ReachedEndOfTopic, |c| {
                c.reached_end_of_topic = Some(Box::new(wire::CommandReachedEndOfTopic { consumer_id }));
            });
        }
    }

    fn consumer_subscription(&mut self, key: ConsumerKey) -> Option<&mut Subscription> {
        let name = self.consumers.get(&key)?;
        self.subscriptions.get_mut(name)
    }

    pub(super) fn flow(&mut self, key: ConsumerKey, permits: u32) {
        let now_ms = self.broker.clock.wall_ms();
        if let Some(sub) = self.consumer_subscription(key) {
            sub.dispatcher.flow(key, permits);
            sub.counters.last_flow_ms = now_ms;
            if let Some(consumer) = sub.consumers.get_mut(&key) {
                consumer.last_flow_ms = now_ms;
            }
        }
    }

    pub(super) fn writable(&mut self, key: ConsumerKey) {
        if let Some(sub) = self.consumer_subscription(key) {
            sub.dispatcher.set_writable(key, true);
        }
    }

    pub(super) fn redeliver(&mut self, redeliver: Redeliver) {
        let ledger = &self.ledger;
        let Some(name) = self.consumers.get(&redeliver.consumer) else { return };
        let Some(sub) = self.subscriptions.get_mut(name) else { return };
        if let (Some(epoch), Some(consumer)) = (redeliver.epoch, sub.consumers.get_mut(&redeliver.consumer)) {
            consumer.epoch = Some(epoch);
        }
        let floor = ledger.settle(sub.acks.floor());
        sub.dispatcher.redeliver(redeliver.consumer, redeliver.positions.as_deref(), floor);
    }

    pub(super) fn ack(&mut self, ack: Ack) {
        let Ack { consumer, cumulative, ids, properties, receipt } = ack;
        let (mono, now_ms) = (self.broker.clock.mono(), self.broker.clock.wall_ms());
        let ledger = &self.ledger;
        let sub = self.consumers.get(&consumer).and_then(|name| self.subscriptions.get_mut(name));
        let Some(sub) = sub else {
            if let Some(receipt) = receipt {
                receipt.send(Err(TopicError::NotReady));
            }
            return;
        };
        sub.counters.last_acked_ms = now_ms;
        let acked = ids.len() as u64;
        sub.traffic.add([0, 0, 0, acked, 0], mono);
        if let Some(consumer) = sub.consumers.get_mut(&consumer) {
            consumer.last_acked_ms = now_ms;
            consumer.traffic.add([0, 0, 0, acked, 0], mono);
        }
        let before = sub.acks.floor();
        sub.gaps.changed = true;
        if !cumulative {
            for id in &ids {
                acked_one(sub, ledger, id.position, &id.ack_set, id.batch_size);
            }
        } else if matches!(sub.kind, SubscriptionType::Shared | SubscriptionType::KeyShared) {
            // Nobody may acknowledge what others hold.
            if let Some(receipt) = receipt {
                let text = "cumulative acknowledgement is not possible on a shared subscription";
                receipt.send(Err(TopicError::NotAllowed(text.to_owned())));
            }
            return;
        } else if let Some(id) = ids.first() {
            let part = (!id.ack_set.is_empty()).then_some((id.ack_set.as_slice(), id.batch_size));
            sub.acks.ack_cumulative(id.position, part, ledger);
            if !properties.is_empty() {
                sub.acks.set_ack_properties(properties);
            }
        }
        if sub.acks.floor() > before {
            sub.counters.last_floor_ms = now_ms;
            if let Some(cursor) = sub.cursor {
                self.durable.moved(cursor, sub.acks.floor());
            }
            let floor = ledger.settle(sub.acks.floor());
            sub.dispatcher.acked_below(floor);
        }
        match receipt {
            Some(receipt) if sub.is_durable() => sub.persisting.receipts.push(receipt),
            Some(receipt) => receipt.send(Ok(())),
            None => {}
        }
        if sub.wants_write() {
            sub.persisting.dirty_since.get_or_insert(mono);
        }
    }

    /// Writes acks whose receipts wait, and those that have waited long enough.
    pub(super) fn persist_due(&mut self) {
        let now = self.broker.clock.mono();
        let wait = self.broker.config.cursor_write_interval();
        let due = |sub: &Subscription| {
            let aged = sub.persisting.dirty_since.is_some_and(|since| now >= since + wait);
            sub.is_durable() && (aged || !sub.persisting.receipts.is_empty())
        };
        for sub in self.subscriptions.values_mut().filter(|sub| due(sub)) {
            persist(&self.cursors, &self.handle, now, sub);
        }
    }

    /// Writes every unwritten ack, for an unload.
    pub(super) fn persist_all(&mut self) {
        let now = self.broker.clock.mono();
        for sub in self.subscriptions.values_mut().filter(|sub| sub.wants_write()) {
            persist(&self.cursors, &self.handle, now, sub);
        }
    }

    /// A cursor write has ended.
    pub(super) fn persisted(&mut self, persisted: Persisted) {
        let Some(sub) = self.subscriptions.get_mut(&persisted.subscription) else { return };
        if sub.incarnation != persisted.incarnation {
            return;
        }
        let position = sub.persisting.in_flight.iter().position(|write| write.ticket == persisted.ticket);
        let Some(position) = position else { return };
        let Some(write) = sub.persisting.in_flight.remove(position) else { return };
        match persisted.result {
            Ok(()) => {
                if let Some(cursor) = sub.cursor {
                    self.durable.persisted(cursor, write.floor);
                }
                write.receipts.into_iter().for_each(|receipt| receipt.send(Ok(())));
                self.trim();
                self.closed();
            }
            Err(error) => {
                let refused = TopicError::storage(&error);
                write.receipts.into_iter().for_each(|receipt| receipt.send(Err(refused.clone())));
                self.lose(&refused);
            }
        }
    }

    /// Lets go of ledgers that every durable subscription has durably passed.
    pub(super) fn trim(&mut self) {
        let floor = self.durable.minimum();
        let retention = self.broker.retention(&self.name);
        self.ledger.trim(floor, retention);
    }
}

/// One individually acknowledged entry or part of one.
fn acked_one(
    sub: &mut Subscription,
    ledger: &ml::ManagedLedger,
    p: Position,
    ack_set: &[u64],
    batch_size: u32,
) {
    let ack = if ack_set.is_empty() {
        sub.acks.ack(p, ledger)
    } else {
        sub.acks.ack_batch(p, ack_set, batch_size, ledger)
    };
    match ack {
        cursor::Ack::Entry => {
            sub.counters.acked += 1;
            sub.dispatcher.acked(p);
        }
        cursor::Ack::Part(_) => {
            let left = sub.acks.remaining(p).map_or(0, |words| words.iter().map(|w| w.count_ones()).sum());
            sub.dispatcher.acked_partly(p, left);
        }
        cursor::Ack::Duplicate | cursor::Ack::NotFound => {}
    }
}

/// Begins one cursor write with everything that is dirty; its receipts are sent when it is durable.
pub(super) fn persist(
    cursors: &cursor::CursorLog,
    handle: &super::TopicHandle,
    now: Mono,
    sub: &mut Subscription,
) {
    let Some(cursor) = sub.cursor else { return };
    sub.persisting.dirty_since = None;
    let receipts = std::mem::take(&mut sub.persisting.receipts);
    let Some(delta) = sub.acks.take_delta() else {
        // Nothing is new: what these acks say is in a write that is durable or under way.
        match sub.persisting.in_flight.back_mut() {
            Some(write) => write.receipts.extend(receipts),
            None => receipts.into_iter().for_each(|receipt| receipt.send(Ok(()))),
        }
        return;
    };
    let ticket = sub.persisting.next_ticket;
    sub.persisting.next_ticket += 1;
    sub.persisting.in_flight.push_back(InFlight { ticket, floor: delta.floor, receipts });
    let (handle, subscription, incarnation) = (handle.clone(), sub.name.clone(), sub.incarnation);
    let done = move |result| {
        handle.put(Message::Persisted(Persisted { subscription, incarnation, ticket, result }));
    };
    if let Err(full) = cursors.persist(cursor, delta, Box::new(done)) {
        // The log is behind: what was dirty stays dirty, and its receipts wait for the next try.
        sub.acks.restore_delta(full.delta);
        sub.persisting.dirty_since = Some(now);
        if let Some(unsent) = sub.persisting.in_flight.pop_back() {
            sub.persisting.receipts = unsent.receipts;
        }
    }
}

/// Sends what the dispatcher wants its consumers to know.
pub(super) fn tell(sub: &Subscription, effects: &mut Vec<Effect>) {
    for Effect::ActiveConsumerChange { consumer, active } in effects.drain(..) {
        let Some(consumer) = sub.consumers.get(&consumer) else { continue };
        let peer = &consumer.spec.peer;
        // Known since protocol version 12.
        if peer.announced().is_none_or(|a| a.protocol_version < 12) {
            continue;
        }
        let consumer_id = consumer.spec.id.0;
        crate::service::command(peer, Type::ActiveConsumerChange, |c| {
            c.active_consumer_change =
                Some(Box::new(wire::CommandActiveConsumerChange { consumer_id, is_active: Some(active) }));
        });
    }
}

fn meta(sub: &Subscription, entry: &ReadEntry, needs_metadata: bool) -> EntryMeta {
    let acked = sub.acks.acked_in_batch(entry.position);
    let mut meta = EntryMeta {
        position: entry.position,
        messages: entry.entry.header.messages.saturating_sub(acked).max(1),
        sticky_hash: 0,
        deliver_at_ms: None,
        chunk: None,
        size_bytes: entry.entry.payload.len() as u32,
    };
    if !needs_metadata {
        return meta;
    }
    // What was stored was read by the broker before: unreadable metadata cannot be here. Should it be, the entry is
    // dispatched like a keyless one, because the client is the one to judge it.
    let Ok(parts) = parse_payload(entry.entry.payload.clone()) else { return meta };
    let Ok(view) = MetadataView::parse(parts.metadata()) else { return meta };
    meta.deliver_at_ms = view.deliver_at_time.and_then(|at| u64::try_from(at).ok()).filter(|at| *at > 0);
    if sub.kind != SubscriptionType::Shared {
        meta.sticky_hash = sticky(&view);
    }
    if let (Some(uuid), Some(total), Some(chunk_id)) = (view.uuid, view.num_chunks_from_msg, view.chunk_id)
        && total > 1
    {
        meta.chunk = Some(ChunkRef {
            uuid_hash: fnv(uuid.as_bytes()),
            chunk_id: chunk_id.max(0) as u32,
            total: total as u32,
        });
    }
    meta
}

/// The hash of an entry's key: the ordering key, else the partition key, else what names the message itself. A batch carries the
/// key of its first message in its metadata.
fn sticky(view: &MetadataView<'_>) -> u32 {
    use base64::Engine as _;
    if let Some(key) = view.ordering_key {
        return sticky_hash(key);
    }
    match view.partition_key {
        Some(key) if view.partition_key_b64_encoded => {
            match base64::engine::general_purpose::STANDARD.decode(key) {
                Ok(raw) => sticky_hash(&raw),
                Err(_) => sticky_hash(key.as_bytes()), // flagged wrongly: its text is as good a key
            }
        }
        Some(key) => sticky_hash(key.as_bytes()),
        None => sticky_hash(format!("{}-{}", view.producer_name, view.sequence_id).as_bytes()),
    }
}

/// FNV-1a: names a chunked message among those under way; a collision only makes two of them share a consumer.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Answers a reply unless it is none.
pub(super) fn answer(reply: Option<Reply<()>>, result: Result<(), TopicError>) {
    if let Some(reply) = reply {
        reply.send(result);
    }
}
