//! The single writer of an open ledger: [`state`] decides, [`LedgerWriter`] carries the effects out.
//!
//! Owned by one task (the topic's owner), which also hands events back in: nothing here locks or blocks. For a single copy an
//! append is one `Add` and one callback. A change of the ensemble needs a metadata transaction; it runs as a task of the
//! client's group and comes back as an event.

pub mod invariants;
pub mod state;
#[cfg(test)]
mod tests;

use crate::ledgers::client::{Inner, replace_record};
use crate::ledgers::{
    AppendError, ClosePlan, LedgerView, NewEntry, Progress, Writer, WriterEvent, WriterEvents,
};
use crate::record::{LedgerRecord, LedgerState, OpId};
use crate::rpc::{Add, AddError, BookieRef};
use geminga_common::ids::{EntryId, LedgerId};
use geminga_common::metadata::{Compare, Op};
use geminga_common::tasks::OnFailure;
use state::{ChangeOutcome, Effect, SlotAdd, State, Status};
use std::sync::Arc;
use std::time::Duration;

/// How long a vacant slot waits until a bookie for it is looked for again; doubled by every attempt, because each one that finds
/// a bookie which then fails costs two metadata writes.
const READMIT_FIRST: Duration = Duration::from_secs(1);
const READMIT_MAX: Duration = Duration::from_secs(64);

/// What happened to a writer.
#[derive(Debug)]
pub(crate) enum EventKind {
    /// A bookie answered an add.
    Added { slot: u32, generation: u32, first: EntryId, last: EntryId, result: Result<(), AddError> },
    /// A bookie answered an add without entries.
    Probed { slot: u32, generation: u32, result: Result<(), AddError> },
    /// A change of the ensemble was committed or lost.
    Changed(ChangeOutcome),
    /// Time to fill vacant slots.
    Readmit,
}

/// The shell around the writer machine.
pub struct LedgerWriter {
    state: State,
    client: Arc<Inner>,
    events: WriterEvents,
    effects: Vec<Effect>,
    readmit_due: bool,
    readmit_after: Duration,
    /// What [`crate::placement::Placement::slow_told`] was when members were last asked about.
    slow_told: u64,
}

impl LedgerWriter {
    pub(crate) fn new(state: State, client: Arc<Inner>, events: WriterEvents) -> Self {
        let mut writer = Self {
            state,
            client,
            events,
            effects: Vec::new(),
            readmit_due: false,
            readmit_after: READMIT_FIRST,
            slow_told: 0,
        };
        writer.arm_readmission();
        writer
    }

    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        while !effects.is_empty() {
            for effect in effects.drain(..) {
                match effect {
                    Effect::Send(add) => self.send(add),
                    Effect::Place(slots) => {
                        let members: Vec<BookieRef> = self.state.members().cloned().collect();
                        let staying = self.state.staying(slots);
                        let found = self.client.placement.replace(slots.len() as usize, &staying, &members);
                        let found: Vec<_> = slots.iter().zip(found).collect();
                        self.state.on_replacements(&found, &mut self.effects);
                    }
                    Effect::Commit(record) => self.commit(*record),
                }
            }
            // Keep the larger buffer: it is reused for every append.
            std::mem::swap(&mut effects, &mut self.effects);
        }
        self.effects = effects;
        self.arm_readmission();
    }

    /// Has another bookie take the place of a member that is slow, one at a time.
    fn leave_slow(&mut self) {
        let told = self.client.placement.slow_told();
        if told == self.slow_told || self.state.changing() || *self.state.status() != Status::Open {
            return;
        }
        self.slow_told = told;
        let members: Vec<BookieRef> = self.state.members().cloned().collect();
        for slot in 0..self.state.record().quorum.ensemble() {
            let Some(bookie) = self.state.slot(slot).bookie.clone() else { continue };
            let staying = self.state.staying([slot].into_iter().collect());
            if let Some(by) = self.client.placement.instead_of_slow(&bookie, &staying, &members)
                && self.state.on_slow(slot, by.clone(), &mut self.effects)
            {
                let ledger = self.state.ledger();
                tracing::info!(%ledger, slow = %bookie, %by, "open ledger leaves a slow bookie");
                return;
            }
        }
    }

    fn send(&mut self, add: SlotAdd) {
        let SlotAdd { slot, generation, first, last, entries } = add;
        let to = self.state.slot(slot);
        let Some(bookie) = &to.bookie else { return };
        let (ledger, events) = (self.state.ledger(), self.events.clone());
        let add = Add {
            ledger,
            term: self.state.term(),
            lac: self.state.lac(),
            lafr: self.state.lafr(),
            attributes: (!to.introduced).then(|| self.state.record().attributes.clone()),
            entries,
        };
        let done = Box::new(move |result: Result<(), AddError>| {
            if let Err(AddError::Conflict(entry)) = &result {
                tracing::error!(%ledger, %entry, slot, "bookie holds other bytes under an id of this writer");
            }
            events(WriterEvent { ledger, kind: EventKind::Added { slot, generation, first, last, result } });
        });
        self.client.rpc.add(bookie, add, done);
    }

    /// Asks the slot's bookie whether it still is who it was.
    fn ask(&self, slot: u32, bookie: &BookieRef) {
        let (generation, introduced) = (self.state.slot(slot).generation, self.state.slot(slot).introduced);
        let (ledger, events) = (self.state.ledger(), self.events.clone());
        let add = Add {
            ledger,
            term: self.state.term(),
            lac: self.state.lac(),
            lafr: self.state.lafr(),
            attributes: (!introduced).then(|| self.state.record().attributes.clone()),
            entries: Vec::new(),
        };
        let done = Box::new(move |result| {
            events(WriterEvent { ledger, kind: EventKind::Probed { slot, generation, result } });
        });
        self.client.rpc.add(bookie, add, done);
    }

    fn commit(&mut self, mut record: LedgerRecord) {
        record.op_id = self.client.op_id();
        let (client, events, ledger) = (self.client.clone(), self.events.clone(), self.state.ledger());
        let over = self.state.revision();
        tracing::warn!(%ledger, fragments = record.fragments.len(), "changing the ensemble");
        self.client.tasks.spawn("ensemble-change", OnFailure::Log, async move {
            let stop = client.tasks.token();
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = replace_record(&client, &record, over) => outcome,
            };
            events(WriterEvent { ledger, kind: EventKind::Changed(outcome) });
        });
    }

    fn arm_readmission(&mut self) {
        if self.readmit_due || self.state.vacant().is_empty() || *self.state.status() != Status::Open {
            return;
        }
        self.readmit_due = true;
        let after = self.readmit_after;
        self.readmit_after = (after * 2).min(READMIT_MAX);
        let (events, ledger, stop) = (self.events.clone(), self.state.ledger(), self.client.tasks.token());
        self.client.tasks.spawn("readmission", OnFailure::Log, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(after) => {
                    events(WriterEvent { ledger, kind: EventKind::Readmit });
                }
            }
        });
    }
}

