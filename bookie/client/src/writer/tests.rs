//! The writer machine as stories: events in, effects out.

mod losses;

use super::state::{ChangeOutcome, Effect, Limits, SlotAdd, State, Status};
use crate::entry::{Header, Kind};
use crate::ledgers::{AppendError, Copies, NewEntry};
use crate::quorum::{QuorumSpec, SlotSet};
use crate::record::{Fragment, LedgerAttributes, LedgerKind, LedgerRecord, LedgerState, OpId, RepairRange};
use crate::rpc::{AddError, BookieRef};
use geminga_common::ids::{
    BookieId, EntryId, Incarnation, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId,
};
use geminga_common::metadata::Revision;
use std::sync::Arc;

fn bookie(n: u32) -> BookieRef {
    BookieRef { id: BookieId::new(&format!("b{n}")).unwrap(), incarnation: Incarnation(1) }
}

fn record((e, w, a): (u32, u32, u32)) -> LedgerRecord {
    LedgerRecord {
        id: LedgerId(1),
        term: Term(1),
        state: LedgerState::Open,
        quorum: QuorumSpec::new(e, w, a).unwrap(),
        fragments: vec![Fragment { first: EntryId(0), ensemble: (0..e).map(|n| Some(bookie(n))).collect() }],
        repair: vec![],
        attributes: Arc::new(LedgerAttributes {
            kind: LedgerKind::TopicData,
            owner: "t".into(),
            topic: TopicId(1),
            ordinal: 0,
            predecessor: None,
            owner_epoch: OwnerEpoch(1),
            first_index: MessageIndex(0),
        }),
        op_id: OpId(1),
    }
}

/// The machine with the effects of the last event.
struct Story {
    state: State,
    out: Vec<Effect>,
}

impl Story {
    fn new(quorum: (u32, u32, u32), limits: Limits) -> Self {
        Self { state: State::new(record(quorum), Revision(1), limits), out: vec![] }
    }

    fn of_three() -> Self {
        Self::new((3, 3, 2), Limits::default())
    }

    fn append(&mut self, sizes: &[usize]) -> Result<EntryId, AppendError> {
        self.out.clear();
        let header = Header {
            kind: Kind::CursorLog,
            messages: 0,
            first_index: MessageIndex(0),
            timestamp_ms: 0,
            bytes_before: 0,
        };
        let new = sizes.iter().map(|n| NewEntry { header, payload: vec![b'x'; *n].into() }).collect();
        self.state.append(new, &mut self.out)
    }

    fn acks(&mut self, slot: u32, generation: u32, first: u64, last: u64) {
        self.out.clear();
        let ids = (EntryId(first), EntryId(last));
        self.state.on_added(slot, generation, ids, Ok(()), &mut self.out);
    }

    fn fails(&mut self, slot: u32, error: AddError) {
        self.out.clear();
        let generation = self.state.slot(slot).generation;
        self.state.on_added(slot, generation, (EntryId(0), EntryId(0)), Err(error), &mut self.out);
    }

    fn probed(&mut self, slot: u32, result: Result<(), AddError>) {
        self.out.clear();
        let generation = self.state.slot(slot).generation;
        self.state.on_probed(slot, generation, result, &mut self.out);
    }

    /// The placement offers these; the commit that follows.
    fn replaced_by(&mut self, found: &[(u32, u32)]) -> Option<LedgerRecord> {
        self.out.clear();
        let found: Vec<_> = found.iter().map(|(slot, n)| (*slot, bookie(*n))).collect();
        self.state.on_replacements(&found, &mut self.out);
        self.out.iter().find_map(|e| if let Effect::Commit(r) = e { Some((**r).clone()) } else { None })
    }

    fn outcome(&mut self, outcome: ChangeOutcome) {
        self.out.clear();
        self.state.on_change(outcome, &mut self.out);
    }

    /// Slot, first and last id of what is sent.
    fn sent(&self) -> Vec<(u32, u64, u64)> {
        let sent = |e: &Effect| match e {
            Effect::Send(SlotAdd { slot, entries, .. }) => {
                Some((*slot, entries[0].id.0, entries[entries.len() - 1].id.0))
            }
            _ => None,
        };
        self.out.iter().filter_map(sent).collect()
    }

    fn asks_for(&self) -> Option<SlotSet> {
        self.out.iter().find_map(|e| if let Effect::Place(slots) = e { Some(*slots) } else { None })
    }

    fn bounds(&self) -> (Option<u64>, Option<u64>) {
        (self.state.lac().map(|id| id.0), self.state.lafr().map(|id| id.0))
    }
}

const GONE: AddError = AddError::Unknown("gone");

