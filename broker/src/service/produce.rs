//! PRODUCER, SEND, CLOSE_PRODUCER.
//!
//! SEND is the hot path: decoded by hand, checksum verified, queued in the burst as a slice of the read buffer. Nothing here
//! waits for storage; the receipt is the topic's to send.

use super::connection::{Connection, End};
use super::respond;
use super::wire_error::server_error;
use crate::broker::Broker;
use crate::topic::messages::{AccessMode, AddProducer, Admission, Admitted, Message, Publish, Send};
use crate::topic::peer::{Peer, ProducerSlot};
use crate::topic::{ProducerRef, TopicError, TopicHandle};
use bytes::Bytes;
use geminga_bookie_client::entry::Payload;
use geminga_common::checksum::Crc32c;
use geminga_common::ids::{ProducerId, RequestId};
use geminga_common::names::{SubscriptionName, TopicName};
use geminga_common::tasks::OnFailure;
use geminga_proto::decode::{self, decode_send};
use geminga_proto::frame::Frame;
use geminga_proto::metadata_view::MetadataView;
use geminga_proto::payload::{MessageParts, parse_payload};
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire, ServerError};
use std::sync::Arc;
use std::time::Duration;

/// What one queued send costs the publish budget beyond its payload, in bytes.
const SEND_OVERHEAD: usize = 256;
/// Bytes of the mark and the checksum that come before what the checksum covers.
const CHECKSUM_BLOCK: usize = 6;
/// How long sends of a producer that the broker closed are dropped before they count as a violation.
const CLOSED_GRACE: Duration = Duration::from_secs(30);

/// Sends of one burst, by producer.
#[derive(Default)]
pub(super) struct Burst {
    groups: Vec<Group>,
}

struct Group {
    id: ProducerId,
    producer: ProducerRef,
    sends: Vec<Send>,
    bytes: usize,
}

impl Connection {
    /// Takes one SEND into the burst.
    pub(super) fn send(&mut self, frame: Frame) -> Result<(), End> {
        let send = decode_send(&frame.command).map_err(|_| End::Violation("malformed SEND"))?;
        let id = ProducerId(send.producer_id);
        let (members_max, payload) = match check(&send, &frame.rest) {
            Ok(good) => good,
            Err(refused) => {
                // The producer must exist all the same: an unknown one is a violation, whatever it sends.
                self.route(id)?;
                respond::send_error(&self.peer, id, send.sequence_id, refused.0, refused.1);
                return Ok(());
            }
        };
        let bytes = frame.rest.len() + SEND_OVERHEAD;
        let send = Send {
            sequence_id: send.sequence_id,
            highest_sequence_id: send.highest_sequence_id,
            // Permits, limits on what is unacknowledged and message indexes are counted by it. A number that the bytes cannot hold would
            // take them from everybody who shares the subscription.
            messages: u32::try_from(send.num_messages).unwrap_or(1).clamp(1, members_max),
            payload,
            chunk: send.is_chunk,
        };
        if let Some(group) = self.burst.groups.iter_mut().find(|group| group.id == id) {
            group.sends.push(send);
            group.bytes += bytes;
        } else if let Some(producer) = self.route(id)? {
            self.burst.groups.push(Group { id, producer, sends: vec![send], bytes });
        }
        Ok(())
    }

    /// Where a producer of this connection publishes; `None` while its sends are to be dropped.
    fn route(&self, id: ProducerId) -> Result<Option<ProducerRef>, End> {
        match self.peer.slots().producers.get(&id) {
            Some(ProducerSlot::Ready(producer)) => Ok(Some(producer.clone())),
            Some(ProducerSlot::ClosedByBroker(at)) if self.broker.clock.mono() < *at + CLOSED_GRACE => {
                Ok(None)
            }
            _ => Err(End::Violation("SEND on a producer that is not ready")),
        }
    }

    /// Hands the burst to the topics. Waits only for the broker's publish budget: that is the back-pressure.
    pub(super) async fn hand_on(&mut self) {
        for group in self.burst.groups.drain(..) {
            let permit = self.broker.publish_budget.take(group.bytes as u64).await;
            let publish = Publish { producer: group.producer.key, sends: group.sends, permit };
            group.producer.topic.put(Message::Publish(publish));
        }
    }
}

