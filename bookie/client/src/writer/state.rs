//! The writer machine of an open ledger (storage.md 1.6): pure, events in, ordered effects out; owned by the shell next door.
//!
//! Ids are handed out densely; an entry *completes* at Qa acks of distinct slots and is *acknowledged* in id order (LAC). It
//! stays pending, by its payload handle, until all its slots have it (LAFR), because a replaced slot must be sent it again.
//! While an ensemble change is being committed the LAC stands still: the new fragment begins right after it.
//!
//! Bounds are kept exclusive inside (`acked_end` = LAC + 1), so that "nothing yet" needs no special case. A slot's *generation*
//! grows whenever its bookie changes: an ack of an earlier tenure is told apart by one number instead of by comparing names.
//!
//! A slot without a bookie is *vacant*: the record says so in the fragment, and an open-ended repair range covers it. Entries
//! count as full when all slots that have a bookie acknowledged them, since the rest is recorded.

use super::invariants;
use crate::entry::Entry;
use crate::ledgers::{AppendError, Copies, NewEntry};
use crate::mutant::{Mutant, active};
use crate::quorum::{AckSet, QuorumSpec, SlotSet};
use crate::record::{Fragment, LedgerRecord, LedgerState, RepairRange, close_repair};
use crate::rpc::{AddError, BookieRef};
use geminga_common::ids::{EntryId, LedgerId, Term};
use geminga_common::metadata::Revision;
use std::collections::VecDeque;

/// Limits of a writer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Limits {
    /// Largest header and payload of one entry, bytes.
    pub entry_bytes_max: usize,
    /// Most bytes that may be acknowledged and yet missing on some slot: a slot that lags further is replaced, not buffered for.
    pub lag_bytes_max: usize,
    /// Most fragments; a ledger that needs more is given up for a fresh one.
    pub fragments_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entry_bytes_max: 16 << 20, lag_bytes_max: 4 << 20, fragments_max: 16 }
    }
}

/// A bookie's tenure of a slot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Slot {
    /// Who holds it; `None` is vacant.
    pub bookie: Option<BookieRef>,
    /// Grows with every change of the holder.
    pub generation: u32,
    /// Whether the bookie has acknowledged the ledger's attributes.
    pub introduced: bool,
}

/// An entry some slot still lacks.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pending {
    /// The entry.
    pub entry: Entry,
    /// Slots that have it durably.
    pub acked: AckSet,
}

/// What a writer can still do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// Takes entries.
    Open,
    /// Over, for this reason.
    Failed(AppendError),
    /// A close was planned: nothing moves any more.
    Closing,
}

/// A change of the ensemble between planning and commit.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// Waits for the placement's answer about these slots.
    Placing(SlotSet),
    /// Waits for the outcome of the transaction.
    Committing {
        /// The planned fragments.
        fragments: Vec<Fragment>,
        /// The planned repair ranges.
        repair: Vec<RepairRange>,
        /// Slots whose holder changes.
        replaced: SlotSet,
    },
}

/// Entries to one slot, contiguous for an unstriped ensemble.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SlotAdd {
    /// The slot.
    pub slot: u32,
    /// Tenure the answer will be for.
    pub generation: u32,
    /// First id the answer covers.
    pub first: EntryId,
    /// Last id the answer covers; with striping only those of the slot.
    pub last: EntryId,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// What the shell has to do, in this order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Send entries to the slot's bookie.
    Send(SlotAdd),
    /// Ask the placement for bookies outside [`State::members`], then tell [`State::on_replacements`].
    Place(SlotSet),
    /// Commit this record over revision [`State::revision`], then tell the outcome. `op_id` is the shell's to fill.
    Commit(Box<LedgerRecord>),
}

/// How the commit of a change ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ChangeOutcome {
    /// Ours is the record now.
    Committed(Revision),
    /// Somebody else wrote the record; this is it.
    Lost(Option<(Box<LedgerRecord>, Revision)>),
}

