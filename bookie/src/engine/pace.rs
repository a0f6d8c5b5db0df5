//! How fast readers far from the tail may go: a bucket of bytes whose rate shrinks while the journal is slower than it can be, and
//! grows back when it is not, or when nobody adds. Pure, but for the figure that journal threads leave behind.

use geminga_common::clock::Mono;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes a second: never less, so that catching up always ends, and never more, which is no limit.
const RATE_MIN: f64 = (8 << 20) as f64;
const RATE_MAX: f64 = (4_u64 << 30) as f64;
/// The rate is looked at this often.
const EVERY: Duration = Duration::from_millis(100);
/// Bytes that may be spent at once, as a part of a second.
const BURST: f64 = 0.1;
/// The journal is slow when a write takes twice as long as it can, and this much longer, in microseconds.
const SLACK_US: f64 = 300.0;

/// How long journal writes take of late. Updates may be lost to each other: it is a tendency, not a count.
#[derive(Default)]
pub(super) struct Latency {
    mean_ns: AtomicU64,
    writes: AtomicU64,
}

impl Latency {
    pub(super) fn sample(&self, took: Duration) {
        let (took, mean) = (took.as_nanos() as u64, self.mean_ns.load(Ordering::Relaxed));
        let next = if mean == 0 { took } else { mean - mean / 8 + took / 8 };
        self.mean_ns.store(next.max(1), Ordering::Relaxed);
        self.writes.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) struct Pacer {
    rate: f64,
    tokens: f64,
    at: Mono,
    adjusted: Mono,
    writes: u64,
    /// The best that the journal does, in microseconds; rises slowly, for devices change.
    best_us: f64,
}

impl Default for Pacer {
    fn default() -> Self {
        let tokens = RATE_MAX * BURST;
        Self { rate: RATE_MAX, tokens, at: Mono::ZERO, adjusted: Mono::ZERO, writes: 0, best_us: f64::MAX }
    }
}

impl Pacer {
    /// How long a reader has to wait; `None`: not at all.
    pub(super) fn wait(&mut self, now: Mono, latency: &Latency) -> Option<Duration> {
        if now.saturating_sub(self.adjusted) >= EVERY {
            self.adjusted = now;
            self.adjust(latency);
        }
        let gone = now.saturating_sub(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + gone * self.rate).min(self.rate * BURST);
        (self.tokens < 0.0).then(|| Duration::from_secs_f64((-self.tokens / self.rate).max(0.001)))
    }

    /// Bytes were read. The bucket may be overdrawn: how much a read takes is known afterwards.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.tokens -= bytes as f64;
    }

    fn adjust(&mut self, latency: &Latency) {
        let writes = latency.writes.load(Ordering::Relaxed);
        let idle = std::mem::replace(&mut self.writes, writes) == writes;
        if idle {
            self.rate = (self.rate * 2.0).min(RATE_MAX);
            return;
        }
        let mean_us = latency.mean_ns.load(Ordering::Relaxed) as f64 / 1000.0;
        self.best_us = (self.best_us * 1.01).min(mean_us);
        let slow = mean_us > self.best_us * 2.0 && mean_us > self.best_us + SLACK_US;
        // Down fast, up slowly.
        self.rate = if slow {
            (self.rate.min(RATE_MAX / 8.0) * 0.7).max(RATE_MIN)
        } else {
            (self.rate * 1.1).min(RATE_MAX)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pacer: &mut Pacer, latency: &Latency, from_ms: u64, for_ms: u64, write_us: Option<u64>) -> u64 {
        let mut read = 0;
        for ms in from_ms..from_ms + for_ms {
            if let Some(us) = write_us {
                latency.sample(Duration::from_micros(us));
            }
            while read < 10 << 30 && pacer.wait(Mono::ZERO + Duration::from_millis(ms), latency).is_none() {
                pacer.spend(1 << 20);
                read += 1 << 20;
            }
        }
        read
    }

    #[test]
    fn readers_slow_down_while_the_journal_is_slow_and_never_stop() {
        let (mut pacer, latency) = (Pacer::default(), Latency::default());
        let calm = run(&mut pacer, &latency, 0, 1000, Some(200));
        assert!(calm > 1 << 30, "{calm}");
        run(&mut pacer, &latency, 1000, 3000, Some(5000));
        let slow = run(&mut pacer, &latency, 4000, 1000, Some(5000));
        assert!(((7 << 20)..(64 << 20)).contains(&slow), "{slow}");
        let idle = run(&mut pacer, &latency, 5000, 2000, None);
        assert!(idle > 1 << 30, "{idle}: nobody is disturbed");
    }

    #[test]
    fn a_large_read_is_paid_for_afterwards() {
        let (mut pacer, latency) = (Pacer::default(), Latency::default());
        pacer.rate = 1e6;
        pacer.adjusted = Mono::ZERO + Duration::from_secs(100);
        assert_eq!(pacer.wait(Mono::ZERO, &latency), None);
        pacer.spend(1_100_000);
        let wait = pacer.wait(Mono::ZERO, &latency).unwrap();
        assert_eq!(wait, Duration::from_secs(1));
        assert_eq!(pacer.wait(Mono::ZERO + wait, &latency), None);
    }
}
