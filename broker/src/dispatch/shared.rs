//! Shared: round robin over the best priority level that can take entries.
//!
//! Owned by the topic's task through `Dispatcher`. Every entry behind the read position is in exactly one place: acknowledged,
//! held by one consumer (`core.pending`), waiting to be sent again (`replay`), waiting for its consumer (`chunks`), or waiting
//! for its time (`core.delayed`). An entry that nobody can take sets the read position back instead of filling the replay set.

use geminga_common::ids::Position;

use super::chunks::{Chunks, Route};
use super::multi::{Core, missing};
use super::position_map::PositionMap;
use super::reader::ReadKind;
use super::types::{
    AddError, ConsumerKey, ConsumerSpec, Decision, Delivery, DispatchConfig, DispatcherStats, EntryMeta,
    LogView, Offered, ReadId, Released, WaitReason,
};

pub(super) struct Shared {
    pub(super) core: Core,
    replay: PositionMap<()>,
    chunks: Chunks,
}

enum Placed {
    Done,
    NobodyFree,
}

impl Shared {
    pub(super) fn new(config: DispatchConfig, floor: Position) -> Self {
        Self { core: Core::new(config, floor), replay: PositionMap::new(), chunks: Chunks::new() }
    }

    pub(super) fn add_consumer(&mut self, spec: ConsumerSpec) -> Result<(), AddError> {
        self.core.add(spec).map(|_| ())
    }

    pub(super) fn remove_consumer(&mut self, key: ConsumerKey) {
        let Some(slot) = self.core.consumers.slot_of(key) else { return };
        for (position, _) in self.core.take_leaving(slot) {
            self.replay.insert(position, ());
        }
        for position in self.chunks.unbind(slot) {
            self.replay.insert(position, ());
        }
    }

    pub(super) fn decide(&mut self, now_ms: u64, log: &LogView) -> Decision {
        if let Some(reason) = self.core.gate(log) {
            return Decision::Wait(reason);
        }
        while let Some((position, _)) = self.core.delayed.pop_due(now_ms) {
            if position >= log.floor && !self.core.pending.contains(position) {
                self.replay.insert(position, ());
            }
        }
        let forward = self.core.reader.position() < log.end;
        if !forward && self.replay.is_empty() && self.chunks.len() == 0 {
            return Decision::Wait(self.core.idle_reason());
        }
        if let Some(reason) = self.core.no_credit() {
            return Decision::Wait(reason);
        }
        let credit = self.core.consumers.credit();
        let positions = self.ready(self.core.reader.entries_for(credit) as usize);
        if !positions.is_empty() {
            return self.core.reader.replay(positions);
        }
        let look_ahead = u64::from(self.core.config.look_ahead_total);
        if !forward || (look_ahead > 0 && self.chunks.len() >= look_ahead) {
            return Decision::Wait(WaitReason::KeysBlocked);
        }
        if let Some(reason) = self.core.delayed_full() {
            return Decision::Wait(reason);
        }
        self.core.reader.forward(credit, u32::MAX)
    }

    /// The first `max` entries to send again, ascending.
    fn ready(&self, max: usize) -> Vec<Position> {
        let mut positions: Vec<_> = self.replay.iter().map(|(position, ())| position).take(max).collect();
        let bound = self.chunks.ready(&self.core.consumers, max);
        if !bound.is_empty() {
            positions.extend(bound);
            positions.sort_unstable();
            positions.truncate(max);
        }
        positions
    }

    pub(super) fn offer(
        &mut self,
        read: ReadId,
        entries: &[EntryMeta],
        next: Position,
        now_ms: u64,
        out: &mut Vec<Delivery>,
    ) -> Offered {
        self.core.consumers.end_turn();
        match self.core.reader.finish(read) {
            None => return Offered::Stale,
            Some(ReadKind::Replay(asked)) => self.offer_replay(&asked, entries, next, now_ms, out),
            Some(ReadKind::Forward) => {
                let reached = self.offer_forward(entries, next, now_ms, out);
                self.core.reader.advance(reached);
            }
        }
        Offered::Taken
    }

