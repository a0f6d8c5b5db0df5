//! Objects of tiering, of one ledger and of several: each part by itself, and whole objects that were written well and then damaged.
//!
//! Held to: no panic, allocation in proportion to the bytes; a part that was read is written again to the same bytes, or to ones
//! that say the same; damage that no checksum hides never changes what an entry says.

use crate::alloc::bounded;
use arbitrary::{Arbitrary as _, Unstructured};
use bytes::Bytes;
use geminga_common::checksum::{Crc32c, crc32c};
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, OwnerEpoch, TopicId};
use geminga_offload::format::attributes::Attributes;
use geminga_offload::format::block::{self, BLOCK_HEADER_LEN, Body, Compression, Entry};
use geminga_offload::format::directory::{Directory, End, Row};
use geminga_offload::format::footer::{Footer, Trailer};
use geminga_offload::format::{ENTRY_HEADER_LEN, TRAILER_LEN, check_header, header};
use geminga_offload::writer::{Closed, ObjectWriter, Shape, Sourced};

/// What is done with the bytes; the first byte of the input chooses.
pub const KINDS: u8 = 6;
/// What zstd takes for itself.
const ALLOCATION_MAX: usize = 2 << 20;
/// Bytes before the attributes of a footer.
const FOOTER_FIXED: usize = 64;
/// Bytes of a row of a directory that mean something.
const ROW: usize = 36;

/// Runs the target.
pub fn run(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else { return };
    bounded(ALLOCATION_MAX + 128 * data.len(), || match kind % KINDS {
        0 => raw(bytes),
        1 => forged_block(bytes),
        2 => forged_footer(bytes),
        3 => drop(damaged(&mut Unstructured::new(bytes))),
        4 => forged_directory(bytes),
        _ => drop(damaged_together(&mut Unstructured::new(bytes))),
    });
}

/// Bytes as they are.
fn raw(bytes: &[u8]) {
    assert!(check_header(bytes).is_err() || bytes.starts_with(&header()));
    drop(block::open(Bytes::copy_from_slice(bytes)));
    drop(open(bytes));
    drop(open_together(bytes));
}

/// A block whose checksum holds: compression, first id, count, length before compression, body.
fn forged_block(bytes: &[u8]) {
    let Some((head, body)) = bytes.split_first_chunk::<16>() else { return };
    let mut out = vec![0; BLOCK_HEADER_LEN];
    out[..4].copy_from_slice(b"GMBK");
    out[4] = head[0];
    out[8..16].copy_from_slice(&head[1..9]);
    out[16..18].copy_from_slice(&head[9..11]);
    out[20..24].copy_from_slice(&(body.len() as u32).to_le_bytes());
    let plain = if head[0] == 0 && head[11] == 0 {
        body.len() as u32
    } else {
        u32::from_le_bytes([head[12], head[13], head[14], 0]) % (1 << 20)
    };
    out[24..28].copy_from_slice(&plain.to_le_bytes());
    let crc = Crc32c::new().update(&out[..28]).update(body).value();
    out[28..].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(body);
    let Ok(entries) = block::open(Bytes::from(out.clone())) else { return };
    let Some(first) = entries.first() else { return };
    let mut again = Body::default();
    entries.iter().for_each(|entry| again.push(entry));
    let (again, _) = again.seal(first.id, Compression::None);
    if head[0] == 0 {
        assert_eq!(again, out, "a block that was read is written again to the same bytes");
    } else {
        assert_eq!(block::open(again.freeze()).as_ref(), Ok(&entries));
    }
}

/// A footer whose checksum, place and lengths hold: ledger, rows, attributes, then the rows.
fn forged_footer(bytes: &[u8]) {
    let Some((head, body)) = bytes.split_first_chunk::<FOOTER_FIXED>() else { return };
    let mut out = head.to_vec();
    out.extend_from_slice(body);
    out[..8].copy_from_slice(b"GMFT\x01\0\0\0");
    let rows = usize::from(head[12]).min(body.len() / 40);
    out[8..12].copy_from_slice(&((body.len() - rows * 40) as u32).to_le_bytes());
    out[12..16].copy_from_slice(&(rows as u32).to_le_bytes());
    out[48..].fill(0);
    let word = |at: usize| u64::from_le_bytes(out[at..at + 8].try_into().expect("eight bytes"));
    let trailer = Trailer {
        footer_offset: word(40),
        footer_length: out.len() as u64,
        ledger: LedgerId(u64::from(head[13])),
        footer_crc: crc32c(&out),
    };
    let Ok(footer) = Footer::open(&out, &trailer) else { return };
    for id in [0, 1, footer.entries.saturating_sub(1), footer.entries, u64::MAX] {
        let found = footer.block_of(EntryId(id));
        assert_eq!(found.is_some(), id < footer.entries, "entry {id} of {}", footer.entries);
    }
    let (again, crc) = footer.seal(trailer.footer_offset);
    let told = Trailer::open(&again).expect("a trailer just written is sound");
    assert_eq!(
        (told.footer_crc, told.footer_offset, told.ledger),
        (crc, trailer.footer_offset, trailer.ledger)
    );
    assert_eq!(Footer::open(&again[..again.len() - TRAILER_LEN], &told).as_ref(), Ok(&footer));
}

