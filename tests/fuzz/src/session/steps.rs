//! The steps of a script, read from the input.

use super::client::{Client, check_delivered, command, connect};
use crate::alloc;
use arbitrary::{Result, Unstructured};
use bytes::{Bytes, BytesMut};
use geminga_proto::encode::{encode_command, encode_with_payload};
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire, BaseCommand, KeyValue, MessageIdData, MessageMetadata};
use std::net::SocketAddr;

const TOPICS: [&str; 8] = [
    "persistent://public/default/a",
    "persistent://public/default/b",
    "a",
    "persistent://public/default/c-partition-1",
    "non-persistent://public/default/n",
    "persistent://public/missing/x",
    "public/default/x/y",
    "",
];
const SUBSCRIPTIONS: [&str; 4] = ["s", "t", "%2F", ""];
const STEPS_MAX: usize = 40;
/// What a stranger may make the broker allocate: its one frame of 64 KiB, as much again for what that decodes to, and answers.
const STRANGER_MAX: usize = 192 << 10;

/// A script under way.
pub(super) struct Script<'a> {
    u: Unstructured<'a>,
    address: SocketAddr,
    clients: Vec<Client>,
    now: usize,
    next_request: u64,
}

impl<'a> Script<'a> {
    pub(super) fn new(data: &'a [u8], address: SocketAddr) -> Self {
        Self { u: Unstructured::new(data), address, clients: Vec::new(), now: 0, next_request: 1 << 20 }
    }

    pub(super) async fn play(&mut self) {
        self.stranger().await;
        for _ in 0..STEPS_MAX {
            if self.u.is_empty() || self.step().await.is_err() {
                break;
            }
            self.client().read_what_is_there();
        }
    }

    /// Every connection is brought to rest, and what came is compared with what went.
    pub(super) async fn finish(mut self) {
        for client in &mut self.clients {
            client.settle_requests().await;
        }
        check_delivered(&self.clients);
    }

    fn client(&mut self) -> &mut Client {
        &mut self.clients[self.now]
    }

    /// Bytes of somebody who has not said CONNECT, with the memory they cost; then, mostly, a CONNECT.
    async fn stranger(&mut self) {
        let mut client = Client::open(self.address).await;
        client.settle().await;
        let bytes = self.stranger_bytes().unwrap_or_default();
        client.foresee(&bytes);
        let before = alloc::start_peak();
        client.write_foreseen(&bytes).await;
        client.settle().await;
        let took = alloc::peak() - before;
        assert!(took <= STRANGER_MAX, "{} bytes before CONNECT made the broker allocate {took}", bytes.len());
        if client.closed {
            client = Client::open(self.address).await;
        }
        client.send(&connect()).await;
        self.clients.push(client);
    }

    fn stranger_bytes(&mut self) -> Result<Vec<u8>> {
        let mut out = BytesMut::new();
        match self.u.int_in_range(0..=7)? {
            0 => out.extend_from_slice(self.u.bytes(self.u.len().min(64))?),
            1 => {
                let count = self.u.int_in_range(0..=40_000_usize)?;
                (0..count).for_each(|_| geminga_proto::encode::ping(&mut out));
            }
            2 => {
                // Many empty members, for a decoder that takes them in.
                let ack = wire::CommandAck {
                    message_id: vec![MessageIdData::default(); self.u.int_in_range(0..=16_000)?],
                    ..Default::default()
                };
                let kind = *self.u.choose(&[Type::Ack, Type::Connect, Type::Ping])?;
                let mut many = connect();
                many.r#type = kind as i32;
                many.ack = Some(Box::new(ack));
                encode_command(&many, &mut out);
            }
            3 => {
                let connect = wire::CommandConnect {
                    client_version: "v".repeat(self.u.int_in_range(0..=70_000)?),
                    ..Default::default()
                };
                // Without its last bytes: it is waited for.
                encode_command(&command(Type::Connect, |c| c.connect = Some(Box::new(connect))), &mut out);
                out.truncate(out.len() - usize::from(self.u.arbitrary::<u8>()?).min(out.len()));
            }
            4 => {
                let (total, size) = (self.u.arbitrary::<u32>()?, self.u.arbitrary::<u32>()?);
                out.extend_from_slice(&total.to_be_bytes());
                out.extend_from_slice(&size.to_be_bytes());
            }
            _ => {}
        }
        Ok(out.to_vec())
    }

