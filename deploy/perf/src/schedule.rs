//! The open-loop schedule of a run: pure, time passed in.
//!
//! Every producer has its own evenly spaced send times, shifted against the others' so that together they make the asked
//! rate. A producer whose window is full keeps its place in time: when receipts free it, all messages that fell due
//! meanwhile go out with the send times they should have had. At rate 0 there are no send times: a message is due when the
//! window has room for it.

use geminga_common::clock::Mono;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Send times of one producer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    start: Mono,
    /// Nanoseconds between two messages of this producer; 0 for no schedule.
    interval_ns: f64,
}

impl Pace {
    /// The pace of producer `index` of `producers` that share `rate` messages per second from `start` on.
    pub(crate) fn new(start: Mono, rate: f64, index: usize, producers: usize) -> Self {
        if rate <= 0.0 {
            return Self { start, interval_ns: 0.0 };
        }
        let interval_ns = 1e9 * producers as f64 / rate;
        let shift = interval_ns * index as f64 / producers as f64;
        Self { start: start + Duration::from_nanos(shift as u64), interval_ns }
    }

    /// When message `n` of this producer should leave; `now` at rate 0.
    pub(crate) fn due(&self, n: u64, now: Mono) -> Mono {
        if self.interval_ns == 0.0 {
            return now;
        }
        self.start + Duration::from_nanos((self.interval_ns * n as f64) as u64)
    }
}

/// Which producer is to be looked at next, and when.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    times: BinaryHeap<Reverse<(Mono, usize)>>,
}

impl Agenda {
    /// Notes that producer `index` has something to do at `at`.
    pub(crate) fn add(&mut self, at: Mono, index: usize) {
        self.times.push(Reverse((at, index)));
    }

    /// The next producer whose time has come.
    pub(crate) fn pop_due(&mut self, now: Mono) -> Option<usize> {
        let Reverse((at, index)) = *self.times.peek()?;
        if at > now {
            return None;
        }
        self.times.pop();
        Some(index)
    }

    /// Time of the earliest note.
    pub(crate) fn next_at(&self) -> Option<Mono> {
        self.times.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn producers_together_make_the_rate() {
        let paces: Vec<Pace> = (0..4).map(|i| Pace::new(Mono::ZERO, 1000.0, i, 4)).collect();
        let mut times: Vec<Mono> = Vec::new();
        for pace in &paces {
            times.extend((0..250).map(|n| pace.due(n, Mono::ZERO)));
        }
        times.sort();
        for (k, at) in times.iter().enumerate() {
            assert_eq!(at.as_micros(), k as u128 * 1000);
        }
    }

    #[test]
    fn without_a_rate_everything_is_due_now() {
        let pace = Pace::new(Mono::ZERO, 0.0, 0, 1);
        let now = Duration::from_secs(7);
        assert_eq!(pace.due(1_000_000, now), now);
    }

    #[test]
    fn the_schedule_does_not_drift() {
        let pace = Pace::new(Mono::ZERO, 3.0, 0, 1);
        assert_eq!(pace.due(3 * 86_400, Mono::ZERO).as_secs(), 86_400);
    }

    #[test]
    fn the_agenda_hands_out_by_time() {
        let mut agenda = Agenda::default();
        agenda.add(Duration::from_millis(5), 1);
        agenda.add(Duration::from_millis(2), 2);
        assert_eq!(agenda.pop_due(Duration::from_millis(1)), None);
        assert_eq!(agenda.next_at(), Some(Duration::from_millis(2)));
        assert_eq!(agenda.pop_due(Duration::from_millis(9)), Some(2));
        assert_eq!(agenda.pop_due(Duration::from_millis(9)), Some(1));
        assert_eq!(agenda.pop_due(Duration::from_millis(9)), None);
    }
}
