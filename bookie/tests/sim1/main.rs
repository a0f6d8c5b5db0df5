//! SIM1: the whole bookie and client under turmoil: real codec, connections, streams and tasks, on simulated time and a simulated network.
//!
//! | file | what it holds |
//! |---|---|
//! | `plan` | what a seed is made of: cluster, load, faults and when they strike |
//! | `sim` | what all hosts share: disks, metadata, clock, the observer |
//! | `net` | connections of the simulated network, for tonic |
//! | `store` | a bookie's store without threads, behind the real service |
//! | `node` | a bookie: starts, registers, serves |
//! | `meta` | metadata as a client sees it: slow, cut off, with outcomes unknown |
//! | `topic` | the record that owners contend for |
//! | `client` | the real ledger client of a host |
//! | `owner`, `reader`, `repair` | the other hosts |
//! | `judge` | the end: everything made whole and read back |
//! | `check` | the observer |
//! | `faults` | what strikes |
//! | `museum` | known defects, each caught |
//! | `run` | one seed: faults, healing, liveness, everything read back |
//! | `totals` | what many seeds amounted to |
//!
//! What SIM0 leaves out is real here: gRPC, the packed tables, lanes, credits, windows, deadlines, hedged reads, reconnects, the registry,
//! zones, the writer's and the recoverer's own shells. In SIM0's favour: its loop is faster and its faults are finer. Not real here: the
//! store's threads (its single steps are driven by tasks on simulated time), and the kernel's TCP.
//!
//! A process runs one seed, with clock and randomness of the C library replaced, so that it repeats itself to the last event; the parent
//! starts two at a time. `GEMINGA_SIM1=first..end` runs these seeds instead of the short form, `GEMINGA_SIM1_CHECKPOINT=file` keeps the
//! next seed and the totals there. `GEMINGA_SIM1_REPLAY=seed` prints one seed's story.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test

mod check;
#[path = "../checkpoint/mod.rs"]
mod checkpoint;
mod client;
mod faults;
mod judge;
mod meta;
#[cfg(feature = "museum")]
mod museum;
mod net;
mod node;
mod owner;
mod plan;
mod reader;
mod repair;
mod run;
mod sim;
mod store;
mod topic;
mod totals;

use std::process::ExitCode;
use totals::Totals;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds of the short form.
const SHORT: u64 = 60;

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Its own `main`: the harness waits by the clock, which stands still in this program. It says what the harness would.
fn main() -> ExitCode {
    if let Some(seed) = asked("GEMINGA_SIM1_SEED") {
        println!("{}", run::alone(seed, false).line());
        return ExitCode::SUCCESS;
    }
    if let Some(seed) = asked("GEMINGA_SIM1_REPLAY") {
        println!("{}", run::alone(seed, true).line());
        return ExitCode::SUCCESS;
    }
    let mut tests: Vec<(&str, fn() -> Vec<String>)> =
        vec![("no_schedule_breaks_a_promise", no_schedule_breaks_a_promise)];
    #[cfg(feature = "museum")]
    tests.push(("museum::every_mutant_is_caught", museum::every_mutant_is_caught));
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let all = tests.len();
    tests.retain(|(name, _)| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    });
    let (mut passed, mut failed, left) = (0, 0, all - tests.len());
    for (name, test) in tests {
        let broken = test();
        println!(
            "test {name} ... {}\n{}",
            if broken.is_empty() { "ok" } else { "FAILED" },
            broken.join("\n")
        );
        if broken.is_empty() { passed += 1 } else { failed += 1 }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {left} filtered out"
    );
    ExitCode::from(u8::from(failed > 0))
}

/// Runs the seeds that are asked for; answers what was broken.
fn no_schedule_breaks_a_promise() -> Vec<String> {
    let range = std::env::var("GEMINGA_SIM1").ok();
    let (first, end) = range.as_deref().map_or((0, SHORT), |text| {
        let (first, end) = text.split_once("..").expect("GEMINGA_SIM1=first..end");
        (first.parse().expect("a number before .."), end.parse().expect("a number after .."))
    });
    let mut totals = Totals::run(first, end);
    totals.print();
    if totals.seeds >= SHORT {
        totals.reached();
    }
    totals.broken
}
