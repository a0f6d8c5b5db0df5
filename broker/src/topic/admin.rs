//! What REST asks of a topic. Answers are plain snapshots; their JSON is REST's business.

use super::admission::Birth;
use super::delivery::answer;
use super::error::{Reply, TopicError};
use super::messages::SeekTarget;
use super::requests::mark_delete;
use super::worker::{FindFor, ReadFor, Worker};
use crate::cursor::Log as _;
use crate::dispatch::DispatcherStats;
use crate::managed_ledger::{self as ml, ReadEntry, ReadOutcome};
use geminga_common::ids::Position;
use geminga_common::names::SubscriptionName;
use std::collections::BTreeMap;

/// A question or an order.
pub(crate) enum Request {
    /// Everything stats need.
    Snapshot(Reply<Snapshot>),
    /// Create a subscription.
    CreateSubscription(SubscriptionName, SeekTarget, BTreeMap<String, String>, Reply<()>),
    /// Delete a subscription; with `true` even when consumers are connected.
    DeleteSubscription(SubscriptionName, bool, Reply<()>),
    /// Acknowledge the next so many entries; `None`: all.
    Skip(SubscriptionName, Option<u64>, Reply<()>),
    /// Acknowledge what is older than so many seconds; answers how many entries that was.
    Expire(SubscriptionName, u64, Reply<u64>),
    /// Acknowledge everything below a position.
    ExpireTo(SubscriptionName, Position, Reply<()>),
    /// Replace a subscription's properties.
    SetSubscriptionProperties(SubscriptionName, BTreeMap<String, String>, Reply<()>),
    /// Take no more messages; answers the last position.
    Terminate(Reply<Option<Position>>),
    /// Acknowledge everything on every subscription and let go of it.
    Truncate(Reply<()>),
    /// Let go of what nobody needs.
    Trim(Reply<()>),
    /// Send every closed ledger before a position to the object store.
    Offload(Position, Reply<()>),
    /// How that goes.
    OffloadStatus(Reply<super::offload::Status>),
    /// The entry at a position.
    Entry(Position, Reply<Option<ReadEntry>>),
    /// The n-th unacknowledged entry of a subscription, from 1.
    Peek(SubscriptionName, u64, Reply<Option<ReadEntry>>),
    /// First position published at or after a time, ms since 1970.
    FindTime(u64, Reply<Position>),
    /// Delete the topic; with `true` even when clients are connected or subscriptions exist.
    Delete(bool, Reply<()>),
}

/// One producer.
#[derive(Clone, Debug)]
pub(crate) struct PublisherSnapshot {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) mode: super::messages::AccessMode,
    pub(crate) address: String,
    pub(crate) client_version: String,
    pub(crate) connected_ms: u64,
    /// Messages and bytes a second.
    pub(crate) rates: [f64; 2],
    pub(crate) metadata: BTreeMap<String, String>,
}

/// One consumer; the dispatcher's figures are beside it.
#[derive(Clone, Debug)]
pub(crate) struct ConsumerSnapshot {
    pub(crate) key: crate::dispatch::ConsumerKey,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) client_version: String,
    pub(crate) connected_ms: u64,
    pub(crate) last_flow_ms: u64,
    pub(crate) last_acked_ms: u64,
    pub(crate) last_consumed_ms: u64,
    /// As of its subscription.
    pub(crate) rates: [f64; 5],
    pub(crate) metadata: BTreeMap<String, String>,
}

