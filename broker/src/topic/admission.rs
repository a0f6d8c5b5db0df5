//! Producers and consumers coming and going. What must be durable first (an exclusive term's epoch, a new subscription) is
//! written first; the newcomer is answered after.

use super::LOST_CURSORS;
use super::ProducerKey;
use super::delivery::{answer, tell};
use super::error::{Reply, TopicError};
use super::messages::{
    AccessMode, AddProducer, Admission, Admitted, InitialPosition, Message, SeekTarget, Subscribe,
    SubscribeOutcome,
};
use super::producers::{Now, Verdict};
use super::subscription::{Joining, Subscription};
use super::worker::{FindFor, Worker};
use crate::cursor::{Acked, CursorId, CursorImage, Log as _, WriteError};
use crate::dispatch::{ConsumerKey, SubscriptionType};
use geminga_common::error::Code;
use geminga_common::ids::Position;
use geminga_common::names::SubscriptionName;
use std::collections::BTreeMap;

impl Worker {
    /// Makes subscriptions of what the cursor log holds for this topic.
    pub(super) fn load_subscriptions(&mut self, stored: crate::cursor::log::Subscriptions) {
        for (name, cursor, image) in stored {
            let key = self.next_incarnation();
            let dispatch = self.broker.dispatch(&self.name);
            self.durable.add(cursor, image.acked.floor);
            let mut sub =
                Subscription::new(name.clone(), key, Some(cursor), image.acked, &self.shape, dispatch);
            sub.properties = image.properties;
            sub.replicated = image.replicated;
            self.subscriptions.insert(name, sub);
        }
    }

