//! One connection as a client sees it: it writes what it is told to, reads all there is, and keeps account of both.

use bytes::{Bytes, BytesMut};
use geminga_proto::decode::peek_type;
use geminga_proto::encode::{encode_command, encode_with_payload};
use geminga_proto::frame::{FrameLimits, next_frame};
use geminga_proto::payload::parse_payload;
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire, BaseCommand, MessageIdData, MessageMetadata};
use prost::Message as _;
use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Longest an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection.
pub(super) struct Client {
    socket: TcpStream,
    buffer: BytesMut,
    /// The broker closed it, or we did.
    pub(super) closed: bool,
    /// Requests that wait for their answer.
    pub(super) asked: BTreeSet<u64>,
    /// Places of delivered messages.
    pub(super) delivered: Vec<MessageIdData>,
    /// What was delivered, for the last check.
    pub(super) payloads: Vec<Bytes>,
    /// What was written behind a command: the only things that may be delivered.
    pub(super) sent: Vec<Bytes>,
    answers: Vec<BaseCommand>,
    pongs: usize,
    /// What was written and is no whole frame yet.
    unfinished: BytesMut,
    greeted: bool,
    /// What was written can never become a frame: the broker must close.
    broken: bool,
}

/// Largest frame before CONNECT and after it, as the broker is set up.
const FRAME_MAX: [usize; 2] = [64 << 10, (64 << 10) + (10 << 10)];

