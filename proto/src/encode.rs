//! Writing frames.
//!
//! [`encode_command`] writes any command. The commands a broker sends once per message are written by hand, straight into
//! the connection's output buffer: no envelope is built and nothing is allocated beyond the buffer's own growth.
//! Invariant: what is written by hand decodes to the same command as the generated encoder's output would.

use bytes::{BufMut, BytesMut};
use prost::Message as _;

use crate::{
    payload::encode_payload,
    pulsar::{BaseCommand, MessageMetadata, base_command::Type},
    wire::{put_small_field, put_varint, small_field_len, varint_len},
};

/// A whole PING frame.
const PING: [u8; 13] = [0, 0, 0, 9, 0, 0, 0, 5, 0x08, 18, 0x92, 0x01, 0];
/// A whole PONG frame.
const PONG: [u8; 13] = [0, 0, 0, 9, 0, 0, 0, 5, 0x08, 19, 0x9a, 0x01, 0];

/// A size as the frame carries it.
fn size_field(size: usize) -> u32 {
    u32::try_from(size).expect("a frame is far below 4 GiB")
}

/// Appends a frame that holds only `command`.
///
/// # Panics
/// If the command takes 4 GiB.
pub fn encode_command(command: &BaseCommand, out: &mut BytesMut) {
    encode_head(command, 0, out);
}

/// Appends sizes and command of a frame that `rest_len` more bytes will complete.
fn encode_head(command: &BaseCommand, rest_len: usize, out: &mut BytesMut) {
    let size = command.encoded_len();
    out.reserve(8 + size);
    out.put_u32(size_field(4 + size + rest_len));
    out.put_u32(size_field(size));
    command.encode(out).expect("BytesMut grows as needed");
}

/// Appends a frame of `command`, metadata and payload with checksum: a whole SEND, as a client writes it.
///
/// # Panics
/// If the frame takes 4 GiB.
pub fn encode_with_payload(
    command: &BaseCommand,
    metadata: &MessageMetadata,
    payload: &[u8],
    out: &mut BytesMut,
) {
    encode_head(command, 10 + metadata.encoded_len() + payload.len(), out);
    encode_payload(metadata, payload, out);
}

/// Appends a PING frame.
pub fn ping(out: &mut BytesMut) {
    out.put_slice(&PING);
}

/// Appends a PONG frame.
pub fn pong(out: &mut BytesMut) {
    out.put_slice(&PONG);
}

/// Length of key and size of a sub-command, and of the type before it; all hot commands have small numbers or two-byte keys.
fn envelope_len(command: Type, body: usize) -> usize {
    let key = (command as u64) << 3 | 2;
    2 + varint_len(key) + varint_len(body as u64) + body
}

/// Appends sizes, type, key and length of a sub-command of `body` bytes, before `rest_len` bytes after the command.
fn put_envelope(command: Type, body: usize, rest_len: usize, out: &mut BytesMut) {
    let size = envelope_len(command, body);
    out.reserve(8 + size);
    out.put_u32(size_field(4 + size + rest_len));
    out.put_u32(size_field(size));
    put_small_field(1, command as u64, out);
    put_varint((command as u64) << 3 | 2, out);
    put_varint(body as u64, out);
}

/// Appends a SEND_RECEIPT frame. `sequence_id` and `highest_sequence_id` must be those of the SEND, else clients drop the
/// connection; a duplicate is answered with `u64::MAX` for both `ledger` and `entry`.
pub fn send_receipt(
    producer_id: u64,
    sequence_id: u64,
    highest_sequence_id: Option<u64>,
    ledger: u64,
    entry: u64,
    out: &mut BytesMut,
) {
    let id = small_field_len(ledger) + small_field_len(entry);
    let body = small_field_len(producer_id)
        + small_field_len(sequence_id)
        + small_field_len(id as u64)
        + id
        + highest_sequence_id.map_or(0, small_field_len);
    put_envelope(Type::SendReceipt, body, 0, out);
    put_small_field(1, producer_id, out);
    put_small_field(2, sequence_id, out);
    out.put_u8(3 << 3 | 2);
    put_varint(id as u64, out);
    put_small_field(1, ledger, out);
    put_small_field(2, entry, out);
    if let Some(highest) = highest_sequence_id {
        put_small_field(4, highest, out);
    }
}

/// What a MESSAGE command says of the entry that follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageHeader<'a> {
    /// The consumer's id on its connection.
    pub consumer_id: u64,
    /// Ledger of the entry.
    pub ledger: u64,
    /// Place of the entry in its ledger.
    pub entry: u64,
    /// Partition number, or -1 (left out, as it is the default) for a plain topic.
    pub partition: i32,
    /// Earlier deliveries; left out when 0.
    pub redelivery_count: u32,
    /// For a batch delivered in part: set bits are the members still to be processed. Empty means all.
    pub ack_set: &'a [i64],
    /// The epoch the consumer subscribed or redelivered with, so that it can drop older deliveries.
    pub consumer_epoch: Option<u64>,
}

/// Appends sizes and command of a MESSAGE frame, after which the caller puts `rest_len` bytes: the stored entry.
///
/// # Panics
/// If the frame takes 4 GiB.
pub fn message_header(header: &MessageHeader<'_>, rest_len: usize, out: &mut BytesMut) {
    let partition = u64::try_from(header.partition).ok();
    let id =
        small_field_len(header.ledger) + small_field_len(header.entry) + partition.map_or(0, small_field_len);
    let redelivery = (header.redelivery_count > 0).then_some(u64::from(header.redelivery_count));
    let body = small_field_len(header.consumer_id)
        + small_field_len(id as u64)
        + id
        + redelivery.map_or(0, small_field_len)
        + header.ack_set.iter().map(|word| small_field_len(word.cast_unsigned())).sum::<usize>()
        + header.consumer_epoch.map_or(0, small_field_len);
    put_envelope(Type::Message, body, rest_len, out);
    put_small_field(1, header.consumer_id, out);
    out.put_u8(2 << 3 | 2);
    put_varint(id as u64, out);
    put_small_field(1, header.ledger, out);
    put_small_field(2, header.entry, out);
    if let Some(partition) = partition {
        put_small_field(3, partition, out);
    }
    if let Some(count) = redelivery {
        put_small_field(3, count, out);
    }
    for word in header.ack_set {
        put_small_field(4, word.cast_unsigned(), out);
    }
    if let Some(epoch) = header.consumer_epoch {
        put_small_field(5, epoch, out);
    }
}

/// Appends the ACK_RESPONSE frame of a successful acknowledgement outside any transaction; failures and transactions go
/// through [`encode_command`].
pub fn ack_response(consumer_id: u64, request_id: u64, out: &mut BytesMut) {
    let body = small_field_len(consumer_id) + small_field_len(request_id);
    put_envelope(Type::AckResponse, body, 0, out);
    put_small_field(1, consumer_id, out);
    put_small_field(6, request_id, out);
}
