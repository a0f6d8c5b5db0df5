//! The hand-written codecs against the generated one, over generated values and over damaged and random bytes.

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, option, prelude::*};
use prost::Message as _;

use crate::{
    broker_entry::BrokerEntry,
    decode::{decode_ack, decode_flow, decode_send, peek_type},
    encode::{MessageHeader, ack_response, encode_with_payload, message_header, send_receipt},
    frame::{FrameLimits, next_frame},
    metadata_view::MetadataView,
    pulsar::{
        BaseCommand, BrokerEntryMetadata, CommandAck, CommandAckResponse, CommandFlow, CommandMessage,
        CommandSend, CommandSendReceipt, EncryptionKeys, KeyLongValue, KeyValue, MessageIdData,
        MessageMetadata, base_command::Type,
    },
    test_support::{assert_view, fuzz_frames},
};

/// Numbers of every varint length, the edges included.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..200u64, any::<u64>(), Just(u64::MAX), Just(1 << 63), (0..64u32).prop_map(|bit| 1 << bit)]
}

fn message_id() -> impl Strategy<Value = MessageIdData> {
    let small = option::of(any::<i32>());
    (number(), number(), small.clone(), small.clone(), vec(any::<i64>(), 0..3), small).prop_map(
        |(ledger_id, entry_id, partition, batch_index, ack_set, batch_size)| MessageIdData {
            ledger_id,
            entry_id,
            partition,
            batch_index,
            ack_set,
            batch_size,
            first_chunk_message_id: None,
        },
    )
}

fn send() -> impl Strategy<Value = CommandSend> {
    let optional = || option::of(number());
    let flag = || option::of(any::<bool>());
    (
        (number(), number(), option::of(any::<i32>())),
        (optional(), optional(), optional()),
        (flag(), flag(), option::of(message_id())),
    )
        .prop_map(|((producer_id, sequence_id, num_messages), txn, (is_chunk, marker, message_id))| {
            CommandSend {
                producer_id,
                sequence_id,
                num_messages,
                txnid_least_bits: txn.0,
                txnid_most_bits: txn.1,
                highest_sequence_id: txn.2,
                is_chunk,
                marker,
                message_id,
            }
        })
}

fn ack() -> impl Strategy<Value = CommandAck> {
    (number(), 0..2i32, vec(message_id(), 0..4), option::of(0..5i32), option::of(number()), number())
        .prop_map(|(consumer_id, ack_type, message_id, validation_error, request_id, value)| CommandAck {
            consumer_id,
            ack_type,
            message_id,
            validation_error,
            properties: vec![KeyLongValue { key: "k".into(), value }],
            txnid_least_bits: request_id,
            txnid_most_bits: None,
            request_id,
        })
}

fn metadata() -> impl Strategy<Value = MessageMetadata> {
    let text = || "\\PC{0,6}";
    let blob = || option::of(vec(any::<u8>(), 0..6).prop_map(Bytes::from));
    let int = || option::of(any::<i32>());
    let long = || option::of(number());
    let flag = || option::of(any::<bool>());
    (
        (text(), number(), number(), vec((text(), text()), 0..3), option::of(text()), option::of(text())),
        (vec(text(), 0..3), option::of(0..5i32), option::of(any::<u32>()), int(), long(), 0..3usize),
        (blob(), blob(), flag(), blob(), option::of(any::<i64>()), int()),
        (long(), long(), long(), flag(), option::of(text()), int()),
        (int(), int(), flag(), vec(any::<i32>(), 0..3), blob()),
    )
        .prop_map(|(a, b, c, d, e)| MessageMetadata {
            producer_name: a.0,
            sequence_id: a.1,
            publish_time: a.2,
            properties: a.3.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
            replicated_from: a.4,
            partition_key: a.5,
            replicate_to: b.0,
            compression: b.1,
            uncompressed_size: b.2,
            num_messages_in_batch: b.3,
            event_time: b.4,
            encryption_keys: vec![EncryptionKeys::default(); b.5],
            encryption_algo: None,
            encryption_param: c.0,
            schema_version: c.1,
            partition_key_b64_encoded: c.2,
            ordering_key: c.3,
            deliver_at_time: c.4,
            marker_type: c.5,
            txnid_least_bits: d.0,
            txnid_most_bits: d.1,
            highest_sequence_id: d.2,
            null_value: d.3,
            uuid: d.4,
            num_chunks_from_msg: d.5,
            total_chunk_msg_size: e.0,
            chunk_id: e.1,
            null_partition_key: e.2,
            compacted_batch_indexes: e.3,
            schema_id: e.4,
        })
}

