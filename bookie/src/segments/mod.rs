//! Segment files: written once by a flush, read in large sequential pieces, removed when no ledger in them lives.
//!
//! Owner: [`SegmentSet`], immutable, replaced as a whole; a reader keeps the set it started with, so a removed file stays readable
//! for it. Footers are loaded when first needed. Invariant: a footer or block that does not check is `Damaged`, never absence.

mod cache;
mod rebuild;
mod salvage;
mod write;

use crate::format::segment::{self as format, Block, Footer, Run, TRAILER};
use crate::shard::cache::{join, range, without};
use bytes::Bytes;
pub(crate) use cache::BlockCache;
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::IdRange;
use geminga_common::disk::{Disk, DiskFile, OpenMode};
use geminga_common::error::Code;
use geminga_common::ids::{EntryId, LedgerId};
use parking_lot::Mutex;
pub(crate) use rebuild::rebuild;
pub(crate) use salvage::{expected, ids_of};
use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
pub(crate) use write::{Writer, finish, flush};

/// Bytes of one read from disk.
const READ: u64 = 1 << 20;

/// What the manifest knows of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SegmentRow {
    pub(crate) id: u64,
    pub(crate) len: u64,
    pub(crate) footer: u64,
    pub(crate) ledgers: RangeInclusive<LedgerId>,
    /// Bytes of blocks in which something lives, when it was last counted.
    pub(crate) live: u64,
    /// Dead bytes are to be given back.
    pub(crate) punch_due: bool,
    /// It holds runs that are worth merging.
    pub(crate) small: bool,
}

/// Something of a segment cannot be read or does not check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Damaged;

/// What of a segment's file is not as the manifest has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanting {
    Missing,
    Unreadable(io::ErrorKind),
    /// It has so many bytes.
    Length(u64),
}

pub(crate) struct Segment {
    pub(crate) row: SegmentRow,
    path: PathBuf,
    file: Option<Arc<dyn DiskFile>>,
    wanting: Option<Wanting>,
    footer: OnceLock<Result<Footer, Damaged>>,
    /// Offsets of blocks that did not check, and whether there are any.
    bad: Mutex<BTreeSet<u64>>,
    has_bad: AtomicBool,
    /// Offsets of blocks that do not check and whose loss was accepted: what they held is not in here any more.
    let_go: Mutex<BTreeSet<u64>>,
    has_let_go: AtomicBool,
    /// Offsets of what readers met and the log has named.
    named: Mutex<BTreeSet<u64>>,
    /// Offsets of blocks that a reader found damaged and nobody has judged yet.
    suspects: Mutex<BTreeSet<u64>>,
    /// As in the row, but as of now.
    pub(crate) live: AtomicU64,
    pub(crate) punch_due: AtomicBool,
    /// Extents below here are punched.
    pub(crate) punched_to: AtomicU64,
    /// Not to be merged: something in it does not check.
    pub(crate) unmergeable: AtomicBool,
}

#[derive(Clone, Default)]
pub(crate) struct SegmentSet {
    /// Rising by id: later ones hold later copies.
    pub(crate) all: Vec<Arc<Segment>>,
}

pub(crate) fn path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.seg"))
}

/// The name of a segment's file on its way out.
pub(crate) fn gone(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.gone"))
}

pub(crate) fn is_gone(name: &str) -> bool {
    name.ends_with(".gone")
}

/// The id in the name of a segment's file.
pub(crate) fn id_of(name: &str) -> Option<u64> {
    name.strip_suffix(".seg").and_then(|id| u64::from_str_radix(id, 16).ok())
}

