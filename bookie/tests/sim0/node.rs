//! A bookie: the real store on a simulated disk, driven step by step, and what may befall it.
//!
//! What runs here is `geminga_bookie::steps`: admission, journal, flush, segments, manifest, replay and identity are the real code;
//! only its threads are replaced by events. A crash keeps any part of what was not synced, also in the middle of a write.

use crate::plan::{MS, SECOND, Us};
use crate::world::{Ev, Outcome, World};
use geminga_bookie::steps::Steps;
use geminga_bookie::{Config, Health, OpenError};
use geminga_bookie_client::mutant::{self, Mutant};
use geminga_bookie_client::rpc::{
    Add, AddError, BookieRef, ControlError, Doubt, LedgerStat, Read, ReadAnswer,
};
use geminga_common::clock::ManualClock;
use geminga_common::disk::Disk;
use geminga_common::disk::sim::{Crash, SimDisk};
use geminga_common::ids::{BookieId, EntryId, Incarnation, LedgerId, Term};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A call to a bookie.
#[derive(Clone, Debug)]
pub(crate) enum Req {
    Add(Add),
    Fence { ledger: LedgerId, term: Term, from: EntryId },
    Read(Read),
    Seal { ledger: LedgerId, last: Option<EntryId> },
    Delete { ledger: LedgerId },
    Stat { ledger: LedgerId },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NodeEvent {
    Start,
    Register,
    /// Down for longer than its lease.
    Expire,
    /// Reads the dead-id watermark.
    Watermark,
    Batch,
    Write,
    Flush,
    Room,
    Idle,
    Resume,
    DiskFree,
    /// The operator puts a blank disk in.
    NewDisk,
}

/// An admitted call that waits to be durable.
struct Flight {
    call: u64,
    proc: usize,
    order: u64,
    req: Req,
}

type Outbox = Arc<Mutex<Vec<(u64, Result<(), Refusal>)>>>;

#[derive(Clone, Debug)]
enum Refusal {
    Add(AddError),
    Control(ControlError),
}

pub(crate) struct Node {
    pub(crate) id: BookieId,
    number: usize,
    /// Name and incarnation of the store now in place.
    pub(crate) me: BookieRef,
    pub(crate) disk: SimDisk,
    pub(crate) steps: Option<Steps>,
    config: Config,
    clock: Arc<ManualClock>,
    /// Grows with every start and stop: events of an earlier run mean nothing.
    pub(crate) run: u64,
    pub(crate) paused: bool,
    stalled: Vec<NodeEvent>,
    backlog: Vec<(u64, usize, BookieRef, Req)>,
    waiting: VecDeque<(u64, usize, Req)>,
    flight: BTreeMap<u64, Flight>,
    /// What was listed for calls that wait until it is durable.
    listed: BTreeMap<u64, LedgerStat>,
    outbox: Outbox,
    arrivals: u64,
    batch_due: bool,
    pub(crate) slow_until: Us,
    pub(crate) disks: u64,
    /// Ids up to here are refused: durable in a store, and read from metadata now and then.
    watermark: u64,
    /// Bytes that were durable were changed or lost: the store may be in doubt.
    pub(crate) damaged: bool,
}

pub(crate) fn data_dir() -> PathBuf {
    PathBuf::from("/data/b")
}

fn config(number: usize, disks: u64) -> Config {
    let id = BookieId::new(&format!("b{number}")).expect("a plain name");
    let mut config = Config::new(id, data_dir(), "sim0");
    config.entry_bytes_max = 3000;
    config.control_reserve = 8192;
    config.journal_file_size = 36 << 10;
    config.journal_file_size_first = 32 << 10;
    config.batch_bytes = 6000;
    config.write_cache = 8000;
    config.block_bytes = 700;
    config.block_cache = 4096;
    config.seed = Some(1000 * disks + number as u64 + 1);
    #[cfg(feature = "museum")]
    {
        config.mutant = crate::museum::store_mutant();
    }
    config
}

thread_local! {
    /// Formatted disks by seed: formatting is the same every time and costs more than a whole small run.
    static FORMATTED: RefCell<BTreeMap<u64, (SimDisk, Incarnation)>> = const { RefCell::new(BTreeMap::new()) };
}

fn formatted(config: &Config, clock: &Arc<ManualClock>) -> (SimDisk, Incarnation) {
    let seed = config.seed.unwrap_or_default();
    FORMATTED.with_borrow_mut(|known| {
        let (disk, incarnation) = known.entry(seed).or_insert_with(|| {
            let disk = SimDisk::new();
            let steps = Steps::open(config.clone(), Arc::new(disk.clone()), clock.clone())
                .expect("a blank disk is formatted");
            let incarnation = steps.incarnation();
            drop(steps);
            (disk, incarnation)
        });
        (disk.fork(), *incarnation)
    })
}

impl Node {
    pub(crate) fn new(number: usize, clock: Arc<ManualClock>) -> Self {
        let config = config(number, 0);
        let (disk, incarnation) = formatted(&config, &clock);
        Self {
            id: config.id.clone(),
            number,
            me: BookieRef { id: config.id.clone(), incarnation },
            disk,
            steps: None,
            config,
            clock,
            run: 0,
            paused: false,
            stalled: Vec::new(),
            backlog: Vec::new(),
            waiting: VecDeque::new(),
            flight: BTreeMap::new(),
            listed: BTreeMap::new(),
            outbox: Outbox::default(),
            arrivals: 0,
            batch_due: false,
            slow_until: 0,
            disks: 0,
            watermark: 0,
            damaged: false,
        }
    }

