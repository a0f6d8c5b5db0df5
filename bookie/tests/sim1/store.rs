//! A bookie's store without threads, behind the real service: its single steps are taken by tasks, on simulated time.
//!
//! A task builds batches and writes them, several outstanding and in any order, as the journal threads do; another flushes, prepares files,
//! merges and scrubs. What found no room waits in order.

use crate::sim::Sim;
use futures::FutureExt;
use futures::future::BoxFuture;
use geminga_bookie::Health;
use geminga_bookie::service::Serves;
use geminga_bookie::steps::Steps;
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::repair::pull::Sink;
use geminga_bookie_client::rpc::{
    Add, AddDone, AddError, BookieRef, ControlError, IdRange, LedgerStat, Presence, Read, ReadAnswer, Tail,
};
use geminga_common::ids::{EntryId, LedgerId, Term};
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;

/// An add, or copies, that found no room.
enum Waiting {
    Add(Add, AddDone),
    Copies(LedgerId, Vec<Entry>, AddDone),
}

struct Inner {
    steps: Mutex<Steps>,
    waiting: Mutex<VecDeque<Waiting>>,
    work: Notify,
    room: Notify,
    rng: Mutex<Rng>,
    me: BookieRef,
    number: usize,
    sim: Arc<Sim>,
}

/// A served store. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Store(Arc<Inner>);

type Told = oneshot::Receiver<Result<(), ControlError>>;

fn waiter() -> (Box<dyn FnOnce(Result<(), ControlError>) + Send>, Told) {
    let (tell, told) = oneshot::channel();
    (Box::new(move |result| drop(tell.send(result))), told)
}

async fn told(told: Told) -> Result<(), ControlError> {
    told.await.unwrap_or(Err(ControlError::Unknown("shut down")))
}

impl Store {
    pub(crate) fn new(sim: Arc<Sim>, number: usize, steps: Steps) -> Self {
        let me = BookieRef { id: sim.config(number).id, incarnation: steps.incarnation() };
        let (rng, steps) = (Mutex::new(sim.rng()), Mutex::new(steps));
        let (work, room) = (Notify::new(), Notify::new());
        Self(Arc::new(Inner { steps, waiting: Mutex::default(), work, room, rng, me, number, sim }))
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Steps) -> T) -> T {
        look(&mut self.0.steps.lock())
    }

    fn below(&self, bound: u64) -> u64 {
        self.0.rng.lock().below(bound)
    }

    fn try_admit(&self, waiting: Waiting) -> Option<Waiting> {
        // What finds no room drops what it was given to tell without telling it.
        let once = |done: AddDone| {
            let kept = Arc::new(Mutex::new(Some(done)));
            let given = kept.clone();
            let tell: AddDone = Box::new(move |result| {
                let done = given.lock().take();
                done.expect("told once")(result);
            });
            (kept, tell)
        };
        match waiting {
            Waiting::Add(add, done) => {
                let (kept, tell) = once(done);
                let admitted = self.with(|steps| steps.add(add.clone(), tell));
                let done = if admitted { None } else { kept.lock().take() };
                done.map(|done| Waiting::Add(add, done))
            }
            Waiting::Copies(ledger, entries, done) => {
                let (kept, tell) = once(done);
                let admitted = self.with(|steps| steps.copies(ledger, entries.clone(), tell));
                let done = if admitted { None } else { kept.lock().take() };
                done.map(|done| Waiting::Copies(ledger, entries, done))
            }
        }
    }

    /// Adds keep their order: one that waits for room is not overtaken.
    fn admit(&self, waiting: Waiting) {
        let mut queue = self.0.waiting.lock();
        let left = if queue.is_empty() { self.try_admit(waiting) } else { Some(waiting) };
        if let Some(left) = left {
            queue.push_back(left);
            self.0.room.notify_one();
        }
        drop(queue);
        self.0.work.notify_one();
    }

    fn admit_waiting(&self) {
        loop {
            let Some(first) = self.0.waiting.lock().pop_front() else { return };
            if let Some(left) = self.try_admit(first) {
                return self.0.waiting.lock().push_front(left);
            }
        }
    }

    fn control(&self, op: impl FnOnce(&mut Steps, Box<dyn FnOnce(Result<(), ControlError>) + Send>)) -> Told {
        let (tell, told) = waiter();
        self.with(|steps| op(steps, tell));
        self.0.work.notify_one();
        told
    }

    async fn disk_pause(&self) {
        let slow = self.0.sim.machines.lock()[self.0.number].slow;
        let micros = (50 + self.below(900)) * if slow { 100 } else { 1 };
        sleep(Duration::from_micros(micros)).await;
    }

    /// Whether the store can go on.
    fn sound(&self) -> bool {
        let failed = self.with(|steps| steps.health() == Health::Failed);
        if failed {
            self.0.sim.machines.lock()[self.0.number].failed = true;
        }
        !failed
    }

    /// Batches, until the store fails.
    pub(crate) async fn write(self) {
        while self.sound() {
            self.with(|steps| {
                while steps.outstanding() < 4 && steps.next_batch() {}
                if steps.outstanding() == 0 {
                    steps.prepare();
                }
            });
            let outstanding = self.with(|steps| steps.outstanding());
            if outstanding > 0 {
                self.disk_pause().await;
                let at = self.below(outstanding as u64) as usize;
                self.with(|steps| steps.write(at));
                self.admit_waiting();
                continue;
            }
            let quiet =
                tokio::time::timeout(Duration::from_millis(10), self.0.work.notified()).await.is_err();
            if quiet {
                self.with(|steps| {
                    if steps.health() == Health::Serving {
                        steps.idle();
                    }
                });
                self.0.work.notified().await;
            }
        }
    }

    /// Flushes and all that follows, until the store fails.
    pub(crate) async fn keep(self) {
        while self.sound() {
            let pause = Duration::from_millis(200 + self.below(2500));
            let wanted = tokio::time::timeout(pause, self.0.room.notified()).await.is_ok();
            self.disk_pause().await;
            let dice = self.below(8);
            self.with(|steps| {
                steps.prepare();
                if steps.health() == Health::Serving {
                    steps.flush();
                    match dice {
                        0 => drop(steps.merge()),
                        1 => drop(steps.scrub(64 << 10)),
                        _ => {}
                    }
                }
            });
            self.admit_waiting();
            self.0.work.notify_one();
            if wanted && !self.0.waiting.lock().is_empty() {
                sleep(Duration::from_millis(20)).await;
                self.0.room.notify_one();
            }
        }
    }
}

