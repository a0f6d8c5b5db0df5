//! What a closed ledger lacks, and what it is once that has been made good. Pure.
//!
//! Invariants:
//! - A job lies within one fragment and one slot; a slot's jobs in a fragment do not overlap.
//! - [`apply`] changes the member of the job's slot in the job's fragment and takes the job's ids out of the slot's repair ranges;
//!   nothing else of the ledger moves (I10).
//! - A ledger whose jobs have all been applied has no vacancy, no member that is gone, and no repair range.

use crate::quorum::QuorumSpec;
use crate::record::{ClosedLedger, RepairRange};
use crate::rpc::{BookieRef, IdRange};
use geminga_common::ids::EntryId;

/// How far a member of an ensemble can be counted on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Reachable, with the store that the ledger means.
    Sound,
    /// Not reachable; it may come back with all it holds.
    Away,
    /// It answers for what it has, but it has lost something: a source, no holder.
    Damaged,
    /// Its store is no more, or has been given up.
    Gone,
}

impl Standing {
    fn replaced(self) -> bool {
        matches!(self, Self::Damaged | Self::Gone)
    }
}

/// Ids that one slot of one fragment is to get.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Index of the fragment.
    pub fragment: usize,
    /// The slot.
    pub slot: u32,
    /// The ids; those of them count whose write set has the slot.
    pub ids: IdRange,
    /// The member that stays; `None`: a bookie is to be chosen.
    pub keep: Option<BookieRef>,
    /// Copies that an id may have left, at worst, while the job is not done.
    pub copies: u32,
}

/// What a ledger needs.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Needs {
    /// What can be done now.
    pub jobs: Vec<Job>,
    /// Ranges that wait for a member to come back.
    pub waiting: usize,
}

impl Needs {
    /// Whether the ledger is on all of its write quorum.
    #[must_use]
    pub fn none(&self) -> bool {
        self.jobs.is_empty() && self.waiting == 0
    }
}

/// The ids of a fragment; `None` when it holds none.
#[must_use]
pub fn ids_of(ledger: &ClosedLedger, fragment: usize) -> Option<IdRange> {
    let first = ledger.fragments.get(fragment)?.first;
    let end = ledger.last?;
    let last = match ledger.fragments.get(fragment + 1) {
        Some(next) => next.first.previous()?.min(end),
        None => end,
    };
    (first <= last).then_some(IdRange { first, last })
}

fn overlap(a: IdRange, range: &RepairRange) -> Option<IdRange> {
    let last = range.last.map_or(a.last, |last| last.min(a.last));
    let first = range.first.max(a.first);
    (first <= last).then_some(IdRange { first, last })
}

/// The ranges of one slot within `ids`, joined where they touch.
fn recorded(ledger: &ClosedLedger, slot: u32, ids: IdRange) -> Vec<IdRange> {
    let of_slot = ledger.repair.iter().filter(|range| range.slot == slot);
    let mut ranges: Vec<IdRange> = of_slot.filter_map(|range| overlap(ids, range)).collect();
    ranges.sort();
    let mut joined: Vec<IdRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(before) if range.first <= before.last.next() => before.last = before.last.max(range.last),
            _ => joined.push(range),
        }
    }
    joined
}

/// What the ledger needs, fewest copies first.
#[must_use]
pub fn needs(ledger: &ClosedLedger, standing: impl Fn(&BookieRef) -> Standing) -> Needs {
    let mut needs = Needs::default();
    for (at, fragment) in ledger.fragments.iter().enumerate() {
        let Some(ids) = ids_of(ledger, at) else { continue };
        let mut jobs = Vec::new();
        for (slot, member) in fragment.ensemble.iter().enumerate() {
            let slot = slot as u32;
            match member.as_ref().map(|member| (member, standing(member))) {
                Some((_, standing)) if !standing.replaced() => {
                    let ranges = recorded(ledger, slot, ids);
                    if standing == Standing::Away {
                        needs.waiting += ranges.len();
                    } else {
                        jobs.extend(ranges.into_iter().map(|ids| (slot, ids, member.clone())));
                    }
                }
                _ => jobs.push((slot, ids, None)),
            }
        }
        let lacking: std::collections::BTreeSet<u32> = jobs.iter().map(|(slot, ..)| *slot).collect();
        let copies = ledger.quorum.write().saturating_sub(lacking.len() as u32);
        let job = |(slot, ids, keep)| Job { fragment: at, slot, ids, keep, copies };
        needs.jobs.extend(jobs.into_iter().map(job));
    }
    needs.jobs.sort_by_key(|job| job.copies);
    needs
}

/// The ledger once `job` is done and `member` proven to hold its ids.
#[must_use]
pub fn apply(ledger: &ClosedLedger, job: &Job, member: &BookieRef) -> ClosedLedger {
    let mut next = ledger.clone();
    if let Some(fragment) = next.fragments.get_mut(job.fragment) {
        fragment.ensemble[job.slot as usize] = Some(member.clone());
    }
    // Repair ranges outside the fragments' ids name nothing.
    let end = ledger.last;
    next.repair = Vec::with_capacity(ledger.repair.len());
    for range in &ledger.repair {
        let Some(last) = range.last.or(end).zip(end).map(|(last, end)| last.min(end)) else { continue };
        if range.slot != job.slot || range.first > job.ids.last || last < job.ids.first {
            next.repair.push(*range);
            continue;
        }
        if let Some(before) = job.ids.first.previous().filter(|before| *before >= range.first) {
            next.repair.push(RepairRange { last: Some(before), ..*range });
        }
        if last > job.ids.last {
            next.repair.push(RepairRange { first: job.ids.last.next(), last: Some(last), slot: range.slot });
        }
    }
    next
}

/// The ids of a job that are missing in `present`: what its slot's write sets want and the runs do not have. The first of them.
#[must_use]
pub fn first_missing(quorum: QuorumSpec, job: &Job, present: &[IdRange]) -> Option<EntryId> {
    let mut id = job.ids.first;
    let mut runs = present.iter().peekable();
    while id <= job.ids.last {
        while runs.next_if(|run| run.last < id).is_some() {}
        match runs.peek() {
            Some(run) if run.first <= id => id = run.last.next(),
            _ if quorum.write_set(id).contains(job.slot) => return Some(id),
            _ => id = id.next(),
        }
    }
    None
}

#[cfg(test)]
mod tests;