    /// The process is gone: everything it had in memory is.
    fn forget(&mut self) {
        self.run += 1;
        self.steps = None;
        self.paused = false;
        self.stalled.clear();
        self.backlog.clear();
        self.waiting.clear();
        self.flight.clear();
        self.listed.clear();
        self.outbox.lock().expect("no holder panics").clear();
        self.batch_due = false;
    }

    /// Takes what the next add waits for, or admits it. False: no room.
    fn admit(&mut self, order: u64, req: &Req) -> bool {
        let Some(steps) = &mut self.steps else { return true };
        let outbox = self.outbox.clone();
        let tell = move |result| outbox.lock().expect("no holder panics").push((order, result));
        match req.clone() {
            Req::Add(add) => {
                return steps
                    .add(add, Box::new(move |r: Result<(), AddError>| tell(r.map_err(Refusal::Add))));
            }
            Req::Fence { ledger, term, .. } => {
                steps.fence(ledger, term, Box::new(move |r| tell(r.map_err(Refusal::Control))));
            }
            Req::Seal { ledger, last } => {
                steps.seal(ledger, last, Box::new(move |r| tell(r.map_err(Refusal::Control))));
            }
            Req::Delete { ledger } => {
                steps.delete(ledger, Box::new(move |r| tell(r.map_err(Refusal::Control))));
            }
            Req::Stat { ledger } => {
                steps.barrier(ledger, Box::new(move |r| tell(r.map_err(Refusal::Control))));
            }
            Req::Read(_) => {}
        }
        true
    }
}

fn wrong_incarnation(req: &Req) -> Outcome {
    match req {
        Req::Add(_) => Outcome::Add(Err(AddError::WrongIncarnation)),
        Req::Fence { .. } => Outcome::Tail(Err(ControlError::WrongIncarnation)),
        Req::Read(_) => Outcome::Read(ReadAnswer::Unknown(Doubt::WrongIncarnation)),
        Req::Seal { .. } | Req::Delete { .. } => Outcome::Control(Err(ControlError::WrongIncarnation)),
        Req::Stat { .. } => Outcome::Stat(Err(ControlError::WrongIncarnation)),
    }
}

fn refused(req: &Req) -> Outcome {
    match req {
        Req::Add(_) => Outcome::Add(Err(AddError::Unknown("connection refused"))),
        Req::Fence { .. } => Outcome::Tail(Err(ControlError::Unknown("connection refused"))),
        Req::Read(_) => Outcome::Read(ReadAnswer::Unknown(Doubt::Unreachable)),
        Req::Seal { .. } | Req::Delete { .. } => {
            Outcome::Control(Err(ControlError::Unknown("connection refused")))
        }
        Req::Stat { .. } => Outcome::Stat(Err(ControlError::Unknown("connection refused"))),
    }
}

impl World {
    fn node_soon(&mut self, node: usize, delay: Us, event: NodeEvent) {
        let run = self.nodes[node].run;
        self.after(delay, Ev::Node(node, run, event));
    }

