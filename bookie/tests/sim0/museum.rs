//! The museum in SIM0: every mutant is caught, and by a promise rather than by chance. `GEMINGA_MUSEUM_RUNS=10` prints the table of the
//! room's README: median of the seeds it took, over that many base seeds.

use crate::run;
use geminga_bookie::mutant::Mutant as StoreMutant;
use geminga_bookie_client::mutant::Mutant;
use geminga_common::museum;

#[derive(Clone, Copy, Debug)]
enum Back {
    Protocol(Mutant),
    Store(StoreMutant),
}

/// Number in the reliability brief, what comes back, most seeds it may take, beginnings of what it breaks.
const MUSEUM: [(&str, Back, u64, &[&str]); 25] = [
    ("1", Back::Protocol(Mutant::FenceWithoutTerm), 2000, &["I2", "I5"]),
    ("2", Back::Protocol(Mutant::RecoverFromBelow), 2000, &["I2", "I10", "I20", "S1"]),
    ("3", Back::Protocol(Mutant::TrustAmnesiac), 4000, &["I1", "I2", "I15", "S1"]),
    ("3", Back::Store(StoreMutant::AmnesiacNotFound), 4000, &["I7"]),
    ("4", Back::Protocol(Mutant::WaitForAll), 8000, &["I20"]),
    ("5", Back::Store(StoreMutant::UnreadableNotFound), 6000, &["I7", "S1"]),
    ("6", Back::Store(StoreMutant::FenceLost), 2000, &["I5", "I2"]),
    ("7", Back::Protocol(Mutant::StaleWriter), 2000, &["I3", "I12", "I10", "I2"]),
    ("8", Back::Store(StoreMutant::TombstoneForgotten), 4000, &["I7", "I5", "I2", "I14"]),
    ("9", Back::Store(StoreMutant::UnparsedCollected), 8000, &["I7", "S1"]),
    ("10", Back::Protocol(Mutant::GcByListing), 4000, &["I13"]),
    ("11", Back::Store(StoreMutant::BadRecordSkipped), 6000, &["I7", "I5", "S9"]),
    ("13", Back::Protocol(Mutant::DamageEndsRead), 2000, &["S1"]),
    ("14", Back::Store(StoreMutant::MarkAheadOfFlush), 4000, &["I7", "I5"]),
    ("15", Back::Store(StoreMutant::IdentityMissingOk), 4000, &["I7", "I5", "b"]),
    ("26", Back::Protocol(Mutant::LagUnbounded), 2000, &["I16"]),
    ("38", Back::Store(StoreMutant::SyncRetried), 6000, &["I7", "S9"]),
    ("39", Back::Store(StoreMutant::ChecksumTruncates), 6000, &["I7", "I5"]),
    ("40", Back::Protocol(Mutant::ResendDrained), 2000, &["I4"]),
    ("own", Back::Protocol(Mutant::OneWatermark), 8000, &["I14"]),
    ("own", Back::Protocol(Mutant::EpochOfRevision), 4000, &["I20", "S2"]),
    ("own", Back::Protocol(Mutant::ProgressAsLac), 20_000, &["I1", "I2", "I15", "S1"]),
    ("own", Back::Protocol(Mutant::WindowFromLafr), 2000, &["I16", "I20"]),
    ("own", Back::Store(StoreMutant::ListedEarly), 8000, &["I7", "I15"]),
    ("own", Back::Store(StoreMutant::DuplicateAckedEarly), 8000, &["I7", "I1"]),
];

impl Back {
    fn bring_back(self) -> museum::Back {
        match self {
            Back::Protocol(mutant) => museum::bring_back(mutant),
            Back::Store(mutant) => museum::bring_back(mutant),
        }
    }
}

/// Seeds until it is caught, and what it broke.
fn caught(back: Back, base: u64, most: u64) -> Option<(u64, String)> {
    let _back = back.bring_back();
    (0..most).find_map(|n| run::seed(base + n, false).broken.map(|broken| (n + 1, broken)))
}

#[test]
fn every_mutant_is_caught() {
    let asked = std::env::var("GEMINGA_MUSEUM_RUNS").ok().and_then(|n| n.parse().ok());
    let only = std::env::var("GEMINGA_MUSEUM_ONLY").ok();
    // The short form leaves out what may take minutes.
    let (runs, longest) = (asked.unwrap_or(1_u64), if asked.is_some() { u64::MAX } else { 2000 });
    let mut missed = Vec::new();
    for (number, back, most, promises) in MUSEUM {
        if only.is_none() && most > longest
            || only.as_ref().is_some_and(|only| !format!("{back:?}").contains(only.as_str()))
        {
            continue;
        }
        let mut counts = Vec::new();
        let mut example = String::new();
        for run in 0..runs {
            match caught(back, 1_000_000 * (run + 1), most) {
                Some((seeds, broken)) => {
                    if !promises.iter().any(|p| broken.starts_with(p)) {
                        missed.push(format!("{back:?} is caught by the wrong promise: {broken}"));
                    }
                    counts.push(seeds);
                    example = broken;
                }
                None => missed
                    .push(format!("{back:?} is not caught in {most} seeds from {}", 1_000_000 * (run + 1))),
            }
        }
        counts.sort_unstable();
        let median = counts.get(counts.len() / 2);
        let text: String = example.chars().take(110).collect();
        println!("| {number} | {back:?} | {median:?} | {:?} | {text} |", counts.last());
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
