//! Small seeded workloads over a store that is driven step by step, with everything that was asked and answered written down
//! beside the disk's history.

use crate::sites::on;
use bytes::Bytes;
use geminga_bookie::steps::Steps;
use geminga_bookie::{Config, Figures};
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::rpc::Add;
use geminga_common::clock::{Clock, ManualClock};
use geminga_common::disk::sim::SimDisk;
use geminga_common::ids::{BookieId, EntryId, LedgerId, MessageIndex, Term};
use geminga_common::rng::Rng;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// What was asked, and where in the disk's history; `acked` when it was answered well.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) what: What,
    pub(crate) issued: usize,
    pub(crate) acked: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    Add(u64, u64),
    Fence(u64, u64),
    Seal(u64, Option<u64>),
    Delete(u64),
    /// No ledger up to here takes an add any more.
    Watermark(u64),
}

pub(crate) type Story = Arc<Mutex<Vec<Asked>>>;

pub(crate) fn config() -> Config {
    let mut config = Config::new(BookieId::new("b").unwrap(), PathBuf::from("/data/b"), "test");
    config.entry_bytes_max = 3000;
    config.control_reserve = 8192;
    config.journal_file_size = 36 << 10;
    config.journal_file_size_first = 32 << 10;
    config.batch_bytes = 1500;
    config.write_cache = 20_000;
    config.block_bytes = 700;
    config.block_cache = 4096;
    config.ballast = 64 << 10;
    config.punch_bytes = 4096;
    config.shrink_bytes = 8192;
    config.small_run = 1500;
    config.merge_count = 2;
    config.merge_bytes = 1 << 20;
    config.seed = Some(42);
    config
}

/// As [`config`], with shards in directories of their own.
pub(crate) fn sharded() -> Config {
    let mut config = config();
    config.shards = 2;
    config.more_data_dirs = vec![PathBuf::from("/data2/b")];
    config.journal_dirs = vec![PathBuf::from("/journals/b")];
    config.write_cache = 40_000;
    config
}

pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(ManualClock::at_wall_ms(0))
}

/// The one content that an id may ever have.
pub(crate) fn entry(ledger: u64, id: u64) -> Entry {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(id),
        timestamp_ms: ledger,
        bytes_before: 0,
    };
    let size = 20 + (ledger * 37 + id * 131) % 900;
    let payload: Vec<u8> = (0..size).map(|at| (at * 31 + id * 7 + ledger) as u8).collect();
    Entry::new(LedgerId(ledger), EntryId(id), header, Bytes::from(payload))
}

/// A run in progress.
pub(crate) struct Run {
    pub(crate) disk: SimDisk,
    pub(crate) story: Story,
    pub(crate) steps: Steps,
    rng: Rng,
    config: Config,
    next: BTreeMap<u64, u64>,
    terms: BTreeMap<u64, u64>,
    done: Figures,
}

impl Run {
    pub(crate) fn new(disk: SimDisk, config: Config, seed: u64) -> Self {
        let steps = Steps::open(config.clone(), on(&disk), clock()).unwrap();
        Self {
            disk,
            story: Story::default(),
            steps,
            rng: Rng::seeded(seed),
            config,
            next: BTreeMap::new(),
            terms: BTreeMap::new(),
            done: Figures::default(),
        }
    }

    fn ask(&self, what: What) -> usize {
        let mut story = self.story.lock().unwrap();
        story.push(Asked { what, issued: self.disk.position(), acked: None });
        story.len() - 1
    }

