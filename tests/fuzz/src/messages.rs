//! What follows the command of SEND and MESSAGE: parts, metadata, batches, compressed payloads.
//!
//! Held to: the metadata view agrees with the generated decoder wherever that accepts, and misses a required field at worst;
//! a batch that was written is read back; showing an entry (which unfolds its payload) allocates no more than the claim allows
//! and never more in proportion than the best compression there is could need.

use crate::alloc::bounded;
use arbitrary::Unstructured;
use bytes::{BufMut as _, Bytes, BytesMut};
use geminga_broker::rest::fuzz::show;
use geminga_proto::batch::BatchIter;
use geminga_proto::broker_entry::BrokerEntry;
use geminga_proto::decode::DecodeError;
use geminga_proto::metadata_view::MetadataView;
use geminga_proto::payload::{encode_payload, parse_payload};
use geminga_proto::pulsar::{BrokerEntryMetadata, MessageMetadata, SingleMessageMetadata};
use geminga_proto::test_support::assert_view;
use prost::Message as _;

/// Largest payload that may come out of an entry, and the doubling of a vector that grows towards it.
const UNFOLDED: usize = 129 << 20;

/// Runs the target. The first byte chooses what the rest is.
pub fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    bounded((64 << 10) + 256 * data.len(), || match kind % 6 {
        0 => metadata(rest),
        1 => batch(rest),
        2 => whole(rest),
        3 => broker_entry(rest),
        _ => {}
    });
    match kind % 6 {
        4 => compressed(rest),
        5 => {
            bounded(UNFOLDED, || show(Bytes::copy_from_slice(rest)));
        }
        _ => {}
    }
}

fn metadata(bytes: &[u8]) {
    match (MetadataView::parse(bytes), MessageMetadata::decode(bytes)) {
        (Ok(view), Ok(full)) => assert_view(&view, &full),
        (Err(DecodeError::Missing(_)) | Ok(_), _) | (Err(_), Err(_)) => {}
        (Err(refused), Ok(full)) => panic!("the view refuses ({refused}) what is {full:?}"),
    }
}

fn broker_entry(bytes: &[u8]) {
    match (BrokerEntry::decode(bytes), BrokerEntryMetadata::decode(bytes)) {
        (Ok(ours), Ok(full)) => {
            assert_eq!((ours.broker_timestamp, ours.index), (full.broker_timestamp, full.index));
        }
        (Err(refused), Ok(full)) => panic!("refused ({refused}): {full:?}"),
        (_, Err(_)) => {}
    }
}

/// Any bytes as a batch, then members taken from the bytes, written and read back.
fn batch(bytes: &[u8]) {
    let (count, body) =
        bytes.split_first_chunk::<4>().map_or((1, bytes), |(n, rest)| (i32::from_le_bytes(*n), rest));
    let body = Bytes::copy_from_slice(body);
    let read: usize = BatchIter::new(body.clone(), count).flatten().map(|m| 4 + m.payload.len()).sum();
    assert!(read <= body.len());
    let mut u = Unstructured::new(bytes);
    let mut members = Vec::new();
    while let Ok(payload) = u.arbitrary::<Vec<u8>>()
        && members.len() < 16
        && !u.is_empty()
    {
        let metadata = SingleMessageMetadata {
            payload_size: payload.len() as i32,
            partition_key: u.arbitrary().unwrap_or_default(),
            event_time: u.arbitrary().unwrap_or_default(),
            compacted_out: u.arbitrary().unwrap_or_default(),
            ..SingleMessageMetadata::default()
        };
        members.push((metadata, payload));
    }
    let mut out = BytesMut::new();
    for (metadata, payload) in &members {
        out.put_u32(metadata.encoded_len() as u32);
        metadata.encode(&mut out).expect("a buffer grows");
        out.put_slice(payload);
    }
    let read: Vec<_> = BatchIter::new(out.freeze(), members.len() as i32).map(Result::unwrap).collect();
    assert_eq!(read.len(), members.len());
    for (read, (metadata, payload)) in read.iter().zip(&members) {
        assert_eq!((&read.metadata, &read.payload[..]), (metadata, &payload[..]));
    }
}

/// Parts that were found lie where they say, and what is written from them is found again.
fn whole(bytes: &[u8]) {
    let Ok(parts) = parse_payload(Bytes::copy_from_slice(bytes)) else { return };
    let sound = parts.verify_checksum().is_ok();
    assert_eq!(parts.entry(), bytes);
    assert!(bytes.ends_with(parts.payload()) && parts.metadata_bytes() == parts.metadata());
    metadata(parts.metadata());
    if let Ok(full) = MessageMetadata::decode(parts.metadata()) {
        let mut out = BytesMut::new();
        encode_payload(&full, parts.payload(), &mut out);
        let again = parse_payload(out.freeze()).expect("what was written parses");
        assert_eq!(again.verify_checksum(), Ok(()));
        assert_eq!(again.payload(), parts.payload());
        assert_eq!(
            MessageMetadata::decode(again.metadata()).expect("it was written").encode_to_vec(),
            full.encode_to_vec()
        );
    }
    assert!(sound || parts.checksum().is_some(), "without a checksum nothing can mismatch");
}

/// A sound entry whose payload claims a compression and a size, both from the input.
fn compressed(bytes: &[u8]) {
    let Some((&[kind, size @ ..], payload)) = bytes.split_first_chunk::<5>() else { return };
    let metadata = MessageMetadata {
        compression: Some(i32::from(kind % 6)),
        uncompressed_size: Some(u32::from_le_bytes(size)),
        ..MessageMetadata::default()
    };
    let mut out = BytesMut::new();
    encode_payload(&metadata, payload, &mut out);
    // LZ4 gives 255 bytes for one at best, deflate 1032, zstd and snappy are checked against the claim while they unfold.
    let fair = match kind % 6 {
        1 | 4 => (64 << 10) + payload.len() * 300,
        2 => (128 << 10) + payload.len() * 2200,
        _ => UNFOLDED,
    };
    bounded(fair.min(UNFOLDED), || show(out.freeze()));
}
