//! Records in metadata and in logs.
//!
//! Held to: no panic, allocation in proportion to the bytes, and what was read can be written and read again to the same value.

use crate::alloc::bounded;
use geminga_bookie_client::entry::{HEADER_LEN, Header};
use geminga_bookie_client::record::{ClosedLedger, LedgerAttributes, LedgerRecord};
use geminga_broker::cursor::record::{self as cursor, Record};
use geminga_broker::managed_ledger::record as topic;
use geminga_broker::namespace::{self, Partitioned, Policies, Tenant, TopicRecord};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Kinds of record; the first byte of the input chooses one.
pub const KINDS: u8 = 12;

/// What a set of entries may take: a run of 2^32 ids, ten bytes in a record, takes a container per 65 536 of them in memory. The
/// record cannot say less and a cursor can have them, so there is no limit to set; a short input keeps the sum small.
const HOLES: usize = 64 << 20;
const HOLES_INPUT: usize = 512;

/// Runs the target.
pub fn run(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else { return };
    let limit = if kind % KINDS == 4 { HOLES } else { (64 << 10) + 512 * data.len() };
    bounded(limit, || match kind % KINDS {
        0 => same(bytes, |b| LedgerRecord::decode(b).ok(), |r| r.encode().to_vec()),
        1 => same(bytes, |b| ClosedLedger::decode(b).ok(), |r| r.encode().to_vec()),
        2 => same(bytes, |b| LedgerAttributes::decode(b).ok(), |r| r.encode().to_vec()),
        3 => header(bytes),
        4 => cursor_log(&bytes[..bytes.len().min(HOLES_INPUT)]),
        5 => topic_record(bytes),
        6 => {
            let _either = topic::decode_tombstone(bytes);
        }
        7 => same(bytes, |b| topic::decode_counter(b).ok(), |n| topic::encode_counter(*n).to_vec()),
        8 => json::<Tenant>(bytes),
        9 => json::<Policies>(bytes),
        10 => json::<TopicRecord>(bytes),
        _ => json::<Partitioned>(bytes),
    });
}

fn same<T: PartialEq + Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Option<T>,
    encode: impl Fn(&T) -> Vec<u8>,
) {
    if let Some(value) = decode(bytes) {
        assert_eq!(decode(&encode(&value)).as_ref(), Some(&value));
    }
}

fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    same(bytes, |b| namespace::decode::<T>(b).ok(), |r| namespace::encode(r).to_vec());
}

fn header(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else { return };
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(
            &header.encode(),
            bytes,
            "an entry's checksum covers its header: it must be the same again"
        );
    }
}

fn topic_record(bytes: &[u8]) {
    if let Ok((state, op_id)) = topic::decode(bytes) {
        let written = topic::encode(&state, op_id);
        let (again, same_op) = topic::decode(&written).expect("what was written is read");
        assert_eq!((topic::encode(&again, op_id), same_op), (written, op_id));
    }
}

fn cursor_log(bytes: &[u8]) {
    let Ok(records) = cursor::decode(bytes) else { return };
    // What is near the limit of an entry is cut into several records, which are not those that were read.
    let holes = |record: &Record| match record {
        Record::Create(cursor) | Record::State(cursor) => cursor.image.acked.holes.len(),
        Record::Reset(_, acked) => acked.holes.len(),
        Record::Delta(_, delta) => delta.holes.len(),
        _ => 0,
    };
    if records.iter().map(holes).any(|count| count > 100_000) {
        return;
    }
    let mut packer = cursor::Packer::default();
    records.iter().for_each(|record| packer.push(record));
    let entries = packer.finish();
    let again: Vec<_> =
        entries.iter().flat_map(|entry| cursor::decode(entry).expect("what was packed is read")).collect();
    assert_eq!(again, records);
}
