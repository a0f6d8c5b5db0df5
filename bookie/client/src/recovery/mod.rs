//! Recovery of a ledger: [`state`] decides, [`recover`] carries the effects out.
//!
//! For a healthy ledger it is one metadata write, one round to the bookies, one metadata write. It can be dropped at any point:
//! the ledger stays `Recovering`, and the next recovery starts over at a higher term. The deadline bounds one attempt; an
//! undecided attempt never closes.

pub mod state;
#[cfg(test)]
mod tests;

use crate::ledgers::client::{Inner, bookies_of, seal};
use crate::ledgers::{RecoverError, Recovered, read};
use crate::record::{ClosedLedger, LedgerRecord, LedgerState};
use crate::rpc::{Add, AddError, BookieRef, ControlError, IdRange, Read, ReadAnswer, ReadClass, Tail};
use crate::writer::state::ChangeOutcome;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use geminga_common::error::Code;
use geminga_common::ids::{EntryId, LedgerId};
use geminga_common::metadata::{Compare, MetaError, Op, Revision};
use geminga_common::tasks::OnFailure;
use state::{BATCH_BYTES, Effect, State, Verdict};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How often one call starts over because somebody else moved the record.
const ROUNDS_MAX: usize = 8;

/// Timing of recoveries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timing {
    /// How long slots that are merely slow are waited for once the others decide.
    pub patience: Duration,
    /// How long one attempt may take.
    pub deadline: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { patience: Duration::from_millis(300), deadline: Duration::from_secs(10) }
    }
}

/// What the shell waits for.
enum Happened {
    Tail(u32, Result<Tail, ControlError>),
    Read(u32, EntryId, ReadAnswer),
    Last(Option<crate::entry::Entry>),
    Added(u32, u32, (EntryId, EntryId), Result<(), AddError>),
    Patience,
    Deadline,
}

type Waiting = FuturesUnordered<BoxFuture<'static, Happened>>;

/// How one attempt ended.
enum Attempt {
    Close(Box<LedgerRecord>, Box<State>, BTreeSet<BookieRef>),
    Stop(Verdict),
}

/// Recovers and closes a ledger (R0–R7).
pub(crate) async fn recover(inner: Arc<Inner>, id: LedgerId) -> Result<Recovered, RecoverError> {
    for round in 0..ROUNDS_MAX {
        if round > 0 {
            tokio::time::sleep(inner.jitter(Duration::from_millis(20 << round))).await;
        }
        let Some((record, revision)) = inner.record(id).await? else {
            return Err(RecoverError::NoRecord(id));
        };
        if record.closed().is_some() {
            return recovered(&inner, record, revision, None).await;
        }
        let term = record.term.next();
        let ours = LedgerRecord { state: LedgerState::Recovering, term, op_id: inner.op_id(), ..record };
        let Some(revision) = settle(&inner, &ours, revision).await? else { continue };
        let members = bookies_of(&ours.fragments);
        match attempt(&inner, ours).await {
            Attempt::Stop(Verdict::Undecided) => {
                let damaged = inner.only_copy_damaged(&members, id);
                return Err(
                    damaged.map_or(RecoverError::Undecided(id), |place| RecoverError::Damaged(id, place))
                );
            }
            Attempt::Stop(Verdict::Superseded) => {}
            Attempt::Close(record, state, bookies) => {
                let closed = LedgerRecord { op_id: inner.op_id(), ..*record };
                let Some(revision) = settle(&inner, &closed, revision).await? else { continue };
                let LedgerState::Closed { last, .. } = closed.state else {
                    return Err(RecoverError::Undecided(id));
                };
                let sealing = inner.clone();
                inner.tasks.spawn(
                    "seal",
                    OnFailure::Log,
                    async move { seal(&sealing, bookies, id, last).await },
                );
                return recovered(&inner, closed, revision, Some(*state)).await;
            }
        }
    }
    Err(RecoverError::Superseded(id))
}

