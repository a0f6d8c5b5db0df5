//! Reads of a subscription that fail, one after the other: tried again at growing pauses, told of at growing intervals, and named as
//! what its consumers wait for. Without a pause a reader of what no holder answers for would keep a core, the log and the store busy.
//!
//! Pure: the owner tells the time.

use geminga_common::clock::Mono;
use geminga_common::retry::Reminders;
use std::time::Duration;

/// First and longest pause; doubled from one failure to the next. An outage that ends is noticed so late at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

#[derive(Debug)]
struct Trouble {
    since: Mono,
    pause: Duration,
    reminders: Reminders,
    why: String,
}

/// What is known of a subscription's failing reads.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    trouble: Option<Trouble>,
    /// Until when nothing is read.
    not_before: Option<Mono>,
}

impl Unreadable {
    /// A read has failed. For how long it has gone on, and until the next attempt; `None` when that is no news for the log.
    pub(super) fn failed(&mut self, why: String, now: Mono) -> Option<(Duration, Duration)> {
        let trouble = self.trouble.get_or_insert(Trouble {
            since: now,
            pause: Duration::ZERO,
            reminders: Reminders::default(),
            why: String::new(),
        });
        trouble.why = why;
        trouble.pause = (trouble.pause * 2).clamp(PAUSE.0, PAUSE.1);
        self.not_before = Some(now + trouble.pause);
        let since = now.saturating_sub(trouble.since);
        trouble.reminders.due(since).then_some((since, trouble.pause))
    }

    /// Whether to read now; from then on nothing is due by time until another read fails.
    pub(super) fn may_read(&mut self, now: Mono) -> bool {
        if self.not_before.is_some_and(|at| now < at) {
            return false;
        }
        self.not_before = None;
        true
    }

    /// When to try again.
    pub(super) fn wake(&self) -> Option<Mono> {
        self.not_before
    }

    /// A read has worked, or other entries are wanted. How long it had gone on.
    pub(super) fn over(&mut self, now: Mono) -> Option<Duration> {
        self.not_before = None;
        self.trouble.take().map(|trouble| now.saturating_sub(trouble.since))
    }

    /// What stats say that consumers wait for.
    pub(super) fn why(&self) -> Option<String> {
        self.trouble.as_ref().map(|trouble| format!("{}; tried again", trouble.why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_goes_on_failing_is_tried_and_told_ever_more_seldom() {
        let mut reads = Unreadable::default();
        let (mut now, mut tried, mut told) = (Mono::ZERO, 0, 0);
        while now < Mono::ZERO + Duration::from_secs(60) {
            assert!(reads.may_read(now));
            assert_eq!(reads.wake(), None, "a read under way is not woken for");
            let news = reads.failed("entry 1:2 cannot be read now".to_owned(), now);
            (tried, told) = (tried + 1, told + u32::from(news.is_some()));
            let wake = reads.wake().unwrap();
            assert!(wake > now && !reads.may_read(now), "it pauses");
            assert_eq!(reads.wake(), Some(wake), "asking early changes nothing");
            now = wake;
        }
        assert_eq!((tried, told), (18, 6), "not 150 000 times a second");
        assert_eq!(reads.why().unwrap(), "entry 1:2 cannot be read now; tried again");
        assert_eq!(reads.over(now), Some(now.saturating_sub(Mono::ZERO)));
        assert_eq!((reads.why(), reads.wake(), reads.over(now)), (None, None, None));
    }
}
