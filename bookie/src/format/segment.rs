//! A segment's bytes: blocks of entries in (ledger, id) order, then a footer, then a trailer.
//!
//! Block: magic `GMBK` 4, CRC32C u32, length of the entries u32, number u32, entries. The CRC covers segment id u64, offset of
//! the block u64, and all behind the CRC: a block written to a wrong place shows. Entry: ledger u64, id u64, CRC u32, entry header
//! 32, length u32, payload.
//!
//! Footer: runs {ledger u64, first u64, count u64}, then blocks {offset u64, length u64, first ledger u64, first id u64}.
//! Trailer, last 32 bytes: magic `GMSEGF01` 8, segment id u64, runs u32, blocks u32, CRC32C u32 over the footer and the 24 bytes
//! before, version u32 = 1.

use super::{Fields, journal::decode_entry};
use bytes::Bytes;
use geminga_bookie_client::entry::{Entry, HEADER_LEN};
use geminga_common::checksum::Crc32c;
use geminga_common::ids::LedgerId;

const BLOCK_MAGIC: &[u8; 4] = b"GMBK";
const TRAILER_MAGIC: &[u8; 8] = b"GMSEGF01";
const VERSION: u32 = 1;
pub(crate) const BLOCK_HEADER: usize = 16;
pub(crate) const TRAILER: usize = 32;
const ENTRY_HEAD: usize = 16 + 4 + HEADER_LEN + 4;

/// Contiguous ids of one ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) ledger: LedgerId,
    pub(crate) first: u64,
    pub(crate) count: u64,
}

/// Where a block lies and what it starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Block {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) ledger: LedgerId,
    pub(crate) first: u64,
}

/// What is where in a segment. Both tables rise by (ledger, id); blocks lie one behind the other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Footer {
    pub(crate) runs: Vec<Run>,
    pub(crate) blocks: Vec<Block>,
}

/// A block that is being written to the end of a buffer.
pub(crate) struct OpenBlock {
    start: usize,
    count: u32,
    /// Of the entries up to `summed`.
    sum: Crc32c,
    summed: usize,
}

impl OpenBlock {
    /// Starts a block in `out`.
    pub(crate) fn begin(out: &mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(BLOCK_MAGIC);
        out.extend_from_slice(&[0; BLOCK_HEADER - 4]);
        Self { start, count: 0, sum: Crc32c::new(), summed: out.len() }
    }

    /// Bytes so far.
    pub(crate) fn len(&self, out: &[u8]) -> usize {
        out.len() - self.start
    }

    /// Adds a checked entry.
    pub(crate) fn push(&mut self, out: &mut Vec<u8>, ledger: LedgerId, entry: &Entry) {
        push_entry(out, ledger, entry);
        super::sum_up_to(out, out.len(), (ledger, entry), (&mut self.sum, &mut self.summed));
        self.count += 1;
    }

    /// Completes the block, which will lie at `offset` of the file.
    pub(crate) fn finish(self, out: &mut [u8], segment: u64, offset: u64) {
        let count = self.count;
        self.seal(out, count, segment, offset);
    }

    /// As [`Self::finish`], of so many entries, whoever wrote them.
    pub(crate) fn seal(self, out: &mut [u8], count: u32, segment: u64, offset: u64) {
        let sum = self.sum.update(&out[self.summed..]).value();
        let block = &mut out[self.start..];
        let len = (block.len() - BLOCK_HEADER) as u32;
        block[8..12].copy_from_slice(&len.to_le_bytes());
        block[12..16].copy_from_slice(&count.to_le_bytes());
        let head = block_head(segment, offset).update(&block[8..BLOCK_HEADER]);
        block[4..8].copy_from_slice(&head.append(sum, len).value().to_le_bytes());
    }
}

pub(crate) fn push_entry(out: &mut Vec<u8>, ledger: LedgerId, entry: &Entry) {
    out.reserve(ENTRY_HEAD + entry.payload.len());
    out.extend_from_slice(&ledger.0.to_le_bytes());
    out.extend_from_slice(&entry.id.0.to_le_bytes());
    out.extend_from_slice(&entry.crc.to_le_bytes());
    out.extend_from_slice(&entry.header.encode());
    out.extend_from_slice(&(entry.payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&entry.payload);
}

fn block_head(segment: u64, offset: u64) -> Crc32c {
    Crc32c::new().update(&segment.to_le_bytes()).update(&offset.to_le_bytes())
}

fn block_crc(segment: u64, offset: u64, rest: &[u8]) -> u32 {
    block_head(segment, offset).update(rest).value()
}

/// A checked block.
#[derive(Clone, Debug)]
pub(crate) struct Entries {
    bytes: Bytes,
    left: u32,
}

/// Checks a block and gives its entries; `None` when anything is wrong.
pub(crate) fn open_block(block: &Bytes, segment: u64, offset: u64) -> Option<Entries> {
    let mut f = Fields(block);
    let (magic, crc, len, count) = (f.take(4)?, f.u32()?, f.u32()? as usize, f.u32()?);
    let sound = magic == BLOCK_MAGIC && f.0.len() == len && crc == block_crc(segment, offset, &block[8..]);
    sound.then(|| Entries { bytes: block.slice(BLOCK_HEADER..), left: count })
}

impl Iterator for Entries {
    /// An entry, or `None` inside when the block does not parse.
    type Item = Option<(LedgerId, Entry)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let mut f = Fields(&self.bytes);
        let item = (|| Some((LedgerId(f.u64()?), decode_entry(&mut f, &self.bytes)?)))();
        let used = self.bytes.len() - f.0.len();
        match item {
            Some(_) => drop(self.bytes.split_to(used)),
            None => self.left = 0,
        }
        Some(item)
    }
}

