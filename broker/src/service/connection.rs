//! One connection: a reader task that frames, decodes and hands on, and a writer task that drains the outbox.
//!
//! State machine: *fresh* → CONNECT → *connected* → ended. Before CONNECT only PING is answered; anything else, and a second
//! CONNECT, ends the connection (`pulsar-observed` 1). Frames before CONNECT are bounded to 64 KiB, afterwards to the largest
//! message plus 10 KiB; nothing is allocated by a length that a peer merely claims.
//!
//! The reader handles a whole burst (what one read brought) before it waits again; sends of one producer in a burst reach the
//! topic as one message.

use super::{consume, lookup, produce, respond, schemas};
use crate::broker::Broker;
use crate::topic::messages::Message;
use crate::topic::peer::{Announced, ConsumerSlot, Peer, ProducerSlot};
use bytes::BytesMut;
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
const HANDSHAKE_FRAME_MAX: usize = 64 * 1024;
/// First read buffer; it grows with what arrives.
const READ_BUFFER_MIN: usize = 8 * 1024;
/// Largest read buffer, unless a frame needs more.
const READ_BUFFER_MAX: usize = 256 * 1024;
/// A client that leaves this many bytes of answers and messages unread is not read from, until it has taken them: it cannot make
/// the broker keep answers without end. Above what a dispatcher queues: `Outbox::WRITABLE_BYTES` and a largest message.
const UNREAD_MAX: usize = 8 * 1024 * 1024;
/// The same before CONNECT.
const UNREAD_HANDSHAKE_MAX: usize = 16 * 1024;

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
    /// No sign of life.
    #[error("no answer to PING")]
    Silent,
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
        buffer: BytesMut::with_capacity(READ_BUFFER_MIN),
        read_ahead: READ_BUFFER_MIN,
        burst: produce::Burst::default(),
        broker: broker.clone(),
    };
    let end = connection.run(reader).await;
    tracing::debug!(%address, %end, "connection ended");
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
    read_ahead: usize,
}

impl Connection {
    async fn run(&mut self, mut reader: OwnedReadHalf) -> End {
        let mut keep_alive = tokio::time::interval(self.broker.config.keep_alive_interval());
        keep_alive.tick().await; // the first tick is immediate
        let closer = self.peer.closer().clone();
        let mut pinged = false;
        let peer = self.peer.clone();
        loop {
            let unread_max = if peer.announced().is_some() { UNREAD_MAX } else { UNREAD_HANDSHAKE_MAX };
            let read = async {
                peer.outbox.drained_to(unread_max).await;
                reader.read_buf(&mut self.buffer).await
            };
            tokio::select! {
                biased;
                () = closer.cancelled() => return End::ClosedByBroker,
                read = read => match read {
                    Ok(0) => return End::ClosedByPeer,
                    Ok(_) => {
                        if let Err(end) = self.burst().await {
                            return end;
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
        let filled = self.buffer.len() == self.buffer.capacity();
        self.peer.note_heard();
        let result = self.frames().await;
        // What was taken before a bad frame is good: hand it on in any case.
        self.hand_on().await;
        result?;
        // A stranger's buffer grows for a frame that needs it, not for a flood.
        if filled && self.peer.announced().is_some() {
            self.read_ahead = (self.read_ahead * 2).min(READ_BUFFER_MAX);
        }
        let needed = frame::needed(&self.buffer);
        let room = needed.max(self.read_ahead);
        // A nearly full chunk is left behind, so that a read is worth its system call.
        if self.buffer.capacity() - self.buffer.len() < (room - self.buffer.len().min(room)).max(1) {
            self.buffer.reserve(room - self.buffer.len().min(room));
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
            let kind = peek_type(&frame.command);
            if kind == Some(Type::Send as i32) && self.peer.announced().is_some() {
                self.send(frame)?;
            } else {
                // Anything else may depend on the sends before it (closing, say): keep the order.
                self.hand_on().await;
                self.frame(frame)?;
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

    fn connect(&self, connect: wire::CommandConnect) {
        let protocol_version = connect.protocol_version().min(PROTOCOL_VERSION);
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

/// The sub-message that the type announces; a frame without it is malformed.
fn required<T>(part: Option<T>) -> Result<T, End> {
    part.ok_or(End::Violation("the command's body is missing"))
}
