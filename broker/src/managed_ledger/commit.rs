//! One transaction on a topic record, driven to a known outcome.
//!
//! An answer that is lost is never guessed at: the record is read back and its op id compared. If the record has not moved,
//! the *same* transaction is sent again: its conditions let it happen once at most, so a first attempt that arrives late
//! either is the one that counts or finds its condition broken.
//!
//! A condition that does not hold need not mean another owner: a repairer moves members of closed ledgers in the record and leaves
//! its op id alone. What it left is told as [`Outcome::Moved`], to be adopted before the change is made anew.

use super::Deps;
use super::record;
use super::state::State;
use geminga_common::clock::Mono;
use geminga_common::error::Coded as _;
use geminga_common::metadata::{MetaError, Revision, Txn, TxnOutcome};
use std::time::Duration;

/// First and longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What to commit.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    /// The topic record's key.
    pub(super) key: String,
    /// Written into the record.
    pub(super) op_id: u64,
    /// Revision and op id of the record that it goes over; `None` when there is to be none.
    pub(super) over: Option<(Revision, u64)>,
    /// Key of the record of the ledger that it creates.
    pub(super) creates: Option<String>,
    /// The transaction removes the record instead of writing it.
    pub(super) removes: bool,
    /// Once an attempt is in doubt, tries on beyond the deadline until the outcome is known.
    pub(super) patient: bool,
    pub(super) txn: Txn,
}

/// How it ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Durable.
    Committed(Committed),
    /// Not written, and never will be: a repairer wrote over our last write. The record as it is now, and its revision.
    Moved(Box<State>, Revision),
    /// A condition does not hold: somebody else wrote.
    Lost,
    /// Nothing was written before the deadline.
    NotWritten(MetaError),
    /// Not known at the deadline.
    Unknown,
}

/// A transaction that is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Committed {
    /// Revision of the topic record.
    pub(super) record: Revision,
    /// Revision of the record of the ledger that was created.
    pub(super) ledger: Revision,
    /// The record when it had to be read back: a repairer may have moved members in it already.
    pub(super) stored: Option<Box<State>>,
}

impl Committed {
    fn at(revision: Revision) -> Self {
        Self { record: revision, ledger: revision, stored: None }
    }
}

/// Commits; tries until the outcome is known, the deadline has passed, or the group stops.
pub(super) async fn run(deps: &Deps, t: Transaction) -> Outcome {
    let until: Mono = deps.clock.mono() + deps.config.metadata_deadline;
    let stop = deps.tasks.token();
    let mut pause = PAUSE.0;
    // Whether some attempt may have been written, or may yet be.
    let mut in_doubt = false;
    loop {
        let error = match deps.meta.txn(t.txn.clone()).await {
            Ok(TxnOutcome::Committed(revision)) => return Outcome::Committed(Committed::at(revision)),
            Ok(TxnOutcome::CompareFailed) => match read_back(deps, &t, in_doubt).await {
                Ok(outcome) => return outcome,
                Err(error) => error,
            },
            Err(error @ (MetaError::Invalid(_) | MetaError::TooLarge(_) | MetaError::LeaseGone(_)))
                if !in_doubt =>
            {
                tracing::error!(code = %error.code(), key = %t.key, %error, "topic transaction refused");
                return Outcome::NotWritten(error);
            }
            Err(error) => {
                in_doubt |= matches!(error, MetaError::Unknown(_));
                error
            }
        };
        let late = deps.clock.mono() >= until && !(in_doubt && t.patient);
        if late || stop.is_cancelled() {
            return if in_doubt { Outcome::Unknown } else { Outcome::NotWritten(error) };
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Whose write the record is when a condition does not hold.
async fn read_back(deps: &Deps, t: &Transaction, in_doubt: bool) -> Result<Outcome, MetaError> {
    let Some(stored) = deps.meta.get(&t.key).await? else {
        // A topic is removed by its owner alone; whoever did it left tombstones for all its ledgers.
        let ours = t.removes && in_doubt;
        return Ok(if ours { Outcome::Committed(Committed::at(Revision::default())) } else { Outcome::Lost });
    };
    let Ok((state, op_id)) = record::decode(&stored.value) else { return Ok(Outcome::Lost) };
    let (state, revision) = (Box::new(state), stored.mod_revision);
    if op_id == t.op_id {
        // The revision may be a repairer's: the ledger's own is asked for.
        let ledger = match &t.creates {
            Some(key) => deps.meta.get(key).await?.map(|ledger| ledger.mod_revision),
            None => None,
        };
        let ledger = ledger.unwrap_or(revision);
        return Ok(Outcome::Committed(Committed { record: revision, ledger, stored: Some(state) }));
    }
    // At the revision that was asked for some other condition is what failed: the guard, or the ledger's.
    let moved = t.over.is_some_and(|(over, last)| op_id == last && revision != over);
    Ok(if moved { Outcome::Moved(state, revision) } else { Outcome::Lost })
}
