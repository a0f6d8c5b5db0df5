//! The writer machine of an open ledger (storage.md 1.6): pure, events in, ordered effects out; owned by the shell next door.
//!
//! Ids are handed out densely; an entry *completes* at Qa acks of distinct slots and is *acknowledged* in id order (LAC). It
//! stays pending, by its payload handle, until all its slots have it (LAFR), because a replaced slot must be sent it again.
//! While an ensemble change is being committed the LAC stands still: the new fragment begins right after it.
//!
//! Bounds are kept exclusive inside (`acked_end` = LAC + 1), so that "nothing yet" needs no special case. A slot's *generation*
//! grows whenever its bookie changes: an ack of an earlier tenure is told apart by one number instead of by comparing names.
//!
//! A slot without a bookie is *vacant*: the record says so in the fragment, and an open-ended repair range covers it. Entries
//! count as full when all slots that have a bookie acknowledged them, since the rest is recorded.
//!
//! | file | what it holds |
//! |---|---|
//! | `entries` | entries on their way: handed out, sent, acknowledged |
//! | `change` | changes of the ensemble: planned, committed, adopted |
//! | `symmetry` | states that differ by names of slots alone, for the exploration |

mod change;
mod entries;
#[cfg(test)]
mod symmetry;

use crate::entry::Entry;
use crate::ledgers::{AppendError, Copies};
use crate::quorum::{AckSet, QuorumSpec, SlotSet};
use crate::record::{Fragment, LedgerRecord, LedgerState, RepairRange, close_repair};
use crate::rpc::BookieRef;
use geminga_common::ids::{EntryId, LedgerId, Term};
use geminga_common::metadata::Revision;
use std::collections::VecDeque;

/// Limits of a writer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Limits {
    /// Largest header and payload of one entry, bytes.
    pub entry_bytes_max: usize,
    /// Most bytes that may be acknowledged and yet missing on some slot: a slot that lags further is replaced, not buffered for.
    pub lag_bytes_max: usize,
    /// Most fragments; a ledger that needs more is given up for a fresh one.
    pub fragments_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entry_bytes_max: 16 << 20, lag_bytes_max: 4 << 20, fragments_max: 16 }
    }
}

/// A bookie's tenure of a slot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Slot {
    /// Who holds it; `None` is vacant.
    pub bookie: Option<BookieRef>,
    /// Grows with every change of the holder.
    pub generation: u32,
    /// Whether the bookie has acknowledged the ledger's attributes.
    pub introduced: bool,
}

/// An entry some slot still lacks.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pending {
    /// The entry.
    pub entry: Entry,
    /// Slots that have it durably.
    pub acked: AckSet,
}

/// What a writer can still do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// Takes entries.
    Open,
    /// Over, for this reason.
    Failed(AppendError),
    /// A close was planned: nothing moves any more.
    Closing,
}

/// A change of the ensemble between planning and commit.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// Waits for the placement's answer about these slots.
    Placing(SlotSet),
    /// Waits for the outcome of the transaction.
    Committing {
        /// The planned fragments.
        fragments: Vec<Fragment>,
        /// The planned repair ranges.
        repair: Vec<RepairRange>,
        /// Slots whose holder changes.
        replaced: SlotSet,
    },
}

/// Entries to one slot, contiguous for an unstriped ensemble.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SlotAdd {
    /// The slot.
    pub slot: u32,
    /// Tenure the answer will be for.
    pub generation: u32,
    /// First id the answer covers.
    pub first: EntryId,
    /// Last id the answer covers; with striping only those of the slot.
    pub last: EntryId,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// What the shell has to do, in this order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Send entries to the slot's bookie.
    Send(SlotAdd),
    /// Ask the placement for bookies outside [`State::members`], then tell [`State::on_replacements`].
    Place(SlotSet),
    /// Commit this record over revision [`State::revision`], then tell the outcome. `op_id` is the shell's to fill.
    Commit(Box<LedgerRecord>),
}

/// How the commit of a change ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ChangeOutcome {
    /// Ours is the record now.
    Committed(Revision),
    /// Somebody else wrote the record; this is it.
    Lost(Option<(Box<LedgerRecord>, Revision)>),
}

/// The machine.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub(super) ledger: LedgerId,
    pub(super) term: Term,
    pub(super) quorum: QuorumSpec,
    pub(super) limits: Limits,
    pub(super) record: LedgerRecord,
    pub(super) revision: Revision,
    pub(super) slots: Vec<Slot>,
    pub(super) next: EntryId,
    pub(super) acked_end: EntryId,
    pub(super) full_end: EntryId,
    pub(super) pending: VecDeque<Pending>,
    /// Bytes handed out, bytes acknowledged, bytes acknowledged but not full.
    pub(super) bytes_sent: u64,
    pub(super) bytes_acked: u64,
    pub(super) bytes_lagging: usize,
    pub(super) failed: SlotSet,
    /// Slots whose bookie has lost what it held of this ledger, until the next change records it.
    pub(super) lost: SlotSet,
    /// What bookies lost that were leaving when they said so, too late for the change they left by: the next change or the close
    /// records it. Kept as ranges, because nothing of these bookies is left in the slots.
    pub(super) owed: Vec<RepairRange>,
    /// Bookies that failed this writer since the last readmission: else two broken ones would replace each other for ever.
    pub(super) shunned: Vec<BookieRef>,
    pub(super) disk_full: bool,
    pub(super) change: Option<Change>,
    pub(super) status: Status,
}

