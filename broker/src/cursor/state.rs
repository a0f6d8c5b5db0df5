//! [`AckState`]: what one subscription has acknowledged. Pure; owned by the topic's task.
//!
//! Everything below `floor` is acked (Pulsar's mark-delete position is the entry before it), plus the `holes` above it, plus
//! parts of the entries in `batches`. Invariants: holes and batches lie at or above the floor; the entry at the floor is not
//! acked; no entry is in both. The floor only rises, except by [`AckState::reset`] (seek).
//!
//! The state tells what changed since the last [`AckState::take_delta`], so that what is made durable is what changed and not
//! the whole. In-order acks touch one number: no bitmap, no allocation.

use super::holes::{ENTRY_LIMIT, Holes};
use super::slots::Log;
use geminga_common::ids::{EntryId, LedgerId, Position};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Most words of a batch bitmap that are taken: a million messages. No client builds batches near it.
pub const BATCH_WORDS_MAX: usize = 1 << 14;

/// What is left of a batch that is acked in part.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Batch {
    /// Messages of the entry.
    pub size: u32,
    /// A bit per message, lowest first: set = **not** acked (as on the wire). At least one bit is set.
    pub remaining: Box<[u64]>,
}

impl Batch {
    /// How many of its messages are acked.
    #[must_use]
    pub fn acked(&self) -> u32 {
        self.size.saturating_sub(self.left())
    }

    fn left(&self) -> u32 {
        self.remaining.iter().map(|word| word.count_ones()).sum()
    }
}

/// Acked entries, as plain data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acked {
    /// Everything below is acked.
    pub floor: Position,
    /// Acked entries above.
    pub holes: Holes,
    /// Entries acked in part.
    pub batches: BTreeMap<Position, Batch>,
}

impl Acked {
    /// Everything below `floor`, nothing else.
    #[must_use]
    pub fn below(floor: Position) -> Self {
        Self { floor, holes: Holes::default(), batches: BTreeMap::new() }
    }

    /// Takes a delta in: the union of both. Never un-acks anything.
    pub fn apply(&mut self, delta: &Delta) {
        self.floor = self.floor.max(delta.floor);
        self.holes.merge(&delta.holes);
        for (p, batch) in &delta.batches {
            let narrowed = match self.batches.get(p) {
                Some(mine) => narrow(&mine.remaining, &batch.remaining),
                None => batch.remaining.clone(),
            };
            if narrowed.iter().all(|word| *word == 0) {
                self.batches.remove(p);
                self.holes.insert(*p);
            } else {
                self.batches.insert(*p, Batch { size: batch.size, remaining: narrowed });
            }
        }
        self.drop_below_floor();
        if !delta.holes.is_empty() {
            let holes = &self.holes;
            self.batches.retain(|p, _| !holes.contains(*p));
        }
    }

    /// Bytes held, about.
    #[must_use]
    pub fn size(&self) -> usize {
        let batches = |batch: &Batch| 48 + batch.remaining.len() * 8;
        self.holes.size() + self.batches.values().map(batches).sum::<usize>()
    }

    fn drop_below_floor(&mut self) {
        self.holes.remove_below(self.floor);
        while let Some(first) = self.batches.first_entry() {
            if *first.key() >= self.floor {
                break;
            }
            first.remove();
        }
    }
}

/// What changed: acks only, so deltas may be merged and applied twice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delta {
    /// The floor now.
    pub floor: Position,
    /// Holes that are new, at or above the floor.
    pub holes: Holes,
    /// Batches that changed, with all that is left of them.
    pub batches: Vec<(Position, Batch)>,
    /// Properties of the last cumulative ack that carried some; they replace the ones before.
    pub ack_properties: Option<Vec<(String, u64)>>,
}

impl Delta {
    /// Bytes held, about.
    #[must_use]
    pub fn size(&self) -> usize {
        let batches = |(_, batch): &(Position, Batch)| 48 + batch.remaining.len() * 8;
        let numbers = |(key, _): &(String, u64)| key.len() + 16;
        let properties: usize = self.ack_properties.iter().flatten().map(numbers).sum();
        64 + self.holes.size() + self.batches.iter().map(batches).sum::<usize>() + properties
    }
}

/// What an ack did.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ack {
    /// The entry is fully acked now and was not before.
    Entry,
    /// So many more messages of the entry are acked; some remain.
    Part(u32),
    /// Nothing new.
    Duplicate,
    /// There is no such entry, or the bitmap does not fit it: nothing was done.
    NotFound,
}

/// Consecutive unacked entries of one ledger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Run {
    /// The first.
    pub first: Position,
    /// How many, at least 1.
    pub entries: u64,
}

impl Run {
    /// The last entry of the run.
    #[must_use]
    pub fn last(&self) -> Position {
        Position::new(self.first.ledger, EntryId(self.first.entry.0 + self.entries - 1))
    }

