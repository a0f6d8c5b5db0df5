//! Shells around the real machines, in simulated time: commits with unknown outcomes, recovery (R0–R7), reading, sealing. They do
//! what the client's own shells do, over the same pure machines.

use crate::calls::{Outcome, Req};
use crate::damage::Planned;
use crate::meta::{MetaOp, MetaReply, keys};
use crate::plan::{MS, SECOND};
use crate::world::{Cx, Inbox};
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::ledgers::{ReadError, read};
use geminga_bookie_client::quorum::SlotSet;
use geminga_bookie_client::record::{Fragment, LedgerRecord, LedgerState, OpId};
use geminga_bookie_client::recovery::state::{BATCH_BYTES, Effect, State, Verdict};
use geminga_bookie_client::rpc::{Add, AddError, BookieRef, ControlError, Read, ReadAnswer, ReadClass, Tail};
use geminga_bookie_client::writer::state::ChangeOutcome;
use geminga_common::ids::{EntryId, LedgerId};
use geminga_common::metadata::{MetaError, Record, Revision, TxnOutcome};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Bookies that are alive as far as a process knows.
pub(crate) type Bookies = Rc<RefCell<Vec<BookieRef>>>;

/// An empty list; the world sees what becomes of it.
pub(crate) fn no_bookies(cx: &Cx) -> Bookies {
    let bookies = Bookies::default();
    cx.sim.w.borrow_mut().damage.knows(&bookies);
    bookies
}

/// Up to one bookie for each slot, none of `exclude`.
pub(crate) fn place(
    cx: &Cx,
    bookies: &Bookies,
    slots: SlotSet,
    exclude: &[BookieRef],
) -> Vec<(u32, BookieRef)> {
    let mut free: Vec<BookieRef> =
        bookies.borrow().iter().filter(|b| !exclude.contains(b)).cloned().collect();
    for at in (1..free.len()).rev() {
        let other = cx.below(at as u64 + 1) as usize;
        free.swap(at, other);
    }
    slots.iter().zip(free).collect()
}

/// Notes a placement until its commit's outcome is known.
pub(crate) fn plan(cx: &Cx, found: &[(u32, BookieRef)]) -> Planned {
    cx.sim.w.borrow_mut().damage.plan(found.iter().map(|(_, bookie)| bookie.clone()).collect())
}

pub(crate) async fn get(cx: &Cx, key: &str) -> Result<Option<Record>, MetaError> {
    match cx.meta(MetaOp::Get(key.to_owned())).await? {
        MetaReply::Record(record) => Ok(record),
        other => Err(MetaError::Unknown(format!("{other:?}"))),
    }
}

/// A linearizable read, for as long as it takes.
pub(crate) async fn get_patiently(cx: &Cx, key: &str) -> Option<Record> {
    loop {
        if let Ok(record) = get(cx, key).await {
            return record;
        }
        cx.sleep(200 * MS + cx.below(500 * MS)).await;
    }
}

pub(crate) fn decode(record: &Record) -> (LedgerRecord, Revision) {
    (LedgerRecord::decode(&record.value).expect("only records are stored there"), record.mod_revision)
}

/// Puts `record` over revision `over`, for as long as it takes to learn the outcome.
pub(crate) async fn replace(cx: &Cx, record: &LedgerRecord, over: Revision) -> ChangeOutcome {
    let key = keys().ledger(record.id);
    loop {
        let answer = cx.meta(MetaOp::Txn(record.replacing(key.clone(), over))).await;
        if let Ok(MetaReply::Txn(TxnOutcome::Committed(revision))) = answer {
            return ChangeOutcome::Committed(revision);
        }
        let now = get_patiently(cx, &key).await.map(|stored| decode(&stored));
        match (now, answer) {
            (Some((now, revision)), _) if now.op_id == record.op_id => {
                cx.check(|c| c.seen.unknown_resolved += 1);
                return ChangeOutcome::Committed(revision);
            }
            (Some((_, revision)), Err(_)) if revision == over => cx.sleep(50 * MS + cx.below(300 * MS)).await,
            (now, _) => {
                return ChangeOutcome::Lost(now.map(|(record, revision)| (Box::new(record), revision)));
            }
        }
    }
}

pub(crate) fn bookies_of(fragments: &[Fragment]) -> BTreeSet<BookieRef> {
    fragments.iter().flat_map(|f| f.ensemble.iter().flatten()).cloned().collect()
}

