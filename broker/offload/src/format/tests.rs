//! The format against its golden bytes, round trips, and damage anywhere.

use super::attributes::Attributes;
use super::block::{self, Compression, Entry};
use super::footer::{Footer, Trailer};
use super::*;
use crate::writer::{Closed, ObjectWriter, Sourced, WriteError};
use bytes::Bytes;
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, OwnerEpoch, TopicId};
use proptest::prelude::*;

fn attributes() -> Attributes {
    Attributes {
        cluster: "c".to_owned(),
        topic: Some("persistent://a/b/t".to_owned()),
        topic_id: TopicId(3),
        ledger: LedgerId(4),
        first_index: MessageIndex(70),
        closed_ms: 1_700_000_000_000,
        owner_epoch: OwnerEpoch(5),
        attempt: 0x0102_0304_0506_0708,
        record: Bytes::from_static(b"record"),
    }
}

fn sourced(id: u64, payload: &[u8]) -> Sourced {
    let entry = Entry {
        id: EntryId(id),
        crc: 0x1000 + id as u32,
        header: [id as u8; ENTRY_HEADER_LEN],
        payload: Bytes::copy_from_slice(payload),
    };
    Sourced { entry, publish_ms: 1000 + id * 10, first_index: MessageIndex(70 + id) }
}

fn object(entries: &[Sourced], block_bytes: usize, compression: Compression) -> Vec<u8> {
    let length = entries.iter().map(|s| s.entry.size() as u64).sum();
    let closed = Closed { entries: entries.len() as u64, length };
    let mut writer = ObjectWriter::new(attributes(), closed, block_bytes, compression);
    let mut object = writer.begin().to_vec();
    for entry in entries {
        object.extend(writer.push(entry).unwrap().unwrap_or_default());
    }
    let (last, shape) = writer.finish().unwrap();
    object.extend(last);
    assert_eq!(shape.size, object.len() as u64);
    object
}

/// Reads an object whole, the way a reader that knows nothing but its bytes does.
fn open(object: &[u8]) -> Result<(Footer, Vec<Entry>), FormatError> {
    check_header(object)?;
    let trailer = Trailer::open(object)?;
    if trailer.object_length() != object.len() as u64 {
        return Err(FormatError::Length("the object"));
    }
    let footer = Footer::open(&object[trailer.footer_offset as usize..object.len() - TRAILER_LEN], &trailer)?;
    let mut entries = Vec::new();
    for row in &footer.rows {
        let at = row.range();
        let block = Bytes::copy_from_slice(&object[at.start as usize..at.end as usize]);
        entries.extend(block::open_at(block, row)?);
    }
    Ok((footer, entries))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_bytes_never_change() {
    let entries = [sourced(0, b"first"), sourced(1, b""), sourced(2, b"third")];
    let plain = object(&entries, 50, Compression::None);
    assert_eq!(hex(&plain), include_str!("golden.txt").trim(), "the format has changed");
    let (footer, read) = open(&plain).unwrap();
    assert_eq!(read, entries.iter().map(|s| s.entry.clone()).collect::<Vec<_>>());
    assert_eq!((footer.entries, footer.length, footer.last_publish_ms), (3, 3 * 32 + 10, 1020));
    assert_eq!(footer.attributes, attributes());
    // Entry 0 is 45 bytes, with entry 1 the block is full.
    let rows: Vec<_> = footer.rows.iter().map(|r| (r.first.0, r.first_publish_ms, r.first_index.0)).collect();
    assert_eq!(rows, [(0, 1000, 70), (2, 1020, 72)]);
}

#[test]
fn every_flipped_bit_is_noticed() {
    for compression in [Compression::None, Compression::Zstd] {
        let entries = [sourced(0, &[7; 300]), sourced(1, b"x"), sourced(2, &[9; 40])];
        let whole = object(&entries, 100, compression);
        let read = open(&whole).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&damaged).is_err(), "bit {bit} of {} bits: {:?}", whole.len() * 8, read.0);
        }
    }
}

