//! Bytes of the values inside cursor log records: varints, strings, positions, holes, batches. Owner: [`super::record`], which
//! documents the tables. Input comes from disk: nothing here panics on it, and nothing is allocated by a claimed length that
//! the bytes do not bear out.

use super::holes::{ENTRY_LIMIT, Holes};
use super::state::{Acked, BATCH_WORDS_MAX, Batch};
use geminga_common::ids::{EntryId, LedgerId, Position};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;

/// Bytes that are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer version.
    #[error("cursor log entry version {0} is not known")]
    Version(u8),
    /// Of a kind this version does not know.
    #[error("cursor log record kind {0} is not known")]
    Kind(u8),
    /// Ends too early, is too long, or holds an impossible value.
    #[error("cursor log record is damaged: {0}")]
    Damaged(&'static str),
}

/// Properties of a cursor: text by text.
pub type Properties = BTreeMap<String, String>;

const RANGES: u8 = 0;
const ROARING: u8 = 1;

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn put_position(out: &mut Vec<u8>, p: Position) {
    put_varint(out, p.ledger.0);
    put_varint(out, p.entry.0);
}

pub(super) fn put_properties(out: &mut Vec<u8>, properties: &Properties) {
    put_varint(out, properties.len() as u64);
    for (key, value) in properties {
        put_bytes(out, key.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

pub(super) fn put_numbers(out: &mut Vec<u8>, properties: &[(String, u64)]) {
    put_varint(out, properties.len() as u64);
    for (key, value) in properties {
        put_bytes(out, key.as_bytes());
        put_varint(out, *value);
    }
}

pub(super) fn put_acked(out: &mut Vec<u8>, acked: &Acked) {
    put_position(out, acked.floor);
    put_holes(out, &acked.holes);
    put_batches(out, acked.batches.iter().map(|(p, batch)| (*p, batch)), acked.batches.len());
}

pub(super) fn put_holes(out: &mut Vec<u8>, holes: &Holes) {
    put_varint(out, holes.ledgers().count() as u64);
    for (ledger, bitmap) in holes.ledgers() {
        put_varint(out, ledger.0);
        let roaring = bitmap.serialized_size();
        match as_ranges(bitmap, roaring) {
            Some(ranges) => {
                out.push(RANGES);
                put_bytes(out, &ranges);
            }
            None => {
                out.push(ROARING);
                put_varint(out, roaring as u64);
                bitmap.serialize_into(&mut *out).expect("a vector takes any bytes");
            }
        }
    }
}

/// The bitmap as pairs (gap, length), unless that takes `limit` bytes or more.
fn as_ranges(bitmap: &RoaringBitmap, limit: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut end = 0;
    let mut iter = bitmap.iter();
    while let Some(run) = iter.next_range() {
        let (first, after) = (u64::from(*run.start()), u64::from(*run.end()) + 1);
        put_varint(&mut out, first - end);
        put_varint(&mut out, after - first);
        end = after;
        if out.len() >= limit {
            return None;
        }
    }
    Some(out)
}

pub(super) fn put_batches<'a>(
    out: &mut Vec<u8>,
    batches: impl Iterator<Item = (Position, &'a Batch)>,
    count: usize,
) {
    put_varint(out, count as u64);
    for (p, batch) in batches {
        put_position(out, p);
        put_varint(out, u64::from(batch.size));
        put_varint(out, batch.remaining.len() as u64);
        batch.remaining.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }
}

/// Reads values from the front of some bytes.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

type Decoded<T> = Result<T, DecodeError>;

impl<'a> Reader<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> Decoded<u8> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn take(&mut self, len: usize) -> Decoded<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Damaged("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn varint(&mut self) -> Decoded<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Damaged("number beyond 64 bits"))
    }

    pub(super) fn bytes(&mut self) -> Decoded<&'a [u8]> {
        let len = self.varint()?;
        self.take(usize::try_from(len).map_err(|_| DecodeError::Damaged("length"))?)
    }

    pub(super) fn text(&mut self) -> Decoded<String> {
        let text =
            std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::Damaged("text is not UTF-8"))?;
        Ok(text.to_owned())
    }

    pub(super) fn position(&mut self) -> Decoded<Position> {
        Ok(Position::new(LedgerId(self.varint()?), EntryId(self.varint()?)))
    }

    pub(super) fn properties(&mut self) -> Decoded<Properties> {
        let count = self.varint()?;
        (0..count).map(|_| Ok((self.text()?, self.text()?))).collect()
    }

    pub(super) fn numbers(&mut self) -> Decoded<Vec<(String, u64)>> {
        let count = self.varint()?;
        let mut numbers = Vec::new();
        for _ in 0..count {
            numbers.push((self.text()?, self.varint()?));
        }
        Ok(numbers)
    }

    pub(super) fn acked(&mut self) -> Decoded<Acked> {
        let floor = self.position()?;
        let holes = self.holes()?;
        Ok(Acked { floor, holes, batches: self.batches()?.into_iter().collect() })
    }

    pub(super) fn holes(&mut self) -> Decoded<Holes> {
        let mut holes = Holes::default();
        for _ in 0..self.varint()? {
            let ledger = LedgerId(self.varint()?);
            let bitmap = match self.byte()? {
                RANGES => from_ranges(self.bytes()?)?,
                ROARING => RoaringBitmap::deserialize_from(self.bytes()?)
                    .map_err(|_| DecodeError::Damaged("bitmap"))?,
                _ => return Err(DecodeError::Damaged("form of holes")),
            };
            holes.add(ledger, bitmap);
        }
        Ok(holes)
    }

    pub(super) fn batches(&mut self) -> Decoded<Vec<(Position, Batch)>> {
        let mut batches = Vec::new();
        for _ in 0..self.varint()? {
            let p = self.position()?;
            let size = u32::try_from(self.varint()?).map_err(|_| DecodeError::Damaged("batch size"))?;
            let words = self.varint()?;
            if words > BATCH_WORDS_MAX as u64 {
                return Err(DecodeError::Damaged("batch bitmap"));
            }
            let bytes = self.take(words as usize * 8)?.chunks_exact(8);
            let word = |chunk: &[u8]| u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
            batches.push((p, Batch { size, remaining: bytes.map(word).collect() }));
        }
        Ok(batches)
    }
}

fn from_ranges(bytes: &[u8]) -> Decoded<RoaringBitmap> {
    let mut reader = Reader(bytes);
    let mut bitmap = RoaringBitmap::new();
    let mut end = 0_u64;
    while !reader.is_empty() {
        let first = end.saturating_add(reader.varint()?);
        end = first.saturating_add(reader.varint()?);
        if end <= first || end > ENTRY_LIMIT {
            return Err(DecodeError::Damaged("range of holes"));
        }
        bitmap.insert_range(first as u32..end as u32);
    }
    Ok(bitmap)
}