    async fn step(&mut self) -> Result<()> {
        match self.u.int_in_range(0..=19)? {
            0..=6 => {
                let command = self.legal()?;
                self.client().send(&command).await;
            }
            7..=10 => {
                let bytes = self.message()?;
                self.client().write(&bytes).await;
            }
            11..=12 => {
                let command = self.ack()?;
                self.client().send(&command).await;
            }
            13 => self.client().settle_requests().await,
            14 => {
                let bytes = self.damaged()?;
                self.client().write(&bytes).await;
            }
            15 => {
                let bytes = self.any_command()?;
                self.client().write(&bytes).await;
            }
            16 => {
                let len = usize::from(self.u.arbitrary::<u8>()?);
                let bytes = self.u.bytes(len.min(self.u.len()))?.to_vec();
                self.client().write(&bytes).await;
            }
            17 => self.switch().await?,
            18 => self.reconnect().await,
            _ => {
                // Two in one write: what the first starts is not done when the second comes.
                let mut out = BytesMut::new();
                encode_command(&self.legal()?, &mut out);
                encode_command(&self.legal()?, &mut out);
                self.client().write(&out).await;
            }
        }
        if self.client().closed {
            self.reconnect().await;
        }
        Ok(())
    }

    async fn reconnect(&mut self) {
        let mut fresh = Client::open(self.address).await;
        fresh.send(&connect()).await;
        // What the old one was given is still to be looked at.
        fresh.payloads = std::mem::take(&mut self.client().payloads);
        fresh.delivered = std::mem::take(&mut self.client().delivered);
        fresh.sent.append(&mut self.client().sent);
        *self.client() = fresh;
    }

    async fn switch(&mut self) -> Result<()> {
        if self.clients.len() < 3 && self.u.arbitrary()? {
            let mut fresh = Client::open(self.address).await;
            fresh.send(&connect()).await;
            self.clients.push(fresh);
        }
        self.now = self.u.choose_index(self.clients.len())?;
        Ok(())
    }

    fn small(&mut self) -> Result<u64> {
        self.u.int_in_range(0..=2)
    }

    fn request(&mut self) -> u64 {
        self.next_request += 1;
        let id = self.next_request;
        self.client().asked.insert(id);
        id
    }

    fn topic(&mut self) -> Result<String> {
        Ok((*self.u.choose(&TOPICS)?).to_owned())
    }

    fn place(&mut self) -> Result<MessageIdData> {
        let delivered = &self.clients[self.now].delivered;
        if !delivered.is_empty() && self.u.ratio(3, 4)? {
            let mut id = delivered[self.u.choose_index(delivered.len())?].clone();
            if self.u.ratio(1, 3)? {
                id.batch_index = self.u.arbitrary()?;
                id.batch_size = self.u.arbitrary()?;
                id.ack_set = self.u.arbitrary()?;
            }
            return Ok(id);
        }
        let big = self.u.ratio(1, 4)?;
        Ok(MessageIdData {
            ledger_id: if big { self.u.arbitrary()? } else { self.u.int_in_range(0..=8)? },
            entry_id: if big { self.u.arbitrary()? } else { self.u.int_in_range(0..=4)? },
            partition: self.u.arbitrary()?,
            batch_index: self.u.arbitrary()?,
            ack_set: self.u.arbitrary()?,
            batch_size: self.u.arbitrary()?,
            first_chunk_message_id: None,
        })
    }