/// How a recovery ended.
#[derive(Clone, Debug)]
pub(crate) enum Recovered {
    /// Closed, at this revision.
    Closed(Box<LedgerRecord>, Revision),
    NoRecord,
    Undecided,
}

enum Happened {
    Tail(u32, Result<Tail, ControlError>),
    Read(u32, EntryId, ReadAnswer),
    Last(Option<Entry>),
    Added(u32, u32, (EntryId, EntryId), Result<(), AddError>),
    Patience,
    Deadline,
}

/// Recovers and closes a ledger.
pub(crate) async fn recover(cx: &Cx, id: LedgerId, bookies: &Bookies) -> Recovered {
    let key = keys().ledger(id);
    for round in 0..6 {
        if round > 0 {
            cx.sleep((10 << round) * MS + cx.below(100 * MS)).await;
        }
        let Some(stored) = get_patiently(cx, &key).await else { return Recovered::NoRecord };
        let (record, revision) = decode(&stored);
        if record.closed().is_some() {
            return Recovered::Closed(Box::new(record), revision);
        }
        let term = record.term.next();
        let ours = LedgerRecord { state: LedgerState::Recovering, term, op_id: OpId(cx.random()), ..record };
        let ChangeOutcome::Committed(revision) = replace(cx, &ours, revision).await else { continue };
        cx.note("recover", id.0, term.0, || format!("process {} recovers {id} at {term:?}", cx.proc));
        let Decided { record: closed, told, planned } = match attempt(cx, ours, bookies).await {
            Ok(closed) => closed,
            Err(Verdict::Undecided) => {
                cx.check(|c| c.seen.undecided += 1);
                return Recovered::Undecided;
            }
            Err(Verdict::Superseded) => {
                cx.check(|c| c.seen.superseded += 1);
                continue;
            }
        };
        let closed = LedgerRecord { op_id: OpId(cx.random()), ..*closed };
        let outcome = replace(cx, &closed, revision).await;
        planned.into_iter().for_each(Planned::settled);
        let ChangeOutcome::Committed(revision) = outcome else { continue };
        cx.check(|c| c.seen.closed_by_recovery += 1);
        cx.note("closed", id.0, 0, || format!("process {} closed {id}: {:?}", cx.proc, closed.state));
        if let LedgerState::Closed { last, .. } = closed.state {
            seal(cx, &told, id, last);
        }
        return Recovered::Closed(Box::new(closed), revision);
    }
    Recovered::Undecided
}

/// Tells bookies where a ledger ends; nobody waits for it.
pub(crate) fn seal(cx: &Cx, to: &BTreeSet<BookieRef>, ledger: LedgerId, last: Option<EntryId>) {
    to.iter().for_each(|bookie| cx.send(bookie, Req::Seal { ledger, last }, |_| ()));
}

/// What a recovery wants to commit.
struct Decided {
    record: Box<LedgerRecord>,
    /// Whoever may hold something of it.
    told: BTreeSet<BookieRef>,
    planned: Vec<Planned>,
}

async fn attempt(cx: &Cx, record: LedgerRecord, bookies: &Bookies) -> Result<Decided, Verdict> {
    let mut effects = Vec::new();
    let mut told = bookies_of(&record.fragments);
    let mut state = State::start(record, &mut effects);
    let mut planned = Vec::new();
    let inbox: Inbox<Happened> = Inbox::default();
    for (delay, patience) in [(300 * MS, true), (10 * SECOND, false)] {
        let inbox = inbox.clone();
        let event = move || inbox.push(if patience { Happened::Patience } else { Happened::Deadline });
        cx.wake(delay, event);
    }
    loop {
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Close(record) => return Ok(Decided { record, told, planned }),
                    Effect::Stop(verdict) => {
                        cx.note("stop", state.record().id.0, 0, || format!("{verdict:?}"));
                        return Err(verdict);
                    }
                    Effect::Place(slots) => {
                        let members: Vec<BookieRef> = state.members().cloned().collect();
                        let found = place(cx, bookies, slots, &members);
                        planned.push(plan(cx, &found));
                        told.extend(found.iter().map(|(_, bookie)| bookie.clone()));
                        state.on_replacements(&found, &mut effects);
                    }
                    effect => carry_out(cx, state.record(), effect, &inbox),
                }
            }
        }
        match inbox.next().await {
            Happened::Tail(slot, result) => {
                cx.note("tail", state.record().id.0, slot.into(), || match &result {
                    Ok(Tail { lac, present, doubtful, .. }) => {
                        format!("slot {slot}: lac {lac:?}, present {present:?}, doubtful {doubtful:?}")
                    }
                    Err(error) => format!("slot {slot} has no tail: {error}"),
                });
                state.on_tail(slot, result, &mut effects);
            }
            Happened::Read(slot, first, answer) => state.on_read(slot, first, answer, &mut effects),
            Happened::Last(entry) => state.on_last(entry, &mut effects),
            Happened::Added(slot, generation, ids, result) => {
                if let Err(error) = &result {
                    let what = || format!("slot {slot} does not take {} to {}: {error}", ids.0, ids.1);
                    cx.note("refused", state.record().id.0, slot.into(), what);
                }
                state.on_added(slot, generation, ids, result, &mut effects);
            }
            Happened::Patience => state.on_patience_over(&mut effects),
            Happened::Deadline => state.on_deadline(&mut effects),
        }
    }
}

