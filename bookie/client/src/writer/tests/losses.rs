//! Bookies that lost their store: what is recorded of it, whenever the writer learns.

use super::*;

fn range(first: u64, last: u64, slot: u32) -> RepairRange {
    RepairRange { first: EntryId(first), last: Some(EntryId(last)), slot }
}

/// Entries 0 and 1 are on all three slots.
fn of_three_with_two_entries() -> Story {
    let mut s = Story::of_three();
    s.append(&[1, 1]).unwrap();
    (0..3).for_each(|slot| s.acks(slot, 0, 0, 1));
    s
}

/// The bookie of slot 2 was away; while its replacement is being committed, it answers that its store is another one.
fn told_meanwhile() -> Story {
    let mut s = of_three_with_two_entries();
    s.fails(2, GONE);
    assert_eq!(s.replaced_by(&[(2, 7)]).unwrap().repair, [], "who is away has what it had");
    s.fails(2, AddError::WrongIncarnation);
    assert_eq!(s.asks_for(), None, "one change at a time");
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    assert_eq!(s.state.record().repair, [], "it came too late for this change");
    s
}

#[test]
fn a_loss_told_while_its_slot_is_being_replaced_is_recorded_by_the_close() {
    let mut s = told_meanwhile();
    assert_eq!((s.asks_for(), s.state.changing()), (None, false), "no write of metadata for this alone");
    assert_eq!(s.state.copies(), Copies::RepairDue, "its owner closes it early");
    s.append(&[1]).unwrap();
    (0..2).for_each(|slot| s.acks(slot, 0, 2, 2));
    s.acks(2, 1, 2, 2);
    assert_eq!(s.bounds(), (Some(2), Some(2)), "nothing waits for it");
    assert_eq!(s.state.close().unwrap().repair, [range(0, 1, 2)], "the new bookie of the slot owes nothing");
}

#[test]
fn a_loss_told_while_its_slot_is_being_replaced_is_recorded_by_the_next_change_and_once() {
    let mut s = told_meanwhile();
    s.fails(0, GONE);
    assert_eq!(s.replaced_by(&[(0, 8)]).unwrap().repair, [range(0, 1, 2)]);
    s.outcome(ChangeOutcome::Committed(Revision(3)));
    s.fails(1, GONE);
    assert_eq!(s.replaced_by(&[(1, 9)]).unwrap().repair, [range(0, 1, 2)]);
}

#[test]
fn a_loss_told_meanwhile_is_kept_when_the_next_change_is_lost_to_a_repair() {
    let mut s = told_meanwhile();
    s.fails(0, GONE);
    s.replaced_by(&[(0, 8)]).unwrap();
    let swapped = Box::new(s.state.record().clone());
    s.outcome(ChangeOutcome::Lost(Some((swapped, Revision(9)))));
    assert_eq!(s.replaced_by(&[(0, 8)]).unwrap().repair, [range(0, 1, 2)]);
}

#[test]
fn a_loss_told_meanwhile_is_in_the_change_that_waits_already() {
    let mut s = of_three_with_two_entries();
    s.fails(2, GONE);
    s.replaced_by(&[(2, 7)]).unwrap();
    s.fails(0, AddError::WrongIncarnation);
    s.fails(2, AddError::WrongIncarnation);
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    assert_eq!(s.asks_for(), slots([0]));
    assert_eq!(s.replaced_by(&[(0, 8)]).unwrap().repair, [range(0, 1, 2), range(0, 1, 0)]);
}

#[test]
fn a_loss_that_the_change_records_is_not_owed_beside_it() {
    let mut s = of_three_with_two_entries();
    s.fails(2, AddError::WrongIncarnation);
    assert_eq!(s.replaced_by(&[(2, 7)]).unwrap().repair, [range(0, 1, 2)]);
    s.fails(2, AddError::WrongIncarnation);
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    s.fails(0, GONE);
    assert_eq!(s.replaced_by(&[(0, 8)]).unwrap().repair, [range(0, 1, 2)]);
}

#[test]
fn a_slow_bookie_that_turns_out_to_have_lost_its_store_owes_all_of_it() {
    let mut s = of_three_with_two_entries();
    s.out.clear();
    assert!(s.state.on_slow(2, bookie(7), &mut s.out));
    s.fails(2, AddError::WrongIncarnation);
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    assert_eq!((s.asks_for(), s.state.copies()), (None, Copies::RepairDue));
    assert_eq!(s.state.close().unwrap().repair, [range(0, 1, 2)]);
}

#[test]
fn a_loss_told_meanwhile_is_in_the_close_of_a_writer_that_failed() {
    let mut s = of_three_with_two_entries();
    s.fails(2, GONE);
    s.replaced_by(&[(2, 7)]).unwrap();
    s.fails(2, AddError::WrongIncarnation);
    s.fails(0, AddError::TooLarge { id: EntryId(0), size: 9, limit: 8 });
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    assert!(matches!(s.state.status(), Status::Failed(AppendError::TooLarge { .. })));
    assert_eq!(s.state.close().unwrap().repair, [range(0, 1, 2)]);
}

#[test]
fn nothing_is_owed_by_who_held_nothing() {
    let mut s = Story::of_three();
    s.append(&[1]).unwrap();
    s.fails(2, GONE);
    s.replaced_by(&[(2, 7)]).unwrap();
    s.fails(2, AddError::WrongIncarnation);
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    assert_eq!(s.state.copies(), Copies::Full, "its acks were void, and the entry is sent to its successor");
    (0..2).for_each(|slot| s.acks(slot, 0, 0, 0));
    s.acks(2, 1, 0, 0);
    assert_eq!(s.state.close().unwrap().repair, []);
}

#[test]
fn who_left_came_back_and_lost_its_store_owes_its_first_tenure_as_well() {
    let mut s = of_three_with_two_entries();
    s.fails(2, GONE);
    s.replaced_by(&[]).unwrap();
    s.outcome(ChangeOutcome::Committed(Revision(2)));
    s.append(&[1]).unwrap();
    (0..2).for_each(|slot| s.acks(slot, 0, 2, 2));
    s.out.clear();
    s.state.on_readmit(&mut s.out);
    s.replaced_by(&[(2, 2)]).unwrap();
    s.outcome(ChangeOutcome::Committed(Revision(3)));
    s.append(&[1]).unwrap();
    (0..2).for_each(|slot| s.acks(slot, 0, 3, 3));
    s.fails(2, AddError::WrongIncarnation);
    let planned = s.replaced_by(&[(2, 7)]).unwrap();
    assert_eq!(planned.repair, [range(2, 2, 2), range(0, 1, 2), range(3, 3, 2)]);
}
