//! The event loop: one queue of events in simulated time, processes as hand-polled futures (no runtime, no threads, no waker), and
//! the calls between processes, bookies and metadata.
//!
//! A process that is paused gets nothing until it goes on; one that died gets nothing of its former life. What it sent stays on
//! its way. All order comes from (time, sequence number); maps are ordered: a seed repeats to the last event.

use crate::check::Checker;
use crate::meta::{Meta, MetaOp, MetaReply};
use crate::node::{Node, NodeEvent, Req};
use crate::plan::{MS, NetFaults, Plan, SECOND, Us};
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::{AddError, BookieRef, ControlError, Doubt, LedgerStat, ReadAnswer, Tail};
use geminga_common::clock::ManualClock;
use geminga_common::metadata::{MetaError, TxnOutcome};
use geminga_common::rng::Rng;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What a call comes back with.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Add(Result<(), AddError>),
    Tail(Result<Tail, ControlError>),
    Control(Result<(), ControlError>),
    Stat(Result<LedgerStat, ControlError>),
    Read(ReadAnswer),
    Meta(Result<MetaReply, MetaError>),
    Slept,
}

#[derive(Clone, Debug)]
pub(crate) enum Ev {
    /// A request reaches a bookie.
    ToBookie {
        node: usize,
        call: u64,
        proc: usize,
        to: BookieRef,
        req: Req,
    },
    /// An answer reaches a process.
    ToProc {
        call: u64,
        outcome: Outcome,
    },
    Node(usize, u64, NodeEvent),
    MetaArrives {
        call: u64,
        op: MetaOp,
        reply: bool,
    },
    Resume(usize, u64),
    /// A watch tells a process that something changed.
    Hint(usize),
    StartBroker(usize),
    Fault(crate::plan::Fault),
    Window(usize),
}

type Deliver = Box<dyn FnOnce(Outcome)>;

struct Call {
    proc: usize,
    life: u64,
    deliver: Deliver,
}

/// A process: a broker, the controller, or the reader of the end.
#[derive(Default)]
pub(crate) struct Proc {
    pub(crate) life: u64,
    pub(crate) paused: bool,
    pub(crate) alive: bool,
    backlog: Vec<(u64, Outcome)>,
    /// No answer of metadata before this time.
    pub(crate) meta_cut: Us,
}

/// One direction-pair between a process and a bookie.
#[derive(Clone, Copy, Default)]
pub(crate) struct Link {
    last_arrival: Us,
    pub(crate) requests_cut: Us,
    pub(crate) answers_cut: Us,
}

/// Everything but the running futures.
pub(crate) struct World {
    pub(crate) now: Us,
    seq: u64,
    queue: BTreeMap<(Us, u64), Ev>,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) procs: Vec<Proc>,
    pub(crate) links: Vec<Vec<Link>>,
    pub(crate) meta: Meta,
    pub(crate) meta_down: Us,
    pub(crate) check: Checker,
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    ready: BTreeSet<usize>,
    pub(crate) net: NetFaults,
    pub(crate) healed: bool,
    /// Producers are silent: what is open may be closed.
    pub(crate) quiet: bool,
    /// The reader of the end has read everything.
    pub(crate) finished: bool,
    pub(crate) damage: crate::damage::Damage,
    naps: Vec<Vec<u64>>,
    hinted: Us,
    pub(crate) trace: crate::trace::Trace,
    pub(crate) injected: BTreeMap<&'static str, u64>,
}

/// How long a caller waits before it is told that it cannot know.
fn patience(req: &Req) -> Us {
    match req {
        Req::Add(_) => 5 * SECOND,
        Req::Read(_) => 3 * SECOND,
        // The recovery has a patience of its own; the transport's deadline is far behind it.
        Req::Fence { .. } => 30 * SECOND,
        Req::Seal { .. } | Req::Delete { .. } | Req::Stat { .. } => 10 * SECOND,
    }
}

