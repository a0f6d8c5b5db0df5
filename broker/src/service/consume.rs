//! SUBSCRIBE and what a consumer sends afterwards. Everything is routed by the connection's slots; the topic decides.

use super::connection::{Connection, End};
use super::respond;
use super::wire_error::server_error;
use crate::broker::Broker;
use crate::dispatch::{HashRange, KeySharedMode, SubscriptionType};
use crate::topic::messages::{
    Ack, AckedId, InitialPosition, LastMessage, Message, Redeliver, SeekTarget, Subscribe, SubscribeOutcome,
};
use crate::topic::peer::{Asking, ConsumerSlot, Peer};
use crate::topic::{ConsumerRef, Reply, TopicError};
use geminga_common::ids::{ConsumerId, EntryId, LedgerId, Position, RequestId};
use geminga_common::names::{SubscriptionName, TopicName};
use geminga_common::tasks::OnFailure;
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire, MessageIdData, ServerError};
use std::sync::Arc;

/// Longest consumer metadata, in bytes (`maxConsumerMetadataSize`).
const METADATA_MAX: usize = 1024;
/// How long a SEEK waits for a consumer that an earlier one has closed.
const SEEK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// SUBSCRIBE.
pub(super) fn subscribe(c: &mut Connection, command: wire::CommandSubscribe) {
    let (id, request) = (ConsumerId(command.consumer_id), RequestId(command.request_id));
    {
        let mut slots = c.peer.slots();
        match slots.consumers.get(&id) {
            Some(ConsumerSlot::Pending(_)) => {
                drop(slots);
                let text = "a consumer with this id is still being created on this connection";
                return respond::error(&c.peer, request, ServerError::ServiceNotReady, text);
            }
            Some(ConsumerSlot::Ready(_)) => {
                drop(slots);
                return respond::success(&c.peer, request);
            }
            None => {
                slots.sent_away.remove(&id);
                slots.consumers.insert(id, ConsumerSlot::Pending(request));
            }
        }
    }
    let (broker, peer) = (c.broker.clone(), c.peer.clone());
    c.broker.tasks.spawn(format!("consumer {id} of {}", peer.address), OnFailure::Log, async move {
        if let Err(refused) = create(&broker, &peer, command).await {
            let mut slots = peer.slots();
            if matches!(slots.consumers.get(&id), Some(ConsumerSlot::Pending(r)) if *r == request) {
                slots.consumers.remove(&id);
            }
            drop(slots);
            respond::error(&peer, request, server_error(&refused), refused.to_string());
        }
        peer.settled.notify_waiters();
    });
}

async fn create(
    broker: &Arc<Broker>,
    peer: &Arc<Peer>,
    command: wire::CommandSubscribe,
) -> Result<(), TopicError> {
    let (id, request) = (ConsumerId(command.consumer_id), RequestId(command.request_id));
    let metadata: usize = command.metadata.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
    if metadata > METADATA_MAX {
        return Err(TopicError::NotAllowed(format!(
            "consumer metadata has {metadata} bytes, {METADATA_MAX} are allowed"
        )));
    }
    let name =
        TopicName::parse(&command.topic).map_err(|error| TopicError::InvalidName(error.to_string()))?;
    let subscription = SubscriptionName::parse(&command.subscription)
        .map_err(|error| TopicError::NotAllowed(error.to_string()))?;
    let topic = broker.topic(&name, command.force_topic_creation()).await?;
    if let Some(schema) = &command.schema {
        // A topic nobody has used takes the schema of its first consumer.
        let idle = topic.ask(Message::IsIdle).await?;
        super::schemas::check_consumer(broker, &name, schema, idle).await?;
    }
    let may_create = broker.may_create_subscription(&name);
    let patience = broker.config.liveness_timeout();
    let mut probed = false;
    let key = loop {
        let spec = Box::new(spec(peer, &command, &subscription, may_create)?);
        match topic.ask(|reply| Message::Subscribe(spec, reply)).await? {
            SubscribeOutcome::Subscribed(key) => break key,
            SubscribeOutcome::HeldBy(holder, why) => {
                if probed || holder.id == peer.id || holder.probe(patience).await {
                    return Err(TopicError::ConsumerBusy(why));
                }
                probed = true;
            }
        }
    };
    let mut slots = peer.slots();
    let expected = matches!(slots.consumers.get(&id), Some(ConsumerSlot::Pending(r)) if *r == request);
    if !expected || slots.ended {
        drop(slots);
        topic.put(Message::RemoveConsumer(key, None));
        return Ok(());
    }
    slots.consumers.insert(id, ConsumerSlot::Ready(ConsumerRef { topic, subscription, key }));
    respond::success(peer, request);
    Ok(())
}

