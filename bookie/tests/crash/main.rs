//! The crash enumerator: small workloads, and after each change of the disk every crash worth trying.
//!
//! `GEMINGA_CRASH_STATES=n` asks for n states instead of the default; `GEMINGA_CRASH_CHECKPOINT=file` keeps the next seed there, so
//! that a long run goes on where it was stopped.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test

mod ceremonies;
mod check;
#[path = "../checkpoint/mod.rs"]
mod checkpoint;
mod crashes;
mod damage;
#[cfg(feature = "museum")]
mod museum;
mod sites;
mod workload;

use check::open;
use crashes::crashes;
use damage::{damage, unlisted_files_stay, unparsed_segments_stay};
use geminga_bookie::{Config, Figures};
use geminga_common::disk::sim::SimDisk;
use std::collections::BTreeMap;
use workload::{Asked, Run, What, config, sharded};

const STEPS: u64 = 45;
/// Crashes tried at one point, at most.
const PER_POINT: usize = 10;

/// What an enumeration found.
#[derive(Default, Debug)]
struct Report {
    states: u64,
    /// The first violations, with where they were.
    violations: Vec<String>,
    kinds: BTreeMap<&'static str, u64>,
}

impl Report {
    fn add(&mut self, place: &str, found: Vec<String>) {
        self.states += 1;
        let room = 5_usize.saturating_sub(self.violations.len());
        self.violations.extend(found.into_iter().map(|text| format!("{place}: {text}")).take(room));
    }

    fn done(&self, target: u64) -> bool {
        self.states >= target || !self.violations.is_empty()
    }
}

/// A fault of the run itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    SyncFails(u64),
    SegmentSyncFails(u64),
    /// This many pages are free at the start.
    Full(u64),
    /// After so many pages nothing fits any more, whatever is removed.
    Limited(u64),
    Lies,
}

struct Recorded {
    start: SimDisk,
    end: SimDisk,
    story: Vec<Asked>,
    config: Config,
    /// What was done in the run.
    done: Figures,
}

fn record(config: &Config, seed: u64, fault: Fault) -> Recorded {
    let disk = SimDisk::new();
    drop(open(&disk, config).expect("formats"));
    let start = disk.fork();
    let disk = start.fork();
    disk.record();
    sites::look_anew();
    let mut run = Run::new(disk.clone(), config.clone(), seed);
    match fault {
        Fault::None => {}
        Fault::SyncFails(n) => disk.fail_sync_in(n),
        Fault::SegmentSyncFails(n) => disk.fail_sync_of("seg", n),
        Fault::Full(pages) => disk.capacity(Some(disk.used() + pages * 4096)),
        Fault::Limited(pages) => disk.limit(Some(pages * 4096)),
        Fault::Lies => disk.lie(true),
    }
    for _ in 0..STEPS {
        run.step(fault == Fault::None);
    }
    run.settle();
    let story = run.story.lock().unwrap().clone();
    Recorded { start, end: disk, story, config: config.clone(), done: run.done() }
}

fn enumerate(config: &Config, target: u64, mut seed: u64, fault: Option<Fault>) -> (Report, u64) {
    let mut report = Report::default();
    while !report.done(target) {
        let fault = fault.unwrap_or(match seed % 5 {
            4 if seed.is_multiple_of(2) => Fault::SegmentSyncFails(seed / 10 % 4),
            4 => Fault::SyncFails(seed / 5 * 7 % 67),
            3 if seed.is_multiple_of(2) => Fault::Limited(seed / 5 * 7 % 80),
            3 => Fault::Full(seed / 5 * 7 % 80),
            _ => Fault::None,
        });
        let config = if seed % 3 == 2 { sharded() } else { config.clone() };
        let run = record(&config, seed, fault);
        crashes(&run, seed, target, &mut report);
        if fault == Fault::None && report.violations.is_empty() {
            damage(&run, seed, 48, &mut report);
        }
        seed += 1;
    }
    (report, seed)
}

