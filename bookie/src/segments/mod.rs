//! Segment files: written once by a flush, read in large sequential pieces, removed when no ledger in them lives.
//!
//! Owner: [`SegmentSet`], immutable, replaced as a whole; a reader keeps the set it started with, so a removed file stays readable
//! for it. Footers are loaded when first needed. Invariant: a footer or block that does not check is `Damaged`, never absence.

use crate::format::segment::{self as format, Block, Footer, Run, TRAILER};
use crate::shard::FlushPlan;
use bytes::Bytes;
use geminga_bookie_client::entry::Entry;
use geminga_common::disk::{Disk, DiskFile, OpenMode};
use geminga_common::ids::{EntryId, LedgerId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Bytes of one read from disk.
const READ: u64 = 1 << 20;

/// What the manifest knows of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SegmentRow {
    pub(crate) id: u64,
    pub(crate) len: u64,
    pub(crate) footer: u64,
    pub(crate) ledgers: RangeInclusive<LedgerId>,
}

/// Something of a segment cannot be read or does not check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Damaged;

pub(crate) struct Segment {
    pub(crate) row: SegmentRow,
    file: Option<Arc<dyn DiskFile>>,
    footer: OnceLock<Result<Footer, Damaged>>,
}

#[derive(Clone, Default)]
pub(crate) struct SegmentSet {
    /// Rising by id: later ones hold later copies.
    pub(crate) all: Vec<Arc<Segment>>,
}

/// Blocks read lately, bounded in bytes. Only the last block of a read is kept: a scan cannot push the rest out.
pub(crate) struct BlockCache {
    state: Mutex<BlockCacheState>,
    limit: usize,
}

#[derive(Default)]
struct BlockCacheState {
    blocks: BTreeMap<(u64, u64), Bytes>,
    order: VecDeque<(u64, u64)>,
    bytes: usize,
}

impl BlockCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), limit }
    }

    fn get(&self, key: (u64, u64)) -> Option<Bytes> {
        self.state.lock().blocks.get(&key).cloned()
    }

    fn put(&self, key: (u64, u64), block: Bytes) {
        // A slice would pin the whole piece it was read in.
        let block = Bytes::copy_from_slice(&block);
        let mut state = self.state.lock();
        if block.len() > self.limit || state.blocks.contains_key(&key) {
            return;
        }
        state.bytes += block.len();
        state.blocks.insert(key, block);
        state.order.push_back(key);
        while state.bytes > self.limit {
            let Some(oldest) = state.order.pop_front() else { break };
            let freed = state.blocks.remove(&oldest).map_or(0, |b| b.len());
            state.bytes -= freed;
        }
    }
}

pub(crate) fn path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.seg"))
}

