//! How much is fetched before readers ask for it. Pure: time is given.
//!
//! A reader is known by the block it is expected at. One that is new somewhere gets what it asked for, in small; one that reads on
//! has four times as much under way as before, up to [`WINDOW_MAX`] or its share of what all readers may have ahead together.
//! Requests grow with the window, because a request's first byte costs as much as megabytes of a connection: with 30 ms and
//! 80 MB/s one of 8 MiB uses 78 % of its connection, one of 16 MiB 87 %.

use super::cache::BlockKey;
use geminga_common::clock::Mono;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Most bytes that lie before one reader.
pub const WINDOW_MAX: u64 = 64 << 20;
/// Most bytes that a reader who is new somewhere is given at once: its first entry must not wait for many others.
pub(super) const FIRST_MAX: u64 = 1 << 20;
/// Bytes of a request of a reader that reads on, and of one that has its whole window to itself.
const RUN: (u64, u64) = (8 << 20, 16 << 20);
/// What a window grows by from one read to the next.
const GROWTH: u64 = 4;
/// A reader that asked for nothing for so long has no share.
const IDLE: Duration = Duration::from_secs(2);
/// Readers whose place is remembered; above it the oldest start small again.
const READERS_MAX: usize = 1024;

#[derive(Clone, Copy)]
struct Place {
    window: u64,
    seen: Mono,
}

/// Where readers are expected next, and how much lies before them.
pub(super) struct Ahead {
    places: HashMap<BlockKey, Place>,
    order: VecDeque<BlockKey>,
    /// Bytes that all readers may have before them.
    budget: u64,
}

/// What a read found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Window {
    /// Bytes that may lie before the reader; 0 for one that is new here.
    pub(super) bytes: u64,
    /// Bytes of a request.
    pub(super) run: u64,
}

impl Ahead {
    pub(super) fn new(budget: u64) -> Self {
        Self { places: HashMap::new(), order: VecDeque::new(), budget }
    }

    /// The window of a reader that asks from this block on: it goes on in the block it ended in, or in the next. It is expected
    /// nowhere until [`Self::expect`] says where.
    pub(super) fn take(&mut self, from: BlockKey, asked: u64, now: Mono) -> Window {
        let known = [from.1, from.1 + 1].into_iter().find_map(|nth| self.places.remove(&(from.0, nth)));
        let reading = |place: &&Place| place.window > 0 && now.saturating_sub(place.seen) < IDLE;
        let others = if known.is_some() { self.places.values().filter(reading).count() as u64 } else { 0 };
        let share = WINDOW_MAX.min(self.budget / (others + 1)).max(RUN.0);
        let bytes = known.map_or(0, |before| before.window.max(asked).saturating_mul(GROWTH).min(share));
        let run = match bytes {
            // All that one who is new asks for comes by one request.
            0 => RUN.0,
            WINDOW_MAX.. => RUN.1,
            grown => grown.clamp(FIRST_MAX, RUN.0),
        };
        Window { bytes, run }
    }

    /// Whether a reader is expected at this block.
    pub(super) fn expects(&self, at: BlockKey) -> bool {
        self.places.contains_key(&at)
    }

    /// The reader that was expected at one block is so at another.
    pub(super) fn moved(&mut self, from: BlockKey, to: BlockKey) {
        if let Some(place) = self.places.remove(&from) {
            self.expect(to, place.window, place.seen);
        }
    }

    /// The reader is expected at this block, with so much before it.
    pub(super) fn expect(&mut self, at: BlockKey, window: u64, now: Mono) {
        if self.places.insert(at, Place { window, seen: now }).is_none() {
            self.order.push_back(at);
        }
        while self.order.len() > READERS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.places.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::AttemptId;
    use crate::state::PartId;

    fn at(object: u128, block: usize) -> BlockKey {
        (PartId(AttemptId(object as _), 0), block)
    }

    #[test]
    fn one_that_reads_on_gets_more_each_time_up_to_the_whole_window() {
        let mut ahead = Ahead::new(WINDOW_MAX);
        let mut seen = Vec::new();
        for nth in 0..6 {
            let window = ahead.take(at(1, nth), 100 << 10, Mono::ZERO);
            ahead.expect(at(1, nth + 1), window.bytes, Mono::ZERO);
            seen.push((window.bytes >> 10, window.run >> 10));
        }
        assert_eq!(
            seen,
            [(0, 8192), (400, 1024), (1600, 1600), (6400, 6400), (25_600, 8192), (65_536, 16_384)]
        );
        assert_eq!(ahead.take(at(1, 60), 1, Mono::ZERO).bytes, 0, "it is new there");
    }

    #[test]
    fn readers_share_what_may_lie_ahead_and_those_that_stopped_have_none() {
        let mut ahead = Ahead::new(WINDOW_MAX);
        for reader in 0..4 {
            ahead.expect(at(reader, 1), WINDOW_MAX, Mono::ZERO);
        }
        assert_eq!(ahead.take(at(0, 1), 1, Mono::ZERO).bytes, WINDOW_MAX / 4);
        ahead.expect(at(0, 1), WINDOW_MAX, Mono::ZERO);
        let later = Mono::ZERO + IDLE;
        assert_eq!(ahead.take(at(0, 1), 1, later).bytes, WINDOW_MAX);
    }
}