impl State {
    /// The writer of a ledger just created at `revision`.
    ///
    /// # Panics
    /// When the record is not open or its ensemble does not fit its quorum: the caller made it.
    #[must_use]
    pub fn new(record: LedgerRecord, revision: Revision, limits: Limits) -> Self {
        assert_eq!(record.state, LedgerState::Open, "only an open ledger has a writer");
        let fragment = record.last_fragment();
        assert_eq!(
            fragment.ensemble.len(),
            record.quorum.ensemble() as usize,
            "one bookie or vacancy per slot"
        );
        let slot =
            |bookie: &Option<BookieRef>| Slot { bookie: bookie.clone(), generation: 0, introduced: false };
        Self {
            ledger: record.id,
            term: record.term,
            quorum: record.quorum,
            limits,
            slots: fragment.ensemble.iter().map(slot).collect(),
            revision,
            next: EntryId(0),
            acked_end: EntryId(0),
            full_end: EntryId(0),
            pending: VecDeque::new(),
            bytes_sent: 0,
            bytes_acked: 0,
            bytes_lagging: 0,
            failed: SlotSet::EMPTY,
            lost: SlotSet::EMPTY,
            owed: Vec::new(),
            shunned: Vec::new(),
            disk_full: false,
            change: None,
            status: Status::Open,
            record,
        }
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> LedgerId {
        self.ledger
    }

    /// The writer's term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// Last acknowledged entry.
    #[must_use]
    pub fn lac(&self) -> Option<EntryId> {
        self.acked_end.previous()
    }

    /// Last entry that is full or recorded for repair.
    #[must_use]
    pub fn lafr(&self) -> Option<EntryId> {
        self.full_end.previous()
    }

    /// Last entry handed out.
    #[must_use]
    pub fn last_sent(&self) -> Option<EntryId> {
        self.next.previous()
    }

    /// The record as this writer knows it.
    #[must_use]
    pub fn record(&self) -> &LedgerRecord {
        &self.record
    }

    /// Its revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// A slot.
    #[must_use]
    pub fn slot(&self, slot: u32) -> &Slot {
        &self.slots[slot as usize]
    }

    /// What the writer can still do.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Whether a change of the ensemble is under way.
    #[must_use]
    pub fn changing(&self) -> bool {
        self.change.is_some()
    }

    /// Whether what is acknowledged and yet missing on some slot is within its limit (I16).
    #[must_use]
    pub fn lag_is_bounded(&self) -> bool {
        self.bytes_lagging <= self.limits.lag_bytes_max
    }

    /// The slots without a bookie.
    #[must_use]
    pub fn vacant(&self) -> SlotSet {
        (0..self.quorum.ensemble()).filter(|s| self.slots[*s as usize].bookie.is_none()).collect()
    }

    /// Bookies in the ensemble now, and those that failed lately: none of them may be placed.
    pub fn members(&self) -> impl Iterator<Item = &BookieRef> {
        self.slots.iter().filter_map(|slot| slot.bookie.as_ref()).chain(&self.shunned)
    }

    /// Bookies that stay when `leaving` are replaced.
    #[must_use]
    pub fn staying(&self, leaving: SlotSet) -> Vec<BookieRef> {
        let staying = (0..self.quorum.ensemble()).filter(|slot| !leaving.contains(*slot));
        staying.filter_map(|slot| self.slots[slot as usize].bookie.clone()).collect()
    }

    /// Whether what is acknowledged has all its copies.
    #[must_use]
    pub fn copies(&self) -> Copies {
        let none_due = self.record.repair.is_empty() && self.owed.is_empty();
        match (self.vacant().is_empty(), none_due) {
            (false, _) => Copies::Vacant,
            (true, false) => Copies::RepairDue,
            (true, true) => Copies::Full,
        }
    }

    /// Stops intake and freezes the LAC; the answer is the closed record.
    ///
    /// # Errors
    /// [`AppendError::Fenced`]: the ledger is its recoverer's.
    pub fn close(&mut self) -> Result<LedgerRecord, AppendError> {
        if self.status == Status::Failed(AppendError::Fenced) {
            return Err(AppendError::Fenced);
        }
        self.status = Status::Closing;
        let last = self.lac();
        let repair = close_repair(&self.repair_with(self.vacant()), last);
        let fragments = self.record.fragments.clone();
        let state = LedgerState::Closed { last, length: self.bytes_acked };
        Ok(LedgerRecord { state, repair, fragments, ..self.record.clone() })
    }

    pub(super) fn fail(&mut self, error: AppendError) {
        if self.status == Status::Open {
            self.status = Status::Failed(error);
        }
    }
}
