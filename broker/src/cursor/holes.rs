//! Entries acked out of order: one roaring bitmap of entry ids per ledger. Uncapped on purpose (a peer drops ranges above
//! 10 000 and redelivers them after a restart): 50 000 entries cost at most 6.3 KiB.
//!
//! Invariants: no bitmap is empty; `total` is the number of set bits; ids are below [`ENTRY_LIMIT`].

use geminga_common::ids::{EntryId, LedgerId, Position};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::ops::Range;

/// Entry ids from here on cannot be acked. Out of reach: an entry takes 32 bytes at least, and a ledger is rolled at 1 GiB.
pub const ENTRY_LIMIT: u64 = u32::MAX as u64;

/// A set of entries.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Holes {
    ledgers: BTreeMap<LedgerId, RoaringBitmap>,
    total: u64,
}

impl Eq for Holes {}

impl Holes {
    /// How many entries are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Whether `p` is in the set.
    #[must_use]
    pub fn contains(&self, p: Position) -> bool {
        let Some(entry) = narrow(p.entry) else { return false };
        self.total > 0 && self.ledgers.get(&p.ledger).is_some_and(|bitmap| bitmap.contains(entry))
    }

    /// Adds `p`; true if it is new. Ids of [`ENTRY_LIMIT`] and above are not taken.
    pub fn insert(&mut self, p: Position) -> bool {
        let Some(entry) = narrow(p.entry) else { return false };
        let new = self.ledgers.entry(p.ledger).or_default().insert(entry);
        self.total += u64::from(new);
        new
    }

    /// Adds all of `bitmap`; [`ENTRY_LIMIT`] itself is dropped, because ids end below it.
    pub fn add(&mut self, ledger: LedgerId, mut bitmap: RoaringBitmap) {
        bitmap.remove(u32::MAX);
        if bitmap.is_empty() {
            return;
        }
        let mine = self.ledgers.entry(ledger).or_default();
        let before = mine.len();
        *mine |= bitmap;
        self.total += mine.len() - before;
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Holes) {
        for (ledger, bitmap) in &other.ledgers {
            self.add(*ledger, bitmap.clone());
        }
    }

    /// Forgets everything below `bound`.
    pub fn remove_below(&mut self, bound: Position) {
        while let Some(first) = self.ledgers.first_entry() {
            if *first.key() >= bound.ledger {
                break;
            }
            self.total -= first.remove().len();
        }
        if bound.entry.0 > 0 && self.total > 0 {
            let end = bound.entry.0.min(ENTRY_LIMIT) as u32;
            self.remove_range(bound.ledger, 0..end);
        }
    }

    /// Removes the unbroken run that starts at `p`; answers the entry id after it, which is `p`'s own if there is none.
    pub fn take_run(&mut self, p: Position) -> EntryId {
        let end = self.run_end(p);
        if end > p.entry {
            self.remove_range(p.ledger, p.entry.0 as u32..end.0 as u32);
        }
        end
    }

    /// The entry id after the unbroken run that starts at `p`; `p`'s own if `p` is not in the set.
    #[must_use]
    pub fn run_end(&self, p: Position) -> EntryId {
        let (Some(bitmap), Some(first)) = (self.ledgers.get(&p.ledger), narrow(p.entry)) else {
            return p.entry;
        };
        if !bitmap.contains(first) {
            return p.entry;
        }
        let mut end = first;
        let mut iter = bitmap.range(first..);
        // One run comes in several pieces when it spans containers of the bitmap.
        while let Some(piece) = iter.next_range() {
            if *piece.start() != end {
                break;
            }
            end = piece.end() + 1; // cannot overflow: u32::MAX is never in the set
        }
        EntryId(u64::from(end))
    }

    /// The first entry of the set in `p`'s ledger, at or after `p`.
    #[must_use]
    pub fn next_in_ledger(&self, p: Position) -> Option<EntryId> {
        let first = narrow(p.entry)?;
        let bitmap = self.ledgers.get(&p.ledger)?;
        bitmap.range(first..).next().map(|entry| EntryId(u64::from(entry)))
    }

    /// How many of the set lie in `from..to`.
    #[must_use]
    pub fn count_between(&self, from: Position, to: Position) -> u64 {
        if from >= to {
            return 0;
        }
        let count = |(ledger, bitmap): (&LedgerId, &RoaringBitmap)| {
            let first = if *ledger == from.ledger { from.entry.0.min(ENTRY_LIMIT) } else { 0 };
            let end = if *ledger == to.ledger { to.entry.0.min(ENTRY_LIMIT) } else { ENTRY_LIMIT };
            if first < end { bitmap.range_cardinality(first as u32..end as u32) } else { 0 }
        };
        self.ledgers.range(from.ledger..=to.ledger).map(count).sum()
    }

    /// The bitmaps, ledgers rising.
    pub fn ledgers(&self) -> impl Iterator<Item = (LedgerId, &RoaringBitmap)> {
        self.ledgers.iter().map(|(ledger, bitmap)| (*ledger, bitmap))
    }

    /// The unbroken runs, rising; a run may come in several adjacent pieces.
    pub fn runs(&self) -> impl Iterator<Item = (LedgerId, Range<u64>)> {
        self.ledgers.iter().flat_map(|(ledger, bitmap)| {
            let mut iter = bitmap.iter();
            std::iter::from_fn(move || iter.next_range())
                .map(|run| (*ledger, u64::from(*run.start())..u64::from(*run.end()) + 1))
        })
    }

    /// The last entry of the set.
    #[must_use]
    pub fn last(&self) -> Option<Position> {
        let (ledger, bitmap) = self.ledgers.last_key_value()?;
        bitmap.max().map(|entry| Position::new(*ledger, EntryId(u64::from(entry))))
    }

    /// Bytes of the set, about.
    #[must_use]
    pub fn size(&self) -> usize {
        self.ledgers.values().map(|bitmap| 64 + bitmap.serialized_size()).sum()
    }

    fn remove_range(&mut self, ledger: LedgerId, range: Range<u32>) {
        let Some(bitmap) = self.ledgers.get_mut(&ledger) else { return };
        self.total -= bitmap.remove_range(range);
        if bitmap.is_empty() {
            self.ledgers.remove(&ledger);
        }
    }
}

fn narrow(entry: EntryId) -> Option<u32> {
    (entry.0 < ENTRY_LIMIT).then_some(entry.0 as u32)
}