/// A command of one type.
pub(super) fn command(r#type: Type, fill: impl FnOnce(&mut BaseCommand)) -> BaseCommand {
    let mut command = BaseCommand { r#type: r#type as i32, ..BaseCommand::default() };
    fill(&mut command);
    command
}

/// A legal CONNECT.
pub(super) fn connect() -> BaseCommand {
    command(Type::Connect, |c| {
        c.connect = Some(Box::new(wire::CommandConnect {
            client_version: "fuzz".into(),
            protocol_version: Some(21),
            ..Default::default()
        }));
    })
}

impl Client {
    pub(super) async fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.expect("the broker accepts");
        socket.set_nodelay(true).expect("a TCP socket");
        Self {
            socket,
            buffer: BytesMut::with_capacity(256 << 10),
            closed: false,
            asked: BTreeSet::new(),
            delivered: Vec::new(),
            payloads: Vec::new(),
            sent: Vec::new(),
            answers: Vec::new(),
            pongs: 0,
            unfinished: BytesMut::new(),
            greeted: false,
            broken: false,
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.foresee(bytes);
        self.write_foreseen(bytes).await;
    }

    /// Cuts what will be written into frames, as the broker will.
    pub(super) fn foresee(&mut self, bytes: &[u8]) {
        if self.broken || !self.unfinished.is_empty() {
            // It becomes part of something else: who could say which requests are asked?
            self.asked.clear();
        }
        self.unfinished.extend_from_slice(bytes);
        while !self.broken {
            let limits = FrameLimits { max_frame: FRAME_MAX[usize::from(self.greeted)] };
            match next_frame(&mut self.unfinished, limits) {
                Ok(Some(frame)) => {
                    self.greeted |= peek_type(&frame.command) == Some(Type::Connect as i32);
                    if !frame.rest.is_empty() {
                        self.sent.push(frame.rest);
                    }
                }
                Ok(None) => break,
                Err(_) => self.broken = true,
            }
        }
    }

    /// Writes, reading meanwhile: a broker that waits for its reader must not make this wait for ever.
    pub(super) async fn write_foreseen(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.closed {
            let wrote = tokio::time::timeout(Duration::from_millis(20), self.socket.write(bytes)).await;
            match wrote {
                Ok(Ok(n)) => bytes = &bytes[n..],
                Ok(Err(_)) => self.closed = true,
                Err(_) => {}
            }
            self.read_what_is_there();
        }
    }

    pub(super) async fn send(&mut self, command: &BaseCommand) {
        let mut out = BytesMut::new();
        encode_command(command, &mut out);
        self.write(&out).await;
    }

    /// Takes in everything that has arrived, piece by piece: what piles up here would be counted as the broker's.
    pub(super) fn read_what_is_there(&mut self) {
        loop {
            self.buffer.reserve(4096);
            match self.socket.try_read_buf(&mut self.buffer) {
                Ok(n) if n > 0 => self.frames(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => {
                    self.closed = true;
                    break;
                }
            }
        }
    }

    fn frames(&mut self) {
        let limits = FrameLimits::default();
        while let Some(frame) = next_frame(&mut self.buffer, limits).expect("the broker sends frames") {
            let command = BaseCommand::decode(frame.command).expect("the broker sends commands");
            self.take(command, frame.rest);
        }
    }

    fn take(&mut self, command: BaseCommand, rest: Bytes) {
        let kind = Type::try_from(command.r#type).expect("the broker sends known commands");
        match kind {
            Type::Message => {
                let message = command.message.as_ref().expect("a MESSAGE has its body");
                let parts = parse_payload(rest).expect("a delivered message parses");
                self.payloads.push(parts.without_broker_entry());
                self.delivered.push(message.message_id.clone());
            }
            Type::Pong => self.pongs += 1,
            _ => {
                assert!(rest.is_empty(), "{kind:?} with bytes behind it");
                if let Some(id) = request_of(&command) {
                    self.asked.remove(&id);
                }
                self.answers.push(command);
            }
        }
    }

    /// Waits for something to arrive, or the connection's end.
    async fn wait(&mut self) {
        let readable = tokio::time::timeout(PATIENCE, self.socket.readable()).await;
        assert!(readable.is_ok(), "nothing came; waiting for requests {:?}", self.asked);
        self.read_what_is_there();
    }

    /// A PING and its PONG: everything sent before has been read by the broker. After bytes that cannot be a frame it must have
    /// closed the connection; in the middle of a frame it can only wait.
    pub(super) async fn settle(&mut self) {
        while self.broken && !self.closed {
            self.wait().await;
        }
        if !self.unfinished.is_empty() {
            self.closed = true;
            return;
        }
        let before = self.pongs;
        self.send(&command(Type::Ping, |c| c.ping = Some(Box::default()))).await;
        while !self.closed && self.pongs == before {
            self.wait().await;
        }
    }

    /// Every request is answered while the connection stays open.
    pub(super) async fn settle_requests(&mut self) {
        self.settle().await;
        while !self.closed && !self.asked.is_empty() {
            self.wait().await;
        }
    }

    async fn answer(&mut self, kind: Type) -> BaseCommand {
        loop {
            if let Some(at) = self.answers.iter().position(|c| c.r#type == kind as i32) {
                return self.answers.swap_remove(at);
            }
            assert!(!self.closed, "closed while waiting for {kind:?}, after {:?}", self.answers);
            self.wait().await;
        }
    }

    /// A well-behaved client still gets what it came for: a message published is a message consumed.
    pub(super) async fn check_service(address: SocketAddr) {
        let mut client = Self::open(address).await;
        client.send(&connect()).await;
        client.answer(Type::Connected).await;
        let topic = "persistent://public/default/the-service-check".to_owned();
        client
            .send(&command(Type::Subscribe, |c| {
                c.subscribe = Some(Box::new(wire::CommandSubscribe {
                    topic: topic.clone(),
                    subscription: "s".into(),
                    request_id: 1,
                    ..Default::default()
                }));
            }))
            .await;
        client.answer(Type::Success).await;
        client
            .send(&command(Type::Producer, |c| {
                c.producer =
                    Some(Box::new(wire::CommandProducer { topic, request_id: 2, ..Default::default() }));
            }))
            .await;
        client.answer(Type::ProducerSuccess).await;
        client
            .send(&command(Type::Flow, |c| {
                c.flow = Some(Box::new(wire::CommandFlow { consumer_id: 0, message_permits: 10 }));
            }))
            .await;
        let send = command(Type::Send, |c| c.send = Some(Box::default()));
        let metadata =
            MessageMetadata { producer_name: "p".into(), publish_time: 1, ..MessageMetadata::default() };
        let mut out = BytesMut::new();
        encode_with_payload(&send, &metadata, b"still here", &mut out);
        client.write(&out).await;
        client.answer(Type::SendReceipt).await;
        while client.payloads.is_empty() && !client.closed {
            client.wait().await;
        }
        let parts = parse_payload(client.payloads[0].clone()).expect("it parses");
        assert_eq!(parts.payload(), b"still here");
    }
}

/// The request that a response answers.
fn request_of(c: &BaseCommand) -> Option<u64> {
    let ids = [
        c.success.as_ref().map(|m| m.request_id),
        c.error.as_ref().map(|m| m.request_id),
        c.producer_success.as_ref().map(|m| m.request_id),
        c.lookup_topic_response.as_ref().map(|m| m.request_id),
        c.partition_metadata_response.as_ref().map(|m| m.request_id),
        c.consumer_stats_response.as_ref().map(|m| m.request_id),
        c.get_last_message_id_response.as_ref().map(|m| m.request_id),
        c.get_topics_of_namespace_response.as_ref().map(|m| m.request_id),
        c.get_schema_response.as_ref().map(|m| m.request_id),
        c.get_or_create_schema_response.as_ref().map(|m| m.request_id),
        c.ack_response.as_ref().and_then(|m| m.request_id),
    ];
    ids.into_iter().flatten().next()
}

/// What was delivered must be among what was sent.
pub(super) fn check_delivered(clients: &[Client]) {
    let sent: HashSet<&Bytes> = clients.iter().flat_map(|client| &client.sent).collect();
    for payload in clients.iter().flat_map(|client| &client.payloads) {
        assert!(sent.contains(payload), "delivered, but never sent: {payload:?}");
    }
}
