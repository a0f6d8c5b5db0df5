//! Invariants of the writer machine as named functions: run by debug asserts after every event, and by tests.

use super::state::{Change, State, Status};
use geminga_common::ids::EntryId;

/// LAFR ≤ LAC ≤ last sent.
#[must_use]
pub fn bounds_are_ordered(s: &State) -> bool {
    s.full_end <= s.acked_end && s.acked_end <= s.next
}

/// Pending entries are exactly the ids above LAFR, dense.
#[must_use]
pub fn pending_is_dense(s: &State) -> bool {
    s.pending.len() as u64 == s.next.0 - s.full_end.0
        && s.pending.iter().zip(s.full_end.0..).all(|(p, id)| p.entry.id == EntryId(id))
}

/// I1, the writer's side: what is acknowledged and still pending has its ack quorum, and only slots of its write set count.
#[must_use]
pub fn acked_has_its_quorum(s: &State) -> bool {
    s.pending.iter().all(|p| {
        let set = s.quorum.write_set(p.entry.id);
        p.acked.minus(set).is_empty() && (p.entry.id >= s.acked_end || p.acked.len() >= s.quorum.ack())
    })
}

/// I10: first ids of fragments rise, from 0, and the last does not begin beyond the acknowledged entries.
#[must_use]
pub fn fragments_rise(s: &State) -> bool {
    let firsts: Vec<EntryId> = s.record.fragments.iter().map(|f| f.first).collect();
    firsts[0] == EntryId(0) && firsts.is_sorted_by(|a, b| a < b) && firsts[firsts.len() - 1] <= s.acked_end
}

/// The slots are the last fragment's ensemble, and vacancies are covered by a growing repair range.
#[must_use]
pub fn slots_match_the_record(s: &State) -> bool {
    let same =
        s.slots.iter().zip(&s.record.last_fragment().ensemble).all(|(slot, member)| slot.bookie == *member);
    let covered =
        s.vacant().iter().all(|slot| s.record.repair.iter().any(|r| r.slot == slot && r.last.is_none()));
    same && covered
}

/// A planned fragment begins right after the LAC, which stands still meanwhile.
#[must_use]
pub fn a_change_begins_at_the_lac(s: &State) -> bool {
    match &s.change {
        Some(Change::Committing { fragments, .. }) if s.status == Status::Open => {
            fragments.last().is_some_and(|f| f.first == s.acked_end)
        }
        _ => true,
    }
}

/// I15, the writer's side: what is owed beside the record is acknowledged, and of fragments that have ended.
#[must_use]
pub fn what_is_owed_is_acknowledged(s: &State) -> bool {
    let ended = s.record.last_fragment().first;
    s.owed.iter().all(|range| range.last.is_some_and(|last| range.first <= last && last < ended))
}

/// All of them, in debug builds.
pub(super) fn check(s: &State) {
    debug_assert!(bounds_are_ordered(s), "{s:?}");
    // Walking a long queue at every event would make debug builds quadratic.
    if s.pending.len() <= 64 {
        debug_assert!(pending_is_dense(s), "{s:?}");
        debug_assert!(acked_has_its_quorum(s), "{s:?}");
    }
    debug_assert!(fragments_rise(s), "{s:?}");
    debug_assert!(slots_match_the_record(s), "{s:?}");
    debug_assert!(a_change_begins_at_the_lac(s), "{s:?}");
    debug_assert!(what_is_owed_is_acknowledged(s), "{s:?}");
}
