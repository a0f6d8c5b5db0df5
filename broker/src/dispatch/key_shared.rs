//! Key_Shared: every key goes to one consumer, in order.
//!
//! Owned by the topic's task through `Dispatcher`. Every entry behind the read position is in exactly one place: acknowledged,
//! held by one consumer (`core.pending`), waiting (`replay`), or waiting for its time (`core.delayed`). A waiting entry is also
//! either in `ready[owner]` — its owner may have it as soon as it has credit — or in `parked` under its hash, because the hash
//! is draining or nobody owns it. So choosing what to send never scans past blocked keys.
//!
//! Order within a key: a hash with waiting entries takes nothing from the forward read; a hash outstanding elsewhere takes
//! nothing at all. Both rules are off with `allow_out_of_order`.

use std::collections::{BTreeMap, HashMap};

use geminga_common::ids::Position;

use super::consumers::Slot;
use super::key_cells::KeyCells;
use super::multi::{Core, Held, missing};
use super::position_map::PositionMap;
use super::reader::ReadKind;
use super::selector::{Ranges, Ring, Selector, check_ranges};
use super::types::{
    AddError, ConsumerKey, ConsumerSpec, Decision, Delivery, DispatchConfig, DispatcherStats, DrainingHash,
    EntryMeta, HashRange, KeySharedMode, LogView, Offered, ReadId, Released, WaitReason,
};

pub(super) struct KeyShared {
    pub(super) core: Core,
    /// `None` until the first consumer says how keys are shared.
    policy: Option<Policy>,
    cells: KeyCells,
    /// Waiting entries with their sticky hash.
    replay: PositionMap<u32>,
    /// Waiting entries that their owner may have, by slot.
    ready: Vec<PositionMap<()>>,
    /// Waiting entries of draining or unowned hashes. May name entries that wait no more.
    parked: HashMap<u16, Vec<Position>>,
    /// Hashes given back while a replay is under way: that replay must not overtake them.
    overtaken: Vec<u16>,
    drained_total: u64,
}

struct Policy {
    selector: Selector,
    out_of_order: bool,
}

enum Placed {
    Sent,
    Waits,
    NobodyFree,
}

impl KeyShared {
    pub(super) fn new(config: DispatchConfig, floor: Position) -> Self {
        Self {
            core: Core::new(config, floor),
            policy: None,
            cells: KeyCells::new(),
            replay: PositionMap::new(),
            ready: Vec::new(),
            parked: HashMap::new(),
            overtaken: Vec::new(),
            drained_total: 0,
        }
    }

    pub(super) fn add_consumer(&mut self, spec: ConsumerSpec) -> Result<(), AddError> {
        let ranges: &[HashRange] = match &spec.key_shared {
            KeySharedMode::AutoSplit => &[],
            KeySharedMode::Sticky(ranges) => {
                check_ranges(ranges)?;
                ranges
            }
        };
        let sticky = matches!(spec.key_shared, KeySharedMode::Sticky(_));
        if let Some(policy) = self.policy.as_ref().filter(|_| !self.core.consumers.is_empty()) {
            if sticky != matches!(policy.selector, Selector::Sticky(_)) {
                return Err(AddError::KeySharedModeMismatch);
            }
            if spec.allow_out_of_order != policy.out_of_order {
                return Err(AddError::OutOfOrderMismatch);
            }
            policy.selector.check_free(ranges, |slot| self.core.consumers.at(slot).spec.key)?;
        } else {
            let selector = if sticky {
                Selector::Sticky(Ranges::default())
            } else {
                Selector::Auto(Ring::new(self.core.config.key_shared_points))
            };
            self.policy = Some(Policy { selector, out_of_order: spec.allow_out_of_order });
            self.recount_waiting();
        }
        let (name, ranges) = (spec.name.clone(), ranges.to_vec());
        let slot = self.core.add(spec)?;
        if self.ready.len() <= slot as usize {
            self.ready.resize_with(slot as usize + 1, PositionMap::new);
        }
        if let Some(policy) = &mut self.policy {
            policy.selector.add(slot, &name, &ranges);
        }
        self.sort_waiting();
        Ok(())
    }

