//! The world of the exploration: machines, messages on their way, and the observer.

use crate::entry::{Header, Kind};
use crate::ledgers::NewEntry;
use crate::memory::store::Store;
use crate::quorum::{QuorumSpec, SlotSet};
use crate::record::{Fragment, LedgerAttributes, LedgerKind, LedgerRecord, LedgerState, OpId, RepairRange};
use crate::recovery::state as recovery;
use crate::rpc::{Add, AddError, BookieRef, ControlError, Doubt, Read, ReadAnswer, ReadClass, Tail};
use crate::writer::state as writer;
use geminga_common::ids::{
    BookieId, EntryId, Incarnation, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId,
};
use geminga_common::metadata::Revision;
use geminga_common::rng::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

const LEDGER: LedgerId = LedgerId(1);
const ENTRIES_MAX: u64 = 8;
const RECOVERIES_MAX: usize = 4;

/// The writer, or a recoverer by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Writer,
    Recoverer(usize),
}

#[derive(Clone, Debug)]
struct AddTag {
    who: Who,
    slot: u32,
    generation: u32,
    /// `None`: without entries, to see whether the bookie still is who it was.
    ids: Option<(EntryId, EntryId)>,
}

#[derive(Clone, Debug)]
enum Msg {
    Add(AddTag, BookieRef, Add),
    Added(AddTag, Result<(), AddError>),
    Fence(usize, u32, BookieRef, Term, EntryId),
    Fenced(usize, u32, Result<Tail, ControlError>),
    Read(usize, u32, BookieRef, Read),
    HasRead(usize, u32, EntryId, ReadAnswer),
    ReadLast(usize, EntryId),
    /// A record to be put over a revision.
    Txn(Who, Box<LedgerRecord>, Revision),
    Settled(Who, writer::ChangeOutcome),
}

struct Recoverer {
    state: recovery::State,
    revision: Revision,
    alive: bool,
}

/// What the schedules came across.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) acked: u64,
    pub(super) fenced_writers: u64,
    pub(super) changes: u64,
    pub(super) closed_by_recovery: u64,
    pub(super) closed_by_writer: u64,
    pub(super) written_back: u64,
    pub(super) superseded: u64,
    pub(super) undecided: u64,
    pub(super) probed_out: u64,
}

impl Seen {
    pub(super) fn add(&mut self, other: &Seen) {
        self.acked += other.acked;
        self.fenced_writers += other.fenced_writers;
        self.changes += other.changes;
        self.closed_by_recovery += other.closed_by_recovery;
        self.closed_by_writer += other.closed_by_writer;
        self.written_back += other.written_back;
        self.superseded += other.superseded;
        self.undecided += other.undecided;
        self.probed_out += other.probed_out;
    }
}

pub(super) struct World {
    spec: QuorumSpec,
    stores: Vec<Store>,
    record: LedgerRecord,
    revision: Revision,
    writer: writer::State,
    recoverers: Vec<Recoverer>,
    net: Vec<Msg>,
    contents: BTreeMap<EntryId, u32>,
    acked: Option<EntryId>,
    closed: Option<(Option<EntryId>, u64)>,
    wiped: u32,
    /// Members of which the writer was told, while they were members, that their stores are lost.
    told_lost: Vec<BookieRef>,
    broken: Option<String>,
    pub(super) seen: Seen,
}

impl World {
    pub(super) fn new(spec: QuorumSpec, bookies: usize) -> Self {
        let stores: Vec<Store> = (0..bookies)
            .map(|i| {
                let id = BookieId::new(&format!("b{i}")).expect("a plain name");
                Store::new(BookieRef { id, incarnation: Incarnation(1) })
            })
            .collect();
        let ensemble = stores.iter().take(spec.ensemble() as usize).map(|s| Some(s.me().clone())).collect();
        let record = LedgerRecord {
            id: LEDGER,
            term: Term(1),
            state: LedgerState::Open,
            quorum: spec,
            fragments: vec![Fragment { first: EntryId(0), ensemble }],
            repair: Vec::<RepairRange>::new(),
            attributes: Arc::new(LedgerAttributes {
                kind: LedgerKind::TopicData,
                owner: "t".into(),
                topic: TopicId(1),
                ordinal: 0,
                predecessor: None,
                owner_epoch: OwnerEpoch(1),
                first_index: MessageIndex(0),
            }),
            op_id: OpId(0),
        };
        Self {
            spec,
            stores,
            writer: writer::State::new(record.clone(), Revision(1), writer::Limits::default()),
            record,
            revision: Revision(1),
            recoverers: Vec::new(),
            net: Vec::new(),
            contents: BTreeMap::new(),
            acked: None,
            closed: None,
            wiped: 0,
            told_lost: Vec::new(),
            broken: None,
            seen: Seen::default(),
        }
    }

