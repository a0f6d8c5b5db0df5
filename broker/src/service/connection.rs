//! One connection: a reader task that frames, decodes and hands on, and a writer task that drains the outbox.
//!
//! State machine: *fresh* → CONNECT → *connected* → ended. Before CONNECT only PING is answered; anything else, and a second
//! CONNECT, ends the connection (`pulsar-observed` 1). Frames before CONNECT are bounded to 32 KiB, afterwards to the largest
//! message plus 10 KiB; nothing is allocated by a length that a peer merely claims, and at most 64 KiB in all before CONNECT, which
//! has to come within 30 s.
//!
//! The reader handles a whole burst (what one read brought) before it waits again; sends of one producer in a burst reach the
//! topic as one message.

use super::read_ahead::{CHUNK_MIN, ReadAhead};
use super::{consume, lookup, produce, respond, schemas};
use crate::broker::Broker;
use crate::topic::messages::Message;
use crate::topic::peer::{Announced, ConsumerSlot, Peer, ProducerSlot};
use bytes::buf::Limit;
use bytes::{BufMut, BytesMut};
use geminga_common::ids::RequestId;
use geminga_common::tasks::OnFailure;
use geminga_proto::decode::{DecodeError, decode_command, decode_connect, peek_type};
use geminga_proto::encode;
use geminga_proto::frame::{self, Frame, FrameError, FrameLimits};
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire, BaseCommand, ServerError};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;

/// Newest protocol version that is spoken.
const PROTOCOL_VERSION: i32 = 21;
/// Bytes above the largest message that a frame may have.
const FRAME_SLACK: usize = 10 * 1024;
/// Largest frame before CONNECT.
const HANDSHAKE_FRAME_MAX: usize = 32 * 1024;
/// Answers to PING that may wait unread before CONNECT, in bytes.
const HANDSHAKE_OUTBOX_MAX: usize = 8 * 1024;
/// Bytes waiting to be written above which nothing more is read: a client that asks and does not read its answers.
const OUTBOX_MAX: usize = 16 * 1024 * 1024;