/// One subscription.
#[derive(Clone, Debug)]
pub(crate) struct SubscriptionSnapshot {
    pub(crate) name: SubscriptionName,
    pub(crate) kind: String,
    pub(crate) durable: bool,
    pub(crate) replicated: bool,
    pub(crate) backlog: u64,
    pub(crate) floor: Position,
    pub(crate) mark_delete: (u64, i64),
    pub(crate) holes: String,
    pub(crate) hole_ranges: u64,
    pub(crate) hole_bytes: u64,
    pub(crate) properties: BTreeMap<String, String>,
    pub(crate) messages_out: u64,
    pub(crate) bytes_out: u64,
    pub(crate) acked: u64,
    pub(crate) expired: u64,
    pub(crate) last_expired_ms: u64,
    /// Entries that were passed because they are lost for good, since the topic was loaded.
    pub(crate) lost: u64,
    /// Messages and bytes out, redelivered, acknowledged and expired, a second.
    pub(crate) rates: [f64; 5],
    /// Bytes of the backlog, from the floor on.
    pub(crate) backlog_bytes: u64,
    pub(crate) last_flow_ms: u64,
    pub(crate) last_consumed_ms: u64,
    pub(crate) last_acked_ms: u64,
    pub(crate) last_floor_ms: u64,
    pub(crate) active_consumer: Option<String>,
    pub(crate) wait: Option<String>,
    pub(crate) dispatcher: DispatcherStats,
    pub(crate) consumers: Vec<ConsumerSnapshot>,
}

/// A topic as it stands.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) messages_in: u64,
    pub(crate) bytes_in: u64,
    pub(crate) entries_in: u64,
    /// Messages and bytes in, a second.
    pub(crate) rates: [f64; 2],
    pub(crate) chunked: bool,
    pub(crate) last_publish_ms: u64,
    pub(crate) topic_epoch: Option<u64>,
    pub(crate) created_ms: u64,
    pub(crate) properties: BTreeMap<String, String>,
    pub(crate) waiting_producers: usize,
    pub(crate) publishers: Vec<PublisherSnapshot>,
    pub(crate) subscriptions: Vec<SubscriptionSnapshot>,
    pub(crate) lifecycle: super::aging::LifecycleFigures,
    pub(crate) offload: super::offload::OffloadFigures,
    pub(crate) ledger: ml::Stats,
}

/// Most ranges of acknowledged entries printed in internal stats.
const HOLES_SHOWN: usize = 100;

