//! Quorum arithmetic: pure, owned by nobody, used by writer, recovery and reads alike, so that all three agree on where an
//! entry lives and on what a set of silent bookies leaves undecided.
//!
//! Invariants: E ≥ Qw ≥ Qa ≥ 1 by construction; the write set of entry `e` is Qw consecutive slots from `e mod E`. Slots are
//! kept as bit masks because the writer touches one per entry and per ack.

use geminga_common::ids::EntryId;

/// Most slots an ensemble may have.
pub const ENSEMBLE_MAX: u32 = 32;

/// A set of ensemble slots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SlotSet(u32);

/// Slots that acknowledged an entry.
pub type AckSet = SlotSet;

impl SlotSet {
    /// No slot.
    pub const EMPTY: SlotSet = SlotSet(0);

    /// Adds a slot.
    pub fn insert(&mut self, slot: u32) {
        self.0 |= 1 << slot;
    }

    /// Removes a slot.
    pub fn remove(&mut self, slot: u32) {
        self.0 &= !(1 << slot);
    }

    /// Whether the slot is in the set; a number that is no slot at all is in none.
    #[must_use]
    pub fn contains(self, slot: u32) -> bool {
        1_u32.checked_shl(slot).is_some_and(|bit| self.0 & bit != 0)
    }

    /// How many slots it holds.
    #[must_use]
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Slots in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Slots in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Slots of this set that are not in the other.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The slots, rising.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..ENSEMBLE_MAX).filter(move |slot| self.contains(*slot))
    }
}

impl FromIterator<u32> for SlotSet {
    fn from_iter<I: IntoIterator<Item = u32>>(slots: I) -> Self {
        let mut set = Self::EMPTY;
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

impl std::fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Ensemble size, write quorum and ack quorum of a ledger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct QuorumSpec {
    ensemble: u32,
    write: u32,
    ack: u32,
}

/// Numbers that are no quorum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "ensemble {ensemble}, write quorum {write}, ack quorum {ack}: need 32 >= ensemble >= write >= ack >= 1"
)]
pub struct QuorumError {
    ensemble: u32,
    write: u32,
    ack: u32,
}

impl QuorumSpec {
    /// One copy on one bookie: standalone.
    pub const SINGLE: QuorumSpec = QuorumSpec { ensemble: 1, write: 1, ack: 1 };

    /// A quorum.
    ///
    /// # Errors
    /// Anything but 32 ≥ ensemble ≥ write ≥ ack ≥ 1.
    pub fn new(ensemble: u32, write: u32, ack: u32) -> Result<Self, QuorumError> {
        if ensemble <= ENSEMBLE_MAX && ensemble >= write && write >= ack && ack >= 1 {
            Ok(Self { ensemble, write, ack })
        } else {
            Err(QuorumError { ensemble, write, ack })
        }
    }

    /// Bookies of a fragment.
    #[must_use]
    pub fn ensemble(self) -> u32 {
        self.ensemble
    }

    /// Copies of an entry.
    #[must_use]
    pub fn write(self) -> u32 {
        self.write
    }

    /// Copies that must be durable before an entry is acknowledged.
    #[must_use]
    pub fn ack(self) -> u32 {
        self.ack
    }

    /// How many authoritative "not found" prove that an entry was never acknowledged and, once these bookies are fenced, never
    /// will be: fewer than `ack` bookies are left that could hold it.
    #[must_use]
    pub fn negative(self) -> u32 {
        self.write - self.ack + 1
    }

    /// All slots.
    #[must_use]
    pub fn all(self) -> SlotSet {
        self.window(0, self.ensemble)
    }

    /// The slots that store an entry.
    #[must_use]
    pub fn write_set(self, entry: EntryId) -> SlotSet {
        self.window((entry.0 % u64::from(self.ensemble)) as u32, self.write)
    }

    /// The slots that store an entry, the entry's own first.
    pub fn write_order(self, entry: EntryId) -> impl Iterator<Item = u32> {
        let start = (entry.0 % u64::from(self.ensemble)) as u32;
        (0..self.write).map(move |i| (start + i) % self.ensemble)
    }

    /// Whether silence of these slots leaves too few bookies, in every write set, for an entry to be acknowledged behind our
    /// back: fewer than `ack` of each Qw consecutive slots are unknown.
    #[must_use]
    pub fn covered(self, unknown: SlotSet) -> bool {
        (0..self.ensemble).all(|start| self.window(start, self.write).and(unknown).len() < self.ack)
    }

    /// Whether every write set keeps its ack quorum without these slots.
    #[must_use]
    pub fn writable_without(self, absent: SlotSet) -> bool {
        (0..self.ensemble).all(|start| self.window(start, self.write).minus(absent).len() >= self.ack)
    }

    fn window(self, start: u32, width: u32) -> SlotSet {
        (0..width).map(|i| (start + i) % self.ensemble).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_spec() -> impl Iterator<Item = QuorumSpec> {
        (1..=7)
            .flat_map(|e| (1..=e).flat_map(move |w| (1..=w).map(move |a| QuorumSpec::new(e, w, a).unwrap())))
    }

    #[test]
    fn numbers_out_of_order_are_refused() {
        for (e, w, a) in [(0, 0, 0), (3, 3, 0), (3, 2, 3), (2, 3, 1), (33, 3, 2)] {
            assert!(QuorumSpec::new(e, w, a).is_err(), "{e}/{w}/{a}");
        }
    }

    #[test]
    fn write_sets_wrap_around_the_ensemble() {
        let spec = QuorumSpec::new(5, 3, 2).unwrap();
        assert_eq!(spec.write_order(EntryId(4)).collect::<Vec<_>>(), [4, 0, 1]);
        assert_eq!(spec.write_set(EntryId(9)), [0, 1, 4].into_iter().collect());
    }

    /// T17. Brute force: with the unknown slots free to hold anything, is there an entry whose ack quorum fits into them alone?
    #[test]
    fn coverage_agrees_with_brute_force_for_every_ensemble_up_to_seven() {
        for spec in every_spec() {
            for mask in 0..(1_u32 << spec.ensemble()) {
                let unknown = SlotSet(mask);
                let hidden_ack = (0..u64::from(spec.ensemble())).any(|e| {
                    let holders = spec.write_order(EntryId(e)).filter(|s| unknown.contains(*s)).count();
                    holders as u32 >= spec.ack()
                });
                assert_eq!(spec.covered(unknown), !hidden_ack, "{spec:?} {unknown:?}");
                let starved = (0..u64::from(spec.ensemble())).any(|e| {
                    let alive = spec.write_order(EntryId(e)).filter(|s| !unknown.contains(*s)).count();
                    (alive as u32) < spec.ack()
                });
                assert_eq!(spec.writable_without(unknown), !starved, "{spec:?} {unknown:?}");
            }
        }
    }

    #[test]
    fn a_negative_quorum_and_an_ack_quorum_always_meet() {
        for spec in every_spec() {
            assert_eq!(spec.negative() + spec.ack(), spec.write() + 1);
        }
    }
}