fn spec(
    peer: &Arc<Peer>,
    command: &wire::CommandSubscribe,
    subscription: &SubscriptionName,
    may_create: bool,
) -> Result<Subscribe, TopicError> {
    use wire::command_subscribe::{InitialPosition as Initial, SubType};
    let kind = match command.sub_type() {
        SubType::Exclusive => SubscriptionType::Exclusive,
        SubType::Shared => SubscriptionType::Shared,
        SubType::Failover => SubscriptionType::Failover,
        SubType::KeyShared => SubscriptionType::KeyShared,
    };
    let (key_shared, allow_out_of_order) = key_shared(command.key_shared_meta.as_ref())?;
    Ok(Subscribe {
        peer: peer.clone(),
        id: ConsumerId(command.consumer_id),
        request: RequestId(command.request_id),
        name: command.consumer_name.clone().unwrap_or_default(),
        subscription: subscription.clone(),
        kind,
        priority: command.priority_level(),
        durable: command.durable(),
        start: command.start_message_id.as_ref().map(target),
        initial: match command.initial_position() {
            Initial::Latest => InitialPosition::Latest,
            Initial::Earliest => InitialPosition::Earliest,
        },
        rollback_secs: command.start_message_rollback_duration_sec(),
        metadata: command.metadata.iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect(),
        properties: pairs(&command.subscription_properties),
        key_shared,
        allow_out_of_order,
        epoch: command.consumer_epoch,
        may_create: may_create || !command.durable(),
        replicated: command.replicate_subscription_state(),
        reads_compacted: command.read_compacted(),
    })
}

fn pairs(list: &[wire::KeyValue]) -> std::collections::BTreeMap<String, String> {
    list.iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect()
}

fn key_shared(meta: Option<&wire::KeySharedMeta>) -> Result<(KeySharedMode, bool), TopicError> {
    let Some(meta) = meta else { return Ok((KeySharedMode::AutoSplit, false)) };
    let bound = |number: i32| {
        u16::try_from(number).map_err(|_| TopicError::ConsumerAssign("key hash ranges lie in 0..=65535"))
    };
    let mode = match meta.key_shared_mode() {
        wire::KeySharedMode::AutoSplit => KeySharedMode::AutoSplit,
        wire::KeySharedMode::Sticky => KeySharedMode::Sticky(
            meta.hash_ranges
                .iter()
                .map(|range| Ok(HashRange { start: bound(range.start)?, end: bound(range.end)? }))
                .collect::<Result<_, TopicError>>()?,
        ),
    };
    Ok((mode, meta.allow_out_of_order_delivery()))
}

/// A message id as a place to start: −1 fields mean the earliest, 2^63−1 the latest message.
fn target(id: &MessageIdData) -> SeekTarget {
    if id.ledger_id == u64::MAX {
        SeekTarget::Earliest
    } else if id.ledger_id >= i64::MAX as u64 {
        SeekTarget::Latest
    } else if id.entry_id == u64::MAX {
        SeekTarget::Entry(Position::new(LedgerId(id.ledger_id), EntryId(0)), Vec::new())
    } else {
        let position = Position::new(LedgerId(id.ledger_id), EntryId(id.entry_id));
        SeekTarget::Entry(position, words(&id.ack_set))
    }
}

/// Bitmap words as the wire's signed numbers hold them.
fn words(ack_set: &[i64]) -> Vec<u64> {
    ack_set.iter().map(|word| *word as u64).collect()
}

impl Connection {
    fn consumer(&self, id: ConsumerId) -> Option<ConsumerRef> {
        match self.peer.slots().consumers.get(&id) {
            Some(ConsumerSlot::Ready(consumer)) => Some(consumer.clone()),
            _ => None,
        }
    }

    /// The consumer, or an ERROR to the request.
    fn consumer_or_refuse(&self, id: ConsumerId, request: RequestId) -> Option<ConsumerRef> {
        let consumer = self.consumer(id);
        if consumer.is_none() {
            respond::error(&self.peer, request, ServerError::MetadataError, "Consumer not found");
        }
        consumer
    }
}

/// FLOW: more permits. For an unknown consumer silence, as it may just have been closed.
pub(super) fn flow(c: &Connection, command: &wire::CommandFlow) -> Result<(), End> {
    if command.message_permits == 0 || command.message_permits > i32::MAX as u32 {
        return Err(End::Violation("FLOW of 0 or of 2^31 or more permits"));
    }
    if let Some(consumer) = c.consumer(ConsumerId(command.consumer_id)) {
        consumer.topic.put(Message::Flow(consumer.key, command.message_permits));
    }
    Ok(())
}

