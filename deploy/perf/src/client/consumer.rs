//! One consumer: permits, arrival times, acknowledgements.
//!
//! Owner: the connection's reader calls [`Consumer::message`]; a timer calls [`Consumer::send_acks`]. Acks travel in groups:
//! cumulative where the subscription type allows, else as lists of ids.

use super::connection::{Connection, MessageSink, Pool};
use super::lookup;
use crate::args::{InitialPosition, SubscriptionType};
use crate::report::Recorder;
use crate::stamp::{self, WallClock};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use geminga_proto::batch::BatchIter;
use geminga_proto::encode::encode_command;
use geminga_proto::payload::{MessageParts, parse_payload};
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{
    BaseCommand, CommandAck, CommandCloseConsumer, CommandFlow, CommandMessage, CommandSubscribe,
    CompressionType, MessageIdData, MessageMetadata, command_ack::AckType, command_subscribe,
};
use prost::Message as _;
use std::sync::{Arc, Mutex};

/// Entries whose acks wait for company at most.
const ACK_GROUP: usize = 1000;

/// What to subscribe to, and how.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    /// Name of the subscription.
    pub(crate) name: String,
    /// Its type.
    pub(crate) kind: SubscriptionType,
    /// Where it starts when it is new.
    pub(crate) initial: InitialPosition,
    /// Messages the broker may send ahead.
    pub(crate) receiver_queue: u32,
}

#[derive(Debug, Default)]
struct State {
    /// Messages received since permits were last granted.
    used: u32,
    acks: Vec<MessageIdData>,
}

/// A consumer.
pub(crate) struct Consumer {
    id: u64,
    connection: Arc<Connection>,
    cumulative: bool,
    receiver_queue: u32,
    state: Mutex<State>,
    clock: WallClock,
    recorder: Arc<Recorder>,
}

impl Consumer {
    /// Subscribes and grants the first permits.
    pub(crate) async fn open(
        pool: &mut Pool,
        topic: &str,
        subscription: &Subscription,
        recorder: Arc<Recorder>,
        clock: WallClock,
    ) -> Result<Arc<Self>> {
        let connection = lookup::connect(pool, topic).await?;
        let id = connection.next_id();
        let request_id = connection.next_id();
        let cumulative =
            matches!(subscription.kind, SubscriptionType::Exclusive | SubscriptionType::Failover);
        let consumer = Arc::new(Self {
            id,
            connection: connection.clone(),
            cumulative,
            receiver_queue: subscription.receiver_queue,
            state: Mutex::default(),
            clock,
            recorder,
        });
        connection.add_consumer(id, consumer.clone());
        let subscribe = CommandSubscribe {
            topic: topic.to_owned(),
            subscription: subscription.name.clone(),
            sub_type: sub_type(subscription.kind) as i32,
            consumer_id: id,
            request_id,
            initial_position: Some(initial_position(subscription.initial) as i32),
            ..Default::default()
        };
        let command = BaseCommand {
            r#type: Type::Subscribe as i32,
            subscribe: Some(Box::new(subscribe)),
            ..Default::default()
        };
        connection.request(request_id, &command).await.with_context(|| topic.to_owned())?;
        consumer.grant(&connection, subscription.receiver_queue);
        Ok(consumer)
    }