fn unknown(req: &Req) -> Outcome {
    match req {
        Req::Add(_) => Outcome::Add(Err(AddError::Unknown("no answer"))),
        Req::Read(_) => Outcome::Read(ReadAnswer::Unknown(Doubt::Unreachable)),
        Req::Fence { .. } => Outcome::Tail(Err(ControlError::Unknown("no answer"))),
        Req::Seal { .. } | Req::Delete { .. } => Outcome::Control(Err(ControlError::Unknown("no answer"))),
        Req::Stat { .. } => Outcome::Stat(Err(ControlError::Unknown("no answer"))),
    }
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan, verbose: bool) -> Self {
        let clock = Arc::new(ManualClock::at_wall_ms(1_700_000_000_000));
        let procs = plan.brokers + 2;
        let nodes: Vec<Node> = (0..plan.bookies).map(|n| Node::new(n, clock.clone())).collect();
        let mut world = Self {
            now: 0,
            seq: 0,
            queue: BTreeMap::new(),
            rng: Rng::seeded(seed ^ 0x51b0),
            procs: (0..procs).map(|_| Proc::default()).collect(),
            links: vec![vec![Link::default(); plan.bookies]; procs],
            meta: Meta::new(clock.clone()),
            meta_down: 0,
            check: Checker::new(&plan),
            calls: BTreeMap::new(),
            next_call: 1,
            ready: BTreeSet::new(),
            net: NetFaults::default(),
            healed: false,
            quiet: false,
            finished: false,
            damage: crate::damage::Damage::new(plan.quorum.ack()),
            naps: vec![Vec::new(); procs],
            hinted: 0,
            trace: crate::trace::Trace::new(verbose),
            injected: BTreeMap::new(),
            nodes,
            clock,
            plan,
        };
        let windows: Vec<(Us, Vec<(Us, crate::plan::Fault)>)> =
            world.plan.windows.iter().map(|w| (w.start, w.faults.clone())).collect();
        for (number, (start, faults)) in windows.into_iter().enumerate() {
            world.at(start, Ev::Window(number));
            faults.into_iter().for_each(|(at, fault)| world.at(at, Ev::Fault(fault)));
        }
        for node in 0..world.nodes.len() {
            world.start_node(node);
        }
        world
    }

    pub(crate) fn at(&mut self, when: Us, ev: Ev) {
        self.seq += 1;
        self.queue.insert((when.max(self.now), self.seq), ev);
    }

    pub(crate) fn after(&mut self, delay: Us, ev: Ev) {
        self.at(self.now + delay, ev);
    }

    /// True once in `1000 / rate`.
    pub(crate) fn chance(&mut self, rate: u64) -> bool {
        rate > 0 && self.rng.below(1000) < rate
    }

    pub(crate) fn inject(&mut self, what: &'static str) {
        *self.injected.entry(what).or_default() += 1;
    }

    fn call(&mut self, proc: usize, life: u64, deliver: Deliver) -> u64 {
        let call = self.next_call;
        self.next_call += 1;
        self.calls.insert(call, Call { proc, life, deliver });
        call
    }

    fn fulfil(&mut self, call: u64, outcome: Outcome) {
        let Some(Call { proc, life, .. }) = self.calls.get(&call) else { return };
        let (proc, life) = (*proc, *life);
        if self.procs[proc].life != life || !self.procs[proc].alive {
            self.calls.remove(&call);
            return;
        }
        if self.procs[proc].paused {
            self.procs[proc].backlog.push((call, outcome));
            return;
        }
        if let Some(call) = self.calls.remove(&call) {
            (call.deliver)(outcome);
        }
        self.ready.insert(proc);
    }

    /// Requests to metadata that are on their way never arrive.
    pub(crate) fn forget_meta_calls(&mut self) {
        self.queue.retain(|_, ev| !matches!(ev, Ev::MetaArrives { .. }));
    }

    /// A byte of an entry changes on the wire, now and then.
    fn flip_on_wire(&mut self, entries: &mut [Entry]) {
        if entries.is_empty() || !self.chance(self.net.flips) {
            return;
        }
        self.inject("byte flipped on the wire");
        let at = self.rng.below(entries.len() as u64) as usize;
        let mut payload = entries[at].payload.to_vec();
        let byte = self.rng.below(payload.len() as u64) as usize;
        payload[byte] ^= 1 << self.rng.below(8);
        entries[at].payload = payload.into();
    }

    /// Sends a request to a bookie over a network that may lose, delay, repeat and reorder it.
    pub(crate) fn send(&mut self, proc: usize, to: &BookieRef, mut req: Req, deliver: Deliver) {
        let life = self.procs[proc].life;
        let call = self.call(proc, life, deliver);
        self.after(patience(&req), Ev::ToProc { call, outcome: unknown(&req) });
        let Some(node) = self.nodes.iter().position(|n| n.id == to.id) else { return };
        if let Req::Add(add) = &req {
            self.check.sent(add);
        }
        if let Req::Add(add) = &mut req {
            self.flip_on_wire(&mut add.entries);
        }
        let mut arrival = self.now + 100 + self.rng.below(900);
        if self.chance(self.net.delay) {
            self.inject("message delayed");
            arrival += self.rng.below(8 * SECOND);
        }
        let overtakes = self.chance(self.net.overtake);
        if overtakes {
            self.inject("message overtakes");
        } else {
            arrival = arrival.max(self.links[proc][node].last_arrival);
            self.links[proc][node].last_arrival = arrival;
        }
        let copies = 1 + u64::from(self.chance(self.net.duplicate));
        for copy in 0..copies {
            if self.now < self.links[proc][node].requests_cut || self.chance(self.net.drop) {
                self.inject("request lost");
                continue;
            }
            let late = if copy > 0 { self.rng.below(4 * SECOND) } else { 0 };
            if copy > 0 {
                self.inject("request doubled");
            }
            let ev = Ev::ToBookie { node, call, proc, to: to.clone(), req: req.clone() };
            self.at(arrival + late, ev);
        }
    }

    /// Sends an answer back.
    pub(crate) fn reply(&mut self, node: usize, proc: usize, call: u64, mut outcome: Outcome) {
        match &mut outcome {
            Outcome::Read(ReadAnswer::Found(entries)) => self.flip_on_wire(entries),
            Outcome::Tail(Ok(tail)) => self.flip_on_wire(&mut tail.entries),
            _ => {}
        }
        if self.now < self.links[proc][node].answers_cut || self.chance(self.net.drop) {
            self.inject("answer lost");
            return;
        }
        let mut delay = 100 + self.rng.below(900);
        if self.chance(self.net.delay) {
            delay += self.rng.below(6 * SECOND);
        }
        self.after(delay, Ev::ToProc { call, outcome });
    }

    /// Calls metadata; the answer may be lost although the transaction is committed.
    pub(crate) fn ask_meta(&mut self, proc: usize, op: MetaOp, deliver: Deliver) {
        let life = self.procs[proc].life;
        let call = self.call(proc, life, deliver);
        let lost = Outcome::Meta(Err(MetaError::Unknown("no answer".into())));
        self.after(4 * SECOND, Ev::ToProc { call, outcome: lost });
        let cut = self.now < self.procs[proc].meta_cut.max(self.meta_down);
        if cut || self.chance(self.net.meta_loss) && self.rng.below(2) == 0 {
            self.inject("metadata request lost");
            return;
        }
        let reply = !self.chance(self.net.meta_loss);
        if !reply {
            self.inject("metadata answer lost");
        }
        let late = if self.chance(self.net.delay) { self.rng.below(6 * SECOND) } else { 0 };
        let delay = MS + self.rng.below(2 * MS) + late;
        self.after(delay, Ev::MetaArrives { call, op, reply });
    }

    pub(crate) fn sleep(&mut self, proc: usize, delay: Us, deliver: Deliver) {
        let life = self.procs[proc].life;
        let call = self.call(proc, life, deliver);
        self.after(delay, Ev::ToProc { call, outcome: Outcome::Slept });
    }

    /// A sleep that a watch event ends early. Events may be late, lost, or told twice.
    fn nap(&mut self, proc: usize, delay: Us, deliver: Deliver) {
        let life = self.procs[proc].life;
        let call = self.call(proc, life, deliver);
        self.naps[proc].push(call);
        self.after(delay, Ev::ToProc { call, outcome: Outcome::Slept });
    }

    fn tell_watchers(&mut self) {
        for proc in 0..self.procs.len() {
            let mut copies = 1;
            if self.chance(self.net.hints) {
                self.inject("watch event lost, late or doubled");
                copies = self.rng.below(3);
            }
            for _ in 0..copies {
                let late = if self.chance(self.net.hints) { self.rng.below(5 * SECOND) } else { 0 };
                self.after(2 * MS + late, Ev::Hint(proc));
            }
        }
    }

    fn meta_arrives(&mut self, call: u64, op: MetaOp, reply: bool) {
        if self.now < self.meta_down {
            return;
        }
        let what = self.trace.on().then(|| op.to_string());
        let changes = matches!(op, MetaOp::Txn(_));
        let mut answer = self.meta.run(op, &mut self.check);
        if let Ok(MetaReply::List(records)) = &mut answer
            && self.chance(self.net.holes)
        {
            self.inject("listing with holes");
            let kept = self.rng.next_u64();
            let mut at = 0;
            records.retain(|_| {
                at += 1;
                kept >> (at % 64) & 1 == 1
            });
        }
        if let Some(what) = what {
            self.trace.text(self.now, &format!("metadata: {what} -> {answer:?}"));
        }
        if changes
            && matches!(answer, Ok(MetaReply::Txn(TxnOutcome::Committed(_))))
            && self.now >= self.hinted + 50 * MS
        {
            self.hinted = self.now;
            self.tell_watchers();
        }
        if reply {
            let late = if self.chance(self.net.delay) { self.rng.below(2 * SECOND) } else { 0 };
            self.after(MS + late, Ev::ToProc { call, outcome: Outcome::Meta(answer) });
        }
    }

    fn handle(&mut self, ev: Ev) {
        match ev {
            Ev::ToBookie { node, call, proc, to, req } => self.node_request(node, (call, proc), to, req),
            Ev::ToProc { call, outcome } => self.fulfil(call, outcome),
            Ev::Node(node, run, event) => self.node_event(node, run, event),
            Ev::MetaArrives { call, op, reply } => self.meta_arrives(call, op, reply),
            Ev::Resume(proc, life) => {
                if self.procs[proc].life == life && self.procs[proc].paused {
                    self.resume(proc);
                }
            }
            Ev::Hint(proc) => {
                for call in std::mem::take(&mut self.naps[proc]) {
                    self.fulfil(call, Outcome::Slept);
                }
            }
            Ev::Fault(fault) => self.strike(fault),
            Ev::Window(number) => self.net = self.plan.windows[number].net,
            Ev::StartBroker(_) => {}
        }
    }

    pub(crate) fn resume(&mut self, proc: usize) {
        self.trace.note(self.now, "resume", proc as u64, 0, || format!("process {proc} goes on"));
        self.procs[proc].paused = false;
        for (call, outcome) in std::mem::take(&mut self.procs[proc].backlog) {
            self.fulfil(call, outcome);
        }
    }

    /// Ends a process: nothing of this life reaches it any more.
    pub(crate) fn kill(&mut self, proc: usize) {
        let p = &mut self.procs[proc];
        p.life += 1;
        p.alive = false;
        p.paused = false;
        p.backlog.clear();
    }
}

