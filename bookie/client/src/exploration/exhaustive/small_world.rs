//! The world that is explored exhaustively: one ledger, E = Qw = 3, Qa = 2, and what each of its states leads to.

use super::kept::{Kept, hash_of, keep};
use crate::entry::{Header, Kind};
use crate::ledgers::{AppendError, NewEntry};
use crate::memory::store::Store;
use crate::quorum::{QuorumSpec, SlotSet};
use crate::record::{Fragment, LedgerAttributes, LedgerKind, LedgerRecord, LedgerState, OpId, RepairRange};
use crate::recovery::state as recovery;
use crate::rpc::{Add, AddError, BookieRef, ControlError, Tail};
use crate::writer::state as writer;
use bytes::Bytes;
use geminga_common::ids::{
    BookieId, EntryId, Incarnation, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId,
};
use geminga_common::metadata::Revision;
use std::fmt;
use std::hash::Hash;
use std::rc::Rc;
use std::sync::Arc;

const LEDGER: LedgerId = LedgerId(1);
const SLOTS: u32 = 3;

/// How much may happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Bounds {
    pub(super) entries: u8,
    pub(super) recoverers: u8,
    pub(super) crashes: u8,
    pub(super) faults: u8,
    pub(super) readmissions: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Who {
    Writer,
    Recoverer(usize),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Msg {
    Add { who: Who, slot: u32, generation: u32, add: Add },
    Added { who: Who, slot: u32, generation: u32, ids: (EntryId, EntryId), result: Result<(), AddError> },
    Fence { n: usize, slot: u32, term: Term, from: EntryId },
    Fenced { n: usize, slot: u32, result: Result<Tail, ControlError> },
    Txn { who: Who, record: LedgerRecord, over: Revision },
    Settled(writer::ChangeOutcome),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Bookie {
    live: Store,
    durable: Store,
    /// Answers that wait for the disk.
    held: Vec<Rc<Kept<Msg>>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Recoverer {
    state: recovery::State,
    revision: Revision,
}

/// What led to a state.
#[derive(Clone)]
pub(super) enum Step {
    Start,
    Append,
    WriterCloses,
    Readmission,
    RecoveryStarts,
    PatienceOver(usize),
    Deadline(usize),
    Syncs(u32),
    Crashes(u32),
    Arrives(Rc<Kept<Msg>>),
    NoAnswerInTime(Rc<Kept<Msg>>),
}

#[derive(Clone)]
pub(super) struct Small {
    left: Bounds,
    bookies: [Rc<Kept<Bookie>>; SLOTS as usize],
    /// `None` is over: nothing it could still be told changes anything.
    writer: Option<Rc<Kept<writer::State>>>,
    recoverers: Vec<Option<Rc<Kept<Recoverer>>>>,
    record: Rc<Kept<LedgerRecord>>,
    revision: Revision,
    net: Vec<Rc<Kept<Msg>>>,
    acked: Option<EntryId>,
    closed: Option<(Option<EntryId>, u64)>,
    broken: Option<String>,
    step: Step,
}

fn a_bookie() -> BookieRef {
    BookieRef { id: BookieId::new("b").expect("a plain name"), incarnation: Incarnation(1) }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Start => f.write_str("the start"),
            Step::Append => f.write_str("append"),
            Step::WriterCloses => f.write_str("the writer closes"),
            Step::Readmission => f.write_str("readmission"),
            Step::RecoveryStarts => f.write_str("a recovery starts"),
            Step::PatienceOver(n) => write!(f, "patience of {n} is over"),
            Step::Deadline(n) => write!(f, "deadline of {n}"),
            Step::Syncs(slot) => write!(f, "{slot} syncs"),
            Step::Crashes(slot) => write!(f, "{slot} crashes"),
            Step::Arrives(msg) => write!(f, "arrives: {:?}", ***msg),
            Step::NoAnswerInTime(msg) => write!(f, "no answer in time: {:?}", ***msg),
        }
    }
}

impl Msg {
    fn permuted(&self, to: &[u32]) -> Self {
        let mut next = self.clone();
        match &mut next {
            Msg::Add { slot, .. }
            | Msg::Added { slot, .. }
            | Msg::Fence { slot, .. }
            | Msg::Fenced { slot, .. } => {
                *slot = to[*slot as usize];
            }
            Msg::Txn { record, .. } => *record = record.permuted(to),
            Msg::Settled(writer::ChangeOutcome::Lost(Some((record, _)))) => **record = record.permuted(to),
            Msg::Settled(_) => {}
        }
        next
    }
}

fn sorted(mut messages: Vec<Rc<Kept<Msg>>>) -> Vec<Rc<Kept<Msg>>> {
    messages.sort_unstable_by_key(|m| m.hash);
    messages
}

impl Small {
    pub(super) fn new(bounds: Bounds) -> Self {
        let ensemble = vec![Some(a_bookie()); SLOTS as usize];
        let record = LedgerRecord {
            id: LEDGER,
            term: Term(1),
            state: LedgerState::Open,
            quorum: QuorumSpec::new(3, 3, 2).expect("a quorum"),
            fragments: vec![Fragment { first: EntryId(0), ensemble }],
            repair: Vec::new(),
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
        let store = Store::new(a_bookie());
        let bookie = keep(Bookie { live: store.clone(), durable: store, held: Vec::new() });
        let writer = writer::State::new(record.clone(), Revision(1), writer::Limits::default());
        Self {
            left: bounds,
            bookies: std::array::from_fn(|_| bookie.clone()),
            writer: Some(keep(writer)),
            recoverers: Vec::new(),
            record: keep(record),
            revision: Revision(1),
            net: Vec::new(),
            acked: None,
            closed: None,
            broken: None,
            step: Step::Start,
        }
    }

    // ---- identity ------------------------------------------------------------------------------------------------------

    pub(super) fn hash(&self) -> u64 {
        hash_of(&(
            (&self.left, &self.bookies, &self.writer, &self.recoverers),
            (&self.record, self.revision, &self.net, self.acked, self.closed),
        ))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    pub(super) fn step(&self) -> &Step {
        &self.step
    }

    /// The one of all states with renamed slots that stands for them: slots in the order of what tells them apart; those that this
    /// does not tell apart, in the order that hashes lowest.
    pub(super) fn canonical(self) -> Self {
        let mut order: Vec<(u64, u32)> = (0..SLOTS)
            .map(|slot| {
                let of_writer = self.writer.as_ref().map(|w| w.of_slot(slot));
                (hash_of(&(&self.bookies[slot as usize], of_writer)), slot)
            })
            .collect();
        order.sort_unstable();
        let tied = |a: usize, b: usize| order[a].0 == order[b].0;
        let orders: &[[usize; 3]] = match (tied(0, 1), tied(1, 2)) {
            (false, false) => &[[0, 1, 2]],
            (true, false) => &[[0, 1, 2], [1, 0, 2]],
            (false, true) => &[[0, 1, 2], [0, 2, 1]],
            (true, true) => &[[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]],
        };
        let renamed = orders.iter().map(|places| {
            let mut to = [0; SLOTS as usize];
            places.iter().enumerate().for_each(|(new, place)| to[order[*place].1 as usize] = new as u32);
            self.permuted(&to)
        });
        renamed.min_by_key(Self::hash).expect("at least one order")
    }

    fn permuted(&self, to: &[u32]) -> Self {
        let mut next = self.clone();
        if to.iter().zip(0..).all(|(new, old)| *new == old) {
            next.net = sorted(next.net);
            return next;
        }
        let messages =
            |all: &[Rc<Kept<Msg>>]| sorted(all.iter().map(|m| keep(m.permuted(to))).collect::<Vec<_>>());
        next.net = messages(&self.net);
        for (at, bookie) in self.bookies.iter().enumerate() {
            next.bookies[to[at] as usize] = if bookie.held.is_empty() {
                bookie.clone()
            } else {
                keep(Bookie { held: messages(&bookie.held), ..Bookie::clone(bookie) })
            };
        }
        next.writer = self.writer.as_ref().map(|w| keep(w.permuted(to)));
        next.record = keep(self.record.permuted(to));
        for (recoverer, before) in next.recoverers.iter_mut().zip(&self.recoverers) {
            *recoverer = before
                .as_ref()
                .map(|r| keep(Recoverer { state: r.state.permuted(to), revision: r.revision }));
        }
        next
    }

    // ---- what may happen -----------------------------------------------------------------------------------------------

    pub(super) fn successors(&self) -> Vec<Self> {
        let mut out = Vec::new();
        let mut go = |name: Step, step: &dyn Fn(&mut Self)| {
            let mut next = self.clone();
            next.step = name;
            step(&mut next);
            next.forget_what_cannot_matter();
            out.push(next);
        };
        if let Some(writer) = &self.writer {
            let open = *writer.status() == writer::Status::Open;
            if open && self.left.entries > 0 {
                go(Step::Append, &Self::append);
            }
            let drained = writer.lac() == writer.last_sent() && self.acked.is_some();
            if !writer.changing() && (drained || !open) {
                go(Step::WriterCloses, &Self::close);
            }
            if open && self.left.readmissions > 0 && !writer.vacant().is_empty() && !writer.changing() {
                go(Step::Readmission, &Self::readmit);
            }
        }
        if self.left.recoverers > 0 && self.closed.is_none() {
            go(Step::RecoveryStarts, &Self::start_recovery);
        }
        for (n, recoverer) in self.recoverers.iter().enumerate() {
            let Some(recoverer) = recoverer else { continue };
            if recoverer.state.is_patient() {
                go(Step::PatienceOver(n), &|w| w.recovery(n, |s, out| s.on_patience_over(out)));
            }
            if self.left.faults > 0 {
                go(Step::Deadline(n), &|w| {
                    w.left.faults -= 1;
                    w.recovery(n, |s, out| s.on_deadline(out));
                });
            }
        }
        for slot in 0..SLOTS {
            let bookie = &self.bookies[slot as usize];
            let unsynced = bookie.live != bookie.durable;
            if unsynced || !bookie.held.is_empty() {
                go(Step::Syncs(slot), &|w| w.sync(slot));
            }
            if self.left.crashes > 0 && unsynced {
                go(Step::Crashes(slot), &|w| w.crash(slot));
            }
        }
        for (at, msg) in self.net.iter().enumerate() {
            if self.is_first(at) {
                go(Step::Arrives(msg.clone()), &|w| w.deliver(at));
            }
            if self.left.faults > 0 && self.may_time_out(msg) {
                go(Step::NoAnswerInTime(msg.clone()), &|w| w.time_out(at));
            }
        }
        out
    }

    /// Whether somebody still waits for this call.
    fn may_time_out(&self, msg: &Msg) -> bool {
        match msg {
            Msg::Add { who, .. } | Msg::Added { who, .. } => match who {
                Who::Writer => self.writer.as_ref().is_some_and(|w| *w.status() == writer::Status::Open),
                Who::Recoverer(n) => self.recoverers[*n].is_some(),
            },
            Msg::Fence { n, .. } => self.recoverers[*n].is_some(),
            _ => false,
        }
    }

    /// Drops what can change nothing any more, whatever happens: else worlds that differ by it alone would be explored one by one.
    /// A term that is durable never falls, so that what it refuses will be refused.
    fn forget_what_cannot_matter(&mut self) {
        use writer::Status;
        let over =
            |w: &writer::State| matches!(w.status(), Status::Closing | Status::Failed(AppendError::Fenced));
        if self.writer.as_ref().is_some_and(|w| over(w)) {
            self.writer = None;
        }
        for recoverer in &mut self.recoverers {
            if recoverer.as_ref().is_some_and(|r| r.state.over()) {
                *recoverer = None;
            }
        }
        let (writer, recoverers, bookies) = (&self.writer, &self.recoverers, &self.bookies);
        let deaf = |who: &Who| match who {
            Who::Writer => writer.is_none(),
            Who::Recoverer(n) => recoverers[*n].is_none(),
        };
        // The end is written, and nobody is left who could acknowledge or write another.
        let done = self.closed.is_some() && writer.is_none() && recoverers.iter().all(Option::is_none);
        let matters = |msg: &Rc<Kept<Msg>>| match &***msg {
            Msg::Txn { .. } => true,
            _ if done => false,
            Msg::Settled(_) => writer.is_some(),
            Msg::Added { who: Who::Writer, slot, generation, result, .. } => {
                let stale = |w: &Rc<Kept<writer::State>>| w.slot(*slot).generation != *generation;
                let open = |w: &Rc<Kept<writer::State>>| *w.status() == Status::Open;
                writer.as_ref().is_some_and(|w| open(w) && !(stale(w) && result.is_ok()))
            }
            Msg::Added { who, .. } => !deaf(who),
            Msg::Fenced { n, .. } => recoverers[*n].is_some(),
            Msg::Add { who, slot, add, .. } => {
                !(deaf(who) && bookies[*slot as usize].durable.term(LEDGER) > add.term)
            }
            Msg::Fence { n, slot, term, .. } => {
                !(recoverers[*n].is_none() && bookies[*slot as usize].durable.term(LEDGER) >= *term)
            }
        };
        self.net.retain(matters);
        let pruned: Vec<Option<Vec<Rc<Kept<Msg>>>>> = bookies
            .iter()
            .map(|b| {
                b.held
                    .iter()
                    .any(|m| !matters(m))
                    .then(|| b.held.iter().filter(|m| matters(m)).cloned().collect())
            })
            .collect();
        for (bookie, held) in self.bookies.iter_mut().zip(pruned) {
            if let Some(held) = held {
                *bookie = keep(Bookie { held, ..Bookie::clone(bookie) });
            }
        }
    }

    /// Adds of one sender to one bookie keep their order: later tenures and higher ids come after.
    fn is_first(&self, at: usize) -> bool {
        let key = |m: &Msg| match m {
            Msg::Add { who, slot, generation, add } => {
                Some(((*who, *slot), (*generation, add.entries[0].id)))
            }
            _ => None,
        };
        let Some((line, place)) = key(&self.net[at]) else { return true };
        !self.net.iter().filter_map(|m| key(m)).any(|(other, before)| other == line && before < place)
    }

    fn append(&mut self) {
        self.left.entries -= 1;
        let header = Header {
            kind: Kind::Messages,
            messages: 1,
            first_index: MessageIndex(0),
            timestamp_ms: 0,
            bytes_before: 0,
        };
        let entry = NewEntry { header, payload: Bytes::from_static(b"x").into() };
        self.write(|state, out| drop(state.append(vec![entry.clone()], out)));
    }

    fn close(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        let over = writer.revision();
        if let Ok(record) = writer::State::clone(&writer).close() {
            self.net.push(keep(Msg::Txn { who: Who::Writer, record, over }));
        }
    }

    fn readmit(&mut self) {
        self.left.readmissions -= 1;
        self.write(writer::State::on_readmit);
    }

    fn start_recovery(&mut self) {
        self.left.recoverers -= 1;
        let (state, term) = (LedgerState::Recovering, self.record.term.next());
        self.record = keep(LedgerRecord { state, term, ..LedgerRecord::clone(&self.record) });
        self.revision = Revision(self.revision.0 + 1);
        let mut out = Vec::new();
        let state = recovery::State::start(LedgerRecord::clone(&self.record), &mut out);
        self.recoverers.push(None);
        let recoverer = Recoverer { state, revision: self.revision };
        self.recovery_effects(self.recoverers.len() - 1, recoverer, out);
    }

    fn sync(&mut self, slot: u32) {
        let bookie = &mut self.bookies[slot as usize];
        self.net.extend(bookie.held.iter().cloned());
        *bookie = keep(Bookie { live: bookie.live.clone(), durable: bookie.live.clone(), held: Vec::new() });
    }

    fn crash(&mut self, slot: u32) {
        self.left.crashes -= 1;
        let bookie = &mut self.bookies[slot as usize];
        *bookie =
            keep(Bookie { live: bookie.durable.clone(), durable: bookie.durable.clone(), held: Vec::new() });
        if self.left.crashes == 0 {
            // Nothing takes anything back any more: what is admitted is as good as durable.
            (0..SLOTS).for_each(|slot| self.sync(slot));
        }
    }

    /// The caller is told that it cannot know; the call goes on.
    fn time_out(&mut self, at: usize) {
        self.left.faults -= 1;
        match Msg::clone(&**self.net[at]) {
            Msg::Add { who, slot, generation, add } => {
                let ids = (add.entries[0].id, add.entries[add.entries.len() - 1].id);
                self.added(who, (slot, generation), ids, Err(AddError::Unknown("late")));
            }
            Msg::Added { who, slot, generation, ids, .. } => {
                self.added(who, (slot, generation), ids, Err(AddError::Unknown("late")));
            }
            Msg::Fence { n, slot, .. } => {
                self.recovery(n, |s, out| s.on_tail(slot, Err(ControlError::Unknown("late")), out));
            }
            _ => {}
        }
    }

    fn added(
        &mut self,
        who: Who,
        (slot, generation): (u32, u32),
        ids: (EntryId, EntryId),
        result: Result<(), AddError>,
    ) {
        match who {
            Who::Writer => self.write(|s, out| s.on_added(slot, generation, ids, result.clone(), out)),
            Who::Recoverer(n) => {
                self.recovery(n, |s, out| s.on_added(slot, generation, ids, result.clone(), out))
            }
        }
    }

    fn deliver(&mut self, at: usize) {
        match Msg::clone(&**self.net.remove(at)) {
            Msg::Add { who, slot, generation, add } => {
                let ids = (add.entries[0].id, add.entries[add.entries.len() - 1].id);
                let mut bookie = Bookie::clone(&self.bookies[slot as usize]);
                let result = bookie.live.add(&a_bookie(), add);
                self.hold(slot, bookie, Msg::Added { who, slot, generation, ids, result });
            }
            Msg::Fence { n, slot, term, from } => {
                let mut bookie = Bookie::clone(&self.bookies[slot as usize]);
                let result = bookie.live.fence_tail(&a_bookie(), LEDGER, term, from);
                self.hold(slot, bookie, Msg::Fenced { n, slot, result });
            }
            Msg::Added { who, slot, generation, ids, result } => {
                self.added(who, (slot, generation), ids, result)
            }
            Msg::Fenced { n, slot, result } => {
                self.recovery(n, |s, out| s.on_tail(slot, result.clone(), out))
            }
            Msg::Txn { who, record, over } => self.txn(who, record, over),
            Msg::Settled(outcome) => self.write(|s, out| s.on_change(outcome.clone(), out)),
        }
    }

    /// Answers wait for the disk as long as a crash could tell the difference.
    fn hold(&mut self, slot: u32, mut bookie: Bookie, answer: Msg) {
        let refused =
            matches!(&answer, Msg::Added { result: Err(_), .. } | Msg::Fenced { result: Err(_), .. });
        if refused {
            self.net.push(keep(answer));
        } else {
            bookie.held.push(keep(answer));
            bookie.held = sorted(std::mem::take(&mut bookie.held));
        }
        self.bookies[slot as usize] = keep(bookie);
        if self.left.crashes == 0 {
            self.sync(slot);
        }
    }

    fn txn(&mut self, who: Who, record: LedgerRecord, over: Revision) {
        let unchanged = record.replacing(String::new(), over).compares.is_empty() || over == self.revision;
        let outcome = if unchanged {
            if self.closed.is_some() && self.closed != record.closed().map(|c| (c.last, c.length)) {
                self.broken = Some("I3: a closed ledger was written over".into());
            }
            self.revision = Revision(self.revision.0 + 1);
            self.record = keep(record);
            self.check_record();
            writer::ChangeOutcome::Committed(self.revision)
        } else {
            writer::ChangeOutcome::Lost(Some((Box::new(LedgerRecord::clone(&self.record)), self.revision)))
        };
        if who == Who::Writer {
            self.net.push(keep(Msg::Settled(outcome)));
        }
    }

    // ---- machines ------------------------------------------------------------------------------------------------------

    fn write(&mut self, event: impl FnOnce(&mut writer::State, &mut Vec<writer::Effect>)) {
        let Some(before) = &self.writer else { return };
        let mut state = writer::State::clone(before);
        let mut effects = Vec::new();
        event(&mut state, &mut effects);
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                match effect {
                    writer::Effect::Send(writer::SlotAdd { slot, generation, entries, .. }) => {
                        let add = Add {
                            ledger: LEDGER,
                            term: state.term(),
                            lac: state.lac(),
                            lafr: state.lafr(),
                            attributes: None,
                            entries,
                        };
                        self.net.push(keep(Msg::Add { who: Who::Writer, slot, generation, add }));
                    }
                    writer::Effect::Place(slots) => {
                        // There is no spare: a bookie comes back to its own slot, by readmission.
                        let vacant = state.vacant();
                        let found: Vec<_> = slots.and(vacant).iter().map(|slot| (slot, a_bookie())).collect();
                        state.on_replacements(&found, &mut effects);
                    }
                    writer::Effect::Commit(record) => {
                        let over = state.revision();
                        self.net.push(keep(Msg::Txn { who: Who::Writer, record: *record, over }));
                    }
                }
            }
        }
        self.check_acks(state.lac());
        self.writer = Some(keep(state));
    }

    fn recovery(&mut self, n: usize, event: impl FnOnce(&mut recovery::State, &mut Vec<recovery::Effect>)) {
        let Some(before) = &self.recoverers[n] else { return };
        let mut recoverer = Recoverer::clone(before);
        let mut out = Vec::new();
        event(&mut recoverer.state, &mut out);
        self.recovery_effects(n, recoverer, out);
    }

    fn recovery_effects(&mut self, n: usize, mut recoverer: Recoverer, mut effects: Vec<recovery::Effect>) {
        let (term, over) = (recoverer.state.record().term, recoverer.revision);
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                match effect {
                    recovery::Effect::Fence { slot, from, .. } => {
                        self.net.push(keep(Msg::Fence { n, slot, term, from }));
                    }
                    recovery::Effect::Add(back) => {
                        let (slot, generation, who) = (back.slot, back.generation, Who::Recoverer(n));
                        let (lac, lafr, entries) = (back.lac, back.lafr, back.entries);
                        let add = Add { ledger: LEDGER, term, lac, lafr, attributes: None, entries };
                        self.net.push(keep(Msg::Add { who, slot, generation, add }));
                    }
                    recovery::Effect::Place(_) => recoverer.state.on_replacements(&[], &mut effects),
                    recovery::Effect::ReadLast(id) => {
                        let holder = self.holders(id).iter().next();
                        let entry = holder
                            .and_then(|slot| self.bookies[slot as usize].live.entry(LEDGER, id).cloned());
                        recoverer.state.on_last(entry, &mut effects);
                    }
                    recovery::Effect::Close(record) => {
                        self.net.push(keep(Msg::Txn { who: Who::Recoverer(n), record: *record, over }));
                    }
                    // Entries are small: every tail brings them along.
                    recovery::Effect::Read { .. } => {
                        self.broken = Some("a read: the tail was to bring it".into())
                    }
                    recovery::Effect::Stop(_) => {}
                }
            }
        }
        self.recoverers[n] = Some(keep(recoverer));
    }

    // ---- the observer --------------------------------------------------------------------------------------------------

    /// Slots that hold an entry durably, of those that its fragment names.
    fn holders(&self, id: EntryId) -> SlotSet {
        let fragment = self.record.fragments.iter().rfind(|f| f.first <= id).expect("the first begins at 0");
        let named = (0..SLOTS).filter(|slot| fragment.ensemble[*slot as usize].is_some());
        named.filter(|slot| self.bookies[*slot as usize].durable.entry(LEDGER, id).is_some()).collect()
    }

    fn check_acks(&mut self, lac: Option<EntryId>) {
        while self.acked < lac {
            let id = self.acked.map_or(EntryId(0), EntryId::next);
            self.acked = Some(id);
            let durable =
                (0..SLOTS).filter(|s| self.bookies[*s as usize].durable.entry(LEDGER, id).is_some());
            if durable.count() < 2 {
                self.broken = Some(format!("I1: {id} is acknowledged below its ack quorum"));
            }
            if self.closed.is_some_and(|(last, _)| Some(id) > last) {
                self.broken = Some(format!("I2: {id} is acknowledged beyond the close"));
            }
        }
    }

    fn check_record(&mut self) {
        if !self.record.fragments.is_sorted_by(|a, b| a.first < b.first) {
            self.broken = Some("I10: fragments out of order".into());
        }
        let LedgerState::Closed { last, length } = self.record.state else { return };
        self.closed = Some((last, length));
        if last < self.acked {
            self.broken = Some(format!("I2: closed at {last:?}, acknowledged {:?}", self.acked));
        }
        for id in (0..last.map_or(0, |last| last.0 + 1)).map(EntryId) {
            let held = self.holders(id);
            let listed = |slot: u32| {
                let names =
                    |r: &RepairRange| r.slot == slot && r.first <= id && r.last.is_none_or(|last| id <= last);
                self.record.repair.iter().any(names)
            };
            if held.len() < 2 {
                self.broken = Some(format!("I1: {id} is closed with {} copies", held.len()));
            } else if (0..SLOTS).any(|slot| !held.contains(slot) && !listed(slot)) {
                self.broken = Some(format!("I15: {id} is below its write quorum and not in repair"));
            }
        }
    }
}