/// What can be refused before the topic sees it; answers how many messages the entry may hold, and the entry.
fn check(send: &decode::Send, rest: &Bytes) -> Result<(u32, Payload), (ServerError, &'static str)> {
    let parts = parse_payload(rest.clone())
        .map_err(|_| (ServerError::MetadataError, "the message's frame cannot be read; it was not stored"))?;
    if parts.verify_checksum().is_err() {
        return Err((ServerError::ChecksumError, "the message fails its checksum; it was not stored"));
    }
    if parts.broker_entry().is_some() {
        return Err((ServerError::NotAllowedError, "broker entry metadata is the broker's to set"));
    }
    let view = MetadataView::parse(parts.metadata()).map_err(|_| {
        (ServerError::MetadataError, "the message's metadata cannot be read; it was not stored")
    })?;
    if send.txnid_least_bits.unwrap_or(0) != 0 || send.txnid_most_bits.unwrap_or(0) != 0 {
        return Err((ServerError::NotAllowedError, "transactions are not enabled on this broker"));
    }
    if send.has_message_id {
        return Err((
            ServerError::NotAllowedError,
            "only a shadow topic takes messages with an id of their own",
        ));
    }
    Ok((view.members_max(parts.payload().len()), summed(&parts)))
}

/// The entry, with its checksum where the producer's, which holds, covers all but the mark and itself.
fn summed(parts: &MessageParts) -> Payload {
    let entry = parts.entry();
    match (parts.checksum(), entry.split_at_checked(CHECKSUM_BLOCK)) {
        (Some(checksum), Some((block, rest))) => {
            let crc = || Crc32c::new().update(block).append(checksum, rest.len() as u32).value();
            Payload::summed(entry.clone(), crc)
        }
        _ => entry.clone().into(),
    }
}

/// PRODUCER.
pub(super) fn producer(c: &mut Connection, command: wire::CommandProducer) {
    let (id, request) = (ProducerId(command.producer_id), RequestId(command.request_id));
    {
        let mut slots = c.peer.slots();
        match slots.producers.get(&id) {
            Some(ProducerSlot::Pending(_) | ProducerSlot::Waiting(_)) => {
                drop(slots);
                let text = "a producer with this id is still being created on this connection";
                return respond::error(&c.peer, request, ServerError::ServiceNotReady, text);
            }
            Some(ProducerSlot::Ready(producer)) => {
                let admitted = Admitted {
                    key: producer.key,
                    name: producer.name.to_string(),
                    topic_epoch: None,
                    ready: true,
                };
                let schema_version = producer.schema_version.clone();
                drop(slots);
                return producer_success(&c.peer, request, &admitted, schema_version);
            }
            Some(ProducerSlot::ClosedByBroker(_)) | None => {
                slots.producers.insert(id, ProducerSlot::Pending(request));
            }
        }
    }
    let (broker, peer) = (c.broker.clone(), c.peer.clone());
    c.broker.tasks.spawn(format!("producer {id} of {}", peer.address), OnFailure::Log, async move {
        if let Err(refused) = create(&broker, &peer, command).await {
            let mut slots = peer.slots();
            if !matches!(slots.producers.get(&id), Some(ProducerSlot::Pending(r)) if *r == request) {
                return; // its client closed it while it was being created, and was answered then
            }
            slots.producers.remove(&id);
            respond::error(&peer, request, server_error(&refused), refused.to_string());
        }
    });
}

async fn create(
    broker: &Arc<Broker>,
    peer: &Arc<Peer>,
    command: wire::CommandProducer,
) -> Result<(), TopicError> {
    let (id, request) = (ProducerId(command.producer_id), RequestId(command.request_id));
    let name =
        TopicName::parse(&command.topic).map_err(|error| TopicError::InvalidName(error.to_string()))?;
    // Before the topic is opened: opening it again and again is what is to be spared.
    if let Some(left) = broker.setbacks.lock().left(&name, broker.clock.mono()) {
        return Err(TopicError::DiskFull(left));
    }
    let topic = broker.topic(&name, true).await?;
    let schema_version = match &command.schema {
        Some(schema) => super::schemas::add(broker, &name, schema).await?,
        None => super::schemas::check_schemaless(broker, &name).await.map(|()| Bytes::new())?,
    };
    let patience = broker.config.liveness_timeout();
    let mut probed = false;
    let admitted = loop {
        let add = Box::new(spec(peer, &topic, &command, &schema_version)?);
        match topic.ask(|reply| Message::AddProducer(add, reply)).await? {
            Admission::Admitted(admitted) => break admitted,
            Admission::HeldBy(holder, name) => {
                if probed || holder.id == peer.id || holder.probe(patience).await {
                    return Err(TopicError::ProducerBusy(name));
                }
                probed = true;
            }
        }
    };
    register(peer, id, request, &topic, &admitted, schema_version);
    Ok(())
}

