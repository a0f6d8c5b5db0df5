//! Deleting what left the chain. A tombstone is committed in the same transaction that drops the ledger; only then are bytes
//! deleted, and the tombstone goes once every holder has confirmed. What is interrupted is taken up by the sweep.

use super::Deps;
use super::record;
use geminga_bookie_client::record::ClosedLedger;
use geminga_common::error::Code;
use geminga_common::metadata::{MetaError, Op, Txn};
use geminga_common::tasks::OnFailure;
use std::time::Duration;

/// Tombstones read at a time.
const PAGE: usize = 256;

/// Deletes tombstoned ledgers beside the owner.
pub(super) fn bury(deps: &Deps, gone: Vec<ClosedLedger>) {
    let (task, stop) = (deps.clone(), deps.tasks.token());
    deps.tasks.spawn("ledger deletion", OnFailure::Log, async move {
        for ledger in gone {
            if stop.is_cancelled() {
                return;
            }
            if !delete(&task, &ledger).await {
                task.tombstones_left.notify_one();
            }
        }
    });
}

/// True once the ledger and its tombstone are gone.
async fn delete(deps: &Deps, ledger: &ClosedLedger) -> bool {
    if !deps.ledgers.delete(&ledger.view()).await {
        return false;
    }
    // A ledger that was closed with repair due still has a record of its own.
    let ops = vec![Op::delete(deps.keys.tombstone(ledger.id)), Op::delete(deps.keys.ledger(ledger.id))];
    match deps.meta.txn(Txn { compares: Vec::new(), ops }).await {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!(ledger = %ledger.id, %error, "tombstone stays for the next sweep");
            false
        }
    }
}

/// Takes up deletions that were interrupted, one after the other with a pause between; to be called at start and now and then.
/// Answers how many tombstones are left.
///
/// # Errors
/// The tombstones cannot be listed.
pub async fn sweep_tombstones(deps: &Deps, pause: Duration) -> Result<usize, MetaError> {
    let (prefix, stop) = (deps.keys.tombstones_prefix(), deps.tasks.token());
    let (mut left, mut after) = (0, None::<String>);
    loop {
        // A page at a time: there may be as many as there are ledgers.
        let page = deps.meta.list(&prefix, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(left) };
        after = Some(last.key.clone());
        for stored in &page {
            match record::decode_tombstone(&stored.value) {
                Ok((ledger, _)) => left += usize::from(!delete(deps, &ledger).await),
                Err(error) => {
                    tracing::error!(code = %Code::RECORD_UNREADABLE, key = %stored.key, %error, "tombstone cannot be read and is kept");
                    left += 1;
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(left),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
