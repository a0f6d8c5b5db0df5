//! What runs in the world: processes as hand-polled futures, one event after the other, and what a process sees of it.

use super::{Ev, World};
use crate::calls::{Outcome, Req};
use crate::check::Checker;
use crate::meta::{MetaOp, MetaReply};
use crate::node::pull::{self, Pull};
use crate::plan::{Plan, Us};
use geminga_bookie_client::rpc::BookieRef;
use geminga_common::metadata::MetaError;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

type Task = (usize, u64, Pin<Box<dyn Future<Output = ()>>>);

/// The world and the futures that run in it.
pub(crate) struct Sim {
    pub(crate) w: RefCell<World>,
    /// Lends the client's code a timer that never rings: time is the world's.
    timer: tokio::runtime::Runtime,
    tasks: RefCell<Vec<Task>>,
    spawned: RefCell<Vec<Task>>,
}

/// Work of one event that never ends is a livelock.
const POLLS_MAX: usize = 5000;

impl Sim {
    pub(crate) fn new(seed: u64, plan: Plan, verbose: bool) -> Rc<Self> {
        let w = RefCell::new(World::new(seed, plan, verbose));
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a timer");
        Rc::new(Self { w, timer, tasks: RefCell::default(), spawned: RefCell::default() })
    }

    /// Brings a process to life.
    pub(crate) fn start<F: Future<Output = ()> + 'static>(
        self: &Rc<Self>,
        proc: usize,
        run: impl FnOnce(Cx) -> F,
    ) {
        let mut w = self.w.borrow_mut();
        w.procs[proc].life += 1;
        w.procs[proc].alive = true;
        let life = w.procs[proc].life;
        w.ready.insert(proc);
        drop(w);
        let cx = Cx { sim: self.clone(), proc, life };
        self.spawned.borrow_mut().push((proc, life, Box::pin(run(cx))));
        self.poll_ready();
    }

    /// One event; false when there is none left before `until` or something is broken.
    pub(crate) fn step(self: &Rc<Self>, until: Us) -> bool {
        let mut w = self.w.borrow_mut();
        if w.check.broken.is_some() {
            return false;
        }
        let Some((&(at, seq), _)) = w.queue.first_key_value() else { return false };
        if at > until {
            w.pass(until);
            return false;
        }
        let Some(ev) = w.queue.remove(&(at, seq)) else { return false };
        w.pass(at);
        w.trace.event(at, seq, &ev);
        if let Ev::StartBroker(proc) = ev {
            let (alive, controller) = (w.procs[proc].alive, proc == w.plan.brokers);
            drop(w);
            match (alive, controller) {
                // Two reasons to start it again, and the first did.
                (true, _) => {}
                (false, true) => self.start(proc, crate::controller::run),
                (false, false) => self.start(proc, crate::broker::run),
            }
            return true;
        }
        w.handle(ev);
        let pulls = std::mem::take(&mut w.pulls);
        drop(w);
        pulls.into_iter().for_each(|pull| self.begin_pull(pull));
        self.poll_ready();
        true
    }

    /// A bookie fetches copies, in a process of its own.
    fn begin_pull(self: &Rc<Self>, pull: Pull) {
        let w = &mut *self.w.borrow_mut();
        let proc = w.store_proc(pull.node);
        let life = w.procs[proc].life;
        w.ready.insert(proc);
        let cx = Cx { sim: self.clone(), proc, life };
        self.spawned.borrow_mut().push((proc, life, Box::pin(pull::run(cx, pull))));
    }

    /// Drops what still runs: futures hold the simulation, and it holds them.
    pub(crate) fn clear(&self) {
        let (tasks, spawned) = (self.tasks.take(), self.spawned.take());
        let calls = std::mem::take(&mut self.w.borrow_mut().calls);
        drop((tasks, spawned, calls));
    }

    fn poll_ready(self: &Rc<Self>) {
        let mut context = Context::from_waker(Waker::noop());
        let _timer = self.timer.enter();
        for round in 0.. {
            let Some(proc) = self.w.borrow_mut().ready.pop_first() else { break };
            if round > POLLS_MAX {
                self.w.borrow_mut().check.broken("livelock: a process never comes to rest");
                return;
            }
            self.tasks.borrow_mut().append(&mut self.spawned.borrow_mut());
            let life = self.w.borrow().procs[proc].life;
            let mut tasks = std::mem::take(&mut *self.tasks.borrow_mut());
            tasks.retain_mut(|(owner, of, future)| {
                *owner != proc || *of == life && future.as_mut().poll(&mut context).is_pending()
            });
            tasks.append(&mut self.spawned.borrow_mut());
            *self.tasks.borrow_mut() = tasks;
        }
    }
}

