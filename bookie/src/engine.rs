//! The running store: threads around a [`Store`].
//!
//! Journal threads take turns: one claims the inbox, admits, builds a batch, writes it and answers, while others may claim the
//! next. So an add on an idle store costs one wake-up. The inbox's lock is short; the shard's is held for admission, never across a
//! disk call; no answer is given under a lock. A flush thread, a thread that prepares journal files and a few readers stand
//! beside them. All of them sleep without timers when there is nothing to do.

use crate::config::Config;
use crate::query::ReadStart;
use crate::shard::{Admitted, Answer, Op, Status, answer};
use crate::store::{Flushed, OpenError, Store};
use geminga_bookie_client::rpc::AddError;
use geminga_bookie_client::rpc::{Add, AddDone, ControlError, LedgerStat, Read, ReadAnswer, ReadClass, Tail};
use geminga_common::clock::{Clock, Mono};
use geminga_common::disk::{AlignedBuf, Disk};
use geminga_common::ids::{BookieId, EntryId, Incarnation, LedgerId, Term};
use geminga_common::tasks::{OnFailure, TaskGroup};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// An idle marker is written this long after the last answer.
const MARKER_DELAY: Duration = Duration::from_millis(10);
/// A flush that found no room is tried again after this long.
const FULL_RETRY: Duration = Duration::from_secs(5);
/// Reads waiting for a reader thread.
const READS_WAITING: usize = 16_384;
/// A journal thread keeps a buffer of at most this many bytes between batches.
const BUFFER_KEPT: usize = 2 << 20;

/// What a store can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Everything.
    Serving,
    /// It lost something it had acknowledged: it serves what it has, proves no absence and takes nothing.
    DataLoss,
    /// A write or sync failed: it answers nothing any more; the process should end.
    Failed,
}

#[derive(Default)]
struct Inbox {
    ops: VecDeque<Op>,
    bytes: usize,
    /// When the oldest came.
    since: Mono,
    claimed: usize,
    sleeping: usize,
    /// No room in cache or journal: wait for a flush or a file.
    blocked: bool,
    marker_at: Option<Mono>,
    marker_watched: bool,
    stop: bool,
}

#[derive(Default)]
struct Background {
    flush_armed: bool,
    flush: bool,
    prepare: bool,
    stop: bool,
}

type Job = Box<dyn FnOnce(&Core) + Send>;

#[derive(Default)]
struct Jobs {
    tail: VecDeque<Job>,
    rest: VecDeque<Job>,
    stop: bool,
}

struct Core {
    store: Store,
    inbox: Mutex<Inbox>,
    work: Condvar,
    background: Mutex<Background>,
    flusher: Condvar,
    preparer: Condvar,
    jobs: Mutex<Jobs>,
    readers: Condvar,
    health: watch::Sender<Health>,
}

/// A running store. Cloning shares it; it stops with its task group.
#[derive(Clone)]
pub struct Bookie {
    core: Arc<Core>,
}

impl std::fmt::Debug for Bookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bookie").field("id", &self.core.store.config.id).finish_non_exhaustive()
    }
}

impl Bookie {
    /// Opens a store, formatting a blank one, and starts its threads in `tasks`. Blocks on the disk until the journal is replayed.
    /// A damaged store opens too, in [`Health::DataLoss`].
    ///
    /// # Errors
    /// See [`OpenError`]; of those but `Disk`, none changes anything.
    pub fn open(
        config: Config,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        tasks: &TaskGroup,
    ) -> Result<Self, OpenError> {
        let store = Store::open(config, disk, clock)?;
        let loss = store.shard.lock().status == Status::DataLoss;
        let core = Arc::new(Core {
            store,
            inbox: Mutex::default(),
            work: Condvar::new(),
            background: Mutex::default(),
            flusher: Condvar::new(),
            preparer: Condvar::new(),
            jobs: Mutex::default(),
            readers: Condvar::new(),
            health: watch::Sender::new(if loss { Health::DataLoss } else { Health::Serving }),
        });
        let spawn = |name: String, body: fn(&Core)| {
            let core = core.clone();
            tasks.thread(name, OnFailure::StopProcess, move || body(&core));
        };
        for n in 0..core.store.config.journal_in_flight {
            spawn(format!("journal-{n}"), Core::journal_loop);
        }
        for n in 0..core.store.config.readers {
            spawn(format!("bookie-read-{n}"), Core::read_loop);
        }
        spawn("bookie-flush".to_owned(), Core::flush_loop);
        spawn("bookie-files".to_owned(), Core::prepare_loop);
        let (token, stopped) = (tasks.token(), core.clone());
        tasks.thread("bookie-stop", OnFailure::Log, move || {
            futures::executor::block_on(token.cancelled());
            stopped.stop();
        });
        Ok(Self { core })
    }