    pub(super) fn remove_consumer(&mut self, key: ConsumerKey) {
        let Some(slot) = self.core.consumers.slot_of(key) else { return };
        for (position, held) in self.core.take_leaving(slot) {
            self.unbook(&held);
            self.wait_for_owner(position, held.hash);
        }
        if let Some(policy) = &mut self.policy {
            policy.selector.remove(slot);
        }
        self.overtaken.clear();
        self.sort_waiting();
    }

    /// Keys are shared in another way: a sticky hash may have another slot now. Nothing is outstanding.
    fn recount_waiting(&mut self) {
        self.cells = KeyCells::new();
        let waiting: Vec<_> = self.replay.iter().collect();
        for (_, sticky_hash) in waiting {
            let hash = self.cut(sticky_hash);
            self.cells.at(hash).waiting += 1;
        }
    }

    /// The hash slot of a sticky hash, as the present consumers share keys.
    fn cut(&self, sticky_hash: u32) -> u16 {
        self.policy.as_ref().map_or(0, |policy| policy.selector.cut(sticky_hash))
    }

    fn owner(&self, hash: u16) -> Option<Slot> {
        self.policy.as_ref().and_then(|policy| policy.selector.owner(hash))
    }

    fn ordered(&self) -> bool {
        self.policy.as_ref().is_some_and(|policy| !policy.out_of_order)
    }

    /// The consumer that may get entries of `hash` as far as order is concerned.
    fn owner_if_drained(&self, hash: u16) -> Option<Slot> {
        let owner = self.owner(hash)?;
        let cell = self.cells.get(hash);
        let draining = self.ordered() && cell.outstanding > 0 && cell.holder != owner;
        (!draining).then_some(owner)
    }

    /// Puts an entry into the replay set.
    fn wait_for_owner(&mut self, position: Position, sticky_hash: u32) {
        let hash = self.cut(sticky_hash);
        if self.replay.insert(position, sticky_hash).is_none() {
            self.cells.at(hash).waiting += 1;
        }
        self.sort_in(position, hash);
    }

    fn sort_in(&mut self, position: Position, hash: u16) {
        match self.owner_if_drained(hash) {
            Some(owner) => {
                self.ready[owner as usize].insert(position, ());
            }
            None => self.parked.entry(hash).or_default().push(position),
        }
    }

    /// After owners changed: sorts all waiting entries anew.
    fn sort_waiting(&mut self) {
        self.parked.clear();
        for ready in &mut self.ready {
            ready.clear();
        }
        let waiting: Vec<_> = self.replay.iter().collect();
        for (position, sticky_hash) in waiting {
            self.sort_in(position, self.cut(sticky_hash));
        }
    }

    /// Takes an entry out of the replay set.
    fn forget(&mut self, position: Position) {
        let Some(sticky_hash) = self.replay.remove(position) else { return };
        let hash = self.cut(sticky_hash);
        self.cells.at(hash).waiting -= 1;
        if let Some(owner) = self.owner(hash) {
            self.ready[owner as usize].remove(position);
        }
    }

    /// An entry is no longer outstanding. When it was the last of its hash, what waited for that may go on.
    fn unbook(&mut self, held: &Held) {
        if !self.ordered() {
            return;
        }
        let hash = self.cut(held.hash);
        let owner = self.owner(hash);
        let cell = self.cells.at(hash);
        cell.outstanding = cell.outstanding.saturating_sub(1);
        if cell.outstanding > 0 {
            return;
        }
        cell.blocked_attempts = 0;
        if owner != Some(held.slot) {
            self.drained_total += 1;
        }
        for position in self.parked.remove(&hash).unwrap_or_default() {
            if self.replay.contains(position) {
                self.sort_in(position, hash);
            }
        }
    }

