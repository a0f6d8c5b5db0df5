//! A map from positions to small values, cheap where positions are dense and rising, as pending acknowledgements are.
//!
//! Owned by the machines of Shared and Key_Shared. Entries live in pages of 64 with an occupancy mask; the pages stand in one
//! ordered tree and are recycled. A ring buffer per ledger would be a little faster, but one message that is never acknowledged
//! would make it grow by every entry behind it; here that message costs one page. A tree of single positions would allocate
//! on the hot path.

use std::collections::BTreeMap;

use geminga_common::ids::{EntryId, LedgerId, Position};

const PAGE_ENTRIES: u64 = 64;
const SPARE_PAGES: usize = 64;

type PageKey = (LedgerId, u64);

struct Page<V> {
    mask: u64,
    values: [V; PAGE_ENTRIES as usize],
}

/// See the module. `V` is copied in and out.
pub(super) struct PositionMap<V> {
    pages: BTreeMap<PageKey, Box<Page<V>>>,
    spare: Vec<Box<Page<V>>>,
    len: u64,
}

fn split(position: Position) -> (PageKey, usize) {
    let EntryId(entry) = position.entry;
    ((position.ledger, entry / PAGE_ENTRIES), (entry % PAGE_ENTRIES) as usize)
}

fn join((ledger, page): PageKey, bit: u32) -> Position {
    Position::new(ledger, EntryId(page * PAGE_ENTRIES + u64::from(bit)))
}

/// The set bits of a mask, lowest first.
fn bits(mut mask: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let bit = mask.trailing_zeros();
        mask &= mask - 1;
        Some(bit)
    })
}

impl<V: Copy + Default> PositionMap<V> {
    pub(super) fn new() -> Self {
        Self { pages: BTreeMap::new(), spare: Vec::new(), len: 0 }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get(&self, position: Position) -> Option<V> {
        if self.len == 0 {
            return None;
        }
        let (key, bit) = split(position);
        let page = self.pages.get(&key)?;
        (page.mask & (1 << bit) != 0).then(|| page.values[bit])
    }

    pub(super) fn get_mut(&mut self, position: Position) -> Option<&mut V> {
        let (key, bit) = split(position);
        let page = self.pages.get_mut(&key)?;
        (page.mask & (1 << bit) != 0).then(|| &mut page.values[bit])
    }

    pub(super) fn contains(&self, position: Position) -> bool {
        self.get(position).is_some()
    }

    /// Sets the value and returns the one before.
    pub(super) fn insert(&mut self, position: Position, value: V) -> Option<V> {
        let (key, bit) = split(position);
        let spare = &mut self.spare;
        let page = self.pages.entry(key).or_insert_with(|| {
            spare
                .pop()
                .unwrap_or_else(|| Box::new(Page { mask: 0, values: [V::default(); PAGE_ENTRIES as usize] }))
        });
        let before = (page.mask & (1 << bit) != 0).then(|| page.values[bit]);
        page.mask |= 1 << bit;
        page.values[bit] = value;
        self.len += u64::from(before.is_none());
        before
    }

    pub(super) fn remove(&mut self, position: Position) -> Option<V> {
        if self.len == 0 {
            return None;
        }
        let (key, bit) = split(position);
        let page = self.pages.get_mut(&key)?;
        if page.mask & (1 << bit) == 0 {
            return None;
        }
        page.mask &= !(1 << bit);
        let value = page.values[bit];
        self.len -= 1;
        if page.mask == 0 {
            self.drop_page(key);
        }
        Some(value)
    }

    fn drop_page(&mut self, key: PageKey) {
        if let Some(mut page) = self.pages.remove(&key)
            && self.spare.len() < SPARE_PAGES
        {
            page.mask = 0;
            self.spare.push(page);
        }
    }

    /// Every position and value, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Position, V)> + '_ {
        self.pages.iter().flat_map(|(&key, page)| {
            bits(page.mask).map(move |bit| (join(key, bit), page.values[bit as usize]))
        })
    }

    /// Takes out everything below `floor`, ascending.
    pub(super) fn drain_below(&mut self, floor: Position, mut each: impl FnMut(Position, V)) {
        let (floor_page, floor_bit) = split(floor);
        while let Some((&key, page)) = self.pages.iter_mut().next() {
            if key > floor_page {
                return;
            }
            let below = if key == floor_page { (1u64 << floor_bit) - 1 } else { u64::MAX };
            let taken = page.mask & below;
            for bit in bits(taken) {
                each(join(key, bit), page.values[bit as usize]);
            }
            page.mask &= !below;
            self.len -= u64::from(taken.count_ones());
            if page.mask != 0 {
                return;
            }
            self.drop_page(key);
            if key == floor_page {
                return;
            }
        }
    }

    /// Takes out what `which` selects, ascending. Looks at everything: for rare events.
    pub(super) fn extract(&mut self, which: impl Fn(&V) -> bool) -> Vec<(Position, V)> {
        let taken: Vec<_> = self.iter().filter(|(_, value)| which(value)).collect();
        for &(position, _) in &taken {
            self.remove(position);
        }
        taken
    }

    pub(super) fn clear(&mut self) {
        self.pages.clear();
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ledger: u64, entry: u64) -> Position {
        Position::new(LedgerId(ledger), EntryId(entry))
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64, u64, u32),
        Remove(u64, u64),
        Below(u64, u64),
        Extract(u32),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0u64..3, 0u64..300, 0u32..5).prop_map(|(l, e, v)| Op::Insert(l, e, v)),
            3 => (0u64..3, 0u64..300).prop_map(|(l, e)| Op::Remove(l, e)),
            1 => (0u64..4, 0u64..300).prop_map(|(l, e)| Op::Below(l, e)),
            1 => (0u32..5).prop_map(Op::Extract),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_tree_of_positions(ops in proptest::collection::vec(op(), 1..300)) {
            let mut map = PositionMap::new();
            let mut model = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Insert(l, e, v) => prop_assert_eq!(map.insert(at(l, e), v), model.insert(at(l, e), v)),
                    Op::Remove(l, e) => prop_assert_eq!(map.remove(at(l, e)), model.remove(&at(l, e))),
                    Op::Below(l, e) => {
                        let mut taken = Vec::new();
                        map.drain_below(at(l, e), |p, v| taken.push((p, v)));
                        let rest = model.split_off(&at(l, e));
                        let expected: Vec<_> = std::mem::replace(&mut model, rest).into_iter().collect();
                        prop_assert_eq!(taken, expected);
                    }
                    Op::Extract(wanted) => {
                        let expected: Vec<_> =
                            model.iter().filter(|(_, v)| **v == wanted).map(|(p, v)| (*p, *v)).collect();
                        model.retain(|_, v| *v != wanted);
                        prop_assert_eq!(map.extract(|v| *v == wanted), expected);
                    }
                }
                prop_assert_eq!(map.len(), model.len() as u64);
                prop_assert_eq!(map.iter().collect::<Vec<_>>(), model.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn one_stuck_position_costs_one_page() {
        let mut map = PositionMap::new();
        map.insert(at(1, 0), 7u32);
        for entry in 1..100_000 {
            map.insert(at(1, entry), 0);
            map.remove(at(1, entry));
        }
        assert_eq!((map.len(), map.pages.len()), (1, 1));
    }
}
