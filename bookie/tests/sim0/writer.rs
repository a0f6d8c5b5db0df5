//! A writer of one open ledger: the real machine, and the shell that carries its effects out in simulated time.

use crate::calls::{Outcome, Req};
use crate::damage::Planned;
use crate::ledger::{Bookies, place, plan, replace};
use crate::plan::{SECOND, Us};
use crate::slow::Told;
use crate::world::{Cx, Inbox};
use bytes::Bytes;
use geminga_bookie_client::entry::{Header, Kind};
use geminga_bookie_client::ledgers::NewEntry;
use geminga_bookie_client::record::{LedgerRecord, OpId};
use geminga_bookie_client::rpc::{Add, AddError, BookieRef};
use geminga_bookie_client::writer::invariants;
use geminga_bookie_client::writer::state::{ChangeOutcome, Effect, SlotAdd, State, Status};
use geminga_common::ids::{EntryId, LedgerId, MessageIndex};
use std::collections::VecDeque;

/// What happens to a broker.
pub(crate) enum Event {
    Added {
        writer: LedgerId,
        slot: u32,
        generation: u32,
        ids: (EntryId, EntryId),
        result: Result<(), AddError>,
    },
    Changed(LedgerId, ChangeOutcome),
    Readmit(LedgerId),
    Turn,
    Wait,
}

/// The real writer machine and what carries its effects out.
pub(crate) struct Shell {
    pub(crate) cx: Cx,
    pub(crate) state: State,
    pub(crate) bookies: Bookies,
    pub(crate) inbox: Inbox<Event>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) readmit_due: bool,
    pub(crate) readmit_after: Us,
    /// The last placement, until its commit begins.
    pub(crate) planned: Option<Planned>,
    /// What was told about slow bookies when members were last looked at.
    pub(crate) slow_told: Told,
    /// The change under way is for a slow member alone.
    pub(crate) leaving_slow: bool,
    /// Messages sent and not acknowledged, in order.
    pub(crate) sent: VecDeque<(EntryId, u64, Bytes)>,
}

/// Rounds of effects after one event.
const ROUNDS_MAX: usize = 200;

impl Shell {
    pub(crate) fn append(&mut self, message: u64, payload: Bytes) -> bool {
        let header = Header {
            kind: Kind::Messages,
            messages: 1,
            first_index: MessageIndex(message),
            timestamp_ms: 0,
            bytes_before: 0,
        };
        let new = vec![NewEntry { header, payload: payload.clone().into() }];
        let Ok(id) = self.state.append(new, &mut self.effects) else { return false };
        self.sent.push_back((id, message, payload));
        self.carry_out();
        true
    }

    pub(crate) fn on(&mut self, event: Event) {
        let vacant = self.state.vacant().len();
        match event {
            Event::Added { slot, generation, ids, result, .. } => {
                if result == Err(AddError::WrongIncarnation) {
                    self.told_lost(slot, generation);
                }
                self.state.on_added(slot, generation, ids, result, &mut self.effects);
            }
            Event::Changed(_, outcome) => {
                if let ChangeOutcome::Lost(Some(_)) = outcome {
                    self.cx.check(|c| c.seen.rebased += 1);
                }
                self.left_slow(&outcome);
                self.state.on_change(outcome, &mut self.effects);
            }
            Event::Readmit(_) => {
                self.readmit_due = false;
                self.state.on_readmit(&mut self.effects);
            }
            _ => {}
        }
        self.leave_slow();
        self.carry_out();
        if self.state.vacant().len() < vacant {
            self.cx.check(|c| c.seen.readmissions += 1);
        }
    }

    /// A bookie says that its store is another one: while it is a member, its writer has to see to what it held.
    fn told_lost(&self, slot: u32, generation: u32) {
        let told = self.state.slot(slot);
        if *self.state.status() != Status::Open || told.generation != generation {
            return;
        }
        let (ledger, amid) = (self.state.ledger(), self.state.changing());
        if let Some(member) = &told.bookie {
            self.cx.check(|c| c.told_lost(ledger, member, amid));
        }
    }