    fn next_incarnation(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    pub(super) fn add_producer(&mut self, mut spec: Box<AddProducer>, reply: Reply<Admission>) {
        if let Err(closed) = self.takes_producers() {
            return reply.send(Err(closed));
        }
        if let Err(refused) = self.may_produce(&spec) {
            return reply.send(Err(refused));
        }
        if let Some(name) = spec.initial_subscription.take()
            && !self.subscriptions.contains_key(&name)
        {
            if !self.broker.may_create_subscription(&self.name) {
                let text = "the initial subscription may not be created: auto-creation is off";
                return reply.send(Err(TopicError::NotAllowed(text.to_owned())));
            }
            let at = self.ledger.first_position();
            let then = Box::new(move |worker: &mut Worker, made: Result<(), TopicError>| match made {
                Ok(()) => worker.add_producer(spec, reply),
                Err(refused) => reply.send(Err(refused)),
            });
            let birth = Birth { at, properties: BTreeMap::new(), replicated: false };
            return self.create_subscription(name, birth, then);
        }
        if spec.name.is_empty() {
            spec.name = self.broker.producer_name();
        }
        match self.producers.admit(spec, self.now()) {
            Verdict::In(key) => self.admitted(key, reply),
            Verdict::Waits(key) => {
                let name = self.producers.waiting_name(key);
                reply.send(Ok(Admission::Admitted(Admitted { key, name, topic_epoch: None, ready: false })));
            }
            Verdict::Held(holder, name) => reply.send(Ok(Admission::HeldBy(holder, name))),
            Verdict::Busy => reply.send(Err(TopicError::ProducerExclusive)),
            Verdict::Fenced => reply.send(Err(TopicError::ProducerFenced)),
            Verdict::Exclusive(spec, epoch) => self.begin_term(None, spec, epoch, reply),
        }
    }

    /// Whether the topic takes producers at all.
    fn takes_producers(&self) -> Result<(), TopicError> {
        if self.is_ending() {
            return Err(TopicError::NotReady);
        }
        if self.ledger.is_terminated() {
            return Err(TopicError::Terminated);
        }
        self.lifecycle.exceeded().map_or(Ok(()), |exceeded| Err(TopicError::QuotaExceeded(exceeded)))
    }

    /// The time by both clocks.
    pub(super) fn now(&self) -> Now {
        Now { mono: self.broker.clock.mono(), wall_ms: self.broker.clock.wall_ms() }
    }

    fn may_produce(&self, spec: &AddProducer) -> Result<(), TopicError> {
        let limits = self.broker.topic_limits(&self.name);
        if limits.encryption_required && !spec.encrypted {
            return Err(TopicError::Precondition("the namespace requires encrypted messages".to_owned()));
        }
        if limits.producers_max.is_some_and(|max| self.producers.len() as u64 >= max) {
            return Err(TopicError::Limit("Topic reached max producers limit".to_owned()));
        }
        Ok(())
    }

    fn admitted(&mut self, key: ProducerKey, reply: Reply<Admission>) {
        match self.producers.admitted(key) {
            Some(admitted) => reply.send(Ok(Admission::Admitted(admitted))),
            None => drop(reply),
        }
    }

    /// Stores the epoch of an exclusive term, then begins it; `waited_as` is who has waited for it.
    fn begin_term(
        &mut self,
        waited_as: Option<ProducerKey>,
        spec: Box<AddProducer>,
        epoch: u64,
        reply: Reply<Admission>,
    ) {
        let token = self.ledger.set_topic_epoch(epoch);
        let then = move |worker: &mut Worker, stored: Result<(), TopicError>| {
            // Quotas are exceeded, and topics end, while an epoch is being stored.
            if let Err(refused) = stored.and_then(|()| worker.takes_producers()) {
                reply.send(Err(refused));
                if let Some(key) = waited_as {
                    worker.drop_producer(key); // who waits behind it is not forgotten
                }
                return;
            }
            let fences = spec.mode == AccessMode::ExclusiveWithFencing;
            if worker.producers.topic_epoch().is_some_and(|current| current >= epoch)
                || (!fences && worker.producers.len() > 0)
            {
                // Someone else came in while the epoch was being stored.
                return reply.send(Err(TopicError::ProducerFenced));
            }
            if fences {
                worker.fence_producers();
            }
            let key = worker.producers.begin_term(waited_as, spec, epoch, worker.now());
            worker.admitted(key, reply);
        };
        self.changes.insert(token, Box::new(then));
    }

    pub(super) fn remove_producer(&mut self, key: ProducerKey, reply: Option<Reply<()>>) {
        if let Some(producer) = self.producers.get_mut(key)
            && producer.pending > 0
            && let Some(reply) = reply
        {
            // An orderly close waits for the last receipt.
            return producer.closing.push(reply);
        }
        self.drop_producer(key);
        answer(reply, Ok(()));
    }

    /// Takes a producer out; a waiting one may get its turn.
    pub(super) fn drop_producer(&mut self, key: ProducerKey) {
        if let Some((next, spec)) = self.producers.remove(key)
            && !self.is_ending()
        {
            let (epoch, turn) = (self.producers.next_epoch(), self.turn_of(next, &spec));
            self.begin_term(Some(next), spec, epoch, turn);
        }
    }

    pub(super) fn subscribe(&mut self, spec: Box<Subscribe>, reply: Reply<SubscribeOutcome>) {
        if self.is_ending() {
            return;
        }
        if spec.reads_compacted && matches!(spec.kind, SubscriptionType::Shared | SubscriptionType::KeyShared)
        {
            let text = "the compacted view can only be read by Exclusive and Failover subscriptions";
            return reply.send(Err(TopicError::NotAllowed(text.to_owned())));
        }
        if let Some(sub) = self.subscriptions.get(&spec.subscription) {
            if sub.is_durable() != spec.durable {
                let text = "the subscription exists with another durability";
                return reply.send(Err(TopicError::NotAllowed(text.to_owned())));
            }
            return self.join(spec, reply);
        }
        if spec.durable && !spec.may_create {
            return reply.send(Err(TopicError::SubscriptionNotFound(spec.subscription.to_string())));
        }
        let keeper = self.subscriptions.get(LOST_CURSORS).filter(|_| spec.durable);
        if let Some(at) = keeper.map(|keeper| self.ledger.settle(keeper.acks.floor())) {
            tracing::warn!(
                code = %Code::LOST_FOR_GOOD, topic = %self.name, subscription = %spec.subscription,
                "nothing is known of this subscription, and cursors of the topic were lost: it begins at the earliest message"
            );
            return self.subscribe_at(spec, at, reply);
        }
        if spec.rollback_secs > 0 {
            let since = self.broker.clock.wall_ms().saturating_sub(spec.rollback_secs.saturating_mul(1000));
            let token = self.ledger.find_by_time(since);
            self.finds.insert(token, FindFor::Subscribe(spec, reply));
            return;
        }
        let at = self.start_of(&spec);
        self.subscribe_at(spec, at, reply);
    }

    /// Creates the subscription at a position and joins it.
    pub(super) fn subscribe_at(
        &mut self,
        spec: Box<Subscribe>,
        at: Position,
        reply: Reply<SubscribeOutcome>,
    ) {
        let (name, properties, durable) = (spec.subscription.clone(), spec.properties.clone(), spec.durable);
        let replicated = spec.replicated;
        let ack_set = match &spec.start {
            Some(SeekTarget::Entry(position, words)) if *position == at => words.clone(),
            _ => Vec::new(),
        };
        if durable {
            let then = Box::new(move |worker: &mut Worker, made: Result<(), TopicError>| match made {
                Ok(()) => worker.join(spec, reply),
                Err(refused) => reply.send(Err(refused)),
            });
            let birth = Birth { at, properties, replicated };
            return self.create_subscription(name, birth, then);
        }
        let incarnation = self.next_incarnation();
        let dispatch = self.broker.dispatch(&self.name);
        let mut sub =
            Subscription::new(name.clone(), incarnation, None, Acked::below(at), &self.shape, dispatch);
        if !ack_set.is_empty() {
            sub.acks.reset(at, Some((&ack_set, 0)), &self.ledger);
        }
        self.subscriptions.insert(name, sub);
        self.join(spec, reply);
    }

    fn start_of(&self, spec: &Subscribe) -> Position {
        let initial = match spec.initial {
            InitialPosition::Latest => self.ledger.end(),
            InitialPosition::Earliest => self.ledger.first_position(),
        };
        match (&spec.start, spec.durable) {
            // A durable subscription starts where its initial position says.
            (_, true) | (None, false) => initial,
            (Some(SeekTarget::Earliest | SeekTarget::Time(_)), false) => self.ledger.first_position(),
            (Some(SeekTarget::Latest), false) => self.ledger.end(),
            (Some(SeekTarget::Entry(position, _)), false) if *position >= self.ledger.end() => initial,
            (Some(SeekTarget::Entry(position, _)), false) => self.ledger.clamp(*position),
        }
    }

    fn join(&mut self, spec: Box<Subscribe>, reply: Reply<SubscribeOutcome>) {
        let (now_ms, key) = (self.broker.clock.wall_ms(), self.consumer_key());
        if self.is_ending() {
            return; // the subscription was being stored meanwhile
        }
        let limits = self.broker.topic_limits(&self.name);
        let connected = self.consumers.len() as u64;
        let Some(sub) = self.subscriptions.get_mut(&spec.subscription) else { return };
        if sub.seeking {
            return; // not ready: the client tries again
        }
        if limits.consumers_max.is_some_and(|max| connected >= max) {
            let text = "Topic reached max consumers limit";
            return reply.send(Err(TopicError::ConsumerBusy(text)));
        }
        if limits.consumers_per_subscription_max.is_some_and(|max| sub.consumers.len() as u64 >= max) {
            let text = "Subscription reached max consumers limit";
            return reply.send(Err(TopicError::ConsumerBusy(text)));
        }
        let name = spec.subscription.clone();
        let now = Now { mono: self.broker.clock.mono(), wall_ms: now_ms };
        match sub.join(key, spec, &self.shape, self.broker.dispatch(&self.name), now) {
            Ok(mut effects) => {
                tell(sub, &mut effects);
                self.consumers.insert(key, name);
                reply.send(Ok(SubscribeOutcome::Subscribed(key)));
            }
            Err(Joining::HeldBy(holder, why)) => reply.send(Ok(SubscribeOutcome::HeldBy(holder, why))),
            Err(Joining::Refused(refused)) => reply.send(Err(refused)),
        }
    }

    pub(super) fn remove_consumer(&mut self, key: ConsumerKey, reply: Option<Reply<()>>) {
        let now_ms = self.broker.clock.wall_ms();
        if let Some(name) = self.consumers.remove(&key)
            && let Some(sub) = self.subscriptions.get_mut(&name)
        {
            let mut effects = sub.dispatcher.remove_consumer(key, now_ms);
            sub.consumers.remove(&key);
            tell(sub, &mut effects);
            if !sub.is_durable() && sub.consumers.is_empty() {
                self.subscriptions.remove(&name);
            }
        }
        answer(reply, Ok(()));
    }
}

/// How a durable subscription begins.
pub(super) struct Birth {
    /// Everything before counts as acknowledged.
    pub(super) at: Position,
    /// Free properties.
    pub(super) properties: BTreeMap<String, String>,
    /// Whether its state is to be replicated to the namespace's other clusters.
    pub(super) replicated: bool,
}

/// What goes on once a subscription is made, or could not be.
pub(super) type Made = Box<dyn FnOnce(&mut Worker, Result<(), TopicError>) + Send>;

impl Worker {
    /// Creates a durable subscription at a position; `then` goes on once it is durable. A second wish for the same name while
    /// the first is being written waits for it.
    pub(super) fn create_subscription(&mut self, name: SubscriptionName, birth: Birth, then: Made) {
        if let Some(waiting) = self.creating.get_mut(&name) {
            return waiting.push(then);
        }
        let limits = self.broker.topic_limits(&self.name);
        let there = self.subscriptions.values().filter(|sub| sub.is_durable()).count();
        let durable = (there + self.creating.len()) as u64;
        if limits.subscriptions_max.is_some_and(|max| durable >= max) {
            let text = "Exceed the maximum number of subscriptions of the topic";
            return then(self, Err(TopicError::NotAllowed(text.to_owned())));
        }
        self.creating.insert(name.clone(), vec![then]);
        let (cursors, topic, handle) = (self.cursors.clone(), self.ledger.topic_id(), self.handle.clone());
        let created_ms = self.broker.clock.wall_ms();
        let task = format!("create subscription {name}");
        self.broker.tasks.clone().spawn(task, geminga_common::tasks::OnFailure::Log, async move {
            let image = CursorImage {
                acked: Acked::below(birth.at),
                ack_properties: Vec::new(),
                properties: birth.properties.clone(),
                created_ms,
                replicated: birth.replicated,
            };
            let made = cursors.create(topic, name.clone(), image).await;
            handle.put(Message::Done(Box::new(move |worker| worker.created(name, birth, made))));
        });
    }

    fn created(&mut self, name: SubscriptionName, birth: Birth, made: Result<CursorId, WriteError>) {
        let waiting = self.creating.remove(&name).unwrap_or_default();
        let made = made.map_err(|error| TopicError::storage(&error));
        let result = made.as_ref().map(|_cursor| ()).map_err(Clone::clone);
        if let Ok(cursor) = made
            && !self.subscriptions.contains_key(&name)
        {
            let incarnation = self.next_incarnation();
            let dispatch = self.broker.dispatch(&self.name);
            self.durable.add(cursor, birth.at);
            let mut sub = Subscription::new(
                name.clone(),
                incarnation,
                Some(cursor),
                Acked::below(birth.at),
                &self.shape,
                dispatch,
            );
            sub.properties = birth.properties;
            sub.replicated = birth.replicated;
            self.subscriptions.insert(name, sub);
        }
        for then in waiting {
            then(self, result.clone());
        }
        self.trim();
    }
}