/// The entry that begins at `at` of a block, if it parses, and where it ends; `None` when no entry can end within the block. Nothing of it
/// is checked.
pub(crate) fn entry_at(block: &Bytes, at: usize) -> Option<(Option<(LedgerId, Entry)>, usize)> {
    let rest = block.get(at..)?;
    let mut len = Fields(rest.get(ENTRY_HEAD - 4..)?);
    let end = at.checked_add(ENTRY_HEAD)?.checked_add(len.u32()? as usize)?;
    let mut f = Fields(block.get(at..end)?);
    Some(((|| Some((LedgerId(f.u64()?), decode_entry(&mut f, block)?)))(), end))
}

/// Length of a whole block by its header; `None` when that is none. Not to be believed before its checksum is.
pub(crate) fn block_len(head: &[u8]) -> Option<u64> {
    let mut f = Fields(head);
    let (magic, _crc, len) = (f.take(4)?, f.u32()?, f.u32()?);
    (magic == BLOCK_MAGIC).then_some(u64::from(len) + BLOCK_HEADER as u64)
}

/// Length of the whole footer, of which the trailer is the end; `None` when it is no trailer.
pub(crate) fn footer_len(trailer: &[u8; TRAILER]) -> Option<u64> {
    let mut t = Fields(trailer);
    let (magic, _, runs, blocks) = (t.take(8)?, t.u64()?, u64::from(t.u32()?), u64::from(t.u32()?));
    (magic == TRAILER_MAGIC).then_some(runs * 24 + blocks * 32 + TRAILER as u64)
}

impl Footer {
    pub(crate) fn encode(&self, segment: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.runs.len() * 24 + self.blocks.len() * 32 + TRAILER);
        for run in &self.runs {
            for word in [run.ledger.0, run.first, run.count] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        for block in &self.blocks {
            for word in [block.offset, block.len, block.ledger.0, block.first] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        out.extend_from_slice(TRAILER_MAGIC);
        out.extend_from_slice(&segment.to_le_bytes());
        out.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.blocks.len() as u32).to_le_bytes());
        let crc = Crc32c::new().update(&out).value();
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8], segment: u64) -> Option<Self> {
        let tables = bytes.len().checked_sub(TRAILER)?;
        let mut t = Fields(&bytes[tables..]);
        let (magic, id, runs, blocks) = (t.take(8)?, t.u64()?, t.u32()? as usize, t.u32()? as usize);
        let (crc, version) = (t.u32()?, t.u32()?);
        let sum = Crc32c::new().update(&bytes[..bytes.len() - 8]).value();
        let len = runs.checked_mul(24)?.checked_add(blocks.checked_mul(32)?)?;
        if magic != TRAILER_MAGIC || id != segment || version != VERSION || sum != crc || len != tables {
            return None;
        }
        let mut f = Fields(&bytes[..tables]);
        let runs = (0..runs)
            .map(|_| Some(Run { ledger: LedgerId(f.u64()?), first: f.u64()?, count: f.u64()? }))
            .collect::<Option<Vec<_>>>()?;
        let blocks = (0..blocks)
            .map(|_| {
                Some(Block { offset: f.u64()?, len: f.u64()?, ledger: LedgerId(f.u64()?), first: f.u64()? })
            })
            .collect::<Option<Vec<_>>>()?;
        Some(Self { runs, blocks }).filter(Self::orderly)
    }

    /// Whether the tables are what a flush writes: runs that rise without overlap, blocks that rise and lie one behind the other.
    /// Lookups and reads rely on it, and a checksum proves only that the bytes are those that were written.
    fn orderly(&self) -> bool {
        let sound = |run: &Run| run.count > 0 && run.first.checked_add(run.count).is_some();
        let rises =
            |a: &Run, b: &Run| a.ledger < b.ledger || a.ledger == b.ledger && a.first + a.count <= b.first;
        let follows = |a: &Block, b: &Block| {
            a.offset.checked_add(a.len) == Some(b.offset) && (a.ledger, a.first) < (b.ledger, b.first)
        };
        self.runs.iter().all(sound)
            && self.runs.windows(2).all(|pair| rises(&pair[0], &pair[1]))
            && self.blocks.windows(2).all(|pair| follows(&pair[0], &pair[1]))
    }
}
