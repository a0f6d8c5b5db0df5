//! What one seed is made of. Everything is drawn up front from the seed.

use geminga_bookie_client::quorum::QuorumSpec;
use geminga_common::rng::Rng;
use std::time::Duration;

/// (E, Qw, Qa), by weight of appearance.
const QUORUMS: [(u32, u32, u32); 6] = [(3, 3, 2), (3, 3, 2), (3, 3, 2), (3, 2, 2), (4, 3, 2), (3, 3, 3)];

/// A fault that strikes at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// A bookie loses power, keeping any part of what was not synced.
    Crash,
    /// All bookies lose power at once.
    PowerCut,
    /// A bookie's disk is replaced by a blank one: new incarnation. Once in a seed at most.
    Wipe,
    /// One bit of a segment flips, in a seed without a wipe, at one bookie.
    Flip,
    /// A bookie's answers to reads are damaged on their way, from then on, in a seed without the two above.
    Garble,
    /// A sync fails: the store fail-stops.
    SyncFails,
    /// The disk is full for a while.
    DiskFull,
    /// The disk is a hundred times slower for a while.
    SlowDisk,
    /// An owner dies and starts again.
    OwnerCrash,
    /// Nothing passes between two hosts for a while.
    Partition,
    /// Nothing passes from one host to another for a while.
    OneWay,
    /// What is sent between two hosts is held, and delivered later.
    Hold,
    /// A link is slow for a while.
    SlowLink,
    /// Metadata fails or answers nothing for a while, for everybody.
    Metadata,
    /// A bookie's disk is a hundred times slower until the healing: long enough to be found out.
    SlowBookie,
}

const FAULTS: [Fault; 14] = [
    Fault::Crash,
    Fault::PowerCut,
    Fault::Wipe,
    Fault::Flip,
    Fault::Garble,
    Fault::SyncFails,
    Fault::DiskFull,
    Fault::SlowDisk,
    Fault::OwnerCrash,
    Fault::Partition,
    Fault::OneWay,
    Fault::Hold,
    Fault::SlowLink,
    Fault::Metadata,
];

/// One seed's world.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) quorum: QuorumSpec,
    pub(crate) bookies: usize,
    pub(crate) owners: usize,
    /// Entries after which a ledger is rolled.
    pub(crate) roll_entries: u64,
    pub(crate) payload_max: u64,
    /// Mean pause between bursts of appends.
    pub(crate) turn: Duration,
    /// Slowest message on a healthy network.
    pub(crate) latency_max: Duration,
    /// Per 1000 calls to metadata: outcomes that are not known, with faults on.
    pub(crate) meta_unknown: u64,
    /// What strikes when, times rising.
    pub(crate) faults: Vec<(Duration, Fault)>,
    /// When faults end.
    pub(crate) heal: Duration,
}

impl Plan {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let (e, w, a) = QUORUMS[rng.below(QUORUMS.len() as u64) as usize];
        let quorum = QuorumSpec::new(e, w, a).expect("the table holds quorums");
        let spares = rng.below(3) as usize;
        let enabled: Vec<Fault> = FAULTS.into_iter().filter(|_| rng.below(5) < 2).collect();
        let heal = Duration::from_millis(6000 + rng.below(9000));
        let mut faults = Vec::new();
        for fault in enabled {
            for _ in 0..1 + rng.below(3) {
                faults.push((Duration::from_millis(500 + rng.below(heal.as_millis() as u64 - 500)), fault));
            }
        }
        let mut plan = Self {
            quorum,
            bookies: e as usize + spares,
            owners: 2,
            roll_entries: 5 + rng.below(60),
            payload_max: 20 + rng.below(2000),
            turn: Duration::from_millis(2 + rng.below(60)),
            latency_max: Duration::from_millis(1 + rng.below(20)),
            meta_unknown: if rng.below(2) == 0 { rng.below(150) } else { 0 },
            faults,
            heal,
        };
        // What joined later is drawn last: the rest of a seed's plan stays what it was.
        if rng.below(3) == 0 {
            plan.faults.push((Duration::from_millis(500 + rng.below(1500)), Fault::SlowBookie));
        }
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }
}
