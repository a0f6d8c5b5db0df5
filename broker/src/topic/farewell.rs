//! Closing clients from this side.
//!
//! A client whose PRODUCER or SUBSCRIBE is not answered yet (the topic let it in, the connection has not told it) gets an ERROR for
//! that request and nothing else: CLOSE_PRODUCER would tell it of a producer that it does not have, and leave its request open.
//! Slots that belong to somebody else by now (the client closed its producer and uses the id anew) are left alone.

use super::error::{Reply, TopicError};
use super::messages::{AddProducer, Admission, Subscribe};
use super::peer::{ConsumerSlot, Peer, ProducerSlot};
use super::worker::Worker;
use super::{ProducerKey, ProducerRef, TopicHandle};
use geminga_common::clock::Mono;
use geminga_common::ids::{ProducerId, RequestId};
use std::sync::Arc;

/// A producer's client, as it is told that it is closed.
struct Client {
    key: ProducerKey,
    topic: TopicHandle,
    peer: Arc<Peer>,
    id: ProducerId,
    request: RequestId,
}

/// Where a producer stands with its connection.
enum Stands {
    /// Its request waits for an answer.
    Unanswered,
    /// It was told to wait for its exclusive term.
    Waits,
    /// It publishes.
    Publishes,
    /// Its client has closed it.
    Gone,
}

impl Client {
    fn new(key: ProducerKey, spec: &AddProducer, topic: &TopicHandle) -> Self {
        let (peer, id, request) = (spec.peer.clone(), spec.id, spec.request);
        Self { key, topic: topic.clone(), peer, id, request }
    }

    /// Puts `slot` (or nothing) in its place and says what was there.
    fn leave(&self, slot: Option<ProducerSlot>) -> Stands {
        let mut slots = self.peer.slots();
        let ours = |producer: &ProducerRef| producer.key == self.key && producer.topic.is_same(&self.topic);
        let stands = match slots.producers.get(&self.id) {
            Some(ProducerSlot::Pending(request)) if *request == self.request => Stands::Unanswered,
            Some(ProducerSlot::Waiting(producer)) if ours(producer) => Stands::Waits,
            Some(ProducerSlot::Ready(producer)) if ours(producer) => Stands::Publishes,
            _ => return Stands::Gone,
        };
        match slot.filter(|_| !matches!(stands, Stands::Unanswered)) {
            Some(slot) => drop(slots.producers.insert(self.id, slot)),
            None => drop(slots.producers.remove(&self.id)),
        }
        stands
    }

    /// ERROR or CLOSE_PRODUCER; a client that would not act on the latter (protocol 12 and older) loses its connection instead.
    fn close(&self, why: &TopicError, now: Mono) {
        match self.leave(Some(ProducerSlot::ClosedByBroker(now))) {
            Stands::Unanswered => crate::service::refusal(&self.peer, self.request, why),
            Stands::Waits | Stands::Publishes if is_old(&self.peer) => self.peer.close(),
            Stands::Waits | Stands::Publishes => crate::service::close_producer(&self.peer, self.id),
            Stands::Gone => {}
        }
    }

    /// One that publishes hears nothing; its next SEND ends its connection. Others get an ERROR for their request.
    fn fence(&self) {
        if let Stands::Unanswered | Stands::Waits = self.leave(None) {
            crate::service::refusal(&self.peer, self.request, &TopicError::ProducerFenced);
        }
    }
}

impl Worker {
    /// Closes every producer and consumer from this side.
    pub(super) fn send_away(&mut self, why: &TopicError) {
        self.send_producers_away(why);
        for sub in self.subscriptions.values_mut() {
            for (key, consumer) in std::mem::take(&mut sub.consumers) {
                self.consumers.remove(&key);
                close_consumer(&consumer.spec);
            }
        }
    }

    /// Closes every producer from this side; `why` is what those are told that have no answer yet.
    pub(super) fn send_producers_away(&mut self, why: &TopicError) {
        let now = self.broker.clock.mono();
        for (key, spec) in self.producers.evict_all() {
            Client::new(key, &spec, &self.handle).close(why, now);
        }
    }

    /// Makes room for an exclusive producer that fences everybody else.
    pub(super) fn fence_producers(&mut self) {
        for (key, spec) in self.producers.evict_all() {
            Client::new(key, &spec, &self.handle).fence();
        }
    }

    /// How a waiting producer hears of its turn, or that there will be none.
    pub(super) fn turn_of(&self, key: ProducerKey, spec: &AddProducer) -> Reply<Admission> {
        let (turn, client) = (spec.turn.clone(), Client::new(key, spec, &self.handle));
        let clock = self.broker.clock.clone();
        Reply::new(move |answer| match answer {
            Ok(Admission::Admitted(admitted)) => turn(admitted),
            Err(TopicError::ProducerFenced) => client.fence(),
            // Nobody holds the name of one that waited: it was let in when it came.
            Ok(Admission::HeldBy(..)) => client.close(&TopicError::NotReady, clock.mono()),
            Err(why) => client.close(&why, clock.mono()),
        })
    }
}

fn is_old(peer: &Peer) -> bool {
    peer.announced().is_some_and(|a| a.protocol_version <= 12)
}

/// ERROR or CLOSE_CONSUMER, with the same exception.
pub(super) fn close_consumer(spec: &Subscribe) {
    if is_old(&spec.peer) {
        spec.peer.slots().consumers.remove(&spec.id);
        spec.peer.close();
    } else {
        close_consumer_that_seeks(spec);
    }
}

/// The same without exception: whoever seeks subscribes again by itself, and waits for its answer on this connection.
pub(super) fn close_consumer_that_seeks(spec: &Subscribe) {
    let mut slots = spec.peer.slots();
    if let Some(ConsumerSlot::Pending(request)) = slots.consumers.get(&spec.id) {
        if *request == spec.request {
            slots.consumers.remove(&spec.id);
            drop(slots);
            crate::service::refusal(&spec.peer, spec.request, &TopicError::NotReady);
        }
        return;
    }
    slots.consumers.remove(&spec.id);
    slots.sent_away.insert(spec.id);
    drop(slots);
    crate::service::close_consumer(&spec.peer, spec.id);
}

#[cfg(test)]
#[path = "farewell_tests.rs"]
mod tests;
