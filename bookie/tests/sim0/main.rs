//! SIM0: writers, recoverers, bookies, metadata, disks and network in one deterministic loop of events, over the real machines.
//!
//! | file | what it holds |
//! |---|---|
//! | `plan` | what a seed is made of: cluster, load, swarm of faults |
//! | `world` | the event loop, network, processes |
//! | `calls`, `rpc` | calls to bookies; the client's own code over them |
//! | `node` | a bookie: the real store on a simulated disk |
//! | `meta` | metadata, topic record |
//! | `broker`, `writer`, `ledger`, `controller`, `repair` | the processes: owner of a topic, ledger protocol, deletion, repair |
//! | `faults` | what strikes, within the damage that quorums promise to survive |
//! | `slow` | verdicts over who is slow, and writers that leave who is |
//! | `damage` | how much may be lost for good, by the budget of S1 |
//! | `check` | the observer: I1–I20 as far as their parts exist |
//! | `run` | one seed: faults, healing, liveness, everything read back |
//! | `totals` | what many seeds amounted to, kept in a file |
//! | `trace` | hash and text of what happened |
//!
//! `GEMINGA_SIM0=first..end` runs these seeds instead of the short form, at most `GEMINGA_SIM0_SECONDS=n` of them;
//! `GEMINGA_SIM0_CHECKPOINT=file` keeps the next seed and the totals there, so that a long run goes on where it was stopped.
//! `GEMINGA_SIM0_REPLAY=seed` prints one seed's trace.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test

mod broker;
mod calls;
mod check;
#[path = "../checkpoint/mod.rs"]
mod checkpoint;
mod controller;
mod damage;
mod faults;
mod ledger;
mod meta;
#[cfg(feature = "museum")]
mod museum;
mod node;
mod plan;
mod repair;
mod rpc;
mod run;
mod slow;
mod totals;
mod trace;
mod world;
mod writer;

use geminga_common::clock::{Clock, SystemClock};
use totals::Totals;

/// Half of the time goes into small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds of the short form.
const SHORT: u64 = 600;

/// Seeds that broke something once; the rooms' READMEs say what. They run with the short form.
const REGRESSIONS: [u64; 7] = [341, 380, 673, 2183, 2443, 31051, 1_002_305];

fn command(seed: u64) -> String {
    format!(
        "GEMINGA_SIM0_REPLAY={seed} cargo test --release -p geminga-bookie --test sim0 replay -- --nocapture"
    )
}

/// Runs a seed; every hundredth twice, and both must be the same. What it broke is kept in the totals.
fn one(seed: u64, totals: &mut Totals) {
    let report = run::seed(seed, false);
    totals.add(&report);
    if let Some(broken) = &report.broken {
        totals.broken.push(format!("seed {seed}: {broken}; replay: {}", command(seed)));
    }
    if seed.is_multiple_of(100) {
        let again = run::seed(seed, false);
        assert_eq!(
            (report.hash, report.events),
            (again.hash, again.events),
            "seed {seed} does not repeat itself"
        );
        totals.canaries += 1;
    }
}

/// A number given in the environment.
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_schedule_breaks_a_promise() {
    let range = std::env::var("GEMINGA_SIM0").ok();
    let (first, end) = range.as_deref().map_or((0, SHORT), |text| {
        let (first, end) = text.split_once("..").expect("GEMINGA_SIM0=first..end");
        (first.parse().expect("a number before .."), end.parse().expect("a number after .."))
    });
    let mut totals = Totals::begin(first);
    let (clock, limit) = (SystemClock::new(), asked("GEMINGA_SIM0_SECONDS"));
    let begun = clock.mono();
    let late = || limit.is_some_and(|s| clock.mono().saturating_sub(begun).as_secs() >= s);
    while totals.next < end && totals.broken.len() < 20 && !late() {
        one(totals.next, &mut totals);
        totals.next += 1;
        if totals.next.is_multiple_of(500) {
            totals.keep();
        }
    }
    if range.is_none() {
        REGRESSIONS.into_iter().for_each(|seed| one(seed, &mut totals));
    }
    totals.keep();
    totals.print();
    assert!(totals.broken.is_empty(), "{}", totals.broken.join("\n"));
    if totals.seeds >= SHORT {
        totals.reached();
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