    /// A command that a client could send, with a request id that is watched.
    fn legal(&mut self) -> Result<BaseCommand> {
        let kinds = [
            Type::Producer,
            Type::Subscribe,
            Type::Subscribe,
            Type::Flow,
            Type::CloseProducer,
            Type::CloseConsumer,
            Type::Unsubscribe,
            Type::Seek,
            Type::GetLastMessageId,
            Type::ConsumerStats,
            Type::PartitionedMetadata,
            Type::Lookup,
            Type::GetTopicsOfNamespace,
            Type::GetSchema,
            Type::GetOrCreateSchema,
            Type::RedeliverUnacknowledgedMessages,
            Type::NewTxn,
            Type::WatchTopicList,
        ];
        let kind = *self.u.choose(&kinds)?;
        let mut c = command(kind, |_| ());
        match kind {
            Type::Producer => c.producer = Some(Box::new(self.producer()?)),
            Type::Subscribe => c.subscribe = Some(Box::new(self.subscribe()?)),
            _ => self.consumer_command(kind, &mut c)?,
        }
        Ok(c)
    }

    fn producer(&mut self) -> Result<wire::CommandProducer> {
        Ok(wire::CommandProducer {
            topic: self.topic()?,
            producer_id: self.small()?,
            producer_name: if self.u.arbitrary()? { Some("p".to_owned()) } else { None },
            encrypted: self.u.arbitrary()?,
            schema: if self.u.ratio(1, 4)? { Some(self.schema()?) } else { None },
            epoch: self.u.arbitrary()?,
            user_provided_producer_name: self.u.arbitrary()?,
            producer_access_mode: Some(self.u.int_in_range(0..=3)?),
            topic_epoch: self.u.arbitrary()?,
            initial_subscription_name: if self.u.ratio(1, 4)? { Some("i".into()) } else { None },
            request_id: self.request(),
            ..Default::default()
        })
    }

    fn subscribe(&mut self) -> Result<wire::CommandSubscribe> {
        let mut hash_ranges = Vec::new();
        for _ in 0..self.u.int_in_range(0..=3)? {
            hash_ranges.push(wire::IntRange { start: self.u.arbitrary()?, end: self.u.arbitrary()? });
        }
        let key_shared_meta = wire::KeySharedMeta {
            key_shared_mode: self.u.int_in_range(0..=1)?,
            hash_ranges,
            allow_out_of_order_delivery: self.u.arbitrary()?,
        };
        Ok(wire::CommandSubscribe {
            topic: self.topic()?,
            subscription: (*self.u.choose(&SUBSCRIPTIONS)?).to_owned(),
            sub_type: self.u.int_in_range(0..=3)?,
            consumer_id: self.small()?,
            consumer_name: if self.u.arbitrary()? { Some("n".into()) } else { None },
            priority_level: if self.u.ratio(1, 4)? { self.u.arbitrary()? } else { None },
            durable: Some(self.u.ratio(3, 4)?),
            start_message_id: if self.u.ratio(1, 4)? { Some(self.place()?) } else { None },
            schema: if self.u.ratio(1, 6)? { Some(self.schema()?) } else { None },
            initial_position: Some(self.u.int_in_range(0..=1)?),
            force_topic_creation: Some(self.u.ratio(3, 4)?),
            start_message_rollback_duration_sec: if self.u.ratio(1, 8)? { self.u.arbitrary()? } else { None },
            key_shared_meta: if self.u.ratio(1, 4)? { Some(key_shared_meta) } else { None },
            consumer_epoch: if self.u.ratio(1, 4)? { self.u.arbitrary()? } else { None },
            request_id: self.request(),
            ..Default::default()
        })
    }

    fn schema(&mut self) -> Result<wire::Schema> {
        Ok(wire::Schema {
            name: "n".into(),
            schema_data: Bytes::copy_from_slice(self.u.bytes(self.u.len().min(8))?),
            r#type: self.u.int_in_range(-4..=25)?,
            properties: vec![KeyValue { key: "kv.encoding.type".into(), value: "INLINE".into() }],
        })
    }

