//! Keeping house: segments in which nothing lives are removed, dead parts of others given back, states that nobody can need
//! forgotten.
//!
//! Order of every removal: the tombstone is in the manifest, the manifest lets go of the segment, the file loses its name, then its
//! room. A file is removed on positive evidence only: it is in `forgotten`, or it was never committed. A segment whose footer does not
//! check is left alone.

use super::Store;
use crate::gc;
use crate::manifest::Change;
use crate::mutant::{Mutant, active};
use crate::segments::{Segment, SegmentSet};
use geminga_common::disk::OpenMode;
use geminga_common::ids::LedgerId;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Ledgers looked at under one holding of the shard's lock.
const SLICE: usize = 4096;

impl Store {
    /// Which of these ledgers have a committed tombstone.
    pub(super) fn gone(&self, ledgers: &BTreeSet<LedgerId>) -> BTreeSet<LedgerId> {
        let all: Vec<LedgerId> = ledgers.iter().copied().collect();
        let mut out = BTreeSet::new();
        for slice in all.chunks(SLICE) {
            let shard = self.shard.lock();
            out.extend(slice.iter().filter(|id| shard.ledgers.get(id).is_some_and(|l| l.buried)));
        }
        out
    }

    /// Collects after tombstones were committed: counts anew what lives in the segments they touch, and lets go of those in which
    /// nothing does.
    pub(crate) fn collect(&self) -> io::Result<()> {
        let _tidy = self.tidy.lock();
        let (fresh, set) = {
            let mut shard = self.shard.lock();
            (std::mem::take(&mut shard.buried), shard.segments.clone())
        };
        if fresh.is_empty() {
            return Ok(());
        }
        let touched = |s: &&Arc<Segment>| fresh.iter().any(|l| s.row.ledgers.contains(l));
        let mut change = Change::default();
        for segment in set.all.iter().filter(touched) {
            let Ok(footer) = segment.footer() else {
                if active(Mutant::UnparsedCollected) {
                    change.forget.push(segment.row.id);
                }
                continue;
            };
            let gone = self.gone(&footer.runs.iter().map(|run| run.ledger).collect());
            if footer.runs.iter().all(|run| gone.contains(&run.ledger)) {
                change.forget.push(segment.row.id);
                continue;
            }
            let dead = gc::dead_blocks(footer, |ledger| gone.contains(&ledger));
            let live = gc::live_bytes(footer, &dead);
            if segment.live.swap(live, Ordering::Relaxed) == live {
                continue;
            }
            if !gc::holes(footer, &dead, self.config.punch_bytes).is_empty() {
                segment.punch_due.store(true, Ordering::Relaxed);
                segment.punched_to.store(0, Ordering::Relaxed);
            }
            change.put.push(segment.row());
        }
        let result = self.replace(&set, change, Vec::new());
        if result.is_err() {
            // Nothing is lost: the next collection looks at the same tombstones.
            self.shard.lock().buried.extend(fresh);
        }
        result
    }

    /// Commits a change of segments, puts the new set in place and lets the files leave that are out of use.
    pub(super) fn replace(
        &self,
        before: &SegmentSet,
        change: Change,
        fresh: Vec<Arc<Segment>>,
    ) -> io::Result<()> {
        if change.put.is_empty() && change.forget.is_empty() {
            return Ok(());
        }
        let mut change = change;
        change.removed = std::mem::take(&mut *self.unlinked.lock());
        if let Err(error) = self.change(&change) {
            self.unlinked.lock().extend(change.removed);
            return Err(error);
        }
        {
            let mut shard = self.shard.lock();
            let mut set = (*shard.segments).clone();
            set.all.retain(|s| !change.forget.contains(&s.row.id));
            set.all.extend(fresh);
            shard.segments = Arc::new(set);
            shard.covered_due |= !change.forget.is_empty();
        }
        debug_assert!(change.forget.iter().all(|id| before.all.iter().any(|s| s.row.id == *id)));
        self.leave(&change.forget, &before.all)
    }

    /// Punches up to so many holes; whether more are due.
    pub(crate) fn punch_some(&self, most: u32) -> io::Result<bool> {
        let _tidy = self.tidy.lock();
        let set = self.shard.lock().segments.clone();
        let mut left = most;
        for segment in set.all.iter().filter(|s| s.punch_due.load(Ordering::Relaxed)) {
            if left == 0 {
                return Ok(true);
            }
            if !self.punch(segment, &mut left)? {
                return Ok(true);
            }
            segment.punch_due.store(false, Ordering::Relaxed);
            self.change(&Change { put: vec![segment.row()], ..Change::default() })?;
        }
        Ok(false)
    }

    /// Punches what is dead of one segment; whether all of it is done.
    fn punch(&self, segment: &Segment, left: &mut u32) -> io::Result<bool> {
        let Ok(footer) = segment.footer() else { return Ok(true) };
        let gone = self.gone(&footer.runs.iter().map(|run| run.ledger).collect());
        let dead = gc::dead_blocks(footer, |ledger| gone.contains(&ledger));
        let file = self.disk.open(&self.segment_path(segment.row.id), OpenMode::ReadWrite)?;
        let from = segment.punched_to.load(Ordering::Relaxed);
        let holes = gc::holes(footer, &dead, self.config.punch_bytes);
        for (start, end) in holes.into_iter().filter(|(start, _)| *start >= from) {
            if *left == 0 {
                return Ok(false);
            }
            match file.punch(start, end - start) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(true),
                other => other?,
            }
            *left -= 1;
            self.counts.punched_bytes.fetch_add(end - start, Ordering::Relaxed);
            segment.punched_to.store(end, Ordering::Relaxed);
        }
        file.sync_data()?;
        Ok(true)
    }

    /// Forgets what the dead-id watermark covers: tombstones of ledgers of which no segment holds anything, and states of ledgers
    /// that never held anything. Safe because no add is taken at or below the watermark, after any restart.
    pub(crate) fn forget_covered(&self) -> io::Result<()> {
        let _tidy = self.tidy.lock();
        let (ids, set) = {
            let mut shard = self.shard.lock();
            if !std::mem::take(&mut shard.covered_due) {
                return Ok(());
            }
            let to = shard.dead_below_durable;
            let any = active(Mutant::TombstoneForgotten);
            let covered = |(id, l): &(&LedgerId, &crate::shard::Ledger)| {
                let free = l.settled() && (l.buried || (l.row.flushed.is_none() && !any));
                (any || Some(**id) <= to) && free
            };
            let ids: Vec<(LedgerId, bool)> =
                shard.ledgers.iter().filter(covered).map(|(id, l)| (*id, l.row.flushed.is_some())).collect();
            (ids, shard.segments.clone())
        };
        let free = ids.into_iter().filter(|(id, held)| !held || !set.may_hold(*id));
        let mut ledgers: Vec<LedgerId> = free.map(|(id, _)| id).collect();
        if ledgers.is_empty() {
            return Ok(());
        }
        ledgers.sort_unstable();
        self.change(&Change { ledgers: ledgers.clone(), ..Change::default() })?;
        let mut shard = self.shard.lock();
        for id in ledgers {
            // What was touched meanwhile stays: the next flush writes its row again.
            if shard.ledgers.get(&id).is_some_and(|ledger| ledger.settled()) {
                shard.ledgers.remove(&id);
            }
        }
        Ok(())
    }
}