    fn disk_delay(&mut self, node: usize) -> Us {
        let base = 100 + self.rng.below(900);
        if self.now < self.nodes[node].slow_until { base * 100 } else { base }
    }

    // ---- calls ---------------------------------------------------------------------------------------------------------

    pub(crate) fn node_request(&mut self, node: usize, (call, proc): (u64, usize), to: BookieRef, req: Req) {
        if self.nodes[node].steps.is_none() {
            // Mostly the connection is refused; a host that is gone says nothing.
            if self.rng.below(4) > 0 {
                self.reply(node, proc, call, refused(&req));
            }
            return;
        }
        if self.nodes[node].paused {
            self.nodes[node].backlog.push((call, proc, to, req));
            return;
        }
        self.serve(node, (call, proc), to, req);
        self.pump(node);
    }

    fn serve(&mut self, node: usize, (call, proc): (u64, usize), to: BookieRef, req: Req) {
        let n = &mut self.nodes[node];
        if to.incarnation != n.me.incarnation && !mutant::active(Mutant::TrustAmnesiac) {
            return self.reply(node, proc, call, wrong_incarnation(&req));
        }
        n.arrivals += 1;
        let order = n.arrivals;
        match req {
            Req::Read(read) => {
                let Some(steps) = &n.steps else { return };
                let answer = steps.read(read);
                let me = n.me.clone();
                self.check.read(&me, &read, &answer);
                self.reply(node, proc, call, Outcome::Read(answer));
            }
            Req::Stat { ledger } => {
                let Some(steps) = &n.steps else { return };
                match steps.stat(ledger) {
                    Ok(stat) => {
                        n.listed.insert(order, stat);
                        self.take(node, order, (call, proc), Req::Stat { ledger });
                    }
                    refused => self.reply(node, proc, call, Outcome::Stat(refused)),
                }
            }
            // Repair is exempt: it copies what is closed.
            Req::Add(add) if add.ledger.0 <= n.watermark && proc != self.plan.brokers => {
                self.reply(node, proc, call, Outcome::Add(Err(AddError::Tombstoned)));
            }
            // Adds keep their order: one that waits for room is not overtaken.
            Req::Add(_) if !n.waiting.is_empty() => n.waiting.push_back((call, proc, req)),
            req => {
                if let Req::Delete { ledger } = req {
                    self.check.delete_sent(ledger);
                }
                self.take(node, order, (call, proc), req);
            }
        }
    }

    fn take(&mut self, node: usize, order: u64, (call, proc): (u64, usize), req: Req) -> bool {
        let n = &mut self.nodes[node];
        n.flight.insert(order, Flight { call, proc, order, req: req.clone() });
        if n.admit(order, &req) {
            return true;
        }
        n.flight.remove(&order);
        n.waiting.push_front((call, proc, req));
        self.node_soon(node, MS, NodeEvent::Room);
        false
    }

    /// Sends the answers that are due, and has what was admitted written soon.
    fn pump(&mut self, node: usize) {
        let answers = std::mem::take(&mut *self.nodes[node].outbox.lock().expect("no holder panics"));
        for (order, result) in answers {
            let Some(flight) = self.nodes[node].flight.remove(&order) else { continue };
            self.answer(node, flight, result);
        }
        let n = &mut self.nodes[node];
        let Some(steps) = &n.steps else { return };
        if steps.health() == Health::Failed {
            self.trace.note(self.now, "failed", node as u64, 0, || format!("b{node} fail-stops"));
            return self.crash(node, false);
        }
        if !n.batch_due {
            n.batch_due = true;
            self.node_soon(node, 50, NodeEvent::Batch);
        }
    }

