//! Appends: taken in order, sent in order, acknowledged in order. Stamps are given when an entry is taken, indexes when it is
//! sent, so that an entry that fails before it was sent leaves no hole in the index.

use super::*;
use geminga_bookie_client::entry::{Kind, Payload};
use geminga_bookie_client::ledgers::{NewEntry, Progress};
use std::collections::VecDeque;

/// Entries sent in one call to the writer at most.
const BATCH_MAX: usize = 1024;

#[derive(Debug)]
struct Queued {
    payload: Payload,
    messages: u32,
    stamp_ms: u64,
}

/// What was taken and is not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Appends {
    queue: VecDeque<Queued>,
    sent: VecDeque<Entry>,
    bytes: usize,
    /// Outputs that came up outside of an event.
    pub(super) out: Vec<Output>,
}

impl Appends {
    pub(super) fn queue_is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn nothing_sent(&self) -> bool {
        self.sent.is_empty()
    }
}

impl ManagedLedger {
    /// Takes entries in order; all of them or none. Each is answered by [`Output::Appended`] or [`Output::AppendFailed`].
    ///
    /// # Errors
    /// See [`AppendRefused`]; nothing of the call was taken then.
    pub fn append(&mut self, entries: Vec<Append>) -> Result<(), AppendRefused> {
        match self.life {
            _ if self.state.terminated => return Err(AppendRefused::Terminated),
            Life::Dead => return Err(AppendRefused::Dead),
            Life::Closing => return Err(AppendRefused::Closing),
            Life::Alive => {}
        }
        let limit = self.deps.config.entry_bytes_max;
        let mut bytes = 0;
        for (nth, entry) in entries.iter().enumerate() {
            let size = entry.payload.len();
            if size > limit {
                return Err(AppendRefused::TooLarge { nth, size, limit });
            }
            if entry.messages == 0 {
                return Err(AppendRefused::NoMessages(nth));
            }
            bytes += HEADER_LEN + size;
        }
        // One call is always taken when nothing else is pending, or a large batch would never go out.
        if self.appends.bytes > 0 && self.appends.bytes + bytes > self.deps.config.pending_bytes_max {
            return Err(AppendRefused::Busy);
        }
        let stamp_ms = self.state.stamp(self.deps.clock.wall_ms());
        self.appends.bytes += bytes;
        let queued =
            entries.into_iter().map(|e| Queued { payload: e.payload, messages: e.messages, stamp_ms });
        self.appends.queue.extend(queued);
        self.drive();
        Ok(())
    }

    /// Bytes that are queued or unacknowledged.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.appends.bytes
    }

    /// Entries that are queued or unacknowledged.
    #[must_use]
    pub fn pending_entries(&self) -> usize {
        self.appends.queue.len() + self.appends.sent.len()
    }

    /// Sends what the open ledger has room for.
    pub(super) fn send(&mut self) {
        while !self.appends.queue.is_empty() && self.may_send() {
            let now = self.deps.clock.mono();
            let room = if self.roll_is_held_off() { BATCH_MAX } else { self.state.room(&self.deps.config) };
            let count = room.min(BATCH_MAX).min(self.appends.queue.len());
            let mut batch = Vec::with_capacity(count);
            for _ in 0..count {
                if !batch.is_empty() && !self.roll_is_held_off() && self.state.room(&self.deps.config) == 0 {
                    break;
                }
                let Some(q) = self.appends.queue.pop_front() else { break };
                let bytes = (HEADER_LEN + q.payload.len()) as u64;
                let header = Header {
                    kind: Kind::Messages,
                    messages: q.messages,
                    first_index: self.state.sent(q.messages, bytes, q.stamp_ms, now),
                    timestamp_ms: q.stamp_ms,
                    bytes_before: 0,
                };
                self.appends.sent.push_back(Entry { header, payload: (*q.payload).clone() });
                batch.push(NewEntry { header, payload: q.payload });
            }
            let Some(writer) = self.writer.as_mut() else { return };
            if let Err(error) = writer.append(batch) {
                self.poison(PoisonReason::Writer(error));
            }
        }
    }

    pub(super) fn on_writer(&mut self, event: WriterEvent, out: &mut Vec<Output>) {
        let Some(writer) = self.writer.as_mut().filter(|w| w.ledger() == event.ledger) else { return };
        let progress = writer.on_event(event);
        if self.life != Life::Dead {
            self.acknowledge(&progress, out);
        }
    }

    /// Tells the owner what is durable; only up to the LAC, in order.
    fn acknowledge(&mut self, progress: &Progress, out: &mut Vec<Output>) {
        let confirmed = self.state.open().map_or(0, |o| o.confirmed);
        let durable = progress.lac.map_or(0, |lac| lac.0 + 1);
        let count = durable.saturating_sub(confirmed) as usize;
        if count > 0 {
            assert!(count <= self.appends.sent.len(), "only what was sent is acknowledged");
            let mut bytes = 0;
            let state = &mut self.state;
            let done = self.appends.sent.drain(..count).map(|entry| {
                bytes += entry.size();
                ReadEntry { position: state.confirmed(entry.size() as u64), entry }
            });
            let done: Vec<ReadEntry> = done.collect();
            let first = done[0].position;
            self.appends.bytes -= bytes;
            self.cache.push_tail(done.into_iter());
            self.counters.entries_added += count as u64;
            out.push(Output::Appended { first, count: count as u32 });
        }
        if let Some(error) = &progress.failed {
            self.poison(PoisonReason::Writer(error.clone()));
        }
    }

    /// Fails what was not sent; the handle goes on.
    pub(super) fn fail_queue(&mut self, error: AppendFailure) {
        let count = self.appends.queue.len() as u32;
        let bytes: usize = self.appends.queue.drain(..).map(|q| HEADER_LEN + q.payload.len()).sum();
        self.appends.bytes -= bytes;
        if count > 0 {
            self.appends.out.push(Output::AppendFailed { count, error });
        }
    }

    /// The handle is over: all that is pending fails, in order.
    pub(super) fn poison(&mut self, reason: PoisonReason) {
        if self.life == Life::Dead {
            return;
        }
        // For the log the topic's owner, who is told, says it, with what follows.
        tracing::debug!(topic = %self.topic.as_str(), %reason, "managed ledger poisoned");
        self.life = Life::Dead;
        let error = match &reason {
            PoisonReason::Writer(error) => AppendFailure::Writer(error.clone()),
            PoisonReason::RecordLost | PoisonReason::OutcomeUnknown => AppendFailure::Poisoned,
        };
        let count = self.pending_entries() as u32;
        self.appends.queue.clear();
        self.appends.sent.clear();
        self.appends.bytes = 0;
        if count > 0 {
            self.appends.out.push(Output::AppendFailed { count, error });
        }
        self.fail_jobs();
        self.appends.out.push(Output::Poisoned(reason));
    }

    /// Goes on after a call of the owner; what came of it beside events reaches the owner by a wake-up.
    pub(super) fn drive(&mut self) {
        self.advance();
        if !self.appends.out.is_empty() {
            (self.events)(Event(EventKind::Wake));
        }
    }

    pub(super) fn report(&mut self, out: &mut Vec<Output>) {
        out.append(&mut self.appends.out);
    }
}