impl Sink for Store {
    fn me(&self) -> BookieRef {
        self.0.me.clone()
    }

    fn presence(&self, ledger: LedgerId, ids: IdRange) -> BoxFuture<'_, Result<Presence, ControlError>> {
        async move {
            told(self.control(|steps, done| steps.barrier(ledger, done))).await?;
            self.with(|steps| steps.presence(ledger, ids))
        }
        .boxed()
    }

    fn store(&self, ledger: LedgerId, entries: Vec<Entry>) -> BoxFuture<'_, Result<(), AddError>> {
        let (tell, told) = oneshot::channel();
        let done: AddDone = Box::new(move |result| drop(tell.send(result)));
        self.admit(Waiting::Copies(ledger, entries, done));
        async move { told.await.unwrap_or(Err(AddError::Unknown("shut down"))) }.boxed()
    }
}

impl Serves for Store {
    fn add(&self, add: Add, done: AddDone) {
        self.admit(Waiting::Add(add, done));
    }

    async fn read(&self, read: Read) -> ReadAnswer {
        self.disk_pause().await;
        let mut answer = self.with(|steps| steps.read(read));
        let garbles = self.0.sim.machines.lock()[self.0.number].garbles;
        if let ReadAnswer::Found(entries) = &mut answer
            && let Some(first) = entries.first_mut().filter(|_| garbles)
        {
            let mut payload = first.payload.to_vec();
            let at = self.below(payload.len() as u64) as usize;
            payload[at] ^= 1;
            first.payload = payload.into();
        }
        answer
    }

    async fn fence_tail(&self, ledger: LedgerId, term: Term, from: EntryId) -> Result<Tail, ControlError> {
        told(self.control(|steps, done| steps.fence(ledger, term, done))).await?;
        self.disk_pause().await;
        self.with(|steps| steps.tail(ledger, from))
    }

    async fn seal(&self, ledger: LedgerId, last: Option<EntryId>) -> Result<(), ControlError> {
        told(self.control(|steps, done| steps.seal(ledger, last, done))).await
    }

    async fn delete(&self, ledger: LedgerId) -> Result<(), ControlError> {
        told(self.control(|steps, done| steps.delete(ledger, done))).await
    }

    async fn stat(&self, ledger: LedgerId) -> Result<LedgerStat, ControlError> {
        let stat = self.with(|steps| steps.stat(ledger))?;
        told(self.control(|steps, done| steps.barrier(ledger, done))).await?;
        Ok(stat)
    }
}
