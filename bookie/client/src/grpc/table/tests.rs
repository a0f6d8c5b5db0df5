//! Tables: golden bytes, round trips, and whatever a peer may send.

use super::*;
use crate::entry::Kind;
use crate::record::LedgerKind;
use geminga_common::ids::{MessageIndex, OwnerEpoch, TopicId};
use proptest::prelude::*;

fn entry(ledger: u64, id: u64, payload: Vec<u8>) -> Entry {
    let header = Header {
        kind: Kind::Messages,
        messages: 2,
        first_index: MessageIndex(7),
        timestamp_ms: 9,
        bytes_before: 11,
    };
    Entry::new(LedgerId(ledger), EntryId(id), header, Bytes::from(payload))
}

fn attributes() -> Arc<LedgerAttributes> {
    Arc::new(LedgerAttributes {
        kind: LedgerKind::TopicData,
        owner: "persistent://t/n/orders".into(),
        topic: TopicId(3),
        ordinal: 4,
        predecessor: None,
        owner_epoch: OwnerEpoch(5),
        first_index: MessageIndex(6),
    })
}

fn received(packed: Packed) -> Result<(Incarnation, Vec<ReceivedAdd>), TableError> {
    // As it arrives: one blob.
    let (table, data) = packed.into_blob();
    unpack_adds(Packed { table, data: vec![data] })
}

/// Puts a valid checksum under a table that a test has changed.
fn sealed(mut table: Vec<u8>) -> Bytes {
    let at = table.len() - CRC;
    let crc = crc32c(&table[..at]);
    table[at..].copy_from_slice(&crc.to_le_bytes());
    table.into()
}

fn changed(packed: &Packed, at: usize, bytes: &[u8]) -> Packed {
    let mut table = packed.table.to_vec();
    table[at..at + bytes.len()].copy_from_slice(bytes);
    Packed { table: sealed(table), data: packed.data.clone() }
}

fn two() -> Packed {
    let add = |ledger, entries| Add {
        ledger: LedgerId(ledger),
        term: Term(1),
        lac: None,
        lafr: None,
        attributes: None,
        entries,
    };
    pack_adds(Incarnation(5), &[add(1, vec![entry(1, 0, vec![1; 10])]), add(2, vec![])])
}

#[test]
fn the_bytes_are_these() {
    let add = Add {
        ledger: LedgerId(0x0102),
        term: Term(3),
        lac: Some(EntryId(4)),
        lafr: None,
        attributes: None,
        entries: vec![entry(0x0102, 5, b"ab".to_vec())],
    };
    let packed = pack_adds(Incarnation(0x99), &[add]);
    let hex: String = packed.table.iter().map(|byte| format!("{byte:02x}")).collect();
    let golden = concat!(
        "474d414401000000010000000200000099000000000000000201000000000000030000000000000005000000000000000000000000000000",
        "01000000000000000000000000000000050000000000000001010000020000000700000000000000090000000000000",
        "00b0000000000000002000000864ca91a4649bc63",
    );
    assert_eq!(hex, golden);
    assert_eq!(packed.data, [Bytes::from_static(b"ab")]);
}

#[test]
fn what_is_no_table_is_told_apart() {
    let good = two();
    assert!(received(good.clone()).is_ok());
    assert_eq!(received(changed(&good, 0, b"GMEN")), Err(TableError::Magic));
    assert_eq!(received(changed(&good, 4, &[2])), Err(TableError::Version(2)));
    assert_eq!(received(changed(&good, 5, &[1])), Err(TableError::Surplus));
    let flipped = Packed {
        table: good.table.iter().enumerate().map(|(at, b)| if at == 30 { b ^ 1 } else { *b }).collect(),
        ..good.clone()
    };
    assert_eq!(received(flipped), Err(TableError::Checksum));
    assert_eq!(received(changed(&good, 8, &[1])), Err(TableError::Surplus), "fewer rows than there are");
    assert_eq!(received(changed(&good, 12, &[9])), Err(TableError::Data));
    let longer = Packed { data: vec![Bytes::from(vec![1; 11])], ..good.clone() };
    assert_eq!(received(longer), Err(TableError::Data));
    assert_eq!(
        received(changed(&good, HEAD + ROW + 40, &[11])),
        Err(TableError::Data),
        "payload beyond the data"
    );
    assert_eq!(received(changed(&good, HEAD + ROW + 40, &[9])), Err(TableError::Data), "data left over");
    assert_eq!(received(Packed::default()), Err(TableError::Short));
}

