//! What others bring about as often as they like (connections that speak another protocol, requests that fail for the same reason): told
//! in the log, but not one line for each, since whoever does it comes back at once and for ever.
//!
//! Pure: the caller tells the time.

use geminga_common::clock::Mono;
use parking_lot::Mutex;
use std::time::Duration;

/// Between two lines.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct State {
    quiet_until: Option<Mono>,
    untold: u64,
}

/// What was told of one kind of trouble, and when.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<State>);

impl Seldom {
    /// It happened again. How many went without a word since the last line; `None`: this one is among them.
    pub(crate) fn again(&self, now: Mono) -> Option<u64> {
        let mut state = self.0.lock();
        if state.quiet_until.is_some_and(|until| now < until) {
            state.untold += 1;
            return None;
        }
        state.quiet_until = Some(now + SILENCE);
        Some(std::mem::take(&mut state.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_then_one_in_ten_seconds_with_the_number_of_the_others() {
        let trouble = Seldom::default();
        // Four a second, for 25 seconds.
        let at = |n: u64| Mono::ZERO + Duration::from_millis(n * 250);
        let told: Vec<(u64, u64)> =
            (0..100).filter_map(|n| trouble.again(at(n)).map(|untold| (n, untold))).collect();
        assert_eq!(told, [(0, 0), (40, 39), (80, 39)]);
    }
}
