//! The museum in SIM0: every mutant is caught, and by a promise rather than by chance. `GEMINGA_MUSEUM_RUNS=10` prints the table of the
//! room's README: median of the seeds it took, over that many base seeds. `GEMINGA_MUSEUM_CHECKPOINT=file` keeps the runs that are done.

use crate::checkpoint::replace;
use crate::run;
use geminga_bookie::mutant::Mutant as StoreMutant;
use geminga_bookie_client::mutant::Mutant;
use geminga_common::museum;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[derive(Clone, Copy, Debug)]
enum Back {
    Protocol(Mutant),
    Store(StoreMutant),
}

/// Number in the reliability brief, what comes back, most seeds it may take, beginnings of what it breaks.
const MUSEUM: [(&str, Back, u64, &[&str]); 30] = [
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
    ("own", Back::Protocol(Mutant::ReleaseUnchecked), 8000, &["I15"]),
    ("own", Back::Protocol(Mutant::SlowKeepsAcks), 2000, &["I15", "I1"]),
    ("own", Back::Protocol(Mutant::SlowOwesNothing), 2000, &["I15", "I1"]),
    ("own", Back::Protocol(Mutant::LateLossForgotten), 20_000, &["I15"]),
    ("own", Back::Store(StoreMutant::IncarnationKept), 2000, &["I7"]),
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

/// What one run of one mutant came to.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Run {
    /// Seeds it took; `None`: not caught.
    seeds: Option<u64>,
    broken: String,
}

fn run(back: Back, base: u64, most: u64) -> Run {
    let _back = back.bring_back();
    let caught = (0..most).find_map(|n| run::seed(base + n, false).broken.map(|broken| (n + 1, broken)));
    let (seeds, broken) = caught.unzip();
    Run { seeds, broken: broken.unwrap_or_default().replace('\n', " ") }
}

/// Runs that are done, by mutant and number, in a file that a later start goes on from.
#[derive(Default)]
struct Done(BTreeMap<String, Run>);

impl Done {
    fn file() -> Option<String> {
        std::env::var("GEMINGA_MUSEUM_CHECKPOINT").ok()
    }

    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut parts = line.splitn(3, '\t');
            let key = parts.next()?.to_owned();
            let seeds = parts.next()?.parse().ok();
            Some((key, Run { seeds, broken: parts.next()?.to_owned() }))
        };
        Self(text.lines().filter_map(line).collect())
    }

    fn text(&self) -> String {
        let seeds = |run: &Run| run.seeds.map_or_else(|| "-".to_owned(), |seeds| seeds.to_string());
        self.0.iter().map(|(key, run)| format!("{key}\t{}\t{}\n", seeds(run), run.broken)).collect()
    }

    /// What a run came to; it is made if it is not in the file.
    fn run(&mut self, back: Back, number: u64, most: u64) -> Run {
        let key = format!("{back:?} {number}");
        if let Some(done) = self.0.get(&key) {
            return done.clone();
        }
        let done = run(back, 1_000_000 * (number + 1), most);
        self.0.insert(key, done.clone());
        if let Some(file) = Self::file() {
            replace(Path::new(&file), &self.text());
        }
        done
    }
}

#[test]
fn runs_survive_their_file() {
    let text = "Store(FenceLost) 0\t2\tI5: b1 took\nStore(FenceLost) 1\t-\t\n";
    assert_eq!(Done::parse(text).text(), text);
}

#[test]
fn every_mutant_is_caught() {
    let asked = std::env::var("GEMINGA_MUSEUM_RUNS").ok().and_then(|n| n.parse().ok());
    let only = std::env::var("GEMINGA_MUSEUM_ONLY").ok();
    let mut done = Done::file().and_then(|file| std::fs::read_to_string(file).ok());
    let mut done = done.take().map_or_else(Done::default, |text| Done::parse(&text));
    // The short form leaves out what may take minutes.
    let (runs, longest) = (asked.unwrap_or(1_u64), if asked.is_some() { u64::MAX } else { 2000 });
    let mut missed = Vec::new();
    println!("| | mutant | median of {runs} | least | most | breaks |\n|---|---|---|---|---|---|");
    for (number, back, most, promises) in MUSEUM {
        let left_out =
            only.as_ref().map_or(most > longest, |only| !format!("{back:?}").contains(only.as_str()));
        if left_out {
            continue;
        }
        let all: Vec<Run> = (0..runs).map(|number| done.run(back, number, most)).collect();
        for run in all
            .iter()
            .filter(|run| run.seeds.is_none() || !promises.iter().any(|p| run.broken.starts_with(p)))
        {
            missed.push(format!("{back:?} is not caught as it should be: {run:?}"));
        }
        // Who was not caught took more than all the others.
        let mut counts: Vec<u64> = all.iter().map(|run| run.seeds.unwrap_or(u64::MAX)).collect();
        counts.sort_unstable();
        let told = |seeds: u64| if seeds == u64::MAX { format!("> {most}") } else { seeds.to_string() };
        let named: BTreeSet<&str> = all.iter().filter_map(|run| run.broken.split(':').next()).collect();
        let named: Vec<&str> = named.into_iter().collect();
        println!(
            "| {number} | {back:?} | {} | {} | {} | {} |",
            told(counts[counts.len() / 2]),
            told(counts[0]),
            told(counts[counts.len() - 1]),
            named.join(", ")
        );
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