    fn acked(&self, at: usize) -> impl FnOnce() + Send + 'static {
        let (story, disk) = (self.story.clone(), self.disk.clone());
        move || story.lock().unwrap()[at].acked = Some(disk.position())
    }

    pub(crate) fn add(&mut self, ledger: u64, ids: &[u64]) {
        let term = Term(*self.terms.get(&ledger).unwrap_or(&1));
        let told: Vec<_> = ids.iter().map(|id| self.acked(self.ask(What::Add(ledger, *id)))).collect();
        let entries = ids.iter().map(|id| entry(ledger, *id)).collect();
        let lac = ids[0].checked_sub(1).map(EntryId);
        let add = Add { ledger: LedgerId(ledger), term, lac, lafr: None, attributes: None, entries };
        let done = Box::new(move |result: Result<(), _>| {
            if result.is_ok() {
                told.into_iter().for_each(|told| told());
            }
        });
        if !self.steps.add(add, done) {
            // No room: what a background thread would do now.
            self.steps.write_all();
            self.steps.prepare();
            self.steps.flush();
        }
    }

    fn control(&mut self, what: What) {
        let told = self.acked(self.ask(what));
        let done = Box::new(move |result: Result<(), _>| {
            if result.is_ok() {
                told();
            }
        });
        match what {
            What::Fence(ledger, term) => self.steps.fence(LedgerId(ledger), Term(term), done),
            What::Seal(ledger, last) => self.steps.seal(LedgerId(ledger), last.map(EntryId), done),
            What::Delete(ledger) => self.steps.delete(LedgerId(ledger), done),
            What::Watermark(to) => self.steps.watermark(LedgerId(to), done),
            What::Add(..) => unreachable!("adds have their own way"),
        }
    }

    fn fresh_ids(&mut self, ledger: u64, count: u64) -> Vec<u64> {
        let next = self.next.entry(ledger).or_default();
        let ids = (*next..*next + count).collect();
        *next += count;
        ids
    }

    /// What was done, in all lives of the store.
    pub(crate) fn done(&self) -> Figures {
        [self.done, self.steps.figures()].into_iter().sum()
    }

    fn reopen(&mut self) {
        self.done = self.done();
        let (disk, config) = (self.disk.clone(), self.config.clone());
        // The old store must let go of its lock first.
        let blank = SimDisk::new();
        self.steps = Steps::open(config.clone(), Arc::new(blank), clock()).unwrap();
        self.steps = Steps::open(config, on(&disk), clock()).unwrap();
    }

    fn large(&mut self) {
        // A ledger of some size next to others, so that a hole in its place is worth punching.
        let ids = self.fresh_ids(6, 30);
        for few in ids.chunks(5) {
            self.add(6, few);
            self.steps.write_all();
            self.steps.prepare();
        }
        self.steps.flush();
        self.control(What::Delete(6));
        self.steps.write_all();
        self.steps.flush();
    }

    /// Small batches side by side, of which the last arrives first.
    fn overtake(&mut self, ledger: u64) {
        self.steps.write_all();
        for _ in 0..3 {
            let ids = self.fresh_ids(ledger, 1);
            self.add(ledger, &ids);
            self.steps.next_batch();
        }
        while self.steps.outstanding() > 0 {
            self.steps.write(self.steps.outstanding() - 1);
        }
    }

    /// One random step.
    pub(crate) fn step(&mut self, reopen: bool) {
        let ledger = 1 + self.rng.below(4);
        match self.rng.below(34) {
            0..=8 => {
                let count = 1 + self.rng.below(3);
                let ids = self.fresh_ids(ledger, count);
                self.add(ledger, &ids);
            }
            9 => {
                // Out of order, and again: a duplicate while the first copy is on its way.
                let ids = self.fresh_ids(ledger, 2);
                self.add(ledger, &[ids[1]]);
                self.add(ledger, &[ids[1]]);
                self.add(ledger, &[ids[0]]);
            }
            10 => {
                let known = *self.next.get(&ledger).unwrap_or(&0);
                if known > 0 {
                    let id = self.rng.below(known);
                    self.add(ledger, &[id]);
                }
            }
            11..=13 => {
                self.steps.next_batch();
            }
            14..=16 => {
                if self.steps.outstanding() > 0 {
                    let at = self.rng.below(self.steps.outstanding() as u64) as usize;
                    self.steps.write(at);
                }
            }
            17 => self.steps.write_all(),
            18 => {
                let term = self.terms.get(&ledger).unwrap_or(&1) + 1;
                self.terms.insert(ledger, term);
                self.control(What::Fence(ledger, term));
            }
            19 if ledger == 3 => {
                let last = self.next.get(&3).unwrap_or(&0).checked_sub(2);
                self.control(What::Seal(3, last));
            }
            20 if ledger == 4 || self.rng.below(3) == 0 => self.control(What::Delete(ledger)),
            21 => drop(self.steps.flush()),
            24..=25 => {
                let shard = self.rng.below(2);
                self.steps.flush_one(shard);
            }
            26 => drop(self.steps.collect()),
            27..=28 => drop(self.steps.merge()),
            29 => drop(self.steps.scrub(2000)),
            30 if self.rng.below(3) == 0 => {
                // Ledger 1 is over: its writer is gone and nobody recovers it.
                self.control(What::Seal(1, self.next.get(&1).unwrap_or(&0).checked_sub(1)));
                self.control(What::Watermark(1));
            }
            32 => self.overtake(ledger),
            31 if self.rng.below(4) == 0 => self.large(),
            22 => self.steps.prepare(),
            23 if reopen => {
                self.steps.write_all();
                self.reopen();
            }
            _ => self.steps.idle(),
        }
    }

    /// Everything on its way arrives, and the idle marker.
    pub(crate) fn settle(&mut self) {
        self.steps.write_all();
        self.steps.prepare();
        self.steps.write_all();
        self.steps.idle();
    }
}
