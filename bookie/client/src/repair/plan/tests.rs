//! What needs repair, and that nothing is left when all jobs are applied.

use super::*;
use crate::record::Fragment;
use geminga_common::ids::{BookieId, Incarnation, LedgerId, Term};
use geminga_common::rng::Rng;

fn bookie(n: u64) -> BookieRef {
    BookieRef { id: BookieId::new(&format!("b{n}")).unwrap(), incarnation: Incarnation(1) }
}

fn ledger(
    last: u64,
    fragments: &[(u64, [Option<u64>; 3])],
    repair: &[(u64, Option<u64>, u32)],
) -> ClosedLedger {
    let fragment = |(first, members): &(u64, [Option<u64>; 3])| Fragment {
        first: EntryId(*first),
        ensemble: members.iter().map(|m| m.map(bookie)).collect(),
    };
    let range = |(first, last, slot): &(u64, Option<u64>, u32)| RepairRange {
        first: EntryId(*first),
        last: last.map(EntryId),
        slot: *slot,
    };
    ClosedLedger {
        id: LedgerId(7),
        last: Some(EntryId(last)),
        length: 1,
        term: Term(1),
        quorum: QuorumSpec::new(3, 3, 2).unwrap(),
        fragments: fragments.iter().map(fragment).collect(),
        repair: repair.iter().map(range).collect(),
    }
}

fn ids(first: u64, last: u64) -> IdRange {
    IdRange { first: EntryId(first), last: EntryId(last) }
}

#[test]
fn a_vacancy_a_lag_and_a_lost_store_each_make_a_job() {
    let l = ledger(
        99,
        &[
            (0, [Some(1), Some(2), Some(3)]),
            (40, [Some(1), Some(2), None]),
            (60, [Some(1), Some(2), Some(3)]),
        ],
        &[(38, Some(45), 2), (70, Some(71), 0)],
    );
    let found = needs(&l, |b| if *b == bookie(2) { Standing::Gone } else { Standing::Sound });
    let short: Vec<_> =
        found.jobs.iter().map(|j| (j.copies, j.fragment, j.slot, j.ids, j.keep.is_some())).collect();
    assert_eq!(
        short,
        [
            (1, 0, 1, ids(0, 39), false),
            (1, 0, 2, ids(38, 39), true),
            (1, 1, 1, ids(40, 59), false),
            (1, 1, 2, ids(40, 59), false),
            (1, 2, 0, ids(70, 71), true),
            (1, 2, 1, ids(60, 99), false),
        ]
    );
    assert_eq!(found.waiting, 0);
}

#[test]
fn who_is_away_is_waited_for() {
    let l = ledger(9, &[(0, [Some(1), Some(2), Some(3)])], &[(3, None, 2)]);
    let found = needs(&l, |b| if *b == bookie(3) { Standing::Away } else { Standing::Sound });
    assert_eq!(found, Needs { jobs: Vec::new(), waiting: 1 });
    assert!(needs(&ledger(9, &[(0, [Some(1), Some(2), Some(3)])], &[]), |_| Standing::Away).none());
}

#[test]
fn an_empty_ledger_and_a_fragment_beyond_the_end_need_nothing() {
    let mut empty = ledger(0, &[(0, [None, None, None])], &[(0, None, 1)]);
    empty.last = None;
    assert!(needs(&empty, |_| Standing::Gone).none());
    let beyond = ledger(4, &[(0, [Some(1), Some(2), Some(3)]), (5, [None, Some(2), Some(3)])], &[]);
    assert!(needs(&beyond, |_| Standing::Sound).none());
}

#[test]
fn what_is_missing_is_found_by_the_write_sets() {
    let job = Job { fragment: 0, slot: 1, ids: ids(10, 20), keep: None, copies: 1 };
    let all = QuorumSpec::new(3, 3, 2).unwrap();
    assert_eq!(first_missing(all, &job, &[ids(0, 12), ids(13, 30)]), None);
    assert_eq!(first_missing(all, &job, &[ids(0, 12), ids(14, 30)]), Some(EntryId(13)));
    assert_eq!(first_missing(all, &job, &[]), Some(EntryId(10)));
    // Striped: slot 1 of 3 holds ids 0 and 1 of every three.
    let striped = QuorumSpec::new(3, 2, 2).unwrap();
    let held: Vec<IdRange> =
        (10..=20).filter(|id| striped.write_set(EntryId(*id)).contains(1)).map(|id| ids(id, id)).collect();
    assert_eq!(first_missing(striped, &job, &held), None);
    assert_eq!(first_missing(striped, &job, &held[1..]), Some(held[0].first));
}

#[test]
fn after_all_jobs_nothing_is_left_and_nothing_else_moved() {
    for seed in 0..2_000 {
        let mut rng = Rng::seeded(seed);
        let mut members = || {
            let mut m = [Some(1), Some(2), Some(3)];
            for one in &mut m {
                if rng.below(4) == 0 {
                    *one = None;
                }
            }
            m
        };
        let fragments = [(0, members()), (10, members()), (25, members())];
        let repair: Vec<(u64, Option<u64>, u32)> = (0..rng.below(5))
            .map(|_| {
                let first = rng.below(40);
                let last = (rng.below(3) > 0).then(|| first + rng.below(20));
                (first, last, rng.below(3) as u32)
            })
            .collect();
        let before = ledger(39, &fragments, &repair);
        let gone = rng.below(4);
        let standing = |b: &BookieRef| if *b == bookie(gone) { Standing::Gone } else { Standing::Sound };
        let mut now = before.clone();
        for job in needs(&before, standing).jobs {
            let spare = bookie(10 + u64::from(job.slot));
            now = apply(&now, &job, job.keep.as_ref().unwrap_or(&spare));
        }
        assert!(needs(&now, standing).none(), "seed {seed}: {:?}", needs(&now, standing));
        assert!(now.repair.is_empty(), "seed {seed}: {:?}", now.repair);
        for (f, g) in before.fragments.iter().zip(&now.fragments) {
            assert_eq!(f.first, g.first);
            for (old, new) in f.ensemble.iter().zip(&g.ensemble) {
                let stays = old.as_ref().is_some_and(|old| *old != bookie(gone));
                assert!(!stays || old == new, "seed {seed}: a sound member moved");
            }
        }
        assert_eq!((before.last, before.length, before.term), (now.last, now.length, now.term));
    }
}
