//! When to ask a second holder: after the 95th percentile of reads of the same class, and in at most one read of twenty.
//!
//! Pure but for its lock. A slow bookie then costs a reader one percentile instead of a deadline; a cluster that is slow as a whole
//! is not asked everything twice, because the budget runs out: then a holder is passed over after [`PATIENCE`] only.

use crate::rpc::ReadClass;
use parking_lot::Mutex;
use std::time::Duration;

/// A holder that has not answered by then is passed over while others are left, whatever the budget.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// Bounds of the percentile, and what it counts as before there are samples.
const SHORTEST: Duration = Duration::from_millis(2);
const UNKNOWN: Duration = Duration::from_millis(100);
const SAMPLES_MIN: u32 = 64;
/// Counts are halved here, so that old times fade.
const SAMPLES_MAX: u32 = 4096;
/// A read earns this many thousandths of a second question; so many may be saved.
const EARNED: u32 = 50;
const SAVED_MAX: u32 = 10_000;
/// Four buckets for each doubling, from 1 µs up.
const BUCKETS: usize = 4 * 26;

#[derive(Debug)]
struct Class {
    counts: [u32; BUCKETS],
    samples: u32,
    saved: u32,
}

impl Default for Class {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], samples: 0, saved: SAVED_MAX / 2 }
    }
}

/// Times and budgets of one client's reads.
#[derive(Debug, Default)]
pub(crate) struct Hedge([Mutex<Class>; 3]);

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(4);
    let octave = micros.ilog2();
    // The two bits after the leading one.
    let quarter = (micros >> (octave - 2)) & 3;
    ((octave as usize - 2) * 4 + quarter as usize).min(BUCKETS - 1)
}

/// The upper end of a bucket.
fn end(bucket: usize) -> Duration {
    let (octave, quarter) = (bucket / 4, bucket as u64 % 4);
    Duration::from_micros((5 + quarter) << octave)
}

impl Hedge {
    fn class(&self, class: ReadClass) -> &Mutex<Class> {
        &self.0[match class {
            ReadClass::Tail => 0,
            ReadClass::CatchUp => 1,
            ReadClass::Repair => 2,
        }]
    }

    /// A read begins; answers when to ask a second holder.
    pub(super) fn begin(&self, class: ReadClass) -> Duration {
        let mut class = self.class(class).lock();
        class.saved = (class.saved + EARNED).min(SAVED_MAX);
        if class.samples < SAMPLES_MIN {
            return UNKNOWN;
        }
        let (mut below, rank) = (0, class.samples - class.samples / 20);
        let at = class.counts.iter().position(|count| {
            below += count;
            below >= rank
        });
        at.map_or(UNKNOWN, end).clamp(SHORTEST, PATIENCE)
    }

    /// A read found what it wanted.
    pub(super) fn found(&self, class: ReadClass, took: Duration) {
        let mut class = self.class(class).lock();
        class.counts[bucket(took)] += 1;
        class.samples += 1;
        if class.samples >= SAMPLES_MAX {
            class.counts.iter_mut().for_each(|count| *count /= 2);
            class.samples = class.counts.iter().sum();
        }
    }

    /// Whether a second question may be asked now; counts it.
    pub(super) fn spend(&self, class: ReadClass) -> bool {
        let mut class = self.class(class).lock();
        let left = class.saved.checked_sub(1000);
        class.saved = left.unwrap_or(class.saved);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_a_quarter_of_a_doubling_wide() {
        for micros in (4..5000).chain([1 << 20, (1 << 27) - 1]) {
            let took = Duration::from_micros(micros);
            let end = end(bucket(took));
            assert!(
                end > took && end <= took.mul_f64(1.26) + Duration::from_micros(1),
                "{took:?} below {end:?}"
            );
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!(bucket(Duration::ZERO), 0);
    }

    #[test]
    fn the_percentile_is_of_the_class_and_fades() {
        let hedge = Hedge::default();
        assert_eq!(hedge.begin(ReadClass::Tail), UNKNOWN);
        for n in 0..1000 {
            let millis = if n % 100 < 6 { 80 } else { 5 };
            hedge.found(ReadClass::Tail, Duration::from_millis(millis));
        }
        let after = hedge.begin(ReadClass::Tail);
        assert!(after > Duration::from_millis(79) && after < Duration::from_millis(110), "{after:?}");
        assert_eq!(hedge.begin(ReadClass::CatchUp), UNKNOWN, "not of this class");
        (0..20_000).for_each(|_| hedge.found(ReadClass::Tail, Duration::from_millis(5)));
        assert!(hedge.begin(ReadClass::Tail) < Duration::from_millis(8));
    }

    #[test]
    fn one_read_of_twenty_may_be_asked_twice() {
        let hedge = Hedge::default();
        let mut asked = 0;
        for _ in 0..10_000 {
            hedge.begin(ReadClass::Tail);
            asked += u32::from(hedge.spend(ReadClass::Tail));
        }
        assert!((500..=510).contains(&asked), "{asked}");
    }
}
