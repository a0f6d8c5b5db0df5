//! Carries out what the lifecycle engine decides: looks at entries, expires, evicts, closes producers, trims. What it acknowledges
//! goes the way of every acknowledgement: marked dirty, written to the cursor log within a second, and trimmed only then.

use super::error::{Reply, TopicError};
use super::lifecycle::{Action, Exceeded, Quota, View};
use super::messages::Message;
use super::producers::Now;
use super::subscription::Subscription;
use super::throttle::Throttle;
use super::worker::{FindFor, ReadFor, Worker};
use crate::cursor::{DurableFloor, Log as _};
use crate::managed_ledger::{ManagedLedger, ReadEntry, ReadOutcome};
use geminga_common::ids::Position;

/// Decisions in one turn; what is left is decided in the next.
const ROUNDS_MAX: usize = 8;

/// The lifecycle engine's part of a topic's stats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LifecycleFigures {
    /// Backlog quota, bytes.
    pub(crate) size_limit: Option<u64>,
    /// Backlog quota, ms.
    pub(crate) age_limit_ms: Option<u64>,
    /// Time stamp of the oldest unacknowledged entry, if it was looked at, ms.
    pub(crate) oldest_ms: Option<u64>,
    /// Why producers are kept out.
    pub(crate) exceeded: Option<Exceeded>,
    /// Whether the last that was heard of its disk is that it is full.
    pub(crate) disk_full: bool,
    /// Whether the publish rate holds connections up.
    pub(crate) throttled: bool,
    /// How often it did.
    pub(crate) throttled_times: u64,
}

impl LifecycleFigures {
    /// The name of what keeps messages out, if something does.
    pub(crate) fn publish_wait(&self) -> Option<&'static str> {
        let full = self.disk_full.then_some("disk_full");
        full.or(self.exceeded.map(Exceeded::name)).or(self.throttled.then_some("publish_rate"))
    }
}

