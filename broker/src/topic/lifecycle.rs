//! The lifecycle engine of a topic: time to live, backlog quotas and retention decided in one place. Pure: it is shown where the
//! topic stands and answers what to do and when to be asked again. `aging` carries that out.
//!
//! What it knows of age: the time stamp of the oldest entry that some durable subscription has not acknowledged is never *below*
//! what was learned last, because floors rise. So an old answer is a safe, early deadline; only when it comes is the entry
//! looked at again. A consumer that keeps up costs one read of one entry per time to live; a topic without backlog costs nothing
//! and is never woken.
//!
//! | state of [`Oldest`] | holds | left by |
//! |---|---|---|
//! | `Unknown` | nothing: just loaded, or an age rule is new | a look: `Empty` or `Bound` at 0 |
//! | `Empty` | no backlog at this time, up to this end | a backlog: `Bound` at that time if it lies at or after that end, else at 0 |
//! | `Bound` | the entry at the floor or later was published at this time or later | `learned`: exact; a floor that went back: 0 |
//!
//! Invariants: an expiry begins only when an entry was just read and is old, and what it acknowledges is found by time stamps; at
//! most one read and one search are under way; between two reads lies 1 s, between two expiries 1 s to 1 min (a twentieth of
//! the limit), so a steady trickle is expired in batches.

use crate::managed_ledger::Retention;
use crate::namespace::QuotaPolicy;
use geminga_common::ids::Position;

/// Shortest and longest pause between two expiries, ms.
const PAUSE_MS: (u64, u64) = (1_000, 60_000);
/// Pause after a read or a search that failed, ms.
const RETRY_MS: u64 = 5_000;

/// A bound on a backlog and what happens beyond it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Quota {
    /// Bytes of the slowest subscription's backlog, or age in ms of the oldest unacknowledged entry.
    pub(crate) limit: u64,
    /// What happens.
    pub(crate) policy: QuotaPolicy,
}

/// What policies ask of a topic; `None` is unbounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rules {
    /// Entries older than this, in ms, are acknowledged by the broker.
    pub(crate) ttl_ms: Option<u64>,
    /// Bound on bytes.
    pub(crate) size: Option<Quota>,
    /// Bound on age.
    pub(crate) age: Option<Quota>,
    /// How long acknowledged ledgers stay.
    pub(crate) retention: Retention,
}

impl Rules {
    fn ask_for_age(&self) -> bool {
        self.ttl_ms.is_some() || self.age.is_some()
    }

    /// Expires what is older than this, in ms: the time to live, or a quota that evicts.
    fn expire_after_ms(&self) -> Option<u64> {
        let evicts = self.age.filter(|q| q.policy == QuotaPolicy::ConsumerBacklogEviction);
        [self.ttl_ms, evicts.map(|q| q.limit)].into_iter().flatten().min()
    }

    fn blocking(quota: Option<Quota>) -> Option<Quota> {
        quota.filter(|q| q.policy != QuotaPolicy::ConsumerBacklogEviction)
    }
}

/// Where the topic stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct View {
    /// Wall clock, ms.
    pub(super) now_ms: u64,
    /// The smallest floor of a durable subscription with a backlog.
    pub(super) oldest: Option<Position>,
    /// The end of the topic.
    pub(super) end: Position,
    /// Bytes from the smallest floor of a durable subscription to the end.
    pub(super) backlog_bytes: u64,
    /// When retention lets the next consumed ledger go, ms; the past means now.
    pub(super) trim_at_ms: Option<u64>,
}

/// Why producers are kept out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exceeded {
    /// The backlog has too many bytes.
    Size(QuotaPolicy),
    /// The backlog is too old.
    Age(QuotaPolicy),
}

impl Exceeded {
    /// What producers are told.
    pub(crate) fn policy(self) -> QuotaPolicy {
        match self {
            Self::Size(policy) | Self::Age(policy) => policy,
        }
    }

