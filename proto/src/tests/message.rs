//! What follows the command: blocks, checksum, metadata, broker entry, batch; by hand-written bytes.

use bytes::{Bytes, BytesMut};

use super::bytes;
use crate::{
    batch::BatchIter,
    broker_entry::{BrokerEntry, MAX_ENCODED},
    checksum::crc32c,
    decode::DecodeError,
    frame::FrameError,
    metadata_view::MetadataView,
    payload::{encode_payload, parse_payload},
    pulsar::MessageMetadata,
};

/// Metadata size 3, metadata `abc`, payload `payload`.
const COVERED: &[u8] = b"\x00\x00\x00\x03abcpayload";
/// A broker entry block {timestamp 5, index 300}.
const ENTRY_BLOCK: &[u8] = &[0x0e, 0x02, 0, 0, 0, 5, 0x08, 5, 0x10, 0xac, 0x02];

fn checksum_block(crc: u32) -> Vec<u8> {
    [&[0x0e, 0x01][..], &crc.to_be_bytes()].concat()
}

#[test]
fn a_message_without_any_block_is_accepted() {
    let parts = parse_payload(bytes(&[COVERED])).unwrap();
    assert_eq!((parts.broker_entry(), parts.checksum()), (None, None));
    assert_eq!((parts.metadata(), parts.payload()), (&b"abc"[..], &b"payload"[..]));
    assert_eq!(parts.verify_checksum(), Ok(()));
}

#[test]
fn blocks_are_found_in_their_order_and_nothing_is_copied() {
    let rest = bytes(&[ENTRY_BLOCK, &checksum_block(crc32c(COVERED)), COVERED]);
    let start = rest.as_ptr() as usize;
    let parts = parse_payload(rest.clone()).unwrap();
    assert_eq!(parts.broker_entry(), Some(&ENTRY_BLOCK[6..]));
    assert_eq!(parts.checksum(), Some(crc32c(COVERED)));
    assert_eq!(parts.verify_checksum(), Ok(()));
    assert_eq!((&parts.metadata_bytes()[..], &parts.payload_bytes()[..]), (&b"abc"[..], &b"payload"[..]));
    assert_eq!(parts.payload_bytes().as_ptr() as usize, start + rest.len() - 7);
    assert_eq!(parts.entry(), &rest);
    assert_eq!(parts.without_broker_entry(), rest.slice(ENTRY_BLOCK.len()..));
}

#[test]
fn the_checksum_covers_metadata_size_to_end_and_not_the_broker_entry() {
    let good = [ENTRY_BLOCK, &checksum_block(crc32c(COVERED)), COVERED].concat();
    let covered_at = good.len() - COVERED.len();
    for at in [covered_at + 4, covered_at + 7, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let verdict = parse_payload(Bytes::from(bad)).unwrap().verify_checksum();
        assert!(matches!(verdict, Err(FrameError::ChecksumMismatch { .. })), "flip at {at}");
    }
    // The size itself is covered: move a byte from the payload to the metadata.
    let mut shifted = good.clone();
    shifted[covered_at + 3] = 4;
    assert!(parse_payload(Bytes::from(shifted)).unwrap().verify_checksum().is_err());
    let mut other_entry = good;
    other_entry[7] = 6;
    assert_eq!(parse_payload(Bytes::from(other_entry)).unwrap().verify_checksum(), Ok(()));
}

#[test]
fn a_cut_inside_any_size_or_block_is_an_error() {
    let good = [ENTRY_BLOCK, &checksum_block(1), COVERED].concat();
    let payload_at = good.len() - b"payload".len();
    for cut in 0..payload_at {
        let verdict = parse_payload(Bytes::copy_from_slice(&good[..cut]));
        assert!(matches!(verdict, Err(FrameError::PayloadTruncated { .. })), "cut at {cut}");
    }
    // From there on it is a shorter payload, which is legal.
    assert_eq!(parse_payload(Bytes::copy_from_slice(&good[..payload_at])).unwrap().payload(), b"");
}