fn send_command(send: CommandSend) -> BaseCommand {
    BaseCommand { r#type: Type::Send as i32, send: Some(Box::new(send)), ..BaseCommand::default() }
}

/// The only frame in `out`, decoded by prost.
fn only_command(mut out: BytesMut) -> (BaseCommand, usize) {
    let frame = next_frame(&mut out, FrameLimits::default()).unwrap().unwrap();
    assert!(out.is_empty());
    (BaseCommand::decode(frame.command).unwrap(), frame.rest.len())
}

/// Damage: overwrite, insert or remove a byte at a position, several times.
fn damage(bytes: &mut Vec<u8>, edits: &[(u8, u16, u8)]) {
    for &(kind, at, value) in edits {
        let at = usize::from(at) % (bytes.len() + 1);
        match kind {
            0 => bytes.insert(at, value),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            _ if at < bytes.len() => bytes[at] = value,
            _ => bytes.truncate(at),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn send_by_hand_equals_the_generated_decoder(send in send()) {
        let encoded = send_command(send.clone()).encode_to_vec();
        let ours = decode_send(&encoded).unwrap();
        prop_assert_eq!(peek_type(&encoded), Some(6));
        prop_assert_eq!((ours.producer_id, ours.sequence_id), (send.producer_id, send.sequence_id));
        prop_assert_eq!(ours.num_messages, send.num_messages.unwrap_or(1));
        prop_assert_eq!(ours.highest_sequence_id, send.highest_sequence_id);
        prop_assert_eq!((ours.txnid_least_bits, ours.txnid_most_bits), (send.txnid_least_bits, send.txnid_most_bits));
        prop_assert_eq!((ours.is_chunk, ours.marker), (send.is_chunk == Some(true), send.marker == Some(true)));
        prop_assert_eq!(ours.has_message_id, send.message_id.is_some());
    }

    #[test]
    fn flow_and_ack_equal_the_generated_decoder(consumer_id in number(), permits in any::<u32>(), ack in ack()) {
        let flow = CommandFlow { consumer_id, message_permits: permits };
        let flow = BaseCommand { r#type: Type::Flow as i32, flow: Some(Box::new(flow)), ..BaseCommand::default() };
        let ours = decode_flow(&flow.encode_to_vec()).unwrap();
        prop_assert_eq!((ours.consumer_id, ours.message_permits), (consumer_id, permits));
        let command =
            BaseCommand { r#type: Type::Ack as i32, ack: Some(Box::new(ack.clone())), ..BaseCommand::default() };
        prop_assert_eq!(decode_ack(&command.encode_to_vec()), Ok(ack));
    }

    #[test]
    fn receipts_by_hand_decode_to_what_was_meant(
        ids in (number(), number(), option::of(number()), number(), number()),
    ) {
        let (producer_id, sequence_id, highest_sequence_id, ledger_id, entry_id) = ids;
        let mut out = BytesMut::new();
        send_receipt(producer_id, sequence_id, highest_sequence_id, ledger_id, entry_id, &mut out);
        let message_id = Some(MessageIdData { ledger_id, entry_id, ..MessageIdData::default() });
        let receipt = CommandSendReceipt { producer_id, sequence_id, message_id, highest_sequence_id };
        let (command, _) = only_command(out);
        let expected = BaseCommand {
            r#type: Type::SendReceipt as i32,
            send_receipt: Some(Box::new(receipt)),
            ..BaseCommand::default()
        };
        prop_assert_eq!(command, expected);

        let mut out = BytesMut::new();
        ack_response(producer_id, sequence_id, &mut out);
        let response = CommandAckResponse {
            consumer_id: producer_id,
            request_id: Some(sequence_id),
            ..CommandAckResponse::default()
        };
        let (command, _) = only_command(out);
        prop_assert_eq!(command.r#type, Type::AckResponse as i32);
        prop_assert_eq!(command.ack_response, Some(Box::new(response)));
    }

    #[test]
    fn message_headers_by_hand_decode_to_what_was_meant(
        ids in (number(), number(), number(), -1..i32::MAX, any::<u32>()),
        ack_set in vec(any::<i64>(), 0..80),
        consumer_epoch in option::of(number()),
        rest in 0..600usize,
    ) {
        let (consumer_id, ledger, entry, partition, redelivery_count) = ids;
        let header = MessageHeader {
            consumer_id, ledger, entry, partition, redelivery_count, ack_set: &ack_set, consumer_epoch,
        };
        let mut out = BytesMut::new();
        message_header(&header, rest, &mut out);
        out.resize(out.len() + rest, 0);
        let (command, rest_found) = only_command(out);
        let message_id = MessageIdData {
            ledger_id: ledger,
            entry_id: entry,
            partition: (partition >= 0).then_some(partition),
            ..MessageIdData::default()
        };
        let redelivery_count = (redelivery_count > 0).then_some(redelivery_count);
        let expected = CommandMessage { consumer_id, message_id, redelivery_count, ack_set, consumer_epoch };
        prop_assert_eq!((command.r#type, rest_found), (Type::Message as i32, rest));
        prop_assert_eq!(command.message, Some(Box::new(expected)));
    }

    #[test]
    fn a_view_equals_the_generated_metadata(metadata in metadata()) {
        let encoded = metadata.encode_to_vec();
        assert_view(&MetadataView::parse(&encoded).unwrap(), &metadata);
    }

    #[test]
    fn broker_entries_equal_the_generated_codec(at in option::of(number()), index in option::of(number())) {
        let generated = BrokerEntryMetadata { broker_timestamp: at, index }.encode_to_vec();
        let ours = BrokerEntry { broker_timestamp: at, index };
        prop_assert_eq!(BrokerEntry::decode(&generated), Ok(ours));
        let mut out = BytesMut::new();
        ours.encode(&mut out);
        prop_assert_eq!(&out[2..6], (generated.len() as u32).to_be_bytes());
        prop_assert_eq!(&out[6..], generated);
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut(
        sends in vec((send(), metadata(), vec(any::<u8>(), 0..40)), 1..5),
        step in 1..50usize,
    ) {
        let mut stream = BytesMut::new();
        for (send, metadata, payload) in &sends {
            encode_with_payload(&send_command(send.clone()), metadata, payload, &mut stream);
        }
        let (mut buf, mut frames) = (BytesMut::new(), 0);
        for chunk in stream.chunks(step) {
            buf.extend_from_slice(chunk);
            while let Some(frame) = next_frame(&mut buf, FrameLimits::default()).unwrap() {
                let (send, metadata, payload) = &sends[frames];
                prop_assert_eq!(decode_send(&frame.command).unwrap().sequence_id, send.sequence_id);
                let parts = crate::payload::parse_payload(frame.rest).unwrap();
                prop_assert_eq!(parts.verify_checksum(), Ok(()));
                prop_assert_eq!(parts.metadata(), metadata.encode_to_vec());
                prop_assert_eq!(parts.payload(), &payload[..]);
                frames += 1;
            }
        }
        prop_assert_eq!((frames, buf.len()), (sends.len(), 0));
    }

    #[test]
    fn random_bytes_break_nothing(data in vec(any::<u8>(), 0..200)) {
        fuzz_frames(&data);
    }

    #[test]
    fn damaged_frames_break_nothing(
        send in send(),
        ack in ack(),
        metadata in metadata(),
        payload in vec(any::<u8>(), 0..30),
        edits in vec((0..4u8, any::<u16>(), any::<u8>()), 1..6),
    ) {
        let mut frame = BytesMut::new();
        encode_with_payload(&send_command(send), &metadata, &payload, &mut frame);
        let ack = BaseCommand { r#type: Type::Ack as i32, ack: Some(Box::new(ack)), ..BaseCommand::default() };
        for mut bytes in [frame.to_vec(), frame[8..].to_vec(), ack.encode_to_vec(), metadata.encode_to_vec()] {
            damage(&mut bytes, &edits);
            fuzz_frames(&bytes);
        }
    }
}