    /// A stable name, for stats.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Size(_) => "backlog_quota_size",
            Self::Age(_) => "backlog_quota_age",
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Read the time stamp of this entry, then call [`Lifecycle::learned`].
    Learn(Position),
    /// Acknowledge on every durable subscription what was published before this time; then call [`Lifecycle::expired`].
    Expire {
        /// ms since 1970.
        before_ms: u64,
        /// An entry that is known to be older, whatever the search finds.
        at_least: Option<Position>,
    },
    /// Acknowledge on every durable subscription what lies further from the end than so many bytes.
    Shrink(u64),
    /// Close every producer; newcomers are refused until [`Lifecycle::exceeded`] is none again.
    Block(Exceeded),
    /// Let go of ledgers.
    Trim,
}

/// What is known of the oldest unacknowledged entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Oldest {
    Unknown,
    Empty { end: Position, at_ms: u64 },
    Bound { floor: Position, ms: u64, exact: bool },
}

/// The engine's state for one topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lifecycle {
    oldest: Oldest,
    learning: bool,
    expiring: bool,
    /// The answer of a read has just come in: what it says is as good as exact.
    fresh: bool,
    /// No read before this time, ms.
    learn_not_before_ms: u64,
    /// No search or shrinking before this time, ms.
    not_before_ms: u64,
    trim_not_before_ms: u64,
    exceeded: Option<Exceeded>,
    wake_ms: Option<u64>,
}

