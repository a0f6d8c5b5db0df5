//! A bare client of the wire protocol: frames out, frames in, nothing between.

use anyhow::{Result, ensure};
use bytes::{Bytes, BytesMut};
use geminga_proto::encode::{encode_command, encode_with_payload};
use geminga_proto::frame::{Frame, FrameLimits, next_frame};
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{
    BaseCommand, CommandConnect, CommandFlow, CommandProducer, CommandSend, CommandSubscribe,
    MessageMetadata, command_subscribe,
};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// One connection.
pub struct Wire {
    socket: TcpStream,
    input: BytesMut,
}

/// A command of this type, its body set by `fill`.
pub fn command(kind: Type, fill: impl FnOnce(&mut BaseCommand)) -> BaseCommand {
    let mut command = BaseCommand { r#type: kind as i32, ..BaseCommand::default() };
    fill(&mut command);
    command
}

impl Wire {
    /// Connects and shakes hands.
    ///
    /// # Errors
    /// The server does not answer CONNECTED.
    pub async fn connect(address: &str) -> Result<Self> {
        let socket = TcpStream::connect(address).await?;
        let mut wire = Self { socket, input: BytesMut::new() };
        let connect = CommandConnect {
            client_version: "wire".to_owned(),
            protocol_version: Some(20),
            ..CommandConnect::default()
        };
        wire.tell(&command(Type::Connect, |c| c.connect = Some(Box::new(connect)))).await?;
        wire.until(Type::Connected).await?;
        Ok(wire)
    }

    /// Sends a command.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn tell(&mut self, command: &BaseCommand) -> Result<()> {
        let mut out = BytesMut::new();
        encode_command(command, &mut out);
        Ok(self.socket.write_all(&out).await?)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.socket.write_all(bytes).await?)
    }

    /// The next frame.
    ///
    /// # Errors
    /// The connection ends.
    pub async fn frame(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = next_frame(&mut self.input, FrameLimits::default())? {
                return Ok(frame);
            }
            ensure!(self.socket.read_buf(&mut self.input).await? > 0, "the server closed the connection");
        }
    }

    /// The next command of this type; others are passed over.
    ///
    /// # Errors
    /// The connection ends, or the server answers with an error.
    pub async fn until(&mut self, kind: Type) -> Result<(BaseCommand, Bytes)> {
        loop {
            let frame = self.frame().await?;
            let command = BaseCommand::decode(frame.command)?;
            ensure!(command.error.is_none(), "{:?}", command.error);
            if command.r#type == kind as i32 {
                return Ok((command, frame.rest));
            }
        }
    }

    /// Creates producer 1 of a topic.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn producer(&mut self, topic: &str) -> Result<()> {
        let producer = CommandProducer {
            topic: topic.to_owned(),
            producer_id: 1,
            request_id: 1,
            ..CommandProducer::default()
        };
        self.tell(&command(Type::Producer, |c| c.producer = Some(Box::new(producer)))).await?;
        self.until(Type::ProducerSuccess).await.map(drop)
    }

    /// Subscribes consumer 1 from the first message on, and grants permits.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn consumer(&mut self, topic: &str, permits: u32) -> Result<()> {
        let subscribe = CommandSubscribe {
            topic: topic.to_owned(),
            subscription: "s".to_owned(),
            sub_type: command_subscribe::SubType::Exclusive as i32,
            consumer_id: 1,
            request_id: 2,
            initial_position: Some(command_subscribe::InitialPosition::Earliest as i32),
            ..CommandSubscribe::default()
        };
        self.tell(&command(Type::Subscribe, |c| c.subscribe = Some(Box::new(subscribe)))).await?;
        self.until(Type::Success).await?;
        let flow = CommandFlow { consumer_id: 1, message_permits: permits };
        self.tell(&command(Type::Flow, |c| c.flow = Some(Box::new(flow)))).await
    }

    /// The SEND frame of producer 1.
    pub fn send_frame(sequence: u64, payload: &[u8]) -> BytesMut {
        let send = CommandSend { producer_id: 1, sequence_id: sequence, ..CommandSend::default() };
        let metadata = MessageMetadata {
            producer_name: "wire".to_owned(),
            sequence_id: sequence,
            publish_time: 1,
            ..MessageMetadata::default()
        };
        let mut out = BytesMut::new();
        let send = command(Type::Send, |c| c.send = Some(Box::new(send)));
        encode_with_payload(&send, &metadata, payload, &mut out);
        out
    }
}
