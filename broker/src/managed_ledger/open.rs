//! Opening a topic: read the record, recover what its last owner left open, fold it in. An idle topic costs one read.

use super::Deps;
use super::commit::{self, Outcome};
use super::record::{self, RecordError};
use super::state::{Change, State};
use geminga_bookie_client::ledgers::{RecoverError, Recovered};
use geminga_common::ids::{MessageIndex, OwnerEpoch};
use geminga_common::metadata::{Compare, MetaError, Op, Record, Revision, Txn, TxnOutcome};
use geminga_common::names::TopicName;
use geminga_common::rng::Rng;
use std::collections::BTreeMap;

/// How often an opening starts again because somebody else wrote in between.
const ROUNDS_MAX: usize = 8;

/// What opening does about a topic that is not there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CreateMode {
    /// It is an error.
    MustExist,
    /// It is created with these properties, if these conditions hold in the very transaction that creates it.
    CreateIfMissing(BTreeMap<String, String>, Vec<Compare>),
}

/// Why a topic could not be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// No such topic.
    #[error("topic does not exist")]
    NotFound,
    /// A condition of the creation no longer holds: ask for it anew.
    #[error("what the topic's creation depends on has changed meanwhile")]
    CreationLost,
    /// An owner with a higher epoch has written the record, or keeps writing it: ownership is to be looked up again.
    #[error("topic is owned by another broker")]
    NotOwner,
    /// The tail of its last ledger cannot be decided now; retry.
    #[error(transparent)]
    Recovery(RecoverError),
    /// The record names an open ledger of which metadata knows nothing: an incident.
    #[error("open ledger of the topic has no record")]
    LedgerLost,
    /// The record cannot be taken.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Metadata failed; retry.
    #[error(transparent)]
    Metadata(#[from] MetaError),
    /// A transaction's outcome is not known; retry.
    #[error("outcome of a metadata transaction is unknown")]
    OutcomeUnknown,
}

/// A topic as opened: no ledger is open.
pub(super) struct Opened {
    pub(super) state: State,
    pub(super) revision: Revision,
    /// The write that made this version.
    pub(super) op_id: u64,
}

/// Opens or creates.
pub(super) async fn open(deps: &Deps, topic: &TopicName, mode: CreateMode) -> Result<Opened, OpenError> {
    let key = deps.keys.topic(topic);
    let mut rng = Rng::from_system();
    let mut lost: Option<Revision> = None;
    for _ in 0..ROUNDS_MAX {
        let done = match (deps.meta.get(&key).await?, &mode) {
            (Some(stored), _) => {
                let again = lost == Some(stored.mod_revision);
                lost = Some(stored.mod_revision);
                load(deps, &key, &stored, &mut rng, again).await?
            }
            (None, CreateMode::MustExist) => return Err(OpenError::NotFound),
            (None, CreateMode::CreateIfMissing(properties, conditions)) => {
                let created = create(deps, &key, properties.clone(), conditions, rng.next_u64()).await?;
                if created.is_none() && !hold(deps, conditions).await? {
                    return Err(OpenError::CreationLost);
                }
                created
            }
        };
        if let Some(opened) = done {
            return Ok(opened);
        }
    }
    Err(OpenError::NotOwner)
}

/// `None`: start again. `again` tells that a round before has seen this same version of the record.
async fn load(
    deps: &Deps,
    key: &str,
    stored: &Record,
    rng: &mut Rng,
    again: bool,
) -> Result<Option<Opened>, OpenError> {
    let (mut state, op_id) = record::decode(&stored.value)?;
    if state.writer_epoch > deps.owner_epoch {
        return Err(OpenError::NotOwner);
    }
    let Some(open) = state.open().cloned() else {
        return Ok(Some(Opened { state, revision: stored.mod_revision, op_id }));
    };
    let recovered = match deps.ledgers.recover(open.id).await {
        Ok(recovered) => recovered,
        // The record was folded by somebody else after it was read: then it has another version by now.
        Err(RecoverError::NoRecord(_)) if again => return Err(OpenError::LedgerLost),
        Err(RecoverError::NoRecord(_) | RecoverError::Superseded(_)) => return Ok(None),
        Err(RecoverError::Metadata(error)) => return Err(error.into()),
        Err(error) => return Err(OpenError::Recovery(error)),
    };
    let (over, op_id) = ((stored.mod_revision, op_id), rng.next_u64());
    let txn = fold(deps, key, &mut state, over, &recovered, op_id);
    match commit::run(deps, txn).await {
        Outcome::Committed(done) => Ok(opened(state, op_id, done)),
        // Whoever wrote, another owner or a repairer: the record is read anew.
        Outcome::Lost | Outcome::Moved(..) => Ok(None),
        Outcome::NotWritten(error) => Err(error.into()),
        Outcome::Unknown => Err(OpenError::OutcomeUnknown),
    }
}

