//! Threads beside the journal's: one flushes, one makes journal files ready, one keeps house.

use super::Core;
use crate::Room;
use crate::segments::SegmentSet;
use crate::shard::Status;
use crate::store::{Flushed, STEP, Store};
use geminga_bookie_client::rpc::{Doubt, ReadAnswer};
use geminga_common::clock::Mono;
use geminga_common::error::Code;
use parking_lot::MutexGuard;
use std::io;
use std::time::Duration;

/// A flush that found no room is tried again, and a disk that fills up is looked at again, after this long.
const FULL_RETRY: Duration = Duration::from_secs(5);
/// Holes are punched this often, a tenth of a second's worth each time.
const PUNCH_PAUSE: Duration = Duration::from_millis(100);
/// Files on their way out become shorter this often.
const SHRINK_PAUSE: Duration = Duration::from_millis(10);

/// What was asked of them.
#[derive(Default)]
pub(super) struct Background {
    pub(super) flush_armed: bool,
    pub(super) flush: bool,
    pub(super) prepare: bool,
    pub(super) keep: bool,
    pub(super) stop: bool,
}

/// When the housekeeper has something to do without being asked.
#[derive(Default)]
struct Due {
    punch: Option<Mono>,
    shrink: Option<Mono>,
    scrub: Option<Mono>,
    look: Option<Mono>,
}

impl Due {
    fn first(&self) -> Option<Mono> {
        [self.punch, self.shrink, self.scrub, self.look].into_iter().flatten().min()
    }
}

fn take_due(at: &mut Option<Mono>, now: Mono) -> bool {
    at.take_if(|at| *at <= now).is_some()
}

impl Core {
    /// Wakes the background threads, the flusher only if it does not know the deadline yet.
    pub(super) fn signal_due(&self, flush: Option<Mono>, now: Mono, prepare: bool) {
        let mut background = self.background.lock();
        if prepare && !background.prepare {
            background.prepare = true;
            self.preparer.notify_one();
        }
        let due = flush.is_some_and(|at| at <= now);
        if due && !background.flush {
            background.flush = true;
            self.flusher.notify_one();
        } else if flush.is_some() && !background.flush_armed {
            background.flush_armed = true;
            self.flusher.notify_one();
        }
    }

    pub(super) fn signal(&self, flush: bool, prepare: bool) {
        let mut background = self.background.lock();
        background.flush |= flush;
        background.prepare |= prepare;
        self.flusher.notify_one();
        self.preparer.notify_one();
    }

    fn unblock(&self) {
        // Under both locks, as after a turn.
        let shard = self.store.shard.lock();
        let mut inbox = self.inbox.lock();
        inbox.blocked = false;
        if shard.has_pending() {
            inbox.marker_at = Some(self.store.clock.mono());
        }
        if !inbox.ops.is_empty() || inbox.marker_at.is_some() {
            self.work.notify_one();
        }
    }

    /// A reader met damage: the housekeeper looks at it without waiting for the scrub.
    pub(super) fn judge_soon(&self, answer: &ReadAnswer, segments: &SegmentSet) {
        let news =
            || Store::has_suspects(segments) || self.store.damage() != self.node.damage_of(self.number);
        if matches!(answer, ReadAnswer::Unknown(Doubt::Damaged)) && news() {
            self.background.lock().keep = true;
            self.keeper.notify_one();
        }
    }

    pub(super) fn flush_loop(&self) {
        let mut background = self.background.lock();
        let mut retry_at = None;
        while !background.stop {
            background.flush_armed = false;
            let (due, full) = MutexGuard::unlocked(&mut background, || {
                let shard = self.store.shard.lock();
                (shard.flush_due(), shard.status == Status::DiskFull)
            });
            // Whoever said so in between woke nobody.
            if background.stop || background.flush_armed {
                continue;
            }
            let now = self.store.clock.mono();
            // A full disk is asked again now and then, whatever waits.
            let retry = full.then(|| *retry_at.get_or_insert(now + FULL_RETRY));
            let due = retry.or(due);
            background.flush_armed = due.is_some();
            if background.flush || due.is_some_and(|at| at <= now) {
                background.flush = false;
                background.prepare |= full;
                self.preparer.notify_one();
                MutexGuard::unlocked(&mut background, || {
                    let (flushed, answers) = self.store.flush_once();
                    self.give(answers);
                    if flushed == Flushed::Failed {
                        self.node.fail();
                    }
                    self.unblock();
                });
                background.keep = true;
                self.keeper.notify_one();
                retry_at = None;
                continue;
            }
            match due {
                Some(at) => drop(self.flusher.wait_for(&mut background, at.saturating_sub(now))),
                None => self.flusher.wait(&mut background),
            }
        }
    }