/// A value that arrives once.
pub(crate) struct Slot<T>(Rc<RefCell<Option<T>>>);

impl<T> Future for Slot<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        self.0.borrow_mut().take().map_or(Poll::Pending, Poll::Ready)
    }
}

/// A queue of events for one task.
pub(crate) struct Inbox<T>(Rc<RefCell<VecDeque<T>>>);

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self(Rc::default())
    }
}

impl<T> Inbox<T> {
    pub(crate) fn push(&self, event: T) {
        self.0.borrow_mut().push_back(event);
    }

    pub(crate) fn next(&self) -> Next<'_, T> {
        Next(self)
    }

    pub(crate) fn try_next(&self) -> Option<T> {
        self.0.borrow_mut().pop_front()
    }
}

pub(crate) struct Next<'a, T>(&'a Inbox<T>);

impl<T> Future for Next<'_, T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        self.0.try_next().map_or(Poll::Pending, Poll::Ready)
    }
}

/// What a process sees of the world.
#[derive(Clone)]
pub(crate) struct Cx {
    pub(crate) sim: Rc<Sim>,
    pub(crate) proc: usize,
    pub(crate) life: u64,
}

impl Cx {
    pub(crate) fn now(&self) -> Us {
        self.sim.w.borrow().now
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.sim.w.borrow_mut().rng.below(bound)
    }

    pub(crate) fn random(&self) -> u64 {
        self.sim.w.borrow_mut().rng.next_u64()
    }

    pub(crate) fn note(&self, kind: &'static str, a: u64, b: u64, text: impl FnOnce() -> String) {
        let w = &mut *self.sim.w.borrow_mut();
        w.trace.note(w.now, kind, self.proc as u64, a ^ b << 32, text);
    }

    pub(crate) fn check<T>(&self, with: impl FnOnce(&mut Checker) -> T) -> T {
        with(&mut self.sim.w.borrow_mut().check)
    }

    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.sim.spawned.borrow_mut().push((self.proc, self.life, Box::pin(future)));
        self.sim.w.borrow_mut().ready.insert(self.proc);
    }

    pub(crate) fn send(&self, to: &BookieRef, req: Req, deliver: impl FnOnce(Outcome) + 'static) {
        self.sim.w.borrow_mut().send(self.proc, to, req, Box::new(deliver));
    }

    pub(crate) fn ask(&self, to: &BookieRef, req: Req) -> Slot<Outcome> {
        let slot = Rc::new(RefCell::new(None));
        let told = slot.clone();
        self.send(to, req, move |outcome| *told.borrow_mut() = Some(outcome));
        Slot(slot)
    }

    pub(crate) async fn meta(&self, op: MetaOp) -> Result<MetaReply, MetaError> {
        let slot = Rc::new(RefCell::new(None));
        let told = slot.clone();
        let deliver = Box::new(move |outcome| *told.borrow_mut() = Some(outcome));
        self.sim.w.borrow_mut().ask_meta(self.proc, op, deliver);
        match Slot(slot).await {
            Outcome::Meta(answer) => answer,
            other => Err(MetaError::Unknown(format!("{other:?}"))),
        }
    }

    pub(crate) async fn sleep(&self, delay: Us) {
        let slot = Rc::new(RefCell::new(None));
        let told = slot.clone();
        self.wake(delay, move || *told.borrow_mut() = Some(()));
        Slot(slot).await;
    }

    /// A sleep that a watch event may end early.
    pub(crate) async fn nap(&self, delay: Us) {
        let slot = Rc::new(RefCell::new(None));
        let told = slot.clone();
        self.sim.w.borrow_mut().nap(self.proc, delay, Box::new(move |_| *told.borrow_mut() = Some(())));
        Slot(slot).await;
    }

    /// Calls back after `delay`.
    pub(crate) fn wake(&self, delay: Us, then: impl FnOnce() + 'static) {
        self.sim.w.borrow_mut().sleep(self.proc, delay, Box::new(move |_| then()));
    }
}