/// The state as it was written, with what a repairer did to it if it had to be read back; `None`: read it anew.
fn opened(mut state: State, op_id: u64, done: commit::Committed) -> Option<Opened> {
    let ours = done.stored.is_none_or(|stored| state.adopt(&stored));
    ours.then_some(Opened { state, revision: done.record, op_id })
}

/// Takes the recovered ledger into the state; the index runs on from its last entry.
fn fold(
    deps: &Deps,
    key: &str,
    state: &mut State,
    over: (Revision, u64),
    recovered: &Recovered,
    op_id: u64,
) -> commit::Transaction {
    let now = deps.clock.wall_ms();
    let change = Change { close: Some((recovered.closed.clone(), now)), ..Change::default() };
    state.apply(&change);
    if let Some(last) = recovered.last_header {
        state.next_index = MessageIndex(last.first_index.0 + u64::from(last.messages));
        state.last_stamp_ms = state.last_stamp_ms.max(last.timestamp_ms);
    }
    state.writer_epoch = deps.owner_epoch;
    let mut compares = deps.guard.clone();
    compares.push(Compare::ModRevision(key.to_owned(), over.0));
    compares.extend(recovered.compares.iter().cloned());
    let mut ops = vec![Op::put(key, record::encode(state, op_id))];
    ops.extend(recovered.ops.iter().cloned());
    if recovered.closed.last.is_none() {
        let tombstone = record::encode_tombstone(&recovered.closed, state.topic_id, now);
        ops.push(Op::put(deps.keys.tombstone(recovered.closed.id), tombstone));
    }
    commit::Transaction {
        key: key.to_owned(),
        op_id,
        over: Some(over),
        creates: None,
        removes: false,
        patient: false,
        txn: Txn { compares, ops },
    }
}

/// Whether all of the conditions hold now.
async fn hold(deps: &Deps, conditions: &[Compare]) -> Result<bool, MetaError> {
    let txn = Txn { compares: conditions.to_vec(), ops: Vec::new() };
    Ok(matches!(deps.meta.txn(txn).await?, TxnOutcome::Committed(_)))
}

/// A topic without a ledger.
async fn create(
    deps: &Deps,
    key: &str,
    properties: BTreeMap<String, String>,
    conditions: &[Compare],
    op_id: u64,
) -> Result<Option<Opened>, OpenError> {
    let id = deps.topic_ids.next(deps).await?;
    let mut state = State::new(id, properties, deps.clock.wall_ms());
    state.writer_epoch = OwnerEpoch(deps.owner_epoch.0);
    let mut compares = deps.guard.clone();
    compares.extend(conditions.iter().cloned());
    compares.push(Compare::Absent(key.to_owned()));
    let ops = vec![Op::put(key, record::encode(&state, op_id))];
    let txn = commit::Transaction {
        key: key.to_owned(),
        op_id,
        over: None,
        creates: None,
        removes: false,
        patient: false,
        txn: Txn { compares, ops },
    };
    match commit::run(deps, txn).await {
        Outcome::Committed(done) => Ok(opened(state, op_id, done)),
        Outcome::Lost | Outcome::Moved(..) => Ok(None),
        Outcome::NotWritten(error) => Err(error.into()),
        Outcome::Unknown => Err(OpenError::OutcomeUnknown),
    }
}
