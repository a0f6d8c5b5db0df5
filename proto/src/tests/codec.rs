//! Commands, by hand-written bytes.

use bytes::{Bytes, BytesMut};

use super::bytes;
use crate::{
    decode::{
        DecodeError, Flow, decode_ack, decode_command, decode_connect, decode_flow, decode_send, peek_type,
    },
    encode::{
        MessageHeader, ack_response, encode_command, encode_with_payload, message_header, ping, pong,
        send_receipt,
    },
    frame::{FrameLimits, next_frame},
    payload::parse_payload,
    pulsar::{BaseCommand, CommandPing, CommandSend, MessageMetadata, base_command::Type},
};

/// A SEND {producer 1, sequence 2} with `more` bytes in its body.
fn send(more: &[u8]) -> Bytes {
    let size = u8::try_from(4 + more.len()).unwrap();
    bytes(&[&[0x08, 6, 0x32, size, 0x08, 1, 0x10, 2], more])
}

#[test]
fn the_envelope_is_small_by_value() {
    // The type, padded to a word, and one pointer for each of the 58 sub-commands: one left unboxed would show.
    assert_eq!(size_of::<BaseCommand>(), size_of::<usize>() * (1 + 58));
}

#[test]
fn a_sub_commands_number_is_its_type() {
    // A few far apart; the rest follow from the schema's generation. Key = number << 3 | 2.
    let mut command = BaseCommand { r#type: Type::TopicMigrated as i32, ..BaseCommand::default() };
    command.topic_migrated = Some(Box::default());
    let mut out = BytesMut::new();
    encode_command(&command, &mut out);
    assert_eq!(&out[8..], [0x08, 68, 0xa2, 0x04, 4, 0x08, 0, 0x10, 0]);
    assert_eq!(Type::AuthChallenge as i32, 36);
    assert_eq!(Type::NewTxn as i32, 50);
    assert_eq!(Type::WatchTopicList as i32, 64);
    assert!(Type::try_from(41).is_err() && Type::try_from(69).is_err());
}

#[test]
fn connect_is_read_without_what_stands_beside_it() {
    let connect = [0x08, 2, 0x12, 5, 0x0a, 1, b'c', 0x20, 21];
    let read = decode_connect(&connect).unwrap();
    assert_eq!((read.client_version.as_str(), read.protocol_version()), ("c", 21));
    // An ACK whose body is no message; the generated decoder refuses all of it.
    let beside = [&connect[..], &[0x52, 2, 0xff, 0xff]].concat();
    assert_eq!(decode_connect(&beside), Ok(read));
    assert!(decode_command(Bytes::from(beside)).is_err());
    assert_eq!(decode_connect(&[0x08, 2, 0x12, 2, 0x20, 21]), Err(DecodeError::Missing("client_version")));
    assert_eq!(decode_connect(&[0x08, 2]), Err(DecodeError::Missing("command")));
    let wrong = Err(DecodeError::WrongCommand { expected: 2, found: 18 });
    assert_eq!(decode_connect(&[0x08, 18]), wrong);
}

#[test]
fn peek_finds_the_type_wherever_it_is() {
    assert_eq!(peek_type(&[0x08, 18]), Some(18));
    assert_eq!(peek_type(&[0x92, 0x01, 0, 0x08, 18]), Some(18));
    assert_eq!(peek_type(&[0x08, 0x80, 0x01]), Some(128));
    assert_eq!(peek_type(&[]), None);
    assert_eq!(peek_type(&[0x92, 0x01, 0]), None);
    assert_eq!(peek_type(&[0x08]), None);
    assert_eq!(peek_type(&[0x0a, 0]), None);
}

#[test]
fn send_has_the_defaults_of_the_schema() {
    let plain = decode_send(&send(&[])).unwrap();
    assert_eq!((plain.producer_id, plain.sequence_id, plain.num_messages), (1, 2, 1));
    assert_eq!(
        (plain.highest_sequence_id, plain.txnid_least_bits, plain.txnid_most_bits),
        (None, None, None)
    );
    assert!(!plain.is_chunk && !plain.marker && !plain.has_message_id);
}

#[test]
fn send_reads_every_field_and_skips_unknown_ones() {
    let body = [
        0x18, 5, 0x20, 6, 0x28, 7, 0x30, 8, 0x38, 1, 0x40, 1, 0x4a, 4, 0x08, 1, 0x10,
        1, // known fields 3 to 9
        0x50, 1, 0x5a, 1, 0, 0x65, 1, 2, 3, 4, 0x69, 1, 2, 3, 4, 5, 6, 7,
        8, // 10 to 13: each plain wire type
        0x73, 0x08, 1, 0x7b, 0x7c, 0x74, // groups 14 and, in it, 15
    ];
    let full = decode_send(&send(&body)).unwrap();
    assert_eq!((full.num_messages, full.highest_sequence_id), (5, Some(8)));
    assert_eq!((full.txnid_least_bits, full.txnid_most_bits), (Some(6), Some(7)));
    assert!(full.is_chunk && full.marker && full.has_message_id);
}

#[test]
fn send_is_refused_when_malformed() {
    let cases: [(&[u8], DecodeError); 10] = [
        (&[0x32, 4, 0x08, 1, 0x10, 2], DecodeError::Missing("type")),
        (&[0x08, 6], DecodeError::Missing("command")),
        (&[0x08, 6, 0x32, 2, 0x08, 1], DecodeError::Missing("sequence_id")),
        (&[0x08, 6, 0x32, 2, 0x10, 1], DecodeError::Missing("producer_id")),
        (&[0x08, 9, 0x32, 4, 0x08, 1, 0x10, 2], DecodeError::WrongCommand { expected: 6, found: 9 }),
        (&[0x08, 6, 0x32, 5, 0x08, 1, 0x10, 2], DecodeError::Truncated),
        (&[0x08, 6, 0x32, 3, 0x08, 1, 0x10], DecodeError::Truncated),
        (&[0x08, 6, 0x32, 2, 0x0a, 0], DecodeError::WrongWireType(1)),
        (&[0x08, 6, 0x06], DecodeError::BadKey),
        (&[0x08, 6, 0x0c], DecodeError::WrongWireType(1)),
    ];
    for (command, expected) in cases {
        assert_eq!(decode_send(command), Err(expected), "{command:02x?}");
    }
    assert_eq!(decode_send(&send(&[0x73, 0x7c])), Err(DecodeError::BadGroup));
    assert_eq!(decode_send(&send(&[0x7c])), Err(DecodeError::BadGroup));
    assert_eq!(decode_send(&send(&[0x73; 120])), Err(DecodeError::BadGroup));
    assert_eq!(decode_send(&send(&[0x02, 0])), Err(DecodeError::BadKey));
}

#[test]
fn varints_take_at_most_64_bits() {
    let id = |last: u8| [&[0x08, 11, 0x5a, 13, 0x08][..], &[0xff; 9], &[last, 0x10, 1]].concat();
    assert_eq!(decode_flow(&id(1)), Ok(Flow { consumer_id: u64::MAX, message_permits: 1 }));
    assert_eq!(decode_flow(&id(2)), Err(DecodeError::BadVarint));
    let endless = [&[0x08, 11, 0x5a, 12, 0x08][..], &[0xff; 11]].concat();
    assert_eq!(decode_flow(&endless), Err(DecodeError::BadVarint));
}

#[test]
fn flow_keeps_illegal_permit_counts_for_the_caller_to_refuse() {
    assert_eq!(
        decode_flow(&[0x08, 11, 0x5a, 4, 0x08, 3, 0x10, 0]),
        Ok(Flow { consumer_id: 3, message_permits: 0 })
    );
    assert_eq!(
        decode_flow(&[0x08, 11, 0x5a, 8, 0x08, 3, 0x10, 0x80, 0x80, 0x80, 0x80, 0x08]),
        Ok(Flow { consumer_id: 3, message_permits: 1 << 31 })
    );
    assert_eq!(decode_flow(&[0x08, 11, 0x5a, 2, 0x08, 3]), Err(DecodeError::Missing("messagePermits")));
}

#[test]
fn ack_needs_whole_message_ids() {
    let good =
        decode_ack(&[0x08, 10, 0x52, 12, 0x08, 3, 0x10, 1, 0x1a, 4, 0x08, 7, 0x10, 8, 0x40, 5]).unwrap();
    assert_eq!((good.consumer_id, good.ack_type, good.request_id), (3, 1, Some(5)));
    assert_eq!((good.message_id[0].ledger_id, good.message_id[0].entry_id), (7, 8));
    let cases: [(&[u8], &str); 4] = [
        (&[0x08, 10, 0x52, 8, 0x08, 3, 0x10, 0, 0x1a, 2, 0x10, 8], "ledgerId"),
        (&[0x08, 10, 0x52, 8, 0x08, 3, 0x10, 0, 0x1a, 2, 0x08, 8], "entryId"),
        (&[0x08, 10, 0x52, 2, 0x10, 0], "consumer_id"),
        (&[0x08, 10, 0x52, 2, 0x08, 3], "ack_type"),
    ];
    for (command, missing) in cases {
        assert_eq!(decode_ack(command), Err(DecodeError::Missing(missing)), "{command:02x?}");
    }
    let garbage = decode_ack(&[0x08, 10, 0x52, 2, 0x08, 0xff]);
    assert_eq!(garbage.unwrap_err().code(), "bad-protobuf");
}

#[test]
fn any_command_needs_a_type() {
    let ping = decode_command(bytes(&[&[0x08, 18, 0x92, 0x01, 0]])).unwrap();
    assert_eq!((ping.r#type, ping.ping), (18, Some(Box::new(CommandPing {}))));
    assert_eq!(decode_command(bytes(&[&[0x92, 0x01, 0]])), Err(DecodeError::Missing("type")));
    assert_eq!(decode_command(bytes(&[&[0xff]])).unwrap_err().code(), "bad-protobuf");
}

/// What `write` appends after bytes that were there before.
fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::from(&b"x"[..]);
    write(&mut out);
    assert_eq!(out[0], b'x');
    out[1..].to_vec()
}

#[test]
fn ping_and_pong() {
    assert_eq!(written(ping), [0, 0, 0, 9, 0, 0, 0, 5, 0x08, 18, 0x92, 0x01, 0]);
    assert_eq!(written(pong), [0, 0, 0, 9, 0, 0, 0, 5, 0x08, 19, 0x9a, 0x01, 0]);
}

#[test]
fn receipts() {
    assert_eq!(
        written(|out| send_receipt(1, 2, Some(3), 4, 300, out)),
        [
            0, 0, 0, 21, 0, 0, 0, 17, 0x08, 7, 0x3a, 13, 0x08, 1, 0x10, 2, 0x1a, 5, 0x08, 4, 0x10, 0xac,
            0x02, 0x20, 3
        ]
    );
    let duplicate = written(|out| send_receipt(1, 2, None, u64::MAX, u64::MAX, out));
    assert_eq!(duplicate.len(), 8 + 4 + 4 + 2 + 22);
    assert_eq!(
        written(|out| ack_response(3, 4, out)),
        [0, 0, 0, 13, 0, 0, 0, 9, 0x08, 38, 0xb2, 0x02, 4, 0x08, 3, 0x30, 4]
    );
}

#[test]
fn a_message_header_counts_the_bytes_that_follow() {
    let header = MessageHeader {
        consumer_id: 1,
        ledger: 2,
        entry: 3,
        partition: -1,
        redelivery_count: 0,
        ack_set: &[],
        consumer_epoch: None,
    };
    let plain = written(|out| message_header(&header, 100, out));
    assert_eq!(plain, [0, 0, 0, 116, 0, 0, 0, 12, 0x08, 9, 0x4a, 8, 0x08, 1, 0x12, 4, 0x08, 2, 0x10, 3]);
    let full = MessageHeader {
        partition: 0,
        redelivery_count: 4,
        ack_set: &[5, 6],
        consumer_epoch: Some(7),
        ..header
    };
    let full = written(|out| message_header(&full, 0, out));
    let body = [0x08, 1, 0x12, 6, 0x08, 2, 0x10, 3, 0x18, 0, 0x18, 4, 0x20, 5, 0x20, 6, 0x28, 7];
    assert_eq!(full[8..], [&[0x08, 9, 0x4a, 18][..], &body].concat());
}

#[test]
fn a_whole_send_frame_comes_back() {
    let command = BaseCommand {
        r#type: Type::Send as i32,
        send: Some(Box::new(CommandSend { producer_id: 1, sequence_id: 2, ..CommandSend::default() })),
        ..BaseCommand::default()
    };
    let metadata = MessageMetadata { producer_name: "p".into(), ..MessageMetadata::default() };
    let mut out = BytesMut::new();
    encode_with_payload(&command, &metadata, b"payload", &mut out);
    let frame = next_frame(&mut out, FrameLimits::default()).unwrap().unwrap();
    assert!(out.is_empty(), "the total size must cover the payload");
    assert_eq!(decode_send(&frame.command).unwrap().sequence_id, 2);
    let parts = parse_payload(frame.rest).unwrap();
    assert!(parts.checksum().is_some());
    assert_eq!((parts.verify_checksum(), parts.payload()), (Ok(()), &b"payload"[..]));
}