fn slots<const N: usize>(slots: [u32; N]) -> Option<SlotSet> {
    Some(slots.into_iter().collect())
}

#[test]
fn an_entry_is_acknowledged_in_order_at_its_ack_quorum_and_kept_until_all_have_it() {
    let mut s = Story::of_three();
    assert_eq!(s.append(&[1, 1]), Ok(EntryId(0)));
    assert_eq!(s.sent(), [(0, 0, 1), (1, 0, 1), (2, 0, 1)]);
    s.append(&[1]).unwrap();
    s.acks(0, 0, 2, 2);
    s.acks(1, 0, 2, 2);
    assert_eq!(s.bounds(), (None, None), "entry 2 has its quorum, but 0 and 1 come first");
    s.acks(0, 0, 0, 1);
    s.acks(1, 0, 0, 1);
    assert_eq!(s.bounds(), (Some(2), None));
    s.acks(2, 0, 0, 1);
    assert_eq!(s.bounds(), (Some(2), Some(1)));
}

#[test]
fn a_change_holds_the_lac_records_what_lags_and_sends_the_rest_again() {
    let mut s = Story::of_three();
    s.append(&[1, 1]).unwrap();
    s.acks(0, 0, 0, 0);
    s.acks(1, 0, 0, 0);
    s.fails(2, GONE);
    assert_eq!(s.asks_for(), slots([2]));
    let planned = s.replaced_by(&[(2, 7)]).unwrap();
    assert_eq!(planned.fragments[1].first, EntryId(1), "right after the LAC");
    assert_eq!(planned.repair, [RepairRange { first: EntryId(0), last: Some(EntryId(0)), slot: 2 }]);
    s.acks(0, 0, 1, 1);
    s.acks(1, 0, 1, 1);
    assert_eq!(s.bounds(), (Some(0), None), "acks wait for the change");
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    assert_eq!(s.sent(), [(2, 1, 1)], "only to the new bookie, only above the LAC");
    assert_eq!(s.bounds(), (Some(1), Some(0)), "the slots that stayed keep their acks");
    s.acks(2, 0, 1, 1);
    assert_eq!(s.bounds(), (Some(1), Some(0)), "a late ack of the bookie that left counts for nothing");
    s.acks(2, 1, 1, 1);
    assert_eq!(s.bounds(), (Some(1), Some(1)));
}

#[test]
fn acks_of_a_replaced_slot_are_void_above_the_lac() {
    let mut s = Story::of_three();
    s.append(&[1]).unwrap();
    s.acks(2, 0, 0, 0);
    s.fails(2, GONE);
    let planned = s.replaced_by(&[(2, 7)]).unwrap();
    assert_eq!(planned.fragments.len(), 1, "a fragment without an acknowledged entry is replaced");
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    s.acks(0, 0, 0, 0);
    assert_eq!(s.bounds(), (None, None), "the copy on the bookie that left does not count");
    s.acks(1, 0, 0, 0);
    assert_eq!(s.bounds(), (Some(0), None));
}

#[test]
fn failures_during_a_change_are_the_next_change() {
    let mut s = Story::of_three();
    s.append(&[1]).unwrap();
    s.fails(0, GONE);
    s.replaced_by(&[(0, 7)]).unwrap();
    s.fails(1, GONE);
    assert_eq!(s.asks_for(), None, "one change at a time");
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    assert_eq!(s.asks_for(), slots([1]));
    let tried: Vec<&BookieRef> = s.state.members().collect();
    assert!(tried.contains(&&bookie(0)), "what failed is not offered again at once");
}

#[test]
fn a_slot_that_lags_beyond_the_window_is_replaced_not_buffered_for() {
    let limits = Limits { lag_bytes_max: 1000, ..Limits::default() };
    let mut s = Story::new((3, 3, 2), limits);
    for id in 0..3 {
        s.append(&[400]).unwrap();
        s.acks(0, 0, id, id);
        s.acks(1, 0, id, id);
    }
    assert_eq!(s.asks_for(), slots([2]));
    s.replaced_by(&[(2, 7)]).unwrap();
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    assert_eq!(s.bounds(), (Some(2), Some(2)), "what lagged belongs to repair now");
    assert_eq!(s.sent(), []);
}