impl Lifecycle {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            oldest: Oldest::Unknown,
            learning: false,
            expiring: false,
            fresh: false,
            learn_not_before_ms: 0,
            not_before_ms: 0,
            trim_not_before_ms: 0,
            exceeded: None,
            wake_ms: None,
        }
    }

    /// Why producers are kept out, if they are.
    pub(super) fn exceeded(&self) -> Option<Exceeded> {
        self.exceeded
    }

    /// When to decide again although nothing happens, wall clock in ms.
    pub(super) fn wake_ms(&self) -> Option<u64> {
        self.wake_ms
    }

    /// The time stamp of the oldest unacknowledged entry as far as it was looked at, ms.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        match self.oldest {
            Oldest::Bound { ms, exact: true, .. } => Some(ms),
            _ => None,
        }
    }

    /// Rules have changed: what held producers back may no longer.
    pub(super) fn rules_changed(&mut self) {
        self.learn_not_before_ms = 0;
        self.not_before_ms = 0;
        self.trim_not_before_ms = 0;
    }

    /// Decides; to be asked after every turn, and at [`Self::wake_ms`].
    pub(super) fn decide(&mut self, rules: &Rules, view: &View, out: &mut Vec<Action>) {
        self.wake_ms = None;
        self.look(rules, view);
        self.shrink(rules, view, out);
        self.age(rules, view, out);
        self.block(rules, view, out);
        if let Some(at) = view.trim_at_ms {
            let at = at.max(self.trim_not_before_ms);
            if view.now_ms >= at {
                out.push(Action::Trim);
                self.trim_not_before_ms = view.now_ms + RETRY_MS;
                self.wake_at(self.trim_not_before_ms);
            } else {
                self.wake_at(at);
            }
        }
    }

    /// The entry at `at` was stamped at this time; `None`: it could not be read.
    pub(super) fn learned(&mut self, at: Position, ms: Option<u64>, now_ms: u64) {
        self.learning = false;
        match (ms, self.oldest) {
            (None, _) => self.learn_not_before_ms = now_ms + RETRY_MS,
            (Some(ms), Oldest::Bound { floor, .. }) if floor >= at => {
                self.fresh = true;
                self.oldest = Oldest::Bound { floor, ms, exact: floor == at };
            }
            // The floor went back meanwhile: look again.
            (Some(_), _) => {}
        }
    }

    /// An expiry has ended; `done` tells whether it did anything.
    pub(super) fn expired(&mut self, done: bool, now_ms: u64) {
        self.expiring = false;
        if !done {
            self.not_before_ms = self.not_before_ms.max(now_ms + RETRY_MS);
        }
    }

    fn look(&mut self, rules: &Rules, view: &View) {
        if !rules.ask_for_age() {
            self.oldest = Oldest::Unknown;
            return;
        }
        let Some(now_at) = view.oldest else {
            self.oldest = Oldest::Empty { end: view.end, at_ms: view.now_ms };
            return;
        };
        self.oldest = match self.oldest {
            Oldest::Unknown => Oldest::Bound { floor: now_at, ms: 0, exact: false },
            // What came after a topic without backlog was published later than that was seen.
            Oldest::Empty { end, at_ms } => {
                let ms = if now_at >= end { at_ms } else { 0 };
                Oldest::Bound { floor: now_at, ms, exact: false }
            }
            Oldest::Bound { floor, ms, exact } if now_at >= floor => {
                Oldest::Bound { floor: now_at, ms, exact: exact && now_at == floor }
            }
            Oldest::Bound { .. } => Oldest::Bound { floor: now_at, ms: 0, exact: false },
        };
    }

    fn shrink(&mut self, rules: &Rules, view: &View, out: &mut Vec<Action>) {
        let evicts = rules.size.filter(|q| q.policy == QuotaPolicy::ConsumerBacklogEviction);
        let Some(quota) = evicts.filter(|q| view.backlog_bytes > q.limit) else { return };
        if view.now_ms < self.not_before_ms {
            return self.wake_at(self.not_before_ms);
        }
        // A tenth below the limit, so that not every further message evicts another.
        out.push(Action::Shrink(quota.limit - quota.limit / 10));
        self.not_before_ms = view.now_ms + PAUSE_MS.0;
        self.wake_at(self.not_before_ms);
    }

    fn age(&mut self, rules: &Rules, view: &View, out: &mut Vec<Action>) {
        let fresh = std::mem::take(&mut self.fresh);
        let Oldest::Bound { floor, ms, exact } = self.oldest else { return };
        let expire = rules.expire_after_ms();
        let block = Rules::blocking(rules.age).map(|q| q.limit);
        let Some(limit) = [expire, block].into_iter().flatten().min() else { return };
        if self.learning || self.expiring {
            return; // their end asks again
        }
        // While an old backlog keeps producers out, its floor is looked at as soon as it moves.
        let held = matches!(self.exceeded, Some(Exceeded::Age(_)));
        let due = if held && !exact { 0 } else { ms.saturating_add(limit) };
        if view.now_ms < due {
            return self.wake_at(due);
        }
        let old = expire.filter(|after| view.now_ms >= ms.saturating_add(*after));
        match (exact || fresh, old) {
            (false, _) if view.now_ms < self.learn_not_before_ms => self.wake_at(self.learn_not_before_ms),
            (false, _) => {
                self.learning = true;
                self.learn_not_before_ms = view.now_ms + PAUSE_MS.0;
                out.push(Action::Learn(floor));
            }
            (true, Some(_)) if view.now_ms < self.not_before_ms => self.wake_at(self.not_before_ms),
            (true, Some(after)) => {
                self.expiring = true;
                self.not_before_ms = view.now_ms + (after / 20).clamp(PAUSE_MS.0, PAUSE_MS.1);
                // Entries stamped exactly so long ago are old enough.
                let before_ms = view.now_ms.saturating_sub(after) + 1;
                out.push(Action::Expire { before_ms, at_least: exact.then_some(floor) });
            }
            (true, None) => {
                if let Some(after) = expire {
                    self.wake_at(ms.saturating_add(after));
                }
            }
        }
    }

    fn block(&mut self, rules: &Rules, view: &View, out: &mut Vec<Action>) {
        let size = Rules::blocking(rules.size).filter(|q| view.backlog_bytes >= q.limit);
        let age = Rules::blocking(rules.age).filter(|quota| match self.oldest {
            Oldest::Bound { ms, exact: true, .. } => view.now_ms >= ms.saturating_add(quota.limit),
            // Unchanged until it has been looked at again.
            Oldest::Bound { exact: false, .. } => matches!(self.exceeded, Some(Exceeded::Age(_))),
            Oldest::Unknown | Oldest::Empty { .. } => false,
        });
        let now = size.map(|q| Exceeded::Size(q.policy)).or(age.map(|q| Exceeded::Age(q.policy)));
        if let (Some(exceeded), None) = (now, self.exceeded) {
            out.push(Action::Block(exceeded));
        }
        self.exceeded = now;
    }

    fn wake_at(&mut self, at_ms: u64) {
        self.wake_ms = Some(self.wake_ms.map_or(at_ms, |wake| wake.min(at_ms)));
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
