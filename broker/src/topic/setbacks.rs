//! Topics that were closed because their disk is full. Clients come back at once and send again what was refused; opened each time, such
//! a topic would be recovered and closed again many times a second. So its producers are kept out for a while, longer each time;
//! consumers are served: what they acknowledge is what makes room.
//!
//! Pure: the broker keeps one behind a lock and tells the time. A setback is over with the first stored message.

use geminga_common::clock::Mono;
use geminga_common::names::TopicName;
use geminga_common::retry::Reminders;
use std::collections::HashMap;
use std::time::Duration;

/// First and longest time for which producers are kept out.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));
/// A setback that nobody ran into for so long is forgotten: its producers went away.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Setback {
    since: Mono,
    last: Mono,
    pause: Duration,
    reminders: Reminders,
}

/// Topics with a setback.
#[derive(Debug, Default)]
pub(crate) struct Setbacks {
    topics: HashMap<TopicName, Setback>,
}

/// What follows from one more failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    /// Worth a line in the log.
    pub(crate) speak: bool,
    /// How long it has gone on.
    pub(crate) since: Duration,
    /// For how long producers are kept out now.
    pub(crate) pause: Duration,
}

impl Setbacks {
    /// The topic was closed once more.
    pub(crate) fn failed(&mut self, topic: &TopicName, now: Mono) -> Failure {
        self.topics.retain(|_, known| now.saturating_sub(known.last) < FORGOTTEN_AFTER);
        let known = self.topics.entry(topic.clone()).or_insert(Setback {
            since: now,
            last: now,
            pause: Duration::ZERO,
            reminders: Reminders::default(),
        });
        known.last = now;
        known.pause = (known.pause * 2).clamp(PAUSE.0, PAUSE.1);
        let since = now.saturating_sub(known.since);
        Failure { speak: known.reminders.due(since), since, pause: known.pause }
    }

    /// For how long producers are still kept out.
    pub(crate) fn left(&self, topic: &TopicName, now: Mono) -> Option<Duration> {
        let known = self.topics.get(topic)?;
        let left = (known.last + known.pause).saturating_sub(now);
        (left > Duration::ZERO).then_some(left)
    }

    /// Whether the last that was heard of the topic is that its disk is full.
    pub(crate) fn has(&self, topic: &TopicName) -> bool {
        self.topics.contains_key(topic)
    }

    /// A message was stored: answers how long the setback had gone on.
    pub(crate) fn over(&mut self, topic: &TopicName, now: Mono) -> Option<Duration> {
        self.topics.remove(topic).map(|known| now.saturating_sub(known.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        TopicName::parse(name).unwrap()
    }

    #[test]
    fn producers_are_kept_out_ever_longer_and_let_in_after_a_stored_message() {
        let (mut setbacks, full) = (Setbacks::default(), topic("full"));
        let (mut now, mut failures, mut said) = (Mono::ZERO, 0, 0);
        while now < Mono::ZERO + Duration::from_secs(60) {
            assert_eq!(setbacks.left(&full, now), None);
            let failure = setbacks.failed(&full, now);
            (failures, said) = (failures + 1, said + u32::from(failure.speak));
            assert_eq!(setbacks.left(&full, now), Some(failure.pause));
            assert_eq!(setbacks.left(&topic("other"), now), None);
            now += failure.pause;
        }
        assert_eq!((failures, said), (11, 6), "not 1200 times a minute");
        assert!(setbacks.has(&full));
        assert_eq!(setbacks.over(&full, now), Some(now.saturating_sub(Mono::ZERO)));
        assert_eq!((setbacks.over(&full, now), setbacks.left(&full, now)), (None, None));
        assert_eq!(setbacks.failed(&full, now).pause, PAUSE.0, "it begins anew");
    }

    #[test]
    fn what_nobody_ran_into_for_long_is_forgotten() {
        let (mut setbacks, full) = (Setbacks::default(), topic("full"));
        setbacks.failed(&full, Mono::ZERO);
        setbacks.failed(&topic("other"), Mono::ZERO + FORGOTTEN_AFTER);
        assert!(!setbacks.has(&full));
    }
}