    fn end(&self) -> Position {
        Position::new(self.first.ledger, EntryId(self.first.entry.0 + self.entries))
    }
}

/// What changed since the last delta. Supersets are fine: they are cut when the delta is taken.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Dirty {
    floor: bool,
    holes: Holes,
    batches: BTreeSet<Position>,
    ack_properties: Option<Vec<(String, u64)>>,
}

/// What one subscription has acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AckState {
    acked: Acked,
    /// `None` for a non-durable subscription: nobody will take deltas.
    dirty: Option<Dirty>,
}

impl AckState {
    /// A state as it was stored, or [`Acked::below`] for a new one; nothing is dirty. The floor runs over holes that touch it
    /// at the first ack.
    #[must_use]
    pub fn new(acked: Acked) -> Self {
        Self { acked, dirty: Some(Dirty::default()) }
    }

    /// The state of a non-durable subscription: it never has a delta.
    #[must_use]
    pub fn non_durable(acked: Acked) -> Self {
        Self { acked, dirty: None }
    }

    /// Everything below is acked.
    #[must_use]
    pub fn floor(&self) -> Position {
        self.acked.floor
    }

    /// All of it, for a snapshot.
    #[must_use]
    pub fn acked(&self) -> &Acked {
        &self.acked
    }

    /// The last entry that is acked out of order, wholly or in part: nothing is known of the entries behind it.
    #[must_use]
    pub fn last_touched(&self) -> Option<Position> {
        self.acked.holes.last().max(self.acked.batches.last_key_value().map(|(p, _)| *p))
    }

    /// Bytes held, about. Forward reading of a subscription stops above 4 MiB, with a named reason, instead of acks being lost.
    #[must_use]
    pub fn size(&self) -> usize {
        self.acked.size()
    }

    /// Acks one entry.
    pub fn ack(&mut self, p: Position, log: &impl Log) -> Ack {
        if p != self.acked.floor && self.is_acked(p) {
            return Ack::Duplicate;
        }
        if !log.holds(p) || p.entry.0 >= ENTRY_LIMIT {
            return Ack::NotFound;
        }
        if !self.acked.batches.is_empty() {
            self.acked.batches.remove(&p);
        }
        if p == self.acked.floor || p == self.settle_floor(log) {
            self.acked.holes.take_run(p); // only right after a load: the entry at the floor may be a hole still
            self.acked.floor = log.next(p);
            self.run(log);
            return Ack::Entry;
        }
        if !self.acked.holes.insert(p) {
            return Ack::Duplicate;
        }
        if let Some(dirty) = &mut self.dirty {
            dirty.holes.insert(p);
        }
        Ack::Entry
    }

    /// Acks part of an entry of `batch_size` messages. `ack_set` is the wire's: a set bit stays unacked, missing words are
    /// acked, and sets of several clients add up. `batch_size` 0 = unknown (the Go client tells none): the set itself tells how many
    /// messages there are at least.
    pub fn ack_batch(&mut self, p: Position, ack_set: &[u64], batch_size: u32, log: &impl Log) -> Ack {
        if self.is_acked(p) {
            return Ack::Duplicate;
        }
        let too_long = ack_set.len().max((batch_size as usize).div_ceil(64)) > BATCH_WORDS_MAX;
        if !log.holds(p) || p.entry.0 >= ENTRY_LIMIT || too_long {
            return Ack::NotFound;
        }
        let before = self.acked.batches.get(&p);
        let size =
            batch_size.max(before.map_or(0, |batch| batch.size)).max(size_at_least(ack_set, batch_size));
        let remaining = match before {
            Some(batch) => narrow(&batch.remaining, ack_set),
            None => narrow(&all_of(size), ack_set),
        };
        let after = Batch { size, remaining };
        if after.left() == 0 {
            return self.ack(p, log);
        }
        let newly = after.acked().saturating_sub(before.map_or(0, Batch::acked));
        if newly == 0 {
            return Ack::Duplicate;
        }
        self.acked.batches.insert(p, after);
        if let Some(dirty) = &mut self.dirty {
            dirty.batches.insert(p);
        }
        Ack::Part(newly)
    }

    /// Acks everything up to and with `p`; with an `ack_set` (and its batch size), `p` itself only in part.
    pub fn ack_cumulative(&mut self, p: Position, ack_set: Option<(&[u64], u32)>, log: &impl Log) -> Ack {
        if p < self.acked.floor {
            return Ack::Duplicate;
        }
        if p >= log.end() || p.entry.0 >= ENTRY_LIMIT {
            return Ack::NotFound;
        }
        let Some((ack_set, batch_size)) = ack_set else {
            self.advance_floor(Position::new(p.ledger, p.entry.next()), log);
            return Ack::Entry;
        };
        if !log.holds(p) || ack_set.len() > BATCH_WORDS_MAX {
            return Ack::NotFound;
        }
        let moved = self.advance_floor(p, log);
        match self.ack_batch(p, ack_set, batch_size, log) {
            Ack::Duplicate if moved => Ack::Part(0),
            outcome => outcome,
        }
    }

