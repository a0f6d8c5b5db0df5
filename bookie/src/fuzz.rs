//! Entry points of fuzz runs over the formats on disk.
//!
//! Each takes bytes as they are, and once more with the checksums made to hold, so that what lies behind them is reached. They
//! panic when a promise is broken (a value that was read does not survive being written), and on nothing that bytes can say.

use crate::format::identity::{Format, Identity};
use crate::format::journal::{self, BATCH_HEADER, BatchHead, Owner, Record};
use crate::format::row::LedgerRow;
use crate::format::segment::{self, Block, Footer, OpenBlock, Run, TRAILER};
use crate::manifest::{decode_segment, encode_segment};
use bytes::Bytes;
use geminga_common::checksum::crc32c;
use geminga_common::ids::LedgerId;

/// Store id under which checksums are made to hold.
const STORE: u64 = 7;
const GENERATION: u64 = 1 << 32;
const SEGMENT: u64 = 9;

/// A journal file: its header, and batches at every place.
pub fn journal(bytes: &[u8]) {
    let owner = Owner { store: STORE, shard: 0, shards: 1 };
    let header = journal::decode_header(bytes, owner);
    assert!(header.is_none_or(|generation| bytes.starts_with(&journal::encode_header(owner, generation))));
    // The batch as it is: sound only if the input forged its checksum.
    if let Some(found) = journal::decode_batch(bytes, STORE, GENERATION) {
        records(&bytes[BATCH_HEADER..BATCH_HEADER + found.records_len], found.count);
    }
    let Some((count, body)) = bytes.split_first_chunk::<4>() else { return };
    let count = u32::from_le_bytes(*count);
    records(body, count);
    records(body, count % 8);
}

/// Records of a batch; what is read is written again to the same bytes, in a batch that is found.
fn records(body: &[u8], count: u32) {
    let Some(records) = journal::decode_records(&Bytes::copy_from_slice(body), count) else { return };
    assert_eq!(records.iter().map(Record::len).sum::<usize>(), body.len());
    // A batch is made of entries that were checked.
    let wrong = |r: &Record| matches!(r, Record::Add { ledger, entry } if !entry.verify(*ledger));
    if records.iter().any(wrong) {
        return;
    }
    let head = BatchHead { generation: GENERATION, seq: 5, durable: 4 };
    let mut out = vec![0xEE; journal::batch_len(body.len())];
    journal::encode_batch(&mut out, STORE, head, &records, body.len());
    let found = journal::decode_batch(&out, STORE, GENERATION).expect("a batch just written is sound");
    assert_eq!((found.head, found.records_len, found.count as usize), (head, body.len(), records.len()));
    assert_eq!(&out[BATCH_HEADER..BATCH_HEADER + body.len()], body);
}

/// A block of a segment.
pub fn block(bytes: &[u8]) {
    if let Some(entries) = segment::open_block(&Bytes::copy_from_slice(bytes), SEGMENT, 0) {
        drop(entries.collect::<Vec<_>>());
    }
    let Some((count, body)) = bytes.split_first_chunk::<4>() else { return };
    let mut sealed = Vec::new();
    let block = OpenBlock::begin(&mut sealed);
    sealed.extend_from_slice(body);
    block.seal(&mut sealed, u32::from_le_bytes(*count) % 64, SEGMENT, 4096);
    let sealed = Bytes::from(sealed);
    let entries = segment::open_block(&sealed, SEGMENT, 4096).expect("its checksum was just made");
    let mut again = Vec::new();
    entries
        .map_while(|entry| entry)
        .for_each(|(ledger, entry)| segment::push_entry(&mut again, ledger, &entry));
    assert!(body.starts_with(&again));
}

