//! Golden bytes of every format. A change here is a change of format: it needs a new version, and the old bytes stay readable.

use super::identity::{Format, FormatError, Identity};
use super::journal::{self, BatchHead, Owner, Record};
use super::row::LedgerRow;
use super::segment::{self, Block, Footer, OpenBlock, Run};
use crate::manifest::{decode_segment, encode_segment};
use crate::segments::SegmentRow;
use bytes::Bytes;
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::record::{LedgerAttributes, LedgerKind};
use geminga_common::ids::{EntryId, Incarnation, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId};
use std::sync::Arc;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn entry(ledger: u64, id: u64, payload: &[u8]) -> Entry {
    let header = Header {
        kind: Kind::Messages,
        messages: 2,
        first_index: MessageIndex(3),
        timestamp_ms: 4,
        bytes_before: 0,
    };
    Entry::new(LedgerId(ledger), EntryId(id), header, Bytes::copy_from_slice(payload))
}

fn attributes() -> LedgerAttributes {
    LedgerAttributes {
        kind: LedgerKind::TopicData,
        owner: "p/n/t".to_owned(),
        topic: TopicId(1),
        ordinal: 2,
        predecessor: Some(LedgerId(3)),
        owner_epoch: OwnerEpoch(4),
        first_index: MessageIndex(5),
    }
}

fn records() -> Vec<Record> {
    vec![
        Record::Add { ledger: LedgerId(1), entry: entry(1, 0, b"ab") },
        Record::Term { ledger: LedgerId(1), term: Term(2) },
        Record::Hint { ledger: LedgerId(1), lac: Some(EntryId(0)), lafr: None },
        Record::Delete { ledger: LedgerId(2) },
        Record::Seal { ledger: LedgerId(1), last: Some(EntryId(0)) },
        Record::Attributes { ledger: LedgerId(1), attributes: Arc::new(attributes()) },
        Record::ReplayStopped { seq: 9 },
        Record::Idle,
        Record::Watermark { to: LedgerId(10) },
    ]
}

fn batch() -> (Vec<u8>, usize) {
    let records = records();
    let len = records.iter().map(Record::len).sum();
    let mut out = vec![0xEE; 8192];
    let head = BatchHead { generation: 7, seq: 8, durable: 6 };
    let total = journal::encode_batch(&mut out, 0x1122, head, &records, len);
    out.truncate(total);
    (out, journal::BATCH_HEADER + len)
}

fn block() -> Vec<u8> {
    let mut out = vec![0xEE; 3];
    let mut block = OpenBlock::begin(&mut out);
    block.push(&mut out, LedgerId(1), &entry(1, 0, b"ab"));
    block.push(&mut out, LedgerId(2), &entry(2, 5, b""));
    block.finish(&mut out, 9, 4096);
    out.split_off(3)
}

fn footer() -> Footer {
    Footer {
        runs: vec![
            Run { ledger: LedgerId(1), first: 0, count: 1 },
            Run { ledger: LedgerId(2), first: 5, count: 1 },
        ],
        blocks: vec![Block { offset: 4096, len: 130, ledger: LedgerId(1), first: 0 }],
    }
}

const OWNER: Owner = Owner { store: 0x1122, shard: 2, shards: 3 };

fn segment_row() -> SegmentRow {
    let ledgers = LedgerId(5)..=LedgerId(6);
    SegmentRow { id: 9, len: 1000, footer: 88, ledgers, live: 800, punch_due: true, small: true }
}

fn golden() -> Vec<(&'static str, Vec<u8>)> {
    let (batch, end) = batch();
    let (store, cluster) = (0x1122, "c".to_owned());
    let format = Format { store, cluster, shards: 3, data_dirs: 2, journal_dirs: 1 };
    let (incarnation, data_loss, journaled, shard) = (Incarnation(3), true, true, 2);
    let identity = Identity { store, incarnation, boot: 4, data_loss, journaled, shard };
    let row = LedgerRow {
        term: Term(2),
        tombstone: false,
        sealed: Some(None),
        lac: Some(EntryId(1)),
        lafr: None,
        flushed: Some(EntryId(7)),
        attributes: Some(Arc::new(attributes())),
    };
    vec![
        ("FORMAT", format.encode()),
        ("IDENTITY", identity.encode()),
        ("journal header", journal::encode_header(OWNER, 7).to_vec()),
        ("journal batch", batch[..end].to_vec()),
        ("segment block", block()),
        ("segment footer", footer().encode(9)),
        ("ledger row", row.encode()),
        ("segment row", encode_segment(&segment_row())),
    ]
}

