//! Exhaustive exploration: every interleaving of the real writer, recoverers and stores in a small world, breadth first over hashed
//! states, until there is no new one. States that differ only by the numbers of the bookies are one: with E = Qw every slot is
//! like every other, so bookies carry one name and are told apart by their slot.
//!
//! A bookie's store is what it admitted; what is durable follows by a step of its own, and answers wait for it. A crash takes
//! the store back to what is durable. Requests and answers may take any time (so: also for ever); `faults` bounds how often a
//! caller is told that it cannot know, while the call goes on.

mod kept;
mod small_world;

use kept::Mix;
use small_world::{Bounds, Small};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

type Visited = HashMap<u64, u64, BuildHasherDefault<Mix>>;

/// What an exploration came to.
#[derive(Debug, Default)]
struct Found {
    states: u64,
    depth: u32,
    /// Nothing is left to explore.
    complete: bool,
    closed: u64,
    violation: Option<String>,
}

impl Found {
    fn print(&self, bounds: Bounds) {
        let Self { states, depth, complete, closed, .. } = self;
        println!(
            "exhaustive {bounds:?}: {states} states, depth {depth}, complete {complete}, closed in {closed}"
        );
    }
}

fn explore(bounds: Bounds, most: u64) -> Found {
    let start = Small::new(bounds);
    let mut found = Found { states: 1, ..Found::default() };
    let mut visited = Visited::default();
    let mut frontier = vec![start.canonical()];
    visited.insert(frontier[0].hash(), 0);
    while !frontier.is_empty() {
        let mut next = Vec::new();
        for state in &frontier {
            let from = state.hash();
            for successor in state.successors() {
                let successor = successor.canonical();
                let hash = successor.hash();
                if visited.contains_key(&hash) {
                    continue;
                }
                visited.insert(hash, from);
                found.states += 1;
                found.closed += u64::from(successor.is_closed());
                if let Some(broken) = successor.broken() {
                    found.violation = Some(format!("{broken}\n{}", story(bounds, &visited, hash)));
                    return found;
                }
                next.push(successor);
            }
            if found.states >= most {
                return found;
            }
        }
        found.depth += 1;
        frontier = next;
    }
    found.complete = true;
    found
}

/// The steps that lead to a state: its ancestors by hash, walked again from the start.
fn story(bounds: Bounds, visited: &Visited, last: u64) -> String {
    let mut path = vec![last];
    while let Some(before) = path.last().and_then(|hash| visited.get(hash)).filter(|hash| **hash != 0) {
        path.push(*before);
    }
    let mut state = Small::new(bounds).canonical();
    let mut out = Vec::new();
    for hash in path.iter().rev().skip(1) {
        let Some(next) = state.successors().into_iter().map(|s| s.canonical()).find(|s| s.hash() == *hash)
        else {
            out.push("(a step that does not repeat)".to_owned());
            break;
        };
        out.push(next.step().to_string());
        state = next;
    }
    out.join("\n")
}

/// The smallest world in which everything happens, to its end: three bookies, the writer, one recoverer, one entry, one crash.
#[test]
fn a_small_world_is_explored_to_its_end() {
    let bounds = Bounds { entries: 1, recoverers: 1, crashes: 1, faults: 0, readmissions: 0 };
    let found = explore(bounds, u64::MAX);
    found.print(bounds);
    assert_eq!(found.violation, None);
    assert!(found.complete && found.states > 5000 && found.closed > 100, "{found:?}");
}

/// `GEMINGA_EXPLORE=entries,recoverers,crashes,faults,readmissions,millions` explores another world, as far as that many million
/// states, 0 for to its end. Without it a sample of a larger world.
#[test]
fn a_larger_world_is_explored_as_far_as_asked() {
    let asked = std::env::var("GEMINGA_EXPLORE").ok();
    let numbers: Vec<u64> =
        asked.as_deref().unwrap_or("2,2,0,1,1,0").split(',').map(|n| n.parse().expect("a number")).collect();
    let [entries, recoverers, crashes, faults, readmissions, millions] = numbers[..] else {
        panic!("GEMINGA_EXPLORE wants six numbers");
    };
    let small = |n: u64| u8::try_from(n).expect("a small number");
    let bounds = Bounds {
        entries: small(entries),
        recoverers: small(recoverers),
        crashes: small(crashes),
        faults: small(faults),
        readmissions: small(readmissions),
    };
    let most = match (asked, millions) {
        (None, _) => 30_000,
        (Some(_), 0) => u64::MAX,
        (Some(_), millions) => millions * 1_000_000,
    };
    let found = explore(bounds, most);
    found.print(bounds);
    assert_eq!(found.violation, None);
}

#[cfg(feature = "museum")]
#[test]
fn the_exploration_finds_what_the_museum_brings_back() {
    use crate::mutant::Mutant;
    use geminga_common::museum::bring_back;
    let two = Bounds { entries: 2, recoverers: 2, crashes: 0, faults: 0, readmissions: 0 };
    let one = Bounds { recoverers: 1, ..two };
    // A change of the ensemble that crosses the close: two closes of one ledger say the same.
    let changing = Bounds { entries: 1, faults: 1, ..one };
    let mut all = vec![(Mutant::FenceWithoutTerm, one), (Mutant::StaleWriter, changing)];
    // Two recoverers take minutes; schedules by seed and SIM0 catch it sooner.
    if std::env::var_os("GEMINGA_MUSEUM_RUNS").is_some() {
        all.push((Mutant::ProgressAsLac, two));
    }
    for (mutant, bounds) in all {
        let back = bring_back(mutant);
        let found = explore(bounds, 3_000_000);
        drop(back);
        let violation =
            found.violation.unwrap_or_else(|| panic!("{mutant:?} was not found in {} states", found.states));
        println!("{mutant:?}: found after {} states at depth {}:\n{violation}\n", found.states, found.depth);
    }
}