    fn grant(&self, connection: &Connection, permits: u32) {
        let flow = CommandFlow { consumer_id: self.id, message_permits: permits };
        let command =
            BaseCommand { r#type: Type::Flow as i32, flow: Some(Box::new(flow)), ..Default::default() };
        connection.write(|out| encode_command(&command, out));
        connection.flush();
    }

    /// Sends the acks gathered so far.
    pub(crate) fn send_acks(&self) {
        let mut acks = std::mem::take(&mut self.state.lock().expect("no holder of this lock panics").acks);
        if acks.is_empty() {
            return;
        }
        let mut ack_type = AckType::Individual;
        if self.cumulative {
            ack_type = AckType::Cumulative;
            acks.drain(..acks.len() - 1);
        }
        let ack = CommandAck {
            consumer_id: self.id,
            ack_type: ack_type as i32,
            message_id: acks,
            ..Default::default()
        };
        let command =
            BaseCommand { r#type: Type::Ack as i32, ack: Some(Box::new(ack)), ..Default::default() };
        self.connection.write(|out| encode_command(&command, out));
        self.connection.flush();
    }

    /// Says good-bye to the broker, after the last acks.
    pub(crate) async fn close(&self) -> Result<()> {
        self.send_acks();
        let request_id = self.connection.next_id();
        let close = CommandCloseConsumer { consumer_id: self.id, request_id, ..Default::default() };
        let command = BaseCommand {
            r#type: Type::CloseConsumer as i32,
            close_consumer: Some(Box::new(close)),
            ..Default::default()
        };
        self.connection.request(request_id, &command).await.map(|_| ())
    }

    /// Notes an entry's arrival; answers how many messages it held.
    fn record(&self, parts: &MessageParts) -> Result<u32> {
        let metadata = MessageMetadata::decode(parts.metadata_bytes())?;
        let now = self.clock.mono();
        let now_us = self.clock.wall_us(now);
        let published_us = metadata.publish_time * 1000;
        let payload = parts.payload_bytes();
        let count = u32::try_from(metadata.num_messages_in_batch()).unwrap_or(0);
        let plain = metadata.compression() == CompressionType::None && metadata.encryption_keys.is_empty();
        if metadata.num_messages_in_batch.is_none() || !plain {
            let sent_us = stamp::read(&payload).unwrap_or(published_us);
            let latencies = (0..count).map(|_| now_us.saturating_sub(sent_us));
            self.recorder.entry(latencies, payload.len() as u64, now);
            return Ok(count);
        }
        let mut latencies = Vec::with_capacity(count.min(ACK_GROUP as u32) as usize);
        let mut bytes = 0;
        for member in BatchIter::new(payload, metadata.num_messages_in_batch()) {
            let member = member?;
            let sent_us = stamp::read(&member.payload).unwrap_or(published_us);
            latencies.push(now_us.saturating_sub(sent_us));
            bytes += member.payload.len() as u64;
        }
        self.recorder.entry(latencies.into_iter(), bytes, now);
        Ok(count)
    }
}

impl MessageSink for Consumer {
    fn message(&self, connection: &Connection, message: &CommandMessage, rest: Bytes) -> Result<()> {
        let parts = parse_payload(rest)?;
        parts.verify_checksum()?;
        let count = self.record(&parts)?;
        let (group_full, permits) = {
            let mut state = self.state.lock().expect("no holder of this lock panics");
            let id = &message.message_id;
            let id =
                MessageIdData { ledger_id: id.ledger_id, entry_id: id.entry_id, ..MessageIdData::default() };
            state.acks.push(id);
            state.used += count;
            let enough = state.used >= self.receiver_queue.div_ceil(2);
            (state.acks.len() >= ACK_GROUP, if enough { std::mem::take(&mut state.used) } else { 0 })
        };
        if permits > 0 {
            self.grant(connection, permits);
        }
        if group_full {
            self.send_acks();
        }
        Ok(())
    }
}

fn sub_type(kind: SubscriptionType) -> command_subscribe::SubType {
    match kind {
        SubscriptionType::Exclusive => command_subscribe::SubType::Exclusive,
        SubscriptionType::Failover => command_subscribe::SubType::Failover,
        SubscriptionType::Shared => command_subscribe::SubType::Shared,
        SubscriptionType::KeyShared => command_subscribe::SubType::KeyShared,
    }
}

fn initial_position(position: InitialPosition) -> command_subscribe::InitialPosition {
    match position {
        InitialPosition::Latest => command_subscribe::InitialPosition::Latest,
        InitialPosition::Earliest => command_subscribe::InitialPosition::Earliest,
    }
}