/// A footer of a segment, and whole segments that it describes.
pub fn footer(bytes: &[u8]) {
    if let Some(footer) = Footer::decode(bytes, SEGMENT) {
        assert_eq!(footer.encode(SEGMENT), bytes);
    }
    let mut words = bytes.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")));
    let mut footer = Footer::default();
    while let (Some(ledger), Some(first), Some(count)) = (words.next(), words.next(), words.next()) {
        let ledger = LedgerId(ledger);
        let offset = footer.blocks.last().map_or(0, |block: &Block| block.offset.wrapping_add(block.len));
        footer.runs.push(Run { ledger, first, count });
        footer.blocks.push(Block { offset, len: count, ledger, first });
    }
    let encoded = footer.encode(SEGMENT);
    assert_eq!(encoded.len(), footer.runs.len() * 24 + footer.blocks.len() * 32 + TRAILER);
    // Tables in disorder are refused, others come back as they were.
    assert!(Footer::decode(&encoded, SEGMENT).is_none_or(|again| again == footer));
}

/// A ledger's row in the manifest.
pub fn row(bytes: &[u8]) {
    if let Some(row) = LedgerRow::decode(bytes) {
        assert_eq!(LedgerRow::decode(&row.encode()), Some(row));
    }
}

/// A segment's row in the manifest.
pub fn segment_row(bytes: &[u8]) {
    if let Some(row) = decode_segment(SEGMENT, bytes) {
        assert_eq!(decode_segment(SEGMENT, &encode_segment(&row)), Some(row));
    }
}

/// `FORMAT` and `IDENTITY`.
pub fn identity(bytes: &[u8]) {
    let sealed = [bytes, &crc32c(bytes).to_le_bytes()].concat();
    for bytes in [bytes, &sealed] {
        if let Ok(format) = Format::decode(bytes) {
            survives(bytes, &format.encode(), Format::decode(&format.encode()).as_ref() == Ok(&format));
        }
        if let Some(identity) = Identity::decode(bytes) {
            survives(bytes, &identity.encode(), Identity::decode(&identity.encode()) == Some(identity));
        }
    }
}

/// What was read is written as the same bytes, or in today's version, and then says the same.
fn survives(bytes: &[u8], again: &[u8], same: bool) {
    assert!(same && (again == bytes || again.len() > bytes.len()), "{bytes:?} became {again:?}");
}

/// Makes the checksum of the thing at the front of `bytes` hold again after a change, if it is one that has one: a batch of the
/// store `store`, a segment's block at `offset`, or `IDENTITY`. A test that damages a store reaches what lies behind with it.
pub fn reseal(bytes: &mut [u8], store: u64, segment: u64, offset: u64) {
    let word = |at: usize| {
        bytes.get(at..at + 4).map(|w| u32::from_le_bytes(w.try_into().expect("four bytes")) as usize)
    };
    let (Some(batch_len), Some(block_len)) = (word(32), word(8)) else { return };
    if bytes.starts_with(b"GMBT") && BATCH_HEADER + batch_len <= bytes.len() {
        let sum = geminga_common::checksum::Crc32c::new();
        let crc = sum.update(&store.to_le_bytes()).update(&bytes[8..BATCH_HEADER + batch_len]).value();
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    } else if bytes.starts_with(b"GMBK") && segment::BLOCK_HEADER + block_len <= bytes.len() {
        let end = segment::BLOCK_HEADER + block_len;
        let sum = geminga_common::checksum::Crc32c::new();
        let sum = sum.update(&segment.to_le_bytes()).update(&offset.to_le_bytes());
        let crc = sum.update(&bytes[8..end]).value();
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    } else if (bytes.starts_with(b"GMIDENT1") || bytes.starts_with(b"GMIDENT2")) && bytes.len() > 4 {
        let at = bytes.len() - 4;
        let crc = crc32c(&bytes[..at]);
        bytes[at..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Makes the checksum of a segment file's footer hold again, if its trailer is whole; `bytes` end with the file.
pub fn reseal_footer(bytes: &mut [u8]) {
    let Some(at) = bytes.len().checked_sub(TRAILER) else { return };
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    let tables = word(at + 16).saturating_mul(24).saturating_add(word(at + 20).saturating_mul(32));
    if let Some(start) = at.checked_sub(tables) {
        let crc = crc32c(&bytes[start..at + 24]);
        bytes[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
    }
}
