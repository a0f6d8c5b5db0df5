//! Entries that are lost for good: the only copy of them went, and somebody accepted that. Readers pass them, and say so. What merely cannot
//! be read now is waited for instead (`unreadable.rs`).

use super::subscription::Subscription;
use super::worker::Worker;
use crate::cursor::Log as _;
use crate::dispatch::ReadId;
use geminga_common::error::Code;
use geminga_common::ids::{EntryId, Position};

/// The subscription that keeps everything a topic still has after its bundle's cursor log lost something: what subscriptions of which
/// nothing is known any more have not acknowledged must neither be trimmed nor skipped. It is an ordinary one; a person deletes it once
/// all subscribers are back.
pub(crate) const LOST_CURSORS: &str = "lost-cursors";

impl Worker {
    /// Acknowledges entries of one ledger that a read found lost, on behalf of the broker, as durably as any other acknowledgement.
    pub(super) fn pass_lost(&mut self, sub: &mut Subscription, read: ReadId, first: Position, last: EntryId) {
        sub.dispatcher.read_failed(read);
        let now = self.now();
        let before = sub.acks.floor();
        let end = Position::new(first.ledger, last.next());
        let mut passed = 0;
        if self.ledger.settle(before) >= first {
            let backlog = sub.acks.backlog(&self.ledger);
            sub.acks.advance_floor(end, &self.ledger);
            passed = backlog.saturating_sub(sub.acks.backlog(&self.ledger));
        } else {
            for id in first.entry.0..=last.0 {
                let lost = Position::new(first.ledger, EntryId(id));
                if !sub.acks.is_acked(lost) {
                    sub.acks.ack(lost, &self.ledger);
                    sub.dispatcher.acked(lost);
                    passed += 1;
                }
            }
        }
        sub.gaps.changed = true;
        sub.counters.lost += passed;
        tracing::warn!(
            code = %Code::LOST_FOR_GOOD, topic = %self.name, subscription = %sub.name,
            entries = passed, %first, %last,
            "entries of the topic are lost for good: the subscription goes on behind them"
        );
        if sub.acks.floor() > before {
            sub.counters.last_floor_ms = now.wall_ms;
            if let Some(cursor) = sub.cursor {
                self.durable.moved(cursor, sub.acks.floor());
            }
            let floor = self.ledger.settle(sub.acks.floor());
            sub.dispatcher.acked_below(floor);
        }
        if sub.wants_write() {
            sub.persisting.dirty_since.get_or_insert(now.mono);
        }
    }
}
