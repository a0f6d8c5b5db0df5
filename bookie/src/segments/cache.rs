//! The block cache: blocks read lately, bounded in bytes, in two parts. A block enters on probation and is protected once it is
//! asked for again, so that a scan, which asks once, only drives out other blocks on probation.

use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Segment and offset of a block.
pub(crate) type Key = (u64, u64);

/// Share of the cache that blocks asked for more than once may take, in percent.
const PROTECTED: usize = 80;

pub(crate) struct BlockCache {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<Key, Slot>,
    probation: Part,
    protected: Part,
    clock: u64,
}

/// Blocks by the time of their last use.
#[derive(Default)]
struct Part {
    order: BTreeMap<u64, Key>,
    bytes: usize,
}

struct Slot {
    block: Bytes,
    used: u64,
    protected: bool,
}

impl BlockCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), limit }
    }

    pub(crate) fn get(&self, key: Key) -> Option<Bytes> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let slot = state.blocks.get_mut(&key)?;
        state.clock += 1;
        let len = slot.block.len();
        let part = if slot.protected { &mut state.protected } else { &mut state.probation };
        part.order.remove(&slot.used);
        part.bytes -= len;
        (slot.used, slot.protected) = (state.clock, true);
        state.protected.order.insert(slot.used, key);
        state.protected.bytes += len;
        let block = slot.block.clone();
        while state.protected.bytes > self.limit / 100 * PROTECTED
            && state.protected.order.len() > 1
            && let Some((used, oldest)) = state.protected.order.pop_first()
        {
            // Demoted, not dropped: it is as good as the newest on probation.
            let Some(slot) = state.blocks.get_mut(&oldest) else { continue };
            slot.protected = false;
            state.protected.bytes -= slot.block.len();
            state.probation.order.insert(used, oldest);
            state.probation.bytes += slot.block.len();
        }
        Some(block)
    }

    pub(crate) fn put(&self, key: Key, block: &Bytes) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if block.len() > self.limit || state.blocks.contains_key(&key) {
            return;
        }
        // A slice would pin the whole piece it was read in.
        let block = Bytes::copy_from_slice(block);
        state.clock += 1;
        state.probation.order.insert(state.clock, key);
        state.probation.bytes += block.len();
        state.blocks.insert(key, Slot { block, used: state.clock, protected: false });
        while state.probation.bytes + state.protected.bytes > self.limit {
            let part = if state.probation.order.len() > 1 || state.protected.order.is_empty() {
                &mut state.probation
            } else {
                &mut state.protected
            };
            let Some((_, oldest)) = part.order.pop_first() else { break };
            part.bytes -= state.blocks.remove(&oldest).map_or(0, |slot| slot.block.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_does_not_drive_out_what_is_asked_for_again() {
        let cache = BlockCache::new(10_000);
        let block = Bytes::from(vec![0; 1000]);
        for hot in 0..5 {
            cache.put((1, hot), &block);
            assert!(cache.get((1, hot)).is_some());
        }
        for cold in 0..1000 {
            cache.put((2, cold), &block);
        }
        assert!((0..5).all(|hot| cache.get((1, hot)).is_some()), "asked for twice");
        assert!(cache.get((2, 0)).is_none() && cache.get((2, 999)).is_some());
        let state = cache.state.lock();
        let held: usize = state.blocks.values().map(|slot| slot.block.len()).sum();
        assert_eq!(held, state.probation.bytes + state.protected.bytes);
        assert!(held <= 10_000, "{held}");
    }

    #[test]
    fn what_was_hot_once_gives_way_in_the_end() {
        let cache = BlockCache::new(10_000);
        let block = Bytes::from(vec![0; 1000]);
        for n in 0..50 {
            cache.put((1, n), &block);
            assert!(cache.get((1, n)).is_some());
        }
        assert!(cache.get((1, 0)).is_none(), "old");
        assert!(cache.get((1, 49)).is_some() && cache.get((1, 43)).is_some());
        cache.put((1, 100), &Bytes::from(vec![0; 10_001]));
        assert!(cache.get((1, 100)).is_none(), "larger than all of it");
    }
}
