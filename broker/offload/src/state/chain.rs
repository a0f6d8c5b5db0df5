//! Ledgers of one topic that share an attempt, and what holds of a topic's record as a whole. Pure, as the machine of one ledger is;
//! used by the record's owner and by the exploration alike.
//!
//! - [`plan`]: a change of several ledgers is made as a whole or not at all, and an attempt is prepared, committed or given up for all
//!   ledgers that share it: two of them never differ in that.
//! - [`unnamed`]: an attempt becomes garbage in the transaction in which no ledger of the topic names it any more, and only then.
//!   All names of an attempt are in one record, whose revision every change compares, so that no two can both be the last but one.

use super::{Change, Garbage, Offload, Refused};
use crate::key::AttemptId;
use crate::mutant::{Mutant, active};
use geminga_common::ids::LedgerId;
use std::collections::{BTreeMap, BTreeSet};

/// What a transaction throws away: the ledger that names it, and when.
pub type Thrown = (LedgerId, Garbage);

/// Changes that can be made together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The states after them.
    pub next: Vec<(LedgerId, Offload)>,
    /// What they leave, unless others name it still: see [`unnamed`].
    pub garbage: Vec<Thrown>,
    /// Ledgers that are to be tombstoned.
    pub bury: Vec<LedgerId>,
}

/// Applies changes to a topic's closed ledgers.
///
/// # Errors
/// See [`Refused`]; none of them is made then.
pub fn plan<'a>(
    chain: impl Iterator<Item = (LedgerId, &'a Offload)> + Clone,
    changes: &[(LedgerId, Change)],
) -> Result<Plan, Refused> {
    let asked: BTreeMap<_, _> = changes.iter().map(|(ledger, change)| (*ledger, change)).collect();
    let (mut plan, mut shared) = (Plan::default(), BTreeSet::new());
    for (ledger, state) in chain.clone() {
        let Some(change) = asked.get(&ledger) else { continue };
        let step = state.apply(change)?;
        debug_assert!(step.is_safe() || active(Mutant::CommitTwice), "what is referenced is never garbage");
        if let Offload::Prepared(attempt) = state {
            shared.insert(attempt.id);
        }
        let named_by = state.named_by(ledger);
        plan.garbage.extend(step.garbage.map(|garbage| (named_by, garbage)));
        plan.bury.extend(step.bury.then_some(ledger));
        plan.next.push((ledger, step.next));
    }
    if plan.next.len() != changes.len() {
        return Err(Refused::OtherAttempt);
    }
    let left_out = |(ledger, state): (LedgerId, &Offload)| {
        matches!(state, Offload::Prepared(attempt) if shared.contains(&attempt.id))
            && !asked.contains_key(&ledger)
    };
    if chain.clone().any(left_out) { Err(Refused::OtherLedgers) } else { Ok(plan) }
}

/// Of what a transaction throws away that which no ledger of the topic names behind it (`left`, all of them), each once.
#[must_use]
pub fn unnamed<'a>(thrown: Vec<Thrown>, left: impl Iterator<Item = &'a Offload>) -> Vec<Thrown> {
    if thrown.is_empty() {
        return thrown;
    }
    let named: BTreeSet<AttemptId> = left.filter_map(Offload::attempt).collect();
    let mut last: BTreeMap<AttemptId, Thrown> = BTreeMap::new();
    for (ledger, garbage) in thrown {
        let museum = active(Mutant::RemoveNamed) || active(Mutant::CommitTwice);
        if named.contains(&garbage.attempt) && !museum {
            continue;
        }
        let entry = last.entry(garbage.attempt).or_insert_with(|| (ledger, garbage.clone()));
        entry.1.not_before_ms = entry.1.not_before_ms.max(garbage.not_before_ms);
    }
    last.into_values().collect()
}

#[cfg(test)]
mod tests;
