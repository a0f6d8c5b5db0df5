//! Trying again: exponential backoff with jitter.
//!
//! Owner: whoever makes the call. The waits are a pure function of attempt and random source, so that machines can use them;
//! [`run`] is the driver for plain async code, and dropping its future ends it. Half of each wait is fixed and half random:
//! all-random waits are sometimes none at all, and fixed ones keep those who failed together together.

use crate::rng::Rng;
use std::future::Future;
use std::time::Duration;

/// How long to wait between attempts, and how often to try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    /// Longest wait after the first failure.
    pub first: Duration,
    /// Longest wait ever; each failure doubles the wait up to here.
    pub max: Duration,
    /// Attempts in all, the first one included; `None` is without end.
    pub attempts_max: Option<u32>,
}

impl Backoff {
    /// The wait after failure number `failure`, counted from 0; between half and the whole of its bound.
    #[must_use]
    pub fn delay(&self, failure: u32, rng: &mut Rng) -> Duration {
        let factor = 2_u32.checked_pow(failure).unwrap_or(u32::MAX);
        let bound = self.first.saturating_mul(factor).min(self.max);
        let fixed = bound / 2;
        let random_nanos = u64::try_from((bound - fixed).as_nanos()).unwrap_or(u64::MAX - 1);
        fixed + Duration::from_nanos(rng.below(random_nanos.saturating_add(1)))
    }

    /// The waits one after the other; ends when there are no attempts left.
    pub fn delays<'r>(&self, rng: &'r mut Rng) -> impl Iterator<Item = Duration> + use<'r> {
        let backoff = *self;
        let waits_max = backoff.attempts_max.map_or(u32::MAX, |attempts| attempts.saturating_sub(1));
        (0..waits_max).map(move |failure| backoff.delay(failure, rng))
    }
}

/// Calls until a call succeeds, fails for good, or the attempts are used up; answers the last outcome. At least one call is
/// made.
///
/// # Errors
/// The last call's.
pub async fn run<T, E, F: Future<Output = Result<T, E>>>(
    backoff: Backoff,
    rng: &mut Rng,
    is_retryable: impl Fn(&E) -> bool,
    mut call: impl FnMut() -> F,
) -> Result<T, E> {
    let mut delays = backoff.delays(rng);
    loop {
        match call().await {
            Err(error) if is_retryable(&error) => match delays.next() {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(error),
            },
            settled => return settled,
        }
    }
}

/// When to speak of something that goes on for long: at once, a second later, and then at twice the distance each time, up to 30 s.
/// Pure: the caller tells how long it has gone on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reminders {
    next: Duration,
    spoken: u32,
}

impl Reminders {
    /// Longest silence.
    pub const SILENCE_MAX: Duration = Duration::from_secs(30);

    /// Whether to speak now, `since` the trouble began.
    pub fn due(&mut self, since: Duration) -> bool {
        if since < self.next {
            return false;
        }
        let distance = Duration::from_secs(1).saturating_mul(2_u32.saturating_pow(self.spoken));
        self.next = since + distance.min(Self::SILENCE_MAX);
        self.spoken += 1;
        true
    }

    /// Whether anything was said, so that its end is worth a word as well.
    #[must_use]
    pub fn has_spoken(&self) -> bool {
        self.spoken > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;
    use std::cell::Cell;

    #[test]
    fn reminders_come_at_once_and_then_ever_more_seldom() {
        let mut reminders = Reminders::default();
        assert!(!reminders.has_spoken());
        // Asked five times a second, for five minutes.
        let asked = (0..1500).map(|n| Duration::from_millis(n * 200));
        let said: Vec<u64> = asked.filter(|since| reminders.due(*since)).map(|at| at.as_secs()).collect();
        assert_eq!(said, [0, 1, 3, 7, 15, 31, 61, 91, 121, 151, 181, 211, 241, 271]);
        assert!(reminders.has_spoken());
    }

    const QUICK: Backoff =
        Backoff { first: Duration::from_micros(1), max: Duration::from_micros(8), attempts_max: Some(4) };

    #[tokio::test]
    async fn tries_until_it_works_or_may_not_go_on() {
        let calls = Cell::new(0);
        let outcome_of = async |good_call: u32, retryable: bool| {
            calls.set(0);
            let mut rng = Rng::seeded(1);
            let call = || {
                calls.set(calls.get() + 1);
                std::future::ready(if calls.get() == good_call { Ok(good_call) } else { Err(calls.get()) })
            };
            run(QUICK, &mut rng, |_| retryable, call).await
        };
        assert_eq!((outcome_of(1, true).await, calls.get()), (Ok(1), 1));
        assert_eq!((outcome_of(3, true).await, calls.get()), (Ok(3), 3));
        assert_eq!((outcome_of(9, true).await, calls.get()), (Err(4), 4));
        assert_eq!((outcome_of(3, false).await, calls.get()), (Err(1), 1));
    }

    #[test]
    fn delays_repeat_for_a_seed_and_end() {
        let delays = |seed| QUICK.delays(&mut Rng::seeded(seed)).collect::<Vec<_>>();
        assert_eq!(delays(7), delays(7));
        assert_eq!(delays(7).len(), 3);
        let endless = Backoff { attempts_max: None, ..QUICK };
        assert_eq!(endless.delays(&mut Rng::seeded(7)).take(1000).count(), 1000);
    }

    proptest! {
        #[test]
        fn a_wait_is_between_half_and_its_bound(first in 0_u64..1 << 40, max in 0_u64..1 << 50, failure: u32, seed: u64) {
            let backoff = Backoff {
                first: Duration::from_nanos(first),
                max: Duration::from_nanos(max),
                attempts_max: None,
            };
            let exact = u128::from(first) << failure.min(60);
            let bound = Duration::from_nanos(exact.min(u128::from(max)) as u64);
            let delay = backoff.delay(failure, &mut Rng::seeded(seed));
            if failure < 32 {
                prop_assert!(delay >= bound / 2 && delay <= bound, "{delay:?} of {bound:?}");
            }
            prop_assert!(delay <= backoff.max);
        }
    }
}