    fn consumer_command(&mut self, kind: Type, c: &mut BaseCommand) -> Result<()> {
        let id = self.small()?;
        match kind {
            Type::Flow => {
                let message_permits = if self.u.ratio(3, 4)? { 5 } else { self.u.arbitrary()? };
                c.flow = Some(Box::new(wire::CommandFlow { consumer_id: id, message_permits }));
            }
            Type::RedeliverUnacknowledgedMessages => {
                let message_ids = if self.u.arbitrary()? { vec![self.place()?] } else { Vec::new() };
                let consumer_epoch = if self.u.ratio(1, 4)? { self.u.arbitrary()? } else { None };
                c.redeliver_unacknowledged_messages =
                    Some(Box::new(wire::CommandRedeliverUnacknowledgedMessages {
                        consumer_id: id,
                        message_ids,
                        consumer_epoch,
                    }));
            }
            Type::Seek => {
                let place = self.place()?;
                let by_id = self.u.arbitrary()?;
                c.seek = Some(Box::new(wire::CommandSeek {
                    consumer_id: id,
                    request_id: self.request(),
                    message_id: if by_id { Some(place) } else { None },
                    message_publish_time: if by_id { None } else { self.u.arbitrary()? },
                }));
            }
            Type::Unsubscribe => {
                let force = self.u.arbitrary()?;
                c.unsubscribe = Some(Box::new(wire::CommandUnsubscribe {
                    consumer_id: id,
                    request_id: self.request(),
                    force,
                }));
            }
            _ => self.question(kind, id, c)?,
        }
        Ok(())
    }

    fn question(&mut self, kind: Type, id: u64, c: &mut BaseCommand) -> Result<()> {
        let topic = self.topic()?;
        let schema = self.schema()?;
        let request_id = self.request();
        match kind {
            Type::CloseProducer => {
                let (producer_id, body) = (id, wire::CommandCloseProducer::default());
                c.close_producer =
                    Some(Box::new(wire::CommandCloseProducer { producer_id, request_id, ..body }));
            }
            Type::CloseConsumer => {
                let (consumer_id, body) = (id, wire::CommandCloseConsumer::default());
                c.close_consumer =
                    Some(Box::new(wire::CommandCloseConsumer { consumer_id, request_id, ..body }));
            }
            Type::GetLastMessageId => {
                c.get_last_message_id =
                    Some(Box::new(wire::CommandGetLastMessageId { consumer_id: id, request_id }));
            }
            Type::ConsumerStats => {
                c.consumer_stats = Some(Box::new(wire::CommandConsumerStats { consumer_id: id, request_id }));
            }
            Type::PartitionedMetadata => {
                let body = wire::CommandPartitionedTopicMetadata { topic, request_id, ..Default::default() };
                c.partition_metadata = Some(Box::new(body));
            }
            Type::Lookup => {
                let body = wire::CommandLookupTopic { topic, request_id, ..Default::default() };
                c.lookup_topic = Some(Box::new(body));
            }
            Type::GetTopicsOfNamespace => {
                let namespace = if id == 0 { "public/default".to_owned() } else { topic };
                let topics_pattern =
                    if id == 2 { Some(String::from_utf8_lossy(&schema.schema_data).into()) } else { None };
                let body = wire::CommandGetTopicsOfNamespace {
                    namespace,
                    request_id,
                    topics_pattern,
                    ..Default::default()
                };
                c.get_topics_of_namespace = Some(Box::new(body));
            }
            Type::GetSchema => {
                let schema_version = if id == 0 { None } else { Some(schema.schema_data) };
                c.get_schema = Some(Box::new(wire::CommandGetSchema { request_id, topic, schema_version }));
            }
            Type::GetOrCreateSchema => {
                c.get_or_create_schema = Some(Box::new(wire::CommandGetOrCreateSchema {
                    request_id,
                    topic,
                    schema,
                    producer_name: None,
                }));
            }
            Type::NewTxn => {
                c.new_txn = Some(Box::new(wire::CommandNewTxn { request_id, ..Default::default() }));
            }
            _ => {
                let body = wire::CommandWatchTopicList { request_id, ..Default::default() };
                c.watch_topic_list = Some(Box::new(body));
            }
        }
        Ok(())
    }