#[test]
fn a_block_in_another_ones_place_is_noticed() {
    let whole = object(&[sourced(0, b"abc"), sourced(1, b"abc")], 1, Compression::None);
    let (footer, _) = open(&whole).unwrap();
    let at = footer.rows[1].range();
    let second = Bytes::copy_from_slice(&whole[at.start as usize..at.end as usize]);
    assert_eq!(block::open_at(second.clone(), &footer.rows[1]).unwrap().len(), 1);
    assert!(block::open_at(second, &footer.rows[0]).is_err());
}

#[test]
fn every_cut_is_noticed() {
    let whole = object(&[sourced(0, b"abc"), sourced(1, b"d")], 1, Compression::None);
    for length in 0..whole.len() {
        assert!(open(&whole[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn an_index_of_impossible_entries_is_refused() {
    let (mut footer, _) = open(&object(&[sourced(0, b"a"), sourced(1, b"b")], 1, Compression::None)).unwrap();
    let end = footer.rows.last().unwrap().range().end;
    let refused = |footer: &Footer| {
        let (bytes, _) = footer.seal(end);
        Footer::open(&bytes[..bytes.len() - TRAILER_LEN], &Trailer::open(&bytes).unwrap()).is_err()
    };
    assert!(!refused(&footer));
    footer.rows[1].first = EntryId(u64::MAX);
    assert!(refused(&footer), "no entry can follow it");
}

#[test]
fn a_ledger_that_is_not_whole_is_no_object() {
    let closed = Closed { entries: 2, length: 2 * 32 + 2 };
    let mut writer = ObjectWriter::new(attributes(), closed, 1 << 20, Compression::None);
    assert_eq!(writer.push(&sourced(0, b"a")), Ok(None));
    let again = writer.push(&sourced(0, b"a"));
    assert_eq!(again, Err(WriteError::Order { got: EntryId(0), wanted: EntryId(1) }));
    let skipped = writer.push(&sourced(2, b"a"));
    assert_eq!(skipped, Err(WriteError::Order { got: EntryId(2), wanted: EntryId(1) }));
    assert!(matches!(writer.finish(), Err(WriteError::End { entries: 1, .. })));
}

#[test]
fn an_entry_leads_to_its_block() {
    let entries: Vec<_> = (0..10).map(|id| sourced(id, &[0; 20])).collect();
    let (footer, _) = open(&object(&entries, 100, Compression::None)).unwrap();
    // Two entries a block.
    assert_eq!(footer.rows.len(), 5);
    assert_eq!(footer.block_of(EntryId(0)), Some(0));
    assert_eq!(footer.block_of(EntryId(3)), Some(1));
    assert_eq!(footer.block_of(EntryId(9)), Some(4));
    assert_eq!(footer.block_of(EntryId(10)), None);
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..40),
        block_bytes in 1_usize..600,
        zstd in any::<bool>(),
    ) {
        let entries: Vec<_> = (0..).zip(&payloads).map(|(id, payload)| sourced(id, payload)).collect();
        let compression = if zstd { Compression::Zstd } else { Compression::None };
        let (footer, read) = open(&object(&entries, block_bytes, compression)).unwrap();
        prop_assert_eq!(read, entries.iter().map(|s| s.entry.clone()).collect::<Vec<_>>());
        for sourced in &entries {
            let block = footer.block_of(sourced.entry.id).unwrap();
            prop_assert!(footer.rows[block].first <= sourced.entry.id);
            prop_assert!(footer.rows.get(block + 1).is_none_or(|next| next.first > sourced.entry.id));
        }
    }

    #[test]
    fn noise_is_refused_without_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(open(&noise).is_err());
        let trailer = Trailer { footer_offset: 0, footer_length: noise.len() as u64, ledger: LedgerId(0), footer_crc: crc32c(&noise) };
        prop_assert!(Footer::open(&noise, &trailer).is_err());
        prop_assert!(block::open(noise.into()).is_err());
    }
}