impl Worker {
    /// Asks the lifecycle engine and does what it says.
    pub(super) fn live(&mut self) {
        if self.is_ending() {
            return;
        }
        let mut actions = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let view = self.view();
            self.lifecycle.decide(&self.rules, &view, &mut actions);
            let mut again = false;
            for action in actions.drain(..) {
                again |= self.act(action);
            }
            if !again {
                return;
            }
        }
    }

    fn view(&self) -> View {
        let now_ms = self.broker.clock.wall_ms();
        let end = self.ledger.end();
        let floors = self.subscriptions.values().filter(|sub| sub.is_durable()).map(|sub| sub.acks.floor());
        let oldest = floors.min().map(|floor| self.ledger.settle(floor)).filter(|floor| *floor < end);
        let trim_at_ms = self.ledger.next_trim_ms(self.durable.minimum(), self.rules.retention, now_ms);
        View {
            now_ms,
            oldest,
            end,
            backlog_bytes: oldest.map_or(0, |floor| self.ledger.size_between(floor, end)),
            trim_at_ms,
        }
    }

    /// Whether the engine is to be asked again at once.
    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Learn(at) => return self.learn(at),
            Action::Expire { before_ms, at_least } => self.expire_before(before_ms, at_least),
            Action::Shrink(bytes) => {
                let to = self.ledger.position_leaving(bytes);
                let dropped = self.expire_all(to);
                tracing::info!(topic = %self.name, dropped, "backlog quota: the oldest backlog was dropped");
                return true;
            }
            Action::Block(exceeded) => {
                let why = exceeded.name();
                tracing::info!(topic = %self.name, why, "backlog quota exceeded: producers are closed");
                self.append();
                self.send_producers_away(&TopicError::QuotaExceeded(exceeded));
            }
            Action::Trim => self.trim(),
        }
        false
    }

    fn learn(&mut self, at: Position) -> bool {
        let now_ms = self.broker.clock.wall_ms();
        let stamp = move |found: &[ReadEntry]| {
            found.first().filter(|entry| entry.position == at).map(|entry| entry.entry.header.timestamp_ms)
        };
        match self.ledger.read_at(&[at]) {
            ReadOutcome::Ready(found) => {
                self.lifecycle.learned(at, stamp(&found), now_ms);
                true
            }
            ReadOutcome::AtEnd => {
                self.lifecycle.learned(at, None, now_ms);
                true
            }
            ReadOutcome::Pending(token) => {
                let handle = self.handle.clone();
                let then = move |read: Result<Vec<ReadEntry>, TopicError>| {
                    let ms = read.ok().and_then(|found| stamp(&found));
                    let then = move |worker: &mut Worker| {
                        worker.lifecycle.learned(at, ms, worker.broker.clock.wall_ms());
                    };
                    handle.put(Message::Done(Box::new(then)));
                };
                self.reads.insert(token, ReadFor::Then(Box::new(then)));
                false
            }
        }
    }

    fn expire_before(&mut self, before_ms: u64, at_least: Option<Position>) {
        let token = self.ledger.find_by_time(before_ms);
        let handle = self.handle.clone();
        let found = Reply::new(move |found: Result<Position, TopicError>| {
            let then = move |worker: &mut Worker| {
                let known = at_least.map(|at| worker.ledger.next(at));
                // A search that failed leaves what is known by itself.
                let expired = found.ok().max(known).map_or(0, |to| worker.expire_all(to));
                worker.lifecycle.expired(expired > 0, worker.broker.clock.wall_ms());
            };
            handle.put(Message::Done(Box::new(then)));
        });
        self.finds.insert(token, FindFor::Answer(found));
    }

    /// Acknowledges everything below a position on every durable subscription; answers how many entries that were.
    fn expire_all(&mut self, to: Position) -> u64 {
        let now = self.now();
        let mut all = 0;
        // A seek under way decides for itself what is acknowledged.
        for sub in self.subscriptions.values_mut().filter(|sub| sub.is_durable() && !sub.seeking) {
            all += expire_to(sub, &mut self.durable, &self.ledger, to, now);
            if sub.wants_write() {
                sub.persisting.dirty_since.get_or_insert(now.mono);
            }
        }
        all
    }

    /// A policy somewhere has changed.
    pub(super) fn policies_changed(&mut self) {
        let rules = self.broker.lifecycle_rules(&self.name);
        if rules != self.rules {
            self.rules = rules;
            self.lifecycle.rules_changed();
        }
        self.offloading.rules_changed();
        let rate = self.broker.publish_rate(&self.name);
        if self.throttle.as_ref().map(Throttle::rate) != rate {
            self.throttle = rate.and_then(|rate| Throttle::new(rate, self.broker.clock.mono()));
        }
        let limits = self.broker.dispatch(&self.name);
        for sub in self.subscriptions.values_mut() {
            sub.dispatcher.set_unacked_limits(
                limits.unacked_messages_per_consumer_max,
                limits.unacked_messages_per_subscription_max,
            );
        }
    }

    /// What stats tell of all this.
    pub(super) fn lifecycle_figures(&self) -> LifecycleFigures {
        let limit = |quota: Option<Quota>| quota.map(|q| q.limit);
        LifecycleFigures {
            size_limit: limit(self.rules.size),
            age_limit_ms: limit(self.rules.age),
            oldest_ms: self.lifecycle.oldest_ms(),
            exceeded: self.lifecycle.exceeded(),
            disk_full: self.setback,
            throttled: self.throttle.as_ref().is_some_and(|t| t.is_holding(self.broker.clock.mono())),
            throttled_times: self.throttle.as_ref().map_or(0, Throttle::times),
        }
    }
}

/// Acknowledges everything below a position on behalf of the broker; answers how many entries that were.
pub(super) fn expire_to(
    sub: &mut Subscription,
    durable: &mut DurableFloor,
    ledger: &ManagedLedger,
    to: Position,
    now: Now,
) -> u64 {
    let before = sub.acks.backlog(ledger);
    if !sub.acks.advance_floor(to, ledger) {
        return 0;
    }
    sub.gaps.changed = true;
    let expired = before.saturating_sub(sub.acks.backlog(ledger));
    let floor = ledger.settle(sub.acks.floor());
    sub.dispatcher.acked_below(floor);
    sub.counters.expired += expired;
    sub.traffic.add([0, 0, 0, 0, expired], now.mono);
    sub.counters.last_expired_ms = now.wall_ms;
    sub.counters.last_floor_ms = now.wall_ms;
    if let Some(cursor) = sub.cursor {
        durable.moved(cursor, sub.acks.floor());
    }
    expired
}
