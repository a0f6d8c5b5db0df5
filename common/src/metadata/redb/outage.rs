//! What a failing disk does to the store, as a pure machine: time comes in as an argument, and it says what may be done when.
//!
//! ```text
//!            a read, draft or commit failed            reopened
//!  Serving ────────────────────────────────▶ Closed ────────────▶ Reading
//!     ▲                                       ▲  │ cannot be opened  │ │
//!     │                                       ├──┘                   │ │ no room yet: later
//!     │                                       └── read or trial failed ┘
//!     └───────────────── a trial commit became durable ──────────────┘
//! ```
//!
//! - *Serving*: everything. *Reading*: reads are answered, writes are refused. *Closed*: both are refused. No write of a caller is
//!   ever the trial: who asks while the disk is bad is told so, and nothing of his is in doubt.
//! - The first reopening and the first trial follow at once, later ones after pauses that double up to [`PAUSE_MAX`]. A failure
//!   soon after a recovery goes on where the pauses were, so that a disk that works now and then makes no flood of log lines.
//! - Each outage is spoken of twice, at its begin and at its end; and once more when only a person can end it.

use crate::clock::Mono;
use std::time::Duration;

/// Pause after the second failure; the first is tried again at once.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause: how long after the disk works again it may go unnoticed.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// After this long without a failure the pauses begin anew.
const STEADY: Duration = Duration::from_secs(60);

/// What the store does for its callers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Everything.
    Serving,
    /// It reads; writes are refused.
    Reading,
    /// Nothing: the database is shut.
    Closed,
}

/// What can be done about a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cure {
    /// Room on the disk.
    Room,
    /// A disk that works.
    Disk,
    /// A person: the file is damaged, or not the one that was open.
    Person,
}

/// Why the store does not serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reason {
    /// What failed, on which file, in the system's words.
    pub(super) what: String,
    /// What ends it.
    pub(super) cure: Cure,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let next = match self.cure {
            Cure::Room => "make room on its file system; it then goes on by itself",
            Cure::Disk => "it is tried again until the disk works; see the system's log",
            Cure::Person => {
                "stop, put the file back from a copy made together with the store, and start again"
            }
        };
        write!(f, "{}; {next}", self.what)
    }
}

/// The machine.
#[derive(Debug)]
pub(super) struct Outage {
    phase: Phase,
    reason: Option<Reason>,
    /// When the present outage began.
    began: Mono,
    /// When the last one ended.
    ended: Option<Mono>,
    failures: u32,
    reopen_at: Mono,
    trial_at: Mono,
    called_person: bool,
}

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// Open the database again.
    Reopen,
    /// Try whether a commit becomes durable.
    Trial,
}

/// What an event is worth in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Say {
    /// Nothing: it was said already.
    Nothing,
    /// The outage begins.
    Failed,
    /// It takes a person.
    CallPerson,
}

impl Default for Outage {
    fn default() -> Self {
        Self {
            phase: Phase::Serving,
            reason: None,
            began: Mono::ZERO,
            ended: None,
            failures: 0,
            reopen_at: Mono::ZERO,
            trial_at: Mono::ZERO,
            called_person: false,
        }
    }
}

impl Outage {
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Why requests are refused now.
    pub(super) fn reason(&self) -> Option<&Reason> {
        self.reason.as_ref().filter(|_| self.phase != Phase::Serving)
    }

    /// When something is to be done; `None` while all is well.
    pub(super) fn next(&self) -> Option<Mono> {
        match self.phase {
            Phase::Serving => None,
            Phase::Reading => Some(self.trial_at),
            Phase::Closed => Some(self.reopen_at),
        }
    }

    /// What is to be done at `now`.
    pub(super) fn due(&self, now: Mono) -> Option<Due> {
        let due = if self.phase == Phase::Closed { Due::Reopen } else { Due::Trial };
        self.next().filter(|at| *at <= now).map(|_| due)
    }

    /// The open database failed: it is shut.
    pub(super) fn failed(&mut self, reason: Reason, now: Mono) -> Say {
        let begins = self.phase == Phase::Serving;
        if begins {
            if self.ended.is_none_or(|ended| now.saturating_sub(ended) >= STEADY) {
                self.failures = 0;
            }
            (self.began, self.called_person) = (now, false);
        }
        (self.phase, self.reopen_at) = (Phase::Closed, now);
        self.count(reason, now);
        if begins { Say::Failed } else { Say::Nothing }
    }