    // What may happen.

    pub(super) fn append(&mut self, count: u64) {
        let next = self.writer.last_sent().map_or(0, |id| id.0 + 1);
        let entry = |i: u64| NewEntry {
            header: Header {
                kind: Kind::Messages,
                messages: 1,
                first_index: MessageIndex(next + i),
                timestamp_ms: 0,
                bytes_before: 0,
            },
            payload: format!("entry {}", next + i).into_bytes().into(),
        };
        if next + count > ENTRIES_MAX {
            return;
        }
        let mut out = Vec::new();
        // A writer that is over refuses: that is part of the story.
        let _ = self.writer.append((0..count).map(entry).collect(), &mut out);
        self.writer_effects(out);
    }

    pub(super) fn start_recovery(&mut self) {
        if self.recoverers.len() < RECOVERIES_MAX {
            self.recover();
        }
    }

    fn recover(&mut self) {
        if self.closed.is_some() {
            return;
        }
        let (state, term) = (LedgerState::Recovering, self.record.term.next());
        self.record = LedgerRecord { state, term, op_id: OpId(u64::MAX), ..self.record.clone() };
        self.revision = Revision(self.revision.0 + 1);
        let mut out = Vec::new();
        let state = recovery::State::start(self.record.clone(), &mut out);
        self.recoverers.push(Recoverer { state, revision: self.revision, alive: true });
        self.recovery_effects(self.recoverers.len() - 1, out);
    }

    pub(super) fn crash_recovery(&mut self, rng: &mut Rng) {
        let n = rng.below(self.recoverers.len() as u64) as usize;
        if let Some(recoverer) = self.recoverers.get_mut(n) {
            recoverer.alive = false;
        }
    }

    pub(super) fn crash_all_recoveries(&mut self) {
        self.recoverers.iter_mut().for_each(|r| r.alive = false);
    }

    pub(super) fn patience_over(&mut self, rng: &mut Rng) {
        let n = rng.below(self.recoverers.len() as u64) as usize;
        self.with_recoverer(n, |state, out| state.on_patience_over(out));
    }

    pub(super) fn patience_over_all(&mut self) {
        for n in 0..self.recoverers.len() {
            self.with_recoverer(n, |state, out| state.on_patience_over(out));
        }
    }

    pub(super) fn deadline(&mut self, rng: &mut Rng) {
        let n = rng.below(self.recoverers.len() as u64) as usize;
        self.with_recoverer(n, |state, out| state.on_deadline(out));
    }

    /// Up to Qa−1 bookies may lose their data for good: more is beyond what quorums promise.
    pub(super) fn wipe(&mut self, rng: &mut Rng) {
        if self.wiped + 1 < self.spec.ack() {
            self.wipe_bookie(rng.below(self.stores.len() as u64) as usize);
        }
    }

    pub(super) fn wipe_bookie(&mut self, n: usize) {
        self.wiped += 1;
        self.stores[n].wipe(true);
    }

    pub(super) fn close(&mut self) {
        if self.writer.changing() || *self.writer.status() == writer::Status::Closing {
            return;
        }
        if let Ok(record) = self.writer.close() {
            self.net.push(Msg::Txn(Who::Writer, Box::new(record), self.writer.revision()));
        }
    }

    pub(super) fn readmit(&mut self) {
        let mut out = Vec::new();
        self.writer.on_readmit(&mut out);
        self.writer_effects(out);
    }

