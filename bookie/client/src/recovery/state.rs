//! The recovery machine (storage.md 1.5, R2–R6): pure, for one ledger at one term; owned by the shell next door.
//!
//! It begins when the record is `Recovering` at our term (R1 is the shell's) and ends with a closed record to commit, or with a
//! verdict. Rules that keep it safe:
//! - Every bookie that counts has been fenced at our term, so that what it lacks now stays absent for lower terms.
//! - Decisions use replies of the last published ensemble only, never of replacements.
//! - One intact copy decides for an entry; only Qw−Qa+1 authoritative "not found" decide against it; undecided aborts.
//! - Write-backs carry `lac = base` and `lafr = max LAFR replied`, never this recoverer's own progress: else a crash here leaves an
//!   id on one bookie that the next recoverer takes as proven below its base and never writes again.
//!
//! Where the only copy lost something and that was accepted for good (`Tail::lacks`), nothing proves an absence and nobody else can: the
//! ledger ends behind the last entry that is there, holes below stay holes that read as lost, and what is known to have been acknowledged
//! is told. With any other copy in the ensemble this does not apply: such a slot is then one that knows nothing.
//!
//! A vacant slot is an authoritative "not found": the record proves that no writer ever counted an ack of it in this fragment. A
//! copy that a bookie reported after fencing is durable there, so it counts as written back: a single-copy ledger needs none.

use crate::entry::Entry;
use crate::mutant::{Mutant, active};
use crate::quorum::SlotSet;
use crate::record::{Fragment, LedgerAttributes, LedgerRecord, LedgerState, RepairRange, close_repair};
use crate::rpc::{AddError, BookieRef, ControlError, IdRange, ReadAnswer, Tail};
use geminga_common::ids::EntryId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bytes of one write-back or read.
pub const BATCH_BYTES: usize = 1 << 20;
/// Replacement bookies tried before the recovery is left for later.
const REPLACEMENTS_MAX: u32 = 8;

/// What a slot said to the fence.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Reply {
    /// Nothing yet.
    Waiting,
    /// It cannot tell, or cannot be reached.
    Unknown,
    /// No bookie there.
    Vacant,
    /// Fenced; these ids are there, and these may be.
    Fenced {
        /// Runs of ids present.
        present: Vec<IdRange>,
        /// Runs of ids that may be present.
        doubtful: Vec<IdRange>,
        /// It is the only copy, and lost something; that was accepted.
        lacks: bool,
    },
}

/// A slot of the ensemble that is asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Member {
    bookie: Option<BookieRef>,
    reply: Reply,
    /// Reported present, but not readable intact.
    unreadable: BTreeSet<EntryId>,
}

/// What a slot says about one id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Say {
    Present,
    Absent,
    Unknown,
}

impl Member {
    fn says(&self, id: EntryId) -> Say {
        let within = |runs: &[IdRange]| runs.iter().any(|run| run.first <= id && id <= run.last);
        match &self.reply {
            Reply::Waiting | Reply::Unknown => Say::Unknown,
            Reply::Vacant => Say::Absent,
            Reply::Fenced { doubtful, .. } if within(doubtful) || self.unreadable.contains(&id) => {
                Say::Unknown
            }
            Reply::Fenced { present, .. } if within(present) => Say::Present,
            Reply::Fenced { lacks: true, .. } => Say::Unknown,
            Reply::Fenced { .. } => Say::Absent,
        }
    }

    /// Last id of the present run that holds `id`.
    fn run_end(&self, id: EntryId) -> EntryId {
        let Reply::Fenced { present, .. } = &self.reply else { return id };
        present.iter().find(|run| run.first <= id && id <= run.last).map_or(id, |run| run.last)
    }
}

/// Writing back.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Writing {
    ensemble: Vec<Option<BookieRef>>,
    generations: Vec<u32>,
    /// Acks per id from `base_end` on.
    acked: Vec<SlotSet>,
    /// Write-backs not answered yet, per slot.
    outstanding: Vec<u32>,
    /// Slots that get nothing any more.
    given_up: SlotSet,
    replacements: u32,
}

/// Where the recovery stands.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Deciding,
    Reading { slot: u32, first: EntryId },
    ReadingLast,
    Placing(SlotSet, Writing),
    Writing(Writing),
    Over,
}

/// How it ends without a closed record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// Too little is known; the ledger stays Recovering.
    Undecided,
    /// Another recoverer is ahead, or the ledger is closed or deleted: look at the record again.
    Superseded,
}

