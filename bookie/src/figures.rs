//! Figures of a store, for metrics and for people.

use crate::Room;
use crate::store::Store;
use std::iter::Sum;
use std::sync::atomic::Ordering;

/// What a store holds, and what it has done since its start. Shards add up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// How full the disk is.
    pub room: Room,
    /// Ledgers of which something is known, tombstones among them.
    pub ledgers: u64,
    /// Deleted ledgers that are remembered.
    pub tombstones: u64,
    /// Synced journal writes: batches, idle markers among them.
    pub journal_writes: u64,
    /// Their bytes, with padding.
    pub journal_bytes: u64,
    /// Bytes in the write cache.
    pub cached_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of entries in them.
    pub segment_bytes: u64,
    /// Of these, bytes of blocks in which something lives.
    pub live_bytes: u64,
    /// Blocks that did not check: what they hold is answered `Unknown`.
    pub bad_blocks: u64,
    /// Segments whose footer does not check.
    pub bad_footers: u64,
    /// Bytes given back by holes.
    pub punched_bytes: u64,
    /// Segments that went into a merge.
    pub merged_segments: u64,
    /// Segment files removed.
    pub removed_segments: u64,
    /// Bytes checked.
    pub scrubbed_bytes: u64,
    /// Times that everything was checked.
    pub scrub_passes: u64,
}

impl Sum for Figures {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            room: a.room.max(b.room),
            ledgers: a.ledgers + b.ledgers,
            tombstones: a.tombstones + b.tombstones,
            journal_writes: a.journal_writes + b.journal_writes,
            journal_bytes: a.journal_bytes + b.journal_bytes,
            cached_bytes: a.cached_bytes + b.cached_bytes,
            segments: a.segments + b.segments,
            segment_bytes: a.segment_bytes + b.segment_bytes,
            live_bytes: a.live_bytes + b.live_bytes,
            bad_blocks: a.bad_blocks + b.bad_blocks,
            bad_footers: a.bad_footers + b.bad_footers,
            punched_bytes: a.punched_bytes + b.punched_bytes,
            merged_segments: a.merged_segments + b.merged_segments,
            removed_segments: a.removed_segments + b.removed_segments,
            scrubbed_bytes: a.scrubbed_bytes + b.scrubbed_bytes,
            scrub_passes: a.scrub_passes + b.scrub_passes,
        })
    }
}

impl Store {
    /// The figures of one shard. Footers that were not needed yet are not read for it.
    pub(crate) fn figures(&self) -> Figures {
        let (set, room, ledgers, tombstones, cached_bytes) = {
            let shard = self.shard.lock();
            let tombstones = shard.ledgers.values().filter(|l| l.row.tombstone).count() as u64;
            let ledgers = shard.ledgers.len() as u64;
            (shard.segments.clone(), shard.room, ledgers, tombstones, shard.cached_bytes() as u64)
        };
        let count = |word: &std::sync::atomic::AtomicU64| word.load(Ordering::Relaxed);
        Figures {
            room,
            ledgers,
            tombstones,
            journal_writes: count(&self.counts.journal_writes),
            journal_bytes: count(&self.counts.journal_bytes),
            cached_bytes,
            segments: set.all.len() as u64,
            segment_bytes: set.all.iter().map(|s| s.row.len - s.row.footer).sum(),
            live_bytes: set.all.iter().map(|s| count(&s.live)).sum(),
            bad_blocks: set.all.iter().map(|s| s.bad_blocks() as u64).sum(),
            bad_footers: set.all.iter().filter(|s| s.footer_is_bad()).count() as u64,
            punched_bytes: count(&self.counts.punched_bytes),
            merged_segments: count(&self.counts.merged_segments),
            removed_segments: count(&self.counts.removed_segments),
            scrubbed_bytes: count(&self.counts.scrubbed_bytes),
            scrub_passes: count(&self.counts.scrub_passes),
        }
    }
}