    /// Somebody says that the bookie of a slot is gone; true or not.
    pub(super) fn probe(&mut self, rng: &mut Rng) {
        let slot = rng.below(u64::from(self.spec.ensemble())) as u32;
        let Some(to) = self.writer.slot(slot).bookie.clone() else { return };
        if *self.writer.status() == writer::Status::Open {
            let generation = self.writer.slot(slot).generation;
            let (term, lac, lafr) = (self.writer.term(), self.writer.lac(), self.writer.lafr());
            let add = Add { ledger: LEDGER, term, lac, lafr, attributes: None, entries: vec![] };
            self.net.push(Msg::Add(AddTag { who: Who::Writer, slot, generation, ids: None }, to, add));
        }
    }

    /// A call or an answer to one is lost: the caller is told that it cannot know.
    pub(super) fn lose(&mut self, rng: &mut Rng) {
        if self.net.is_empty() {
            return;
        }
        let index = rng.below(self.net.len() as u64) as usize;
        let lost = match &self.net[index] {
            Msg::Add(tag, ..) | Msg::Added(tag, _) => Msg::Added(tag.clone(), Err(AddError::Unknown("lost"))),
            Msg::Fence(n, slot, ..) | Msg::Fenced(n, slot, _) => {
                Msg::Fenced(*n, *slot, Err(ControlError::Unknown("lost")))
            }
            Msg::Read(n, slot, _, read) => {
                Msg::HasRead(*n, *slot, read.first, ReadAnswer::Unknown(Doubt::Unreachable))
            }
            // Transactions are asked about until their outcome is known.
            _ => return,
        };
        let index = self.first_of_its_pipeline(index);
        self.net.remove(index);
        self.net.push(lost);
    }

    pub(super) fn deliver(&mut self, rng: &mut Rng) {
        if !self.net.is_empty() {
            let index = rng.below(self.net.len() as u64) as usize;
            self.deliver_at(self.first_of_its_pipeline(index));
        }
    }

    /// Adds of one sender to one bookie keep their order.
    fn first_of_its_pipeline(&self, index: usize) -> usize {
        let Msg::Add(tag, to, _) = &self.net[index] else { return index };
        let same = |m: &Msg| matches!(m, Msg::Add(t, b, _) if t.who == tag.who && b == to);
        self.net.iter().position(same).unwrap_or(index)
    }

    fn deliver_where(&mut self, wanted: impl Fn(&Msg) -> bool) {
        while let Some(index) = self.net.iter().position(&wanted) {
            self.deliver_at(index);
        }
    }

    pub(super) fn deliver_adds_to(&mut self, n: usize) {
        let id = self.stores[n].me().id.clone();
        self.deliver_where(|m| matches!(m, Msg::Add(_, to, _) if to.id == id));
    }

    pub(super) fn deliver_fences_to(&mut self, n: usize) {
        let id = self.stores[n].me().id.clone();
        self.deliver_where(|m| matches!(m, Msg::Fence(_, _, to, ..) if to.id == id));
        self.deliver_where(|m| matches!(m, Msg::Fenced(..)));
    }

    pub(super) fn deliver_answers(&mut self) {
        self.deliver_where(|m| matches!(m, Msg::Added(..)));
    }

    pub(super) fn deliver_from_recoverers(&mut self) {
        self.deliver_where(|m| {
            matches!(
                m,
                Msg::Txn(Who::Recoverer(_), ..) | Msg::Settled(Who::Recoverer(_), _) | Msg::ReadLast(..)
            )
        });
    }

    pub(super) fn deliver_everything(&mut self) {
        self.deliver_where(|_| true);
    }

    /// No more faults: whatever is on its way arrives, and the ledger must close (I20).
    pub(super) fn settle(&mut self, rng: &mut Rng) -> Result<(), String> {
        for _ in 0..6 {
            for _ in 0..10_000 {
                if self.net.is_empty() {
                    break;
                }
                self.deliver(rng);
                self.check()?;
            }
            self.patience_over_all();
            self.check()?;
            if self.net.is_empty() && self.closed.is_some() {
                return self.check();
            }
            if self.net.is_empty() {
                self.recover();
            }
        }
        Err("I20: the ledger does not close although every bookie answers".into())
    }