    fn offer_replay(
        &mut self,
        asked: &[Position],
        entries: &[EntryMeta],
        next: Position,
        now_ms: u64,
        out: &mut Vec<Delivery>,
    ) {
        missing(asked, entries, next, |position| {
            self.replay.remove(position);
            self.chunks.forget(position);
            self.core.counts.remove(position);
        });
        for (index, entry) in entries.iter().enumerate() {
            // Acknowledged while the read was under way.
            if !self.replay.contains(entry.position) && !self.chunks.is_bound(entry.position) {
                continue;
            }
            if self.core.delay(entry, now_ms) {
                self.replay.remove(entry.position);
                self.chunks.forget(entry.position);
            } else if matches!(self.place(index, entry, false, out), Placed::NobodyFree) {
                break;
            }
        }
    }

    /// Returns how far the entries were taken.
    fn offer_forward(
        &mut self,
        entries: &[EntryMeta],
        next: Position,
        now_ms: u64,
        out: &mut Vec<Delivery>,
    ) -> Position {
        let rewound = !self.replay.is_empty() || self.chunks.len() > 0 || !self.core.pending.is_empty();
        for (index, entry) in entries.iter().enumerate() {
            if rewound && self.is_known(entry.position) {
                continue;
            }
            if self.core.delay(entry, now_ms) {
                continue;
            }
            if matches!(self.place(index, entry, true, out), Placed::NobodyFree) {
                return entry.position;
            }
        }
        next
    }

    /// After a rewind the log shows entries that somebody holds or that wait already.
    fn is_known(&self, position: Position) -> bool {
        self.core.pending.contains(position)
            || self.replay.contains(position)
            || self.chunks.is_bound(position)
    }

    fn place(&mut self, index: usize, entry: &EntryMeta, forward: bool, out: &mut Vec<Delivery>) -> Placed {
        if self.core.is_blocked() {
            return Placed::NobodyFree;
        }
        let mut route = Route::Free;
        if let Some(chunk) = &entry.chunk {
            if forward && chunk.chunk_id > 0 && !self.chunks.is_begun(chunk) && !self.replay.is_empty() {
                // Its first chunks may be among those that came back: let the replay bring them in order.
                self.replay.insert(entry.position, ());
                return Placed::Done;
            }
            route = self.chunks.route(chunk, forward, &self.core.consumers);
            if matches!(route, Route::Hold) {
                self.replay.remove(entry.position);
                self.chunks.hold(entry.position, chunk);
                return Placed::Done;
            }
        }
        let slot = match route {
            Route::To(slot) => slot,
            _ => match self.core.consumers.pick() {
                Some(slot) => slot,
                None => return Placed::NobodyFree,
            },
        };
        if !forward {
            self.replay.remove(entry.position);
            self.chunks.forget(entry.position);
        }
        if let Some(chunk) = &entry.chunk {
            self.chunks.delivered(chunk, slot);
        }
        self.core.deliver(slot, index, entry, out);
        Placed::Done
    }

    pub(super) fn acked(&mut self, position: Position) -> Option<Released> {
        self.replay.remove(position);
        self.chunks.forget(position);
        let held = self.core.take_acked(position)?;
        Some(self.core.release(held.slot, held.messages))
    }

    pub(super) fn acked_below(&mut self, floor: Position) -> Vec<Released> {
        self.replay.drain_below(floor, |_, ()| {});
        self.chunks.drop_below(floor);
        self.core.acked_below(floor, |_| {})
    }

    pub(super) fn redeliver(&mut self, key: ConsumerKey, positions: Option<&[Position]>) {
        for (position, _) in self.core.take_redelivered(key, positions) {
            self.replay.insert(position, ());
        }
    }

    pub(super) fn reset(&mut self, to: Position) {
        self.core.reset(to);
        self.replay.clear();
        self.chunks.clear();
    }

    pub(super) fn stats(&self) -> DispatcherStats {
        self.core.stats(self.replay.len() + self.chunks.len())
    }
}
