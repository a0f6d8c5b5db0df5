//! The museum in SIM1: defects that sit in shells and codec too, or that its faults show. Each is caught within so many seeds.

use crate::totals::Totals;
use geminga_bookie_client::mutant::Mutant;
use geminga_common::museum::{self, Back};

/// Name of the variable that says which defect a process brings back, by its number in [`MUSEUM`].
pub(crate) const VARIABLE: &str = "GEMINGA_SIM1_MUTANT";

/// Number in the reliability brief, what comes back, most seeds it may take.
const MUSEUM: [(&str, Mutant, u64); 3] = [
    ("1", Mutant::FenceWithoutTerm, 20),
    ("2", Mutant::RecoverFromBelow, 60),
    ("13", Mutant::DamageEndsRead, 60),
];

/// Brings back what the environment asks for, on this thread.
pub(crate) fn asked() -> Option<Back> {
    let number = std::env::var(VARIABLE).ok()?;
    let (_, defect, _) = MUSEUM[number.parse::<usize>().expect("a number of the list")];
    Some(museum::bring_back(defect))
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