fn carry_out(cx: &Cx, record: &LedgerRecord, effect: Effect, inbox: &Inbox<Happened>) {
    let (ledger, term, inbox) = (record.id, record.term, inbox.clone());
    match effect {
        Effect::Fence { slot, to, from } => cx.send(&to, Req::Fence { ledger, term, from }, move |outcome| {
            if let Outcome::Tail(result) = outcome {
                inbox.push(Happened::Tail(slot, result));
            }
        }),
        Effect::Read { slot, to, first, last } => {
            let read = Read { ledger, first, last, bytes_max: BATCH_BYTES, class: ReadClass::Tail };
            cx.send(&to, Req::Read(read), move |outcome| {
                if let Outcome::Read(answer) = outcome {
                    inbox.push(Happened::Read(slot, first, answer));
                }
            });
        }
        Effect::ReadLast(id) => {
            let (within, record) = (cx.clone(), record.clone());
            cx.spawn(async move {
                let entry = read_one(&within, &record, id).await.ok().flatten();
                inbox.push(Happened::Last(entry));
            });
        }
        Effect::Add(back) => {
            cx.check(|c| c.seen.written_back += 1);
            let ids = (back.entries[0].id, back.entries[back.entries.len() - 1].id);
            let (slot, generation) = (back.slot, back.generation);
            let attributes = Some(record.attributes.clone());
            let add = Add { ledger, term, lac: back.lac, lafr: back.lafr, attributes, entries: back.entries };
            cx.send(&back.to, Req::Add(add), move |outcome| {
                if let Outcome::Add(result) = outcome {
                    inbox.push(Happened::Added(slot, generation, ids, result));
                }
            });
        }
        Effect::Place(_) | Effect::Close(_) | Effect::Stop(_) => {}
    }
}

/// Reads one entry. `Ok(None)`: a negative quorum says that it is not there.
pub(crate) async fn read_one(cx: &Cx, record: &LedgerRecord, id: EntryId) -> Result<Option<Entry>, ()> {
    Ok(read_run(cx, record, id, id).await?.and_then(|run| run.into_iter().next()))
}

/// Reads a run of entries through the client's own machine, one holder after another.
pub(crate) async fn read_run(
    cx: &Cx,
    record: &LedgerRecord,
    first: EntryId,
    last: EntryId,
) -> Result<Option<Vec<Entry>>, ()> {
    let mut plan = read::plan(&record.view(), first, last, 4000, ReadClass::Tail).ok_or(())?;
    let fragment = record.fragments.iter().rfind(|f| f.first <= first).ok_or(())?;
    let named = |slot: &u32| fragment.ensemble[*slot as usize].is_some();
    let mut unasked = record.quorum.write_order(first).filter(named).count();
    while let Some(bookie) = plan.ask() {
        unasked -= 1;
        if let Outcome::Read(answer) = cx.ask(&bookie, Req::Read(plan.request())).await
            && let Some(run) = plan.on_answer(&bookie, answer)
        {
            return Ok(Some(run));
        }
    }
    if unasked > 0 {
        let text =
            format!("S1: a read of {}:{first} ends although {unasked} holders were not asked", record.id);
        cx.check(|c| c.broken(text));
    }
    if matches!(plan.verdict(), ReadError::NoSuchEntry(_)) { Ok(None) } else { Err(()) }
}