    /// Stable name.
    #[must_use]
    pub fn id(&self) -> &BookieId {
        &self.core.store.config.id
    }

    /// Incarnation of the store.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.core.store.incarnation
    }

    /// Starts of the store so far, this one included.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.core.store.boot()
    }

    /// The cluster knows that this store lost something it had acknowledged, by what its disk cannot tell (a volume that went back in
    /// time). To be called before anything is asked of it; not kept on disk, because the cluster's record is.
    pub fn declare_data_loss(&self) {
        self.core.store.shard.lock().status = Status::DataLoss;
        self.core.health.send_replace(Health::DataLoss);
    }

    /// What the store can do, watched.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.core.health.subscribe()
    }

    /// Becomes true when the store has failed: a write or sync error was answered, and the process should end.
    #[must_use]
    pub fn failed(&self) -> bool {
        *self.core.health.borrow() == Health::Failed
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::add`].
    pub fn add(&self, add: Add, done: AddDone) {
        let checked = self.core.store.check(&add);
        self.core.push(Op::Add { add, checked, stored: None, done });
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::read`]. What the cache holds is answered at once.
    pub async fn read(&self, read: Read) -> ReadAnswer {
        match self.core.store.read_start(read) {
            ReadStart::Answered(answer) => answer,
            ReadStart::Segments(segments, read) => {
                let unreachable = ReadAnswer::Unknown(geminga_bookie_client::rpc::Doubt::Unreachable);
                let job = move |core: &Core| core.store.read_segments(&segments, &read);
                self.core.ask(read.class, job).await.unwrap_or(unreachable)
            }
        }
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::fence_tail`].
    ///
    /// # Errors
    /// A higher term, a deleted ledger, or a failed store.
    pub async fn fence_tail(
        &self,
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    ) -> Result<Tail, ControlError> {
        self.control(|done| Op::Fence { ledger, term, done }).await?;
        let tail = self.core.ask(ReadClass::Tail, move |core| core.store.tail(ledger, from)).await;
        tail.unwrap_or(Err(ControlError::Unknown("shut down")))
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::seal`].
    ///
    /// # Errors
    /// A deleted ledger, a seal at another end, or a failed store.
    pub async fn seal(&self, ledger: LedgerId, last: Option<EntryId>) -> Result<(), ControlError> {
        if last.is_some_and(|last| last.0 >= crate::query::ID_LIMIT) {
            return Err(ControlError::Unknown("entry id out of range"));
        }
        self.control(|done| Op::Seal { ledger, last, done }).await
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::delete`].
    ///
    /// # Errors
    /// A failed store.
    pub async fn delete(&self, ledger: LedgerId) -> Result<(), ControlError> {
        self.control(|done| Op::Delete { ledger, done }).await?;
        self.core.signal(true, false);
        Ok(())
    }

    /// See [`geminga_bookie_client::rpc::BookieRpc::stat`].
    ///
    /// # Errors
    /// A deleted ledger or a failed store.
    pub async fn stat(&self, ledger: LedgerId) -> Result<LedgerStat, ControlError> {
        let stat = self.core.ask(ReadClass::Tail, move |core| core.store.stat(ledger)).await;
        let stat = stat.unwrap_or(Err(ControlError::Unknown("shut down")))?;
        // What is visible may not be durable yet, and a repair that believed the list would count a copy that a crash takes back.
        self.control(|done| Op::Barrier { done }).await?;
        Ok(stat)
    }

    /// Flushes now, without waiting for size or age.
    pub fn flush_soon(&self) {
        self.core.signal(true, false);
    }

    /// Refuses an add, from another thread.
    pub(crate) fn refuse(&self, done: AddDone, error: AddError) {
        self.core.tell((crate::shard::Done::Add(done), Err(error)));
    }

    async fn control(&self, op: impl FnOnce(crate::shard::ControlDone) -> Op) -> Result<(), ControlError> {
        let (tell, told) = tokio::sync::oneshot::channel();
        self.core.push(op(Box::new(move |result| {
            // A caller that went away does not want to know.
            let _gone = tell.send(result);
        })));
        told.await.unwrap_or(Err(ControlError::Unknown("shut down")))
    }
}

impl Core {
    fn push(&self, op: Op) {
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

    fn tell(&self, told: Answer) {
        let mut jobs = self.jobs.lock();
        jobs.tail.push_back(Box::new(move |_| answer(told)));
        self.readers.notify_one();
        if jobs.stop {
            let late = std::mem::take(&mut jobs.tail);
            drop(jobs);
            late.into_iter().for_each(|job| job(self));
        }
    }

    fn ready(&self, inbox: &Inbox, now: Mono) -> bool {
        let config = &self.store.config;
        !inbox.ops.is_empty()
            && !inbox.blocked
            && inbox.claimed < config.journal_in_flight
            && (inbox.claimed == 0
                || inbox.bytes >= config.batch_bytes
                || now.saturating_sub(inbox.since) >= config.batch_age)
    }

    fn journal_loop(&self) {
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
            (true, _) => Some((inbox.since + self.store.config.batch_age).saturating_sub(now)),
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
            let result = self.store.write(&batch, buf);
            if let Err(error) = &result {
                tracing::error!(%error, "journal write failed: the store stops");
            }
            let answers = self.store.shard.lock().written(batch.head.seq, result.is_ok());
            self.give(answers);
        }
        self.after_turn();
    }

    /// Admits from the inbox until a batch is full.
    fn admit(&self, shard: &mut crate::shard::Shard, early: &mut Vec<Answer>) {
        let now = self.store.clock.mono();
        let mut taken = 0;
        let mut ops = VecDeque::new();
        {
            let mut inbox = self.inbox.lock();
            while let Some(op) = inbox.ops.front()
                && (taken == 0 || taken + op.bytes() <= self.store.config.batch_bytes)
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
        }));
        self.readers.notify_one();
    }

    fn give(&self, answers: Vec<Answer>) {
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
            self.health
                .send_if_modified(|health| std::mem::replace(health, Health::Failed) != Health::Failed);
        }
        if flush.is_some() || prepare {
            self.signal_due(flush, now, prepare);
        }
    }

    /// Wakes the background threads, the flusher only if it does not know the deadline yet.
    fn signal_due(&self, flush: Option<Mono>, now: Mono, prepare: bool) {
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

    fn signal(&self, flush: bool, prepare: bool) {
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

    fn flush_loop(&self) {
        let mut background = self.background.lock();
        let mut retry_at = None;
        while !background.stop {
            let (due, full) = MutexGuard::unlocked(&mut background, || {
                let shard = self.store.shard.lock();
                (shard.flush_due(), shard.status == Status::DiskFull)
            });
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
                        self.health.send_replace(Health::Failed);
                    }
                    self.unblock();
                });
                retry_at = None;
                continue;
            }
            match due {
                Some(at) => drop(self.flusher.wait_for(&mut background, at.saturating_sub(now))),
                None => self.flusher.wait(&mut background),
            }
        }
    }

    fn prepare_loop(&self) {
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
                    self.health.send_replace(Health::Failed);
                }
                self.unblock();
            });
        }
    }

    async fn ask<T: Send + 'static>(
        &self,
        class: ReadClass,
        job: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> Option<T> {
        let (tell, told) = tokio::sync::oneshot::channel();
        {
            let mut jobs = self.jobs.lock();
            if jobs.stop || jobs.tail.len() + jobs.rest.len() >= READS_WAITING {
                return None;
            }
            let queue = if class == ReadClass::Tail { &mut jobs.tail } else { &mut jobs.rest };
            queue.push_back(Box::new(move |core| {
                // A caller that went away does not want to know.
                let _gone = tell.send(job(core));
            }));
            self.readers.notify_one();
        }
        told.await.ok()
    }

    fn read_loop(&self) {
        let mut jobs = self.jobs.lock();
        loop {
            match jobs.tail.pop_front().or_else(|| jobs.rest.pop_front()) {
                Some(job) => MutexGuard::unlocked(&mut jobs, || job(self)),
                None if jobs.stop => return,
                None => self.readers.wait(&mut jobs),
            }
        }
    }

    /// Ends all threads. What waits is answered `Unknown`; what was answered is in the journal.
    fn stop(&self) {
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
        self.jobs.lock().stop = true;
        self.readers.notify_all();
    }
}