    // How it happens.

    fn store_of(&mut self, to: &BookieRef) -> &mut Store {
        self.stores.iter_mut().find(|s| s.me().id == to.id).expect("only known bookies are placed")
    }

    fn deliver_at(&mut self, index: usize) {
        match self.net.remove(index) {
            Msg::Add(tag, to, add) => {
                let result = self.store_of(&to).add(&to, add);
                self.net.push(Msg::Added(tag, result));
            }
            Msg::Added(AddTag { who: Who::Writer, slot, generation, ids, .. }, result) => {
                let mut out = Vec::new();
                if result == Err(AddError::WrongIncarnation) && ids.is_some() {
                    self.tell_loss(slot, generation);
                }
                match ids {
                    Some(ids) => self.writer.on_added(slot, generation, ids, result, &mut out),
                    None => {
                        let before = self.writer.changing();
                        self.writer.on_probed(slot, generation, result, &mut out);
                        self.seen.probed_out += u64::from(!before && self.writer.changing());
                    }
                }
                self.writer_effects(out);
            }
            Msg::Added(AddTag { who: Who::Recoverer(n), slot, generation, ids }, result) => {
                let ids = ids.expect("recoverers add entries");
                self.with_recoverer(n, |state, out| state.on_added(slot, generation, ids, result, out));
            }
            Msg::Fence(n, slot, to, term, from) => {
                let result = self.store_of(&to).fence_tail(&to, LEDGER, term, from);
                self.net.push(Msg::Fenced(n, slot, result));
            }
            Msg::Fenced(n, slot, result) => {
                self.with_recoverer(n, |state, out| state.on_tail(slot, result, out));
            }
            Msg::Read(n, slot, to, read) => {
                let answer = self.store_of(&to).read(&to, read);
                self.net.push(Msg::HasRead(n, slot, read.first, answer));
            }
            Msg::HasRead(n, slot, first, answer) => {
                self.with_recoverer(n, |state, out| state.on_read(slot, first, answer, out));
            }
            Msg::ReadLast(n, id) => {
                let entry = self.holders(&self.record.fragments, id).next().cloned();
                self.with_recoverer(n, |state, out| state.on_last(entry, out));
            }
            Msg::Txn(who, record, over) => self.txn(who, *record, over),
            Msg::Settled(Who::Writer, outcome) => {
                let mut out = Vec::new();
                self.writer.on_change(outcome, &mut out);
                self.writer_effects(out);
            }
            Msg::Settled(Who::Recoverer(_), _) => {}
        }
    }

    fn txn(&mut self, who: Who, record: LedgerRecord, over: Revision) {
        let outcome = if over == self.revision {
            if self.closed.is_some() {
                self.broken = Some("I3: a closed ledger was written over".into());
            }
            self.revision = Revision(self.revision.0 + 1);
            self.record = record;
            self.seen.changes += u64::from(self.record.state == LedgerState::Open);
            if let LedgerState::Closed { last, length } = self.record.state {
                self.closed = Some((last, length));
                match who {
                    Who::Writer => self.seen.closed_by_writer += 1,
                    Who::Recoverer(_) => self.seen.closed_by_recovery += 1,
                }
                self.check_closed(who);
            }
            writer::ChangeOutcome::Committed(self.revision)
        } else {
            writer::ChangeOutcome::Lost(Some((Box::new(self.record.clone()), self.revision)))
        };
        self.net.push(Msg::Settled(who, outcome));
    }

    fn writer_effects(&mut self, mut effects: Vec<writer::Effect>) {
        while !effects.is_empty() {
            let mut more = Vec::new();
            for effect in effects {
                match effect {
                    writer::Effect::Send(add) => self.send(add),
                    writer::Effect::Place(slots) => {
                        let members: Vec<BookieRef> = self.writer.members().cloned().collect();
                        let found = self.place(slots, &members);
                        self.writer.on_replacements(&found, &mut more);
                    }
                    writer::Effect::Commit(record) => {
                        self.net.push(Msg::Txn(Who::Writer, record, self.writer.revision()));
                    }
                }
            }
            effects = more;
        }
        self.observe_acks();
    }