type Task = (usize, u64, Pin<Box<dyn Future<Output = ()>>>);

/// The world and the futures that run in it.
pub(crate) struct Sim {
    pub(crate) w: RefCell<World>,
    tasks: RefCell<Vec<Task>>,
    spawned: RefCell<Vec<Task>>,
}

/// Work of one event that never ends is a livelock.
const POLLS_MAX: usize = 5000;

impl Sim {
    pub(crate) fn new(seed: u64, plan: Plan, verbose: bool) -> Rc<Self> {
        let w = RefCell::new(World::new(seed, plan, verbose));
        Rc::new(Self { w, tasks: RefCell::default(), spawned: RefCell::default() })
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
        drop(w);
        self.poll_ready();
        true
    }

    /// Drops what still runs: futures hold the simulation, and it holds them.
    pub(crate) fn clear(&self) {
        let (tasks, spawned) = (self.tasks.take(), self.spawned.take());
        let calls = std::mem::take(&mut self.w.borrow_mut().calls);
        drop((tasks, spawned, calls));
    }

    fn poll_ready(self: &Rc<Self>) {
        let mut context = Context::from_waker(Waker::noop());
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

impl World {
    fn pass(&mut self, to: Us) {
        let by = to.saturating_sub(self.now);
        if by > 0 {
            self.clock.advance(Duration::from_micros(by));
            self.now = to;
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