#[test]
fn a_lost_change_ends_the_writer_unless_only_members_of_old_fragments_moved() {
    let begin = || {
        let mut s = Story::of_three();
        s.append(&[1]).unwrap();
        s.fails(0, GONE);
        s.replaced_by(&[(0, 7)]).unwrap();
        s
    };
    let mut s = begin();
    let recovering = LedgerRecord { state: LedgerState::Recovering, term: Term(2), ..record((3, 3, 2)) };
    s.outcome(ChangeOutcome::Lost(Some((Box::new(recovering), Revision(9)))));
    assert_eq!(*s.state.status(), Status::Failed(AppendError::Fenced));
    let mut s = begin();
    let repaired = vec![RepairRange { first: EntryId(0), last: Some(EntryId(0)), slot: 1 }];
    let swapped = LedgerRecord { repair: repaired.clone(), ..record((3, 3, 2)) };
    s.outcome(ChangeOutcome::Lost(Some((Box::new(swapped), Revision(9)))));
    assert_eq!(s.asks_for(), slots([0]), "planned anew over the other's write");
    assert_eq!(s.state.revision(), Revision(9));
    assert_eq!(s.replaced_by(&[(0, 7)]).unwrap().repair, repaired);
}

#[test]
fn every_refusal_has_its_meaning() {
    let after = |error: AddError| {
        let mut s = Story::of_three();
        s.append(&[1]).unwrap();
        s.fails(0, error);
        (s.state.status().clone(), s.asks_for())
    };
    let fenced = (Status::Failed(AppendError::Fenced), None);
    assert_eq!(after(AddError::StaleTerm(Term(2))), fenced);
    assert_eq!(after(AddError::Sealed(None)), fenced);
    assert_eq!(after(AddError::Tombstoned), fenced);
    assert_eq!(after(AddError::Conflict(EntryId(0))), fenced);
    let too_large = AddError::TooLarge { id: EntryId(0), size: 9, limit: 8 };
    assert_eq!(after(too_large), (Status::Failed(AppendError::TooLarge { size: 9, limit: 8 }), None));
    for error in [
        AddError::WrongIncarnation,
        AddError::DiskFull,
        AddError::Failed,
        AddError::Corrupt(EntryId(0)),
        GONE,
    ] {
        assert_eq!(after(error), (Status::Open, slots([0])));
    }
}

#[test]
fn an_entry_above_the_limit_is_refused_and_harms_nobody() {
    let mut s = Story::new((1, 1, 1), Limits { entry_bytes_max: 100, ..Limits::default() });
    assert_eq!(s.append(&[1, 69]), Err(AppendError::TooLarge { size: 101, limit: 100 }));
    assert_eq!(s.append(&[68]), Ok(EntryId(0)));
}

#[test]
fn fragments_are_bounded() {
    let mut s = Story::new((1, 1, 1), Limits { fragments_max: 2, ..Limits::default() });
    for (id, spare) in [(0, 7), (1, 8)] {
        s.append(&[1]).unwrap();
        let generation = s.state.slot(0).generation;
        s.acks(0, generation, id, id);
        s.append(&[]).unwrap();
        s.fails(0, GONE);
        s.replaced_by(&[(0, spare)]);
        s.outcome(ChangeOutcome::Committed(Revision(id + 2)));
    }
    assert_eq!(*s.state.status(), Status::Failed(AppendError::NotEnoughBookies));
    assert_eq!(s.state.close().unwrap().closed().unwrap().last, Some(EntryId(1)));
}

#[test]
fn closing_freezes_the_lac_and_lists_what_lags() {
    let mut s = Story::of_three();
    s.append(&[1, 2]).unwrap();
    s.acks(0, 0, 0, 1);
    s.acks(1, 0, 0, 0);
    let closed = s.state.close().unwrap();
    assert_eq!(closed.state, LedgerState::Closed { last: Some(EntryId(0)), length: 33 });
    assert_eq!(closed.repair, [RepairRange { first: EntryId(0), last: Some(EntryId(0)), slot: 2 }]);
    s.acks(1, 0, 1, 1);
    assert_eq!(s.bounds().0, Some(0), "an ack after the close was planned acknowledges nothing");
    assert_eq!(s.append(&[1]), Err(AppendError::Closed));
}

#[test]
fn an_idle_slot_whose_bookie_was_wiped_is_replaced_and_what_it_held_is_recorded() {
    let mut s = Story::of_three();
    s.append(&[1, 1]).unwrap();
    (0..3).for_each(|slot| s.acks(slot, 0, 0, 1));
    assert_eq!(s.bounds(), (Some(1), Some(1)));
    s.probed(1, Ok(()));
    assert_eq!((s.asks_for(), s.state.copies()), (None, Copies::Full), "who answers stays");
    s.probed(1, Err(AddError::WrongIncarnation));
    assert_eq!(s.asks_for(), slots([1]));
    let planned = s.replaced_by(&[(1, 7)]).unwrap();
    assert_eq!(planned.fragments[1].first, EntryId(2));
    let range = RepairRange { first: EntryId(0), last: Some(EntryId(1)), slot: 1 };
    assert_eq!(planned.repair, [range], "its copies are gone");
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    assert_eq!(s.state.copies(), Copies::RepairDue);
    assert_eq!(s.state.close().unwrap().repair, [range]);
}