#[test]
fn every_format_keeps_its_bytes() {
    let lines: Vec<String> = golden().iter().map(|(name, bytes)| format!("{name}: {}", hex(bytes))).collect();
    let known: Vec<&str> = include_str!("golden.txt").lines().collect();
    assert_eq!(lines, known, "formats have changed:\n{}", lines.join("\n"));
}

#[test]
fn what_is_written_is_read_back() {
    let (bytes, end) = batch();
    let found = journal::decode_batch(&bytes, 0x1122, 7).unwrap();
    assert_eq!(found.head, BatchHead { generation: 7, seq: 8, durable: 6 });
    let body = Bytes::copy_from_slice(&bytes[journal::BATCH_HEADER..end]);
    assert_eq!(journal::decode_records(&body, found.count).unwrap(), records());
    let block = Bytes::from(block());
    let entries: Vec<_> = segment::open_block(&block, 9, 4096).unwrap().map(Option::unwrap).collect();
    assert_eq!(entries, [(LedgerId(1), entry(1, 0, b"ab")), (LedgerId(2), entry(2, 5, b""))]);
    assert_eq!(Footer::decode(&footer().encode(9), 9), Some(footer()));
    for (name, bytes) in golden() {
        match name {
            "FORMAT" => assert_eq!(Format::decode(&bytes).unwrap().encode(), bytes),
            "IDENTITY" => assert_eq!(Identity::decode(&bytes).unwrap().encode(), bytes),
            "ledger row" => assert_eq!(LedgerRow::decode(&bytes).unwrap().encode(), bytes),
            _ => {}
        }
    }
}

#[test]
fn no_flipped_bit_passes() {
    let (batch, end) = batch();
    for (name, bytes) in golden() {
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            let passes = match name {
                "FORMAT" => Format::decode(&bad).is_ok(),
                "IDENTITY" => Identity::decode(&bad).is_some(),
                "journal header" => journal::decode_header(&bad, OWNER).is_some_and(|g| g == 7),
                "journal batch" => {
                    let mut whole = batch.clone();
                    whole[..end].copy_from_slice(&bad);
                    journal::decode_batch(&whole, 0x1122, 7).is_some()
                }
                "segment block" => segment::open_block(&Bytes::from(bad), 9, 4096).is_some(),
                "segment footer" => Footer::decode(&bad, 9).is_some(),
                _ => false,
            };
            assert!(!passes, "{name}: flipped bit {at} passes");
        }
    }
    // Neither does a block in a wrong place, a batch of another store, or an older generation.
    assert!(segment::open_block(&Bytes::from(block()), 9, 8192).is_none());
    assert!(journal::decode_batch(&batch, 0x1123, 7).is_none());
    assert!(journal::decode_batch(&batch, 0x1122, 6).is_none());
}

#[test]
fn a_footer_in_disorder_is_refused_although_its_checksum_holds() {
    let refused = |change: fn(&mut Footer)| {
        let mut footer = footer();
        footer.blocks.push(Block { offset: 4226, len: 10, ledger: LedgerId(2), first: 5 });
        assert_eq!(Footer::decode(&footer.encode(9), 9).as_ref(), Some(&footer));
        change(&mut footer);
        Footer::decode(&footer.encode(9), 9).is_none()
    };
    assert!(refused(|f| f.runs.swap(0, 1)));
    assert!(refused(|f| f.runs[1] = f.runs[0]));
    assert!(refused(|f| f.runs[0].count = 0));
    assert!(refused(|f| f.runs[1].first = u64::MAX));
    assert!(refused(|f| f.blocks[1].offset = 0));
    assert!(refused(|f| f.blocks[0].len = u64::MAX));
    assert!(refused(|f| f.blocks[0].ledger = LedgerId(3)));
}

#[test]
fn a_newer_format_is_recognised_whatever_follows() {
    let mut newer =
        Format { store: 1, cluster: "c".to_owned(), shards: 1, data_dirs: 1, journal_dirs: 0 }.encode();
    newer[8] = 3;
    newer.truncate(13);
    assert_eq!(Format::decode(&newer), Err(FormatError::Newer(3)));
}

