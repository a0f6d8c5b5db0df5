//! Seek, unsubscribe, last message id, and positions by time. Cursor operations that are acknowledged are durable first.

use super::error::{Reply, TopicError};
use super::farewell::{close_consumer, close_consumer_that_seeks};
use super::messages::{ConsumerFigures, LastMessage, Message, SeekTarget};
use super::unreadable::Unreadable;
use super::worker::{FindFor, ReadFor, Worker};
use crate::cursor::{Acked, Log as _, WriteError};
use crate::dispatch::ConsumerKey;
use crate::managed_ledger::{self as ml, ReadEntry, ReadLimit, ReadOutcome};
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::ids::Position;
use geminga_common::names::SubscriptionName;
use geminga_common::tasks::OnFailure;
use geminga_proto::metadata_view::MetadataView;
use geminga_proto::payload::parse_payload;

impl Worker {
    /// Moves a subscription: consumers are sent away, the new place is made durable, then the request is answered.
    pub(super) fn seek(
        &mut self,
        name: &SubscriptionName,
        asks: Option<ConsumerKey>,
        to: SeekTarget,
        reply: Reply<()>,
    ) {
        let Some(sub) = self.subscriptions.get_mut(name) else {
            return reply.send(Err(TopicError::SubscriptionNotFound(name.to_string())));
        };
        if sub.seeking {
            let text = "another seek of the subscription is under way";
            return reply.send(Err(TopicError::Precondition(text.to_owned())));
        }
        sub.seeking = true;
        sub.unreadable = Unreadable::default();
        sub.dispatcher.set_fenced(true);
        let incarnation = sub.incarnation;
        let now_ms = self.broker.clock.wall_ms();
        for (key, consumer) in std::mem::take(&mut sub.consumers) {
            sub.dispatcher.remove_consumer(key, now_ms);
            self.consumers.remove(&key);
            if asks == Some(key) {
                close_consumer_that_seeks(&consumer.spec);
            } else {
                close_consumer(&consumer.spec);
            }
        }
        match to {
            SeekTarget::Earliest => {
                self.seek_to(name, incarnation, self.ledger.first_position(), Vec::new(), reply);
            }
            SeekTarget::Latest => self.seek_to(name, incarnation, self.ledger.end(), Vec::new(), reply),
            SeekTarget::Entry(position, ack_set) => {
                let at = self.ledger.clamp(position);
                let ack_set = if at == position { ack_set } else { Vec::new() };
                self.seek_to(name, incarnation, at, ack_set, reply);
            }
            SeekTarget::Time(since) => {
                let token = self.ledger.find_by_time(since);
                self.finds.insert(token, FindFor::Seek(name.clone(), incarnation, reply));
            }
        }
    }

    /// A position that was looked for is found.
    pub(super) fn found(&mut self, token: ml::Token, result: Result<Option<Position>, ml::ReadError>) {
        let end = self.ledger.end();
        let result = result.map(|found| found.unwrap_or(end)).map_err(|error| TopicError::read(&error));
        match (self.finds.remove(&token), result) {
            (None, _) => {}
            (Some(FindFor::Answer(reply)), result) => reply.send(result),
            (Some(FindFor::Seek(name, incarnation, reply)), Ok(at)) => {
                self.seek_to(&name, incarnation, at, Vec::new(), reply);
            }
            (Some(FindFor::Seek(name, incarnation, reply)), Err(refused)) => {
                self.seek_over(&name, incarnation);
                reply.send(Err(refused));
            }
            (Some(FindFor::Subscribe(spec, reply)), Ok(at)) => self.subscribe_at(spec, at, reply),
            (Some(FindFor::Subscribe(_, reply)), Err(refused)) => reply.send(Err(refused)),
        }
    }