    fn answer(&mut self, node: usize, flight: Flight, result: Result<(), Refusal>) {
        let me = self.nodes[node].me.clone();
        let Flight { call, proc, order, req } = flight;
        let control = |result| match result {
            Ok(()) => Ok(()),
            Err(Refusal::Control(error)) => Err(error),
            Err(Refusal::Add(_)) => Err(ControlError::Failed),
        };
        let outcome = match req {
            Req::Add(add) => {
                if result.is_ok() {
                    self.check.stored(&me, &add, order);
                }
                Outcome::Add(match result {
                    Ok(()) => Ok(()),
                    Err(Refusal::Add(error)) => Err(error),
                    Err(Refusal::Control(_)) => Err(AddError::Failed),
                })
            }
            Req::Fence { ledger, term, from } => {
                let serving = self.nodes[node].steps.as_ref().is_some_and(|s| s.health() == Health::Serving);
                let result = control(result);
                self.check.control("fence", &result, serving);
                let n = &self.nodes[node];
                let (Ok(()), Some(steps)) = (&result, &n.steps) else {
                    let error = result.err().unwrap_or(ControlError::Failed);
                    return self.reply(node, proc, call, Outcome::Tail(Err(error)));
                };
                let tail = steps.tail(ledger, from);
                if let Ok(tail) = &tail {
                    let order = n.arrivals;
                    self.check.fenced(&me, (ledger, term, from), order, tail, self.nodes[node].damaged);
                }
                Outcome::Tail(tail)
            }
            Req::Seal { ledger, last } => {
                if result.is_ok() {
                    self.check.sealed(ledger, last);
                }
                Outcome::Control(control(result))
            }
            Req::Delete { ledger } => {
                let serving = self.nodes[node].steps.as_ref().is_some_and(|s| s.health() == Health::Serving);
                let result = control(result);
                self.check.control("delete", &result, serving);
                self.trace
                    .note(self.now, "deleted", node as u64, ledger.0, || format!("b{node} deletes {ledger}"));
                Outcome::Control(result)
            }
            Req::Stat { ledger } => {
                let Some(stat) = self.nodes[node].listed.remove(&order) else { return };
                let sound = !self.nodes[node].damaged;
                Outcome::Stat(control(result).map(|()| {
                    if sound {
                        self.check.listed(&me, ledger, &stat.present);
                    }
                    stat
                }))
            }
            Req::Read(_) => return,
        };
        self.reply(node, proc, call, outcome);
    }

    // ---- its own steps -------------------------------------------------------------------------------------------------

    pub(crate) fn node_event(&mut self, node: usize, run: u64, event: NodeEvent) {
        match event {
            NodeEvent::NewDisk => {
                // Replaced already: the new one is sound.
                if self.nodes[node].damaged {
                    self.new_disk(node);
                }
                return;
            }
            NodeEvent::DiskFree => self.nodes[node].disk.limit(None),
            _ => {}
        }
        if self.nodes[node].run != run {
            return;
        }
        if event == NodeEvent::Expire {
            if self.nodes[node].paused || self.nodes[node].steps.is_none() {
                let id = self.nodes[node].id.clone();
                self.meta.live(&id, false);
            }
            return;
        }
        if self.nodes[node].paused && event != NodeEvent::Resume {
            return self.nodes[node].stalled.push(event);
        }
        match event {
            NodeEvent::Start => self.start_node(node),
            NodeEvent::Register => self.register(node),
            NodeEvent::Resume => self.resume_node(node),
            NodeEvent::NewDisk | NodeEvent::Expire => {}
            NodeEvent::Watermark => {
                if self.now >= self.meta_down {
                    let n = &mut self.nodes[node];
                    n.watermark = n.watermark.max(self.meta.watermark());
                }
                let delay = SECOND + self.rng.below(3 * SECOND);
                self.node_soon(node, delay, NodeEvent::Watermark);
            }
            NodeEvent::Batch => self.batch(node),
            NodeEvent::Write => {
                let pick = self.rng.next_u64();
                let Some(steps) = &mut self.nodes[node].steps else { return };
                if steps.outstanding() > 0 {
                    steps.write((pick % steps.outstanding() as u64) as usize);
                    self.node_soon(node, 20, NodeEvent::Batch);
                    self.nodes[node].batch_due = true;
                    self.node_soon(node, 10 * MS, NodeEvent::Idle);
                }
                self.pump(node);
            }
            NodeEvent::Idle => {
                let Some(steps) = &mut self.nodes[node].steps else { return };
                if steps.outstanding() == 0 && steps.health() == Health::Serving {
                    steps.idle();
                }
                self.pump(node);
            }
            NodeEvent::Flush | NodeEvent::DiskFree => {
                self.flush(node);
                if event == NodeEvent::Flush {
                    let delay = 300 * MS + self.rng.below(3 * SECOND);
                    self.node_soon(node, delay, NodeEvent::Flush);
                }
            }
            NodeEvent::Room => self.flush(node),
        }
    }

