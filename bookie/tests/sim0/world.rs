//! One queue of events in simulated time, and the calls between processes, bookies and metadata.
//!
//! A process that is paused gets nothing until it goes on; one that died gets nothing of its former life. What it sent stays on
//! its way. All order comes from (time, sequence number); maps are ordered: a seed repeats to the last event.

mod sim;

use crate::calls::{Outcome, Req};
use crate::check::Checker;
use crate::meta::{Meta, MetaOp, MetaReply};
use crate::node::pull::Pull;
use crate::node::{Node, NodeEvent};
use crate::plan::{MS, NetFaults, Plan, SECOND, Us};
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::{BookieRef, ControlError, ReadAnswer};
use geminga_common::clock::ManualClock;
use geminga_common::metadata::{MetaError, TxnOutcome};
use geminga_common::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use sim::{Cx, Inbox, Sim};

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
    /// Until when the controller may be about to publish what it has found.
    pub(crate) looking: Us,
    /// Replications that bookies were asked for and have not begun.
    pub(crate) pulls: Vec<Pull>,
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
    pub(crate) slow: crate::slow::Verdicts,
    naps: Vec<Vec<u64>>,
    hinted: Us,
    pub(crate) trace: crate::trace::Trace,
    pub(crate) injected: BTreeMap<&'static str, u64>,
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan, verbose: bool) -> Self {
        let clock = Arc::new(ManualClock::at_wall_ms(1_700_000_000_000));
        // Brokers, the controller, the reader of the end, and a process for each store.
        let procs = plan.brokers + 2 + plan.bookies;
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
            looking: 0,
            pulls: Vec::new(),
            check: Checker::new(&plan),
            calls: BTreeMap::new(),
            next_call: 1,
            ready: BTreeSet::new(),
            net: NetFaults::default(),
            healed: false,
            quiet: false,
            finished: false,
            damage: crate::damage::Damage::new(plan.quorum.ack()),
            slow: crate::slow::Verdicts::default(),
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
        let unknown = req.failed(ControlError::Unknown("no answer"));
        self.after(req.patience(), Ev::ToProc { call, outcome: unknown });
        let Some(node) = self.nodes.iter().position(|n| n.id == to.id) else { return };
        if proc == self.store_proc(node) {
            // A bookie to its own store.
            return self.after(1, Ev::ToBookie { node, call, proc, to: to.clone(), req });
        }
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
        if proc == self.store_proc(node) {
            return self.after(1, Ev::ToProc { call, outcome });
        }
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

impl World {
    pub(crate) fn pass(&mut self, to: Us) {
        let by = to.saturating_sub(self.now);
        if by > 0 {
            self.clock.advance(Duration::from_micros(by));
            self.now = to;
        }
    }
}