impl Segment {
    /// A segment whose file may be unreadable: that shows when it is asked.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path, row: SegmentRow) -> Self {
        let file = disk.open(&path(dir, row.id), OpenMode::Read).ok();
        Self { row, file, footer: OnceLock::new() }
    }

    pub(crate) fn footer(&self) -> Result<&Footer, Damaged> {
        self.footer.get_or_init(|| self.load().ok_or(Damaged)).as_ref().map_err(|damaged| *damaged)
    }

    fn load(&self) -> Option<Footer> {
        let file = self.file.as_ref()?;
        let len = usize::try_from(self.row.footer).ok()?;
        if file.len().ok()? != self.row.len || len < TRAILER {
            return None;
        }
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, self.row.len.checked_sub(self.row.footer)?).ok()?;
        Footer::decode(&bytes, self.row.id)
    }

    fn run(&self, ledger: LedgerId, id: EntryId) -> Result<Option<Run>, Damaged> {
        if !self.row.ledgers.contains(&ledger) {
            return Ok(None);
        }
        let runs = &self.footer()?.runs;
        let at = runs.partition_point(|run| (run.ledger, run.first) <= (ledger, id.0));
        let run = at.checked_sub(1).map(|at| runs[at]);
        Ok(run.filter(|run| run.ledger == ledger && id.0 - run.first < run.count))
    }

    /// Entries from `first` to `last`, all in one run of this segment.
    fn read(
        &self,
        (ledger, first, last): (LedgerId, EntryId, EntryId),
        bytes_max: usize,
        cache: &BlockCache,
    ) -> Result<Vec<Entry>, Damaged> {
        let blocks = &self.footer()?.blocks;
        let at = blocks.partition_point(|b| (b.ledger, b.first) <= (ledger, first.0));
        let mut at = at.checked_sub(1).ok_or(Damaged)?;
        let (mut out, mut bytes) = (Vec::new(), 0);
        while at < blocks.len() {
            let end = blocks[at..].partition_point(|b| (b.ledger, b.first) <= (ledger, last.0)) + at;
            let piece = self.fetch(&blocks[at..end.max(at + 1)], bytes_max - bytes.min(bytes_max), cache);
            let piece = match piece {
                Ok(piece) => piece,
                Err(_) if !out.is_empty() => return Ok(out),
                Err(damaged) => return Err(damaged),
            };
            for (number, block) in piece.iter().enumerate() {
                let place = &blocks[at + number];
                let Some(entries) = format::open_block(block, self.row.id, place.offset) else {
                    return if out.is_empty() { Err(Damaged) } else { Ok(out) };
                };
                for item in entries {
                    let (owner, entry) = item.ok_or(Damaged)?;
                    if owner != ledger || entry.id < first {
                        continue;
                    }
                    let full = bytes + entry.payload.len() > bytes_max && !out.is_empty();
                    if full || entry.id > last {
                        cache.put((self.row.id, place.offset), block.clone());
                        return if out.is_empty() { Err(Damaged) } else { Ok(out) };
                    }
                    bytes += entry.payload.len();
                    out.push(entry);
                }
            }
            at += piece.len();
            if out.last().is_some_and(|entry| entry.id >= last) {
                break;
            }
        }
        if out.is_empty() { Err(Damaged) } else { Ok(out) }
    }

    /// One or more blocks from the front of `blocks`, in one read.
    fn fetch(&self, blocks: &[Block], bytes_max: usize, cache: &BlockCache) -> Result<Vec<Bytes>, Damaged> {
        if let Some(block) = cache.get((self.row.id, blocks[0].offset)) {
            return Ok(vec![block]);
        }
        let (mut len, mut count) = (blocks[0].len, 1);
        let limit = READ.min(bytes_max as u64);
        while count < blocks.len() && len + blocks[count].len <= limit {
            len += blocks[count].len;
            count += 1;
        }
        let start = blocks[0].offset;
        let body = self.row.len - self.row.footer;
        if start.checked_add(len).is_none_or(|end| end > body) {
            return Err(Damaged);
        }
        let mut bytes = vec![0; len as usize];
        self.file.as_ref().ok_or(Damaged)?.read_exact_at(&mut bytes, start).map_err(|_| Damaged)?;
        let bytes = Bytes::from(bytes);
        let cut = |b: &Block| bytes.slice((b.offset - start) as usize..(b.offset - start + b.len) as usize);
        Ok(blocks[..count].iter().map(cut).collect())
    }
}

/// What segments say of an id.
#[derive(Debug)]
pub(crate) enum Lookup {
    Found(Vec<Entry>),
    Absent,
    Damaged,
}

impl SegmentSet {
    /// The contiguous entries from `first` on, from the newest segment that holds it.
    pub(crate) fn read(
        &self,
        ledger: LedgerId,
        ids: RangeInclusive<EntryId>,
        bytes_max: usize,
        cache: &BlockCache,
    ) -> Lookup {
        let mut damaged = false;
        for segment in self.all.iter().rev() {
            match segment.run(ledger, *ids.start()) {
                Ok(None) => {}
                Err(Damaged) => damaged = true,
                Ok(Some(run)) => {
                    let last = EntryId(run.first + run.count - 1).min(*ids.end());
                    match segment.read((ledger, *ids.start(), last), bytes_max, cache) {
                        Ok(entries) => return Lookup::Found(entries),
                        Err(Damaged) => damaged = true,
                    }
                }
            }
        }
        if damaged { Lookup::Damaged } else { Lookup::Absent }
    }