/// Entries to be written back to a slot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct WriteBack {
    /// The slot.
    pub slot: u32,
    /// Tenure the answer will be for.
    pub generation: u32,
    /// Its bookie.
    pub to: BookieRef,
    /// The LAC they carry: the base.
    pub lac: Option<EntryId>,
    /// The LAFR they carry: the highest replied.
    pub lafr: Option<EntryId>,
    /// The entries, ids rising.
    pub entries: Vec<Entry>,
}

/// What the shell has to do, in this order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Send FenceTail at the record's term.
    Fence {
        /// The slot.
        slot: u32,
        /// Its bookie.
        to: BookieRef,
        /// First id wanted.
        from: EntryId,
    },
    /// Read a run from one bookie; tell [`State::on_read`].
    Read {
        /// The slot.
        slot: u32,
        /// Its bookie.
        to: BookieRef,
        /// First id.
        first: EntryId,
        /// Last id.
        last: EntryId,
    },
    /// Read this entry from wherever the record says; tell [`State::on_last`].
    ReadLast(EntryId),
    /// Write entries back; tell [`State::on_added`].
    Add(WriteBack),
    /// Ask the placement for bookies outside [`State::members`]; tell [`State::on_replacements`].
    Place(SlotSet),
    /// Commit this record over the recovering one. `op_id` is the shell's to fill.
    Close(Box<LedgerRecord>),
    /// Give up with this verdict.
    Stop(Verdict),
}

/// The machine.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    record: LedgerRecord,
    members: Vec<Member>,
    known: BTreeMap<EntryId, Entry>,
    lac: Option<EntryId>,
    lafr: Option<EntryId>,
    attributes: Option<Arc<LedgerAttributes>>,
    patience_over: bool,
    deadline_over: bool,
    /// Decided range, exclusive ends: base + 1 and last + 1.
    base_end: EntryId,
    end: EntryId,
    /// The ledger ends where a loss that was accepted begins: what was acknowledged and is gone for good, as far as is known.
    lost: Option<Vec<IdRange>>,
    phase: Phase,
}

impl State {
    /// A recovery whose record is `Recovering` at its term; fences the last ensemble.
    #[must_use]
    pub fn start(record: LedgerRecord, out: &mut Vec<Effect>) -> Self {
        let fragment = record.last_fragment().clone();
        let member = |bookie: &Option<BookieRef>| Member {
            bookie: bookie.clone(),
            reply: if bookie.is_some() { Reply::Waiting } else { Reply::Vacant },
            unreadable: BTreeSet::new(),
        };
        let from = if active(Mutant::RecoverFromBelow) { EntryId(0) } else { fragment.first };
        for (slot, to) in (0..).zip(&fragment.ensemble) {
            if let Some(to) = to.clone() {
                out.push(Effect::Fence { slot, to, from });
            }
        }
        Self {
            members: fragment.ensemble.iter().map(member).collect(),
            known: BTreeMap::new(),
            lac: None,
            lafr: None,
            attributes: None,
            patience_over: false,
            deadline_over: false,
            base_end: fragment.first,
            end: fragment.first,
            lost: None,
            phase: Phase::Deciding,
            record,
        }
    }

    /// The record being closed.
    #[must_use]
    pub fn record(&self) -> &LedgerRecord {
        &self.record
    }

    /// Attributes as a bookie holds them.
    #[must_use]
    pub fn attributes(&self) -> Option<&Arc<LedgerAttributes>> {
        self.attributes.as_ref()
    }

    /// An entry that was read.
    #[must_use]
    pub fn entry(&self, id: EntryId) -> Option<&Entry> {
        self.known.get(&id)
    }

    /// What was acknowledged, as far as is known, and is gone for good; `None` unless the only copy lost something that was accepted.
    #[must_use]
    pub fn lost(&self) -> Option<&[IdRange]> {
        self.lost.as_deref()
    }

    /// Whether it has ended: with a record to commit or a verdict.
    #[must_use]
    pub fn over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Bookies asked or written to: none of them may be placed again.
    pub fn members(&self) -> impl Iterator<Item = &BookieRef> {
        let working = match &self.phase {
            Phase::Placing(_, writing) | Phase::Writing(writing) => &writing.ensemble[..],
            _ => &[],
        };
        self.members.iter().filter_map(|m| m.bookie.as_ref()).chain(working.iter().flatten())
    }

