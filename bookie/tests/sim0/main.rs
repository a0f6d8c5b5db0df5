//! SIM0: writers, recoverers, bookies, metadata, disks and network in one deterministic loop of events, over the real machines.
//!
//! | file | what it holds |
//! |---|---|
//! | `plan` | what a seed is made of: cluster, load, swarm of faults |
//! | `world` | the event loop, network, calls, processes |
//! | `node` | a bookie: the real store on a simulated disk |
//! | `meta` | metadata, topic record |
//! | `broker`, `writer`, `ledger`, `controller` | the processes: owner of a topic, ledger protocol, repair and deletion |
//! | `faults` | what strikes, within the damage that quorums promise to survive |
//! | `check` | the observer: I1–I20 as far as their parts exist |
//! | `run` | one seed: faults, healing, liveness, everything read back |
//! | `trace` | hash and text of what happened |
//!
//! `GEMINGA_SIM0=first..end` runs these seeds instead of the short form, `GEMINGA_SIM0_CHECKPOINT=file` keeps the next seed there, so
//! that a long run goes on where it was stopped. `GEMINGA_SIM0_REPLAY=seed` prints one seed's trace.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test

mod broker;
mod check;
mod controller;
mod faults;
mod ledger;
mod meta;
#[cfg(feature = "museum")]
mod museum;
mod node;
mod plan;
mod run;
mod trace;
mod world;
mod writer;

use geminga_common::disk::{Disk, OpenMode, RealDisk};
use std::collections::BTreeMap;
use std::path::Path;

/// Seeds of the short form.
const SHORT: u64 = 600;

/// What a range of seeds amounted to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    canaries: u64,
    events: u64,
    simulated: u64,
    injected: BTreeMap<&'static str, u64>,
    seen: check::Seen,
}

impl Sum {
    fn add(&mut self, report: &run::Report) {
        self.seeds += 1;
        self.events += report.events;
        self.simulated += report.simulated;
        report.injected.iter().for_each(|(what, n)| *self.injected.entry(what).or_default() += n);
        self.seen.add(&report.seen);
    }

    fn print(&self) {
        let faults: u64 = self.injected.values().sum();
        println!(
            "sim0: {} seeds, {} run twice, {} events, {:.1} simulated hours, {faults} faults, violations 0",
            self.seeds,
            self.canaries,
            self.events,
            self.simulated as f64 / 3.6e9
        );
        println!("faults {:?}", self.injected);
        println!("seen {:?}", self.seen);
    }
}

fn command(seed: u64) -> String {
    format!(
        "GEMINGA_SIM0_REPLAY={seed} cargo test --release -p geminga-bookie --test sim0 replay -- --nocapture"
    )
}

/// Runs a seed; every hundredth twice, and both must be the same. The answer is what it broke.
fn one(seed: u64, sum: &mut Sum) -> Option<String> {
    let report = run::seed(seed, false);
    if let Some(broken) = &report.broken {
        return Some(format!("seed {seed}: {broken}\nreplay: {}", command(seed)));
    }
    if seed.is_multiple_of(100) {
        let again = run::seed(seed, false);
        assert_eq!(
            (report.hash, report.events),
            (again.hash, again.events),
            "seed {seed} does not repeat itself"
        );
        sum.canaries += 1;
    }
    sum.add(&report);
    None
}

fn seeds() -> (u64, u64, Option<String>) {
    let asked = std::env::var("GEMINGA_SIM0").ok();
    let range = asked.as_deref().map(|text| {
        let (first, end) = text.split_once("..").expect("GEMINGA_SIM0=first..end");
        (first.parse().expect("a number before .."), end.parse().expect("a number after .."))
    });
    let (mut first, end) = range.unwrap_or((0, SHORT));
    let checkpoint = std::env::var("GEMINGA_SIM0_CHECKPOINT").ok();
    let kept = checkpoint.as_ref().and_then(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
    first = kept.unwrap_or(first).max(first);
    (first, end, checkpoint)
}

fn keep(file: &str, next: u64) {
    let (path, new) = (Path::new(file), Path::new(file).with_extension("new"));
    let _absent = RealDisk.remove(&new);
    let out = RealDisk.open(&new, OpenMode::CreateNew).unwrap();
    out.write_all_at(next.to_string().as_bytes(), 0).unwrap();
    out.sync_data().unwrap();
    RealDisk.rename(&new, path).unwrap();
}

#[test]
fn no_schedule_breaks_a_promise() {
    let (first, end, checkpoint) = seeds();
    let (mut sum, mut broken) = (Sum::default(), Vec::new());
    for seed in first..end {
        broken.extend(one(seed, &mut sum));
        assert!(broken.len() < 20, "{}", broken.join("\n"));
        if let Some(file) = &checkpoint
            && (seed + 1).is_multiple_of(500)
        {
            keep(file, seed + 1);
        }
    }
    if let Some(file) = &checkpoint {
        keep(file, end);
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    sum.print();
    if sum.seeds >= SHORT {
        sum.seen.reached();
    }
}

/// `GEMINGA_SIM0_REPLAY=seed`: the whole story of one seed. Without it, the story of a seed is told twice, alike.
#[test]
fn replay() {
    let asked = std::env::var("GEMINGA_SIM0_REPLAY").ok().and_then(|seed| seed.parse().ok());
    let report = run::seed(asked.unwrap_or(7), true);
    if let Some(seed) = asked {
        println!("{}", report.trace);
        println!(
            "seed {seed}: {} events, hash {:016x}, broken: {:?}",
            report.events, report.hash, report.broken
        );
    } else {
        assert!(report.trace == run::seed(7, true).trace, "one seed, two stories");
        assert!(report.trace.lines().count() > 50);
    }
}