/// ACK.
pub(super) fn ack(c: &Connection, command: wire::CommandAck) {
    let id = ConsumerId(command.consumer_id);
    let receipt = command.request_id.map(|request| ack_receipt(c.peer.asks(), id, RequestId(request)));
    let refuse = |receipt: Option<Reply<()>>, text: &str| {
        if let Some(receipt) = receipt {
            receipt.send(Err(TopicError::NotAllowed(text.to_owned())));
        }
    };
    if command.txnid_least_bits() != 0 || command.txnid_most_bits() != 0 {
        return refuse(receipt, "transactions are not enabled on this broker");
    }
    let Some(consumer) = c.consumer(id) else {
        return refuse(receipt, "no such consumer on this connection");
    };
    let acked = |id: MessageIdData| AckedId {
        position: Position::new(LedgerId(id.ledger_id), EntryId(id.entry_id)),
        batch_size: u32::try_from(id.batch_size()).unwrap_or(0),
        ack_set: words(&id.ack_set),
    };
    let cumulative = command.ack_type() == wire::command_ack::AckType::Cumulative;
    consumer.topic.put(Message::Ack(Ack {
        consumer: consumer.key,
        cumulative,
        ids: command.message_id.into_iter().map(acked).collect(),
        properties: command.properties.into_iter().map(|kv| (kv.key, kv.value)).collect(),
        receipt,
    }));
}

fn ack_receipt(peer: Asking, id: ConsumerId, request: RequestId) -> Reply<()> {
    Reply::new(move |durable| match durable {
        Ok(()) => peer.outbox.frame(|out| geminga_proto::encode::ack_response(id.0, request.0, out)),
        Err(refused) => respond::command(&peer, Type::AckResponse, |c| {
            c.ack_response = Some(Box::new(wire::CommandAckResponse {
                consumer_id: id.0,
                request_id: Some(request.0),
                error: Some(server_error(&refused) as i32),
                message: Some(refused.to_string()),
                ..Default::default()
            }));
        }),
    })
}

/// REDELIVER_UNACKNOWLEDGED_MESSAGES; for an unknown consumer silence.
pub(super) fn redeliver(c: &Connection, command: wire::CommandRedeliverUnacknowledgedMessages) {
    let Some(consumer) = c.consumer(ConsumerId(command.consumer_id)) else { return };
    let position = |id: &MessageIdData| Position::new(LedgerId(id.ledger_id), EntryId(id.entry_id));
    let positions: Vec<_> = command.message_ids.iter().map(position).collect();
    consumer.topic.put(Message::Redeliver(Redeliver {
        consumer: consumer.key,
        positions: (!positions.is_empty()).then_some(positions),
        epoch: command.consumer_epoch,
    }));
}

/// CLOSE_CONSUMER: SUCCESS even when there is none.
pub(super) fn close(c: &Connection, command: &wire::CommandCloseConsumer) {
    let (id, request) = (ConsumerId(command.consumer_id), RequestId(command.request_id));
    let slot = {
        let mut slots = c.peer.slots();
        slots.sent_away.remove(&id);
        slots.consumers.remove(&id)
    };
    match slot {
        Some(ConsumerSlot::Ready(consumer)) => {
            let peer = c.peer.clone();
            let reply = Reply::new(move |_gone_either_way| respond::success(&peer, request));
            consumer.topic.put(Message::RemoveConsumer(consumer.key, Some(reply)));
        }
        Some(ConsumerSlot::Pending(pending)) => {
            let text = "the consumer was closed before it was created";
            respond::error(&c.peer, pending, ServerError::ServiceNotReady, text);
            respond::success(&c.peer, request);
        }
        None => respond::success(&c.peer, request),
    }
}

/// UNSUBSCRIBE.
pub(super) fn unsubscribe(c: &Connection, command: &wire::CommandUnsubscribe) {
    let request = RequestId(command.request_id);
    let id = ConsumerId(command.consumer_id);
    let Some(consumer) = c.consumer_or_refuse(id, request) else { return };
    let peer = c.peer.asks();
    let reply = Reply::new(move |result: Result<(), TopicError>| {
        if result.is_ok() {
            peer.slots().consumers.remove(&id);
        }
        respond::outcome(&peer, request, &result);
    });
    consumer.topic.put(Message::Unsubscribe { consumer: consumer.key, force: command.force(), reply });
}

/// SEEK. One right after another meets a consumer that the first has closed and whose client is on its way back: it waits.
pub(super) fn seek(c: &Connection, command: wire::CommandSeek) {
    let (id, request) = (ConsumerId(command.consumer_id), RequestId(command.request_id));
    let to = match (&command.message_id, command.message_publish_time) {
        (Some(id), _) => target(id),
        (None, Some(time)) => SeekTarget::Time(time),
        (None, None) => {
            let text = "SEEK names neither a message id nor a time";
            return respond::error(&c.peer, request, ServerError::MetadataError, text);
        }
    };
    let awaits = c.peer.slots().awaits(id);
    if !awaits {
        let Some(consumer) = c.consumer_or_refuse(id, request) else { return };
        return put_seek(c.peer.asks(), request, consumer, to);
    }
    let peer = c.peer.asks();
    c.broker.tasks.spawn(format!("seek of {}", peer.address), OnFailure::Log, async move {
        match tokio::time::timeout(SEEK_PATIENCE, returned(&peer, id)).await {
            Ok(Some(consumer)) => put_seek(peer, request, consumer, to),
            _ => respond::error(&peer, request, ServerError::MetadataError, "Consumer not found"),
        }
    });
}