    fn seek_to(
        &mut self,
        name: &SubscriptionName,
        incarnation: u64,
        at: Position,
        ack_set: Vec<u64>,
        reply: Reply<()>,
    ) {
        let Some(sub) = self.subscriptions.get_mut(name).filter(|sub| sub.incarnation == incarnation) else {
            return reply.send(Err(TopicError::SubscriptionNotFound(name.to_string())));
        };
        // What was dirty is obsolete; acks under way are ordered before the reset in the cursor log.
        let part = (!ack_set.is_empty()).then_some((ack_set.as_slice(), 0));
        sub.acks.reset(at, part, &self.ledger);
        sub.gaps.changed = true;
        sub.dispatcher.reset(sub.acks.floor());
        sub.reading = None;
        sub.persisting.dirty_since = None;
        for receipt in std::mem::take(&mut sub.persisting.receipts) {
            receipt.send(Ok(())); // the seek decides what is acknowledged now
        }
        let Some(cursor) = sub.cursor else {
            self.seek_over(name, incarnation);
            return reply.send(Ok(()));
        };
        // Trimming may not pass a place that is about to be sought back to.
        self.durable.resetting(cursor, sub.acks.floor());
        let image: Acked = sub.acks.acked().clone();
        let (cursors, handle) = (self.cursors.clone(), self.handle.clone());
        let name = name.clone();
        self.broker.tasks.clone().spawn(format!("seek of {name}"), OnFailure::Log, async move {
            let floor = image.floor;
            let stored = cursors.reset(cursor, image).await;
            let then = move |worker: &mut Worker| worker.sought(&name, incarnation, floor, stored, reply);
            handle.put(Message::Done(Box::new(then)));
        });
    }

    fn sought(
        &mut self,
        name: &SubscriptionName,
        incarnation: u64,
        floor: Position,
        stored: Result<(), WriteError>,
        reply: Reply<()>,
    ) {
        match stored {
            Ok(()) => {
                let sub = self.subscriptions.get(name).filter(|sub| sub.incarnation == incarnation);
                if let Some(cursor) = sub.and_then(|sub| sub.cursor) {
                    self.durable.reset(cursor, floor);
                }
                self.seek_over(name, incarnation);
                reply.send(Ok(()));
            }
            Err(error) => {
                let refused = TopicError::storage(&error);
                reply.send(Err(refused.clone()));
                self.lose(&refused);
            }
        }
    }

    fn seek_over(&mut self, name: &SubscriptionName, incarnation: u64) {
        if let Some(sub) = self.subscriptions.get_mut(name).filter(|sub| sub.incarnation == incarnation) {
            sub.seeking = false;
            sub.dispatcher.set_fenced(false);
            if !sub.is_durable() {
                // Its consumers come back at once and find it by name; should they not, it goes with the topic.
                sub.dispatcher.reset(sub.acks.floor());
            }
        }
    }

    /// Deletes the subscription of a consumer.
    pub(super) fn unsubscribe(&mut self, consumer: ConsumerKey, force: bool, reply: Reply<()>) {
        let Some(name) = self.consumers.get(&consumer).cloned() else {
            return reply.send(Err(TopicError::NotReady));
        };
        let others = self.subscriptions.get(&name).map_or(0, |sub| sub.consumers.len().saturating_sub(1));
        if others > 0 && !force {
            let text =
                "Unconnected or shared consumer attempting to unsubscribe: other consumers are connected";
            return reply.send(Err(TopicError::Precondition(text.to_owned())));
        }
        self.delete_subscription(name, Some(consumer), reply);
    }

    /// Deletes a subscription; its consumers, but the one that asks, are told.
    pub(super) fn delete_subscription(
        &mut self,
        name: SubscriptionName,
        asks: Option<ConsumerKey>,
        reply: Reply<()>,
    ) {
        let Some(sub) = self.subscriptions.get_mut(&name) else {
            return reply.send(Err(TopicError::SubscriptionNotFound(name.to_string())));
        };
        let now_ms = self.broker.clock.wall_ms();
        sub.dispatcher.set_fenced(true);
        for (key, consumer) in std::mem::take(&mut sub.consumers) {
            sub.dispatcher.remove_consumer(key, now_ms);
            self.consumers.remove(&key);
            if Some(key) != asks {
                close_consumer(&consumer.spec);
            }
        }
        let Some(cursor) = sub.cursor else {
            self.subscriptions.remove(&name);
            return reply.send(Ok(()));
        };
        // Receipts of acks that the deletion overtakes: there is nothing left to be redelivered.
        for receipt in std::mem::take(&mut sub.persisting.receipts) {
            receipt.send(Ok(()));
        }
        sub.seeking = true; // nobody may join what is going
        let incarnation = sub.incarnation;
        let (cursors, handle) = (self.cursors.clone(), self.handle.clone());
        self.broker.tasks.clone().spawn(format!("delete subscription {name}"), OnFailure::Log, async move {
            let stored = cursors.delete(cursor).await;
            let then = move |worker: &mut Worker| match stored {
                Ok(()) | Err(WriteError::NoSuchCursor(_)) => {
                    if worker.subscriptions.get(&name).is_some_and(|sub| sub.incarnation == incarnation) {
                        worker.subscriptions.remove(&name);
                    }
                    worker.durable.remove(cursor);
                    // Two deletions at once: the second found nothing any more.
                    reply.send(stored.map_err(|_gone| TopicError::SubscriptionNotFound(name.to_string())));
                    worker.trim();
                }
                Err(error) => {
                    let refused = TopicError::storage(&error);
                    reply.send(Err(refused.clone()));
                    worker.lose(&refused);
                }
            };
            handle.put(Message::Done(Box::new(then)));
        });
    }