    /// Bookies of the working ensemble that stay when `leaving` are replaced.
    #[must_use]
    pub fn staying(&self, leaving: SlotSet) -> Vec<BookieRef> {
        let working = match &self.phase {
            Phase::Placing(_, writing) | Phase::Writing(writing) => &writing.ensemble[..],
            _ => &[],
        };
        let staying = (0_u32..).zip(working).filter(|(slot, _)| !leaving.contains(*slot));
        staying.filter_map(|(_, bookie)| bookie.clone()).collect()
    }

    /// A bookie answered the fence.
    pub fn on_tail(&mut self, slot: u32, result: Result<Tail, ControlError>, out: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Deciding | Phase::Reading { .. }) {
            return;
        }
        match result {
            Ok(tail) => {
                self.lac = self.lac.max(tail.lac);
                self.lafr = self.lafr.max(tail.lafr);
                self.attributes = self.attributes.take().or(tail.attributes);
                let (present, doubtful, lacks) = (tail.present, tail.doubtful, tail.lacks);
                self.members[slot as usize].reply = Reply::Fenced { present, doubtful, lacks };
                self.learn(slot, tail.entries);
            }
            Err(ControlError::StaleTerm(_) | ControlError::Tombstoned) => {
                return self.stop(Verdict::Superseded, out);
            }
            Err(_) => self.members[slot as usize].reply = Reply::Unknown,
        }
        self.decide(out);
    }

    /// A bookie answered a read.
    pub fn on_read(&mut self, slot: u32, first: EntryId, answer: ReadAnswer, out: &mut Vec<Effect>) {
        if self.phase != (Phase::Reading { slot, first }) {
            return;
        }
        self.phase = Phase::Deciding;
        if let ReadAnswer::Found(entries) = answer {
            self.learn(slot, entries);
        }
        if !self.known.contains_key(&first) {
            // Reported present, yet not readable: neither found nor absent.
            self.members[slot as usize].unreadable.insert(first);
        }
        self.decide(out);
    }

    /// The entry before the tail was read, or not.
    pub fn on_last(&mut self, entry: Option<Entry>, out: &mut Vec<Effect>) {
        if self.phase != Phase::ReadingLast {
            return;
        }
        match entry {
            Some(entry) if Some(entry.id) == self.end.previous() => {
                self.known.insert(entry.id, entry);
                self.write_back(out);
            }
            _ => self.stop(Verdict::Undecided, out),
        }
    }

    /// Slots that are merely slow have had their time: coverage decides now.
    pub fn on_patience_over(&mut self, out: &mut Vec<Effect>) {
        self.patience_over = true;
        self.decide(out);
    }

    /// No more waiting: undecided stops, slots that have not taken their write-backs are left to repair.
    pub fn on_deadline(&mut self, out: &mut Vec<Effect>) {
        self.patience_over = true;
        self.deadline_over = true;
        match &mut self.phase {
            Phase::Deciding => self.decide(out),
            Phase::Writing(writing) => {
                for slot in 0..writing.outstanding.len() {
                    if writing.outstanding[slot] > 0 {
                        writing.outstanding[slot] = 0;
                        writing.generations[slot] += 1;
                        writing.given_up.insert(slot as u32);
                    }
                }
                self.finish(out);
            }
            Phase::Reading { .. } | Phase::ReadingLast => self.stop(Verdict::Undecided, out),
            Phase::Placing(..) | Phase::Over => {}
        }
    }

    /// The placement's answer.
    pub fn on_replacements(&mut self, found: &[(u32, BookieRef)], out: &mut Vec<Effect>) {
        let Phase::Placing(slots, mut writing) = self.phase.clone() else { return };
        for slot in slots.iter() {
            let at = slot as usize;
            let Some((_, bookie)) = found.iter().find(|(asked, _)| *asked == slot) else {
                writing.given_up.insert(slot);
                continue;
            };
            writing.ensemble[at] = Some(bookie.clone());
            writing.generations[at] += 1;
            writing.replacements += 1;
            writing.acked.iter_mut().for_each(|acked| acked.remove(slot));
            writing.given_up.remove(slot);
            self.send_missing(&mut writing, slot, out);
        }
        self.phase = Phase::Writing(writing);
        self.finish(out);
    }

    /// A bookie answered a write-back of these ids.
    pub fn on_added(
        &mut self,
        slot: u32,
        generation: u32,
        (first, last): (EntryId, EntryId),
        result: Result<(), AddError>,
        out: &mut Vec<Effect>,
    ) {
        let (base, record) = (self.base_end.0, &self.record);
        let placing = matches!(self.phase, Phase::Placing(..));
        let (Phase::Writing(writing) | Phase::Placing(_, writing)) = &mut self.phase else { return };
        let at = slot as usize;
        if writing.generations[at] != generation || writing.given_up.contains(slot) {
            return;
        }
        match result {
            Ok(()) => {
                writing.outstanding[at] -= 1;
                for id in (first.0..=last.0).filter(|id| record.quorum.write_set(EntryId(*id)).contains(slot))
                {
                    writing.acked[(id - base) as usize].insert(slot);
                }
            }
            Err(AddError::StaleTerm(_) | AddError::Sealed(_) | AddError::Tombstoned) => {
                return self.stop(Verdict::Superseded, out);
            }
            // Two contents under one id: nothing may be decided over that.
            Err(AddError::Conflict(_)) => return self.stop(Verdict::Undecided, out),
            Err(_) => {
                writing.outstanding[at] = 0;
                writing.generations[at] += 1;
                // The placement answers at once, so that two questions never overlap; kept safe all the same.
                if placing || writing.replacements >= REPLACEMENTS_MAX {
                    writing.given_up.insert(slot);
                } else {
                    let slots: SlotSet = [slot].into_iter().collect();
                    self.phase = Phase::Placing(slots, writing.clone());
                    return out.push(Effect::Place(slots));
                }
            }
        }
        self.finish(out);
    }

    fn stop(&mut self, verdict: Verdict, out: &mut Vec<Effect>) {
        if self.phase != Phase::Over {
            self.phase = Phase::Over;
            out.push(Effect::Stop(verdict));
        }
    }

    /// Keeps entries that are intact and belong on that slot.
    fn learn(&mut self, slot: u32, entries: Vec<Entry>) {
        for entry in entries {
            let belongs = self.record.quorum.write_set(entry.id).contains(slot);
            if belongs && entry.id >= self.record.last_fragment().first && entry.verify(self.record.id) {
                self.known.entry(entry.id).or_insert(entry);
            }
        }
    }

    /// R2–R4: coverage, base, and where the ledger ends.
    fn decide(&mut self, out: &mut Vec<Effect>) {
        if self.phase != Phase::Deciding {
            return;
        }
        let silent = |reply: fn(&Reply) -> bool| -> SlotSet {
            (0..).zip(&self.members).filter(|(_, m)| reply(&m.reply)).map(|(slot, _)| slot).collect()
        };
        let waiting = silent(|reply| *reply == Reply::Waiting);
        let unknown = silent(|reply| matches!(reply, Reply::Waiting | Reply::Unknown));
        let exhausted = waiting.is_empty() || self.deadline_over;
        if !(waiting.is_empty() || self.patience_over && !active(Mutant::WaitForAll)) {
            return;
        }
        if !self.record.quorum.covered(unknown) {
            if exhausted {
                self.stop(Verdict::Undecided, out);
            }
            return;
        }
        if let Some(end) = self.end_of_what_is_left() {
            return self.close_behind_loss(end, out);
        }
        let known = self.lac.map_or(EntryId(0), EntryId::next);
        let floor = self.record.last_fragment().first;
        self.base_end = if active(Mutant::RecoverFromBelow) { known } else { known.max(floor) };
        let mut id = self.base_end;
        loop {
            if self.known.contains_key(&id) {
                id = id.next();
                continue;
            }
            let slots: Vec<u32> = self.record.quorum.write_order(id).collect();
            let says = |slot: &u32| self.members[*slot as usize].says(id);
            if let Some(slot) = slots.iter().copied().find(|slot| says(slot) == Say::Present) {
                let member = &self.members[slot as usize];
                let Some(to) = member.bookie.clone() else { return };
                let last = member.run_end(id);
                self.phase = Phase::Reading { slot, first: id };
                return out.push(Effect::Read { slot, to, first: id, last });
            }
            let absent = slots.iter().filter(|slot| says(slot) == Say::Absent).count() as u32;
            if absent >= self.record.quorum.negative() {
                break;
            }
            if exhausted {
                self.stop(Verdict::Undecided, out);
            }
            return;
        }
        self.end = id;
        self.read_last(out);
    }

    fn read_last(&mut self, out: &mut Vec<Effect>) {
        match self.end.previous() {
            Some(last) if !self.known.contains_key(&last) => {
                self.phase = Phase::ReadingLast;
                out.push(Effect::ReadLast(last));
            }
            _ => self.write_back(out),
        }
    }

    /// Where the ledger ends if the only copy of it lost something and that was accepted: behind the last entry that is there. What was
    /// acknowledged beyond is lost, and nothing else can say so.
    fn end_of_what_is_left(&self) -> Option<EntryId> {
        let (mut end, mut lacking) = (self.record.last_fragment().first, false);
        for member in &self.members {
            match &member.reply {
                Reply::Vacant => {}
                Reply::Fenced { present, lacks: true, .. } => {
                    lacking = true;
                    end = present.last().map_or(end, |run| end.max(run.last.next()));
                }
                // Whoever has another copy knows better.
                _ => return None,
            }
        }
        lacking.then_some(end)
    }

    fn close_behind_loss(&mut self, end: EntryId, out: &mut Vec<Effect>) {
        let runs = |of: fn(&Reply) -> &[IdRange]| self.members.iter().flat_map(move |m| of(&m.reply));
        let doubtful = runs(|reply| match reply {
            Reply::Fenced { doubtful, .. } => doubtful,
            _ => &[],
        });
        if doubtful.clone().any(|run| run.last >= end) {
            // Bytes that are there and do not check may be put right; only what is gone was accepted as lost.
            return self.stop(Verdict::Undecided, out);
        }
        let present = runs(|reply| match reply {
            Reply::Fenced { present, .. } => present,
            _ => &[],
        });
        let mut there: Vec<IdRange> = present.chain(doubtful).copied().collect();
        there.sort();
        let (mut lost, mut next) = (Vec::new(), self.record.last_fragment().first);
        for run in there {
            if let Some(last) = run.first.previous().filter(|last| next <= *last) {
                lost.push(IdRange { first: next, last });
            }
            next = next.max(run.last.next());
        }
        if let Some(last) = self.lac.max(self.lafr).filter(|last| next <= *last) {
            lost.push(IdRange { first: next, last });
        }
        self.lost = Some(lost);
        (self.base_end, self.end) = (end, end);
        self.read_last(out);
    }

    /// R5: copies that slots of the ensemble lack.
    fn write_back(&mut self, out: &mut Vec<Effect>) {
        let ensemble: Vec<Option<BookieRef>> = self.members.iter().map(|m| m.bookie.clone()).collect();
        let quorum = self.record.quorum;
        let holders = |id: u64| -> SlotSet {
            let has = |slot: &u32| self.members[*slot as usize].says(EntryId(id)) == Say::Present;
            quorum.write_order(EntryId(id)).filter(has).collect()
        };
        let mut writing = Writing {
            generations: vec![0; ensemble.len()],
            acked: (self.base_end.0..self.end.0).map(holders).collect(),
            outstanding: vec![0; ensemble.len()],
            given_up: SlotSet::EMPTY,
            replacements: 0,
            ensemble,
        };
        let broken = |m: &Member| !matches!(m.reply, Reply::Fenced { .. });
        let replace: SlotSet =
            (0..).zip(&self.members).filter(|(_, m)| broken(m)).map(|(slot, _)| slot).collect();
        for slot in quorum.all().minus(replace).iter() {
            self.send_missing(&mut writing, slot, out);
        }
        if self.base_end < self.end && !replace.is_empty() {
            self.phase = Phase::Placing(replace, writing);
            return out.push(Effect::Place(replace));
        }
        self.phase = Phase::Writing(writing);
        self.finish(out);
    }

    /// Sends a slot what it lacks, in batches.
    fn send_missing(&self, writing: &mut Writing, slot: u32, out: &mut Vec<Effect>) {
        let Some(to) = writing.ensemble[slot as usize].clone() else { return };
        let mut batch: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut flush = |batch: &mut Vec<Entry>, outstanding: &mut u32| {
            if !batch.is_empty() {
                *outstanding += 1;
                out.push(Effect::Add(WriteBack {
                    slot,
                    generation: writing.generations[slot as usize],
                    to: to.clone(),
                    lac: if active(Mutant::ProgressAsLac) {
                        batch.last().map(|entry| entry.id)
                    } else {
                        self.base_end.previous()
                    },
                    lafr: self.lafr,
                    entries: std::mem::take(batch),
                }));
            }
        };
        let outstanding = &mut writing.outstanding[slot as usize];
        for (acked, id) in writing.acked.iter().zip(self.base_end.0..).map(|(acked, id)| (acked, EntryId(id)))
        {
            let Some(entry) = self.known.get(&id) else { continue };
            if acked.contains(slot) || !self.record.quorum.write_set(id).contains(slot) {
                continue;
            }
            if bytes + entry.size() > BATCH_BYTES {
                flush(&mut batch, outstanding);
                bytes = 0;
            }
            bytes += entry.size();
            batch.push(entry.clone());
        }
        flush(&mut batch, outstanding);
    }

    /// R6, once nothing is outstanding: the closed record.
    fn finish(&mut self, out: &mut Vec<Effect>) {
        let Phase::Writing(writing) = &self.phase else { return };
        if writing.outstanding.iter().any(|n| *n > 0) {
            return;
        }
        if writing.acked.iter().any(|acked| acked.len() < self.record.quorum.ack()) {
            return self.stop(Verdict::Undecided, out);
        }
        let last = self.end.previous();
        let length = match last {
            None => 0,
            Some(last) => {
                let entry = &self.known[&last];
                entry.header.bytes_before + entry.size() as u64
            }
        };
        let mut fragments = self.record.fragments.clone();
        if writing.ensemble != self.record.last_fragment().ensemble {
            if self.record.last_fragment().first == self.base_end {
                fragments.pop();
            }
            fragments.push(Fragment { first: self.base_end, ensemble: writing.ensemble.clone() });
        }
        let repair = self.repair(writing);
        let state = LedgerState::Closed { last, length };
        let record = LedgerRecord { state, fragments, repair, ..self.record.clone() };
        self.phase = Phase::Over;
        out.push(Effect::Close(Box::new(record)));
    }

    /// Ranges that may be below their write quorum: what was recorded, what the writer had not completed, what was not written
    /// back.
    fn repair(&self, writing: &Writing) -> Vec<RepairRange> {
        let quorum = self.record.quorum;
        let mut repair = self.record.repair.clone();
        for range in repair.iter_mut().filter(|range| range.last.is_none()) {
            // A vacancy that was filled for the tail ends below it.
            if writing.ensemble[range.slot as usize].is_some() {
                range.last = Some(self.base_end.previous().unwrap_or(EntryId(0)));
            }
        }
        let filled = |range: &RepairRange| range.last.is_some_and(|_| self.base_end <= range.first);
        repair.retain(|range| !filled(range));
        // The change that began this fragment recorded whatever lagged before it.
        let full_end = self.record.last_fragment().first.max(self.lafr.map_or(EntryId(0), EntryId::next));
        for (slot, member) in (0..).zip(&self.members) {
            if quorum.ack() < quorum.write() && full_end < self.base_end && member.bookie.is_some() {
                repair.push(RepairRange { first: full_end, last: self.base_end.previous(), slot });
            }
            let missing = |(acked, id): (&SlotSet, u64)| {
                let id = EntryId(id);
                (quorum.write_set(id).contains(slot) && !acked.contains(slot)).then_some(id)
            };
            let mut missing = writing.acked.iter().zip(self.base_end.0..).filter_map(missing);
            if let Some(first) = missing.next() {
                repair.push(RepairRange { first, last: Some(missing.last().unwrap_or(first)), slot });
            }
        }
        close_repair(&repair, self.end.previous())
    }
}