#[test]
fn sizes_beyond_the_end_are_errors() {
    let huge = parse_payload(bytes(&[&[0xff, 0xff, 0xff, 0xff, 1, 2]]));
    assert_eq!(huge, Err(FrameError::PayloadTruncated { field: "metadata", needed: 0xffff_ffff, found: 2 }));
    let entry = parse_payload(bytes(&[&[0x0e, 0x02, 0xff, 0xff, 0xff, 0xff], COVERED]));
    assert!(matches!(entry, Err(FrameError::PayloadTruncated { field: "broker entry", .. })));
    // Blocks in the wrong order: the second mark reads as a metadata size of 234 MiB.
    let swapped = parse_payload(bytes(&[&checksum_block(1), ENTRY_BLOCK, COVERED]));
    assert!(matches!(swapped, Err(FrameError::PayloadTruncated { field: "metadata", .. })));
}

#[test]
fn an_encoded_payload_has_the_layout_of_the_protocol() {
    let metadata = MessageMetadata {
        producer_name: "p".into(),
        sequence_id: 7,
        publish_time: 9,
        ..MessageMetadata::default()
    };
    let mut out = BytesMut::from(&b"before"[..]);
    encode_payload(&metadata, b"xy", &mut out);
    let covered = [0, 0, 0, 7, 0x0a, 1, b'p', 0x10, 7, 0x18, 9, b'x', b'y'];
    assert_eq!(&out[..], [&b"before"[..], &checksum_block(crc32c(&covered)), &covered].concat());
}

#[test]
fn a_broker_entry_is_written_and_read() {
    let entry = BrokerEntry { broker_timestamp: Some(5), index: Some(300) };
    let mut out = BytesMut::new();
    entry.encode(&mut out);
    assert_eq!(&out[..], ENTRY_BLOCK);
    assert_eq!(BrokerEntry::decode(&ENTRY_BLOCK[6..]), Ok(entry));
    // An unknown field is skipped, an absent one stays absent.
    assert_eq!(
        BrokerEntry::decode(&[0x1a, 1, 0xff, 0x10, 0]),
        Ok(BrokerEntry { broker_timestamp: None, index: Some(0) })
    );
    assert_eq!(BrokerEntry::decode(&[0x0a, 0]), Err(DecodeError::WrongWireType(1)));
    assert_eq!(BrokerEntry::decode(&[0x08]), Err(DecodeError::Truncated));
    let mut largest = BytesMut::new();
    BrokerEntry { broker_timestamp: Some(u64::MAX), index: Some(u64::MAX) }.encode(&mut largest);
    assert_eq!(largest.len(), MAX_ENCODED);
}

#[test]
fn a_view_reads_the_fields_a_broker_needs() {
    let encoded = [
        &[0x0a, 1, b'p', 0x10, 7, 0x18, 9][..],
        &[0x22, 6, 0x0a, 1, b'k', 0x12, 1, b'v'], // a property, passed over
        &[0x32, 1, b'K', 0x88, 0x01, 1, 0x92, 0x01, 1, 0xff], // partition key, base64 flag, ordering key
        &[0x58, 1],                               // a batch of one
        &[0x6a, 0, 0x6a, 0],                      // two encryption keys
        &[0x98, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], // deliver at -1
        &[0xd2, 0x01, 1, b'u', 0xd8, 0x01, 3, 0xe8, 0x01, 2], // uuid, three chunks, chunk 2
    ]
    .concat();
    let view = MetadataView::parse(&encoded).unwrap();
    assert_eq!((view.producer_name, view.sequence_id, view.publish_time), ("p", 7, 9));
    assert_eq!((view.partition_key, view.partition_key_b64_encoded), (Some("K"), true));
    assert_eq!(view.ordering_key, Some(&[0xff][..]));
    assert_eq!((view.num_messages_in_batch, view.is_batch()), (Some(1), true));
    assert_eq!((view.encryption_keys, view.deliver_at_time), (2, Some(-1)));
    assert_eq!((view.uuid, view.num_chunks_from_msg, view.chunk_id), (Some("u"), Some(3), Some(2)));
    assert!(view.is_chunk() && !view.is_marker());
}

