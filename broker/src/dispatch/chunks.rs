//! Keeps all chunks of a chunked message with one Shared consumer, in order.
//!
//! Owned by `Shared`. The first chunk that is handed out binds its message to that consumer until the last chunk is out or the
//! consumer leaves. A chunk whose consumer cannot take it now is *bound*: it waits for that consumer, and later chunks of the
//! message wait behind it.

use std::collections::HashMap;

use geminga_common::ids::Position;

use super::consumers::{Consumers, Slot};
use super::position_map::PositionMap;
use super::types::ChunkRef;

/// Messages begun and not finished that are remembered. Producers that die in mid-message leave such groups behind; past this
/// number those with nothing waiting are forgotten, and a late chunk of one may then go to another consumer.
const GROUPS_MAX: usize = 10_000;

struct Group {
    slot: Slot,
    waiting: u32,
}

#[derive(Clone, Copy, Default)]
struct Bound {
    slot: Slot,
    uuid_hash: u64,
}

pub(super) enum Route {
    /// Any consumer will do.
    Free,
    /// This one, which can take it.
    To(Slot),
    /// Its consumer cannot take it, or earlier chunks wait.
    Hold,
}

pub(super) struct Chunks {
    groups: HashMap<u64, Group>,
    bound: PositionMap<Bound>,
    /// Bound entries by slot.
    bound_by_slot: Vec<u64>,
}

impl Chunks {
    pub(super) fn new() -> Self {
        Self { groups: HashMap::new(), bound: PositionMap::new(), bound_by_slot: Vec::new() }
    }

    pub(super) fn len(&self) -> u64 {
        self.bound.len()
    }

    pub(super) fn is_bound(&self, position: Position) -> bool {
        self.bound.contains(position)
    }

    pub(super) fn is_begun(&self, chunk: &ChunkRef) -> bool {
        self.groups.contains_key(&chunk.uuid_hash)
    }

    /// Where a chunk has to go. `forward`: read forward, so it comes after every waiting one.
    pub(super) fn route(&self, chunk: &ChunkRef, forward: bool, consumers: &Consumers) -> Route {
        match self.groups.get(&chunk.uuid_hash) {
            None => Route::Free,
            Some(group) if forward && group.waiting > 0 => Route::Hold,
            Some(group) if consumers.is_available(group.slot) => Route::To(group.slot),
            Some(_) => Route::Hold,
        }
    }

    /// The chunk at `position` waits for its consumer.
    pub(super) fn hold(&mut self, position: Position, chunk: &ChunkRef) {
        let Some(group) = self.groups.get_mut(&chunk.uuid_hash) else { return };
        let bound = Bound { slot: group.slot, uuid_hash: chunk.uuid_hash };
        if self.bound.insert(position, bound).is_some() {
            return;
        }
        group.waiting += 1;
        let slot = group.slot as usize;
        if self.bound_by_slot.len() <= slot {
            self.bound_by_slot.resize(slot + 1, 0);
        }
        self.bound_by_slot[slot] += 1;
    }

    /// The entry no longer waits here.
    pub(super) fn forget(&mut self, position: Position) {
        if let Some(bound) = self.bound.remove(position) {
            self.unbook(bound);
        }
    }

    fn unbook(&mut self, bound: Bound) {
        self.bound_by_slot[bound.slot as usize] -= 1;
        if let Some(group) = self.groups.get_mut(&bound.uuid_hash) {
            group.waiting -= 1;
        }
    }

    /// The chunk was handed to `slot`.
    pub(super) fn delivered(&mut self, chunk: &ChunkRef, slot: Slot) {
        let last = chunk.chunk_id.saturating_add(1) >= chunk.total;
        match self.groups.get(&chunk.uuid_hash) {
            Some(group) if last && group.waiting == 0 => {
                self.groups.remove(&chunk.uuid_hash);
            }
            None if !last => {
                if self.groups.len() >= GROUPS_MAX {
                    self.groups.retain(|_, group| group.waiting > 0);
                }
                self.groups.insert(chunk.uuid_hash, Group { slot, waiting: 0 });
            }
            _ => {}
        }
    }

    /// Up to `max` waiting entries whose consumers can take them, ascending.
    pub(super) fn ready(&self, consumers: &Consumers, max: usize) -> Vec<Position> {
        let ready = |slot: Slot| consumers.is_available(slot);
        let mut slots = self.bound_by_slot.iter().enumerate();
        if !slots.any(|(slot, waiting)| *waiting > 0 && ready(slot as Slot)) {
            return Vec::new();
        }
        self.bound
            .iter()
            .filter(|(_, bound)| ready(bound.slot))
            .map(|(position, _)| position)
            .take(max)
            .collect()
    }

    /// The consumer left: its messages are free again. Returns the entries that waited for it.
    pub(super) fn unbind(&mut self, slot: Slot) -> Vec<Position> {
        self.groups.retain(|_, group| group.slot != slot);
        let freed = self.bound.extract(|bound| bound.slot == slot);
        if let Some(waiting) = self.bound_by_slot.get_mut(slot as usize) {
            *waiting = 0;
        }
        freed.into_iter().map(|(position, _)| position).collect()
    }

    pub(super) fn drop_below(&mut self, floor: Position) {
        let mut gone = Vec::new();
        self.bound.drain_below(floor, |_, bound| gone.push(bound));
        for bound in gone {
            self.unbook(bound);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}