/// The consumer, once its client has subscribed again; `None` when it will not.
async fn returned(peer: &Peer, id: ConsumerId) -> Option<ConsumerRef> {
    loop {
        let settled = peer.settled.notified();
        tokio::pin!(settled);
        settled.as_mut().enable();
        {
            let slots = peer.slots();
            match slots.consumers.get(&id) {
                Some(ConsumerSlot::Ready(consumer)) => return Some(consumer.clone()),
                _ if !slots.awaits(id) => return None,
                _ => {}
            }
        }
        settled.await;
    }
}

fn put_seek(peer: Asking, request: RequestId, consumer: ConsumerRef, to: SeekTarget) {
    let reply = Reply::new(move |result| respond::outcome(&peer, request, &result));
    consumer.topic.put(Message::Seek {
        subscription: consumer.subscription,
        asks: Some(consumer.key),
        to,
        reply,
    });
}

/// GET_LAST_MESSAGE_ID.
pub(super) fn last_message_id(c: &Connection, command: &wire::CommandGetLastMessageId) {
    let request = RequestId(command.request_id);
    let Some(consumer) = c.consumer_or_refuse(ConsumerId(command.consumer_id), request) else { return };
    let peer = c.peer.asks();
    let partition = consumer.topic.name().partition_index();
    let reply = Reply::new(move |result: Result<LastMessage, TopicError>| match result {
        Ok(last) => last_message(&peer, request, partition, &last),
        Err(refused) => respond::refusal(&peer, request, &refused),
    });
    consumer.topic.put(Message::LastMessageId(Some(consumer.subscription), reply));
}

fn last_message(peer: &Peer, request: RequestId, partition: Option<u32>, last: &LastMessage) {
    let partition = partition.map_or(-1, |n| n as i32);
    let id = |position: Option<Position>, batch_index: Option<i32>| MessageIdData {
        ledger_id: position.map_or(u64::MAX, |p| p.ledger.0),
        entry_id: position.map_or(u64::MAX, |p| p.entry.0),
        partition: Some(partition),
        batch_index,
        ..Default::default()
    };
    respond::command(peer, Type::GetLastMessageIdResponse, |c| {
        c.get_last_message_id_response = Some(Box::new(wire::CommandGetLastMessageIdResponse {
            last_message_id: id(last.position, last.batch_index),
            request_id: request.0,
            consumer_mark_delete_position: last.mark_delete.map(|(ledger, entry)| MessageIdData {
                ledger_id: ledger,
                entry_id: entry as u64,
                ..Default::default()
            }),
        }));
    });
}

/// CONSUMER_STATS.
pub(super) fn stats(c: &Connection, command: &wire::CommandConsumerStats) {
    let request = command.request_id;
    let answer = move |peer: &Peer, response: wire::CommandConsumerStatsResponse| {
        respond::command(peer, Type::ConsumerStatsResponse, |c| {
            c.consumer_stats_response = Some(Box::new(response));
        });
    };
    let failed = move |code: ServerError, text: String| wire::CommandConsumerStatsResponse {
        request_id: request,
        error_code: Some(code as i32),
        error_message: Some(text),
        ..Default::default()
    };
    let Some(consumer) = c.consumer(ConsumerId(command.consumer_id)) else {
        let text = "no such consumer on this connection".to_owned();
        return answer(&c.peer, failed(ServerError::ConsumerNotFound, text));
    };
    let peer = c.peer.asks();
    let reply = Reply::new(move |result: Result<crate::topic::messages::ConsumerFigures, TopicError>| {
        let response = match result {
            Ok(figures) => wire::CommandConsumerStatsResponse {
                request_id: request,
                msg_rate_out: Some(figures.msg_rate_out),
                msg_throughput_out: Some(figures.msg_throughput_out),
                consumer_name: Some(figures.name),
                available_permits: Some(figures.permits.max(0) as u64),
                unacked_messages: Some(figures.unacked),
                blocked_consumer_on_unacked_msgs: Some(figures.blocked),
                address: Some(figures.address),
                connected_since: Some(figures.connected_since),
                r#type: Some(figures.kind),
                msg_backlog: Some(figures.backlog),
                ..Default::default()
            },
            Err(refused) => failed(server_error(&refused), refused.to_string()),
        };
        answer(&peer, response);
    });
    consumer.topic.put(Message::ConsumerStats(consumer.key, reply));
}
