//! Blocks in memory under one budget of bytes, and what is on its way into it. Pure but for the futures it keeps; nothing is
//! awaited under its lock.

use super::AHEAD_SHARE;
use crate::format::block::Entry;
use crate::state::PartId;
use crate::verify::ObjectError;
use futures::future::{BoxFuture, Shared};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Bytes that an entry costs in memory beside its payload.
const ENTRY_BYTES: usize = size_of::<Entry>();

/// A block of what an object holds of a ledger.
pub(super) type BlockKey = (PartId, usize);
/// Entries of a block.
pub(super) type Block = Arc<Vec<Entry>>;
/// A run of blocks on its way: all who want one of them wait for the same request.
pub(super) type Flight<T> = Shared<BoxFuture<'static, Result<T, ObjectError>>>;
/// Blocks of one request, from the first on.
pub(super) type Run = Arc<(usize, Vec<Block>)>;

enum Slot {
    Coming(u64, Flight<Run>),
    Here { block: Block, bytes: usize, turn: Turn },
}

/// Whether a block gets another turn before it is dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Fetched and read by nobody yet: somebody is on the way to it.
    Awaited,
    /// Read once, as a scan does, or its turn is over: the next to go.
    Over,
    /// Read again.
    Wanted,
}

/// Where a block is.
pub(super) enum Found {
    Here(Block),
    Coming(Flight<Run>),
}

/// The cache.
pub(super) struct Cache {
    limit: usize,
    bytes: usize,
    coming_bytes: usize,
    slots: HashMap<BlockKey, Slot>,
    order: VecDeque<BlockKey>,
    next_flight: u64,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: 0,
            coming_bytes: 0,
            slots: HashMap::new(),
            order: VecDeque::new(),
            next_flight: 0,
        }
    }

    /// The block, if it is there or coming.
    pub(super) fn get(&mut self, key: BlockKey) -> Option<Found> {
        match self.slots.get_mut(&key)? {
            Slot::Coming(_, flight) => Some(Found::Coming(flight.clone())),
            Slot::Here { block, turn, .. } => {
                *turn = if *turn == Turn::Awaited { Turn::Over } else { Turn::Wanted };
                Some(Found::Here(block.clone()))
            }
        }
    }

    pub(super) fn knows(&self, key: BlockKey) -> bool {
        self.slots.contains_key(&key)
    }

    /// Bytes in memory and on their way.
    pub(super) fn bytes(&self) -> (usize, usize) {
        (self.bytes, self.coming_bytes)
    }

    /// Whether so many more bytes may be fetched for the future: what is wanted now always may.
    pub(super) fn room_ahead(&self, bytes: usize) -> bool {
        self.coming_bytes + bytes <= self.limit / AHEAD_SHARE
    }

    /// Blocks of a request that is under way; the answer names it.
    pub(super) fn coming(
        &mut self,
        object: PartId,
        blocks: std::ops::Range<usize>,
        bytes: usize,
        flight: &Flight<Run>,
    ) -> u64 {
        self.next_flight += 1;
        self.coming_bytes += bytes;
        for nth in blocks {
            self.slots.insert((object, nth), Slot::Coming(self.next_flight, flight.clone()));
        }
        self.next_flight
    }

    /// The request has ended: its blocks are there, or nowhere.
    pub(super) fn landed(
        &mut self,
        object: PartId,
        blocks: std::ops::Range<usize>,
        bytes: usize,
        id: u64,
        result: Option<Run>,
    ) {
        self.coming_bytes -= bytes;
        for nth in blocks {
            let key = (object, nth);
            if !matches!(self.slots.get(&key), Some(Slot::Coming(other, _)) if *other == id) {
                continue;
            }
            let block = result.as_ref().and_then(|run| run.1.get(nth - run.0)).cloned();
            match block {
                Some(block) => self.put(key, block),
                None => drop(self.slots.remove(&key)),
            }
        }
    }

    /// A block that came by itself, unless it is there or coming.
    pub(super) fn add(&mut self, key: BlockKey, block: Block) {
        if !self.knows(key) {
            self.put(key, block);
        }
    }

    /// Drops what is there, as if memory had been needed.
    #[cfg(test)]
    pub(super) fn clear(&mut self) {
        self.slots.retain(|_, slot| matches!(slot, Slot::Coming(..)));
        (self.bytes, self.order) = (0, VecDeque::new());
    }

    fn put(&mut self, key: BlockKey, block: Block) {
        let bytes = block.iter().map(|entry| entry.payload.len() + ENTRY_BYTES).sum();
        self.bytes += bytes;
        self.slots.insert(key, Slot::Here { block, bytes, turn: Turn::Awaited });
        self.order.push_back(key);
        // The newest is never dropped.
        let mut turns = self.order.len();
        while self.bytes > self.limit && self.order.len() > 1 {
            let Some(oldest) = self.order.pop_front() else { return };
            turns = turns.saturating_sub(1);
            match self.slots.get_mut(&oldest) {
                Some(Slot::Here { turn, .. }) if *turn != Turn::Over && turns > 0 => {
                    *turn = Turn::Over;
                    self.order.push_back(oldest);
                }
                Some(Slot::Here { bytes, .. }) => {
                    self.bytes -= *bytes;
                    self.slots.remove(&oldest);
                }
                _ => {}
            }
        }
    }
}