impl Writer for LedgerWriter {
    fn ledger(&self) -> LedgerId {
        self.state.ledger()
    }

    fn view(&self) -> LedgerView {
        let record = self.state.record();
        LedgerView { id: record.id, quorum: record.quorum, fragments: record.fragments.clone() }
    }

    fn append(&mut self, entries: Vec<NewEntry>) -> Result<EntryId, AppendError> {
        let first = self.state.append(entries, &mut self.effects)?;
        self.carry_out();
        Ok(first)
    }

    fn on_event(&mut self, event: WriterEvent) -> Progress {
        if event.ledger == self.state.ledger() {
            match event.kind {
                EventKind::Added { slot, generation, first, last, result } => {
                    self.state.on_added(slot, generation, (first, last), result, &mut self.effects);
                }
                EventKind::Probed { slot, generation, result } => {
                    self.state.on_probed(slot, generation, result, &mut self.effects);
                }
                EventKind::Changed(outcome) => self.state.on_change(outcome, &mut self.effects),
                EventKind::Readmit => {
                    self.readmit_due = false;
                    self.state.on_readmit(&mut self.effects);
                }
            }
            self.leave_slow();
            self.carry_out();
        }
        self.progress()
    }

    fn progress(&self) -> Progress {
        Progress {
            lac: self.state.lac(),
            lafr: self.state.lafr(),
            last_sent: self.state.last_sent(),
            changing: self.state.changing(),
            copies: self.state.copies(),
            failed: match self.state.status() {
                Status::Failed(error) => Some(error.clone()),
                Status::Open | Status::Closing => None,
            },
        }
    }

    fn probe(&mut self, gone: &dyn Fn(&BookieRef) -> bool) {
        if *self.state.status() != Status::Open {
            return;
        }
        for slot in 0..self.state.record().quorum.ensemble() {
            if let Some(bookie) = self.state.slot(slot).bookie.as_ref().filter(|bookie| gone(bookie)) {
                self.ask(slot, bookie);
            }
        }
    }

    fn plan_close(&mut self) -> Result<ClosePlan, AppendError> {
        let record = LedgerRecord { op_id: self.client.op_id(), ..self.state.close()? };
        let closed = record.closed().expect("the machine answers a closed record");
        let key = self.client.keys.ledger(record.id);
        let compares = vec![Compare::ModRevision(key.clone(), self.state.revision())];
        let op = if closed.repair.is_empty() { Op::delete(key) } else { Op::put(key, record.encode()) };
        Ok(ClosePlan { closed, compares, ops: vec![op] })
    }
}

/// The record of a ledger about to be created: vacant slots are recorded from the first entry on.
pub(crate) fn open_record(plan: &crate::ledgers::CreatePlan, op_id: OpId) -> LedgerRecord {
    let repair = plan.fragment.vacant().iter().map(|slot| crate::record::RepairRange {
        first: EntryId(0),
        last: None,
        slot,
    });
    LedgerRecord {
        id: plan.id,
        term: geminga_common::ids::Term(1),
        state: LedgerState::Open,
        quorum: plan.quorum,
        fragments: vec![plan.fragment.clone()],
        repair: repair.collect(),
        attributes: plan.attributes.clone(),
        op_id,
    }
}
