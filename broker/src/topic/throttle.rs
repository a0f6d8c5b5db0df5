//! The bound on publishing to a topic: two token buckets that may go into debt. Pure.
//!
//! What has arrived is always taken, because it cannot be given back; the debt is paid by not reading the connection it came
//! from. So the rate holds over time, and overshoots by one read of each connection.

use crate::namespace::PublishRate;
use geminga_common::clock::Mono;
use std::time::Duration;

/// Longest pause at a time: a debt may be longer, but signs of life must get through between.
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// Tokens of one kind; a second's worth may be saved up.
#[derive(Clone, PartialEq, Debug)]
struct Bucket {
    per_second: f64,
    tokens: f64,
}

impl Bucket {
    fn new(per_second: u64) -> Self {
        Self { per_second: per_second as f64, tokens: per_second as f64 }
    }

    /// How long until nothing is owed.
    fn take(&mut self, count: u64, elapsed: Duration) -> Duration {
        let saved = self.tokens + self.per_second * elapsed.as_secs_f64();
        self.tokens = saved.min(self.per_second) - count as f64;
        if self.tokens >= 0.0 {
            return Duration::ZERO;
        }
        // A tiny rate would owe more seconds than a duration holds.
        Duration::try_from_secs_f64(-self.tokens / self.per_second).unwrap_or(PAUSE_MAX)
    }
}

/// The bound of one topic.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Throttle {
    rate: PublishRate,
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
    at: Mono,
    until: Mono,
    times: u64,
}

impl Throttle {
    /// A bound by a rate of which a positive number bounds; `None` when neither does.
    pub(super) fn new(rate: PublishRate, now: Mono) -> Option<Self> {
        let bucket = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0).map(Bucket::new);
        let (messages, bytes) = (bucket(i64::from(rate.messages)), bucket(rate.bytes));
        let bounds = messages.is_some() || bytes.is_some();
        bounds.then_some(Self { rate, messages, bytes, at: now, until: Mono::ZERO, times: 0 })
    }

    /// What it bounds by.
    pub(super) fn rate(&self) -> PublishRate {
        self.rate
    }

    /// Messages have come; answers until when their connection is not to be read, if at all.
    pub(super) fn take(&mut self, messages: u64, bytes: u64, now: Mono) -> Option<Mono> {
        let elapsed = now.saturating_sub(self.at);
        self.at = now;
        let owed =
            |bucket: &mut Option<Bucket>, n| bucket.as_mut().map_or(Duration::ZERO, |b| b.take(n, elapsed));
        let pause = owed(&mut self.messages, messages).max(owed(&mut self.bytes, bytes)).min(PAUSE_MAX);
        if pause.is_zero() {
            return None;
        }
        self.times += 1;
        self.until = now + pause;
        Some(self.until)
    }

    /// Whether publishers are being slowed down.
    pub(super) fn is_holding(&self, now: Mono) -> bool {
        now < self.until
    }

    /// How often a connection was told to pause.
    pub(super) fn times(&self) -> u64 {
        self.times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Mono {
        Mono::ZERO + Duration::from_millis(n)
    }

    #[test]
    fn a_second_may_be_saved_up_and_a_debt_is_paid_in_time() {
        let mut throttle = Throttle::new(PublishRate { messages: 100, bytes: -1 }, ms(0)).expect("a bound");
        assert_eq!(throttle.take(100, 1 << 30, ms(0)), None);
        assert_eq!(throttle.take(50, 0, ms(0)), Some(ms(500)));
        assert!(throttle.is_holding(ms(499)) && !throttle.is_holding(ms(500)));
        assert_eq!(throttle.take(100, 0, ms(500)), Some(ms(1500)));
        assert_eq!(throttle.take(100, 0, ms(60_000)), None, "a second is saved, not a minute");
        assert_eq!(throttle.take(1, 0, ms(60_000)), Some(ms(60_010)));
        assert_eq!(throttle.times(), 3);
    }

    #[test]
    fn the_stricter_of_both_holds_and_signs_of_life_get_through() {
        let mut throttle = Throttle::new(PublishRate { messages: 1, bytes: 10 }, ms(0)).expect("a bound");
        assert_eq!(throttle.take(1, 20, ms(0)), Some(ms(1000)));
        assert_eq!(throttle.take(1_000_000, 0, ms(0)), Some(ms(20_000)));
        assert_eq!(Throttle::new(PublishRate { messages: 0, bytes: -1 }, ms(0)), None);
    }
}
