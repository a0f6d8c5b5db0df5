//! The owner task of a topic. It alone touches the managed ledger, the producers and the subscriptions.
//!
//! One turn: take everything from the mailbox, handle it, then append once, dispatch every subscription that may move, and write
//! what is due to the cursor log. A turn never waits; what takes time comes back as a message. Between turns the task sleeps
//! until the next message or the earliest deadline (an unwritten ack, a delayed message, a failover being settled); an
//! idle topic has no deadline and costs nothing.

use super::error::{Reply, TopicError};
use super::mailbox::Inbox;
use super::messages::{Message, Publish, Send};
use super::meter::Meter;
use super::peer::Peer;
use super::producers::Producers;
use super::subscription::Subscription;
use super::{ProducerKey, TopicHandle};
use crate::broker::Broker;
use crate::cursor::{CursorLog, DurableFloor, log::Subscriptions};
use crate::dispatch::{ConsumerKey, TopicShape};
use crate::managed_ledger::{self as ml, ManagedLedger};
use geminga_bookie_client::ledgers::AppendError;
use geminga_common::budget::Permit;
use geminga_common::clock::Mono;
use geminga_common::error::{Code, Coded as _};
use geminga_common::ids::{Position, ProducerId};
use geminga_common::names::{SubscriptionName, TopicName};
use geminga_proto::encode;
use geminga_proto::pulsar::ServerError;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How often a ledger that is open is looked at for its age.
const TICK: Duration = Duration::from_secs(5);

/// What the worker is made of.
pub(crate) struct Parts {
    /// The broker.
    pub(crate) broker: Arc<Broker>,
    /// The topic's handle.
    pub(crate) handle: TopicHandle,
    /// The other end of its mailbox.
    pub(crate) inbox: Inbox<Message>,
    /// Its ledgers.
    pub(crate) ledger: ManagedLedger,
    /// The cursor log of its bundle.
    pub(crate) cursors: CursorLog,
    /// What that holds for this topic.
    pub(crate) stored: Subscriptions,
}

/// Sends of one producer waiting for the ledger, in append order across the topic.
struct Pending {
    producer: ProducerKey,
    peer: Arc<Peer>,
    id: ProducerId,
    sends: std::vec::IntoIter<Receipt>,
    /// Share of the publish budget; goes back when the last of the sends is decided.
    _permit: Permit,
}

struct Receipt {
    sequence_id: u64,
    highest_sequence_id: Option<u64>,
}

/// Why a ledger read was begun.
pub(super) enum ReadFor {
    /// A subscription's dispatcher.
    Dispatch(SubscriptionName, u64),
    /// Somebody who goes on with what was read.
    Then(Box<dyn FnOnce(Result<Vec<ml::ReadEntry>, TopicError>) + std::marker::Send>),
}

/// A position that is being looked for.
pub(super) enum FindFor {
    /// A seek of a subscription.
    Seek(SubscriptionName, u64, Reply<()>),
    /// REST wants to know.
    Answer(Reply<Position>),
    /// A new subscription starts there.
    Subscribe(Box<super::messages::Subscribe>, Reply<super::messages::SubscribeOutcome>),
}

/// How the topic ends on this broker.
enum Ending {
    /// Not at all.
    None,
    /// The ledger is being closed; then these are answered.
    Draining(Vec<Reply<()>>),
    /// Over.
    Over,
}

/// Counters since the topic was loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) messages_in: u64,
    pub(super) bytes_in: u64,
    pub(super) entries_in: u64,
    pub(super) chunks_in: u64,
    pub(super) last_publish_ms: u64,
}

