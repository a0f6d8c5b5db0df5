//! Changes of the ensemble: planned, committed, adopted; what they leave to repair.

use super::{Change, ChangeOutcome, Effect, Pending, Slot, State, Status};
use crate::ledgers::AppendError;
use crate::mutant::{Mutant, active};
use crate::quorum::SlotSet;
use crate::record::{Fragment, LedgerRecord, LedgerState, RepairRange};
use crate::rpc::BookieRef;
use crate::writer::invariants;
use geminga_common::metadata::Revision;

impl State {
    /// The placement's answer to [`Effect::Place`]: a bookie for each slot asked about, as far as there are any.
    pub fn on_replacements(&mut self, found: &[(u32, BookieRef)], out: &mut Vec<Effect>) {
        let Some(Change::Placing(slots)) = self.change else { return };
        if self.status != Status::Open {
            self.change = None;
            return;
        }
        let mut ensemble: Vec<Option<BookieRef>> = self.slots.iter().map(|s| s.bookie.clone()).collect();
        for slot in slots.iter() {
            let bookie = found.iter().find(|(at, _)| *at == slot).map(|(_, bookie)| bookie.clone());
            ensemble[slot as usize] = bookie;
        }
        let planned = Fragment { first: self.acked_end, ensemble };
        let replaced: SlotSet = slots
            .iter()
            .filter(|s| planned.ensemble[*s as usize] != self.slots[*s as usize].bookie)
            .collect();
        let fragments = self.fragments_with(planned.clone());
        if !self.quorum.writable_without(planned.vacant()) || fragments.len() > self.limits.fragments_max {
            self.change = None;
            let full = self.disk_full;
            self.fail(if full { AppendError::DiskFull } else { AppendError::NotEnoughBookies });
            return;
        }
        if replaced.is_empty() {
            // Vacant slots were to be filled again, and still cannot be.
            self.change = None;
            self.change_ensemble(out);
            self.complete(out);
            return;
        }
        let mut repair = self.repair_with(planned.vacant());
        let worse = self.failed.or(self.vacant());
        if active(Mutant::SlowOwesNothing) && replaced.minus(worse) == replaced {
            repair.retain(|range| self.record.repair.contains(range));
        }
        let record =
            LedgerRecord { fragments: fragments.clone(), repair: repair.clone(), ..self.record.clone() };
        self.change = Some(Change::Committing { fragments, repair, replaced });
        out.push(Effect::Commit(Box::new(record)));
    }

    /// The outcome of [`Effect::Commit`].
    pub fn on_change(&mut self, outcome: ChangeOutcome, out: &mut Vec<Effect>) {
        let Some(Change::Committing { fragments, repair, replaced }) = self.change.take() else { return };
        if self.status == Status::Closing {
            return;
        }
        match outcome {
            ChangeOutcome::Committed(revision) => self.adopt(fragments, repair, replaced, revision, out),
            ChangeOutcome::Lost(Some((record, revision))) if self.may_rebase(&record) => {
                self.record.fragments = record.fragments;
                self.record.repair = record.repair;
                self.revision = revision;
                // Who was slow and no worse stays where it is: the next look finds it again.
                let again = self.failed.or(replaced.and(self.vacant()));
                if self.status == Status::Open && !again.is_empty() {
                    self.place(again, out);
                } else {
                    self.complete(out);
                }
            }
            ChangeOutcome::Lost(_) => self.fail(AppendError::Fenced),
        }
        invariants::check(self);
    }

    /// The bookie of a slot is slow, and `by` can take its place. Whether that is being done: not while another change is under way,
    /// nor when it would take the last fragments, which belong to failures. A slow bookie never leaves its slot vacant.
    pub fn on_slow(&mut self, slot: u32, by: BookieRef, out: &mut Vec<Effect>) -> bool {
        let room = self.record.fragments.len() + 1 < self.limits.fragments_max;
        let held = self.slots[slot as usize].bookie.is_some() && !self.members().any(|member| *member == by);
        if self.status != Status::Open || self.change.is_some() || !room || !held {
            return false;
        }
        self.change = Some(Change::Placing([slot].into_iter().collect()));
        self.on_replacements(&[(slot, by)], out);
        invariants::check(self);
        true
    }

    /// Time to try to fill vacant slots again.
    pub fn on_readmit(&mut self, out: &mut Vec<Effect>) {
        let vacant = self.vacant();
        let room = self.record.fragments.len() < self.limits.fragments_max;
        if self.status == Status::Open && self.change.is_none() && !vacant.is_empty() && room {
            self.shunned.clear();
            self.place(vacant, out);
        }
    }

    pub(super) fn change_ensemble(&mut self, out: &mut Vec<Effect>) {
        if self.change.is_none() && !self.failed.is_empty() {
            self.place(self.failed, out);
        }
    }

    fn place(&mut self, slots: SlotSet, out: &mut Vec<Effect>) {
        self.change = Some(Change::Placing(slots));
        out.push(Effect::Place(slots));
    }

    /// The fragments once `planned` is the last: it replaces a last fragment that holds no acknowledged entry.
    fn fragments_with(&self, planned: Fragment) -> Vec<Fragment> {
        let mut fragments = self.record.fragments.clone();
        if self.record.last_fragment().first == planned.first {
            fragments.pop();
        }
        fragments.push(planned);
        fragments
    }