    /// It cannot be opened again.
    pub(super) fn not_reopened(&mut self, reason: Reason, now: Mono) -> Say {
        let call = reason.cure == Cure::Person && !self.called_person;
        self.called_person |= call;
        self.count(reason, now);
        self.reopen_at = self.trial_at;
        if call { Say::CallPerson } else { Say::Nothing }
    }

    /// It is open again.
    pub(super) fn reopened(&mut self) {
        self.phase = Phase::Reading;
    }

    /// There is no room yet, so nothing was tried.
    pub(super) fn no_room(&mut self, now: Mono) {
        self.failures = self.failures.saturating_add(1);
        self.trial_at = now + pause(self.failures);
    }

    /// A trial commit is durable; how long the outage was.
    pub(super) fn recovered(&mut self, now: Mono) -> Duration {
        self.phase = Phase::Serving;
        self.ended = Some(now);
        now.saturating_sub(self.began)
    }

    fn count(&mut self, reason: Reason, now: Mono) {
        self.reason = Some(reason);
        self.trial_at = now + pause(self.failures);
        self.failures = self.failures.saturating_add(1);
    }
}

/// The pause before what follows failure number `failures`, counted from 0.
fn pause(failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    PAUSE_FIRST.saturating_mul(2_u32.checked_pow(doublings).unwrap_or(u32::MAX)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Reason {
        Reason { what: "committing to m failed: full".into(), cure: Cure::Room }
    }

    fn ms(millis: u64) -> Mono {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_passing_failure_is_over_at_once_and_is_spoken_of_once() {
        let mut outage = Outage::default();
        assert_eq!((outage.next(), outage.reason()), (None, None));
        assert_eq!(outage.failed(full(), ms(1000)), Say::Failed);
        assert_eq!((outage.phase(), outage.due(ms(1000))), (Phase::Closed, Some(Due::Reopen)));
        outage.reopened();
        assert_eq!((outage.phase(), outage.due(ms(1000))), (Phase::Reading, Some(Due::Trial)));
        assert!(outage.reason().unwrap().to_string().contains("make room"));
        assert_eq!(outage.recovered(ms(1001)), ms(1));
        assert_eq!((outage.phase(), outage.next(), outage.reason()), (Phase::Serving, None, None));
    }

    #[test]
    fn pauses_grow_up_to_their_limit_and_reading_goes_on_meanwhile() {
        let mut outage = Outage::default();
        outage.failed(full(), ms(0));
        outage.reopened();
        let (mut now, mut pauses) = (ms(0), Vec::new());
        for _ in 0..9 {
            assert_eq!(outage.due(now), Some(Due::Trial));
            assert_eq!(outage.failed(full(), now), Say::Nothing, "one outage, one word");
            assert_eq!(outage.due(now), Some(Due::Reopen), "reads need not wait for the pause");
            outage.reopened();
            let next = outage.next().unwrap();
            assert_eq!(outage.due(next - ms(1)), None);
            pauses.push((next - now).as_millis());
            now = next;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        outage.no_room(now);
        assert_eq!((outage.phase(), outage.next().unwrap() - now), (Phase::Reading, PAUSE_MAX));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_left_in_peace_between_attempts_and_calls_a_person_once() {
        let mut outage = Outage::default();
        outage.failed(full(), ms(0));
        let damaged = Reason { what: "opening m failed: damaged".into(), cure: Cure::Person };
        assert_eq!(outage.not_reopened(damaged.clone(), ms(0)), Say::CallPerson);
        assert_eq!((outage.phase(), outage.due(ms(99))), (Phase::Closed, None));
        assert_eq!(outage.due(ms(100)), Some(Due::Reopen));
        assert_eq!(outage.not_reopened(damaged, ms(100)), Say::Nothing);
        assert_eq!(outage.next(), Some(ms(300)));
    }

    #[test]
    fn a_disk_that_works_now_and_then_earns_no_fresh_start() {
        let mut outage = Outage::default();
        for _ in 0..4 {
            outage.failed(full(), ms(0));
            outage.reopened();
            outage.recovered(ms(1));
        }
        outage.failed(full(), ms(2));
        outage.reopened();
        assert_eq!(outage.next(), Some(ms(802)), "four failures before this one");
        outage.recovered(ms(802));
        outage.failed(full(), ms(802) + STEADY);
        outage.reopened();
        assert_eq!(outage.next(), Some(ms(802) + STEADY), "long well, tried at once");
    }
}