#[cfg(test)]
impl State {
    /// Whether the end of its patience could change anything.
    pub(crate) fn is_patient(&self) -> bool {
        self.phase == Phase::Deciding && !self.patience_over
    }

    /// The same state with slots renamed: `to[i]` is the new number of slot i. For the exploration, which merges such states.
    pub(crate) fn permuted(&self, to: &[u32]) -> Self {
        let set = |slots: SlotSet| -> SlotSet { slots.iter().map(|s| to[s as usize]).collect() };
        let writing = |w: &Writing| {
            let mut next = w.clone();
            for (at, slot) in to.iter().map(|slot| *slot as usize).enumerate() {
                next.ensemble[slot].clone_from(&w.ensemble[at]);
                next.generations[slot] = w.generations[at];
                next.outstanding[slot] = w.outstanding[at];
            }
            next.acked.iter_mut().for_each(|acked| *acked = set(*acked));
            next.given_up = set(w.given_up);
            next
        };
        let mut next = self.clone();
        for (at, slot) in to.iter().enumerate() {
            next.members[*slot as usize] = self.members[at].clone();
        }
        next.record = self.record.permuted(to);
        next.phase = match &self.phase {
            Phase::Reading { slot, first } => Phase::Reading { slot: to[*slot as usize], first: *first },
            Phase::Placing(slots, w) => Phase::Placing(set(*slots), writing(w)),
            Phase::Writing(w) => Phase::Writing(writing(w)),
            other => other.clone(),
        };
        next
    }
}
