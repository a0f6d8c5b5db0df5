//! What a payload carries: a mark, the intended send time in microseconds since 1970, then bytes of which half are random,
//! so that a compressing disk or server is not flattered.
//!
//! The time must be comparable between two processes of one machine and finer than a millisecond, while the clock seam has
//! a wall clock of milliseconds and a monotonic clock without epoch. [`WallClock`] joins them: it watches for the moment at
//! which the millisecond turns and counts monotonic time from there.

use geminga_common::clock::{Clock, Mono};
use geminga_common::rng::Rng;
use std::sync::Arc;
use std::time::Duration;

/// Opens a stamped payload.
const MARK: [u8; 8] = *b"gm-perf\x01";
/// Bytes a stamp takes.
pub(crate) const STAMP: usize = 16;

/// Wall-clock time in microseconds.
#[derive(Clone)]
pub(crate) struct WallClock {
    clock: Arc<dyn Clock>,
    /// Microseconds since 1970 at monotonic zero.
    epoch_us: u64,
}

impl WallClock {
    /// Calibrates for up to two milliseconds, without sleeping.
    pub(crate) fn calibrate(clock: Arc<dyn Clock>) -> Self {
        let before = clock.wall_ms();
        let begun = clock.mono();
        loop {
            let (wall_ms, mono) = (clock.wall_ms(), clock.mono());
            if wall_ms != before || mono.saturating_sub(begun) > Duration::from_millis(2) {
                let epoch_us = (wall_ms * 1000).saturating_sub(mono.as_micros() as u64);
                return Self { clock, epoch_us };
            }
        }
    }

    /// Monotonic time now.
    pub(crate) fn mono(&self) -> Mono {
        self.clock.mono()
    }

    /// Microseconds since 1970 at a monotonic time.
    pub(crate) fn wall_us(&self, at: Mono) -> u64 {
        self.epoch_us + at.as_micros() as u64
    }
}

/// Makes payloads of one size.
#[derive(Debug)]
pub(crate) struct Payloads {
    bytes: Vec<u8>,
}

impl Payloads {
    /// Payloads of `size` bytes.
    pub(crate) fn new(size: usize, rng: &mut Rng) -> Self {
        let mut bytes = vec![b'.'; size];
        for chunk in bytes[..size.div_ceil(2)].chunks_mut(8) {
            chunk.copy_from_slice(&rng.next_u64().to_be_bytes()[..chunk.len()]);
        }
        Self { bytes }
    }

    /// The next payload, stamped where there is room.
    pub(crate) fn next(&mut self, intended_us: u64) -> &[u8] {
        if let Some((mark, time)) = self.bytes.get_mut(..STAMP).map(|head| head.split_at_mut(8)) {
            mark.copy_from_slice(&MARK);
            time.copy_from_slice(&intended_us.to_be_bytes());
        }
        &self.bytes
    }
}

/// The intended send time a payload carries, in microseconds since 1970.
pub(crate) fn read(payload: &[u8]) -> Option<u64> {
    let time = payload.strip_prefix(&MARK)?.first_chunk::<8>()?;
    Some(u64::from_be_bytes(*time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_common::clock::SystemClock;

    #[test]
    fn a_stamp_comes_back() {
        let mut payloads = Payloads::new(100, &mut Rng::seeded(1));
        assert_eq!(read(payloads.next(77)), Some(77));
        assert_eq!(payloads.next(77).len(), 100);
        assert_eq!(read(Payloads::new(10, &mut Rng::seeded(1)).next(77)), None);
        assert_eq!(read(b"something else, long enough"), None);
    }

    #[test]
    fn the_joined_clock_agrees_with_the_wall_clock() {
        let clock = SystemClock::shared();
        let joined = WallClock::calibrate(clock.clone());
        let joined_us = joined.wall_us(joined.mono());
        assert!(joined_us.abs_diff(clock.wall_ms() * 1000) < 50_000);
    }
}
