//! The museum in SIM1: defects that sit in shells and codec too, or that its faults show. Each is caught within so many seeds.

use crate::totals::Totals;
use geminga_bookie::mutant::Mutant as StoreMutant;
use geminga_bookie_client::mutant::Mutant;
use geminga_common::museum::{self, Back};

/// Name of the variable that says which defect a process brings back, by its number in [`MUSEUM`].
pub(crate) const VARIABLE: &str = "GEMINGA_SIM1_MUTANT";

#[derive(Clone, Copy, Debug)]
enum Defect {
    Protocol(Mutant),
    Store(StoreMutant),
}

/// Number in the reliability brief, what comes back, most seeds it may take.
const MUSEUM: [(&str, Defect, u64); 9] = [
    ("1", Defect::Protocol(Mutant::FenceWithoutTerm), 20),
    ("2", Defect::Protocol(Mutant::RecoverFromBelow), 60),
    ("4", Defect::Protocol(Mutant::WaitForAll), 60),
    ("5", Defect::Store(StoreMutant::UnreadableNotFound), 60),
    ("6", Defect::Store(StoreMutant::FenceLost), 60),
    ("7", Defect::Protocol(Mutant::StaleWriter), 60),
    ("13", Defect::Protocol(Mutant::DamageEndsRead), 60),
    ("38", Defect::Store(StoreMutant::SyncRetried), 60),
    ("40", Defect::Protocol(Mutant::ResendDrained), 20),
];

/// Brings back what the environment asks for, on this thread.
pub(crate) fn asked() -> Option<Back> {
    let number = std::env::var(VARIABLE).ok()?;
    let (_, defect, _) = MUSEUM[number.parse::<usize>().expect("a number of the list")];
    Some(match defect {
        Defect::Protocol(mutant) => museum::bring_back(mutant),
        Defect::Store(mutant) => museum::bring_back(mutant),
    })
}

/// Answers which defects were not caught.
pub(crate) fn every_mutant_is_caught() -> Vec<String> {
    let mut missed = Vec::new();
    for (at, (number, defect, most)) in MUSEUM.into_iter().enumerate() {
        match Totals::until_broken(most, &at.to_string()) {
            Some((seeds, broken)) => println!("museum {number} {defect:?}: {seeds} seeds: {broken}"),
            None => missed.push(format!("{defect:?} is not caught by {most} seeds")),
        }
    }
    missed
}
