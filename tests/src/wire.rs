//! A blocking client of the Pulsar wire, one socket and no more: for tests that must misbehave, or decide themselves when to read.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use geminga_proto::decode::decode_command;
use geminga_proto::encode::{encode_command, encode_with_payload};
use geminga_proto::frame::{FrameLimits, next_frame};
use geminga_proto::payload::parse_payload;
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::command_subscribe::{InitialPosition, SubType};
use geminga_proto::pulsar::{self as wire, BaseCommand, MessageIdData};
use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// Longest wait for one frame.
const LIMIT: Duration = Duration::from_secs(30);

/// A message as it came.
pub struct Message {
    /// Its id.
    pub id: MessageIdData,
    /// Its payload.
    pub payload: Bytes,
}

/// One connection.
pub struct Wire {
    socket: TcpStream,
    buffer: BytesMut,
    /// Messages that came while something else was waited for.
    messages: VecDeque<Message>,
    next_request: u64,
}

fn command(kind: Type, fill: impl FnOnce(&mut BaseCommand)) -> BaseCommand {
    let mut command = BaseCommand { r#type: kind as i32, ..Default::default() };
    fill(&mut command);
    command
}

impl Wire {
    /// Connects without a word.
    ///
    /// # Errors
    /// The connection is refused.
    pub fn silent(url: &str) -> Result<Self> {
        let socket = TcpStream::connect(url.trim_start_matches("pulsar://"))?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, buffer: BytesMut::new(), messages: VecDeque::new(), next_request: 1 })
    }

    /// Connects and shakes hands.
    ///
    /// # Errors
    /// No CONNECTED comes.
    pub fn connect(url: &str) -> Result<Self> {
        let mut wire = Self::silent(url)?;
        wire.send(&command(Type::Connect, |c| {
            c.connect = Some(Box::new(wire::CommandConnect {
                client_version: "geminga-tests".to_owned(),
                protocol_version: Some(21),
                ..Default::default()
            }));
        }))?;
        wire.expect(|c| c.connected.is_some())?;
        Ok(wire)
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.socket.write_all(bytes)?)
    }

    /// Sends a command.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, command: &BaseCommand) -> Result<()> {
        let mut out = BytesMut::new();
        encode_command(command, &mut out);
        self.raw(&out)
    }

    /// The next frame, PINGs answered on the way.
    ///
    /// # Errors
    /// Nothing comes within the limit, or the connection ends.
    pub fn read(&mut self) -> Result<(BaseCommand, Bytes)> {
        loop {
            if let Some(frame) = next_frame(&mut self.buffer, FrameLimits { max_frame: 8 << 20 })? {
                let command = decode_command(frame.command)?;
                if command.ping.is_none() {
                    return Ok((command, frame.rest));
                }
                self.send(&command_pong())?;
                continue;
            }
            let mut chunk = [0; 64 << 10];
            let read = self.socket.read(&mut chunk).context("no frame came")?;
            ensure!(read > 0, "the connection was closed");
            self.buffer.extend_from_slice(&chunk[..read]);
        }
    }

    /// Reads until a frame is the one that is waited for; an error to a request ends it.
    ///
    /// # Errors
    /// It does not come, or an ERROR does.
    pub fn expect(&mut self, wanted: impl Fn(&BaseCommand) -> bool) -> Result<BaseCommand> {
        loop {
            let (command, rest) = self.read()?;
            if wanted(&command) {
                return Ok(command);
            }
            self.keep(&command, rest)?;
            if let Some(error) = &command.error {
                bail!("error {}: {}", error.error, error.message);
            }
        }
    }

    fn request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    /// Opens a producer.
    ///
    /// # Errors
    /// It is refused.
    pub fn producer(&mut self, topic: &str, producer_id: u64) -> Result<()> {
        let request_id = self.request();
        self.send(&command(Type::Producer, |c| {
            c.producer = Some(Box::new(wire::CommandProducer {
                topic: topic.to_owned(),
                producer_id,
                request_id,
                ..Default::default()
            }));
        }))?;
        self.expect(|c| c.producer_success.as_ref().is_some_and(|s| s.request_id == request_id))?;
        Ok(())
    }

    /// Publishes without waiting for the receipt.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn publish(&mut self, producer_id: u64, sequence_id: u64, payload: &[u8]) -> Result<()> {
        self.publish_as(producer_id, sequence_id, payload, None)
    }

    /// Publishes what is announced as a batch of so many messages, whatever the payload is.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn publish_as(
        &mut self,
        producer_id: u64,
        sequence_id: u64,
        payload: &[u8],
        announced: Option<i32>,
    ) -> Result<()> {
        let send = command(Type::Send, |c| {
            c.send = Some(Box::new(wire::CommandSend {
                producer_id,
                sequence_id,
                num_messages: Some(announced.unwrap_or(1)),
                ..Default::default()
            }));
        });
        let metadata = wire::MessageMetadata {
            producer_name: "wire".to_owned(),
            sequence_id,
            publish_time: 1,
            num_messages_in_batch: announced,
            ..Default::default()
        };
        let mut out = BytesMut::new();
        encode_with_payload(&send, &metadata, payload, &mut out);
        self.raw(&out)
    }

    /// Waits for the receipt of a message, or what is said instead.
    ///
    /// # Errors
    /// A SEND_ERROR, with its code and text; CLOSE_PRODUCER; the end of the connection.
    pub fn receipt(&mut self, sequence_id: u64) -> Result<MessageIdData> {
        loop {
            let (command, rest) = self.read()?;
            self.keep(&command, rest)?;
            if let Some(refused) = command.send_error {
                bail!("send error {}: {}", refused.error, refused.message);
            }
            ensure!(command.close_producer.is_none(), "the producer was closed");
            if let Some(receipt) = command.send_receipt.filter(|r| r.sequence_id == sequence_id) {
                return receipt.message_id.context("a receipt without id");
            }
        }
    }

    /// Subscribes from the earliest message.
    ///
    /// # Errors
    /// It is refused.
    pub fn subscribe(&mut self, topic: &str, name: &str, consumer_id: u64, kind: SubType) -> Result<()> {
        self.subscribe_from(topic, name, consumer_id, kind, InitialPosition::Earliest)
    }

    /// Subscribes; a subscription that is not there yet begins as told.
    ///
    /// # Errors
    /// It is refused.
    pub fn subscribe_from(
        &mut self,
        topic: &str,
        name: &str,
        consumer_id: u64,
        kind: SubType,
        initial: InitialPosition,
    ) -> Result<()> {
        let request_id = self.request();
        self.send(&command(Type::Subscribe, |c| {
            c.subscribe = Some(Box::new(wire::CommandSubscribe {
                topic: topic.to_owned(),
                subscription: name.to_owned(),
                sub_type: kind as i32,
                consumer_id,
                request_id,
                initial_position: Some(initial as i32),
                ..Default::default()
            }));
        }))?;
        self.expect(|c| c.success.as_ref().is_some_and(|s| s.request_id == request_id))?;
        Ok(())
    }

    /// Grants permits.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn flow(&mut self, consumer_id: u64, message_permits: u32) -> Result<()> {
        self.send(&command(Type::Flow, |c| {
            c.flow = Some(Box::new(wire::CommandFlow { consumer_id, message_permits }));
        }))
    }

    /// Acknowledges one by one and waits for the receipt.
    ///
    /// # Errors
    /// It is refused.
    pub fn ack(&mut self, consumer_id: u64, ids: Vec<MessageIdData>) -> Result<()> {
        let request_id = self.request();
        self.send(&command(Type::Ack, |c| {
            c.ack = Some(Box::new(wire::CommandAck {
                consumer_id,
                message_id: ids,
                request_id: Some(request_id),
                ..Default::default()
            }));
        }))?;
        let answer =
            self.expect(|c| c.ack_response.as_ref().is_some_and(|r| r.request_id == Some(request_id)))?;
        let refused = answer.ack_response.and_then(|r| r.message);
        ensure!(refused.is_none(), "the ack was refused: {refused:?}");
        Ok(())
    }

    /// Gives back everything that is not acknowledged.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn redeliver_all(&mut self, consumer_id: u64) -> Result<()> {
        self.send(&command(Type::RedeliverUnacknowledgedMessages, |c| {
            c.redeliver_unacknowledged_messages =
                Some(Box::new(wire::CommandRedeliverUnacknowledgedMessages {
                    consumer_id,
                    ..Default::default()
                }));
        }))
    }

    /// The next message.
    ///
    /// # Errors
    /// None comes within the limit.
    pub fn message(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            let (command, rest) = self.read()?;
            self.keep(&command, rest)?;
        }
    }

    fn keep(&mut self, command: &BaseCommand, rest: Bytes) -> Result<()> {
        if let Some(message) = &command.message {
            let parts = parse_payload(rest)?;
            self.messages
                .push_back(Message { id: message.message_id.clone(), payload: parts.payload_bytes() });
        }
        Ok(())
    }

    /// The next message, if one comes in time.
    ///
    /// # Errors
    /// The connection ends.
    pub fn message_within(&mut self, limit: Duration) -> Result<Option<Message>> {
        self.socket.set_read_timeout(Some(limit))?;
        let found = self.message();
        self.socket.set_read_timeout(Some(LIMIT))?;
        match found {
            Ok(message) => Ok(Some(message)),
            Err(error) => {
                let late = error.downcast_ref::<std::io::Error>().is_some_and(|e| {
                    matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
                });
                if late { Ok(None) } else { Err(error) }
            }
        }
    }
}

fn command_pong() -> BaseCommand {
    command(Type::Pong, |c| c.pong = Some(Box::new(wire::CommandPong {})))
}