#[test]
fn a_payload_bounds_how_many_messages_it_can_hold() {
    let batch = MetadataView { num_messages_in_batch: Some(1 << 30), ..MetadataView::default() };
    assert_eq!(MetadataView::default().members_max(1 << 20), 1, "no batch, one message");
    assert_eq!((batch.members_max(0), batch.members_max(17), batch.members_max(18)), (1, 2, 3));
    // Empty members are the smallest there are, and they fit.
    let empty: Vec<u8> = (0..1000).flat_map(|_| member(b"")).collect();
    assert_eq!(batch.members_max(empty.len()), 1000);
    let packed = MetadataView { compression: 3, uncompressed_size: 60_000, ..batch };
    assert_eq!(packed.members_max(100), 10_000, "as far as the announced size goes");
    let bomb = MetadataView { uncompressed_size: u32::MAX, ..packed };
    assert_eq!(bomb.members_max(100), (100 << 15) / 6, "and no further than compression does");
}

#[test]
fn absence_and_zero_differ_where_it_matters() {
    let required = [0x0a, 1, b'p', 0x10, 7, 0x18, 9];
    let plain = MetadataView::parse(&required).unwrap();
    assert!(!plain.is_batch() && !plain.is_chunk() && !plain.is_marker());
    assert_eq!((plain.deliver_at_time, plain.ordering_key, plain.partition_key), (None, None, None));
    let zeros = [&required[..], &[0x58, 0, 0xa0, 0x01, 0, 0x98, 0x01, 0, 0x32, 0]].concat();
    let zeros = MetadataView::parse(&zeros).unwrap();
    assert!(zeros.is_batch() && zeros.is_marker());
    assert_eq!((zeros.deliver_at_time, zeros.partition_key), (Some(0), Some("")));
}

#[test]
fn malformed_metadata_is_refused() {
    let required = [0x0a, 1, b'p', 0x10, 7, 0x18, 9];
    for (missing, cut) in [("producer_name", 3..7), ("publish_time", 0..5)] {
        assert_eq!(MetadataView::parse(&required[cut]), Err(DecodeError::Missing(missing)));
    }
    assert_eq!(MetadataView::parse(&[0x0a, 1, b'p', 0x18, 9]), Err(DecodeError::Missing("sequence_id")));
    assert_eq!(MetadataView::parse(&[0x0a, 1, 0xff]), Err(DecodeError::NotUtf8(1)));
    assert_eq!(MetadataView::parse(&[0x0a, 9, b'p']), Err(DecodeError::Truncated));
    assert_eq!(MetadataView::parse(&[0x12, 0]), Err(DecodeError::WrongWireType(2)));
    assert_eq!(MetadataView::parse(b""), Err(DecodeError::Missing("producer_name")));
}

/// A member whose header is {payload_size n} for a payload of `payload`.
fn member(payload: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 2, 0x18, payload.len() as u8], payload].concat()
}

#[test]
fn a_batch_gives_its_members_and_ignores_what_follows() {
    let batch = bytes(&[&member(b"one"), &member(b""), &member(b"three"), b"trailing"]);
    let start = batch.as_ptr() as usize;
    let members: Vec<_> = BatchIter::new(batch, 3).collect::<Result<_, _>>().unwrap();
    let payloads: Vec<_> = members.iter().map(|m| &m.payload[..]).collect();
    assert_eq!(payloads, [&b"one"[..], b"", b"three"]);
    assert_eq!(members[0].payload.as_ptr() as usize, start + 6);
    assert_eq!(members[2].metadata.payload_size, 5);
}

#[test]
fn a_broken_batch_ends_with_one_error() {
    let cases: [(Vec<u8>, DecodeError); 6] = [
        (vec![], DecodeError::Truncated),
        (vec![0, 0, 0], DecodeError::Truncated),
        (vec![0, 0, 0, 3, 0x18, 0], DecodeError::BadSize("single message metadata size")),
        (vec![0, 0, 0, 2, 0x18, 2, b'x'], DecodeError::BadSize("payload_size")),
        (
            [&[0, 0, 0, 11, 0x18][..], &[0xff; 9], &[1]].concat(), // payload size -1
            DecodeError::BadSize("payload_size"),
        ),
        (vec![0, 0, 0, 2, 0x48, 1, b'x'], DecodeError::Missing("payload_size")),
    ];
    for (tail, expected) in cases {
        let mut members = BatchIter::new(bytes(&[&member(b"ok"), &tail]), i32::MAX);
        assert_eq!(&members.next().unwrap().unwrap().payload[..], b"ok");
        assert_eq!(members.next(), Some(Err(expected)), "{tail:?}");
        assert_eq!(members.next(), None);
    }
    assert_eq!(BatchIter::new(bytes(&[&member(b"ok")]), -1).next(), None);
}