#[test]
fn no_crash_loses_what_was_acknowledged() {
    let target = std::env::var("GEMINGA_CRASH_STATES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let kept = std::env::var("GEMINGA_CRASH_CHECKPOINT").ok();
    let seed = kept.as_ref().and_then(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
    let (mut states, mut seed) = (0, seed.unwrap_or(1));
    let mut kinds: BTreeMap<&'static str, u64> = BTreeMap::new();
    while states < target {
        let (report, next) = enumerate(&config(), (target - states).min(20_000), seed, None);
        assert!(report.violations.is_empty(), "{:#?}", report.violations);
        (states, seed) = (states + report.states, next);
        report.kinds.iter().for_each(|(kind, n)| *kinds.entry(kind).or_default() += n);
        if let Some(file) = &kept {
            checkpoint::replace(std::path::Path::new(file), &seed.to_string());
        }
    }
    println!("figure: crash states {states}, violations 0, next seed {seed}, kinds {kinds:?}");
}

#[test]
fn segments_that_do_not_parse_stay() {
    assert_eq!(unparsed_segments_stay(&config()), Vec::<String>::new());
}

#[test]
fn files_that_nothing_lists_stay() {
    assert_eq!(unlisted_files_stay(&config()), Vec::<String>::new());
}

/// A suite that never reaches the rare paths proves nothing about them.
#[test]
fn workloads_reach_every_path() {
    let (mut rolled, mut recycled, mut flushed, mut deleted) = (0, 0, 0, 0);
    let (mut done, mut full) = (Figures::default(), 0);
    for seed in 1..=40 {
        let run = record(&config(), seed, Fault::None);
        let files = run.end.files();
        let of = |ext: &str| files.iter().filter(|(p, _)| p.extension().is_some_and(|e| e == ext)).count();
        let number = |path: &std::path::Path| {
            path.file_stem().and_then(|s| u64::from_str_radix(s.to_str()?, 16).ok()).unwrap_or(0)
        };
        rolled += usize::from(of("jnl") > 1);
        flushed += usize::from(of("seg") > 0);
        done = [done, run.done].into_iter().sum();
        let crowded = record(&config(), seed, Fault::Full(seed * 2));
        let unanswered = |run: &Recorded| run.story.iter().filter(|a| a.acked.is_none()).count();
        full += usize::from(unanswered(&crowded) > unanswered(&run));
        deleted += usize::from(run.story.iter().any(|a| matches!(a.what, What::Delete(_))));
        recycled += usize::from(files.iter().any(|(path, _)| {
            let header = || run.end.bytes(path).ok()?.get(24..32)?.try_into().ok().map(u64::from_le_bytes);
            path.extension().is_some_and(|e| e == "jnl") && header() != Some(number(path))
        }));
    }
    println!(
        "figure: of 40 crash workloads {rolled} rolled, {recycled} recycled, {flushed} flushed, {deleted} deleted, {full} met a full disk; in all {done:?}"
    );
    let kept = [done.removed_segments, done.merged_segments, done.punched_bytes, done.scrubbed_bytes];
    for count in [rolled, recycled, flushed, deleted, full].into_iter().chain(kept.map(|n| n as usize)) {
        assert!(count > 0, "a path was never taken");
    }
}

#[test]
fn no_crash_in_a_ceremony_does_harm() {
    let mut report = Report::default();
    ceremonies::large_flush(&mut report);
    for (config, seed) in [(config(), 3), (sharded(), 2)] {
        ceremonies::ceremonies(&config, seed, &mut report);
        assert!(report.violations.is_empty(), "{:#?}", report.violations);
    }
    assert!(report.states > 500, "only {} states", report.states);
    println!("figure: crashes in ceremonies: {} states, violations 0", report.states);
}

/// Every line of the store that changes the disk is reached by what the enumerator crashes. `--nocapture` shows the list.
#[test]
fn every_call_of_the_disk_is_enumerated() {
    let all = sites::all();
    let seen = sites::seen(|| {
        let mut report = Report::default();
        ceremonies::large_flush(&mut report);
        for (config, seed) in [(config(), 3), (sharded(), 2)] {
            ceremonies::ceremonies(&config, seed, &mut report);
        }
        for seed in 1..=60 {
            let fault = match seed % 4 {
                0 => Fault::Full(seed),
                1 => Fault::Limited(seed),
                _ => Fault::None,
            };
            let run = record(&config(), seed, fault);
            if fault == Fault::None && seed < 20 {
                crashes(&run, seed, report.states + 100, &mut report);
                damage(&run, seed, 8, &mut report);
            }
        }
        assert!(report.violations.is_empty(), "{:#?}", report.violations);
    });
    let missed = sites::missed(&all, &seen);
    all.iter().for_each(|((file, line), text)| println!("{file}:{line}: {text}"));
    println!("figure: {} lines change the disk, {} were not reached", all.len(), missed.len());
    assert!(all.len() > 30 && missed.is_empty(), "not reached: {missed:#?}");
}

#[test]
fn a_lying_sync_is_caught() {
    let (report, _) = enumerate(&config(), 20_000, 1, Some(Fault::Lies));
    assert!(!report.violations.is_empty(), "a disk that lies must show");
    println!("figure: lying sync caught after {} states: {}", report.states, report.violations[0]);
}