/// Why a connection ends; logged once.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The client closed it.
    #[error("closed by the client")]
    ClosedByPeer,
    /// The broker wants it closed.
    #[error("closed by the broker")]
    ClosedByBroker,
    /// Reading failed.
    #[error("read failed: {0}")]
    Io(#[from] std::io::Error),
    /// Not frames of this protocol.
    #[error("malformed frame: {0}")]
    Frame(#[from] FrameError),
    /// Not a command of this protocol.
    #[error("malformed command: {0}")]
    Command(#[from] DecodeError),
    /// A command in a state that does not allow it.
    #[error("protocol violation: {0}")]
    Violation(&'static str),
    /// No CONNECT in time.
    #[error("no CONNECT in time")]
    NoConnect,
    /// No sign of life.
    #[error("no answer to PING")]
    Silent,
}

impl End {
    /// Whether the peer broke the rules of the protocol, or speaks none of it.
    fn by_what_it_sent(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Command(_) | Self::Violation(_))
    }
}

/// Serves one client until it leaves.
pub(super) async fn serve(broker: Arc<Broker>, socket: TcpStream, address: SocketAddr) {
    let _latency_over_packets = socket.set_nodelay(true);
    let (reader, writer) = socket.into_split();
    let peer = Peer::new(broker.next_id(), format!("/{address}"));
    let outbox_of = peer.clone();
    let writing = async move { outbox_of.outbox.drain_into(writer).await };
    broker.tasks.spawn(format!("writer {address}"), OnFailure::Log, writing);
    let mut connection = Connection {
        peer: peer.clone(),
        buffer: BytesMut::with_capacity(CHUNK_MIN),
        read_ahead: ReadAhead::new(),
        burst: produce::Burst::default(),
        broker: broker.clone(),
    };
    let end = connection.run(reader).await;
    tracing::debug!(%address, %end, "connection ended");
    if end.by_what_it_sent()
        && let Some(untold) = broker.strangers.again(broker.clock.mono())
    {
        tracing::info!(
            %address, reason = %end, untold,
            "a connection was closed for what it sent: is it a client of the Pulsar protocol, with TLS on neither side or both?"
        );
    }
    leave(&peer);
}

/// Takes a connection's producers and consumers off their topics.
fn leave(peer: &Arc<Peer>) {
    let (producers, consumers) = {
        let mut slots = peer.slots();
        slots.ended = true;
        (std::mem::take(&mut slots.producers), std::mem::take(&mut slots.consumers))
    };
    for slot in producers.into_values() {
        if let ProducerSlot::Ready(producer) | ProducerSlot::Waiting(producer) = slot {
            producer.topic.put(Message::RemoveProducer(producer.key, None));
        }
    }
    for slot in consumers.into_values() {
        if let ConsumerSlot::Ready(consumer) = slot {
            consumer.topic.put(Message::RemoveConsumer(consumer.key, None));
        }
    }
    peer.close();
    peer.note_left();
    peer.outbox.finish();
}

/// The reader's state.
pub(super) struct Connection {
    pub(super) broker: Arc<Broker>,
    pub(super) peer: Arc<Peer>,
    pub(super) burst: produce::Burst,
    buffer: BytesMut,
    read_ahead: ReadAhead,
}

impl Connection {
    async fn run(&mut self, mut reader: OwnedReadHalf) -> End {
        let mut keep_alive = tokio::time::interval(self.broker.config.keep_alive_interval());
        keep_alive.tick().await; // the first tick is immediate
        let closer = self.peer.closer().clone();
        let mut pinged = false;
        let handshake = tokio::time::sleep(self.broker.config.handshake_timeout());
        tokio::pin!(handshake);
        loop {
            let (pause, slowed) = self.peer.pause_left(self.broker.clock.mono());
            // Where a publish rate holds, one read must not bring minutes of it.
            let at_once = if slowed { CHUNK_MIN } else { usize::MAX };
            let unread = self.peer.outbox.drained_below(OUTBOX_MAX);
            let reads = pause.is_none() && unread.is_none();
            let mut room = make_room(&mut self.read_ahead, &mut self.buffer, at_once);
            tokio::select! {
                biased;
                () = closer.cancelled() => return End::ClosedByBroker,
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => self.peer.note_heard(),
                () = told(unread), if !reads && pause.is_none() => {}
                () = &mut handshake, if self.peer.announced().is_none() => return End::NoConnect,
                read = reader.read_buf(&mut room), if reads => match read {
                    Ok(0) => return End::ClosedByPeer,
                    Ok(read) => {
                        self.read_ahead.read(read);
                        if let Err(end) = self.burst().await {
                            return end;
                        }
                        if slowed {
                            // The topic counts what came before more is read: the pause it asks for is then in force.
                            tokio::task::yield_now().await;
                        }
                    }
                    Err(error) => return End::Io(error),
                },
                _ = keep_alive.tick() => {
                    if self.peer.take_heard() {
                        pinged = false;
                    } else if pinged || self.peer.announced().is_none() {
                        return End::Silent;
                    } else {
                        pinged = true;
                        self.peer.outbox.frame(encode::ping);
                    }
                }
            }
        }
    }

    /// Handles everything that has arrived, then makes room for what comes next.
    async fn burst(&mut self) -> Result<(), End> {
        self.peer.note_heard();
        let result = self.frames().await;
        // What was taken before a bad frame is good: hand it on in any case.
        self.hand_on().await;
        result?;
        if self.peer.announced().is_none() && self.peer.outbox.queued() > HANDSHAKE_OUTBOX_MAX {
            return Err(End::Violation("PING without end before CONNECT"));
        }
        Ok(())
    }

    fn limits(&self) -> FrameLimits {
        let max_frame = match self.peer.announced() {
            Some(_) => self.broker.config.max_message() + FRAME_SLACK,
            None => HANDSHAKE_FRAME_MAX,
        };
        FrameLimits { max_frame }
    }

    async fn frames(&mut self) -> Result<(), End> {
        loop {
            let limits = self.limits();
            let Some(frame) = frame::next_frame(&mut self.buffer, limits)? else { break };
            self.read_ahead.took(frame.command.len() + frame.rest.len() + 8);
            let kind = peek_type(&frame.command);
            if kind == Some(Type::Send as i32) && self.peer.announced().is_some() {
                self.send(frame)?;
            } else {
                // Anything else may depend on the sends before it (closing, say): keep the order.
                self.hand_on().await;
                self.frame(frame)?;
                if self.peer.asks_too_much() {
                    tokio::select! {
                        () = self.peer.room_to_ask() => {}
                        () = self.peer.closer().cancelled() => return Err(End::ClosedByBroker),
                    }
                }
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame) -> Result<(), End> {
        if self.peer.announced().is_none() {
            return self.greeting(&frame.command);
        }
        let command = decode_command(frame.command)?;
        let Ok(kind) = Type::try_from(command.r#type) else {
            return Err(End::Violation("a command of no known type"));
        };
        match kind {
            Type::Ping => self.peer.outbox.frame(encode::pong),
            Type::Pong => {}
            Type::Connect => return Err(End::Violation("second CONNECT")),
            kind => self.command(kind, command)?,
        }
        Ok(())
    }

    /// A command of a stranger: only what may stand before CONNECT is decoded at all, so that a frame costs no more memory than
    /// it has bytes.
    fn greeting(&mut self, command: &[u8]) -> Result<(), End> {
        match peek_type(command).map(Type::try_from) {
            Some(Ok(Type::Ping)) => self.peer.outbox.frame(encode::pong),
            Some(Ok(Type::Pong)) => {}
            Some(Ok(Type::Connect)) => self.connect(decode_connect(command)?),
            Some(Ok(_)) => return Err(End::Violation("command before CONNECT")),
            Some(Err(_)) => return Err(End::Violation("a command of no known type")),
            None => return Err(End::Command(DecodeError::Missing("type"))),
        }
        Ok(())
    }

    fn connect(&mut self, connect: wire::CommandConnect) {
        let protocol_version = connect.protocol_version().min(PROTOCOL_VERSION);
        self.read_ahead.open_up();
        self.peer.announce(Announced { client_version: connect.client_version, protocol_version });
        let max_message_size = self.broker.config.max_message() as i32;
        respond::command(&self.peer, Type::Connected, |c| {
            c.connected = Some(Box::new(wire::CommandConnected {
                server_version: crate::broker::SERVER_VERSION.to_owned(),
                protocol_version: Some(protocol_version),
                max_message_size: Some(max_message_size),
                feature_flags: Some(wire::FeatureFlags {
                    supports_get_partitioned_metadata_without_auto_creation: Some(true),
                    ..Default::default()
                }),
            }));
        });
    }

    fn command(&mut self, kind: Type, c: BaseCommand) -> Result<(), End> {
        match kind {
            Type::Flow => consume::flow(self, &*required(c.flow)?)?,
            Type::Ack => consume::ack(self, *required(c.ack)?),
            Type::Producer => produce::producer(self, *required(c.producer)?),
            Type::CloseProducer => produce::close(self, &*required(c.close_producer)?),
            Type::Subscribe => consume::subscribe(self, *required(c.subscribe)?),
            Type::CloseConsumer => consume::close(self, &*required(c.close_consumer)?),
            Type::Unsubscribe => consume::unsubscribe(self, &*required(c.unsubscribe)?),
            Type::RedeliverUnacknowledgedMessages => {
                consume::redeliver(self, *required(c.redeliver_unacknowledged_messages)?);
            }
            Type::Seek => consume::seek(self, *required(c.seek)?),
            Type::GetLastMessageId => consume::last_message_id(self, &*required(c.get_last_message_id)?),
            Type::ConsumerStats => consume::stats(self, &*required(c.consumer_stats)?),
            Type::PartitionedMetadata => lookup::partitions(self, *required(c.partition_metadata)?),
            Type::Lookup => lookup::lookup(self, *required(c.lookup_topic)?),
            Type::GetTopicsOfNamespace => lookup::topics(self, *required(c.get_topics_of_namespace)?),
            Type::GetSchema => schemas::get(self, *required(c.get_schema)?),
            Type::GetOrCreateSchema => schemas::get_or_create(self, *required(c.get_or_create_schema)?),
            Type::AuthResponse => {} // nobody was challenged: nothing to check
            other => self.unsupported(other, &c),
        }
        Ok(())
    }

    /// Every command that carries a request id is answered, even when it asks for what does not exist here.
    fn unsupported(&self, kind: Type, c: &BaseCommand) {
        let transaction = [
            c.new_txn.as_ref().map(|m| m.request_id),
            c.add_partition_to_txn.as_ref().map(|m| m.request_id),
            c.add_subscription_to_txn.as_ref().map(|m| m.request_id),
            c.end_txn.as_ref().map(|m| m.request_id),
            c.tc_client_connect_request.as_ref().map(|m| m.request_id),
            c.end_txn_on_partition.as_ref().map(|m| m.request_id),
            c.end_txn_on_subscription.as_ref().map(|m| m.request_id),
        ];
        if let Some(watch) = &c.watch_topic_list {
            // The feature flag says so too; clients fall back to polling.
            let request = RequestId(watch.request_id);
            let text = "topic watchers are not supported by this broker";
            return respond::error(&self.peer, request, ServerError::NotAllowedError, text);
        }
        match transaction.into_iter().flatten().next() {
            Some(request) => respond::error(
                &self.peer,
                RequestId(request),
                ServerError::NotAllowedError,
                "transactions are not enabled on this broker",
            ),
            // What is left comes from brokers only and carries no request.
            None => tracing::debug!(?kind, "a command that clients do not send was ignored"),
        }
    }
}

/// Ends when the outbox has drained.
async fn told(unread: Option<tokio::sync::oneshot::Receiver<()>>) {
    if let Some(unread) = unread {
        let _told_or_closed = unread.await;
    }
}

/// Room for the next read of at most `at_once` bytes.
fn make_room<'a>(ahead: &mut ReadAhead, buffer: &'a mut BytesMut, at_once: usize) -> Limit<&'a mut BytesMut> {
    let have = buffer.len();
    let plan = ahead.plan(have, frame::needed(buffer), buffer.capacity(), at_once);
    if let Some(room) = plan.room {
        geminga_common::copies::note(have);
        buffer.reserve(room);
    }
    buffer.limit(plan.limit)
}

/// The sub-message that the type announces; a frame without it is malformed.
fn required<T>(part: Option<T>) -> Result<T, End> {
    part.ok_or(End::Violation("the command's body is missing"))
}
