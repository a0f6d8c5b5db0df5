//! A Pulsar client for tests of crashes: blocking, one connection, and it remembers exactly which messages were acknowledged.
//! Unlike an official client it repeats nothing by itself, so that what a server acknowledged twice or lost is seen.
#![allow(clippy::disallowed_methods)]

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use geminga_proto::decode::decode_command;
use geminga_proto::encode::{encode_command, encode_with_payload, pong};
use geminga_proto::frame::{Frame, FrameLimits, next_frame};
use geminga_proto::payload::parse_payload;
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{self as wire, BaseCommand};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// One connection.
pub struct Client {
    stream: TcpStream,
    input: BytesMut,
    next_id: u64,
}

/// A message as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    /// Ledger and entry.
    pub position: (u64, u64),
    /// Payload.
    pub payload: Bytes,
}

fn command(of: Type, fill: impl FnOnce(&mut BaseCommand)) -> BaseCommand {
    let mut command = BaseCommand { r#type: of as i32, ..Default::default() };
    fill(&mut command);
    command
}

impl Client {
    /// Connects to `pulsar://host:port`. Every wait for an answer is at most `patience`.
    ///
    /// # Errors
    /// Nobody there.
    pub fn connect(url: &str, patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect(url.trim_start_matches("pulsar://"))?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream, input: BytesMut::new(), next_id: 1 };
        client.send(&command(Type::Connect, |c| {
            c.connect = Some(Box::new(wire::CommandConnect {
                client_version: "geminga-tests".into(),
                protocol_version: Some(19),
                ..Default::default()
            }));
        }))?;
        client.until(|c| c.connected.as_ref().map(|_| ()))?;
        Ok(client)
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn send(&mut self, command: &BaseCommand) -> Result<()> {
        let mut out = BytesMut::new();
        encode_command(command, &mut out);
        Ok(self.stream.write_all(&out)?)
    }

    /// The next frame; `None` when nothing comes in time.
    fn frame(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = next_frame(&mut self.input, FrameLimits::default())? {
                return Ok(Some(frame));
            }
            let mut chunk = [0; 64 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the broker closed the connection"),
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn next(&mut self) -> Result<Option<(BaseCommand, Bytes)>> {
        loop {
            let Some(frame) = self.frame()? else { return Ok(None) };
            let command = decode_command(frame.command)?;
            if command.ping.is_none() {
                return Ok(Some((command, frame.rest)));
            }
            let mut out = BytesMut::new();
            pong(&mut out);
            self.stream.write_all(&out)?;
        }
    }

    fn until<T>(&mut self, mut pick: impl FnMut(&BaseCommand) -> Option<T>) -> Result<T> {
        loop {
            let (command, _) = self.next()?.context("no answer in time")?;
            if let Some(error) = &command.error {
                bail!("{}: {}", error.error().as_str_name(), error.message);
            }
            if let Some(found) = pick(&command) {
                return Ok(found);
            }
        }
    }

    /// Service URL of the broker that serves a topic.
    ///
    /// # Errors
    /// The broker refuses or does not answer.
    pub fn lookup(&mut self, topic: &str) -> Result<String> {
        let request_id = self.id();
        self.send(&command(Type::Lookup, |c| {
            c.lookup_topic = Some(Box::new(wire::CommandLookupTopic {
                topic: topic.to_owned(),
                request_id,
                ..Default::default()
            }));
        }))?;
        let answer = self.until(|c| c.lookup_topic_response.clone())?;
        if let Some(message) = answer.message.filter(|_| answer.error.is_some()) {
            bail!("lookup: {message}");
        }
        answer.broker_service_url.context("no URL in the answer")
    }

    /// Registers a producer; answers its id.
    ///
    /// # Errors
    /// The broker refuses or does not answer.
    pub fn producer(&mut self, topic: &str, name: &str) -> Result<u64> {
        let (producer_id, request_id) = (self.id(), self.id());
        self.send(&command(Type::Producer, |c| {
            c.producer = Some(Box::new(wire::CommandProducer {
                topic: topic.to_owned(),
                producer_id,
                request_id,
                producer_name: Some(name.to_owned()),
                ..Default::default()
            }));
        }))?;
        self.until(|c| c.producer_success.as_ref().map(|_| ()))?;
        Ok(producer_id)
    }

    /// Sends one message without waiting.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn write(&mut self, producer: u64, name: &str, sequence_id: u64, payload: &[u8]) -> Result<()> {
        let send = command(Type::Send, |c| {
            c.send = Some(Box::new(wire::CommandSend {
                producer_id: producer,
                sequence_id,
                ..Default::default()
            }));
        });
        let metadata = wire::MessageMetadata {
            producer_name: name.to_owned(),
            sequence_id,
            publish_time: 1,
            ..Default::default()
        };
        let mut out = BytesMut::new();
        encode_with_payload(&send, &metadata, payload, &mut out);
        Ok(self.stream.write_all(&out)?)
    }

    /// The next receipt: sequence id, ledger, entry. `None` when none comes in time.
    ///
    /// # Errors
    /// A refusal, the end of the producer, or of the connection.
    pub fn receipt(&mut self) -> Result<Option<(u64, u64, u64)>> {
        loop {
            let Some((command, _)) = self.next()? else { return Ok(None) };
            if let Some(receipt) = command.send_receipt {
                let id = receipt.message_id.unwrap_or_default();
                return Ok(Some((receipt.sequence_id, id.ledger_id, id.entry_id)));
            }
            if let Some(error) = command.send_error {
                bail!("refused: {}", error.message);
            }
            ensure!(command.close_producer.is_none(), "the broker closed the producer");
        }
    }

    /// Subscribes exclusively from the first message on and reads until `count` messages are there.
    ///
    /// # Errors
    /// They do not come, or a checksum is wrong.
    pub fn read(
        &mut self,
        topic: &str,
        subscription: &str,
        count: usize,
        limit: Duration,
    ) -> Result<Vec<Received>> {
        let (consumer_id, request_id) = (self.id(), self.id());
        self.send(&command(Type::Subscribe, |c| {
            c.subscribe = Some(Box::new(wire::CommandSubscribe {
                topic: topic.to_owned(),
                subscription: subscription.to_owned(),
                sub_type: wire::command_subscribe::SubType::Exclusive as i32,
                consumer_id,
                request_id,
                initial_position: Some(wire::command_subscribe::InitialPosition::Earliest as i32),
                ..Default::default()
            }));
        }))?;
        self.until(|c| c.success.as_ref().map(|_| ()))?;
        self.send(&command(Type::Flow, |c| {
            let message_permits = u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1000);
            c.flow = Some(Box::new(wire::CommandFlow { consumer_id, message_permits }));
        }))?;
        let until = Instant::now() + limit;
        let mut messages = Vec::new();
        while messages.len() < count {
            ensure!(Instant::now() < until, "{} of {count} messages came", messages.len());
            let Some((command, rest)) = self.next()? else { continue };
            let Some(message) = command.message else { continue };
            let parts = parse_payload(rest)?;
            parts.verify_checksum()?;
            let position = (message.message_id.ledger_id, message.message_id.entry_id);
            messages.push(Received { position, payload: parts.payload_bytes() });
        }
        Ok(messages)
    }
}
