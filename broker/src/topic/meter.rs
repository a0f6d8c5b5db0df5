//! Counters with rates over the last minute or half of it. Pure, and without a timer: windows move when something is counted, and
//! when somebody asks; what is idle costs nothing.

use geminga_common::clock::Mono;
use std::time::Duration;

/// A rate is a mean over one to two of these.
const HALF: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Debug)]
struct Mark<const N: usize> {
    at: Mono,
    totals: [u64; N],
}

/// `N` counters that move together.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Meter<const N: usize> {
    totals: [u64; N],
    /// When something was counted last.
    counted: Mono,
    /// Start of the window.
    from: Mark<N>,
    /// Where the window's start moves next.
    next: Mark<N>,
}

impl<const N: usize> Meter<N> {
    /// Zeros.
    pub(crate) fn new(now: Mono) -> Self {
        let mark = Mark { at: now, totals: [0; N] };
        Self { totals: [0; N], counted: now, from: mark, next: mark }
    }

    /// Counts.
    pub(crate) fn add(&mut self, more: [u64; N], now: Mono) {
        self.roll(now);
        self.totals.iter_mut().zip(more).for_each(|(total, more)| *total += more);
        self.counted = now;
    }

    /// A second's share of each counter.
    pub(crate) fn rates(mut self, now: Mono) -> [f64; N] {
        self.roll(now);
        // What has just begun is not blown up.
        let seconds = now.saturating_sub(self.from.at).as_secs_f64().max(1.0);
        std::array::from_fn(|n| self.totals[n].saturating_sub(self.from.totals[n]) as f64 / seconds)
    }

    fn roll(&mut self, now: Mono) {
        if now < self.next.at + HALF {
            return;
        }
        let mark = Mark { at: now, totals: self.totals };
        // After a pause longer than the window all of it is over.
        self.from = if now >= self.counted + 2 * HALF { mark } else { self.next };
        self.next = mark;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_steady_stream_has_its_rate() {
        let mut meter = Meter::new(at(0));
        for second in 1..=300 {
            meter.add([10, 1000], at(second));
            let [messages, bytes] = meter.rates(at(second));
            assert!(
                (messages - 10.0).abs() <= 0.5 && (bytes - 1000.0).abs() <= 50.0,
                "{second}: {messages} {bytes}"
            );
        }
    }

    #[test]
    fn a_burst_is_forgotten_within_a_minute_and_a_half_of_silence() {
        let mut meter = Meter::new(at(0));
        meter.add([600], at(1));
        assert!(meter.rates(at(10))[0] >= 60.0);
        assert!(meter.rates(at(40))[0] >= 15.0);
        assert_eq!(meter.rates(at(61)), [0.0], "nothing happened for a minute");
        meter.add([1], at(3600));
        assert!(meter.rates(at(3600))[0] <= 1.0, "the hour before does not count");
    }

    #[test]
    fn a_change_of_pace_shows_within_the_window() {
        let mut meter = Meter::new(at(0));
        (1..=600).for_each(|second| meter.add([100], at(second)));
        (601..=661).for_each(|second| meter.add([1], at(second)));
        let [rate] = meter.rates(at(661));
        assert!((1.0..=2.0).contains(&rate), "{rate}");
    }
}