#[test]
fn a_dead_bookie_leaves_a_vacancy_and_repair_is_due_once_that_is_filled() {
    let mut s = Story::of_three();
    s.append(&[1]).unwrap();
    (0..3).for_each(|slot| s.acks(slot, 0, 0, 0));
    s.probed(2, Err(GONE));
    s.replaced_by(&[]).unwrap();
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    assert_eq!(s.state.copies(), Copies::Vacant);
    // Nothing was appended meanwhile: the range is empty and goes with the vacancy.
    s.out.clear();
    s.state.on_readmit(&mut s.out);
    s.replaced_by(&[(2, 2)]).unwrap();
    s.outcome(ChangeOutcome::Committed(Revision(3)));
    assert_eq!(s.state.copies(), Copies::Full, "a dead bookie that is back has what it had");
}

#[test]
fn hearsay_never_ends_a_writer() {
    let mut s = Story::of_three();
    s.append(&[1]).unwrap();
    s.acks(0, 0, 0, 0);
    for error in [AddError::DiskFull, AddError::Corrupt(EntryId(0))] {
        s.probed(0, Err(error));
        assert_eq!(s.asks_for(), None, "a bookie that answers lives");
    }
    s.probed(0, Err(GONE));
    s.replaced_by(&[]).unwrap();
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    s.probed(1, Err(GONE));
    assert_eq!((s.asks_for(), s.state.status()), (None, &Status::Open), "below its ack quorum by hearsay");
    s.out.clear();
    s.state.on_probed(2, 9, Err(GONE), &mut s.out);
    assert_eq!(s.asks_for(), None, "another tenure");
    let mut s = Story::new((1, 1, 1), Limits { fragments_max: 1, ..Limits::default() });
    s.append(&[1]).unwrap();
    s.acks(0, 0, 0, 0);
    s.probed(0, Err(AddError::WrongIncarnation));
    assert_eq!((s.asks_for(), s.state.status()), (None, &Status::Open), "no fragment is left for it");
    s.probed(0, Err(AddError::StaleTerm(Term(2))));
    assert_eq!(*s.state.status(), Status::Failed(AppendError::Fenced), "who was fenced learns it");
}

#[test]
fn a_slow_bookie_leaves_for_another_and_what_it_lacks_is_recorded() {
    let mut s = Story::of_three();
    s.append(&[10]).unwrap();
    s.acks(0, 0, 0, 0);
    s.acks(1, 0, 0, 0);
    s.out.clear();
    assert!(s.state.on_slow(2, bookie(3), &mut s.out));
    let [Effect::Commit(record)] = &s.out[..] else { panic!("{:?}", s.out) };
    assert_eq!(record.last_fragment().first, EntryId(1));
    assert_eq!(record.last_fragment().ensemble, [0, 1, 3].map(|n| Some(bookie(n))));
    assert_eq!(record.repair, [RepairRange { first: EntryId(0), last: Some(EntryId(0)), slot: 2 }]);
    assert!(!s.state.on_slow(1, bookie(4), &mut s.out), "one change at a time");
    s.out.clear();
    s.state.on_change(ChangeOutcome::Committed(Revision(2)), &mut s.out);
    assert!(s.state.vacant().is_empty() && !s.state.changing());
    assert!(!s.state.on_slow(0, bookie(2), &mut s.out), "who left does not come back in its turn");
}

#[test]
fn a_slow_bookie_stays_when_a_repair_crosses_or_fragments_run_out() {
    let mut s = Story::of_three();
    assert!(s.state.on_slow(2, bookie(3), &mut s.out));
    s.append(&[10]).unwrap();
    s.acks(0, 0, 0, 0);
    s.acks(1, 0, 0, 0);
    let crossed = Box::new(record((3, 3, 2)));
    s.out.clear();
    s.state.on_change(ChangeOutcome::Lost(Some((crossed, Revision(7)))), &mut s.out);
    assert!(!s.state.changing() && s.out.is_empty(), "it is slow and no worse: {:?}", s.out);
    assert_eq!((s.state.slot(2).bookie.clone(), s.state.lac()), (Some(bookie(2)), Some(EntryId(0))));
    let mut s = Story::new((3, 3, 2), Limits { fragments_max: 2, ..Limits::default() });
    assert!(!s.state.on_slow(2, bookie(3), &mut s.out), "the last fragment is for failures");
}
