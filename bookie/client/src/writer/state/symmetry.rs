//! States that differ by the names of their slots alone, for the exploration, which merges them.

use super::{Change, State};
use crate::quorum::SlotSet;
use crate::record::LedgerRecord;

impl State {
    /// The same state with slots renamed: `to[i]` is the new number of slot i. For the exploration, which merges such states.
    pub(crate) fn permuted(&self, to: &[u32]) -> Self {
        let set = |slots: SlotSet| -> SlotSet { slots.iter().map(|s| to[s as usize]).collect() };
        let mut next = self.clone();
        for (at, slot) in self.slots.iter().enumerate() {
            next.slots[to[at] as usize] = slot.clone();
        }
        next.pending.iter_mut().for_each(|p| p.acked = set(p.acked));
        next.failed = set(self.failed);
        next.lost = set(self.lost);
        next.owed.iter_mut().for_each(|range| range.slot = to[range.slot as usize]);
        next.record = self.record.permuted(to);
        next.change = self.change.clone().map(|change| match change {
            Change::Placing(slots) => Change::Placing(set(slots)),
            Change::Committing { fragments, repair, replaced } => {
                let planned = LedgerRecord { fragments, repair, ..self.record.clone() }.permuted(to);
                let LedgerRecord { fragments, repair, .. } = planned;
                Change::Committing { fragments, repair, replaced: set(replaced) }
            }
        });
        next
    }

    /// What distinguishes a slot from the others.
    pub(crate) fn of_slot(&self, slot: u32) -> (u32, bool, bool, bool, Vec<bool>) {
        let s = &self.slots[slot as usize];
        let acked = self.pending.iter().map(|p| p.acked.contains(slot)).collect();
        (s.generation, s.introduced, s.bookie.is_some(), self.failed.contains(slot), acked)
    }
}
