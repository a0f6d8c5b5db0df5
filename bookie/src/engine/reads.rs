//! Reader threads: they read segments, readers near the tail first; catch-up and repair share a rate that shrinks while the journal is
//! slow, and one thread is always left to the tail.

use super::Core;
use super::pace::Pacer;
use crate::shard::answer;
use geminga_bookie_client::rpc::{AddError, ReadClass};
use parking_lot::MutexGuard;
use std::collections::VecDeque;

/// Reads waiting for a reader thread.
const READS_WAITING: usize = 16_384;
/// Of so many reads that are not near the tail one is a repair's, if any wait.
const REPAIR_SHARE: u64 = 4;

/// Something for a reader thread; answers the bytes it read from segments.
pub(super) type Job = Box<dyn FnOnce(&Core) -> u64 + Send>;

#[derive(Default)]
pub(super) struct Jobs {
    pub(super) tail: VecDeque<Job>,
    catch_up: VecDeque<Job>,
    repair: VecDeque<Job>,
    /// Threads at work for others than the tail, and how many reads those were.
    busy: usize,
    served: u64,
    pacer: Pacer,
    pub(super) stop: bool,
}

impl Jobs {
    fn rest(&mut self) -> Option<Job> {
        self.served += 1;
        let (first, second) = if self.served.is_multiple_of(REPAIR_SHARE) {
            (&mut self.repair, &mut self.catch_up)
        } else {
            (&mut self.catch_up, &mut self.repair)
        };
        first.pop_front().or_else(|| second.pop_front())
    }

    fn waiting(&self) -> usize {
        self.catch_up.len() + self.repair.len()
    }
}

impl Core {
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        class: ReadClass,
        job: impl FnOnce(&Core) -> (T, u64) + Send + 'static,
    ) -> Option<T> {
        let (tell, told) = tokio::sync::oneshot::channel();
        {
            let mut jobs = self.jobs.lock();
            if jobs.stop || jobs.tail.len() + jobs.waiting() >= READS_WAITING {
                return None;
            }
            let queue = match class {
                ReadClass::Tail => &mut jobs.tail,
                ReadClass::CatchUp => &mut jobs.catch_up,
                ReadClass::Repair => &mut jobs.repair,
            };
            queue.push_back(Box::new(move |core| {
                let (answer, bytes) = job(core);
                // A caller that went away does not want to know.
                let _gone = tell.send(answer);
                bytes
            }));
            self.readers.notify_one();
        }
        told.await.ok()
    }

    pub(super) fn read_loop(&self) {
        let others = self.store.config.readers.saturating_sub(1).max(1);
        let mut jobs = self.jobs.lock();
        loop {
            if let Some(job) = jobs.tail.pop_front() {
                MutexGuard::unlocked(&mut jobs, || job(self));
                continue;
            }
            if jobs.waiting() == 0 {
                if jobs.stop {
                    return;
                }
                self.readers.wait(&mut jobs);
                continue;
            }
            if jobs.busy >= others && !jobs.stop {
                self.readers.wait(&mut jobs);
                continue;
            }
            let now = self.store.clock.mono();
            if let Some(wait) = jobs.pacer.wait(now, &self.latency)
                && !jobs.stop
            {
                self.readers.wait_for(&mut jobs, wait);
                continue;
            }
            let Some(job) = jobs.rest() else { continue };
            jobs.busy += 1;
            let bytes = MutexGuard::unlocked(&mut jobs, || job(self));
            jobs.busy -= 1;
            jobs.pacer.spend(bytes);
            if jobs.waiting() > 0 {
                self.readers.notify_one();
            }
        }
    }

    /// Ends all threads. What waits is answered `Unknown`; what was answered is in the journal.
    pub(super) fn stop(&self) {
        let waiting = {
            let mut inbox = self.inbox.lock();
            inbox.stop = true;
            self.work.notify_all();
            std::mem::take(&mut inbox.ops)
        };
        waiting.into_iter().for_each(|op| answer(op.refuse(AddError::Unknown("shut down"))));
        self.background.lock().stop = true;
        self.flusher.notify_all();
        self.preparer.notify_all();
        self.keeper.notify_all();
        self.jobs.lock().stop = true;
        self.readers.notify_all();
    }
}
