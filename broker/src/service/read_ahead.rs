//! How much to read next, so that a payload lies in one piece without being moved. Pure.
//!
//! A frame that does not end inside its chunk of the read buffer has to be moved to a larger one: one copy of what had arrived. So
//! once frames are large, reads end where frames end: producers send frames of much the same size, and the last one's size tells
//! where the next will end. Small frames are read by the chunk, because a system call costs more than moving half of one.

/// First chunk; it grows with what arrives. What a connection costs before CONNECT.
pub(super) const CHUNK_MIN: usize = 8 * 1024;
/// Largest chunk, unless a frame needs more.
const CHUNK_MAX: usize = 256 * 1024;
/// Frames from this size on are worth ending a read for.
const ALIGNED_MIN: usize = 4 * 1024;
/// Frames from this size on are read one at a time: the size of the next but one is too loose a guess.
const ALONE_MIN: usize = 32 * 1024;
/// Frames of one producer differ by their varints.
const SLACK: usize = 64;

/// What is known of the stream.
#[derive(Debug)]
pub(super) struct ReadAhead {
    chunk: usize,
    chunk_max: usize,
    /// Size of the last frame, in bytes.
    frame: usize,
    /// The last read's limit.
    limit: usize,
}

/// What to do before the next read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    /// Make room for this many bytes beyond those that are there, in a new chunk if need be.
    pub(super) room: Option<usize>,
    /// Read this many bytes at most; at least one.
    pub(super) limit: usize,
}

impl ReadAhead {
    pub(super) fn new() -> Self {
        Self { chunk: CHUNK_MIN, chunk_max: CHUNK_MIN, frame: 0, limit: CHUNK_MIN }
    }

    /// The peer has announced itself: it may have large chunks.
    pub(super) fn open_up(&mut self) {
        self.chunk_max = CHUNK_MAX;
    }

    /// A whole frame was taken.
    pub(super) fn took(&mut self, frame: usize) {
        self.frame = frame;
    }

    /// A read brought `read` bytes: a full one asks for larger chunks.
    pub(super) fn read(&mut self, read: usize) {
        if read == self.limit {
            self.chunk = (self.chunk * 2).min(self.chunk_max);
        }
    }

    /// `have` bytes of a frame of `needed` bytes (or of its length field alone) are there, in a chunk of `capacity` bytes.
    /// The read brings no more than `at_once`.
    pub(super) fn plan(&mut self, have: usize, needed: usize, capacity: usize, at_once: usize) -> Plan {
        let known = needed > 4;
        let end = if known { needed } else { self.frame.max(needed) };
        let whole = if known { end } else { end + SLACK };
        let aligned = end >= ALIGNED_MIN;
        // A nearly full chunk is left behind, so that a read is worth its system call; not before, for a fresh chunk is memory that
        // the kernel has to clear.
        let worth = if aligned { 0 } else { self.chunk / 8 };
        let fits = whole <= capacity && worth <= capacity - have;
        let room = (!fits).then(|| whole.max(self.chunk) - have);
        let capacity = room.map_or(capacity, |room| capacity.max(have + room));
        let wanted = if aligned { self.aligned(end, capacity) } else { capacity } - have;
        self.limit = wanted.min(at_once).max(1);
        Plan { room, limit: self.limit }
    }

    /// Where the last frame ends that fits a chunk, if they all are as large as the first.
    fn aligned(&self, end: usize, capacity: usize) -> usize {
        if end >= ALONE_MIN {
            return end;
        }
        let size = if self.frame >= ALIGNED_MIN { self.frame } else { end };
        end + (capacity - end) / size * size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream cost: bytes moved, reads, bytes in all, bytes of fresh chunks.
    struct Cost {
        moved: usize,
        reads: usize,
        total: usize,
        fresh: usize,
    }

    /// Reads a stream of frames through the plan, at most `arrives` bytes a time.
    fn cost(frames: impl Iterator<Item = usize>, arrives: usize) -> Cost {
        let mut ahead = ReadAhead::new();
        ahead.open_up();
        let (mut have, mut capacity) = (0, CHUNK_MIN);
        let Cost { mut moved, mut reads, mut total, mut fresh } =
            Cost { moved: 0, reads: 0, total: 0, fresh: 0 };
        for size in frames {
            total += size;
            while have < size {
                let needed = if have >= 4 { size } else { 4 };
                let plan = ahead.plan(have, needed, capacity, usize::MAX);
                if let Some(room) = plan.room {
                    moved += have;
                    capacity = have + room;
                    fresh += capacity;
                }
                assert!(plan.limit >= 1 && have + plan.limit <= capacity, "{plan:?} {have} {capacity}");
                let read = plan.limit.min(arrives);
                ahead.read(read);
                have += read;
                reads += 1;
            }
            have -= size;
            capacity -= size;
            ahead.took(size);
        }
        Cost { moved, reads, total, fresh }
    }

    #[test]
    fn frames_of_one_size_are_never_moved_once_their_size_is_known() {
        for size in [4_200, 16_500, 40_000, 131_200, 1 << 20, 5 << 20] {
            let Cost { moved, reads, total, .. } = cost(std::iter::repeat_n(size, 500), usize::MAX);
            assert!(moved <= CHUNK_MIN, "{size}: {moved} of {total} moved");
            assert!(reads <= 510 + 500 * size / CHUNK_MAX, "{size}: {reads} reads");
        }
    }

    #[test]
    fn varints_that_grow_cost_their_bytes_only() {
        let Cost { moved, total, .. } = cost((0..5_000).map(|n| 131_072 + 90 + n / 100), usize::MAX);
        assert!(moved * 1_000 <= total, "{moved} of {total} moved");
    }

    #[test]
    fn small_frames_are_read_by_the_chunk() {
        let Cost { moved, reads, total, .. } = cost(std::iter::repeat_n(130, 100_000), usize::MAX);
        assert!(reads <= total / CHUNK_MAX + 10, "{reads} reads");
        assert!(moved * 100 <= total, "{moved} of {total} moved");
    }

    #[test]
    fn a_chunk_serves_many_small_reads() {
        for arrives in [130, 1_300, 13_000] {
            let Cost { total, fresh, .. } = cost(std::iter::repeat_n(130, 100_000), arrives);
            assert!(fresh <= total * 5 / 4 + 2 * CHUNK_MAX, "{fresh} bytes of fresh chunks for {total}");
        }
    }

    #[test]
    fn a_stranger_gets_no_larger_chunk() {
        let mut ahead = ReadAhead::new();
        for _ in 0..10 {
            let plan = ahead.plan(0, 4, 0, usize::MAX);
            assert_eq!(plan, Plan { room: Some(CHUNK_MIN), limit: CHUNK_MIN });
            ahead.read(plan.limit);
        }
    }

    #[test]
    fn a_slow_stream_is_read_as_it_comes() {
        let Cost { moved, total, .. } = cost(std::iter::repeat_n(20_000, 1_000), 1_460);
        assert!(moved <= total / 100, "{moved} of {total} moved");
    }
}
