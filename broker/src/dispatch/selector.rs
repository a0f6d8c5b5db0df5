//! Which Key_Shared consumer owns a hash.
//!
//! Owned by `KeyShared`. AUTO_SPLIT is a hash ring with a fixed number of points per consumer, so that a consumer that joins or
//! leaves moves few hashes; STICKY is what the consumers declared. Placement is a function of names and joining order alone.

use std::collections::BTreeMap;

use super::consumers::Slot;
use super::hashing::{auto_split_slot, declared_slot, murmur3_31};
use super::types::{AddError, ConsumerKey, HashRange};

const LAST_HASH: u16 = u16::MAX;
/// Slot 0 means "none" and is never looked up.
const FIRST_HASH: u16 = 1;

struct RingMember {
    slot: Slot,
    name: String,
    /// Tells consumers of one name apart: the smallest number not in use.
    name_index: u32,
}

/// Consistent hashing.
pub(super) struct Ring {
    points_per_consumer: u32,
    members: Vec<RingMember>,
    /// Ascending; a point already taken is not placed twice.
    points: Vec<(u16, Slot)>,
}

impl Ring {
    pub(super) fn new(points_per_consumer: u32) -> Self {
        Self { points_per_consumer: points_per_consumer.max(1), members: Vec::new(), points: Vec::new() }
    }

    fn add(&mut self, slot: Slot, name: &str) {
        let taken: Vec<u32> = self.members.iter().filter(|m| m.name == name).map(|m| m.name_index).collect();
        let name_index = (0u32..).find(|index| !taken.contains(index)).unwrap_or(0);
        self.members.push(RingMember { slot, name: name.to_owned(), name_index });
        let new = (0..self.points_per_consumer).map(|point| {
            (auto_split_slot(murmur3_31(format!("{name}\0{name_index}\0{point}").as_bytes())), slot)
        });
        self.points.extend(new);
        // Stable: on a collision the earlier consumer keeps the point.
        self.points.sort_by_key(|(hash, _)| *hash);
        self.points.dedup_by_key(|(hash, _)| *hash);
    }

    fn remove(&mut self, slot: Slot) {
        self.members.retain(|member| member.slot != slot);
        self.points.retain(|(_, owner)| *owner != slot);
    }

    fn owner(&self, hash: u16) -> Option<Slot> {
        let at = self.points.partition_point(|(point, _)| *point < hash);
        self.points.get(at).or(self.points.first()).map(|(_, slot)| *slot)
    }

    fn ranges(&self) -> Vec<(HashRange, Slot)> {
        let Some(&(_, wrap)) = self.points.first() else { return Vec::new() };
        let mut ranges = Vec::with_capacity(self.points.len() + 1);
        let mut start = u32::from(FIRST_HASH);
        for &(point, slot) in &self.points {
            ranges.push((HashRange { start: start as u16, end: point }, slot));
            start = u32::from(point) + 1;
        }
        if start <= u32::from(LAST_HASH) {
            ranges.push((HashRange { start: start as u16, end: LAST_HASH }, wrap));
        }
        ranges
    }
}

/// Declared ranges: by start, with end and owner; no two overlap.
#[derive(Default)]
pub(super) struct Ranges {
    by_start: BTreeMap<u16, (u16, Slot)>,
}

impl Ranges {
    fn overlapping(&self, range: HashRange) -> Option<Slot> {
        let (_, (end, slot)) = self.by_start.range(..=range.end).next_back()?;
        (*end >= range.start).then_some(*slot)
    }

    fn owner(&self, hash: u16) -> Option<Slot> {
        let (_, (end, slot)) = self.by_start.range(..=hash).next_back()?;
        (*end >= hash).then_some(*slot)
    }
}

pub(super) enum Selector {
    Auto(Ring),
    Sticky(Ranges),
}

/// Ranges are non-empty, ordered in themselves, and apart from each other.
pub(super) fn check_ranges(ranges: &[HashRange]) -> Result<(), AddError> {
    if ranges.is_empty() {
        return Err(AddError::NoRanges);
    }
    for (index, &range) in ranges.iter().enumerate() {
        let overlaps = |other: &HashRange| other.start <= range.end && range.start <= other.end;
        if range.start > range.end || ranges[..index].iter().any(overlaps) {
            return Err(AddError::BadRange { range });
        }
    }
    Ok(())
}

impl Selector {
    /// Whether the ranges can be added to a sticky selector.
    pub(super) fn check_free(
        &self,
        ranges: &[HashRange],
        key_of: impl Fn(Slot) -> ConsumerKey,
    ) -> Result<(), AddError> {
        let Self::Sticky(taken) = self else { return Ok(()) };
        for &range in ranges {
            if let Some(slot) = taken.overlapping(range) {
                return Err(AddError::RangeTaken { range, holder: key_of(slot) });
            }
        }
        Ok(())
    }

    pub(super) fn add(&mut self, slot: Slot, name: &str, ranges: &[HashRange]) {
        match self {
            Self::Auto(ring) => ring.add(slot, name),
            Self::Sticky(taken) => {
                taken.by_start.extend(ranges.iter().map(|range| (range.start, (range.end, slot))));
            }
        }
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        match self {
            Self::Auto(ring) => ring.remove(slot),
            Self::Sticky(taken) => taken.by_start.retain(|_, (_, owner)| *owner != slot),
        }
    }

    /// The hash slot of a sticky hash.
    pub(super) fn cut(&self, sticky_hash: u32) -> u16 {
        match self {
            Self::Auto(_) => auto_split_slot(sticky_hash),
            Self::Sticky(_) => declared_slot(sticky_hash),
        }
    }

    /// The owner of a hash slot.
    pub(super) fn owner(&self, hash: u16) -> Option<Slot> {
        match self {
            Self::Auto(ring) => ring.owner(hash),
            Self::Sticky(taken) => taken.owner(hash),
        }
    }

    /// All owned ranges, ascending, neighbours of one owner merged.
    pub(super) fn ranges(&self) -> Vec<(HashRange, Slot)> {
        let all = match self {
            Self::Auto(ring) => ring.ranges(),
            Self::Sticky(taken) => {
                taken.by_start.iter().map(|(&start, &(end, slot))| (HashRange { start, end }, slot)).collect()
            }
        };
        let mut merged: Vec<(HashRange, Slot)> = Vec::with_capacity(all.len());
        for (range, slot) in all {
            match merged.last_mut() {
                Some((last, owner))
                    if *owner == slot && u32::from(last.end) + 1 == u32::from(range.start) =>
                {
                    last.end = range.end;
                }
                _ => merged.push((range, slot)),
            }
        }
        merged
    }
}
