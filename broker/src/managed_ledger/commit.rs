//! One transaction on a topic record, driven to a known outcome.
//!
//! An answer that is lost is never guessed at: the record is read back and its op id compared. If the record has not moved,
//! the *same* transaction is sent again: its conditions let it happen once at most, so a first attempt that arrives late
//! either is the one that counts or finds its condition broken.

use super::Deps;
use super::record;
use geminga_common::clock::Mono;
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
    /// The transaction removes the record instead of writing it.
    pub(super) removes: bool,
    /// Once an attempt is in doubt, tries on beyond the deadline until the outcome is known.
    pub(super) patient: bool,
    pub(super) txn: Txn,
}

/// How it ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Durable at this revision.
    Committed(Revision),
    /// A condition does not hold: somebody else wrote.
    Lost,
    /// Nothing was written before the deadline.
    NotWritten(MetaError),
    /// Not known at the deadline.
    Unknown,
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
            Ok(TxnOutcome::Committed(revision)) => return Outcome::Committed(revision),
            Ok(TxnOutcome::CompareFailed) if !in_doubt => return Outcome::Lost,
            Ok(TxnOutcome::CompareFailed) => match read_back(deps, &t).await {
                Ok(ours) => return ours.map_or(Outcome::Lost, Outcome::Committed),
                Err(error) => error,
            },
            Err(error @ (MetaError::Invalid(_) | MetaError::LeaseGone(_))) if !in_doubt => {
                tracing::error!(key = %t.key, %error, "topic transaction refused");
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

/// The revision at which our write is the record's last, if it is.
async fn read_back(deps: &Deps, t: &Transaction) -> Result<Option<Revision>, MetaError> {
    match deps.meta.get(&t.key).await? {
        // A topic is removed by its owner alone; whoever did it left tombstones for all its ledgers.
        None => Ok(t.removes.then_some(Revision::default())),
        Some(stored) => {
            let ours = record::decode(&stored.value).is_ok_and(|(_, op_id)| op_id == t.op_id);
            Ok(ours.then_some(stored.mod_revision))
        }
    }
}