    /// Runs of a ledger, and whether a footer that may know of more cannot be read.
    pub(crate) fn runs(&self, ledger: LedgerId) -> (Vec<Run>, bool) {
        let (mut out, mut damaged) = (Vec::new(), false);
        for segment in self.all.iter().filter(|s| s.row.ledgers.contains(&ledger)) {
            match segment.footer() {
                Ok(footer) => {
                    let from = footer.runs.partition_point(|run| run.ledger < ledger);
                    out.extend(footer.runs[from..].iter().take_while(|run| run.ledger == ledger));
                }
                Err(Damaged) => damaged = true,
            }
        }
        (out, damaged)
    }
}

/// Writes the entries of a flush as a segment; durable when it returns, but not yet in the manifest.
pub(crate) fn write(
    disk: &dyn Disk,
    dir: &Path,
    id: u64,
    plan: &FlushPlan,
    config: &crate::Config,
) -> io::Result<Option<SegmentRow>> {
    let ledgers = || plan.ledgers.iter().filter_map(|(l, _, e)| e.as_ref().map(|e| (*l, e)));
    let (Some((low, _)), Some((high, _))) = (ledgers().next(), ledgers().next_back()) else {
        return Ok(None);
    };
    let file = disk.open(&path(dir, id), OpenMode::CreateNew)?;
    let mut out = Out { file: &*file, buf: Vec::with_capacity(2 << 20), flushed: 0, segment: id, count: 0 };
    let mut footer = Footer::default();
    let mut block = None;
    for (ledger, entries) in ledgers() {
        for chunk in entries.chunk_by(|a, b| a.id.0 + 1 == b.id.0) {
            footer.runs.push(Run { ledger, first: chunk[0].id.0, count: chunk.len() as u64 });
        }
        for entry in entries.iter() {
            let start = match block {
                Some(start) => start,
                None => out.begin(&mut footer, ledger, entry.id),
            };
            format::push_entry(&mut out.buf, ledger, entry);
            out.count += 1;
            block = Some(start);
            if out.buf.len() - start >= config.block_bytes {
                out.finish(start, &mut footer)?;
                block = None;
            }
        }
    }
    if let Some(start) = block {
        out.finish(start, &mut footer)?;
    }
    let bytes = footer.encode(id);
    let len = out.flushed + (out.buf.len() + bytes.len()) as u64;
    out.buf.extend_from_slice(&bytes);
    out.write()?;
    if let Err(error) = file.sync_data() {
        // A failed sync is final; only the defect of that name asks again.
        if !config.has(crate::mutant::Mutant::SyncRetried) || file.sync_data().is_err() {
            return Err(error);
        }
    }
    disk.sync_dir(dir)?;
    Ok(Some(SegmentRow { id, len, footer: bytes.len() as u64, ledgers: low..=high }))
}

struct Out<'a> {
    file: &'a dyn DiskFile,
    buf: Vec<u8>,
    flushed: u64,
    segment: u64,
    count: u32,
}

impl Out<'_> {
    fn begin(&mut self, footer: &mut Footer, ledger: LedgerId, first: EntryId) -> usize {
        let start = self.buf.len();
        let offset = self.flushed + start as u64;
        footer.blocks.push(Block { offset, len: 0, ledger, first: first.0 });
        format::begin_block(&mut self.buf);
        self.count = 0;
        start
    }

    fn finish(&mut self, start: usize, footer: &mut Footer) -> io::Result<()> {
        if let Some(block) = footer.blocks.last_mut() {
            block.len = (self.buf.len() - start) as u64;
            format::finish_block(&mut self.buf, start, self.count, self.segment, block.offset);
        }
        if self.buf.len() as u64 >= READ { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buf, self.flushed)?;
        self.flushed += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }
}