    fn batch(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.batch_due = false;
        let Some(steps) = &mut n.steps else { return };
        let mut built = 0;
        while steps.outstanding() < 4 && steps.next_batch() {
            built += 1;
        }
        if steps.outstanding() == 0 {
            steps.prepare();
        }
        for _ in 0..built {
            let delay = self.disk_delay(node);
            self.node_soon(node, delay, NodeEvent::Write);
        }
    }

    /// What the flush and file threads do, then what waited for them.
    fn flush(&mut self, node: usize) {
        let Some(steps) = &mut self.nodes[node].steps else { return };
        steps.prepare();
        let mut full = false;
        if steps.health() == Health::Serving {
            full = !steps.flush();
        }
        self.pump(node);
        while let Some((call, proc, req)) = self.nodes[node].waiting.pop_front() {
            self.nodes[node].arrivals += 1;
            let order = self.nodes[node].arrivals;
            let n = &mut self.nodes[node];
            n.flight.insert(order, Flight { call, proc, order, req: req.clone() });
            if !n.admit(order, &req) {
                n.flight.remove(&order);
                n.waiting.push_front((call, proc, req));
                // Journal room comes with batches written and files made; a full disk is asked again later.
                let delay = if full { 500 * MS } else { 2 * MS };
                self.node_soon(node, delay, NodeEvent::Room);
                break;
            }
        }
        self.pump(node);
    }

    fn resume_node(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.paused = false;
        let (stalled, backlog) = (std::mem::take(&mut n.stalled), std::mem::take(&mut n.backlog));
        for event in stalled {
            self.node_soon(node, 0, event);
        }
        if self.nodes[node].steps.as_ref().is_some_and(|s| s.health() == Health::Serving) {
            self.node_soon(node, 5 * MS, NodeEvent::Register);
        }
        for (call, proc, to, req) in backlog {
            self.after(0, Ev::ToBookie { node, call, proc, to, req });
        }
    }

    // ---- life and death ------------------------------------------------------------------------------------------------

    pub(crate) fn start_node(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.forget();
        let disk: Arc<dyn Disk> = Arc::new(n.disk.clone());
        let steps = match Steps::open(n.config.clone(), disk, n.clock.clone()) {
            Ok(steps) => steps,
            Err(OpenError::Disk(error)) => {
                self.trace
                    .note(self.now, "start", node as u64, 1, || format!("b{node} does not start: {error}"));
                return self.crash(node, false);
            }
            Err(error) => return self.check.broken(format!("b{node} does not open: {error}")),
        };
        let health = steps.health();
        if health == Health::Serving || n.damaged {
            n.me.incarnation = steps.incarnation();
        }
        let (me, damaged) = (n.me.clone(), n.damaged);
        self.trace.note(self.now, "start", node as u64, 0, || format!("{me} starts: {health:?}"));
        if health != Health::Serving && !damaged {
            return self.check.broken(format!("S9: a crash alone made {me} {health:?}"));
        }
        if health == Health::Serving && !damaged {
            self.check.restarted(&me, &steps);
        }
        self.nodes[node].steps = Some(steps);
        let first = 300 * MS + self.rng.below(2 * SECOND);
        self.node_soon(node, first, NodeEvent::Flush);
        self.node_soon(node, first, NodeEvent::Watermark);
        if health == Health::Serving {
            let delay = 5 * MS + self.rng.below(300 * MS);
            self.node_soon(node, delay, NodeEvent::Register);
        } else {
            let run = self.nodes[node].run;
            let delay = 3 * SECOND + self.rng.below(10 * SECOND);
            self.after(delay, Ev::Node(node, run, NodeEvent::NewDisk));
        }
    }

    fn register(&mut self, node: usize) {
        if self.now < self.meta_down {
            return self.node_soon(node, 500 * MS, NodeEvent::Register);
        }
        let me = self.nodes[node].me.clone();
        self.meta.register(&me);
        self.meta.live(&me.id, true);
    }

    /// Power fails on one bookie, now or in the middle of its next step on the disk.
    pub(crate) fn crash(&mut self, node: usize, torn: bool) {
        let (dice, variant) = (self.rng.next_u64(), self.rng.next_u64());
        let n = &mut self.nodes[node];
        let mut steps = n.steps.take();
        n.disk = match (&mut steps, torn) {
            (Some(steps), true) => crash_amid(steps, &n.disk, dice, variant),
            _ => n.disk.crash(&match dice % 4 {
                0 => Crash::Lost,
                1 => Crash::Kept,
                _ => Crash::Random(variant),
            }),
        };
        drop(steps);
        n.forget();
        self.trace.note(self.now, "crash", node as u64, 0, || format!("b{node} is down (torn: {torn})"));
        let delay = 200 * MS + self.rng.below(if self.healed { SECOND } else { 8 * SECOND });
        self.node_soon(node, delay, NodeEvent::Start);
        self.node_soon(node, 10 * SECOND, NodeEvent::Expire);
    }

