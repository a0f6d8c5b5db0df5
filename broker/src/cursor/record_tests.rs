//! Golden bytes, round trips, damage.

use super::*;
use crate::cursor::log_state::{Cursors, Replay};
use geminga_common::ids::{EntryId, LedgerId};
use proptest::prelude::*;

fn at(ledger: u64, entry: u64) -> Position {
    Position::new(LedgerId(ledger), EntryId(entry))
}

fn cursor(id: u64, acked: Acked) -> Cursor {
    let image = CursorImage {
        acked,
        ack_properties: vec![("k".into(), 300)],
        properties: [("a".to_owned(), "b".to_owned())].into(),
        created_ms: 1,
        replicated: true,
    };
    let subscription = SubscriptionName::parse(&format!("s{id}")).unwrap();
    Cursor { id: CursorId(id), topic: TopicId(7), subscription, image }
}

fn some_acked() -> Acked {
    let mut acked = Acked::below(at(3, 4));
    for e in [5, 6, 9] {
        acked.holes.insert(at(3, e));
    }
    acked.batches.insert(at(3, 7), Batch { size: 3, remaining: [0b101].into() });
    acked
}

fn pack(records: &[Record]) -> Vec<Bytes> {
    let mut packer = Packer::default();
    records.iter().for_each(|record| packer.push(record));
    packer.finish()
}

fn all() -> Vec<Record> {
    let acked = some_acked();
    let delta = Delta {
        floor: acked.floor,
        holes: acked.holes.clone(),
        batches: acked.batches.clone().into_iter().collect(),
        ack_properties: Some(vec![("k".into(), 1)]),
    };
    vec![
        Record::SnapshotBegin,
        Record::State(Box::new(cursor(0, Acked::below(at(0, 0))))),
        Record::SnapshotEnd(1),
        Record::Create(Box::new(cursor(1, acked.clone()))),
        Record::Delta(CursorId(1), delta),
        Record::Reset(CursorId(1), Acked::below(at(1, 0))),
        Record::Properties(CursorId(1), Properties::new()),
        Record::Delete(CursorId(0)),
        Record::DeleteTopic(TopicId(7)),
    ]
}

#[test]
fn golden_bytes() {
    let entries = pack(&all());
    let hex: String = entries.iter().flat_map(|e| e.iter()).map(|b| format!("{b:02x}")).collect();
    let expected = concat!(
        "01",
        "0700",
        "0815",
        "00",
        "07",
        "027330",
        "01",
        "01",
        "0101610162",
        "01016bac02",
        "0000",
        "00",
        "00",
        "090101",
        "0128",
        "01",
        "07",
        "027331",
        "01",
        "01",
        "0101610162",
        "01016bac02",
        "0304",
        "01",
        "03",
        "00",
        "04",
        "05020201",
        "01",
        "0307",
        "03",
        "01",
        "0500000000000000",
        "021d",
        "01",
        "0304",
        "01",
        "03",
        "00",
        "04",
        "05020201",
        "01",
        "0307",
        "03",
        "01",
        "0500000000000000",
        "0101016b01",
        "0305",
        "01",
        "0100",
        "00",
        "00",
        "0602",
        "01",
        "00",
        "040100",
        "050107",
    );
    assert_eq!(hex, expected);
    assert_eq!(decode(&entries[0]).unwrap(), all());
}

#[test]
fn dense_alternation_is_a_golden_bitmap() {
    let mut acked = Acked::below(at(1, 0));
    for e in 0..40 {
        acked.holes.insert(at(1, 2 * e + 1));
    }
    let entries = pack(&[Record::Reset(CursorId(0), acked.clone())]);
    // Pairs would take 80 bytes; a roaring array of 40 takes 16 + 80, so pairs win; a run of 5000 alternating ids does not.
    assert_eq!(entries[0][0..9], [1, 3, 88, 0, 1, 0, 1, 1, 0]);
    for e in 0..5000 {
        acked.holes.insert(at(1, 2 * e + 1));
    }
    let entries = pack(&[Record::Reset(CursorId(0), acked.clone())]);
    assert_eq!(entries[0][8..11], [1, 1, 0x90], "form 1, bitmap of 8 KiB + 16");
    assert_eq!(decode(&entries[0]).unwrap(), [Record::Reset(CursorId(0), acked)]);
}

#[test]
fn newer_versions_and_unknown_kinds_are_refused() {
    assert_eq!(decode(&[2]), Err(DecodeError::Version(2)));
    assert_eq!(decode(&[1, 10, 0]), Err(DecodeError::Kind(10)));
    assert!(decode(&[]).is_err() && decode(&[1, 4, 2, 0, 0]).is_err() && decode(&[1, 4, 9, 0]).is_err());
}

