//! Journal threads: they take turns, and a turn is a batch from admission to its answers.

use super::{Core, Inbox};
use crate::shard::{Admitted, Answer, Op, Shard, Status, answer};
use geminga_bookie_client::rpc::AddError;
use geminga_common::clock::Mono;
use geminga_common::disk::AlignedBuf;
use geminga_common::error::Code;
use parking_lot::MutexGuard;
use std::collections::VecDeque;
use std::time::Duration;

/// An idle marker is written this long after the last answer.
const MARKER_DELAY: Duration = Duration::from_millis(10);
/// A journal thread keeps a buffer of at most this many bytes between batches.
const BUFFER_KEPT: usize = 2 << 20;

impl Core {
    pub(super) fn push(&self, op: Op) {
        let bytes = op.bytes();
        let mut inbox = self.inbox.lock();
        let refusal = if inbox.stop {
            Some("shut down")
        } else if inbox.bytes + bytes > self.store.config.inbox_bytes && matches!(op, Op::Add { .. }) {
            Some("too much is waiting")
        } else {
            None
        };
        if let Some(why) = refusal {
            drop(inbox);
            return self.refuse(op, why);
        }
        let now = self.store.clock.mono();
        if inbox.ops.is_empty() {
            inbox.since = now;
        }
        inbox.bytes += bytes;
        inbox.ops.push_back(op);
        if inbox.sleeping > 0 && self.ready(&inbox, now) {
            self.work.notify_one();
        }
    }

    /// Answers from another thread: a caller may hold locks that its callback takes.
    fn refuse(&self, op: Op, why: &'static str) {
        self.tell(op.refuse(AddError::Unknown(why)));
    }

    pub(super) fn tell(&self, told: Answer) {
        let mut jobs = self.jobs.lock();
        jobs.tail.push_back(Box::new(move |_| {
            answer(told);
            0
        }));
        self.readers.notify_one();
        if jobs.stop {
            let late = std::mem::take(&mut jobs.tail);
            drop(jobs);
            late.into_iter().for_each(|job| {
                job(self);
            });
        }
    }

    /// Whether a batch is worth a write. The more writes are under way, the less another small one gains, and each costs the same.
    fn ready(&self, inbox: &Inbox, now: Mono) -> bool {
        let config = &self.store.config;
        !inbox.ops.is_empty()
            && !inbox.blocked
            && inbox.claimed < config.journal_in_flight
            && (inbox.bytes >= config.batch_bytes * inbox.claimed
                || now.saturating_sub(inbox.since) >= config.batch_age * inbox.claimed as u32)
    }

    pub(super) fn journal_loop(&self) {
        let mut buf = AlignedBuf::zeroed(64 << 10);
        let mut inbox = self.inbox.lock();
        loop {
            let marker = loop {
                if inbox.stop {
                    drop(inbox);
                    let answers = self.store.shard.lock().abandon();
                    return self.give(answers);
                }
                let now = self.store.clock.mono();
                if self.ready(&inbox, now) {
                    break false;
                }
                if inbox.claimed == 0 && inbox.marker_at.is_some_and(|at| at <= now) {
                    break true;
                }
                self.sleep(&mut inbox, now);
            };
            inbox.claimed += 1;
            inbox.marker_at = None;
            MutexGuard::unlocked(&mut inbox, || self.turn(marker, &mut buf));
            inbox.claimed -= 1;
            if buf.len() > BUFFER_KEPT {
                buf = AlignedBuf::zeroed(64 << 10);
            }
        }
    }