    fn carry_out(&mut self) {
        for round in 0.. {
            if round > ROUNDS_MAX {
                return self.cx.check(|c| c.broken("I20: livelock: the writer's effects never end"));
            }
            let effects = std::mem::take(&mut self.effects);
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                match effect {
                    Effect::Send(add) => self.send(add),
                    Effect::Place(slots) => {
                        let members: Vec<BookieRef> = self.state.members().cloned().collect();
                        let found = place(&self.cx, &self.bookies, slots, &members);
                        self.planned.replace(plan(&self.cx, &found)).into_iter().for_each(Planned::settled);
                        self.state.on_replacements(&found, &mut self.effects);
                    }
                    Effect::Commit(record) => self.commit(*record),
                }
            }
        }
        self.arm_readmission();
        self.observe();
    }

    fn send(&mut self, add: SlotAdd) {
        let SlotAdd { slot, generation, first, last, entries } = add;
        let to = self.state.slot(slot);
        let Some(bookie) = to.bookie.clone() else { return };
        let (writer, inbox) = (self.state.ledger(), self.inbox.clone());
        let add = Add {
            ledger: writer,
            term: self.state.term(),
            lac: self.state.lac(),
            lafr: self.state.lafr(),
            attributes: (!to.introduced).then(|| self.state.record().attributes.clone()),
            entries,
        };
        self.cx.send(&bookie, Req::Add(add), move |outcome| {
            if let Outcome::Add(result) = outcome {
                inbox.push(Event::Added { writer, slot, generation, ids: (first, last), result });
            }
        });
    }

    fn commit(&mut self, mut record: LedgerRecord) {
        let planned = self.planned.take();
        record.op_id = OpId(self.cx.random());
        let (cx, over, inbox) = (self.cx.clone(), self.state.revision(), self.inbox.clone());
        cx.note("change", record.id.0, 0, || {
            format!(
                "broker {} changes {}: {:?} repair {:?}",
                cx.proc,
                record.id,
                record.last_fragment(),
                record.repair
            )
        });
        let within = cx.clone();
        cx.spawn(async move {
            let outcome = replace(&within, &record, over).await;
            planned.into_iter().for_each(Planned::settled);
            inbox.push(Event::Changed(record.id, outcome));
        });
    }

    pub(crate) fn arm_readmission(&mut self) {
        if self.readmit_due || self.state.vacant().is_empty() || *self.state.status() != Status::Open {
            return;
        }
        self.readmit_due = true;
        let (inbox, ledger) = (self.inbox.clone(), self.state.ledger());
        self.cx.wake(self.readmit_after, move || inbox.push(Event::Readmit(ledger)));
        self.readmit_after = (self.readmit_after * 2).min(64 * SECOND);
    }

    /// What the writer acknowledged just now, and the machine's own invariants.
    fn observe(&mut self) {
        while let Some((id, ..)) = self.sent.front()
            && Some(*id) <= self.state.lac()
        {
            let Some((id, message, _)) = self.sent.pop_front() else { break };
            let now = self.cx.now();
            self.cx.check(|c| c.acked(self.state.record(), id, message, now));
        }
        let s = &self.state;
        let rules: [(&str, fn(&State) -> bool); 7] = [
            ("LAFR <= LAC <= last sent", invariants::bounds_are_ordered),
            ("pending is dense", invariants::pending_is_dense),
            ("I1: what is acknowledged has its quorum", invariants::acked_has_its_quorum),
            ("I10: fragments rise", invariants::fragments_rise),
            ("slots match the record", invariants::slots_match_the_record),
            ("a change begins at the LAC", invariants::a_change_begins_at_the_lac),
            ("I15: what is owed is acknowledged", invariants::what_is_owed_is_acknowledged),
        ];
        let closing = *s.status() == Status::Closing;
        if let Some((rule, _)) = rules.iter().find(|(_, holds)| !closing && !holds(s)) {
            self.cx.check(|c| c.broken(format!("writer: {rule}: {s:?}")));
        }
        if *s.status() == Status::Open && !s.changing() && !s.lag_is_bounded() {
            self.cx.check(|c| c.broken("I16: a slot lags beyond its limit and is not replaced"));
        }
    }
}
