//! Letting go of stores that lost something. A store in DataLoss serves what it has and takes nothing; where no other bookie can take
//! its copies it would stay so for ever. Once nothing counts on what it was, its record says Lost: it then starts again under a new
//! incarnation, with all that could be read of it, and the copies it lacks are brought to it like to any new store.
//!
//! Proven by a look at every ledger, none of which was missed: of a closed one, other sound members hold each of its ids (asked); of an
//! open one, fewer slots than acknowledge are unsound, so that each acknowledged entry is on a sound one and a recovery can decide;
//! slots that were vacant in an earlier fragment held nothing that was acknowledged there.
//! Ledgers begun meanwhile cannot have it: nobody places anything on a store in DataLoss.

use super::plan::Standing;
use super::standing::Standings;
use crate::record::LedgerRecord;
use crate::registry::record::{BookieRecord, NodeState};
use crate::rpc::BookieRef;
use geminga_common::ids::LedgerId;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::{Compare, MetaError, MetadataStore, Op, Record, Txn};
use std::collections::BTreeMap;

/// What a look has found of each damaged store: a ledger that counts on it, if there is one.
#[derive(Clone, Debug, Default)]
pub struct Releases(BTreeMap<BookieRef, Option<LedgerId>>);

impl Releases {
    /// All stores of a picture that may be let go of, before anything was looked at.
    #[must_use]
    pub fn of(standings: &Standings) -> Self {
        Self(standings.damaged().map(|store| (store, None)).collect())
    }

    /// Those that are not known to be counted on: after a look at everything, those that may be let go of.
    #[must_use]
    pub fn open(&self) -> Vec<BookieRef> {
        self.0.iter().filter(|(_, needed)| needed.is_none()).map(|(store, _)| store.clone()).collect()
    }

    /// Something could not be looked at: nothing is let go of.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether something counts on one.
    #[must_use]
    pub fn counted(&self) -> bool {
        self.0.values().any(Option::is_some)
    }

    /// A ledger counts on a store.
    pub fn counted_on(&mut self, store: &BookieRef, by: LedgerId) {
        if let Some(needed) = self.0.get_mut(store) {
            needed.get_or_insert(by);
        }
    }

    /// A ledger that is open or in recovery.
    pub fn look_at_open(&mut self, record: &LedgerRecord, standing: impl Fn(&BookieRef) -> Standing) {
        let last = record.fragments.len().saturating_sub(1);
        for (at, fragment) in record.fragments.iter().enumerate() {
            // A recovery asks the last fragment, and a vacant slot answers nothing. Of the others all is acknowledged: on so many members.
            let unsound = |slot: &&Option<BookieRef>| match slot {
                Some(member) => standing(member) != Standing::Sound,
                None => at == last,
            };
            let unsound = fragment.ensemble.iter().filter(unsound).count();
            if unsound >= record.quorum.ack() as usize {
                fragment.ensemble.iter().flatten().for_each(|member| self.counted_on(member, record.id));
            }
        }
    }

    /// Lets go of those on which nothing counts. To be called after a look at everything, never after a part of it.
    ///
    /// # Errors
    /// Those of metadata; what was not let go of is found by the next look.
    pub async fn publish(&self, store: &dyn MetadataStore, keys: &Keys) -> Result<(), MetaError> {
        for (bookie, needed) in &self.0 {
            if let Some(ledger) = needed {
                tracing::warn!(%bookie, %ledger, "a store that lost data is still counted on");
                continue;
            }
            let key = keys.bookie(&bookie.id);
            let Some(stored) = store.get(&key).await? else { continue };
            let Some(txn) = letting_go(bookie, &stored) else { continue };
            // Whatever comes of it: a record that is still the same is found by the next look.
            let outcome = store.txn(txn).await?;
            tracing::warn!(%bookie, ?outcome, "nothing counts on this store that lost data: it may start again as a new one");
        }
        Ok(())
    }
}

/// The transaction that lets go of a store, over its record as it is stored now; `None` when that is not the record of a store in DataLoss.
#[must_use]
pub fn letting_go(bookie: &BookieRef, stored: &Record) -> Option<Txn> {
    let record = BookieRecord::decode(&stored.value).ok()?;
    if record.incarnation != bookie.incarnation || record.state != NodeState::DataLoss {
        return None;
    }
    let compares = vec![Compare::ModRevision(stored.key.clone(), stored.mod_revision)];
    let ops = vec![Op::put(stored.key.clone(), BookieRecord { state: NodeState::Lost, ..record }.encode())];
    Some(Txn { compares, ops })
}
