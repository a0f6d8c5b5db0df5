//! When an open ledger that lacks copies from before is closed, so that repair may begin: some seconds after its last vacant slot was
//! filled, by chance a bit later, and later with each time it happens again soon: a bookie that comes and goes must not roll ledgers
//! all the time. Pure; without anything due there is no deadline, so that healthy ledgers cost no timer.

use geminga_common::clock::Mono;
use geminga_common::rng::Rng;
use std::time::Duration;

/// The shortest delay.
const FIRST: Duration = Duration::from_secs(3);
/// The longest, without chance.
const LONGEST: Duration = Duration::from_secs(300);
/// Without such a roll for so long the delay is short again.
const QUIET: Duration = Duration::from_secs(1200);

/// The delay of one owner's rolls.
#[derive(Debug, Default)]
pub(crate) struct RepairRoll {
    due: Option<Mono>,
    rolled: Option<Mono>,
    times: u32,
}

impl RepairRoll {
    /// Whether repair is due for the open ledger now; when it no longer is, a new vacancy say, waiting starts anew.
    pub(crate) fn observe(&mut self, wanted: bool, now: Mono, rng: &mut Rng) {
        if !wanted {
            self.due = None;
        } else if self.due.is_none() {
            if self.rolled.is_none_or(|rolled| now >= rolled + QUIET) {
                self.times = 0;
            }
            let delay = (FIRST * 2_u32.pow(self.times.min(10))).min(LONGEST);
            let chance = Duration::from_millis(rng.below(delay.as_millis() as u64 + 1));
            self.due = Some(now + delay + chance);
        }
    }

    /// When the ledger is to be closed.
    pub(crate) fn due(&self) -> Option<Mono> {
        self.due
    }

    /// Whether that is now.
    pub(crate) fn is_due(&self, now: Mono) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// It is being closed.
    pub(crate) fn rolled(&mut self, now: Mono) {
        *self = Self { due: None, rolled: Some(now), times: self.times + 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_some_seconds_and_longer_each_time_until_it_was_quiet() {
        let (mut roll, mut rng) = (RepairRoll::default(), Rng::seeded(1));
        let mut now = Duration::from_secs(100);
        roll.observe(false, now, &mut rng);
        assert_eq!(roll.due(), None, "healthy: no timer");
        let mut delays = Vec::new();
        for _ in 0..9 {
            roll.observe(true, now, &mut rng);
            let due = roll.due().unwrap();
            delays.push((due - now).as_secs_f64());
            assert!(!roll.is_due(due - Duration::from_millis(1)) && roll.is_due(due));
            now = due;
            roll.rolled(now);
        }
        assert!((3.0..=6.0).contains(&delays[0]) && (6.0..=12.0).contains(&delays[1]), "{delays:?}");
        assert!(delays[8] <= 600.0, "{delays:?}");
        // A vacancy in between: from the start.
        roll.observe(true, now, &mut rng);
        roll.observe(false, now, &mut rng);
        assert_eq!(roll.due(), None);
        now += QUIET;
        roll.observe(true, now, &mut rng);
        assert!(roll.due().unwrap() <= now + 2 * FIRST);
    }
}
