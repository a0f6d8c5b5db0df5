//! What one seed is made of: the cluster, the load, and a swarm of faults. Everything is drawn up front from the seed.

use geminga_bookie_client::quorum::QuorumSpec;
use geminga_common::rng::Rng;

/// Simulated time in microseconds.
pub(crate) type Us = u64;

pub(crate) const MS: Us = 1000;
pub(crate) const SECOND: Us = 1_000_000;

/// (E, Qw, Qa), by weight of appearance.
const QUORUMS: [(u32, u32, u32); 9] =
    [(3, 3, 2), (3, 3, 2), (3, 3, 2), (3, 2, 2), (4, 3, 2), (3, 3, 3), (2, 2, 1), (2, 2, 2), (5, 3, 2)];

/// A fault that strikes at one moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Fault {
    /// A bookie loses power, keeping any part of what was not synced.
    Crash,
    /// All bookies lose power at once.
    PowerCut,
    /// A bookie stands still, then goes on.
    Pause,
    /// A bookie's disk is replaced by a blank one: new incarnation.
    Wipe,
    /// One bit of a journal or segment file flips.
    Flip,
    /// One file of a store that is down is lost.
    FileLost,
    /// A bookie's disk is replaced by a blank one while another store is damaged, and what was on it can still be read elsewhere.
    SecondLoss,
    /// A sync fails.
    SyncFails,
    /// The disk is full for a while.
    DiskFull,
    /// The disk is a hundred times slower for a while.
    SlowDisk,
    /// A broker dies and starts again.
    BrokerCrash,
    /// A broker stands still, possibly past its lease.
    BrokerPause,
    /// Requests or answers between one process and one bookie are lost, in one direction.
    Partition,
    /// A process does not reach metadata.
    MetaCut,
    /// Nobody reaches metadata.
    MetaDown,
    /// Somebody who does not own the ledger recovers it.
    Stray,
    /// Metadata is restored into a new store: its content stays, its revisions begin anew, and all that used it start again.
    MetaRestore,
    /// Clients find a bookie slow for a while; its disk may be.
    SlowVerdict,
}

pub(crate) const FAULTS: [Fault; 15] = [
    Fault::Crash,
    Fault::PowerCut,
    Fault::Pause,
    Fault::Wipe,
    Fault::Flip,
    Fault::FileLost,
    Fault::SyncFails,
    Fault::DiskFull,
    Fault::SlowDisk,
    Fault::BrokerCrash,
    Fault::BrokerPause,
    Fault::Partition,
    Fault::MetaCut,
    Fault::MetaDown,
    Fault::Stray,
];

/// How messages fare in a window, per 1000.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct NetFaults {
    pub(crate) drop: u64,
    pub(crate) duplicate: u64,
    pub(crate) delay: u64,
    pub(crate) overtake: u64,
    /// Metadata requests that never arrive, or whose answer is lost.
    pub(crate) meta_loss: u64,
    /// Watch events lost, late or told twice.
    pub(crate) hints: u64,
    /// Entries on the wire of which a byte changes.
    pub(crate) flips: u64,
    /// Listings that lack some of what there is.
    pub(crate) holes: u64,
}

/// A stretch of time with its faults.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) start: Us,
    pub(crate) net: NetFaults,
    /// When what strikes.
    pub(crate) faults: Vec<(Us, Fault)>,
}

/// One seed's world.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) quorum: QuorumSpec,
    pub(crate) bookies: usize,
    pub(crate) brokers: usize,
    /// Entries after which a ledger is rolled.
    pub(crate) roll_entries: u64,
    /// Closed ledgers kept; older ones are trimmed.
    pub(crate) keep: usize,
    pub(crate) payload_max: u64,
    /// Mean time between turns of the producer.
    pub(crate) turn: Us,
    /// Largest lag of a slot, bytes.
    pub(crate) lag_bytes_max: usize,
    pub(crate) fragments_max: usize,
    pub(crate) windows: Vec<Window>,
    /// When faults end.
    pub(crate) heal: Us,
    /// Stores that say they lost data are let go of, instead of their disks being replaced.
    pub(crate) let_go: bool,
    /// How often another disk may be replaced soon after a store says so.
    pub(crate) second_losses: u32,
    /// One bookie stays hung after the healing: it must stop nobody.
    pub(crate) hung_after: bool,
}