/// The owner of a topic.
pub(crate) struct Worker {
    pub(super) broker: Arc<Broker>,
    pub(super) handle: TopicHandle,
    pub(super) name: Arc<TopicName>,
    pub(super) shape: TopicShape,
    pub(super) partition: i32,
    pub(super) ledger: ManagedLedger,
    pub(super) cursors: CursorLog,
    /// How far every cursor is durable: trimming obeys this, never what is in memory.
    pub(super) durable: DurableFloor,
    pub(super) producers: Producers,
    pub(super) subscriptions: BTreeMap<SubscriptionName, Subscription>,
    /// Which subscription a consumer belongs to.
    pub(super) consumers: HashMap<ConsumerKey, SubscriptionName>,
    pub(super) reads: HashMap<ml::Token, ReadFor>,
    pub(super) finds: HashMap<ml::Token, FindFor>,
    pub(super) changes: HashMap<ml::Token, super::admission::Made>,
    pub(super) counters: Counters,
    /// Messages and bytes published.
    pub(super) traffic: Meter<2>,
    pub(super) next_key: u64,
    pub(super) scratch: super::delivery::Scratch,
    /// Subscriptions being made, with what goes on afterwards.
    pub(super) creating: HashMap<SubscriptionName, Vec<super::admission::Made>>,
    /// What policies ask of the topic, as last read.
    pub(super) rules: super::lifecycle::Rules,
    pub(super) lifecycle: super::lifecycle::Lifecycle,
    /// Closed ledgers on their way to the object store.
    pub(super) offloading: super::offload::Offloading,
    /// The bound on publishing, where a policy sets one.
    pub(super) throttle: Option<super::throttle::Throttle>,
    pending: VecDeque<Pending>,
    appends: Vec<ml::Append>,
    outputs: Vec<ml::Output>,
    ending: Ending,
    ledger_closed: bool,
    ticked: Mono,
    /// The topic was closed for a full disk, and nothing has been stored since.
    pub(super) setback: bool,
    /// A subscription used up its rounds: the next turn comes unasked.
    pub(super) unfinished: bool,
    inbox: Inbox<Message>,
}

impl Worker {
    /// A worker for an opened topic whose subscriptions are `stored`.
    pub(crate) fn new(parts: Parts) -> Self {
        let name = parts.handle.name().clone();
        let shape = TopicShape { name: name.to_string(), partition: name.partition_index() };
        let rules = parts.broker.lifecycle_rules(&name);
        let now = parts.broker.clock.mono();
        let setback = parts.broker.setbacks.lock().has(&name);
        let mut worker = Self {
            partition: name.partition_index().map_or(-1, |n| n as i32),
            producers: Producers::new(parts.ledger.topic_epoch()),
            broker: parts.broker,
            handle: parts.handle,
            name,
            shape,
            ledger: parts.ledger,
            cursors: parts.cursors,
            durable: DurableFloor::default(),
            subscriptions: BTreeMap::new(),
            consumers: HashMap::new(),
            reads: HashMap::new(),
            finds: HashMap::new(),
            changes: HashMap::new(),
            counters: Counters::default(),
            traffic: Meter::new(now),
            next_key: 0,
            scratch: super::delivery::Scratch::default(),
            creating: HashMap::new(),
            rules,
            lifecycle: super::lifecycle::Lifecycle::new(),
            offloading: super::offload::Offloading::default(),
            throttle: None,
            pending: VecDeque::new(),
            appends: Vec::new(),
            outputs: Vec::new(),
            ending: Ending::None,
            ledger_closed: false,
            ticked: Mono::ZERO,
            setback,
            unfinished: false,
            inbox: parts.inbox,
        };
        worker.load_subscriptions(parts.stored);
        worker
    }