#[test]
fn a_count_without_rows_costs_nothing() {
    let good = two();
    assert_eq!(received(changed(&good, 8, &[0xff; 4])), Err(TableError::Short));
    assert_eq!(received(changed(&good, HEAD + 32, &[0xff; 4])), Err(TableError::Row(1)));
    assert_eq!(
        received(changed(&good, HEAD + 36, &[0xff; 4])),
        Err(TableError::Data),
        "attributes beyond the data"
    );
}

#[test]
fn the_highest_number_is_no_id() {
    let good = two();
    assert!(received(changed(&good, HEAD + ROW, &(u64::MAX - 1).to_le_bytes())).is_ok());
    assert_eq!(received(changed(&good, HEAD + ROW, &[0xff; 8])), Err(TableError::Row(2)));
}

#[test]
fn an_entry_of_an_unknown_kind_is_refused_alone() {
    let kind = HEAD + ROW + 8 + 1;
    let (_, adds) = received(changed(&two(), kind, &[77])).unwrap();
    assert_eq!(adds[0], Err(AddError::Corrupt(EntryId(0))));
    assert!(adds[1].is_ok());
}

#[test]
fn damaged_attributes_are_no_attributes() {
    let add = Add {
        ledger: LedgerId(1),
        term: Term(1),
        lac: None,
        lafr: None,
        attributes: Some(attributes()),
        entries: vec![],
    };
    let (table, data) = pack_adds(Incarnation(1), &[add]).into_blob();
    let mut data = data.to_vec();
    data[3] ^= 4;
    assert_eq!(received(Packed { table, data: vec![data.into()] }), Err(TableError::Checksum));
}

fn any_entry() -> impl Strategy<Value = (u64, Vec<u8>)> {
    (any::<u64>(), prop::collection::vec(any::<u8>(), 0..50))
}

prop_compose! {
    fn any_add()(
        ledger: u64, term: u64,
        // The largest id is not one: ids travel as id + 1.
        lac in prop::option::of(0..u64::MAX), lafr in prop::option::of(0..u64::MAX), named: bool,
        entries in prop::collection::vec(any_entry(), 0..5),
    ) -> Add {
        Add {
            ledger: LedgerId(ledger),
            term: Term(term),
            lac: lac.map(EntryId),
            lafr: lafr.map(EntryId),
            attributes: named.then(attributes),
            entries: entries.into_iter().map(|(id, payload)| entry(ledger, id, payload)).collect(),
        }
    }
}

proptest! {
    #[test]
    fn adds_come_back(incarnation: u64, adds in prop::collection::vec(any_add(), 0..5)) {
        let (of, back) = received(pack_adds(Incarnation(incarnation), &adds)).unwrap();
        prop_assert_eq!(of, Incarnation(incarnation));
        prop_assert_eq!(back, adds.into_iter().map(Ok).collect::<Vec<_>>());
    }

    #[test]
    fn entries_come_back(ledger: u64, entries in prop::collection::vec(any_entry(), 0..5)) {
        let entries: Vec<Entry> = entries.into_iter().map(|(id, payload)| entry(ledger, id, payload)).collect();
        let back = unpack_entries(pack_entries(LedgerId(ledger), &entries)).unwrap();
        prop_assert_eq!(back, (LedgerId(ledger), entries));
    }

    /// Rows of noise under a good head and checksum: never a panic, never more entries than rows.
    #[test]
    fn noise_is_survived(adds: bool, count in 0_u32..6, rows in prop::collection::vec(any::<u8>(), 0..300), data in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut table = BytesMut::new();
        head(&mut table, if adds { ADDS } else { ENTRIES }, count as usize, data.len(), 1);
        table.put_slice(&rows);
        let packed = finish(table, vec![data.into()]);
        let most = rows.len() / ROW;
        if adds {
            let entries = unpack_adds(packed).map_or(0, |(_, adds)| adds.iter().flatten().map(|a| a.entries.len()).sum());
            prop_assert!(entries <= most);
        } else {
            prop_assert!(unpack_entries(packed).map_or(0, |(_, entries)| entries.len()) <= most);
        }
    }

    /// One changed byte anywhere is noticed, or it lies in a payload, which the entry's own checksum covers.
    #[test]
    fn a_flipped_byte_of_the_table_is_noticed(adds in prop::collection::vec(any_add(), 1..4), at: prop::sample::Index, bit in 0_u8..8) {
        let packed = pack_adds(Incarnation(1), &adds);
        let mut table = packed.table.to_vec();
        let at = at.index(table.len());
        table[at] ^= 1 << bit;
        let flipped = Packed { table: table.into(), ..packed };
        prop_assert!(received(flipped).is_err());
    }
}
