//! Opening a cursor log: close what a dead owner left open, then replay all listed ledgers. Nothing is guessed: an entry that
//! cannot be read now fails the opening, which its caller repeats.

use super::chain::{Chain, ChainError};
use super::log::Deps;
use super::log_lost;
use super::log_state::{Cursors, Replay, ReplayError};
use geminga_bookie_client::entry::Kind;
use geminga_bookie_client::ledgers::{ReadError, RecoverError, Recovered};
use geminga_bookie_client::record::ClosedLedger;
use geminga_bookie_client::rpc::ReadClass;
use geminga_common::ids::{EntryId, LedgerId};
use geminga_common::metadata::{Compare, MetaError, Op, Revision, Txn, TxnOutcome};
use geminga_common::names::Bundle;
use std::time::Duration;

/// Tries before a step of opening is given up.
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const READ_BYTES_MAX: usize = 4 << 20;

/// Why a log could not be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// Metadata failed.
    #[error(transparent)]
    Metadata(#[from] MetaError),
    /// The log's record cannot be read.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The open ledger could not be closed.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// An entry cannot be read.
    #[error("cursor log ledger {ledger}: {error}")]
    Read {
        /// The ledger.
        ledger: LedgerId,
        /// Why.
        error: ReadError,
    },
    /// An entry of the log is of another kind.
    #[error("entry {1} of ledger {0} is no cursor log entry")]
    NotOurs(LedgerId, EntryId),
    /// The log is damaged.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// Another owner is at work on the log, or this process does not own the bundle.
    #[error("cursor log has another owner")]
    Lost,
}

/// A log as it was found.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) chain: Chain,
    /// Of the record; `None` when there is none yet.
    pub(super) revision: Option<Revision>,
    pub(super) cursors: Cursors,
}

/// The pause after the `nth` failure.
pub(super) fn pause(nth: u32) -> Duration {
    (PAUSE * 2_u32.pow(nth.min(10))).min(PAUSE_MAX)
}

pub(super) async fn open(deps: &Deps, bundle: &Bundle) -> Result<Opened, OpenError> {
    let key = deps.keys.cursor_log(bundle);
    let mut rounds = 1..ATTEMPTS;
    loop {
        let (chain, revision) = closed_chain(deps, &key).await?;
        match replay(deps, bundle, &chain).await {
            Ok(cursors) => return Ok(Opened { chain, revision, cursors }),
            // A ledger that was moved meanwhile is where the record says by now.
            Err(OpenError::Read { .. })
                if rounds.next().is_some() && has_moved(deps, &key, revision).await? => {}
            Err(error) => return Err(error),
        }
    }
}

async fn has_moved(deps: &Deps, key: &str, since: Option<Revision>) -> Result<bool, OpenError> {
    Ok(deps.metadata.get(key).await?.map(|stored| stored.mod_revision) != since)
}

async fn replay(deps: &Deps, bundle: &Bundle, chain: &Chain) -> Result<Cursors, OpenError> {
    let lacks = chain.closed.iter().any(|ledger| deps.ledgers.may_lack(&ledger.view()));
    let replayed = replay_all(deps, chain).await;
    if !lacks {
        return Ok(replayed?.finish());
    }
    let mut cursors = match replayed {
        Ok(replay) if !replay.is_cut() => replay.finish(),
        Ok(_) | Err(OpenError::Read { error: ReadError::Lost(_), .. } | OpenError::Replay(_)) => {
            let found = log_lost::salvage(deps, &chain.closed).await;
            found.map_err(|(ledger, error)| OpenError::Read { ledger, error })?
        }
        Err(error) => return Err(error),
    };
    log_lost::keep_all(deps, bundle, &mut cursors).await?;
    Ok(cursors)
}

async fn replay_all(deps: &Deps, chain: &Chain) -> Result<Replay, OpenError> {
    let mut replay = Replay::default();
    for ledger in &chain.closed {
        replay.begin_ledger();
        replay_ledger(deps, ledger, &mut replay).await?;
    }
    Ok(replay)
}

/// The record, with its open ledger closed.
async fn closed_chain(deps: &Deps, key: &str) -> Result<(Chain, Option<Revision>), OpenError> {
    for nth in 0..ATTEMPTS {
        let Some(stored) = deps.metadata.get(key).await? else { return Ok((Chain::default(), None)) };
        let chain = Chain::decode(&stored.value)?;
        let Some(open) = chain.open else { return Ok((chain, Some(stored.mod_revision))) };
        match deps.ledgers.recover(open).await {
            Ok(recovered) => {
                let mut next = chain.closed(recovered.closed.clone());
                next.op_id = deps.rng.lock().next_u64();
                // Whatever comes of it is seen when the record is read again.
                fold(deps, key, &next, stored.mod_revision, recovered).await?;
                continue;
            }
            // Folded meanwhile, undecided or contested: look again. The last attempt tells why not.
            Err(error) if nth + 1 == ATTEMPTS => return Err(error.into()),
            Err(error) => tracing::debug!(ledger = %open, %error, "cursor log not recovered yet"),
        }
        tokio::time::sleep(pause(nth)).await;
    }
    Err(OpenError::Lost)
}

async fn fold(
    deps: &Deps,
    key: &str,
    next: &Chain,
    over: Revision,
    recovered: Recovered,
) -> Result<(), OpenError> {
    let mut txn = Txn { compares: recovered.compares, ops: recovered.ops };
    txn.compares.push(Compare::ModRevision(key.to_owned(), over));
    txn.compares.extend(deps.guard.iter().cloned());
    txn.ops.push(Op::put(key, next.encode()));
    match deps.metadata.txn(txn).await {
        Ok(TxnOutcome::Committed(_) | TxnOutcome::CompareFailed) | Err(MetaError::Unknown(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn replay_ledger(deps: &Deps, ledger: &ClosedLedger, replay: &mut Replay) -> Result<(), OpenError> {
    let Some(last) = ledger.last else { return Ok(()) };
    let view = ledger.view();
    let mut next = EntryId(0);
    let mut failures = 0;
    while next <= last {
        let read = deps.ledgers.read(&view, next, last, READ_BYTES_MAX, ReadClass::CatchUp).await;
        match read {
            Ok(entries) => {
                for entry in entries {
                    if entry.header.kind != Kind::CursorLog || entry.id != next {
                        return Err(OpenError::NotOurs(ledger.id, entry.id));
                    }
                    replay.entry(&entry.payload)?;
                    next = next.next();
                }
                failures = 0;
            }
            Err(ReadError::Unavailable(_)) if failures + 1 < ATTEMPTS => {
                tokio::time::sleep(pause(failures)).await;
                failures += 1;
            }
            Err(error) => return Err(OpenError::Read { ledger: ledger.id, error }),
        }
    }
    Ok(())
}