/// What the first version wrote stays readable.
#[test]
fn the_first_version_is_read() {
    let bytes = |name: &str| -> Vec<u8> {
        let line = include_str!("golden.v1.txt").lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let hex = line.trim_start_matches(": ");
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    let format = Format::decode(&bytes("FORMAT")).unwrap();
    let layout = (format.store, &*format.cluster, format.shards, format.data_dirs, format.journal_dirs);
    assert_eq!(layout, (0x1122, "c", 1, 1, 0));
    let identity = Identity::decode(&bytes("IDENTITY")).unwrap();
    assert_eq!((identity.incarnation, identity.boot, identity.shard), (Incarnation(3), 4, 0));
    assert!(identity.data_loss && !identity.journaled);
    let one = Owner { store: 0x1122, shard: 0, shards: 1 };
    assert_eq!(journal::decode_header(&bytes("journal header"), one), Some(7));
    let row = decode_segment(9, &encode_segment(&segment_row())[..32]).unwrap();
    assert_eq!(row, SegmentRow { live: 912, punch_due: false, small: false, ..segment_row() });
    assert_eq!(decode_segment(9, &encode_segment(&segment_row())), Some(segment_row()));
}

#[test]
fn checksums_of_long_payloads_are_those_of_their_bytes() {
    // Sums of long payloads are reckoned from those of their entries, of short ones they are taken: both kinds, in every order.
    let lens = [0, 9000, 5, 8 << 10, 200_000, (8 << 10) - 1, 70_000];
    let payload = |n: usize| (0..n).map(|i| (i * i / 3) as u8).collect::<Vec<_>>();
    let entries: Vec<Entry> = lens.iter().zip(0..).map(|(n, id)| entry(7, id, &payload(*n))).collect();
    let records: Vec<Record> =
        entries.iter().map(|e| Record::Add { ledger: LedgerId(7), entry: e.clone() }).collect();
    let len = records.iter().map(Record::len).sum();
    let mut out = vec![0xEE; journal::batch_len(len)];
    let head = BatchHead { generation: 7, seq: 8, durable: 6 };
    journal::encode_batch(&mut out, 0x1122, head, &records, len);
    let found = journal::decode_batch(&out, 0x1122, 7).expect("sound");
    let body = Bytes::copy_from_slice(&out[journal::BATCH_HEADER..journal::BATCH_HEADER + len]);
    assert_eq!(journal::decode_records(&body, found.count), Some(records));
    let mut out = vec![0xEE; 3];
    let mut block = OpenBlock::begin(&mut out);
    entries.iter().for_each(|e| block.push(&mut out, LedgerId(7), e));
    block.finish(&mut out, 9, 4096);
    let read = segment::open_block(&Bytes::from(out.split_off(3)), 9, 4096).expect("sound");
    assert_eq!(read.map(|e| e.expect("parses").1).collect::<Vec<_>>(), entries);
}

#[test]
fn the_highest_number_is_no_id() {
    for (id, read) in [(u64::MAX - 1, true), (u64::MAX, false)] {
        let record = Record::Add { ledger: LedgerId(7), entry: entry(7, id, b"x") };
        let mut out = vec![0; journal::batch_len(record.len())];
        let head = BatchHead { generation: 7, seq: 8, durable: 6 };
        journal::encode_batch(&mut out, 0x1122, head, std::slice::from_ref(&record), record.len());
        let body = Bytes::copy_from_slice(&out[journal::BATCH_HEADER..journal::BATCH_HEADER + record.len()]);
        assert_eq!(journal::decode_records(&body, 1).is_some(), read, "{id}");
    }
}

#[test]
fn a_payload_that_changed_after_its_check_is_not_sealed_as_good() {
    let mut bad = entry(7, 0, &[3; 9000]);
    bad.payload = vec![4; 9000].into();
    let mut out = Vec::new();
    let mut block = OpenBlock::begin(&mut out);
    block.push(&mut out, LedgerId(7), &bad);
    block.finish(&mut out, 9, 4096);
    assert!(segment::open_block(&Bytes::from(out), 9, 4096).is_none());
}
