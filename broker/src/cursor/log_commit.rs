//! Transactions on a cursor log's record, and what follows from them: dropping ledgers that a snapshot made superfluous.
//!
//! A condition that does not hold need not mean another owner: a repairer moves members of closed ledgers in the record and leaves
//! its op id alone. Such a write is taken over, and the change is made anew over it.

use super::chain::Chain;
use super::log::Failed;
use super::log_worker::{ATTEMPTS, RETRY_AFTER, Worker};
use geminga_bookie_client::record::ClosedLedger;
use geminga_common::metadata::{Compare, MetaError, Op, Revision, TXN_OPS_MAX, Txn, TxnOutcome};
use geminga_common::tasks::OnFailure;

/// Why a transaction was not carried out.
pub(super) enum Miss {
    /// The log is over.
    Failed(Failed),
    /// Metadata is away: nothing was written.
    Away,
    /// A repairer had written; that is taken over, nothing of ours was written.
    Moved,
}

impl From<Failed> for Miss {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

/// A transaction that was carried out.
pub(super) struct Written {
    record: Revision,
    /// Revision of the record of the ledger that was opened with it.
    ledger: Revision,
}

impl Worker {
    /// Replaces the superfluous ledgers by tombstones. Metadata that is away only puts it off.
    pub(super) async fn drop_old(&mut self) -> Result<(), Failed> {
        while self.drop_due > 0 {
            let (next, gone) = self.chain.dropped(self.drop_due.min(TXN_OPS_MAX - 1));
            let now = self.deps.clock.wall_ms();
            let tombstone = |ledger: &ClosedLedger| {
                let value = (self.deps.tombstone)(ledger, self.chain.log_id, now);
                Op::put(self.deps.keys.tombstone(ledger.id), value)
            };
            let txn = Txn { compares: Vec::new(), ops: gone.iter().map(tombstone).collect() };
            match self.commit_once(next, txn).await {
                Ok(_) => {}
                Err(Miss::Failed(failed)) => return Err(failed),
                // Planned anew: a tombstone names who holds the ledger by now.
                Err(Miss::Moved) => continue,
                Err(Miss::Away) => {
                    self.retry_at = self.deps.clock.mono() + RETRY_AFTER;
                    return Ok(());
                }
            }
            self.drop_due -= gone.len();
            self.delete(gone);
        }
        Ok(())
    }

    /// Tells the bookies, beside everything else. What they do not confirm keeps its tombstone: any deleter may finish it.
    fn delete(&self, gone: Vec<ClosedLedger>) {
        let deps = self.deps.clone();
        self.deps.tasks.spawn(format!("cursor log deletes {}", self.bundle), OnFailure::Log, async move {
            for ledger in gone {
                if !deps.ledgers.delete(&ledger.view()).await {
                    deps.tombstones_left.notify_one();
                    continue;
                }
                // A ledger that was closed with repair due still has a record of its own.
                let (tombstone, record) = (deps.keys.tombstone(ledger.id), deps.keys.ledger(ledger.id));
                let ops = vec![Op::delete(tombstone), Op::delete(record)];
                if let Err(error) = deps.metadata.txn(Txn { compares: Vec::new(), ops }).await {
                    tracing::debug!(ledger = %ledger.id, %error, "tombstone stays for now");
                    deps.tombstones_left.notify_one();
                }
            }
        });
    }

    /// Commits until the outcome is known; the answer is the revision of the ledger that was opened.
    pub(super) async fn commit(&mut self, mut next: Chain, txn: Txn) -> Result<Revision, Failed> {
        for nth in 0..ATTEMPTS {
            match self.commit_once(next.clone(), txn.clone()).await {
                Ok(written) => return Ok(written.ledger),
                Err(Miss::Failed(failed)) => return Err(failed),
                Err(Miss::Moved) if next.adopt(&self.chain) => {}
                Err(Miss::Moved) => return Err(Failed::Lost),
                Err(Miss::Away) => self.rest(nth).await?,
            }
        }
        Err(Failed::Unavailable)
    }

    /// Puts `next` over the record, together with `txn`.
    async fn commit_once(&mut self, mut next: Chain, mut txn: Txn) -> Result<Written, Miss> {
        next.op_id = self.deps.rng.lock().next_u64();
        txn.compares.push(match self.revision {
            Some(revision) => Compare::ModRevision(self.key.clone(), revision),
            None => Compare::Absent(self.key.clone()),
        });
        txn.compares.extend(self.deps.guard.iter().cloned());
        txn.ops.push(Op::put(self.key.clone(), next.encode()));
        let written = match self.deps.metadata.txn(txn).await {
            Ok(TxnOutcome::Committed(revision)) => Written { record: revision, ledger: revision },
            Ok(TxnOutcome::CompareFailed) => self.read_back(&mut next, false).await?,
            Err(MetaError::Unknown(_)) => self.read_back(&mut next, true).await?,
            Err(MetaError::Unavailable(_)) => return Err(Miss::Away),
            Err(MetaError::Invalid(_) | MetaError::TooLarge(_) | MetaError::LeaseGone(_)) => {
                return Err(Failed::Lost.into());
            }
        };
        self.chain = next;
        self.revision = Some(written.record);
        Ok(written)
    }

    /// Whose write the record is, when a condition did not hold or the answer was lost: it tells by its op id.
    async fn read_back(&mut self, next: &mut Chain, in_doubt: bool) -> Result<Written, Miss> {
        for nth in 0..ATTEMPTS {
            match self.look(next, in_doubt).await {
                Ok(known) => return known,
                Err(error) => {
                    tracing::debug!(bundle = %self.bundle, %error, "outcome not known yet");
                    self.rest(nth).await?;
                }
            }
        }
        Err(Failed::Unavailable.into())
    }

    async fn look(&mut self, next: &mut Chain, in_doubt: bool) -> Result<Result<Written, Miss>, MetaError> {
        let lost = Err(Failed::Lost.into());
        let stored = self.deps.metadata.get(&self.key).await?;
        let revision = stored.as_ref().map(|stored| stored.mod_revision);
        let found = stored.and_then(|stored| Chain::decode(&stored.value).ok());
        if let (Some(found), Some(record)) = (&found, revision) {
            if found.op_id == next.op_id {
                // The revision may be a repairer's: the ledger's own is asked for.
                let ledger = match next.open {
                    Some(id) => self.deps.metadata.get(&self.deps.keys.ledger(id)).await?,
                    None => None,
                };
                let ledger = ledger.map_or(record, |ledger| ledger.mod_revision);
                return Ok(if next.adopt(found) { Ok(Written { record, ledger }) } else { lost });
            }
            let ours = self.revision.is_some() && found.op_id == self.chain.op_id;
            if ours && revision != self.revision && self.chain.adopt(found) {
                self.revision = revision;
                return Ok(Err(Miss::Moved));
            }
        }
        // The transaction may still be on its way; a second try at the same revision cannot hurt then: only one of the two can
        // win, and the loser reads the other's op id and stops.
        Ok(if in_doubt && revision == self.revision { Err(Miss::Away) } else { lost })
    }
}