impl Plan {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let (e, w, a) = QUORUMS[rng.below(QUORUMS.len() as u64) as usize];
        let quorum = QuorumSpec::new(e, w, a).expect("the table holds quorums");
        let spares = rng.below(4) as usize;
        let enabled: Vec<Fault> = FAULTS.into_iter().filter(|_| rng.below(5) < 2).collect();
        let weather: [bool; 6] = std::array::from_fn(|_| rng.below(2) == 0);
        let mut windows = Vec::new();
        let mut at = 0;
        for _ in 0..3 + rng.below(6) {
            let length = SECOND + rng.below(7 * SECOND);
            windows.push(Self::window(rng, at, length, &enabled, weather));
            at += length;
        }
        let plan = Self {
            quorum,
            bookies: e as usize + spares,
            brokers: 2 + rng.below(2) as usize,
            roll_entries: 3 + rng.below(14),
            keep: 2 + rng.below(6) as usize,
            payload_max: 20 + rng.below(600),
            turn: (20 + rng.below(150)) * MS,
            lag_bytes_max: [600, 4000, 1 << 20][rng.below(3) as usize],
            fragments_max: 4 + rng.below(12) as usize,
            windows,
            heal: at,
            let_go: false,
            second_losses: 0,
            hung_after: spares > 0 && rng.below(4) == 0,
        };
        plan.with_late_faults(rng)
    }

    /// What joined later is drawn last: the rest of a seed's plan stays what it was.
    fn with_late_faults(mut self, rng: &mut Rng) -> Self {
        let (flips, holes, restores) = (rng.below(3) == 0, rng.below(3) == 0, rng.below(6) == 0);
        for window in
            self.windows.iter_mut().filter(|w| w.net != NetFaults::default() || !w.faults.is_empty())
        {
            window.net.flips = if flips { rng.below(30) } else { 0 };
            window.net.holes = if holes { rng.below(400) } else { 0 };
            if restores && rng.below(3) == 0 {
                window.faults.push((window.start + rng.below(SECOND), Fault::MetaRestore));
            }
        }
        self.let_go = rng.below(3) > 0;
        if self.let_go && rng.below(2) == 0 {
            for window in &mut self.windows {
                window.faults.push((window.start + rng.below(2 * SECOND), Fault::FileLost));
            }
            self.second_losses = 4;
        }
        if rng.below(2) == 0 {
            for window in &mut self.windows {
                for _ in 0..rng.below(3) {
                    window.faults.push((window.start + rng.below(4 * SECOND), Fault::SlowVerdict));
                }
            }
        }
        self
    }

    fn window(rng: &mut Rng, start: Us, length: Us, enabled: &[Fault], weather: [bool; 6]) -> Window {
        if rng.below(4) == 0 {
            return Window { start, net: NetFaults::default(), faults: Vec::new() };
        }
        let mut rate = |on: bool, max: u64| if on { rng.below(max + 1) } else { 0 };
        let net = NetFaults {
            drop: rate(weather[0], 60),
            duplicate: rate(weather[1], 150),
            delay: rate(weather[2], 150),
            overtake: rate(weather[3], 150),
            meta_loss: rate(weather[4], 300),
            hints: rate(weather[5], 500),
            ..NetFaults::default()
        };
        let mut faults = Vec::new();
        for fault in enabled {
            for _ in 0..rng.below(3) {
                faults.push((start + rng.below(length), *fault));
            }
        }
        Window { start, net, faults }
    }
}
