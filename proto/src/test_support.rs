//! The entry point of fuzz runs over the whole crate.
//!
//! It is an ordinary function so that a property test, a long random run and a coverage-guided fuzzer can share it. It
//! panics when a promise is broken (a decoder disagrees with the generated one, a frame grows the buffer), and on nothing
//! that the bytes can say.

use bytes::{Bytes, BytesMut};
use prost::Message as _;

use crate::{
    batch::BatchIter,
    broker_entry::BrokerEntry,
    decode::{decode_ack, decode_command, decode_connect, decode_flow, decode_send, peek_type},
    encode::encode_command,
    frame::{FrameLimits, needed, next_frame},
    metadata_view::MetadataView,
    payload::parse_payload,
    pulsar::{BaseCommand, MessageMetadata, base_command::Type},
};

/// Feeds `data` as a stream to the framing, every frame to every decoder, and `data` itself to every decoder too, since few
/// random bytes make a frame.
///
/// # Panics
/// Only when the crate breaks one of its promises.
pub fn fuzz_frames(data: &[u8]) {
    let limits = FrameLimits::default();
    let mut buf = BytesMut::from(data);
    let mut used = 0;
    while let Ok(Some(frame)) = next_frame(&mut buf, limits) {
        used += 8 + frame.command.len() + frame.rest.len();
        assert_eq!(used + buf.len(), data.len(), "framing lost or invented bytes");
        check_command(&frame.command);
        check_payload(frame.rest);
    }
    if let Ok(None) = next_frame(&mut buf, limits) {
        let needed = needed(&buf);
        assert!(needed > buf.len(), "a whole frame was left in the buffer");
        assert!(needed <= limits.max_frame, "more was asked for than the limit allows");
    }
    let whole = Bytes::copy_from_slice(data);
    check_command(&whole);
    check_metadata(data);
    check_payload(whole);
}

/// Runs the command decoders and compares the hand-written ones with the generated one.
fn check_command(command: &Bytes) {
    let ours = (decode_send(command), decode_flow(command), decode_ack(command));
    let Ok(full) = BaseCommand::decode(command.clone()) else {
        assert!(decode_command(command.clone()).is_err(), "decode_command accepted what prost refuses");
        return;
    };
    assert_eq!(decode_command(command.clone()).is_ok(), peek_type(command).is_some());
    if let (Ok(ours), Some(send)) = (&ours.0, full.send.as_deref()) {
        assert_eq!(full.r#type, Type::Send as i32);
        assert_eq!((ours.producer_id, ours.sequence_id), (send.producer_id, send.sequence_id));
        assert_eq!(ours.num_messages, send.num_messages());
        assert_eq!(ours.highest_sequence_id, send.highest_sequence_id);
        assert_eq!((ours.is_chunk, ours.marker), (send.is_chunk(), send.marker()));
        assert_eq!(
            (ours.txnid_least_bits, ours.txnid_most_bits),
            (send.txnid_least_bits, send.txnid_most_bits)
        );
        assert_eq!(ours.has_message_id, send.message_id.is_some());
    }
    if let (Ok(ours), Some(flow)) = (&ours.1, full.flow.as_deref()) {
        assert_eq!((ours.consumer_id, ours.message_permits), (flow.consumer_id, flow.message_permits));
    }
    if let (Ok(ours), Some(ack)) = (&ours.2, full.ack.as_deref()) {
        assert_eq!(ours, ack);
    }
    if let (Ok(ours), Some(connect)) = (&decode_connect(command), full.connect.as_deref()) {
        assert_eq!(ours, connect);
    }
    // What was understood can be written and read again.
    let mut out = BytesMut::new();
    encode_command(&full, &mut out);
    let again = next_frame(&mut out, FrameLimits { max_frame: usize::MAX });
    let again = again.ok().flatten().map(|frame| BaseCommand::decode(frame.command));
    // Compared as bytes: a NaN among the rates differs from itself.
    assert_eq!(again.and_then(Result::ok).map(|cmd| cmd.encode_to_vec()), Some(full.encode_to_vec()));
}

/// Runs the payload side: parts, checksum, broker entry, metadata, batch.
fn check_payload(rest: Bytes) {
    let Ok(parts) = parse_payload(rest) else { return };
    // Either answer is right; only a panic would be wrong.
    let _verified = parts.verify_checksum();
    if let Some(block) = parts.broker_entry()
        && let Ok(entry) = BrokerEntry::decode(block)
    {
        let mut out = BytesMut::new();
        entry.encode(&mut out);
        assert_eq!(BrokerEntry::decode(&out[6..]), Ok(entry));
    }
    assert!(parts.entry().ends_with(&parts.without_broker_entry()));
    assert!(parts.without_broker_entry().ends_with(parts.payload()));
    check_metadata(parts.metadata());
    let payload = parts.payload_bytes();
    let size = payload.len();
    let read: usize =
        BatchIter::new(payload, i32::MAX).flatten().map(|member| 4 + member.payload.len()).sum();
    assert!(read <= size, "a batch gave more bytes than it has");
}

/// Runs the metadata scanner and compares it with the generated decoder.
fn check_metadata(metadata: &[u8]) {
    let Ok(view) = MetadataView::parse(metadata) else { return };
    let Ok(full) = MessageMetadata::decode(metadata) else { return };
    assert_view(&view, &full);
}

/// Asserts that a view and the whole metadata say the same.
///
/// # Panics
/// When they differ.
pub fn assert_view(view: &MetadataView<'_>, full: &MessageMetadata) {
    let expected = MetadataView {
        producer_name: &full.producer_name,
        sequence_id: full.sequence_id,
        publish_time: full.publish_time,
        replicated_from: full.replicated_from.as_deref(),
        replicate_to: full.replicate_to.len(),
        partition_key: full.partition_key.as_deref(),
        partition_key_b64_encoded: full.partition_key_b64_encoded(),
        ordering_key: full.ordering_key.as_deref(),
        compression: full.compression.unwrap_or(0),
        uncompressed_size: full.uncompressed_size(),
        num_messages_in_batch: full.num_messages_in_batch,
        event_time: full.event_time,
        encryption_keys: full.encryption_keys.len(),
        schema_version: full.schema_version.as_deref(),
        deliver_at_time: full.deliver_at_time,
        marker_type: full.marker_type,
        txnid_least_bits: full.txnid_least_bits,
        txnid_most_bits: full.txnid_most_bits,
        highest_sequence_id: full.highest_sequence_id,
        null_value: full.null_value(),
        uuid: full.uuid.as_deref(),
        num_chunks_from_msg: full.num_chunks_from_msg,
        total_chunk_msg_size: full.total_chunk_msg_size,
        chunk_id: full.chunk_id,
        null_partition_key: full.null_partition_key(),
    };
    assert_eq!(*view, expected);
}