    fn ack(&mut self) -> Result<BaseCommand> {
        let mut message_id = Vec::new();
        for _ in 0..self.u.int_in_range(0..=3)? {
            message_id.push(self.place()?);
        }
        let receipt = self.u.arbitrary()?;
        let ack = wire::CommandAck {
            consumer_id: self.small()?,
            ack_type: self.u.int_in_range(0..=1)?,
            message_id,
            request_id: if receipt { Some(self.request()) } else { None },
            txnid_least_bits: if self.u.ratio(1, 8)? { Some(1) } else { None },
            ..Default::default()
        };
        Ok(command(Type::Ack, |c| c.ack = Some(Box::new(ack))))
    }

    /// A SEND, mostly well-formed.
    fn message(&mut self) -> Result<Vec<u8>> {
        let batch = if self.u.ratio(1, 3)? { Some(self.u.int_in_range(-1..=9)?) } else { None };
        let chunk = self.u.ratio(1, 6)?;
        let send = wire::CommandSend {
            producer_id: self.small()?,
            sequence_id: self.u.int_in_range(0..=20)?,
            num_messages: if self.u.ratio(1, 8)? { self.u.arbitrary()? } else { batch },
            is_chunk: if chunk { Some(true) } else { None },
            highest_sequence_id: if self.u.ratio(1, 8)? { self.u.arbitrary()? } else { None },
            ..Default::default()
        };
        let metadata = MessageMetadata {
            producer_name: "p".into(),
            sequence_id: send.sequence_id,
            publish_time: self.u.int_in_range(0..=3)?,
            partition_key: if self.u.arbitrary()? { Some("k".into()) } else { None },
            num_messages_in_batch: batch,
            deliver_at_time: if self.u.ratio(1, 6)? { self.u.arbitrary()? } else { None },
            uuid: if chunk { Some("u".into()) } else { None },
            num_chunks_from_msg: if chunk { self.u.arbitrary()? } else { None },
            chunk_id: if chunk { self.u.arbitrary()? } else { None },
            marker_type: if self.u.ratio(1, 10)? { self.u.arbitrary()? } else { None },
            compression: if self.u.ratio(1, 8)? { self.u.arbitrary()? } else { None },
            ..Default::default()
        };
        let len = if self.u.ratio(1, 8)? { 9000 } else { usize::from(self.u.arbitrary::<u8>()? % 16) };
        let payload = vec![self.u.arbitrary::<u8>()?; len];
        let mut out = BytesMut::new();
        let command = command(Type::Send, |c| c.send = Some(Box::new(send)));
        encode_with_payload(&command, &metadata, &payload, &mut out);
        if self.u.ratio(1, 12)? {
            let at = self.u.choose_index(out.len())?;
            out[at] ^= self.u.int_in_range(1..=255)?;
        }
        Ok(out.to_vec())
    }

    /// A legal frame with changed bytes.
    fn damaged(&mut self) -> Result<Vec<u8>> {
        let mut out = BytesMut::new();
        let asked = self.client().asked.clone();
        encode_command(&self.legal()?, &mut out);
        // Nobody can say whether it is still a request.
        self.client().asked = asked;
        for _ in 0..self.u.int_in_range(1..=3)? {
            let at = self.u.choose_index(out.len())?;
            out[at] = self.u.arbitrary()?;
        }
        Ok(out.to_vec())
    }

    /// A frame whose command has any type, and any body for it.
    fn any_command(&mut self) -> Result<Vec<u8>> {
        let kind = self.u.int_in_range(0..=90_u64)?;
        let len = usize::from(self.u.arbitrary::<u8>()? % 40).min(self.u.len());
        let body = self.u.bytes(len)?.to_vec();
        let mut command = vec![0x08, kind as u8];
        let key = kind << 3 | 2;
        command.extend([key as u8 | 0x80, (key >> 7) as u8, body.len() as u8]);
        command.extend(&body);
        let mut out = (command.len() as u32 + 4).to_be_bytes().to_vec();
        out.extend((command.len() as u32).to_be_bytes());
        out.extend(command);
        Ok(out)
    }
}