    fn sleep(&self, inbox: &mut MutexGuard<'_, Inbox>, now: Mono) {
        let aging = !inbox.ops.is_empty() && !inbox.blocked && inbox.claimed > 0;
        let marker = inbox.marker_at.filter(|_| inbox.claimed == 0 && !inbox.marker_watched);
        let until = match (aging, marker) {
            (true, _) => {
                Some((inbox.since + self.store.config.batch_age * inbox.claimed as u32).saturating_sub(now))
            }
            (false, Some(at)) => Some(at.saturating_sub(now)),
            (false, None) => None,
        };
        inbox.sleeping += 1;
        match until {
            Some(wait) => {
                let watching = !aging;
                inbox.marker_watched |= watching;
                self.work.wait_for(inbox, wait.max(Duration::from_micros(20)));
                inbox.marker_watched &= !watching;
            }
            None => self.work.wait(inbox),
        }
        inbox.sleeping -= 1;
    }

    /// One batch, from admission to answers.
    fn turn(&self, marker: bool, buf: &mut AlignedBuf) {
        let mut early = Vec::new();
        let batch = {
            let mut shard = self.store.shard.lock();
            if marker {
                shard.mark_idle();
            } else {
                self.admit(&mut shard, &mut early);
            }
            shard.next_batch()
        };
        self.give(early);
        if let Some(batch) = batch {
            let before = self.store.clock.mono();
            let result = self.store.write(&batch, buf);
            self.latency.sample(self.store.clock.mono().saturating_sub(before));
            if let Err(error) = &result {
                tracing::error!(code = %Code::DISK_FAILED, %error, "journal write failed: the store stops");
            }
            let answers = self.store.shard.lock().written(batch.head.seq, result.is_ok());
            self.give(answers);
        }
        self.after_turn();
    }

    /// Admits from the inbox until a batch is full.
    fn admit(&self, shard: &mut Shard, early: &mut Vec<Answer>) {
        let now = self.store.clock.mono();
        let mut taken = 0;
        let mut ops = VecDeque::new();
        {
            let mut inbox = self.inbox.lock();
            while let Some(op) = inbox.ops.front()
                && (taken == 0 || taken + op.bytes() <= self.store.config.batch_bytes_max())
            {
                taken += op.bytes();
                ops.extend(inbox.ops.pop_front());
            }
            inbox.bytes -= taken;
            inbox.since = now;
        }
        while let Some(op) = ops.pop_front() {
            match shard.admit(op, now) {
                Admitted::Queued => {}
                Admitted::Answered(done) => early.push(done),
                Admitted::Lookup(op) => self.lookup(op),
                Admitted::Blocked(op) => {
                    ops.push_front(op);
                    let mut inbox = self.inbox.lock();
                    inbox.bytes += ops.iter().map(Op::bytes).sum::<usize>();
                    ops.into_iter().rev().for_each(|op| inbox.ops.push_front(op));
                    inbox.blocked = true;
                    drop(inbox);
                    self.signal(shard.cache_is_tight(), true);
                    return;
                }
            }
        }
    }

    fn lookup(&self, op: Op) {
        let mut jobs = self.jobs.lock();
        jobs.tail.push_back(Box::new(move |core| {
            let op = core.store.resolve(op);
            core.push(op);
            0
        }));
        self.readers.notify_one();
    }

    pub(super) fn give(&self, answers: Vec<Answer>) {
        answers.into_iter().for_each(answer);
    }

    fn after_turn(&self) {
        let shard = self.store.shard.lock();
        let now = self.store.clock.mono();
        let owes = shard.owes_marker();
        let more = shard.has_pending();
        let flush = shard.flush_due();
        let prepare = shard.needs_file();
        let failed = shard.status == Status::Failed;
        {
            // Under both locks: what was seen of the shard must not be overtaken by another turn or by a new file, else records
            // would wait for a wake-up that nobody owes them.
            let mut inbox = self.inbox.lock();
            inbox.marker_at = owes.then(|| now + MARKER_DELAY);
            if more {
                // Without a file the rest waits until one is there.
                inbox.marker_at = shard.can_write().then_some(now);
            }
        }
        drop(shard);
        if failed {
            self.node.fail();
        }
        if flush.is_some() || prepare {
            self.signal_due(flush, now, prepare);
        }
    }
}