    /// A blank disk under the old name: another incarnation.
    pub(crate) fn new_disk(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.forget();
        n.disks += 1;
        n.config = config(n.number, n.disks);
        let (disk, incarnation) = formatted(&n.config, &n.clock);
        self.check.lost(&n.me);
        n.disk = disk;
        n.me.incarnation = incarnation;
        n.damaged = false;
        n.watermark = 0;
        let me = n.me.clone();
        self.trace.note(self.now, "wipe", node as u64, 0, || format!("{me} starts with a blank disk"));
        self.meta.live(&me.id, false);
        let delay = 200 * MS + self.rng.below(3 * SECOND);
        self.node_soon(node, delay, NodeEvent::Start);
    }

    /// A bit of a file flips while the store runs; the operator replaces the disk some time later.
    pub(crate) fn flip(&mut self, node: usize) {
        let (dice, bit) = (self.rng.next_u64(), self.rng.below(8) as u8);
        let n = &mut self.nodes[node];
        let wanted = |path: &Path| path.extension().is_some_and(|e| e == "jnl" || e == "seg");
        let files: Vec<_> = n.disk.files().into_iter().filter(|(p, len)| *len > 0 && wanted(p)).collect();
        if files.is_empty() {
            return;
        }
        let (path, len) = &files[(dice % files.len() as u64) as usize];
        let byte = (dice >> 16) % len;
        n.disk.flip(path, byte, bit);
        n.damaged = true;
        let me = n.me.clone();
        self.check.damaged(&me);
        self.trace.note(self.now, "flip", node as u64, byte, || {
            format!("{me}: bit flips at {byte} of {}", path.display())
        });
        let run = self.nodes[node].run;
        let delay = 2 * SECOND + self.rng.below(15 * SECOND);
        self.after(delay, Ev::Node(node, run, NodeEvent::NewDisk));
    }

    /// A store goes down and some file of it is lost.
    pub(crate) fn lose_file(&mut self, node: usize) {
        self.crash(node, false);
        let dice = self.rng.next_u64();
        let n = &mut self.nodes[node];
        let within = |path: &Path| match dice % 5 {
            0 => path.ends_with("b/IDENTITY"),
            1 => path.ends_with("journal/IDENTITY"),
            2 => path.ends_with("manifest.redb"),
            3 => path.extension().is_some_and(|e| e == "seg"),
            _ => path.parent().is_some_and(|dir| dir.ends_with("journal")),
        };
        for (path, _) in n.disk.files().iter().filter(|(path, _)| within(path)) {
            n.disk.remove(path).expect("it was listed");
            n.disk.sync_dir(path.parent().expect("it has one")).expect("no fault is armed");
        }
        n.damaged = true;
        let me = n.me.clone();
        self.check.damaged(&me);
        self.trace
            .note(self.now, "lose", node as u64, dice % 5, || format!("{me} loses files ({})", dice % 5));
        let run = self.nodes[node].run;
        let delay = 8 * SECOND + self.rng.below(15 * SECOND);
        self.after(delay, Ev::Node(node, run, NodeEvent::NewDisk));
    }
}

/// The disk after power failed somewhere within the store's next step.
fn crash_amid(steps: &mut Steps, disk: &SimDisk, dice: u64, variant: u64) -> SimDisk {
    let before = disk.fork();
    disk.record();
    match dice % 4 {
        0 => drop(steps.flush()),
        1 => steps.prepare(),
        _ if steps.outstanding() > 0 => steps.write((dice >> 8) as usize % steps.outstanding()),
        _ => steps.write_all(),
    }
    let mut history = disk.history(&before);
    let stop = (dice >> 16) as usize % (disk.position() + 1);
    while history.position() < stop && history.step() {}
    let all = history.crashes(2, variant);
    history.disk(&all[(variant >> 8) as usize % all.len()])
}
