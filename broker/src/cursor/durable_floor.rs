//! [`DurableFloor`]: how far a topic may be trimmed. Pure; owned by the topic's task.
//!
//! Trimming obeys what is *durable* of every cursor, never what memory knows: acks that are lost in a crash are redelivered, so
//! the entries must still be there (Pulsar #24855, #25087: a ledger was trimmed while the stored cursor pointed into it).

use super::record::CursorId;
use geminga_common::ids::Position;
use geminga_common::museum::{Exhibit, active};
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Floors {
    durable: Position,
    memory: Position,
    /// Where a reset that is on its way leads: it and deltas queued before it are confirmed in order, one after the other.
    resetting: Option<Position>,
}

/// The floors of a topic's durable cursors.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct DurableFloor {
    floors: BTreeMap<CursorId, Floors>,
}

impl DurableFloor {
    /// A cursor is there, loaded or created, durably at `floor`. Call it *before* a creation is queued: the entries from its
    /// start on must not go while it is on its way.
    pub fn add(&mut self, cursor: CursorId, floor: Position) {
        self.floors.insert(cursor, Floors { durable: floor, memory: floor, resetting: None });
    }

    /// A cursor is durably gone.
    pub fn remove(&mut self, cursor: CursorId) {
        self.floors.remove(&cursor);
    }

    /// The floor moved in memory.
    pub fn moved(&mut self, cursor: CursorId, floor: Position) {
        if let Some(floors) = self.floors.get_mut(&cursor) {
            floors.memory = floor;
        }
    }

    /// A delta with this floor is durable. Confirmations may come late: the durable floor only rises.
    pub fn persisted(&mut self, cursor: CursorId, floor: Position) {
        if let Some(floors) = self.floors.get_mut(&cursor) {
            floors.durable = floors.durable.max(floor);
        }
    }

    /// A reset to `to` is about to be queued (one at a time): from now on neither the old nor the new place may go.
    pub fn resetting(&mut self, cursor: CursorId, to: Position) {
        if let Some(floors) = self.floors.get_mut(&cursor) {
            *floors = Floors { memory: to, resetting: Some(to), ..*floors };
        }
    }

    /// A reset to `to` is durable.
    pub fn reset(&mut self, cursor: CursorId, to: Position) {
        if let Some(floors) = self.floors.get_mut(&cursor) {
            *floors = Floors { durable: to, resetting: None, ..*floors };
        }
    }

    /// Entries below this may go as far as cursors are concerned; `None` without cursors.
    #[must_use]
    pub fn minimum(&self) -> Option<Position> {
        let trim_by_memory = active(Mutant::TrimByMemory);
        let floor = |floors: &Floors| match floors.resetting {
            _ if trim_by_memory => floors.memory,
            Some(to) => floors.durable.min(to),
            None => floors.durable,
        };
        self.floors.values().map(floor).min()
    }
}

/// A known bug that tests bring back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// 21: trimming by the floor in memory.
    TrimByMemory,
}

impl Exhibit for Mutant {}