    fn send(&mut self, add: writer::SlotAdd) {
        let writer::SlotAdd { slot, generation, first, last, entries } = add;
        let Some(to) = self.writer.slot(slot).bookie.clone() else { return };
        for entry in &entries {
            self.contents.insert(entry.id, entry.crc);
        }
        let add = Add {
            ledger: LEDGER,
            term: self.writer.term(),
            lac: self.writer.lac(),
            lafr: self.writer.lafr(),
            attributes: None,
            entries,
        };
        self.net.push(Msg::Add(
            AddTag { who: Who::Writer, slot, generation, ids: Some((first, last)) },
            to,
            add,
        ));
    }

    fn place(&self, slots: SlotSet, members: &[BookieRef]) -> Vec<(u32, BookieRef)> {
        let free = self.stores.iter().map(Store::me).filter(|b| !members.contains(b));
        slots.iter().zip(free.cloned()).collect()
    }

    fn with_recoverer(
        &mut self,
        n: usize,
        event: impl FnOnce(&mut recovery::State, &mut Vec<recovery::Effect>),
    ) {
        let Some(recoverer) = self.recoverers.get_mut(n).filter(|r| r.alive) else { return };
        let mut out = Vec::new();
        event(&mut recoverer.state, &mut out);
        self.recovery_effects(n, out);
    }

    fn recovery_effects(&mut self, n: usize, mut effects: Vec<recovery::Effect>) {
        while !effects.is_empty() {
            let mut more = Vec::new();
            for effect in effects {
                match effect {
                    recovery::Effect::Fence { slot, to, from } => {
                        let term = self.recoverers[n].state.record().term;
                        self.net.push(Msg::Fence(n, slot, to, term, from));
                    }
                    recovery::Effect::Read { slot, to, first, last } => {
                        let (bytes_max, class) = (1 << 20, ReadClass::Tail);
                        let read = Read { ledger: LEDGER, first, last, bytes_max, class };
                        self.net.push(Msg::Read(n, slot, to, read));
                    }
                    recovery::Effect::ReadLast(id) => self.net.push(Msg::ReadLast(n, id)),
                    recovery::Effect::Add(back) => self.send_back(n, back),
                    recovery::Effect::Place(slots) => {
                        let state = &self.recoverers[n].state;
                        let members: Vec<BookieRef> = state.members().cloned().collect();
                        let found = self.place(slots, &members);
                        self.recoverers[n].state.on_replacements(&found, &mut more);
                    }
                    recovery::Effect::Close(record) => {
                        let over = self.recoverers[n].revision;
                        self.net.push(Msg::Txn(Who::Recoverer(n), record, over));
                    }
                    recovery::Effect::Stop(recovery::Verdict::Undecided) => self.seen.undecided += 1,
                    recovery::Effect::Stop(recovery::Verdict::Superseded) => self.seen.superseded += 1,
                }
            }
            effects = more;
        }
    }

    fn send_back(&mut self, n: usize, back: recovery::WriteBack) {
        self.seen.written_back += 1;
        let ids = (back.entries[0].id, back.entries[back.entries.len() - 1].id);
        let tag =
            AddTag { who: Who::Recoverer(n), slot: back.slot, generation: back.generation, ids: Some(ids) };
        let add = Add {
            ledger: LEDGER,
            term: self.recoverers[n].state.record().term,
            lac: back.lac,
            lafr: back.lafr,
            attributes: None,
            entries: back.entries,
        };
        self.net.push(Msg::Add(tag, back.to, add));
    }

    // The observer.

