//! Reading commands.
//!
//! SEND, FLOW and ACK arrive once per message or batch; they are read by hand, straight from the frame, without building
//! the envelope. Everything else goes through [`decode_command`]. Invariants: unknown fields are skipped, since newer
//! clients send them; bytes that are no protobuf, or lack a required field, are an error and never a panic; wherever the
//! generated decoder accepts a command whose required fields are there, the hand-written one gives the same values.

use bytes::Bytes;
use prost::Message as _;

use crate::{
    pulsar::{BaseCommand, CommandAck, CommandConnect, base_command::Type},
    wire::Reader,
};

/// Why bytes are not the message they should be. [`DecodeError::code`] is stable for logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("message ends inside a field")]
    Truncated,
    /// A varint is longer than 64 bits.
    #[error("varint does not fit 64 bits")]
    BadVarint,
    /// A key has field number 0, an undefined wire type, or is too large.
    #[error("field key is invalid")]
    BadKey,
    /// A group is unbalanced or nested too deeply.
    #[error("group is unbalanced or too deep")]
    BadGroup,
    /// A known field has the layout of another type.
    #[error("field {0} has the wrong wire type")]
    WrongWireType(u32),
    /// A text field is not UTF-8.
    #[error("field {0} is not UTF-8")]
    NotUtf8(u32),
    /// A required field is absent.
    #[error("required field {0} is missing")]
    Missing(&'static str),
    /// A size field is negative or larger than what is there.
    #[error("{0} is out of range")]
    BadSize(&'static str),
    /// The command is of another type than the decoder called.
    #[error("command has type {found}, not {expected}")]
    WrongCommand {
        /// Type the decoder reads.
        expected: i32,
        /// Type the command has.
        found: i32,
    },
    /// The generated decoder refused the bytes.
    #[error(transparent)]
    Protobuf(#[from] prost::DecodeError),
}

impl DecodeError {
    /// A short stable name of the error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::BadVarint => "bad-varint",
            Self::BadKey => "bad-key",
            Self::BadGroup => "bad-group",
            Self::WrongWireType(_) => "wrong-wire-type",
            Self::NotUtf8(_) => "not-utf8",
            Self::Missing(_) => "missing-field",
            Self::BadSize(_) => "bad-size",
            Self::WrongCommand { .. } => "wrong-command",
            Self::Protobuf(_) => "bad-protobuf",
        }
    }
}

/// The SEND command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send {
    /// The producer's id on its connection.
    pub producer_id: u64,
    /// Sequence id of the message, or of the first one of a batch.
    pub sequence_id: u64,
    /// Messages in the entry; the sender's claim, 1 when not said. May be zero or negative: check before use.
    pub num_messages: i32,
    /// Sequence id of the last message of a batch, to be echoed in the receipt.
    pub highest_sequence_id: Option<u64>,
    /// The entry is one chunk of a larger message.
    pub is_chunk: bool,
    /// The entry is an internal marker.
    pub marker: bool,
    /// Lower half of the transaction id.
    pub txnid_least_bits: Option<u64>,
    /// Upper half of the transaction id.
    pub txnid_most_bits: Option<u64>,
    /// A source message id came along, which only shadow-topic replication may send.
    pub has_message_id: bool,
}

/// The FLOW command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The consumer's id on its connection.
    pub consumer_id: u64,
    /// Messages the consumer is ready to take in addition; 0 and 2^31 or more are illegal, which the caller checks.
    pub message_permits: u32,
}

/// Type number of an encoded `BaseCommand`, or `None` when it has none or is malformed before it.
///
/// Real clients send the type first, so this looks at two bytes. A type sent twice counts by its first occurrence here.
#[must_use]
pub fn peek_type(command: &[u8]) -> Option<i32> {
    let mut reader = Reader::new(command);
    while let Some(key) = reader.next_key().ok()? {
        if key.field == 1 {
            return reader.i32(key).ok();
        }
        reader.skip(key).ok()?;
    }
    None
}

/// Calls `body` with the contents of the sub-command `expected`, wherever it lies and as often as it occurs (protobuf
/// merges repeated occurrences), and checks that the command is of that type.
fn sub_command<'a>(
    command: &'a [u8],
    expected: Type,
    mut body: impl FnMut(&'a [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let expected = expected as i32;
    let mut reader = Reader::new(command);
    let mut found = None;
    let mut seen = false;
    while let Some(key) = reader.next_key()? {
        if key.field == 1 {
            found = Some(reader.i32(key)?);
        } else if key.field == expected.cast_unsigned() {
            body(reader.bytes(key)?)?;
            seen = true;
        } else {
            reader.skip(key)?;
        }
    }
    match found {
        None => Err(DecodeError::Missing("type")),
        Some(found) if found != expected => Err(DecodeError::WrongCommand { expected, found }),
        Some(_) if !seen => Err(DecodeError::Missing("command")),
        Some(_) => Ok(()),
    }
}