/// A directory and its trailer whose checksums hold: what is made to fit (1 where each ledger begins, 2 what the trailer says of
/// it), where it begins, first ledger and count by the trailer, then the rows.
fn forged_directory(bytes: &[u8]) {
    let Some((head, body)) = bytes.split_first_chunk::<21>() else { return };
    let word = |at: &[u8], nth: usize| u64::from_le_bytes(at[nth..nth + 8].try_into().expect("eight bytes"));
    let mut rows: Vec<_> = body
        .chunks_exact(ROW)
        .map(|at| Row {
            ledger: LedgerId(word(at, 0)),
            offset: word(at, 8),
            shape: Shape {
                size: word(at, 16),
                footer_offset: word(at, 24),
                footer_crc: u32::from_le_bytes(at[32..].try_into().expect("four bytes")),
            },
        })
        .collect();
    if head[0] & 1 != 0 {
        let mut at = 0_u64;
        for row in &mut rows {
            row.offset = at;
            at = at.wrapping_add(row.shape.size);
        }
    }
    // Sealing adds up the last row, which reading is to refuse where that cannot be.
    let Some(last) = rows.last() else { return };
    if last.offset.checked_add(last.shape.size).is_none() {
        return;
    }
    let sealed = Directory { rows }.seal();
    let (body, end) = sealed.split_at(sealed.len() - TRAILER_LEN);
    let mut end = end.to_vec();
    if head[0] & 2 == 0 {
        end[16..24].copy_from_slice(&head[1..9]);
        end[32..40].copy_from_slice(&head[9..17]);
        end[40..44].copy_from_slice(&head[17..21]);
        let crc = crc32c(&end[..TRAILER_LEN - 4]);
        end[TRAILER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    let Ok(Some(told)) = End::open(&end) else { return };
    assert!(told.object_length() >= told.offset + told.length);
    let Ok(directory) = Directory::open(body, &told) else { return };
    let mut at = 0;
    for row in &directory.rows {
        assert_eq!(row.offset, at, "a ledger begins where the one before it ends");
        at += row.shape.size;
    }
    assert_eq!(at, told.offset, "ledgers lie before the directory");
    assert_eq!(
        directory.seal(),
        [body, &end].concat(),
        "a directory that was read is written again to the same bytes"
    );
}

/// Reads an object of several ledgers, as far as it can be read.
fn open_together(object: &[u8]) -> Option<Vec<(LedgerId, Vec<Entry>)>> {
    let end = End::open(object).ok()??;
    if end.object_length() != object.len() as u64 {
        return None;
    }
    let directory = object.get(end.offset as usize..object.len() - TRAILER_LEN)?;
    let directory = Directory::open(directory, &end).ok()?;
    let part = |row: &Row| {
        let part = object.get(row.offset as usize..(row.offset + row.shape.size) as usize)?;
        let trailer = Trailer::open(part).ok()?;
        let told = (trailer.ledger, trailer.footer_offset, trailer.footer_crc);
        let is_it = told == (row.ledger, row.shape.footer_offset, row.shape.footer_crc);
        Some((row.ledger, if is_it { open(part)? } else { return None }))
    };
    Some(directory.rows.iter().filter_map(part).collect())
}

/// Reads an object whole, as far as it can be read.
fn open(object: &[u8]) -> Option<Vec<Entry>> {
    check_header(object).ok()?;
    let trailer = Trailer::open(object).ok()?;
    let end = object.len() - TRAILER_LEN;
    let footer = object.get(usize::try_from(trailer.footer_offset).ok()?..end)?;
    let footer = Footer::open(footer, &trailer).ok()?;
    let mut entries = Vec::new();
    for row in &footer.rows {
        let block = object.get(row.range().start as usize..row.range().end as usize)?;
        entries.extend(block::open_at(Bytes::copy_from_slice(block), row).unwrap_or_default());
    }
    Some(entries)
}

/// An object of the entries that the input tells, damaged where it says.
fn damaged(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let compression = if input.arbitrary()? { Compression::Zstd } else { Compression::None };
    let block_bytes = usize::from(u8::arbitrary(input)?) * 4;
    let mut written = Vec::new();
    for id in 0..input.int_in_range(1..=12_u64)? {
        let length = input.int_in_range(0..=300)?;
        let payload = vec![u8::arbitrary(input)?; length];
        let entry = Entry {
            id: EntryId(id),
            crc: crc32c(&payload),
            header: [input.arbitrary()?; ENTRY_HEADER_LEN],
            payload: payload.into(),
        };
        written.push(entry);
    }
    let (mut object, _) = write(LedgerId(4), &written, block_bytes, compression);
    assert_eq!(open(&object).as_ref(), Some(&written), "an object just written reads back whole");
    damage(input, &mut object)?;
    for entry in open(&object).unwrap_or_default() {
        assert_eq!(written.get(entry.id.0 as usize), Some(&entry), "damage changed what an entry says");
    }
    Ok(())
}

/// The same of several ledgers.
fn damaged_together(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let (mut written, mut object, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut ledger = LedgerId(0);
    for _ in 0..input.int_in_range(2..=4_u8)? {
        ledger = LedgerId(ledger.0 + u64::from(input.int_in_range(1..=255_u8)?));
        let mut entries = Vec::new();
        for id in 0..input.int_in_range(1..=3_u64)? {
            let payload = vec![u8::arbitrary(input)?; input.int_in_range(0..=60)?];
            let header = [input.arbitrary()?; ENTRY_HEADER_LEN];
            entries.push(Entry { id: EntryId(id), crc: crc32c(&payload), header, payload: payload.into() });
        }
        let (bytes, shape) = write(ledger, &entries, 40, Compression::None);
        rows.push(Row { ledger, offset: object.len() as u64, shape });
        object.extend(bytes);
        written.push((ledger, entries));
    }
    object.extend(Directory { rows }.seal());
    assert_eq!(open_together(&object).as_ref(), Some(&written), "ledgers just written read back whole");
    damage(input, &mut object)?;
    for (ledger, entries) in open_together(&object).unwrap_or_default() {
        let of = written.iter().find(|(id, _)| *id == ledger).map(|(_, entries)| entries);
        for entry in entries {
            let said = of.and_then(|entries| entries.get(entry.id.0 as usize));
            assert_eq!(said, Some(&entry), "damage changed what an entry says, or whose it is");
        }
    }
    Ok(())
}

/// Changes, cuts off and puts in bytes, as the input says.
fn damage(input: &mut Unstructured<'_>, object: &mut Vec<u8>) -> arbitrary::Result<()> {
    for _ in 0..input.int_in_range(0..=3_u8)? {
        let at = input.choose_index(object.len())?;
        match input.int_in_range(0..=2_u8)? {
            0 => object[at] ^= input.int_in_range(1..=255_u8)?,
            1 => object.truncate(at.max(1)),
            _ => drop(object.splice(at..at, [u8::arbitrary(input)?; 5])),
        }
    }
    Ok(())
}

fn write(
    ledger: LedgerId,
    entries: &[Entry],
    block_bytes: usize,
    compression: Compression,
) -> (Vec<u8>, Shape) {
    let attributes = Attributes {
        cluster: "c".to_owned(),
        topic: None,
        topic_id: TopicId(3),
        ledger,
        first_index: MessageIndex(0),
        closed_ms: 5,
        owner_epoch: OwnerEpoch(6),
        attempt: 7,
        record: Bytes::new(),
    };
    let length = entries.iter().map(|entry| entry.size() as u64).sum();
    let closed = Closed { entries: entries.len() as u64, length };
    let mut writer = ObjectWriter::new(attributes, closed, block_bytes, compression);
    let mut object = writer.begin().to_vec();
    for entry in entries {
        let (publish_ms, first_index) = (entry.id.0, MessageIndex(entry.id.0));
        let block = writer.push(&Sourced { entry: entry.clone(), publish_ms, first_index });
        object.extend(block.expect("ids follow each other").unwrap_or_default());
    }
    let (last, shape) = writer.finish().expect("the ledger was given whole");
    object.extend(last);
    (object, shape)
}