    pub(super) fn decide(&mut self, now_ms: u64, log: &LogView) -> Decision {
        if let Some(reason) = self.core.gate(log) {
            return Decision::Wait(reason);
        }
        while let Some((position, hash)) = self.core.delayed.pop_due(now_ms) {
            if position >= log.floor
                && !self.core.pending.contains(position)
                && !self.replay.contains(position)
            {
                self.wait_for_owner(position, hash);
            }
        }
        let forward = self.core.reader.position() < log.end;
        if !forward && self.replay.is_empty() {
            return Decision::Wait(self.core.idle_reason());
        }
        if let Some(reason) = self.core.no_credit() {
            return Decision::Wait(reason);
        }
        let positions = self.choose_replay();
        if !positions.is_empty() {
            return self.core.reader.replay(positions);
        }
        let room = self.look_ahead_room();
        if !forward || room == 0 {
            return Decision::Wait(WaitReason::KeysBlocked);
        }
        if let Some(reason) = self.core.delayed_full() {
            return Decision::Wait(reason);
        }
        self.core.reader.forward(self.core.consumers.credit(), room)
    }

    /// The waiting entries that can be sent now, as many as each owner has credit for, ascending.
    fn choose_replay(&self) -> Vec<Position> {
        let reader = &self.core.reader;
        let mut positions = Vec::new();
        for &slot in self.core.consumers.order() {
            let ready = &self.ready[slot as usize];
            if ready.is_empty() || !self.core.consumers.is_available(slot) {
                continue;
            }
            let max = reader.entries_for(self.core.consumers.permits(slot)) as usize;
            positions.extend(ready.iter().map(|(position, ())| position).take(max));
        }
        positions.sort_unstable();
        positions.truncate(reader.entries_for(u64::MAX) as usize);
        positions
    }

    /// How many more entries may be read past those that wait.
    fn look_ahead_room(&self) -> u32 {
        let config = &self.core.config;
        let consumers = u64::try_from(self.core.consumers.len()).unwrap_or(u64::MAX);
        let each = u64::from(config.look_ahead_per_consumer).saturating_mul(consumers);
        let limit = match (each, u64::from(config.look_ahead_total)) {
            (0, 0) => u64::MAX,
            (0, total) => total,
            (each, 0) => each,
            (each, total) => each.min(total),
        };
        u32::try_from(limit.saturating_sub(self.replay.len())).unwrap_or(u32::MAX)
    }

    pub(super) fn offer(
        &mut self,
        read: ReadId,
        entries: &[EntryMeta],
        next: Position,
        now_ms: u64,
        out: &mut Vec<Delivery>,
    ) -> Offered {
        let overtaken = std::mem::take(&mut self.overtaken);
        match self.core.reader.finish(read) {
            None => {
                // Still true for the read that is under way, if any.
                self.overtaken = overtaken;
                return Offered::Stale;
            }
            Some(ReadKind::Replay(asked)) => {
                missing(&asked, entries, next, |position| {
                    self.forget(position);
                    self.core.counts.remove(position);
                });
                self.offer_replay(entries, &overtaken, now_ms, out);
            }
            Some(ReadKind::Forward) => {
                let reached = self.offer_forward(entries, next, now_ms, out);
                self.core.reader.advance(reached);
            }
        }
        Offered::Taken
    }

