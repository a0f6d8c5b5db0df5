//! A bookie: the real store on a simulated disk, driven step by step, and what may befall it.
//!
//! What runs here is `geminga_bookie::steps`: admission, journal, flush, segments, manifest, replay, identity and promotion are the real
//! code; only its threads are replaced by events. A crash keeps any part of what was not synced, also in the middle of a write.
//!
//! | file | what it holds |
//! |---|---|
//! | `serve` | what it does with calls |
//! | `turns` | what its threads do, as events |
//! | `life` | starts, registration, crashes, promotion, what befalls its disk |
//! | `pull` | a bookie as the destination of a repair |

mod life;
pub(crate) mod pull;
mod serve;
mod turns;

use crate::calls::Req;
use crate::plan::Us;
use geminga_bookie::Config;
use geminga_bookie::steps::Steps;
use geminga_bookie_client::rpc::{AddError, BookieRef, ControlError, LedgerStat, Presence};
use geminga_common::clock::ManualClock;
use geminga_common::disk::sim::SimDisk;
use geminga_common::ids::{BookieId, Incarnation};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NodeEvent {
    Start,
    Register,
    /// Down for longer than its lease.
    Expire,
    /// Reads the dead-id watermark.
    Watermark,
    /// A store that lost something looks whether it has been let go of.
    LetGo,
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

/// What was listed for a call that waits until it is durable.
enum Listed {
    Stat(LedgerStat),
    Presence(Presence),
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
    listed: BTreeMap<u64, Listed>,
    outbox: Outbox,
    arrivals: u64,
    batch_due: bool,
    pub(crate) slow_until: Us,
    pub(crate) disks: u64,
    /// The dead-id watermark its store was told last.
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
    config.batch_bytes = 1500;
    config.write_cache = 8000;
    config.block_bytes = 700;
    config.block_cache = 4096;
    config.seed = Some(1000 * disks + number as u64 + 1);
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
        self.watermark = 0;
    }

    /// Takes what the next add waits for, or admits it. False: no room.
    fn admit(&mut self, order: u64, req: &Req) -> bool {
        let Some(steps) = &mut self.steps else { return true };
        let outbox = self.outbox.clone();
        let tell = move |result| outbox.lock().expect("no holder panics").push((order, result));
        let added = |tell: Box<dyn FnOnce(Result<(), Refusal>) + Send>| {
            Box::new(move |r: Result<(), AddError>| tell(r.map_err(Refusal::Add)))
        };
        let control = |tell: Box<dyn FnOnce(Result<(), Refusal>) + Send>| {
            Box::new(move |r: Result<(), ControlError>| tell(r.map_err(Refusal::Control)))
        };
        let tell = Box::new(tell);
        match req.clone() {
            Req::Add(add) => return steps.add(add, added(tell)),
            Req::Copies { ledger, entries } => return steps.copies(ledger, entries, added(tell)),
            Req::Fence { ledger, term, .. } => steps.fence(ledger, term, control(tell)),
            Req::Seal { ledger, last } => steps.seal(ledger, last, control(tell)),
            Req::Delete { ledger } => steps.delete(ledger, control(tell)),
            Req::Stat { ledger } | Req::Presence { ledger, .. } => steps.barrier(ledger, control(tell)),
            Req::Watermark { to } => steps.watermark(to, control(tell)),
            Req::Read(_) | Req::Replicate(_) => {}
        }
        true
    }
}