    /// Runs until the topic is unloaded or its ledger is lost.
    pub(crate) async fn run(mut self) {
        let mut batch = Vec::new();
        let stop = self.broker.draining.clone();
        loop {
            let deadline = self.deadline();
            let unfinished = self.unfinished;
            let sleep = async {
                match deadline {
                    // Others on this thread come first, and what has arrived meanwhile.
                    _ if unfinished => tokio::task::yield_now().await,
                    Some(at) => tokio::time::sleep(at.saturating_sub(self.broker.clock.mono())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled(), if matches!(self.ending, Ending::None) => self.unload(None),
                () = self.inbox.take(&mut batch) => {}
                () = sleep => {}
            }
            for message in batch.drain(..) {
                self.handle(message);
            }
            self.finish_turn();
            if matches!(self.ending, Ending::Over) {
                break;
            }
        }
        self.broker.forget(&self.handle);
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Publish(publish) => self.publish(publish),
            Message::Ledger(event) => {
                let mut outputs = std::mem::take(&mut self.outputs);
                self.ledger.on_event(event, &mut outputs);
                for output in outputs.drain(..) {
                    self.output(output);
                }
                self.outputs = outputs;
            }
            Message::Ack(ack) => self.ack(ack),
            Message::Flow(consumer, permits) => self.flow(consumer, permits),
            Message::Redeliver(redeliver) => self.redeliver(redeliver),
            Message::Writable(consumer) => self.writable(consumer),
            Message::Persisted(persisted) => self.persisted(persisted),
            Message::AddProducer(spec, reply) => self.add_producer(spec, reply),
            Message::RemoveProducer(key, reply) => self.remove_producer(key, reply),
            Message::Subscribe(spec, reply) => self.subscribe(spec, reply),
            Message::RemoveConsumer(key, reply) => self.remove_consumer(key, reply),
            Message::Unsubscribe { consumer, force, reply } => self.unsubscribe(consumer, force, reply),
            Message::Seek { subscription, asks, to, reply } => self.seek(&subscription, asks, to, reply),
            Message::LastMessageId(subscription, reply) => self.last_message_id(subscription, reply),
            Message::IsIdle(reply) => {
                let unused = self.producers.len() == 0 && self.consumers.is_empty();
                reply.send(Ok(unused && self.ledger.last_confirmed().is_none()));
            }
            Message::ConsumerStats(key, reply) => reply.send(self.consumer_figures(key)),
            Message::Admin(request) => self.admin(request),
            Message::Bookies(suspects) => self.ledger.probe(&suspects),
            Message::PoliciesChanged => self.policies_changed(),
            Message::Done(done) => done(self),
            Message::Unload(reply) => self.unload(Some(reply)),
            Message::Leave(reply) => {
                self.lose(&TopicError::NotReady);
                reply.send(Ok(()));
            }
        }
    }

    fn finish_turn(&mut self) {
        if matches!(self.ending, Ending::Over) {
            return;
        }
        self.tick();
        self.append();
        self.live();
        self.offload();
        self.dispatch_all();
        self.persist_due();
    }

    /// Lets the ledger age, now and then, as long as it has something open.
    fn tick(&mut self) {
        let now = self.broker.clock.mono();
        if now < self.ticked + TICK {
            return;
        }
        self.ticked = now;
        let mut outputs = std::mem::take(&mut self.outputs);
        self.ledger.on_tick(&mut outputs);
        for output in outputs.drain(..) {
            self.output(output);
        }
        self.outputs = outputs;
    }

    /// The earliest time at which something has to be done unasked.
    fn deadline(&self) -> Option<Mono> {
        let persist_after = self.broker.config.cursor_write_interval();
        let (mono, wall) = (self.broker.clock.mono(), self.broker.clock.wall_ms());
        self.subscriptions
            .values()
            .flat_map(|sub| {
                let write = sub.persisting.dirty_since.map(|since| since + persist_after);
                let wake = sub.dispatcher.next_wakeup_ms();
                let wake = wake.map(|at| mono + Duration::from_millis(at.saturating_sub(wall)));
                let again = sub.unreadable.wake().filter(|_| !sub.consumers.is_empty());
                [write, wake, again]
            })
            .chain([self.ledger.has_open_ledger().then_some(self.ticked + TICK)])
            .chain(
                [self.lifecycle.wake_ms(), self.offloading.wake_ms()]
                    .map(|at| at.filter(|_| !self.is_ending()))
                    .map(|at| at.map(|at| mono + Duration::from_millis(at.saturating_sub(wall)))),
            )
            .flatten()
            .min()
    }

    fn publish(&mut self, publish: Publish) {
        let Some(producer) = self.producers.get_mut(publish.producer) else {
            return; // closed by the broker meanwhile: the client sends again on its next producer
        };
        let (peer, id) = (producer.spec.peer.clone(), producer.spec.id);
        if self.ledger.is_terminated() {
            for send in &publish.sends {
                let text = "the topic was terminated";
                let code = ServerError::TopicTerminatedError;
                crate::service::send_error(&peer, id, send.sequence_id, code, text);
            }
            return;
        }
        producer.pending += publish.sends.len();
        let mut receipts = Vec::with_capacity(publish.sends.len());
        let before = (self.counters.messages_in, self.counters.bytes_in);
        for send in publish.sends {
            let Send { sequence_id, highest_sequence_id, messages, payload, chunk } = send;
            let bytes = payload.len() as u64;
            self.counters.messages_in += u64::from(messages);
            self.counters.bytes_in += bytes;
            self.counters.chunks_in += u64::from(chunk);
            self.appends.push(ml::Append { payload, messages });
            receipts.push(Receipt { sequence_id, highest_sequence_id });
        }
        let (messages, bytes) = (self.counters.messages_in - before.0, self.counters.bytes_in - before.1);
        let now = self.broker.clock.mono();
        self.traffic.add([messages, bytes], now);
        producer.figures.traffic.add([messages, bytes], now);
        if let Some(until) = self.throttle.as_mut().and_then(|t| t.take(messages, bytes, now)) {
            peer.pause_reading(until);
        }
        let sends = receipts.into_iter();
        self.pending.push_back(Pending {
            producer: publish.producer,
            peer,
            id,
            sends,
            _permit: publish.permit,
        });
    }

    pub(super) fn append(&mut self) {
        if self.appends.is_empty() {
            return;
        }
        self.counters.entries_in += self.appends.len() as u64;
        self.counters.last_publish_ms = self.broker.clock.wall_ms();
        let entries = std::mem::take(&mut self.appends);
        if let Err(refused) = self.ledger.append(entries) {
            // Sizes are checked at the socket and bytes are bounded by the publish budget: what is left is a dead ledger.
            self.lose(&TopicError::Persistence(Code::PERSISTENCE, refused.to_string()));
        }
    }

    pub(super) fn output(&mut self, output: ml::Output) {
        match output {
            ml::Output::Appended { first, count } => {
                self.setback_over();
                self.receipts(first, count);
            }
            ml::Output::AppendFailed { count, error } => self.append_failed(count, &error),
            ml::Output::Read { token, result } => self.read_done(token, result),
            ml::Output::Found { token, result } => self.found(token, result),
            ml::Output::RecordChanged { token, result } => {
                let Some(result) = self.offload_changed(token, result) else { return };
                if let Some(done) = self.changes.remove(&token) {
                    done(self, result.map_err(|error| TopicError::Metadata(error.code(), error.to_string())));
                }
            }
            ml::Output::Trimmed { first, ledgers } => {
                tracing::debug!(topic = %self.name, %first, ledgers, "consumed ledgers were let go");
            }
            ml::Output::Poisoned(reason) => {
                match reason {
                    ml::PoisonReason::RecordLost => self.broker.doubt(&self.name),
                    ml::PoisonReason::Writer(AppendError::DiskFull) => return self.disk_full(),
                    _ => {}
                }
                self.lose(&TopicError::storage(&reason));
            }
        }
    }

    /// The next `count` sends are on stable storage, from `first` on.
    fn receipts(&mut self, first: Position, count: u32) {
        let mut entry = first.entry.0;
        let mut left = count;
        while left > 0 {
            let Some(pending) = self.pending.front_mut() else {
                debug_assert!(false, "the ledger acknowledged more than was appended");
                return;
            };
            let mut decided = 0;
            {
                let mut push = pending.peer.outbox.push();
                for receipt in pending.sends.by_ref().take(left as usize) {
                    let (ledger, this) = (first.ledger.0, entry);
                    push.frame(|out| {
                        let Receipt { sequence_id, highest_sequence_id } = receipt;
                        encode::send_receipt(
                            pending.id.0,
                            sequence_id,
                            highest_sequence_id,
                            ledger,
                            this,
                            out,
                        );
                    });
                    entry += 1;
                    decided += 1;
                }
            }
            left -= decided;
            self.decided(decided as usize);
        }
    }

    /// The front producer's next `count` sends are decided.
    fn decided(&mut self, count: usize) {
        let Some(front) = self.pending.front() else { return };
        let (key, done) = (front.producer, front.sends.len() == 0);
        if done {
            self.pending.pop_front();
        }
        if let Some(producer) = self.producers.get_mut(key) {
            producer.pending -= count;
            if producer.pending == 0 && !producer.closing.is_empty() {
                let replies = std::mem::take(&mut producer.closing);
                self.drop_producer(key);
                replies.into_iter().for_each(|reply| reply.send(Ok(())));
            }
        }
    }

    fn append_failed(&mut self, count: u32, error: &ml::AppendFailure) {
        let (code, text) = (ServerError::PersistenceError, failure_text(error));
        let mut left = count as usize;
        while left > 0 {
            let Some(pending) = self.pending.front_mut() else { return };
            let mut decided = 0;
            for receipt in pending.sends.by_ref().take(left) {
                let (peer, id) = (&pending.peer, pending.id);
                // For a batch clients expect the higher of the two ids.
                let sequence_id = receipt.sequence_id.max(receipt.highest_sequence_id.unwrap_or(0));
                crate::service::send_error(peer, id, sequence_id, code, text.clone());
                decided += 1;
            }
            left -= decided;
            self.decided(decided);
        }
    }

    /// The ledger can no longer be written by this owner: every client is sent away and finds a freshly opened topic when it
    /// comes back.
    pub(super) fn lose(&mut self, why: &TopicError) {
        tracing::warn!(topic = %self.name, %why, "topic is closed and will be opened again on demand");
        self.send_away(&TopicError::NotReady);
        self.end();
    }

    /// As [`Self::lose`], for a reason that the next owner would meet again at once.
    fn disk_full(&mut self) {
        let failure = self.broker.setbacks.lock().failed(&self.name, self.broker.clock.mono());
        let (since, pause) = (failure.since, failure.pause);
        if failure.speak {
            tracing::warn!(
                topic = %self.name, ?since, ?pause,
                "the store's disk is full: the topic takes no messages, its producers are kept out for a while; make room"
            );
        } else {
            tracing::debug!(topic = %self.name, ?since, ?pause, "the store's disk is still full");
        }
        self.send_away(&TopicError::DiskFull(pause));
        self.end();
    }

    /// A message is on stable storage: so there is room.
    fn setback_over(&mut self) {
        if !std::mem::take(&mut self.setback) {
            return;
        }
        if let Some(after) = self.broker.setbacks.lock().over(&self.name, self.broker.clock.mono()) {
            tracing::info!(topic = %self.name, ?after, "the topic takes messages again");
        }
    }

    /// Leaves this broker in order: no new work, acks written, the ledger closed.
    fn unload(&mut self, reply: Option<Reply<()>>) {
        match &mut self.ending {
            Ending::Draining(replies) => return replies.extend(reply),
            Ending::Over => return,
            Ending::None => self.ending = Ending::Draining(reply.into_iter().collect()),
        }
        self.append();
        self.send_away(&TopicError::NotReady);
        self.persist_all();
        let token = self.ledger.close();
        // Closed or not: a ledger that could not be closed is recovered at the next start.
        self.changes.insert(
            token,
            Box::new(|worker, _either_way| {
                worker.ledger_closed = true;
                worker.closed();
            }),
        );
    }

    /// Ends an unload once the ledger is closed and the acks are durable.
    pub(super) fn closed(&mut self) {
        let written = self.subscriptions.values().all(|sub| sub.persisting.in_flight.is_empty());
        if matches!(self.ending, Ending::Draining(_)) && written && self.ledger_closed {
            self.end();
        }
    }

    /// Ends the topic on this broker; whoever waits for that is answered.
    pub(super) fn end(&mut self) {
        if let Ending::Draining(replies) = std::mem::replace(&mut self.ending, Ending::Over) {
            self.broker.forget(&self.handle);
            replies.into_iter().for_each(|reply| reply.send(Ok(())));
        }
    }

    /// Whether the topic takes no more clients.
    pub(super) fn is_ending(&self) -> bool {
        !matches!(self.ending, Ending::None)
    }

    /// A key that no other consumer of this process has.
    pub(super) fn consumer_key(&mut self) -> ConsumerKey {
        ConsumerKey(self.broker.next_id())
    }
}

/// What a publisher is told of a message that could not be stored: a code, the reason, what next.
fn failure_text(error: &ml::AppendFailure) -> String {
    let code = match error {
        ml::AppendFailure::Writer(error) => super::codes::append(error),
        ml::AppendFailure::NoBookies => Code::NOT_ENOUGH_BOOKIES,
        _ => Code::PERSISTENCE,
    };
    format!("{code}: {error}; no receipt was given, send it again")
}