impl Segment {
    /// A segment whose file may be missing or cut short, which counts as damage at once. Whether its footer checks shows when it is
    /// asked.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path, row: SegmentRow) -> Self {
        let path = path(dir, row.id);
        let opened = disk.open(&path, OpenMode::Read).and_then(|file| Ok((file.len()?, file)));
        let (file, wanting) = match opened {
            Ok((len, file)) if len == row.len => (Some(file), None),
            Ok((len, file)) => (Some(file), Some(Wanting::Length(len))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, Some(Wanting::Missing)),
            Err(error) => (None, Some(Wanting::Unreadable(error.kind()))),
        };
        let mut segment = Self::of(file, path, row);
        if wanting.is_some() {
            segment.wanting = wanting;
            segment.footer = OnceLock::from(Err(Damaged));
            segment.unmergeable = AtomicBool::new(true);
        }
        segment
    }

    /// What of its file was not as it should be when it was opened.
    pub(crate) fn wanting(&self) -> Option<Wanting> {
        self.wanting
    }

    fn of(file: Option<Arc<dyn DiskFile>>, path: PathBuf, row: SegmentRow) -> Self {
        Self {
            path,
            live: AtomicU64::new(row.live),
            punch_due: AtomicBool::new(row.punch_due),
            row,
            file,
            wanting: None,
            footer: OnceLock::new(),
            bad: Mutex::default(),
            has_bad: AtomicBool::new(false),
            let_go: Mutex::default(),
            has_let_go: AtomicBool::new(false),
            named: Mutex::default(),
            suspects: Mutex::default(),
            punched_to: AtomicU64::new(0),
            unmergeable: AtomicBool::new(false),
        }
    }

    /// The row as of now.
    pub(crate) fn row(&self) -> SegmentRow {
        let (live, punch_due) = (self.live.load(Ordering::Relaxed), self.punch_due.load(Ordering::Relaxed));
        SegmentRow { live, punch_due, ..self.row.clone() }
    }

    /// Marks a block: from now on nothing is said of what it holds. False if that was known.
    pub(crate) fn mark_bad(&self, offset: u64) -> bool {
        let fresh = self.bad.lock().insert(offset);
        self.has_bad.store(true, Ordering::Release);
        self.unmergeable.store(true, Ordering::Relaxed);
        fresh
    }

    pub(crate) fn is_bad(&self, offset: u64) -> bool {
        self.has_bad.load(Ordering::Acquire) && self.bad.lock().contains(&offset)
    }

    /// A block is let go of: the segment is as if it had never held what lay there. Its bytes stay where they are, so it is not merged.
    pub(crate) fn let_go(&self, offset: u64) {
        self.bad.lock().remove(&offset);
        self.suspects.lock().remove(&offset);
        self.let_go.lock().insert(offset);
        self.has_let_go.store(true, Ordering::Release);
        self.unmergeable.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_let_go(&self, offset: u64) -> bool {
        self.has_let_go.load(Ordering::Acquire) && self.let_go.lock().contains(&offset)
    }

    /// Whether a block is neither bad nor let go of, as far as is known.
    pub(crate) fn counts(&self, offset: u64) -> bool {
        !self.is_bad(offset) && !self.is_let_go(offset)
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A reader met a block that does not check: the log names it once. The reader may have been unlucky, so it is only suspected.
    fn met(&self, offset: u64, ledger: LedgerId, first: EntryId) {
        self.suspect(offset);
        if self.named.lock().insert(offset) {
            let file = self.path.display();
            tracing::warn!(
                code = %Code::DATA_LOSS, %file, offset, %ledger, entry = %first,
                "a block does not check: what it holds cannot be read here until repair or a copy brings it back"
            );
        }
    }

    /// A block does not check, says who read it. What is known to be bad is no news.
    pub(crate) fn suspect(&self, offset: u64) {
        if !self.is_bad(offset) {
            self.suspects.lock().insert(offset);
        }
    }

    pub(crate) fn take_suspects(&self) -> BTreeSet<u64> {
        std::mem::take(&mut self.suspects.lock())
    }

    pub(crate) fn has_suspects(&self) -> bool {
        !self.suspects.lock().is_empty()
    }

    /// Blocks that did not check.
    pub(crate) fn bad_blocks(&self) -> usize {
        self.bad.lock().len()
    }

    /// Where in this file something of a ledger lies that is known, or was found, not to be readable.
    pub(crate) fn damage_of(&self, ledger: LedgerId) -> Option<String> {
        if !self.row.ledgers.contains(&ledger) {
            return None;
        }
        let file = self.path.display();
        match self.wanting {
            Some(Wanting::Missing) => return Some(format!("{file} is missing")),
            Some(_) => return Some(format!("{file} is not as long as it was, or cannot be opened")),
            None if self.footer_is_bad() => return Some(format!("the footer of {file} does not check")),
            None => {}
        }
        // What nobody has looked at yet is not damaged, and must not be read for a text.
        let footer = self.footer.get()?.as_ref().ok()?;
        let met: Vec<u64> =
            [&self.bad, &self.suspects].iter().flat_map(|known| known.lock().clone()).collect();
        let block = (0..footer.blocks.len()).find(|at| {
            met.contains(&footer.blocks[*at].offset)
                && expected(footer, *at).iter().any(|(owner, _)| *owner == ledger)
        })?;
        let ids = expected(footer, block).into_iter().find(|(owner, _)| *owner == ledger)?.1;
        let (first, last, offset) = (ids.first, ids.last, footer.blocks[block].offset);
        Some(format!(
            "{file} does not check at offset {offset}, where entries {ledger}:{first} to {ledger}:{last} lie"
        ))
    }

    /// Reads one block and checks it and every entry in it.
    pub(crate) fn verified(&self, block: &Block) -> Result<Vec<(LedgerId, Entry)>, Damaged> {
        let body = self.row.len - self.row.footer;
        if block.offset.checked_add(block.len).is_none_or(|end| end > body) || !self.counts(block.offset) {
            return Err(Damaged);
        }
        let mut bytes = vec![0; block.len as usize];
        self.file.as_ref().ok_or(Damaged)?.read_exact_at(&mut bytes, block.offset).map_err(|_| Damaged)?;
        let entries = format::open_block(&Bytes::from(bytes), self.row.id, block.offset).ok_or(Damaged)?;
        let sound = |item: Option<(LedgerId, Entry)>| {
            item.filter(|(ledger, entry)| entry.verify(*ledger)).ok_or(Damaged)
        };
        entries.map(sound).collect()
    }

    /// Ids of a ledger that lie in blocks that did not check, and in such that were let go of.
    fn doubt(&self, ledger: LedgerId, footer: &Footer) -> (Vec<IdRange>, Vec<IdRange>) {
        let within = |offsets: &BTreeSet<u64>| {
            let blocks = (0..footer.blocks.len()).filter(|at| offsets.contains(&footer.blocks[*at].offset));
            blocks.filter_map(|at| ids_within(footer, at, ledger)).collect()
        };
        let bad = if self.has_bad.load(Ordering::Acquire) { within(&self.bad.lock()) } else { Vec::new() };
        let gone =
            if self.has_let_go.load(Ordering::Acquire) { within(&self.let_go.lock()) } else { Vec::new() };
        (bad, gone)
    }

    pub(crate) fn footer(&self) -> Result<&Footer, Damaged> {
        let load = || {
            let footer = self.load();
            if footer.is_none() {
                tracing::warn!(code = %Code::DATA_LOSS, file = %self.path.display(), "a segment's footer does not check: nothing in it can be read");
            }
            footer.ok_or(Damaged)
        };
        self.footer.get_or_init(load).as_ref().map_err(|damaged| *damaged)
    }

    /// Whether the footer was looked at and does not check.
    pub(crate) fn footer_is_bad(&self) -> bool {
        matches!(self.footer.get(), Some(Err(Damaged)))
    }

    fn load(&self) -> Option<Footer> {
        let file = self.file.as_ref()?;
        let len = usize::try_from(self.row.footer).ok()?;
        if file.len().ok()? != self.row.len || len < TRAILER {
            return None;
        }
        // Before the allocation: the row alone says how long the footer is.
        let start = self.row.len.checked_sub(self.row.footer)?;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, start).ok()?;
        Footer::decode(&bytes, self.row.id)
    }

    fn run(&self, ledger: LedgerId, id: EntryId) -> Result<Option<Run>, Damaged> {
        if !self.row.ledgers.contains(&ledger) {
            return Ok(None);
        }
        let Footer { runs, blocks } = self.footer()?;
        let at = runs.partition_point(|run| (run.ledger, run.first) <= (ledger, id.0));
        let run = at.checked_sub(1).map(|at| runs[at]);
        let run = run.filter(|run| run.ledger == ledger && id.0 - run.first < run.count);
        if run.is_some() && self.has_let_go.load(Ordering::Acquire) {
            let at = blocks.partition_point(|b| (b.ledger, b.first) <= (ledger, id.0));
            return Ok(run.filter(|_| at.checked_sub(1).is_some_and(|at| !self.is_let_go(blocks[at].offset))));
        }
        Ok(run)
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
            let mut end = blocks[at..].partition_point(|b| (b.ledger, b.first) <= (ledger, last.0)) + at;
            if self.has_let_go.load(Ordering::Acquire) {
                // What was let go of ends a read like the end of the run.
                let gone = (at..end.max(at + 1)).find(|at| self.is_let_go(blocks[*at].offset));
                end = gone.unwrap_or(end);
                if gone == Some(at) {
                    break;
                }
            }
            let piece = self.fetch(&blocks[at..end.max(at + 1)], bytes_max - bytes.min(bytes_max), cache);
            let piece = match piece {
                Ok(piece) => piece,
                Err(damaged) => {
                    self.met(blocks[at].offset, ledger, first);
                    return if out.is_empty() { Err(damaged) } else { Ok(out) };
                }
            };
            for (number, block) in piece.iter().enumerate() {
                let place = &blocks[at + number];
                let opened = format::open_block(block, self.row.id, place.offset);
                let Some(entries) = opened.filter(|_| !self.is_bad(place.offset)) else {
                    self.met(place.offset, ledger, first);
                    return if out.is_empty() { Err(Damaged) } else { Ok(out) };
                };
                for item in entries {
                    let (owner, entry) = item.ok_or(Damaged)?;
                    if owner != ledger || entry.id < first {
                        continue;
                    }
                    let full = bytes + entry.payload.len() > bytes_max && !out.is_empty();
                    if full || entry.id > last {
                        cache.put((self.row.id, place.offset), block);
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
        while count < blocks.len() && len.saturating_add(blocks[count].len) <= limit {
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

/// Ids of a ledger that may lie in a block; none of another ledger's.
fn ids_within(footer: &Footer, at: usize, ledger: LedgerId) -> Option<IdRange> {
    let block = &footer.blocks[at];
    let end = footer.blocks.get(at + 1).map_or((LedgerId(u64::MAX), 0), |next| (next.ledger, next.first));
    if ledger < block.ledger || end.0 < ledger {
        return None;
    }
    let first = if block.ledger == ledger { block.first } else { 0 };
    let last = if end.0 == ledger { end.1.checked_sub(1)? } else { u64::MAX - 1 };
    (first <= last).then(|| range(first, last))
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

    /// The last id that cannot be read if `id` cannot: the end of its block, as far as one run goes.
    pub(crate) fn unreadable_to(&self, ledger: LedgerId, id: EntryId) -> EntryId {
        for segment in self.all.iter().rev() {
            if let (Ok(Some(run)), Ok(footer)) = (segment.run(ledger, id), segment.footer()) {
                let next = footer.blocks.partition_point(|b| (b.ledger, b.first) <= (ledger, id.0));
                let next =
                    footer.blocks.get(next).filter(|b| b.ledger == ledger).map_or(u64::MAX, |b| b.first);
                return EntryId((run.first + run.count).min(next) - 1);
            }
        }
        id
    }

    /// Ids of a ledger that can be read, those that are there or not, and whether a footer that may know of more cannot be read.
    pub(crate) fn ids(&self, ledger: LedgerId) -> (Vec<IdRange>, Vec<IdRange>, bool) {
        let (mut sound, mut doubtful, mut damaged) = (Vec::new(), Vec::new(), false);
        for segment in self.all.iter().filter(|s| s.row.ledgers.contains(&ledger)) {
            let Ok(footer) = segment.footer() else {
                damaged = true;
                continue;
            };
            let from = footer.runs.partition_point(|run| run.ledger < ledger);
            let runs = footer.runs[from..].iter().take_while(|run| run.ledger == ledger);
            let runs: Vec<IdRange> = runs.map(|run| range(run.first, run.first + run.count - 1)).collect();
            let (doubt, gone) = segment.doubt(ledger, footer);
            let runs = if gone.is_empty() { runs } else { without(&runs, &gone) };
            if doubt.is_empty() {
                sound.extend(runs);
            } else {
                let kept = without(&runs, &doubt);
                doubtful.extend(without(&runs, &kept));
                sound.extend(kept);
            }
        }
        let sound = join(sound);
        let doubtful = without(&join(doubtful), &sound);
        (sound, doubtful, damaged)
    }

    /// Whether a segment holds, or may hold, entries of a ledger.
    pub(crate) fn may_hold(&self, ledger: LedgerId) -> bool {
        let holds = |s: &&Arc<Segment>| match s.footer() {
            Ok(footer) => footer.runs.binary_search_by_key(&ledger, |run| run.ledger).is_ok(),
            Err(Damaged) => true,
        };
        self.all.iter().filter(|s| s.row.ledgers.contains(&ledger)).any(|s| holds(&s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_with_an_id_ends_with_its_block_or_run() {
        let run = |ledger, first, count| Run { ledger: LedgerId(ledger), first, count };
        let block = |offset, ledger, first| Block { offset, len: 10, ledger: LedgerId(ledger), first };
        let footer = Footer {
            runs: vec![run(1, 0, 10), run(1, 20, 1 << 60), run(2, 0, 5)],
            blocks: vec![block(0, 1, 0), block(10, 1, 4), block(20, 1, 30)],
        };
        let ledgers = LedgerId(1)..=LedgerId(2);
        let row = SegmentRow { id: 1, len: 0, footer: 0, ledgers, live: 0, punch_due: false, small: false };
        let segment =
            Segment { footer: OnceLock::from(Ok(footer)), ..Segment::of(None, PathBuf::new(), row) };
        let set = SegmentSet { all: vec![Arc::new(segment)] };
        let to = |ledger, id| set.unreadable_to(LedgerId(ledger), EntryId(id)).0;
        assert_eq!((to(1, 0), to(1, 3), to(1, 4), to(1, 9)), (3, 3, 9, 9));
        assert_eq!((to(1, 20), to(1, 30), to(2, 1)), (29, (1 << 60) + 19, 4));
        assert_eq!((to(1, 15), to(3, 7)), (15, 7));
    }
}
