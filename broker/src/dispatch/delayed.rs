//! Entries that wait for their time, in memory, earliest first.
//!
//! Owned by the machines of Shared and Key_Shared. An entry acknowledged while it waits (clear, skip, TTL) stays until it is
//! due: the replay that follows finds it acknowledged and drops it. After a take-over the entries are read again from the log.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use geminga_common::ids::Position;

#[derive(Default)]
pub(super) struct Delayed {
    heap: BinaryHeap<Reverse<(u64, Position, u32)>>,
}

impl Delayed {
    pub(super) fn push(&mut self, due_ms: u64, position: Position, hash: u32) {
        self.heap.push(Reverse((due_ms, position, hash)));
    }

    /// The earliest due time.
    pub(super) fn first_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((due_ms, _, _))| *due_ms)
    }

    /// Takes the earliest entry, if its time has come.
    pub(super) fn pop_due(&mut self, now_ms: u64) -> Option<(Position, u32)> {
        let top = self.heap.peek_mut()?;
        if top.0.0 > now_ms {
            return None;
        }
        let Reverse((_, position, hash)) = std::collections::binary_heap::PeekMut::pop(top);
        Some((position, hash))
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    pub(super) fn clear(&mut self) {
        self.heap = BinaryHeap::new();
    }
}
