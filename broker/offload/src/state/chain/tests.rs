//! Scripts over ledgers that go together, and a random walk of a topic that holds what is promised of its record as a whole.

use super::*;
use crate::state::{Attempt, Gone, Part, Seen};
use crate::writer::Shape;
use geminga_common::ids::OwnerEpoch;
use proptest::prelude::*;

type Chain = BTreeMap<LedgerId, Offload>;

const SHAPE: Shape = Shape { size: 10, footer_offset: 5, footer_crc: 1 };

fn attempt(id: u64, first: Option<u64>) -> Attempt {
    let together = first.map(LedgerId);
    Attempt { id: AttemptId(id), begun_ms: 5, settled_ms: 100, owner_epoch: OwnerEpoch(1), together }
}

fn commit(id: u64, first: u64, nth: u64) -> Change {
    let part = Part { first: LedgerId(first), offset: nth * 10, whole: 100 };
    Change::Commit(AttemptId(id), SHAPE, Some(part), 1_000)
}

fn fresh(ledgers: u64) -> Chain {
    (1..=ledgers).map(|id| (LedgerId(id), Offload::Bookies)).collect()
}

fn of(chain: &Chain) -> impl Iterator<Item = (LedgerId, &Offload)> + Clone {
    chain.iter().map(|(ledger, state)| (*ledger, state))
}

/// Makes the changes; answers what is thrown away.
fn change(chain: &mut Chain, changes: &[(u64, Change)]) -> Result<Vec<AttemptId>, Refused> {
    let changes: Vec<_> = changes.iter().map(|(id, change)| (LedgerId(*id), change.clone())).collect();
    let plan = plan(of(chain), &changes)?;
    chain.extend(plan.next);
    Ok(unnamed(plan.garbage, chain.values()).into_iter().map(|(_, garbage)| garbage.attempt).collect())
}

fn prepared(ledgers: u64) -> Chain {
    let mut chain = fresh(ledgers);
    let changes: Vec<_> = (1..=ledgers).map(|id| (id, Change::Prepare(attempt(1, Some(1))))).collect();
    assert_eq!(change(&mut chain, &changes), Ok(vec![]));
    chain
}

fn committed(ledgers: u64) -> Chain {
    let mut chain = prepared(ledgers);
    let changes: Vec<_> = (1..=ledgers).map(|id| (id, commit(1, 1, id - 1))).collect();
    assert_eq!(change(&mut chain, &changes), Ok(vec![]));
    chain
}

fn leaves(chain: &mut Chain, ledger: u64, now_ms: u64) -> Vec<Thrown> {
    let state = chain.remove(&LedgerId(ledger)).unwrap();
    let (garbage, _) = state.remove(now_ms, 50);
    let thrown = garbage.map(|garbage| (state.named_by(LedgerId(ledger)), garbage));
    unnamed(thrown.into_iter().collect(), chain.values())
}

#[test]
fn what_is_shared_is_committed_or_given_up_for_all_or_for_none() {
    for alone in [commit(1, 1, 0), Change::Abandon(AttemptId(1)), Change::Prepare(attempt(2, None))] {
        let mut chain = prepared(3);
        assert_eq!(change(&mut chain, &[(1, alone)]), Err(Refused::OtherLedgers));
        assert_eq!(chain, prepared(3));
    }
    let mut chain = prepared(3);
    let mixed = [(1, commit(1, 1, 0)), (2, commit(1, 1, 1)), (3, commit(2, 1, 2))];
    assert_eq!(change(&mut chain, &mixed), Err(Refused::OtherAttempt));
    let as_if_alone = Change::Commit(AttemptId(1), SHAPE, None, 0);
    assert_eq!(chain[&LedgerId(1)].apply(&as_if_alone), Err(Refused::OtherAttempt));
    let all: Vec<_> = (1..=3).map(|id| (id, Change::Abandon(AttemptId(1)))).collect();
    assert_eq!(change(&mut chain, &all), Ok(vec![AttemptId(1)]), "one record, however many named it");
    assert_eq!(chain, fresh(3));
}

#[test]
fn a_ledger_that_left_meanwhile_makes_the_commit_of_all_refused() {
    let mut chain = prepared(3);
    assert_eq!(leaves(&mut chain, 1, 0), []);
    let all: Vec<_> = (1..=3).map(|id| (id, commit(1, 1, id - 1))).collect();
    assert_eq!(change(&mut chain, &all), Err(Refused::OtherAttempt));
    let rest = [(2, Change::Abandon(AttemptId(1))), (3, Change::Abandon(AttemptId(1)))];
    assert_eq!(change(&mut chain, &rest), Ok(vec![AttemptId(1)]));
}

#[test]
fn the_object_goes_with_the_last_of_its_ledgers_under_the_name_of_the_first() {
    let mut chain = committed(3);
    assert_eq!(leaves(&mut chain, 2, 1_000), []);
    assert_eq!(leaves(&mut chain, 1, 2_000), []);
    let thrown = leaves(&mut chain, 3, 3_000);
    let garbage = Garbage { attempt: AttemptId(1), begun_ms: 5, not_before_ms: 3_050 };
    assert_eq!(thrown, [(LedgerId(1), garbage)]);
}