/// The machine.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub(super) ledger: LedgerId,
    pub(super) term: Term,
    pub(super) quorum: QuorumSpec,
    pub(super) limits: Limits,
    pub(super) record: LedgerRecord,
    pub(super) revision: Revision,
    pub(super) slots: Vec<Slot>,
    pub(super) next: EntryId,
    pub(super) acked_end: EntryId,
    pub(super) full_end: EntryId,
    pub(super) pending: VecDeque<Pending>,
    /// Bytes handed out, bytes acknowledged, bytes acknowledged but not full.
    pub(super) bytes_sent: u64,
    pub(super) bytes_acked: u64,
    pub(super) bytes_lagging: usize,
    pub(super) failed: SlotSet,
    /// Slots whose bookie has lost what it held of this ledger, until the next change records it.
    pub(super) lost: SlotSet,
    /// Bookies that failed this writer since the last readmission: else two broken ones would replace each other for ever.
    pub(super) shunned: Vec<BookieRef>,
    pub(super) disk_full: bool,
    pub(super) change: Option<Change>,
    pub(super) status: Status,
}

impl State {
    /// The writer of a ledger just created at `revision`.
    ///
    /// # Panics
    /// When the record is not open or its ensemble does not fit its quorum: the caller made it.
    #[must_use]
    pub fn new(record: LedgerRecord, revision: Revision, limits: Limits) -> Self {
        assert_eq!(record.state, LedgerState::Open, "only an open ledger has a writer");
        let fragment = record.last_fragment();
        assert_eq!(
            fragment.ensemble.len(),
            record.quorum.ensemble() as usize,
            "one bookie or vacancy per slot"
        );
        let slot =
            |bookie: &Option<BookieRef>| Slot { bookie: bookie.clone(), generation: 0, introduced: false };
        Self {
            ledger: record.id,
            term: record.term,
            quorum: record.quorum,
            limits,
            slots: fragment.ensemble.iter().map(slot).collect(),
            revision,
            next: EntryId(0),
            acked_end: EntryId(0),
            full_end: EntryId(0),
            pending: VecDeque::new(),
            bytes_sent: 0,
            bytes_acked: 0,
            bytes_lagging: 0,
            failed: SlotSet::EMPTY,
            lost: SlotSet::EMPTY,
            shunned: Vec::new(),
            disk_full: false,
            change: None,
            status: Status::Open,
            record,
        }
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> LedgerId {
        self.ledger
    }

    /// The writer's term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// Last acknowledged entry.
    #[must_use]
    pub fn lac(&self) -> Option<EntryId> {
        self.acked_end.previous()
    }

    /// Last entry that is full or recorded for repair.
    #[must_use]
    pub fn lafr(&self) -> Option<EntryId> {
        self.full_end.previous()
    }

    /// Last entry handed out.
    #[must_use]
    pub fn last_sent(&self) -> Option<EntryId> {
        self.next.previous()
    }

    /// The record as this writer knows it.
    #[must_use]
    pub fn record(&self) -> &LedgerRecord {
        &self.record
    }

    /// Its revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// A slot.
    #[must_use]
    pub fn slot(&self, slot: u32) -> &Slot {
        &self.slots[slot as usize]
    }

    /// What the writer can still do.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Whether a change of the ensemble is under way.
    #[must_use]
    pub fn changing(&self) -> bool {
        self.change.is_some()
    }

    /// Whether what is acknowledged and yet missing on some slot is within its limit (I16).
    #[must_use]
    pub fn lag_is_bounded(&self) -> bool {
        self.bytes_lagging <= self.limits.lag_bytes_max
    }

    /// The slots without a bookie.
    #[must_use]
    pub fn vacant(&self) -> SlotSet {
        (0..self.quorum.ensemble()).filter(|s| self.slots[*s as usize].bookie.is_none()).collect()
    }

    /// Bookies in the ensemble now, and those that failed lately: none of them may be placed.
    pub fn members(&self) -> impl Iterator<Item = &BookieRef> {
        self.slots.iter().filter_map(|slot| slot.bookie.as_ref()).chain(&self.shunned)
    }

    /// Bookies that stay when `leaving` are replaced.
    #[must_use]
    pub fn staying(&self, leaving: SlotSet) -> Vec<BookieRef> {
        let staying = (0..self.quorum.ensemble()).filter(|slot| !leaving.contains(*slot));
        staying.filter_map(|slot| self.slots[slot as usize].bookie.clone()).collect()
    }

    /// Takes entries in: gives them ids and sends them to their slots.
    ///
    /// # Errors
    /// The writer is over, or an entry is too large; nothing was taken.
    pub fn append(&mut self, new: Vec<NewEntry>, out: &mut Vec<Effect>) -> Result<EntryId, AppendError> {
        match &self.status {
            Status::Open => {}
            Status::Failed(error) => return Err(error.clone()),
            Status::Closing => return Err(AppendError::Closed),
        }
        let limit = self.limits.entry_bytes_max;
        let size = |entry: &NewEntry| crate::entry::HEADER_LEN + entry.payload.len();
        if let Some(size) = new.iter().map(size).find(|size| *size > limit) {
            return Err(AppendError::TooLarge { size, limit });
        }
        let first = self.next;
        let mut entries = Vec::with_capacity(new.len());
        for NewEntry { mut header, payload } in new {
            header.bytes_before = self.bytes_sent;
            let entry = Entry::new(self.ledger, self.next, header, payload);
            self.bytes_sent += entry.size() as u64;
            self.next = self.next.next();
            self.pending.push_back(Pending { entry: entry.clone(), acked: AckSet::EMPTY });
            entries.push(entry);
        }
        if !entries.is_empty() {
            self.fan_out(first, entries, out);
        }
        invariants::check(self);
        Ok(first)
    }

    /// A bookie answered an add.
    pub fn on_added(
        &mut self,
        slot: u32,
        generation: u32,
        (first, last): (EntryId, EntryId),
        result: Result<(), AddError>,
        out: &mut Vec<Effect>,
    ) {
        if self.status == Status::Closing || matches!(self.status, Status::Failed(_)) {
            return;
        }
        let stale = self.slots[slot as usize].generation != generation;
        match result {
            Ok(()) if stale => {}
            Ok(()) => {
                self.slots[slot as usize].introduced = true;
                self.acknowledge(slot, first, last);
                self.complete(out);
            }
            // The term is the ledger's, not the bookie's: who is told so is over, whoever told it.
            Err(AddError::StaleTerm(_) | AddError::Sealed(_) | AddError::Tombstoned) => {
                self.fail(AppendError::Fenced);
            }
            // Someone else wrote this id at our term: stop, and let recovery decide from what is stored.
            Err(AddError::Conflict(_)) => self.fail(AppendError::Fenced),
            Err(AddError::TooLarge { size, limit, .. }) => self.fail(AppendError::TooLarge { size, limit }),
            Err(_) if stale => {}
            Err(error) => {
                self.disk_full |= error == AddError::DiskFull;
                if error == AddError::WrongIncarnation {
                    self.lost.insert(slot);
                }
                self.failed.insert(slot);
                self.change_ensemble(out);
            }
        }
        invariants::check(self);
    }

    /// A bookie that is said to be gone has answered an add without entries, or did not.
    ///
    /// Hearsay never ends a writer: a slot is only given up while the ledger stays writable without it and may have another
    /// fragment. What is worse shows with the next append.
    pub fn on_probed(
        &mut self,
        slot: u32,
        generation: u32,
        result: Result<(), AddError>,
        out: &mut Vec<Effect>,
    ) {
        let holder = self.slots[slot as usize].generation == generation;
        match result {
            Err(AddError::StaleTerm(_) | AddError::Sealed(_) | AddError::Tombstoned) => {
                self.fail(AppendError::Fenced);
            }
            Ok(()) if holder => self.slots[slot as usize].introduced = true,
            Err(AddError::WrongIncarnation | AddError::Failed | AddError::Unknown(_))
                if holder && self.status == Status::Open =>
            {
                let without = self.vacant().or(self.failed).or([slot].into_iter().collect());
                let fragments = self.record.fragments.len() + usize::from(self.change.is_some());
                if self.quorum.writable_without(without) && fragments < self.limits.fragments_max {
                    if result == Err(AddError::WrongIncarnation) {
                        self.lost.insert(slot);
                    }
                    self.failed.insert(slot);
                    self.change_ensemble(out);
                }
            }
            // It lives, or it is no member any more.
            Ok(()) | Err(_) => {}
        }
        invariants::check(self);
    }

    /// Whether what is acknowledged has all its copies.
    #[must_use]
    pub fn copies(&self) -> Copies {
        match (self.vacant().is_empty(), self.record.repair.is_empty()) {
            (false, _) => Copies::Vacant,
            (true, false) => Copies::RepairDue,
            (true, true) => Copies::Full,
        }
    }

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
        let repair = self.repair_with(planned.vacant());
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
                self.failed = self.failed.or(replaced.minus(self.vacant()));
                if self.status == Status::Open {
                    self.place(self.failed.or(replaced), out);
                }
            }
            ChangeOutcome::Lost(_) => self.fail(AppendError::Fenced),
        }
        invariants::check(self);
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

    /// Stops intake and freezes the LAC; the answer is the closed record.
    ///
    /// # Errors
    /// [`AppendError::Fenced`]: the ledger is its recoverer's.
    pub fn close(&mut self) -> Result<LedgerRecord, AppendError> {
        if self.status == Status::Failed(AppendError::Fenced) {
            return Err(AppendError::Fenced);
        }
        self.status = Status::Closing;
        let last = self.lac();
        let repair = close_repair(&self.repair_with(self.vacant()), last);
        let fragments = self.record.fragments.clone();
        let state = LedgerState::Closed { last, length: self.bytes_acked };
        Ok(LedgerRecord { state, repair, fragments, ..self.record.clone() })
    }

    /// Sends entries to every slot of their write sets.
    fn fan_out(&self, first: EntryId, mut entries: Vec<Entry>, out: &mut Vec<Effect>) {
        let last = entries[entries.len() - 1].id;
        let striped = self.quorum.ensemble() > self.quorum.write();
        let targets = self.quorum.all().minus(self.vacant());
        let final_target = targets.iter().last();
        for slot in targets.iter() {
            let of_slot: Vec<Entry> = if striped {
                entries.iter().filter(|e| self.quorum.write_set(e.id).contains(slot)).cloned().collect()
            } else if Some(slot) == final_target {
                std::mem::take(&mut entries)
            } else {
                entries.clone()
            };
            if !of_slot.is_empty() {
                let generation = self.slots[slot as usize].generation;
                out.push(Effect::Send(SlotAdd { slot, generation, first, last, entries: of_slot }));
            }
        }
    }

    fn acknowledge(&mut self, slot: u32, first: EntryId, last: EntryId) {
        let base = self.full_end.0;
        let from = first.0.max(base);
        for id in from..=last.0.min(self.next.0.saturating_sub(1)) {
            if self.quorum.write_set(EntryId(id)).contains(slot) {
                self.pending[(id - base) as usize].acked.insert(slot);
            }
        }
    }

    /// Moves LAC and LAFR as far as acks allow, then looks for slots that lag too far.
    fn complete(&mut self, out: &mut Vec<Effect>) {
        if self.change.is_none() {
            while let Some(head) = self.pending.get((self.acked_end.0 - self.full_end.0) as usize) {
                if head.acked.len() < self.quorum.ack() {
                    break;
                }
                self.bytes_acked += head.entry.size() as u64;
                self.bytes_lagging += head.entry.size();
                self.acked_end = self.acked_end.next();
            }
        }
        let vacant = if active(Mutant::WindowFromLafr) { SlotSet::EMPTY } else { self.vacant() };
        while self.full_end < self.acked_end {
            let Some(head) = self.pending.front() else { break };
            if !self.quorum.write_set(head.entry.id).minus(vacant).minus(head.acked).is_empty() {
                break;
            }
            self.bytes_lagging -= head.entry.size();
            self.pending.pop_front();
            self.full_end = self.full_end.next();
        }
        if self.bytes_lagging > self.limits.lag_bytes_max
            && self.change.is_none()
            && !active(Mutant::LagUnbounded)
            && let Some(head) = self.pending.front()
        {
            let lagging = self.quorum.write_set(head.entry.id).minus(vacant).minus(head.acked);
            self.failed = self.failed.or(lagging);
            self.change_ensemble(out);
        }
    }

    fn change_ensemble(&mut self, out: &mut Vec<Effect>) {
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
    fn repair_with(&self, vacant: SlotSet) -> Vec<RepairRange> {
        let mut repair = self.record.repair.clone();
        repair.retain_mut(|range| {
            if range.last.is_none() && !vacant.contains(range.slot) {
                range.last = self.lac();
            }
            range.last.is_none_or(|last| range.first <= last)
                && (range.last.is_some() || vacant.contains(range.slot))
        });
        for slot in self.quorum.all().iter() {
            let lagging = |p: &&Pending| {
                p.entry.id < self.acked_end
                    && !p.acked.contains(slot)
                    && self.quorum.write_set(p.entry.id).contains(slot)
                    && self.slots[slot as usize].bookie.is_some()
            };
            let mut missing = self.pending.iter().filter(lagging).map(|p| p.entry.id);
            if self.lost.contains(slot) {
                repair.extend(self.lost_range(slot));
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

    /// What a bookie held that lost its store: all acknowledged entries since it came to this slot.
    fn lost_range(&self, slot: u32) -> Option<RepairRange> {
        let holder = self.slots[slot as usize].bookie.as_ref()?;
        let held = |fragment: &&Fragment| fragment.ensemble[slot as usize].as_ref() == Some(holder);
        let first = self.record.fragments.iter().rev().take_while(held).last()?.first;
        let last = self.lac()?;
        (first <= last).then_some(RepairRange { first, last: Some(last), slot })
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
        self.failed = self.failed.minus(replaced);
        self.lost = self.lost.minus(replaced);
        self.disk_full &= !(self.failed.is_empty() && self.vacant().is_empty());
        while self.full_end < self.acked_end {
            self.pending.pop_front();
            self.full_end = self.full_end.next();
        }
        self.bytes_lagging = 0;
        for pending in &mut self.pending {
            pending.acked = pending.acked.minus(replaced);
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

    fn resend(&self, slot: u32, out: &mut Vec<Effect>) {
        let entries: Vec<Entry> = self
            .pending
            .iter()
            .filter(|p| self.quorum.write_set(p.entry.id).contains(slot))
            .map(|p| match active(Mutant::ResendDrained) {
                true => Entry { payload: bytes::Bytes::new(), ..p.entry.clone() },
                false => p.entry.clone(),
            })
            .collect();
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            let (first, last) = (first.id, last.id);
            let generation = self.slots[slot as usize].generation;
            out.push(Effect::Send(SlotAdd { slot, generation, first, last, entries }));
        }
    }

    fn fail(&mut self, error: AppendError) {
        if self.status == Status::Open {
            self.status = Status::Failed(error);
        }
    }
}

#[cfg(test)]
impl State {
    /// The same state with slots renamed: `to[i]` is the new number of slot i. For the exploration, which merges such states.
    pub(crate) fn permuted(&self, to: &[u32]) -> Self {
        let set = |slots: SlotSet| -> SlotSet { slots.iter().map(|s| to[s as usize]).collect() };
        let mut next = self.clone();
        for (at, slot) in self.slots.iter().enumerate() {
            next.slots[to[at] as usize] = slot.clone();
        }
        next.pending.iter_mut().for_each(|p| p.acked = set(p.acked));
        next.failed = set(self.failed);
        next.record = self.record.permuted(to);
        next.change = self.change.clone().map(|change| match change {
            Change::Placing(slots) => Change::Placing(set(slots)),
            Change::Committing { fragments, repair, replaced } => {
                let planned = LedgerRecord { fragments, repair, ..self.record.clone() }.permuted(to);
                let LedgerRecord { fragments, repair, .. } = planned;
                Change::Committing { fragments, repair, replaced: set(replaced) }
            }
        });
        next
    }

    /// What distinguishes a slot from the others.
    pub(crate) fn of_slot(&self, slot: u32) -> (u32, bool, bool, bool, Vec<bool>) {
        let s = &self.slots[slot as usize];
        let acked = self.pending.iter().map(|p| p.acked.contains(slot)).collect();
        (s.generation, s.introduced, s.bookie.is_some(), self.failed.contains(slot), acked)
    }
}
