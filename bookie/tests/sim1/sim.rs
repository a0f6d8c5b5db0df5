//! What all hosts share. One thread runs all of them, so no lock is ever waited for; none is held across an await.

use crate::check::Check;
use crate::meta::{Flaky, Trouble};
use crate::plan::Plan;
use geminga_bookie::Config;
use geminga_bookie_client::ledgers::LedgerView;
use geminga_common::clock::{Clock, ManualClock};
use geminga_common::disk::sim::SimDisk;
use geminga_common::ids::BookieId;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) const CLUSTER: &str = "sim1";

/// A bookie's machine: what stays when its process is gone.
pub(crate) struct Machine {
    pub(crate) disk: SimDisk,
    /// Disks it has had.
    pub(crate) disks: u64,
    /// The store failed: the process is about to end.
    pub(crate) failed: bool,
    /// What it answers to reads is damaged on the way.
    pub(crate) garbles: bool,
    /// Disk calls take a hundred times as long.
    pub(crate) slow: bool,
}

pub(crate) struct Sim {
    pub(crate) seed: u64,
    pub(crate) plan: Plan,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) machines: Mutex<Vec<Machine>>,
    pub(crate) trouble: Arc<Trouble>,
    pub(crate) check: Mutex<Check>,
    /// What the owner last saw of its open ledger, for readers of its tail.
    pub(crate) open: Mutex<Option<LedgerView>>,
    /// Owners stop appending: what there is is read back.
    pub(crate) ending: AtomicBool,
    pub(crate) healed: AtomicBool,
    metadata: Arc<MemoryStore>,
    salts: AtomicU64,
    story: Mutex<Story>,
}

#[derive(Default)]
struct Story {
    told: bool,
    hash: u64,
    events: u64,
}

impl Sim {
    pub(crate) fn new(seed: u64, plan: Plan, told: bool) -> Arc<Self> {
        let clock = Arc::new(ManualClock::at_wall_ms(1_700_000_000_000));
        let machine =
            || Machine { disk: SimDisk::new(), disks: 0, failed: false, garbles: false, slow: false };
        Arc::new(Self {
            seed,
            machines: Mutex::new((0..plan.bookies).map(|_| machine()).collect()),
            plan,
            trouble: Arc::default(),
            check: Mutex::default(),
            open: Mutex::default(),
            ending: AtomicBool::new(false),
            healed: AtomicBool::new(false),
            metadata: Arc::new(MemoryStore::new(clock.clone())),
            clock,
            salts: AtomicU64::new(1),
            story: Mutex::new(Story { told, ..Story::default() }),
        })
    }

    /// Randomness for one purpose.
    pub(crate) fn rng(&self) -> Rng {
        let salt = self.salts.fetch_add(1, Ordering::Relaxed);
        Rng::seeded(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt << 32)
    }

    /// Metadata, over a way of its own.
    pub(crate) fn meta(&self) -> Flaky {
        Flaky {
            store: self.metadata.clone(),
            trouble: self.trouble.clone(),
            rng: Arc::new(Mutex::new(self.rng())),
        }
    }

    pub(crate) fn metadata(&self) -> &MemoryStore {
        &self.metadata
    }

    /// The settings of a bookie's store: small, so that every threshold is crossed.
    pub(crate) fn config(&self, number: usize) -> Config {
        let id = BookieId::new(&format!("b{number}")).expect("a plain name");
        let mut config = Config::new(id, PathBuf::from("/data/b"), CLUSTER);
        config.shards = 1 + (self.seed % 2) as u16;
        config.entry_bytes_max = 8 << 10;
        config.control_reserve = 8192;
        config.journal_file_size = 64 << 10;
        config.journal_file_size_first = 64 << 10;
        config.batch_bytes = 3 << 10;
        config.write_cache = 64 << 10;
        config.block_bytes = 2 << 10;
        config.block_cache = 16 << 10;
        config.ballast = 0;
        config.recovery_reserve = 64 << 10;
        config.cursor_reserve = 64 << 10;
        let disks = self.machines.lock()[number].disks;
        config.seed = Some(self.seed * 1000 + 100 * disks + number as u64 + 1);
        config
    }

    /// Something happened: part of what two runs of a seed must have in common.
    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        let text = text();
        let now = self.clock.mono();
        let mut story = self.story.lock();
        story.events += 1;
        let mut line = String::new();
        let _infallible = write!(line, "{:>9.3} {text}", now.as_secs_f64());
        for byte in line.bytes() {
            story.hash = (story.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        if story.told {
            println!("{line}");
        }
    }

    /// Hash of all that happened, and how much that was.
    pub(crate) fn story(&self) -> (u64, u64) {
        let story = self.story.lock();
        (story.hash, story.events)
    }
}

pub(crate) fn keys() -> Keys {
    Keys::new(CLUSTER)
}