    /// Notes the properties of a cumulative ack; they become durable with the next delta.
    pub fn set_ack_properties(&mut self, properties: Vec<(String, u64)>) {
        if let Some(dirty) = &mut self.dirty {
            dirty.ack_properties = Some(properties);
        }
    }

    /// Acks everything below `to` (skip, expiry, clear backlog), at most up to the log's end; false if that was so already.
    pub fn advance_floor(&mut self, to: Position, log: &impl Log) -> bool {
        let to = log.settle(to.min(log.end()));
        if to <= self.acked.floor {
            return false;
        }
        self.acked.floor = to;
        self.acked.holes.remove_below(to);
        self.run(log);
        true
    }

    /// Acks the first `entries` unacked entries; answers how many there were.
    pub fn skip(&mut self, entries: u64, log: &impl Log) -> u64 {
        let mut left = entries;
        let mut to = self.acked.floor;
        while left > 0 {
            let Some(run) = self.next_unacked_run(to, log.end(), left, log) else { break };
            left -= run.entries;
            to = run.end();
        }
        self.advance_floor(to, log);
        entries - left
    }

    /// Seek: everything below `to` is acked, everything from it on is not, except the part of the entry at `to` that
    /// `ack_set` names. The caller makes it durable as a reset, not as a delta; what was dirty is obsolete.
    pub fn reset(&mut self, to: Position, ack_set: Option<(&[u64], u32)>, log: &impl Log) {
        let floor = log.settle(to.min(log.end()));
        self.acked = Acked::below(floor);
        if let (true, Some((ack_set, batch_size))) = (floor == to, ack_set) {
            self.ack_batch(to, ack_set, batch_size, log);
        }
        if let Some(dirty) = &mut self.dirty {
            *dirty = Dirty::default();
        }
    }

    /// Whether all of the entry is acked.
    #[must_use]
    pub fn is_acked(&self, p: Position) -> bool {
        p < self.acked.floor || self.acked.holes.contains(p)
    }

    /// What is left of an entry that is acked in part, as echoed to consumers.
    #[must_use]
    pub fn remaining(&self, p: Position) -> Option<&[u64]> {
        self.acked.batches.get(&p).map(|batch| &*batch.remaining)
    }

    /// How many messages of an entry that is not fully acked are acked.
    #[must_use]
    pub fn acked_in_batch(&self, p: Position) -> u32 {
        if self.acked.batches.is_empty() { 0 } else { self.acked.batches.get(&p).map_or(0, Batch::acked) }
    }

    /// The first unacked entry at or after `from`.
    #[must_use]
    pub fn next_unacked(&self, from: Position, log: &impl Log) -> Option<Position> {
        self.next_unacked_run(from, log.end(), 1, log).map(|run| run.first)
    }

    /// The first unacked entries of one ledger in `from..to`, unbroken, at most `entries_max`.
    #[must_use]
    pub fn next_unacked_run(
        &self,
        from: Position,
        to: Position,
        entries_max: u64,
        log: &impl Log,
    ) -> Option<Run> {
        let to = to.min(log.end());
        let mut first = log.settle(from.max(self.acked.floor));
        loop {
            if first >= to || entries_max == 0 {
                return None;
            }
            let unacked = self.acked.holes.run_end(first);
            if unacked == first.entry {
                break;
            }
            first = log.settle(Position::new(first.ledger, unacked));
        }
        if !log.holds(first) {
            return None; // after the last entry of a closed ledger, and nothing follows yet
        }
        let mut end = log.span_from(first.ledger)?.entries;
        if to.ledger == first.ledger {
            end = end.min(to.entry.0);
        }
        if let Some(hole) = self.acked.holes.next_in_ledger(first) {
            end = end.min(hole.0);
        }
        Some(Run { first, entries: (end - first.entry.0).min(entries_max) })
    }

    /// How many entries of `from..to` are fully acked.
    #[must_use]
    pub fn acked_entries_between(&self, from: Position, to: Position, log: &impl Log) -> u64 {
        let floor = self.acked.floor;
        log.entries_between(from, to.min(floor)) + self.acked.holes.count_between(from.max(floor), to)
    }

    /// How many entries are not fully acked.
    #[must_use]
    pub fn backlog(&self, log: &impl Log) -> u64 {
        let above = log.entries_between(self.acked.floor, log.end());
        above.saturating_sub(self.acked.holes.count_between(self.acked.floor, log.end()))
    }