impl Worker {
    pub(super) fn admin(&mut self, request: Request) {
        match request {
            Request::Snapshot(reply) => reply.send(Ok(self.snapshot())),
            Request::CreateSubscription(name, at, properties, reply) => {
                self.admin_subscribe(name, &at, properties, reply);
            }
            Request::DeleteSubscription(name, force, reply) => {
                let connected = self.subscriptions.get(&name).is_some_and(|sub| !sub.consumers.is_empty());
                if connected && !force {
                    let text = "Subscription has active connected consumers";
                    return reply.send(Err(TopicError::Precondition(text.to_owned())));
                }
                self.delete_subscription(name, None, reply);
            }
            Request::Skip(name, count, reply) => self.skip(&name, count, reply),
            Request::Expire(name, secs, reply) => self.expire(&name, secs, reply),
            Request::ExpireTo(name, to, reply) => {
                let counted = Reply::new(move |done: Result<u64, TopicError>| reply.send(done.map(drop)));
                self.expire_below(&name, Ok(to), counted);
            }
            Request::SetSubscriptionProperties(name, properties, reply) => {
                self.set_subscription_properties(name, properties, reply);
            }
            Request::Terminate(reply) => self.terminate(reply),
            Request::Truncate(reply) => self.truncate(reply),
            Request::Trim(reply) => {
                self.trim();
                reply.send(Ok(()));
            }
            Request::Offload(to, reply) => self.offload_before(to, reply),
            Request::OffloadStatus(reply) => reply.send(Ok(self.offload_status())),
            Request::Entry(position, reply) => self.entry(position, reply),
            Request::Peek(name, n, reply) => self.peek(&name, n, reply),
            Request::FindTime(since, reply) => {
                let token = self.ledger.find_by_time(since);
                self.finds.insert(token, FindFor::Answer(reply));
            }
            Request::Delete(force, reply) => self.delete(force, reply),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let now = self.broker.clock.mono();
        let version =
            |peer: &super::peer::Peer| peer.announced().map(|a| a.client_version.clone()).unwrap_or_default();
        let publishers = self.producers.iter().map(|(_, p)| PublisherSnapshot {
            id: p.spec.id.0,
            name: p.spec.name.clone(),
            mode: p.spec.mode,
            address: p.spec.peer.address.clone(),
            client_version: version(&p.spec.peer),
            connected_ms: p.figures.connected_ms,
            rates: p.figures.traffic.rates(now),
            metadata: p.spec.metadata.clone(),
        });
        Snapshot {
            messages_in: self.counters.messages_in,
            bytes_in: self.counters.bytes_in,
            entries_in: self.counters.entries_in,
            rates: self.traffic.rates(now),
            chunked: self.counters.chunks_in > 0,
            last_publish_ms: self.counters.last_publish_ms,
            topic_epoch: self.producers.topic_epoch(),
            created_ms: self.ledger.created_ms(),
            properties: self.ledger.properties().clone(),
            waiting_producers: self.producers.waiting(),
            publishers: publishers.collect(),
            subscriptions: self.subscriptions.values().map(|sub| self.subscription_snapshot(sub)).collect(),
            lifecycle: self.lifecycle_figures(),
            offload: self.offload_figures(),
            ledger: self.ledger.stats(),
        }
    }

    fn subscription_snapshot(&self, sub: &super::subscription::Subscription) -> SubscriptionSnapshot {
        let floor = self.ledger.settle(sub.acks.floor());
        let now = self.broker.clock.mono();
        let consumers = sub.consumers.iter().map(|(key, c)| ConsumerSnapshot {
            key: *key,
            name: c.spec.name.clone(),
            address: c.spec.peer.address.clone(),
            client_version: c.spec.peer.announced().map(|a| a.client_version.clone()).unwrap_or_default(),
            connected_ms: c.connected_ms,
            last_flow_ms: c.last_flow_ms,
            last_acked_ms: c.last_acked_ms,
            last_consumed_ms: c.last_consumed_ms,
            rates: c.traffic.rates(now),
            metadata: c.spec.metadata.clone(),
        });
        let active = sub.dispatcher.active_consumer().and_then(|key| sub.consumers.get(&key));
        SubscriptionSnapshot {
            name: sub.name.clone(),
            kind: sub.kind.to_string(),
            durable: sub.is_durable(),
            replicated: sub.replicated,
            backlog: sub.acks.backlog(&self.ledger),
            floor,
            mark_delete: mark_delete(floor, &self.ledger),
            holes: sub.acks.individually_deleted(HOLES_SHOWN),
            hole_ranges: sub.acks.deleted_ranges_count(),
            hole_bytes: sub.acks.size() as u64,
            properties: sub.properties.clone(),
            messages_out: sub.counters.messages_out,
            bytes_out: sub.counters.bytes_out,
            acked: sub.counters.acked,
            expired: sub.counters.expired,
            last_expired_ms: sub.counters.last_expired_ms,
            lost: sub.counters.lost,
            rates: sub.traffic.rates(now),
            backlog_bytes: self.ledger.size_between(floor, self.ledger.end()),
            last_flow_ms: sub.counters.last_flow_ms,
            last_consumed_ms: sub.counters.last_consumed_ms,
            last_acked_ms: sub.counters.last_acked_ms,
            last_floor_ms: sub.counters.last_floor_ms,
            active_consumer: active.map(|c| c.spec.name.clone()),
            wait: sub.unreadable.why().or_else(|| sub.wait_reason().map(|why| why.to_string())),
            dispatcher: sub.dispatcher.stats(),
            consumers: consumers.collect(),
        }
    }

    fn admin_subscribe(
        &mut self,
        name: SubscriptionName,
        at: &SeekTarget,
        properties: BTreeMap<String, String>,
        reply: Reply<()>,
    ) {
        if self.subscriptions.contains_key(&name) {
            let text = "Subscription already exists for topic";
            return reply.send(Err(TopicError::Conflict(text.to_owned())));
        }
        let at = match at {
            SeekTarget::Earliest | SeekTarget::Time(_) => self.ledger.first_position(),
            SeekTarget::Latest => self.ledger.end(),
            SeekTarget::Entry(position, _) => self.ledger.clamp(*position),
        };
        let then = Box::new(move |_: &mut Worker, made: Result<(), TopicError>| reply.send(made));
        let birth = Birth { at, properties, replicated: false };
        self.create_subscription(name, birth, then);
    }

    fn missing(name: &SubscriptionName) -> TopicError {
        TopicError::SubscriptionNotFound(name.to_string())
    }

    fn skip(&mut self, name: &SubscriptionName, count: Option<u64>, reply: Reply<()>) {
        let now = self.broker.clock.mono();
        let Some(sub) = self.subscriptions.get_mut(name) else {
            return reply.send(Err(Self::missing(name)));
        };
        sub.gaps.changed = true;
        match count {
            Some(count) => {
                sub.acks.skip(count, &self.ledger);
            }
            None => {
                sub.acks.advance_floor(self.ledger.end(), &self.ledger);
            }
        }
        let floor = self.ledger.settle(sub.acks.floor());
        sub.dispatcher.acked_below(floor);
        if sub.is_durable() {
            sub.persisting.dirty_since.get_or_insert(now);
            sub.persisting.receipts.push(reply);
        } else {
            reply.send(Ok(()));
        }
    }

    fn expire(&mut self, name: &SubscriptionName, secs: u64, reply: Reply<u64>) {
        if !self.subscriptions.contains_key(name) {
            return reply.send(Err(Self::missing(name)));
        }
        let before = self.broker.clock.wall_ms().saturating_sub(secs.saturating_mul(1000));
        let token = self.ledger.find_by_time(before);
        let (name, handle) = (name.clone(), self.handle.clone());
        let found = Reply::new(move |found: Result<Position, TopicError>| {
            let then = move |worker: &mut Worker| worker.expire_below(&name, found, reply);
            handle.put(super::messages::Message::Done(Box::new(then)));
        });
        self.finds.insert(token, FindFor::Answer(found));
    }

    fn expire_below(
        &mut self,
        name: &SubscriptionName,
        found: Result<Position, TopicError>,
        reply: Reply<u64>,
    ) {
        let now = self.broker.clock.mono();
        let at = match found {
            Ok(at) => at,
            Err(refused) => return reply.send(Err(refused)),
        };
        let Some(sub) = self.subscriptions.get_mut(name) else {
            return reply.send(Err(Self::missing(name)));
        };
        let now = super::producers::Now { mono: now, wall_ms: self.broker.clock.wall_ms() };
        let expired = super::aging::expire_to(sub, &mut self.durable, &self.ledger, at, now);
        if sub.is_durable() && expired > 0 {
            sub.persisting.dirty_since.get_or_insert(now.mono);
            let durable = Reply::new(move |done: Result<(), TopicError>| reply.send(done.map(|()| expired)));
            sub.persisting.receipts.push(durable);
        } else {
            reply.send(Ok(expired));
        }
    }

    fn set_subscription_properties(
        &mut self,
        name: SubscriptionName,
        properties: BTreeMap<String, String>,
        reply: Reply<()>,
    ) {
        let Some(sub) = self.subscriptions.get_mut(&name) else {
            return reply.send(Err(Self::missing(&name)));
        };
        let Some(cursor) = sub.cursor else {
            sub.properties = properties;
            return reply.send(Ok(()));
        };
        let (cursors, handle) = (self.cursors.clone(), self.handle.clone());
        let on_failure = geminga_common::tasks::OnFailure::Log;
        self.broker.tasks.clone().spawn(format!("properties of {name}"), on_failure, async move {
            let stored = cursors.update_properties(cursor, properties.clone()).await;
            let then = move |worker: &mut Worker| {
                if stored.is_ok()
                    && let Some(sub) = worker.subscriptions.get_mut(&name)
                {
                    sub.properties = properties;
                }
                reply.send(stored.map_err(|error| TopicError::storage(&error)));
            };
            handle.put(super::messages::Message::Done(Box::new(then)));
        });
    }

    /// Terminates the topic. Asked for again it answers the same: who asks may not have got the first answer.
    fn terminate(&mut self, reply: Reply<Option<Position>>) {
        if self.ledger.is_terminated() {
            return reply.send(Ok(self.ledger.last_confirmed()));
        }
        let token = self.ledger.terminate();
        let then = move |worker: &mut Worker, done: Result<(), TopicError>| {
            let last = worker.ledger.last_confirmed();
            if done.is_ok() {
                worker.send_producers_away(&TopicError::Terminated);
            }
            // Two that were asked for at once: the second is refused for what the first has done.
            let done = if worker.ledger.is_terminated() { Ok(()) } else { done };
            reply.send(done.map(|()| last));
        };
        self.changes.insert(token, Box::new(then));
    }

    fn truncate(&mut self, reply: Reply<()>) {
        let now = self.broker.clock.mono();
        let end = self.ledger.end();
        for sub in self.subscriptions.values_mut() {
            sub.acks.advance_floor(end, &self.ledger);
            sub.dispatcher.acked_below(end);
            if sub.wants_write() {
                sub.persisting.dirty_since.get_or_insert(now);
            }
        }
        self.persist_all();
        self.ledger.roll_now();
        self.trim();
        reply.send(Ok(()));
    }

    fn entry(&mut self, position: Position, reply: Reply<Option<ReadEntry>>) {
        if !self.ledger.holds(position) {
            return reply.send(Ok(None));
        }
        let then = move |read: Result<Vec<ReadEntry>, TopicError>| {
            reply.send(read.map(|found| found.into_iter().next()));
        };
        match self.ledger.read_at(&[position]) {
            ReadOutcome::Ready(found) => then(Ok(found)),
            ReadOutcome::Pending(token) => {
                self.reads.insert(token, ReadFor::Then(Box::new(then)));
            }
            ReadOutcome::AtEnd => then(Ok(Vec::new())),
        }
    }

    fn peek(&mut self, name: &SubscriptionName, n: u64, reply: Reply<Option<ReadEntry>>) {
        let Some(sub) = self.subscriptions.get(name) else {
            return reply.send(Err(Self::missing(name)));
        };
        let (mut at, mut left) = (sub.acks.floor(), n.max(1));
        let position = loop {
            match sub.acks.next_unacked_run(at, self.ledger.end(), left, &self.ledger) {
                None => break None,
                Some(run) if run.entries >= left => {
                    let first = run.first.entry.0;
                    let entry = geminga_common::ids::EntryId(first + left - 1);
                    break Some(Position::new(run.first.ledger, entry));
                }
                Some(run) => {
                    left -= run.entries;
                    at = self.ledger.next(run.last());
                }
            }
        };
        match position {
            Some(position) => self.entry(position, reply),
            None => reply.send(Ok(None)),
        }
    }

    /// Deletes the topic: subscriptions first, so that a half-done deletion leaves no cursor of a topic that is gone.
    fn delete(&mut self, force: bool, reply: Reply<()>) {
        let connected = self.producers.len() > 0 || !self.consumers.is_empty();
        if connected && !force {
            let text = "Topic has active producers/subscriptions";
            return reply.send(Err(TopicError::Precondition(text.to_owned())));
        }
        self.send_away(&TopicError::NotReady);
        let (cursors, topic, handle) = (self.cursors.clone(), self.ledger.topic_id(), self.handle.clone());
        let on_failure = geminga_common::tasks::OnFailure::Log;
        self.broker.tasks.clone().spawn(format!("delete {}", self.name), on_failure, async move {
            let stored = cursors.delete_topic(topic).await;
            let then = move |worker: &mut Worker| match stored {
                Ok(()) => {
                    // Who came while its subscriptions were being deleted is told, too.
                    worker.send_away(&TopicError::NotReady);
                    worker.subscriptions.clear();
                    let token = worker.ledger.delete();
                    let then = move |worker: &mut Worker, done: Result<(), TopicError>| {
                        worker.send_away(&TopicError::NotReady);
                        worker.end();
                        answer(Some(reply), done);
                    };
                    worker.changes.insert(token, Box::new(then));
                }
                Err(error) => {
                    let refused = TopicError::storage(&error);
                    reply.send(Err(refused.clone()));
                    worker.lose(&refused);
                }
            };
            handle.put(super::messages::Message::Done(Box::new(then)));
        });
    }
}