    fn offer_replay(
        &mut self,
        entries: &[EntryMeta],
        overtaken: &[u16],
        now_ms: u64,
        out: &mut Vec<Delivery>,
    ) {
        for (index, entry) in entries.iter().enumerate() {
            // Acknowledged while the read was under way, or a key whose earlier entry came back meanwhile.
            let hash = self.cut(entry.sticky_hash);
            if !self.replay.contains(entry.position) || overtaken.contains(&hash) {
                continue;
            }
            if self.core.delay(entry, now_ms) {
                self.forget(entry.position);
                continue;
            }
            let Some(slot) = self.owner_if_drained(hash) else { continue };
            if self.core.is_blocked() {
                return;
            }
            if self.core.consumers.is_available(slot) {
                self.forget(entry.position);
                self.send(slot, index, entry, out);
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
        for (index, entry) in entries.iter().enumerate() {
            // After a rewind the log shows entries that somebody holds or that wait already.
            if self.core.pending.contains(entry.position) || self.replay.contains(entry.position) {
                continue;
            }
            if self.core.delay(entry, now_ms) {
                continue;
            }
            match self.place(index, entry, out) {
                Placed::Sent => {}
                Placed::Waits => self.wait_for_owner(entry.position, entry.sticky_hash),
                Placed::NobodyFree => return entry.position,
            }
        }
        next
    }

    fn place(&mut self, index: usize, entry: &EntryMeta, out: &mut Vec<Delivery>) -> Placed {
        if self.core.is_blocked() || !self.core.consumers.any_available() {
            return Placed::NobodyFree;
        }
        let hash = self.cut(entry.sticky_hash);
        let overtakes = self.ordered() && self.cells.get(hash).waiting > 0;
        let slot = self.owner_if_drained(hash);
        if slot.is_none() && self.ordered() {
            let attempts = &mut self.cells.at(hash).blocked_attempts;
            *attempts = attempts.saturating_add(1);
        }
        match slot {
            Some(slot) if !overtakes && self.core.consumers.is_available(slot) => {
                self.send(slot, index, entry, out);
                Placed::Sent
            }
            _ if self.look_ahead_room() == 0 => Placed::NobodyFree,
            _ => Placed::Waits,
        }
    }

    fn send(&mut self, slot: Slot, index: usize, entry: &EntryMeta, out: &mut Vec<Delivery>) {
        if self.ordered() {
            let hash = self.cut(entry.sticky_hash);
            let cell = self.cells.at(hash);
            cell.holder = slot;
            cell.outstanding += 1;
        }
        self.core.deliver(slot, index, entry, out);
    }

    pub(super) fn acked(&mut self, position: Position) -> Option<Released> {
        self.forget(position);
        let held = self.core.take_acked(position)?;
        let released = self.core.release(held.slot, held.messages);
        self.unbook(&held);
        Some(released)
    }

    pub(super) fn acked_below(&mut self, floor: Position) -> Vec<Released> {
        let mut waiting = Vec::new();
        self.replay.drain_below(floor, |position, hash| waiting.push((position, hash)));
        for (position, sticky_hash) in waiting {
            let hash = self.cut(sticky_hash);
            self.cells.at(hash).waiting -= 1;
            if let Some(owner) = self.owner(hash) {
                self.ready[owner as usize].remove(position);
            }
        }
        let mut acked = Vec::new();
        let released = self.core.acked_below(floor, |held| acked.push(*held));
        for held in &acked {
            self.unbook(held);
        }
        released
    }

    pub(super) fn redeliver(&mut self, key: ConsumerKey, positions: Option<&[Position]>) {
        let replaying = !self.core.reader.replaying().is_empty();
        for (position, held) in self.core.take_redelivered(key, positions) {
            self.unbook(&held);
            self.wait_for_owner(position, held.hash);
            let hash = self.cut(held.hash);
            if replaying && self.ordered() && !self.overtaken.contains(&hash) {
                self.overtaken.push(hash);
            }
        }
    }

    pub(super) fn reset(&mut self, to: Position) {
        self.core.reset(to);
        self.cells = KeyCells::new();
        self.replay.clear();
        for ready in &mut self.ready {
            ready.clear();
        }
        self.parked.clear();
        self.overtaken.clear();
    }

    pub(super) fn stats(&self) -> DispatcherStats {
        let mut stats = self.core.stats(self.replay.len());
        stats.draining_cleared_total = self.drained_total;
        let Some(policy) = &self.policy else { return stats };
        let mut ranges: BTreeMap<Slot, Vec<HashRange>> = BTreeMap::new();
        for (range, slot) in policy.selector.ranges() {
            ranges.entry(slot).or_default().push(range);
        }
        for (slot, consumer) in self.core.consumers.order().iter().zip(&mut stats.consumers) {
            consumer.hash_ranges = ranges.remove(slot).unwrap_or_default();
        }
        if !policy.out_of_order {
            let draining =
                self.cells.outstanding().filter(|(hash, cell)| self.owner(*hash) != Some(cell.holder));
            stats.draining.extend(draining.map(|(hash, cell)| DrainingHash {
                hash,
                holder: self.core.consumers.at(cell.holder).spec.key,
                unacked_entries: cell.outstanding,
                blocked_attempts: cell.blocked_attempts,
            }));
        }
        stats
    }
}
