//! Scripts over the machine, and a random walk that holds its invariants.

use super::*;
use proptest::prelude::*;

fn attempt(id: u64) -> Attempt {
    Attempt { id: AttemptId(id), begun_ms: 5, settled_ms: 100, owner_epoch: OwnerEpoch(1), together: None }
}

fn seen(id: u64) -> Seen {
    Seen::of(&ObjectRef { attempt: AttemptId(id), begun_ms: 5, shape: shape(), part: None })
}

fn gone(id: u64) -> Gone {
    Gone::of(&ObjectRef { attempt: AttemptId(id), begun_ms: 5, shape: shape(), part: None })
}

fn shape() -> Shape {
    Shape { size: 10, footer_offset: 5, footer_crc: 1 }
}

#[test]
fn a_ledger_goes_its_way() {
    let prepared = Offload::Bookies.apply(&Change::Prepare(attempt(1))).unwrap();
    assert_eq!((prepared.garbage, prepared.bury), (None, false));
    let committed = prepared.next.apply(&Change::Commit(AttemptId(1), shape(), None, 1_000)).unwrap();
    assert_eq!((committed.garbage, committed.bury), (None, false));
    let early = Change::Release { seen: seen(1), now_ms: 1_599, lag_ms: 600 };
    assert_eq!(committed.next.apply(&early), Err(Refused::StillNeeded));
    let another = Change::Release { seen: seen(2), now_ms: 1_600, lag_ms: 600 };
    assert_eq!(committed.next.apply(&another), Err(Refused::StillNeeded));
    let released = Change::Release { seen: seen(1), now_ms: 1_600, lag_ms: 600 };
    let released = committed.next.apply(&released).unwrap();
    assert!(released.bury && released.garbage.is_none() && !released.next.on_bookies());
    let (garbage, bury) = released.next.remove(2_000, 50);
    assert_eq!(garbage.map(|g| (g.attempt, g.not_before_ms)), Some((AttemptId(1), 2_050)));
    assert!(!bury, "the ledger was tombstoned when it was released");
}

#[test]
fn an_attempt_that_is_given_up_leaves_garbage_for_when_it_has_settled() {
    let prepared = Offload::Prepared(attempt(1));
    let again = prepared.apply(&Change::Prepare(attempt(2))).unwrap();
    assert_eq!(again.next.attempt(), Some(AttemptId(2)));
    let garbage = again.garbage.unwrap();
    assert_eq!((garbage.attempt, garbage.not_before_ms), (AttemptId(1), 100));
    let late = again.next.apply(&Change::Commit(AttemptId(1), shape(), None, 0));
    assert_eq!(late, Err(Refused::OtherAttempt));
    let abandoned = again.next.apply(&Change::Abandon(AttemptId(2))).unwrap();
    assert_eq!(
        (abandoned.next, abandoned.garbage.map(|g| g.attempt)),
        (Offload::Bookies, Some(AttemptId(2)))
    );
}

#[test]
fn a_ledger_whose_object_is_gone_goes_back_to_bookies_while_they_have_it() {
    let object = ObjectRef { attempt: AttemptId(1), begun_ms: 5, shape: shape(), part: None };
    let gone = |id| Change::Return { gone: gone(id), now_ms: 1_000, grace_ms: 50 };
    let back = Offload::Committed(object, 100).apply(&gone(1)).unwrap();
    assert_eq!((back.next, back.bury), (Offload::Bookies, false));
    assert_eq!(back.garbage.map(|g| (g.attempt, g.not_before_ms)), Some((AttemptId(1), 1_050)));
    for state in [Offload::Bookies, Offload::Prepared(attempt(1)), Offload::Released(object)] {
        assert_eq!(state.apply(&gone(1)), Err(Refused::NotOnBookies));
    }
    assert_eq!(Offload::Committed(object, 100).apply(&gone(2)), Err(Refused::NotOnBookies));
}

#[test]
fn unverified_copies_are_never_let_go() {
    let always = Change::Release { seen: seen(1), now_ms: u64::MAX, lag_ms: 0 };
    for state in [Offload::Bookies, Offload::Prepared(attempt(1))] {
        assert_eq!(state.apply(&always), Err(Refused::StillNeeded));
        assert!(state.remove(0, 0).1, "removal tombstones the ledger");
    }
}

fn change() -> impl Strategy<Value = Change> {
    let id = 0_u64..4;
    prop_oneof![
        id.clone().prop_map(|id| Change::Prepare(attempt(id))),
        id.clone().prop_map(|id| Change::Abandon(AttemptId(id))),
        (id, 0_u64..50).prop_map(|(id, at)| Change::Commit(AttemptId(id), shape(), None, at)),
        (0_u64..4, 0_u64..100, 0_u64..30).prop_map(|(id, now_ms, lag_ms)| Change::Release {
            seen: seen(id),
            now_ms,
            lag_ms
        }),
        (0_u64..4, 0_u64..100).prop_map(|(id, now_ms)| Change::Return {
            gone: gone(id),
            now_ms,
            grace_ms: 9
        }),
    ]
}

proptest! {
    #[test]
    fn no_walk_throws_away_what_is_referenced(changes in proptest::collection::vec(change(), 0..40)) {
        let (mut state, mut buried) = (Offload::Bookies, false);
        for change in changes {
            // Attempt ids are unique: one that was garbage never comes back.
            if matches!(&change, Change::Prepare(new) if state.attempt() == Some(new.id)) {
                continue;
            }
            let (had_object, had_bookies) = (state.object().copied(), state.on_bookies());
            let Ok(step) = state.apply(&change) else { continue };
            prop_assert!(step.is_safe());
            let kept = had_object.is_none() || step.next.object() == had_object.as_ref();
            let returned = matches!(&change, Change::Return { .. }) && had_bookies && step.garbage.is_some();
            prop_assert!(kept || returned);
            prop_assert!(!step.bury || step.next.object().is_some(), "bookie copies go for an object only");
            prop_assert!(!(step.bury && buried), "a ledger is tombstoned once");
            buried |= step.bury;
            state = step.next;
            prop_assert_eq!(state.on_bookies(), !buried);
        }
    }
}