/// Puts an admitted producer into its slot and tells the client, unless it has left meanwhile.
fn register(
    peer: &Arc<Peer>,
    id: ProducerId,
    request: RequestId,
    topic: &TopicHandle,
    admitted: &Admitted,
    schema_version: Bytes,
) {
    let mut slots = peer.slots();
    let expected = match slots.producers.get(&id) {
        Some(ProducerSlot::Pending(pending)) => *pending == request,
        Some(ProducerSlot::Waiting(waiting)) => waiting.key == admitted.key,
        _ => false,
    };
    if !expected || slots.ended {
        drop(slots);
        topic.put(Message::RemoveProducer(admitted.key, None));
        return;
    }
    let producer = ProducerRef {
        topic: topic.clone(),
        key: admitted.key,
        name: admitted.name.as_str().into(),
        schema_version: schema_version.clone(),
    };
    let slot = if admitted.ready { ProducerSlot::Ready(producer) } else { ProducerSlot::Waiting(producer) };
    slots.producers.insert(id, slot);
    producer_success(peer, request, admitted, schema_version);
}

fn producer_success(peer: &Peer, request: RequestId, admitted: &Admitted, schema_version: Bytes) {
    respond::command(peer, Type::ProducerSuccess, |c| {
        c.producer_success = Some(Box::new(wire::CommandProducerSuccess {
            request_id: request.0,
            producer_name: admitted.name.clone(),
            last_sequence_id: Some(-1),
            schema_version: Some(schema_version),
            topic_epoch: admitted.topic_epoch,
            producer_ready: Some(admitted.ready),
        }));
    });
}

fn spec(
    peer: &Arc<Peer>,
    topic: &TopicHandle,
    command: &wire::CommandProducer,
    schema_version: &Bytes,
) -> Result<AddProducer, TopicError> {
    let (id, request) = (ProducerId(command.producer_id), RequestId(command.request_id));
    let initial_subscription = command
        .initial_subscription_name
        .as_deref()
        .filter(|name| !name.is_empty())
        .map(SubscriptionName::parse)
        .transpose()
        .map_err(|error| TopicError::NotAllowed(error.to_string()))?;
    let turn = {
        let (peer, topic, schema_version) = (peer.clone(), topic.clone(), schema_version.clone());
        Arc::new(move |admitted: Admitted| {
            register(&peer, id, request, &topic, &admitted, schema_version.clone());
        })
    };
    Ok(AddProducer {
        peer: peer.clone(),
        id,
        request,
        name: command.producer_name.clone().unwrap_or_default(),
        epoch: command.epoch(),
        mode: match command.producer_access_mode() {
            wire::ProducerAccessMode::Shared => AccessMode::Shared,
            wire::ProducerAccessMode::Exclusive => AccessMode::Exclusive,
            wire::ProducerAccessMode::WaitForExclusive => AccessMode::WaitForExclusive,
            wire::ProducerAccessMode::ExclusiveWithFencing => AccessMode::ExclusiveWithFencing,
        },
        topic_epoch: command.topic_epoch,
        metadata: command.metadata.iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect(),
        initial_subscription,
        encrypted: command.encrypted(),
        turn,
    })
}

/// CLOSE_PRODUCER: answered once the producer's last send is decided; an unknown one is closed already.
pub(super) fn close(c: &mut Connection, command: &wire::CommandCloseProducer) {
    let (id, request) = (ProducerId(command.producer_id), RequestId(command.request_id));
    let slot = c.peer.slots().producers.remove(&id);
    match slot {
        Some(ProducerSlot::Ready(producer) | ProducerSlot::Waiting(producer)) => {
            let peer = c.peer.clone();
            let reply = crate::topic::Reply::new(move |_gone_either_way| respond::success(&peer, request));
            producer.topic.put(Message::RemoveProducer(producer.key, Some(reply)));
        }
        Some(ProducerSlot::Pending(pending)) => {
            let text = "the producer was closed before it was created";
            respond::error(&c.peer, pending, ServerError::ServiceNotReady, text);
            respond::success(&c.peer, request);
        }
        Some(ProducerSlot::ClosedByBroker(_)) | None => respond::success(&c.peer, request),
    }
}