    /// Acked ranges above the floor, rising: whole entries, adjacent ones as one.
    fn deleted_ranges(&self) -> impl Iterator<Item = (LedgerId, std::ops::Range<u64>)> {
        let mut pieces = self.acked.holes.runs().peekable();
        std::iter::from_fn(move || {
            let (ledger, mut range) = pieces.next()?;
            while let Some((_, more)) =
                pieces.next_if(|(next, more)| *next == ledger && more.start == range.end)
            {
                range.end = more.end;
            }
            Some((ledger, range))
        })
    }

    /// How many ranges above the floor are acked; takes time with their number.
    #[must_use]
    pub fn deleted_ranges_count(&self) -> u64 {
        self.deleted_ranges().count() as u64
    }

    /// Acked ranges above the floor as Pulsar prints them: `[(3:1..3:4],(5:-1..5:0]]`, the lower bound exclusive. At most
    /// `ranges_max` of them.
    #[must_use]
    pub fn individually_deleted(&self, ranges_max: usize) -> String {
        let mut out = String::from("[");
        let runs = self.deleted_ranges().take(ranges_max);
        for (nth, (ledger, run)) in runs.enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            let before = run.start as i64 - 1;
            write!(out, "{comma}({ledger}:{before}..{ledger}:{}]", run.end - 1).expect("text takes any text");
        }
        out.push(']');
        out
    }

    /// Whether anything changed since the last delta.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.dirty.as_ref().is_some_and(|dirty| *dirty != Dirty::default())
    }

    /// What changed since the last delta.
    pub fn take_delta(&mut self) -> Option<Delta> {
        if !self.is_dirty() {
            return None;
        }
        let mut dirty = std::mem::take(self.dirty.as_mut()?);
        dirty.holes.remove_below(self.acked.floor);
        let changed = |p| self.acked.batches.get(&p).map(|batch| (p, batch.clone()));
        Some(Delta {
            floor: self.acked.floor,
            holes: dirty.holes,
            batches: dirty.batches.into_iter().filter_map(changed).collect(),
            ack_properties: dirty.ack_properties,
        })
    }

    /// Marks a delta dirty again that could not be queued.
    pub fn restore_delta(&mut self, delta: Delta) {
        let Some(dirty) = &mut self.dirty else { return };
        dirty.floor = true;
        dirty.holes.merge(&delta.holes);
        dirty.batches.extend(delta.batches.iter().map(|(p, _)| *p));
        if dirty.ack_properties.is_none() {
            dirty.ack_properties = delta.ack_properties;
        }
    }

    /// The floor as a slot: it lags behind when the ledger under it was rolled.
    fn settle_floor(&mut self, log: &impl Log) -> Position {
        let settled = log.settle(self.acked.floor);
        if settled != self.acked.floor {
            self.acked.floor = settled; // bounds the same entries: not dirty
            self.acked.drop_below_floor();
        }
        settled
    }

    /// After the floor moved: over the holes that touch it, across ledgers.
    fn run(&mut self, log: &impl Log) {
        if let Some(dirty) = &mut self.dirty {
            dirty.floor = true;
        }
        while !self.acked.holes.is_empty() {
            let floor = self.settle_floor(log);
            let end = self.acked.holes.take_run(floor);
            if end == floor.entry {
                break;
            }
            self.acked.floor = log.settle(Position::new(floor.ledger, end));
        }
        if !self.acked.batches.is_empty() {
            self.acked.drop_below_floor();
        }
    }
}

/// A bitmap with the first `size` bits set.
fn all_of(size: u32) -> Box<[u64]> {
    let words = (size as usize).div_ceil(64).min(BATCH_WORDS_MAX);
    let mut all = vec![u64::MAX; words].into_boxed_slice();
    if let (Some(last), bits @ 1..) = (all.last_mut(), size % 64) {
        *last = (1 << bits) - 1;
    }
    all
}

/// Bits of both, as long as `base`; missing words are zero.
fn narrow(base: &[u64], with: &[u64]) -> Box<[u64]> {
    let other = with.iter().copied().chain(std::iter::repeat(0));
    base.iter().zip(other).map(|(a, b)| a & b).collect()
}

/// Messages that a batch of unknown size has at least. An ack set acknowledges something: if no bit below the highest set one is
/// clear, a message behind it is acknowledged, whose bit is clear because nothing follows.
fn size_at_least(ack_set: &[u64], batch_size: u32) -> u32 {
    if batch_size > 0 {
        return 0;
    }
    let Some(nth) = ack_set.iter().rposition(|word| *word != 0) else { return 0 };
    let used = nth as u32 * 64 + (64 - ack_set[nth].leading_zeros());
    let left: u32 = ack_set.iter().map(|word| word.count_ones()).sum();
    (used + u32::from(left == used)).min(BATCH_WORDS_MAX as u32 * 64)
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