    pub(super) fn prepare_loop(&self) {
        let mut background = self.background.lock();
        while !background.stop {
            if !background.prepare {
                self.preparer.wait(&mut background);
                continue;
            }
            background.prepare = false;
            MutexGuard::unlocked(&mut background, || {
                let (_, answers) = self.store.prepare_once();
                self.give(answers);
                if self.store.shard.lock().status == Status::Failed {
                    self.node.fail();
                }
                self.unblock();
            });
        }
    }

    pub(super) fn keep_loop(&self) {
        let mut due = Due::default();
        let mut background = self.background.lock();
        background.keep = true;
        while !background.stop {
            let now = self.store.clock.mono();
            if background.keep || due.first().is_some_and(|at| at <= now) {
                let asked = std::mem::take(&mut background.keep);
                MutexGuard::unlocked(&mut background, || self.keep_turn(asked, &mut due));
                continue;
            }
            match due.first() {
                Some(at) => drop(self.keeper.wait_for(&mut background, at.saturating_sub(now))),
                None => self.keeper.wait(&mut background),
            }
        }
    }

    fn keep_turn(&self, asked: bool, due: &mut Due) {
        if !self.store.may_keep() {
            *due = Due::default();
            return;
        }
        let before = self.store.freed();
        match self.keep(asked, due) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(%error, "no room to keep house");
            }
            Err(error) => {
                tracing::error!(code = %Code::DISK_FAILED, %error, "keeping house failed: the store stops");
                let answers = self.store.shard.lock().fail();
                self.give(answers);
                return self.node.fail();
            }
            Ok(()) => {}
        }
        self.node.damage(self.number, self.store.damage());
        let now = self.store.clock.mono();
        let changed = self.store.look();
        let (room, full) = {
            let shard = self.store.shard.lock();
            (shard.room, shard.status == Status::DiskFull)
        };
        due.look = (room > Room::Open || full).then_some(now + FULL_RETRY);
        if changed {
            self.node.room(self.number, room);
        }
        if full && (changed || self.store.freed() > before) {
            // There may be room again: what waited for it need not wait longer.
            self.signal(true, true);
        }
    }

    fn keep(&self, asked: bool, due: &mut Due) -> io::Result<()> {
        let now = self.store.clock.mono();
        let mut more = false;
        // First: it needs no room, and gives some to whatever else is to be done.
        if take_due(&mut due.shrink, now) && self.store.shrink_some(1)? {
            due.shrink = Some(now + SHRINK_PAUSE);
        }
        if asked {
            due.shrink.get_or_insert(now);
            self.store.judge_suspects()?;
            self.store.collect()?;
            more = self.store.merge_once()?;
            if more {
                self.store.collect()?;
            }
            self.store.forget_covered()?;
            due.punch.get_or_insert(now);
            if due.scrub.is_none() {
                due.scrub = self.store.scrub_pause(0).map(|pause| now + pause);
            }
        }
        if take_due(&mut due.punch, now)
            && self.store.punch_some(self.store.config.punch_rate.div_ceil(10))?
        {
            due.punch = Some(now + PUNCH_PAUSE);
        }
        if take_due(&mut due.scrub, now) {
            let (read, _) = self.store.scrub_some(STEP)?;
            due.scrub = self.store.scrub_pause(read).map(|pause| now + pause);
        }
        self.background.lock().keep |= more;
        Ok(())
    }
}