#[test]
fn huge_cursors_are_cut_and_come_back_whole() {
    let mut acked = Acked::below(at(1, 0));
    for ledger in 1..4 {
        // Worst case of a bitmap: every other id, over 8 million.
        let bitmap = (0..1_500_000_u32).map(|n| n * 5 + 1).collect();
        acked.holes.add(LedgerId(ledger), bitmap);
    }
    for e in 0..40 {
        acked.batches.insert(at(9, e), Batch { size: 1 << 19, remaining: vec![u64::MAX; 1 << 13].into() });
    }
    let whole = cursor(0, acked.clone());
    for make in [Record::Create, Record::State] {
        let mut records = vec![make(Box::new(whole.clone()))];
        if matches!(records[0], Record::State(_)) {
            records.insert(0, Record::SnapshotBegin);
            records.push(Record::SnapshotEnd(1));
        }
        let entries = pack(&records);
        assert!(entries.len() > 3 && entries.iter().all(|entry| entry.len() <= ENTRY_MAX));
        let mut replay = Replay::default();
        entries.iter().for_each(|entry| replay.entry(entry).unwrap());
        let mut expected = Cursors::default();
        expected.apply(&Record::Create(Box::new(whole.clone()))).unwrap();
        assert!(replay.finish() == expected);
    }
    let (holes, batches) = (acked.holes.clone(), acked.batches.clone().into_iter().collect());
    let delta = Delta { floor: at(1, 0), holes, batches, ack_properties: Some(vec![("x".into(), 1)]) };
    let mut cursors = Cursors::default();
    let start = Acked::below(at(0, 0));
    cursors.apply(&Record::Create(Box::new(cursor(0, start)))).unwrap();
    for entry in pack(&[Record::Delta(CursorId(0), delta)]) {
        decode(&entry).unwrap().iter().for_each(|record| cursors.apply(record).unwrap());
    }
    let image = &cursors.of_topic(TopicId(7))[0].2;
    assert!(image.acked == acked);
    assert_eq!(image.ack_properties, [("x".to_owned(), 1)]);
}

#[test]
fn a_snapshot_counts_only_when_it_is_whole() {
    let entries = pack(&[Record::Create(Box::new(cursor(0, some_acked())))]);
    let part = [Record::SnapshotBegin, Record::State(Box::new(cursor(0, some_acked())))];
    let mut replay = Replay::default();
    entries.iter().for_each(|entry| replay.entry(entry).unwrap());
    replay.begin_ledger();
    pack(&part).iter().for_each(|entry| replay.entry(entry).unwrap());
    replay.begin_ledger();
    pack(&[Record::SnapshotBegin, Record::SnapshotEnd(0)]).iter().for_each(|e| replay.entry(e).unwrap());
    let cursors = replay.finish();
    assert!(cursors.is_empty());
    assert_eq!(cursors.free_id(), CursorId(1), "ids are not given away twice");
    let mut replay = Replay::default();
    pack(&part).iter().for_each(|entry| replay.entry(entry).unwrap());
    assert!(replay.finish().is_empty());
    let wrong = pack(&[Record::SnapshotBegin, Record::SnapshotEnd(1)]);
    assert!(Replay::default().entry(&wrong[0]).is_err());
    assert!(Replay::default().entry(&pack(&[Record::Delete(CursorId(4))])[0]).is_err());
}

proptest! {
    #[test]
    fn holes_round_trip(
        entries in prop::collection::btree_set((1..4_u64, prop_oneof![0..300_u64, 65_500..65_600_u64]), 0..400),
        run in 0..200_000_u64,
    ) {
        let mut acked = Acked::below(at(1, 0));
        for (l, e) in &entries {
            acked.holes.insert(at(*l, *e));
        }
        for e in 0..run {
            acked.holes.insert(at(8, e + 3));
        }
        let record = Record::Reset(CursorId(1), acked);
        prop_assert_eq!(decode(&pack(std::slice::from_ref(&record))[0]).unwrap(), [record]);
    }

    #[test]
    fn damage_never_panics(flips in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4), cut in any::<usize>()) {
        let mut bytes = pack(&all())[0].to_vec();
        for (at, flip) in flips {
            let at = at % bytes.len();
            bytes[at] ^= flip;
        }
        bytes.truncate(cut % (bytes.len() + 1));
        let _either = decode(&bytes);
    }
}
