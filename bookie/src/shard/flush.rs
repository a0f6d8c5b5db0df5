//! What a flush takes out of the shard and puts back. Between the two the entries stay readable as frozen runs.

use super::cache::{Frozen, ids_of};
use super::{Answer, Shard, Status, cost};
use crate::format::row::LedgerRow;
use crate::mutant::{Mutant, active};
use crate::segments::SegmentSet;
use geminga_bookie_client::rpc::{IdRange, Proof, Read, ReadAnswer};
use geminga_common::clock::Mono;
use geminga_common::ids::{EntryId, LedgerId};
use std::sync::Arc;

/// A flush: entries and states, and the mark below which they cover every batch.
pub(crate) struct FlushPlan {
    pub(crate) mark: u64,
    /// Batches up to here were durable: a journal that ends before has lost something.
    pub(crate) durable: u64,
    pub(crate) dead_below: Option<LedgerId>,
    /// Sorted by ledger.
    pub(crate) ledgers: Vec<(LedgerId, LedgerRow, Option<Frozen>)>,
    /// Generations of journal files of which nothing is needed once the flush is committed.
    pub(crate) spent: Vec<u64>,
}

impl Shard {
    /// When a flush is due at the latest; `None` when there is nothing to flush.
    pub(crate) fn flush_due(&self) -> Option<Mono> {
        let since = self.dirty_since?;
        let half = self.cache_bytes > self.config.write_cache / 2;
        let journal = self.journal_bytes > 2 * self.config.write_cache as u64;
        if half || journal { Some(Mono::ZERO) } else { Some(since + self.config.flush_interval) }
    }

    pub(crate) fn begin_flush(&mut self) -> Option<FlushPlan> {
        if self.flushing || matches!(self.status, Status::Failed | Status::DataLoss) {
            return None;
        }
        self.dirty_since?;
        Some(self.plan(self.next_seq))
    }

    /// All there is, as a flush after which replay starts at `mark`.
    pub(crate) fn plan(&mut self, mark: u64) -> FlushPlan {
        self.flushing = true;
        self.dirty_since = None;
        self.journal_bytes = 0;
        self.frozen_bytes = self.cache_bytes;
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        let mut ledgers = Vec::with_capacity(changed.len());
        for id in changed {
            if active(Mutant::MarkAheadOfFlush) && id.0 % 2 == self.flushes % 2 {
                self.changed.push(id);
                continue;
            }
            let ledger = self.ledgers.entry(id).or_default();
            ledger.changed = false;
            let entries = (!ledger.active.is_empty()).then(|| ledger.active.freeze());
            ledger.frozen.clone_from(&entries);
            let mut row = ledger.row.clone();
            row.flushed = row.flushed.max(entries.as_ref().and_then(|e| e.last()).map(|e| e.id));
            ledgers.push((id, row, entries));
        }
        // Only these may be recycled: the manifest lists any other, and one that is listed must be found again.
        let spent =
            self.retired.iter().filter(|(_, last)| *last < mark).map(|(file, _)| file.generation).collect();
        FlushPlan { mark, durable: self.durable, dead_below: self.dead_below, ledgers, spent }
    }

    /// The flush is committed.
    pub(crate) fn end_flush(&mut self, plan: FlushPlan, segments: Arc<SegmentSet>) {
        self.segments = segments;
        self.flushing = false;
        self.flushes += 1;
        self.covered_due |= plan.dead_below > self.dead_below_durable;
        self.dead_below_durable = plan.dead_below;
        for (id, row, _) in plan.ledgers {
            self.covered_due |= Some(id) <= plan.dead_below;
            let ledger = self.ledgers.entry(id).or_default();
            if row.tombstone && !ledger.buried {
                ledger.buried = true;
                self.buried.push(id);
            }
            let frozen = ledger.frozen.take();
            let freed: usize = frozen.iter().flat_map(|f| f.iter()).map(cost).sum();
            self.cache_bytes = self.cache_bytes.saturating_sub(freed);
            ledger.row.flushed = ledger.row.flushed.max(row.flushed);
        }
        self.frozen_bytes = 0;
        if self.status == Status::DiskFull {
            self.status = Status::Serving;
        }
        let durable = self.durable;
        let done = self
            .retired
            .extract_if(.., |(file, last)| plan.spent.contains(&file.generation) && *last <= durable);
        self.free.extend(done.map(|(file, _)| file));
    }

    /// The flush found no room: its entries go back, to be tried again at `now` plus the usual wait.
    pub(crate) fn undo_flush(&mut self, plan: FlushPlan, now: Mono) {
        self.flushing = false;
        self.status = Status::DiskFull;
        self.frozen_bytes = 0;
        // A watermark alone is something to flush as well: without a next flush the store would stay full for ever.
        self.dirty_since.get_or_insert(now);
        for (id, _, entries) in plan.ledgers {
            self.touch(id, now);
            let ledger = self.ledgers.entry(id).or_default();
            ledger.frozen = None;
            let newer = ledger.active.freeze();
            let older = entries.iter().flat_map(|e| e.iter());
            older.chain(newer.iter()).cloned().for_each(|entry| ledger.active.insert(entry));
        }
    }

    /// Nothing more is taken: no journal file can be had. One is wanted until there is one, since no add asks for it any more.
    pub(crate) fn disk_full(&mut self) {
        self.starved = true;
        if self.status == Status::Serving {
            self.status = Status::DiskFull;
        }
    }

    pub(crate) fn fail_flush(&mut self) -> Vec<Answer> {
        self.flushing = false;
        self.fail()
    }

    /// Whether the index is whole, so that absence can be proven.
    pub(crate) fn intact(&self) -> bool {
        matches!(self.status, Status::Serving | Status::DiskFull)
    }

    /// Reads what the cache holds; `None` sends the reader to the segments.
    pub(crate) fn read_cached(&self, read: &Read) -> Option<ReadAnswer> {
        let absent = || self.intact().then(|| ReadAnswer::NotFound(Proof::from_intact_index()));
        let Some(ledger) = self.ledgers.get(&read.ledger) else { return absent() };
        if !ledger.visible(read.first) {
            return absent();
        }
        let (mut out, mut bytes, mut id) = (Vec::new(), 0, read.first);
        while let Some(entry) = ledger.get(id).filter(|_| id <= read.last && ledger.visible(id)) {
            bytes += entry.payload.len();
            if bytes > read.bytes_max && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
            id = id.next();
        }
        if !out.is_empty() {
            return Some(ReadAnswer::Found(out));
        }
        if Some(read.first) > ledger.row.flushed { absent() } else { None }
    }

    /// Cached ids of a ledger from `from` on, as runs.
    pub(crate) fn cached_ids(&self, id: LedgerId, from: EntryId) -> Vec<IdRange> {
        let mut out = Vec::new();
        if let Some(ledger) = self.ledgers.get(&id) {
            ledger.active.ids(from.0, &mut out);
            ledger.frozen.iter().for_each(|f| ids_of(f, from.0, &mut out));
        }
        out
    }
}