    /// The repair ranges once the LAC ends a fragment: what lags behind is recorded, growing ranges end with the vacancy.
    pub(super) fn repair_with(&self, vacant: SlotSet) -> Vec<RepairRange> {
        let mut repair = self.record.repair.clone();
        repair.retain_mut(|range| {
            if range.last.is_none() && !vacant.contains(range.slot) {
                range.last = self.lac();
            }
            range.last.is_none_or(|last| range.first <= last)
                && (range.last.is_some() || vacant.contains(range.slot))
        });
        repair.extend(&self.owed);
        for slot in self.quorum.all().iter() {
            let lagging = |p: &&Pending| {
                p.entry.id < self.acked_end
                    && !p.acked.contains(slot)
                    && self.quorum.write_set(p.entry.id).contains(slot)
                    && self.slots[slot as usize].bookie.is_some()
            };
            let mut missing = self.pending.iter().filter(lagging).map(|p| p.entry.id);
            if self.lost.contains(slot) {
                let unrecorded = |range: &RepairRange| !repair.contains(range);
                let lost: Vec<RepairRange> = self.lost_ranges(slot).into_iter().filter(unrecorded).collect();
                repair.extend(lost);
            } else if let Some(first) = missing.next() {
                repair.push(RepairRange { first, last: Some(missing.last().unwrap_or(first)), slot });
            }
            let growing = repair.iter().any(|range| range.slot == slot && range.last.is_none());
            if vacant.contains(slot) && !growing {
                repair.push(RepairRange { first: self.acked_end, last: None, slot });
            }
        }
        repair
    }

    /// What the bookie of this slot held, if it lost its store: all acknowledged entries of every fragment that names it, in whichever
    /// slot, since one that left and came back has lost its earlier tenure as well.
    fn lost_ranges(&self, slot: u32) -> Vec<RepairRange> {
        let Some(holder) = &self.slots[slot as usize].bookie else { return Vec::new() };
        let fragments = &self.record.fragments;
        let mut ranges: Vec<RepairRange> = Vec::new();
        for (at, fragment) in fragments.iter().enumerate() {
            let end = fragments.get(at + 1).map_or(self.acked_end, |next| next.first);
            let held = fragment.ensemble.iter().zip(0..).find(|(member, _)| member.as_ref() == Some(holder));
            let (Some((_, slot)), true) = (held, fragment.first < end) else { continue };
            match ranges.last_mut() {
                Some(before) if before.slot == slot && before.last == fragment.first.previous() => {
                    before.last = end.previous();
                }
                _ => ranges.push(RepairRange { first: fragment.first, last: end.previous(), slot }),
            }
        }
        ranges
    }

    /// What bookies lost that leave by a change which does not record it: they were found out while it was being committed. Neither the
    /// record nor the LAC has moved since it was planned, so that what it does record reads the same.
    fn lost_meanwhile(&self, leaving: SlotSet, recorded: &[RepairRange]) -> Vec<RepairRange> {
        let lost = self.lost.and(leaving);
        let ranges = lost.iter().flat_map(|slot| self.lost_ranges(slot));
        ranges.filter(|range| !recorded.contains(range)).collect()
    }

    /// Whether a record written by another is still ours to write to: only members of earlier fragments or repair ranges moved.
    fn may_rebase(&self, other: &LedgerRecord) -> bool {
        let firsts = |r: &LedgerRecord| r.fragments.iter().map(|f| f.first).collect::<Vec<_>>();
        other.state == LedgerState::Open
            && other.term == self.term
            && firsts(other) == firsts(&self.record)
            && other.last_fragment() == self.record.last_fragment()
    }

    /// The change is committed: acks of replaced slots are void above the LAC, and what lags below it is the repair's.
    fn adopt(
        &mut self,
        fragments: Vec<Fragment>,
        repair: Vec<RepairRange>,
        replaced: SlotSet,
        revision: Revision,
        out: &mut Vec<Effect>,
    ) {
        // What was owed so far is in the record now. This comes too late for it, and must not be lost with the bookie's name.
        self.owed = self.lost_meanwhile(replaced, &repair);
        if active(Mutant::LateLossForgotten) {
            self.owed.clear();
        }
        self.record.fragments = fragments;
        self.record.repair = repair;
        self.revision = revision;
        let ensemble = self.record.last_fragment().ensemble.clone();
        for slot in replaced.iter() {
            let generation = self.slots[slot as usize].generation + 1;
            self.shunned.extend(self.slots[slot as usize].bookie.take());
            self.slots[slot as usize] =
                Slot { bookie: ensemble[slot as usize].clone(), generation, introduced: false };
        }
        let void = if active(Mutant::SlowKeepsAcks) { replaced.and(self.failed) } else { replaced };
        self.failed = self.failed.minus(replaced);
        self.lost = self.lost.minus(replaced);
        self.disk_full &= !(self.failed.is_empty() && self.vacant().is_empty());
        while self.full_end < self.acked_end {
            self.pending.pop_front();
            self.full_end = self.full_end.next();
        }
        self.bytes_lagging = 0;
        for pending in &mut self.pending {
            pending.acked = pending.acked.minus(void);
        }
        if self.status != Status::Open {
            return;
        }
        for slot in replaced.minus(self.vacant()).iter() {
            self.resend(slot, out);
        }
        self.change_ensemble(out);
        self.complete(out);
    }
}
