//! The ledger record in metadata, and what its owner keeps of it once it is closed. Plain data with private invariants; the
//! stored form (protobuf, version first) is in this file too, so that one file owns the format.

use crate::mutant::{Mutant, active};
use crate::quorum::{QuorumSpec, SlotSet};
use crate::rpc::BookieRef;
use geminga_common::ids::{EntryId, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId};
use geminga_common::metadata::{Compare, Op, Revision, Txn};
use std::sync::Arc;

mod stored;
#[cfg(test)]
mod tests;

pub use stored::DecodeError;

/// Names one write of a record, so that its author can tell an unknown outcome from a lost race.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OpId(pub u64);

/// A ledger's record in metadata: exists while it is open, recovering, or closed with repair due.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LedgerRecord {
    /// The ledger.
    pub id: LedgerId,
    /// Raised by every recovery.
    pub term: Term,
    /// Open, recovering or closed.
    pub state: LedgerState,
    /// Its quorum.
    pub quorum: QuorumSpec,
    /// Where its entries are; first ids rise strictly, the first is 0, never empty.
    pub fragments: Vec<Fragment>,
    /// Ids that may be below their write quorum.
    pub repair: Vec<RepairRange>,
    /// Who it belongs to.
    pub attributes: Arc<LedgerAttributes>,
    /// The write that made this version.
    pub op_id: OpId,
}

impl LedgerRecord {
    /// The fragment that is written to.
    ///
    /// # Panics
    /// Never for a record that was decoded: an empty list of fragments is refused there.
    #[must_use]
    pub fn last_fragment(&self) -> &Fragment {
        self.fragments.last().expect("a ledger has at least one fragment")
    }

    /// What the owner keeps, if the ledger is closed.
    #[must_use]
    pub fn closed(&self) -> Option<ClosedLedger> {
        let LedgerState::Closed { last, length } = self.state else { return None };
        Some(ClosedLedger {
            id: self.id,
            last,
            length,
            term: self.term,
            quorum: self.quorum,
            fragments: self.fragments.clone(),
            repair: self.repair.clone(),
        })
    }
}

/// What a ledger is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LedgerKind {
    /// Messages of one topic.
    TopicData,
    /// Cursors of one bundle.
    CursorLog,
}

/// Who a ledger belongs to. Sent with the first add a bookie sees, journalled there, returned by fencing: a stray ledger can
/// find its owner, and metadata can be rebuilt.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LedgerAttributes {
    /// What it is for.
    pub kind: LedgerKind,
    /// The owner's name for people: topic or bundle.
    pub owner: String,
    /// The topic's id; for a cursor log the id of the log.
    pub topic: TopicId,
    /// Ordinal in the owner's chain of ledgers, from 0.
    pub ordinal: u64,
    /// The ledger before it in the chain.
    pub predecessor: Option<LedgerId>,
    /// Owner epoch that created it.
    pub owner_epoch: OwnerEpoch,
    /// Index of its first message.
    pub first_index: MessageIndex,
}

/// From `first` on, entries live on this ensemble.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Fragment {
    /// First entry of the fragment.
    pub first: EntryId,
    /// Slot → bookie; `None` is a vacant slot (recorded under-replication).
    pub ensemble: Vec<Option<BookieRef>>,
}

/// Entries that may be below their write quorum on a slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RepairRange {
    /// First id.
    pub first: EntryId,
    /// Last id; `None` while the range is still growing.
    pub last: Option<EntryId>,
    /// Slot of the ensemble.
    pub slot: u32,
}

/// State of a ledger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LedgerState {
    /// One writer may append at the record's term.
    Open,
    /// A recoverer at the record's term is closing it.
    Recovering,
    /// Final.
    Closed {
        /// Last entry; `None` when it holds none.
        last: Option<EntryId>,
        /// Bytes of headers and payloads.
        length: u64,
    },
}

/// What an owner keeps of a closed ledger.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClosedLedger {
    /// The ledger.
    pub id: LedgerId,
    /// Last entry; `None` when it holds none.
    pub last: Option<EntryId>,
    /// Bytes of headers and payloads.
    pub length: u64,
    /// Term that closed it.
    pub term: Term,
    /// Its quorum: readers need it to find an entry and to believe that one is absent.
    pub quorum: QuorumSpec,
    /// Where its entries are.
    pub fragments: Vec<Fragment>,
    /// Ids that may be below their write quorum.
    pub repair: Vec<RepairRange>,
}

impl ClosedLedger {
    /// Whether `other` is this ledger with other members or repair ranges, and nothing else: all that a repair may change.
    #[must_use]
    pub fn is_repaired(&self, other: &Self) -> bool {
        let shape = |l: &Self| l.fragments.iter().map(|f| (f.first, f.ensemble.len())).collect::<Vec<_>>();
        (self.id, self.last, self.length, self.term, self.quorum)
            == (other.id, other.last, other.length, other.term, other.quorum)
            && shape(self) == shape(other)
    }
}

impl Fragment {
    /// The slots without a bookie.
    #[must_use]
    pub fn vacant(&self) -> SlotSet {
        (0..self.ensemble.len() as u32).filter(|slot| self.ensemble[*slot as usize].is_none()).collect()
    }
}

/// Closes the ranges that still grow, at the last entry of the ledger; ranges beyond it vanish.
#[must_use]
pub fn close_repair(repair: &[RepairRange], last: Option<EntryId>) -> Vec<RepairRange> {
    let end = |range: &RepairRange| match (range.last, last) {
        (Some(end), Some(last)) => Some(end.min(last)),
        (None, last) => last,
        (Some(_), None) => None,
    };
    let mut closed: Vec<RepairRange> = repair
        .iter()
        .filter_map(|range| {
            let end = end(range)?;
            (range.first <= end).then_some(RepairRange { last: Some(end), ..*range })
        })
        .collect();
    closed.sort_by_key(|range| (range.slot, range.first, range.last));
    closed.dedup();
    closed
}

impl LedgerRecord {
    /// The transaction that puts this record over the one read at revision `over`; every change of a record is one.
    #[must_use]
    pub fn replacing(&self, key: String, over: Revision) -> Txn {
        let unchanged = Compare::ModRevision(key.clone(), over);
        let compares = if active(Mutant::StaleWriter) { Vec::new() } else { vec![unchanged] };
        Txn { compares, ops: vec![Op::put(key, self.encode())] }
    }

    /// Where its entries are.
    #[must_use]
    pub fn view(&self) -> crate::ledgers::LedgerView {
        crate::ledgers::LedgerView { id: self.id, quorum: self.quorum, fragments: self.fragments.clone() }
    }
}

#[cfg(test)]
impl LedgerRecord {
    /// The same record with slots renamed: `to[i]` is the new number of slot i.
    pub(crate) fn permuted(&self, to: &[u32]) -> Self {
        let mut next = self.clone();
        for (fragment, before) in next.fragments.iter_mut().zip(&self.fragments) {
            for (at, slot) in to.iter().enumerate() {
                fragment.ensemble[*slot as usize].clone_from(&before.ensemble[at]);
            }
        }
        next.repair.iter_mut().for_each(|range| range.slot = to[range.slot as usize]);
        next.repair.sort_by_key(|range| (range.slot, range.first, range.last));
        next
    }
}