/// Writes the record; `None` when somebody else was first. Unknown outcomes are read back a few times.
async fn settle(inner: &Inner, record: &LedgerRecord, over: Revision) -> Result<Option<Revision>, MetaError> {
    let mut tries = 0;
    loop {
        match inner.replace_once(record, over).await {
            Ok(ChangeOutcome::Committed(revision)) => return Ok(Some(revision)),
            Ok(ChangeOutcome::Lost(_)) => return Ok(None),
            Err(MetaError::Unknown(_)) if tries < 5 => {
                tries += 1;
                tokio::time::sleep(inner.jitter(Duration::from_millis(10 << tries))).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn attempt(inner: &Arc<Inner>, record: LedgerRecord) -> Attempt {
    let mut effects = Vec::new();
    let mut bookies = bookies_of(&record.fragments);
    let mut state = State::start(record, &mut effects);
    let waiting = Waiting::new();
    let Timing { patience, deadline } = inner.recovery.clone();
    waiting.push(tokio::time::sleep(patience).map(|()| Happened::Patience).boxed());
    waiting.push(tokio::time::sleep(deadline).map(|()| Happened::Deadline).boxed());
    let mut waiting = waiting;
    loop {
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Close(record) => return Attempt::Close(record, Box::new(state), bookies),
                    Effect::Stop(verdict) => return Attempt::Stop(verdict),
                    Effect::Place(slots) => {
                        let members: Vec<BookieRef> = state.members().cloned().collect();
                        let staying = state.staying(slots);
                        let found = inner.placement.replace(slots.len() as usize, &staying, &members);
                        let found: Vec<_> = slots.iter().zip(found).collect();
                        bookies.extend(found.iter().map(|(_, bookie)| bookie.clone()));
                        state.on_replacements(&found, &mut effects);
                    }
                    effect => waiting.push(carry_out(inner, state.record(), effect)),
                }
            }
        }
        // The two timers keep the stream alive until the deadline, which ends every phase that waits.
        match waiting.next().await {
            Some(Happened::Tail(slot, result)) => state.on_tail(slot, result, &mut effects),
            Some(Happened::Read(slot, first, answer)) => state.on_read(slot, first, answer, &mut effects),
            Some(Happened::Last(entry)) => state.on_last(entry, &mut effects),
            Some(Happened::Added(slot, generation, ids, result)) => {
                state.on_added(slot, generation, ids, result, &mut effects);
            }
            Some(Happened::Patience) => state.on_patience_over(&mut effects),
            Some(Happened::Deadline) => state.on_deadline(&mut effects),
            None => return Attempt::Stop(Verdict::Undecided),
        }
    }
}

/// Starts the call an effect asks for.
fn carry_out(inner: &Arc<Inner>, record: &LedgerRecord, effect: Effect) -> BoxFuture<'static, Happened> {
    let (ledger, term) = (record.id, record.term);
    match effect {
        Effect::Fence { slot, to, from } => {
            let fence = inner.rpc.fence_tail(&to, ledger, term, from);
            fence.map(move |result| Happened::Tail(slot, result)).boxed()
        }
        Effect::Read { slot, to, first, last } => {
            let read = Read { ledger, first, last, bytes_max: BATCH_BYTES, class: ReadClass::Tail };
            inner.rpc.read(&to, read).map(move |answer| Happened::Read(slot, first, answer)).boxed()
        }
        Effect::ReadLast(id) => {
            let (inner, record) = (inner.clone(), record.clone());
            async move { Happened::Last(read_one(&inner, &record, id).await) }.boxed()
        }
        Effect::Add(back) => {
            let ids = (back.entries[0].id, back.entries[back.entries.len() - 1].id);
            let (slot, generation) = (back.slot, back.generation);
            let add = Add {
                ledger,
                term,
                lac: back.lac,
                lafr: back.lafr,
                attributes: Some(record.attributes.clone()),
                entries: back.entries,
            };
            let (told, answer) = futures::channel::oneshot::channel();
            // A recovery that has ended no longer listens.
            let done = Box::new(move |result| drop(told.send(result)));
            inner.rpc.add(&back.to, add, done);
            answer
                .map(move |result| {
                    let result = result.unwrap_or(Err(AddError::Unknown("add was dropped")));
                    Happened::Added(slot, generation, ids, result)
                })
                .boxed()
        }
        Effect::Place(_) | Effect::Close(_) | Effect::Stop(_) => {
            // Handled by the caller; a future that never answers is what they amount to here.
            futures::future::pending().boxed()
        }
    }
}

async fn read_one(inner: &Inner, record: &LedgerRecord, id: EntryId) -> Option<crate::entry::Entry> {
    let view = record.view();
    let plan = read::plan(&view, id, id, BATCH_BYTES, ReadClass::Tail)?;
    read::run(&*inner.rpc, &inner.hedge, plan).await.ok()?.into_iter().next()
}

fn tell_loss(owner: &str, closed: &ClosedLedger, lost: &[IdRange]) {
    let runs: Vec<String> = lost.iter().map(|run| format!("{}..={}", run.first, run.last)).collect();
    let entries: u64 = lost.iter().map(|run| run.last.0 - run.first.0 + 1).sum();
    let last = closed.last.map_or_else(|| "none".to_owned(), |last| last.to_string());
    tracing::warn!(
        code = %Code::LOST_FOR_GOOD, %owner, ledger = %closed.id, %last, entries, lost = %runs.join(" "),
        "a ledger is closed behind an accepted loss, at the last entry that is left: what followed is gone for good, and of what was \
         acknowledged at least these entries"
    );
}

/// What the owner gets of a closed record.
async fn recovered(
    inner: &Arc<Inner>,
    record: LedgerRecord,
    revision: Revision,
    state: Option<State>,
) -> Result<Recovered, RecoverError> {
    let closed = record.closed().ok_or(RecoverError::Undecided(record.id))?;
    let known = state.as_ref().zip(closed.last).and_then(|(state, last)| state.entry(last));
    let last_header = match (closed.last, known) {
        (None, _) => None,
        (Some(_), Some(entry)) => Some(entry.header),
        (Some(last), None) => {
            let entry = read_one(inner, &record, last).await.ok_or(RecoverError::Undecided(record.id))?;
            Some(entry.header)
        }
    };
    let key = inner.keys.ledger(record.id);
    let compares = vec![Compare::ModRevision(key.clone(), revision)];
    // With repair due the record stays, closed as it is, for the repairer to find.
    let ops = if closed.repair.is_empty() { vec![Op::delete(key)] } else { Vec::new() };
    let attributes = state.as_ref().and_then(State::attributes).cloned().unwrap_or(record.attributes);
    let lost = state.as_ref().and_then(State::lost);
    if let Some(lost) = lost {
        tell_loss(&attributes.owner, &closed, lost);
    }
    let lost = lost.unwrap_or_default().to_vec();
    let term = record.term;
    Ok(Recovered { closed, compares, ops, revision, term, last_header, attributes: Some(attributes), lost })
}