    /// The last entry, the size of its batch, and where a subscription stands.
    pub(super) fn last_message_id(
        &mut self,
        subscription: Option<SubscriptionName>,
        reply: Reply<LastMessage>,
    ) {
        let mark_delete = subscription
            .and_then(|name| self.subscriptions.get(&name))
            .map(|sub| mark_delete(self.ledger.settle(sub.acks.floor()), &self.ledger));
        let Some(position) = self.ledger.last_confirmed() else {
            return reply.send(Ok(LastMessage { position: None, batch_index: None, mark_delete }));
        };
        let then = move |read: Result<Vec<ReadEntry>, TopicError>| {
            let last = |batch_index| LastMessage { position: Some(position), batch_index, mark_delete };
            match read {
                // Its id is still the last.
                Err(TopicError::Lost(_)) => reply.send(Ok(last(None))),
                read => reply.send(read.map(|found| last(found.first().and_then(batch_index)))),
            }
        };
        let limit = ReadLimit { entries: 1, bytes: 1 };
        match self.ledger.read(position, limit, ReadClass::Tail) {
            ReadOutcome::Ready(found) => then(Ok(found)),
            ReadOutcome::Pending(token) => {
                self.reads.insert(token, ReadFor::Then(Box::new(then)));
            }
            // Trimmed: its id is still the last, its batch size no longer matters to anyone.
            ReadOutcome::AtEnd => then(Ok(Vec::new())),
        }
    }

    /// Figures of one consumer.
    pub(super) fn consumer_figures(&self, key: ConsumerKey) -> Result<ConsumerFigures, TopicError> {
        let sub = self.consumers.get(&key).and_then(|name| self.subscriptions.get(name));
        let sub = sub.ok_or(TopicError::NotReady)?;
        let consumer = sub.consumers.get(&key).ok_or(TopicError::NotReady)?;
        let stats = sub.dispatcher.stats();
        let mine = stats.consumers.iter().find(|c| c.key == key).ok_or(TopicError::NotReady)?;
        let [msg_rate_out, msg_throughput_out, ..] = consumer.traffic.rates(self.broker.clock.mono());
        Ok(ConsumerFigures {
            name: consumer.spec.name.clone(),
            address: consumer.spec.peer.address.clone(),
            connected_since: crate::rest::time::iso_utc(consumer.connected_ms),
            kind: sub.kind.to_string(),
            permits: mine.permits,
            unacked: mine.unacked_messages,
            blocked: mine.blocked_on_unacked,
            msg_rate_out,
            msg_throughput_out,
            backlog: sub.acks.backlog(&self.ledger),
        })
    }
}

/// The position before a floor as clients know it: the entry is −1 before a ledger's first.
pub(super) fn mark_delete(floor: Position, ledger: &ml::ManagedLedger) -> (u64, i64) {
    match floor.entry.0 {
        0 => match ledger.previous_position(floor) {
            Some(before) => (before.ledger.0, before.entry.0 as i64),
            None => (floor.ledger.0, -1),
        },
        entry => (floor.ledger.0, entry as i64 - 1),
    }
}

/// Index of the last message of a batch; `None` for a message of its own.
fn batch_index(entry: &ReadEntry) -> Option<i32> {
    let parts = parse_payload(entry.entry.payload.clone()).ok()?;
    let view = MetadataView::parse(parts.metadata()).ok()?;
    // Stored as it was sent, whatever number its sender wrote.
    view.num_messages_in_batch.filter(|n| *n > 0).map(|n| n - 1)
}