/// Reads a SEND from an encoded `BaseCommand`.
///
/// # Errors
/// Malformed protobuf, another command, a missing required field.
pub fn decode_send(command: &[u8]) -> Result<Send, DecodeError> {
    let mut producer_id = None;
    let mut sequence_id = None;
    let mut send = Send {
        producer_id: 0,
        sequence_id: 0,
        num_messages: 1,
        highest_sequence_id: None,
        is_chunk: false,
        marker: false,
        txnid_least_bits: None,
        txnid_most_bits: None,
        has_message_id: false,
    };
    sub_command(command, Type::Send, |body| {
        let mut reader = Reader::new(body);
        while let Some(key) = reader.next_key()? {
            match key.field {
                1 => producer_id = Some(reader.u64(key)?),
                2 => sequence_id = Some(reader.u64(key)?),
                3 => send.num_messages = reader.i32(key)?,
                4 => send.txnid_least_bits = Some(reader.u64(key)?),
                5 => send.txnid_most_bits = Some(reader.u64(key)?),
                6 => send.highest_sequence_id = Some(reader.u64(key)?),
                7 => send.is_chunk = reader.bool(key)?,
                8 => send.marker = reader.bool(key)?,
                9 => {
                    reader.bytes(key)?;
                    send.has_message_id = true;
                }
                _ => reader.skip(key)?,
            }
        }
        Ok(())
    })?;
    send.producer_id = producer_id.ok_or(DecodeError::Missing("producer_id"))?;
    send.sequence_id = sequence_id.ok_or(DecodeError::Missing("sequence_id"))?;
    Ok(send)
}

/// Reads a FLOW from an encoded `BaseCommand`.
///
/// # Errors
/// Malformed protobuf, another command, a missing required field.
pub fn decode_flow(command: &[u8]) -> Result<Flow, DecodeError> {
    let mut consumer_id = None;
    let mut permits = None;
    sub_command(command, Type::Flow, |body| {
        let mut reader = Reader::new(body);
        while let Some(key) = reader.next_key()? {
            match key.field {
                1 => consumer_id = Some(reader.u64(key)?),
                2 => permits = Some(reader.u32(key)?),
                _ => reader.skip(key)?,
            }
        }
        Ok(())
    })?;
    Ok(Flow {
        consumer_id: consumer_id.ok_or(DecodeError::Missing("consumer_id"))?,
        message_permits: permits.ok_or(DecodeError::Missing("messagePermits"))?,
    })
}

/// Reads a CONNECT from an encoded `BaseCommand`.
///
/// Only its own body is decoded: a stranger's frame may carry any other sub-command beside it, and what the generated decoder
/// makes of two bytes of those takes a hundred in memory.
///
/// # Errors
/// Malformed protobuf, another command, a missing `client_version`.
pub fn decode_connect(command: &[u8]) -> Result<CommandConnect, DecodeError> {
    let mut connect = CommandConnect::default();
    let mut has_version = false;
    sub_command(command, Type::Connect, |body| {
        connect.merge(body)?;
        let mut reader = Reader::new(body);
        while let Some(key) = reader.next_key()? {
            has_version |= key.field == 1;
            reader.skip(key)?;
        }
        Ok(())
    })?;
    if has_version { Ok(connect) } else { Err(DecodeError::Missing("client_version")) }
}

/// Reads an ACK from an encoded `BaseCommand`.
///
/// The list of message ids needs an allocation anyway, so the body is left to the generated decoder; only the envelope is
/// passed over.
///
/// # Errors
/// Malformed protobuf, another command, a missing `consumer_id`, `ack_type`, or part of a message id.
pub fn decode_ack(command: &[u8]) -> Result<CommandAck, DecodeError> {
    let mut ack = CommandAck::default();
    let (mut has_consumer, mut has_type) = (false, false);
    sub_command(command, Type::Ack, |body| {
        ack.merge(body)?;
        let mut reader = Reader::new(body);
        while let Some(key) = reader.next_key()? {
            match key.field {
                1 => has_consumer = true,
                2 => has_type = true,
                3 => check_message_id(reader.clone().bytes(key)?)?,
                _ => {}
            }
            reader.skip(key)?;
        }
        Ok(())
    })?;
    if !has_consumer {
        return Err(DecodeError::Missing("consumer_id"));
    }
    if !has_type {
        return Err(DecodeError::Missing("ack_type"));
    }
    Ok(ack)
}

/// Checks that a message id names a ledger and an entry: an absent one would silently acknowledge position 0.
fn check_message_id(body: &[u8]) -> Result<(), DecodeError> {
    let mut reader = Reader::new(body);
    let (mut ledger, mut entry) = (false, false);
    while let Some(key) = reader.next_key()? {
        ledger |= key.field == 1;
        entry |= key.field == 2;
        reader.skip(key)?;
    }
    match (ledger, entry) {
        (true, true) => Ok(()),
        (false, _) => Err(DecodeError::Missing("ledgerId")),
        (true, false) => Err(DecodeError::Missing("entryId")),
    }
}

/// Reads any command with the generated decoder. `bytes` fields share the frame's memory.
///
/// Whether the sub-command named by the type is there, and its required fields in it, is left to the caller.
///
/// # Errors
/// Malformed protobuf or no type.
pub fn decode_command(command: Bytes) -> Result<BaseCommand, DecodeError> {
    if peek_type(&command).is_none() {
        // The generated decoder would hand back the default type for a missing one.
        BaseCommand::decode(command)?;
        return Err(DecodeError::Missing("type"));
    }
    Ok(BaseCommand::decode(command)?)
}