#[test]
fn what_was_seen_of_one_part_says_nothing_of_another() {
    let chain = committed(2);
    let seen = Seen::of(chain[&LedgerId(1)].object().unwrap());
    let release = Change::Release { seen, now_ms: 2_000, lag_ms: 0 };
    assert_eq!(chain[&LedgerId(2)].apply(&release), Err(Refused::StillNeeded));
    let mut chain = chain;
    assert_eq!(change(&mut chain, &[(1, release)]), Ok(vec![]));
    assert!(!chain[&LedgerId(1)].on_bookies() && chain[&LedgerId(2)].on_bookies());
}

#[derive(Clone, Debug)]
enum Deed {
    Prepare(u64, u64),
    Commit(u64, u64, u64),
    Abandon(u64, u64, u64),
    Release(u64),
    Return(u64),
    Leave(u64),
}

fn deed() -> impl Strategy<Value = Deed> {
    let (id, run) = (0_u64..3, 1_u64..6);
    prop_oneof![
        3 => (run.clone(), run.clone()).prop_map(|(from, to)| Deed::Prepare(from, to)),
        3 => (id.clone(), run.clone(), run.clone()).prop_map(|(id, from, to)| Deed::Commit(id, from, to)),
        2 => (id, run.clone(), run.clone()).prop_map(|(id, from, to)| Deed::Abandon(id, from, to)),
        2 => run.clone().prop_map(Deed::Release),
        2 => run.clone().prop_map(Deed::Return),
        2 => run.prop_map(Deed::Leave),
    ]
}

proptest! {
    #[test]
    fn garbage_is_what_no_ledger_names_and_nothing_else(deeds in proptest::collection::vec(deed(), 0..60)) {
        let (mut chain, mut thrown) = (fresh(5), BTreeSet::new());
        let mut ever: Vec<(AttemptId, LedgerId)> = Vec::new();
        for deed in deeds {
            // What is asked of an attempt is asked of one that was begun lately.
            let recent = |nth: u64| ever.iter().rev().nth(nth as usize).copied();
            let changes: Vec<_> = match deed {
                Deed::Prepare(from, to) => {
                    let id = ever.len() as u64 + 1;
                    ever.push((AttemptId(id), LedgerId(from)));
                    let first = (to > from).then_some(from);
                    (from..=to.max(from)).map(|ledger| (ledger, Change::Prepare(attempt(id, first)))).collect()
                }
                Deed::Commit(nth, from, to) => {
                    let Some((id, first)) = recent(nth) else { continue };
                    (from..=to.max(from)).map(|ledger| (ledger, commit(id.0, first.0, ledger))).collect()
                }
                Deed::Abandon(nth, from, to) => {
                    let Some((id, _)) = recent(nth) else { continue };
                    (from..=to.max(from)).map(|ledger| (ledger, Change::Abandon(id))).collect()
                }
                Deed::Release(ledger) => {
                    let state = chain.get(&LedgerId(ledger));
                    let Some(object) = state.and_then(Offload::object) else { continue };
                    let seen = Seen::of(object);
                    vec![(ledger, Change::Release { seen, now_ms: 9_000, lag_ms: 0 })]
                }
                Deed::Return(ledger) => {
                    let state = chain.get(&LedgerId(ledger));
                    let Some(object) = state.and_then(Offload::object) else { continue };
                    vec![(ledger, Change::Return { gone: Gone::of(object), now_ms: 9_000, grace_ms: 0 })]
                }
                Deed::Leave(ledger) => {
                    if chain.contains_key(&LedgerId(ledger)) {
                        for (_, garbage) in leaves(&mut chain, ledger, 0) {
                            prop_assert!(thrown.insert(garbage.attempt), "thrown away once");
                        }
                    }
                    vec![]
                }
            };
            let before = chain.clone();
            match change(&mut chain, &changes) {
                Ok(garbage) => for attempt in garbage {
                    prop_assert!(thrown.insert(attempt), "thrown away once");
                },
                Err(_) => prop_assert_eq!(&chain, &before),
            }
            // Each attempt that was ever in the record is named by a ledger, or garbage: never both, never neither.
            let named: BTreeSet<_> = chain.values().filter_map(Offload::attempt).collect();
            prop_assert!(named.is_disjoint(&thrown));
            let before: BTreeSet<_> = before.values().filter_map(Offload::attempt).collect();
            prop_assert!(before.iter().all(|attempt| named.contains(attempt) || thrown.contains(attempt)));
            for attempt in named {
                let of_it = |state: &&Offload| state.attempt() == Some(attempt);
                let mut stages: Vec<_> =
                    chain.values().filter(of_it).map(|state| matches!(state, Offload::Prepared(_))).collect();
                stages.dedup();
                prop_assert_eq!(stages.len(), 1, "ledgers of one attempt have got equally far");
            }
        }
    }
}