    /// Copies of an entry on the bookies that its fragment names, under the incarnations it names.
    fn holders<'a>(
        &'a self,
        fragments: &'a [Fragment],
        id: EntryId,
    ) -> impl Iterator<Item = &'a crate::entry::Entry> {
        let fragment = fragments.iter().rfind(|f| f.first <= id).expect("the first fragment begins at 0");
        self.spec.write_order(id).filter_map(move |slot| {
            let bookie = fragment.ensemble[slot as usize].as_ref()?;
            self.stores.iter().find(|s| s.me() == bookie)?.entry(LEDGER, id)
        })
    }

    fn observe_acks(&mut self) {
        if *self.writer.status() == writer::Status::Failed(crate::ledgers::AppendError::Fenced) {
            self.seen.fenced_writers += 1;
        }
        while self.acked < self.writer.lac() {
            let id = self.acked.map_or(EntryId(0), EntryId::next);
            self.acked = Some(id);
            self.seen.acked += 1;
            let fragments = &self.writer.record().fragments;
            let copies = self.holders(fragments, id).count() as u32;
            if copies + self.wiped < self.spec.ack() {
                self.broken = Some(format!("I1: {id:?} acknowledged with {copies} copies"));
            }
            if self.closed.is_some_and(|(last, _)| Some(id) > last) {
                self.broken = Some(format!("I2: {id:?} acknowledged beyond the close"));
            }
        }
    }

    /// The writer is told that a member's store is lost.
    fn tell_loss(&mut self, slot: u32, generation: u32) {
        let told = self.writer.slot(slot);
        if told.generation == generation && *self.writer.status() == writer::Status::Open {
            self.told_lost.extend(told.bookie.clone());
        }
    }

    fn check_closed(&mut self, by: Who) {
        let Some((last, length)) = self.closed else { return };
        if last < self.acked {
            self.broken = Some(format!("I2: closed at {last:?}, acknowledged {:?}", self.acked));
        }
        let mut bytes = 0;
        for id in (0..last.map_or(0, |last| last.0 + 1)).map(EntryId) {
            let copies: Vec<_> = self.holders(&self.record.fragments, id).collect();
            if (copies.len() as u32) + self.wiped < self.spec.ack() {
                self.broken = Some(format!("I15: {id:?} closed with {} copies", copies.len()));
                return;
            }
            bytes += copies.first().map_or(0, |entry| entry.size() as u64);
            if !self.recorded_or_whole(id, copies.len(), by) {
                self.broken = Some(format!("I15: {id:?} is below its write quorum and not in repair"));
                return;
            }
        }
        if bytes != length {
            self.broken = Some(format!("closed with {length} bytes, but there are {bytes}"));
        }
    }

    /// I15: all of the write set hold the entry, or its missing slots are in repair, or their bookies were wiped since, and whoever
    /// closes was not told so.
    fn recorded_or_whole(&self, id: EntryId, copies: usize, by: Who) -> bool {
        let fragments = &self.record.fragments;
        let fragment = fragments.iter().rfind(|f| f.first <= id).expect("the first fragment begins at 0");
        copies as u32 == self.spec.write()
            || self.spec.write_order(id).all(|slot| {
                let bookie = fragment.ensemble[slot as usize].as_ref();
                let store = bookie.and_then(|b| self.stores.iter().find(|s| s.me() == b));
                let told = by == Who::Writer && bookie.is_some_and(|b| self.told_lost.contains(b));
                let gone = bookie.is_some() && store.is_none() && !told;
                let held = store.is_some_and(|s| s.entry(LEDGER, id).is_some());
                let listed =
                    |r: &RepairRange| r.slot == slot && r.first <= id && r.last.is_none_or(|last| id <= last);
                held || gone || self.record.repair.iter().any(listed)
            })
    }

    /// What must hold after every step.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        for store in &self.stores {
            for (id, crc) in &self.contents {
                if store.entry(LEDGER, *id).is_some_and(|entry| entry.crc != *crc) {
                    return Err(format!("I4: {id:?} has two contents"));
                }
            }
        }
        if !self.record.fragments.is_sorted_by(|a, b| a.first < b.first) {
            return Err("I10: fragments out of order".into());
        }
        Ok(())
    }

    pub(super) fn acked(&self) -> Option<EntryId> {
        self.acked
    }

    pub(super) fn closed_at(&self) -> Option<Option<EntryId>> {
        self.closed.map(|(last, _)| last)
    }

    pub(super) fn fragments(&self) -> Vec<Fragment> {
        self.record.fragments.clone()
    }

    /// Everything that a replay must repeat.
    pub(super) fn digest(&self) -> String {
        format!("{:?} {:?} {:?} {:?}", self.record, self.stores, self.writer, self.seen)
    }
}
