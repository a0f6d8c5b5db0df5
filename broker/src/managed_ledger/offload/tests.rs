//! Which ledgers are due, by size, by age, by hand, and what happens to those on their way.

use super::super::state::Segment;
use super::*;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::record::Fragment;
use geminga_common::ids::{OwnerEpoch, Term};
use geminga_offload::key::AttemptId;
use geminga_offload::state::{Attempt, ObjectRef};
use geminga_offload::writer::Shape;

const NOTHING: Rules = Rules {
    bytes_max: None,
    age_max_ms: None,
    lag_ms: 100,
    before: None,
    again: None,
    uploading: None,
    together: Together { below: 0, size: 0, age_ms: 0 },
};

/// Ledgers 1 to 4 of 100 bytes each, closed at 1000, 2000, ….
fn chain() -> Vec<Segment> {
    let closed = |id: u64| ClosedLedger {
        id: LedgerId(id),
        last: Some(EntryId(0)),
        length: 100,
        term: Term(1),
        quorum: QuorumSpec::SINGLE,
        fragments: vec![Fragment { first: EntryId(0), ensemble: vec![None] }],
        repair: Vec::new(),
    };
    (1..=4).filter_map(|id| Segment::new(closed(id), MessageIndex(id), 0, id * 1000)).collect()
}

fn attempt() -> Attempt {
    Attempt { id: AttemptId(9), begun_ms: 0, settled_ms: 0, owner_epoch: OwnerEpoch(1), together: None }
}

fn object() -> ObjectRef {
    let shape = Shape { size: 1, footer_offset: 0, footer_crc: 0 };
    ObjectRef { attempt: AttemptId(9), begun_ms: 0, shape, part: None }
}

#[test]
fn by_size_the_oldest_beyond_the_threshold_go() {
    let due_over = |bytes| due(&chain(), 50, &Rules { bytes_max: Some(bytes), ..NOTHING }, 0).upload;
    // 450 bytes in all; ledger 4 and the open one are 150.
    assert_eq!(due_over(450), []);
    assert_eq!(due_over(449), [LedgerId(1)]);
    let mut chain = chain();
    chain[0].offload = Offload::Released(object());
    let rules = Rules { bytes_max: Some(249), ..NOTHING };
    assert_eq!(due(&chain, 50, &rules, 0).upload, [LedgerId(2)]);
    assert_eq!(due(&chain, 50, &Rules { bytes_max: Some(350), ..NOTHING }, 0).upload, []);
    assert_eq!(due(&chain, 0, &Rules { bytes_max: Some(0), ..NOTHING }, 0).upload, [LedgerId(2)]);
}

#[test]
fn by_age_each_goes_in_its_time() {
    let rules = Rules { age_max_ms: Some(500), ..NOTHING };
    assert_eq!(due(&chain(), 0, &rules, 1499), Due { wake_ms: Some(1500), ..Due::default() });
    let now = due(&chain(), 0, &rules, 1500);
    assert_eq!((now.upload, now.wake_ms), (vec![LedgerId(1)], Some(2500)));
}

#[test]
fn by_hand_what_lies_before_goes_one_after_the_other() {
    let rules = Rules { before: Some(LedgerId(3)), ..NOTHING };
    assert_eq!(due(&chain(), 0, &rules, 0).upload, [LedgerId(1)]);
    let busy = Rules { uploading: Some((LedgerId(1), LedgerId(1))), ..rules };
    assert_eq!(due(&chain(), 0, &busy, 0), Due::default());
    let mut chain = chain();
    chain[0].offload = Offload::Committed(object(), 0);
    chain[1].offload = Offload::Committed(object(), 0);
    assert_eq!(due(&chain, 0, &rules, 50), Due { wake_ms: Some(100), ..Due::default() });
}

#[test]
fn a_strange_attempt_is_given_up_and_copies_go_after_the_lag() {
    let mut chain = chain();
    chain[0].offload = Offload::Committed(object(), 1000);
    chain[1].offload = Offload::Prepared(attempt());
    let early = due(&chain, 0, &NOTHING, 1099);
    let give_up = (LedgerId(2), Change::Abandon(AttemptId(9)));
    assert_eq!((early.changes, early.wake_ms), (vec![vec![give_up]], Some(1100)));
    let mine = Rules { uploading: Some((LedgerId(2), LedgerId(2))), ..NOTHING };
    let late = due(&chain, 0, &mine, 1100);
    assert_eq!((late.changes, late.releases, late.wake_ms), (vec![], vec![LedgerId(1)], None));
}

/// Ledgers of 100 bytes go together, 250 bytes or 10 seconds at a time.
const TOGETHER: Rules = Rules { together: Together { below: 101, size: 250, age_ms: 10_000 }, ..NOTHING };

fn ids(ids: &[u64]) -> Vec<LedgerId> {
    ids.iter().map(|id| LedgerId(*id)).collect()
}

#[test]
fn small_ledgers_wait_for_each_other_until_there_are_enough_or_time_has_passed() {
    let rules = Rules { bytes_max: Some(0), ..TOGETHER };
    assert_eq!(due(&chain(), 0, &rules, 5000).upload, ids(&[1, 2, 3]), "enough for an object");
    let mut chain = chain();
    chain.truncate(2);
    let early = due(&chain, 0, &rules, 10_999);
    assert_eq!((early.upload, early.wake_ms), (vec![], Some(11_000)));
    assert_eq!(due(&chain, 0, &rules, 11_000).upload, ids(&[1, 2]));
    // Somebody who asks does not wait; nobody waits where none is to.
    let asked = Rules { before: Some(LedgerId(3)), ..TOGETHER };
    assert_eq!(due(&chain, 0, &asked, 5000).upload, ids(&[1, 2]));
    let at_once = Rules { together: Together { age_ms: 0, ..TOGETHER.together }, ..rules };
    assert_eq!(due(&chain, 0, &at_once, 5000).upload, ids(&[1, 2]));
    let busy = Rules { uploading: Some((LedgerId(1), LedgerId(2))), ..rules };
    assert_eq!(due(&chain, 0, &busy, 99_000), Due::default());
}

#[test]
fn what_is_large_or_there_already_ends_what_goes_together() {
    let off = Rules { bytes_max: Some(0), together: Together { below: 100, ..TOGETHER.together }, ..NOTHING };
    assert_eq!(due(&chain(), 0, &off, 5000).upload, ids(&[1]), "a ledger as large as the bound goes alone");
    let rules = Rules { bytes_max: Some(0), ..TOGETHER };
    let mut chain = chain();
    chain[0].offload = Offload::Released(object());
    chain[2].offload = Offload::Committed(object(), 5000);
    assert_eq!(due(&chain, 0, &rules, 5000).upload, ids(&[2]), "nothing can be added to it");
    // Those that are not due yet may be in time: the oldest waits for them.
    let old = Rules { age_max_ms: Some(500), ..TOGETHER };
    let now = due(&self::chain(), 0, &old, 1500);
    assert_eq!((now.upload, now.wake_ms), (vec![], Some(2500)));
}

#[test]
fn never_more_ledgers_go_together_than_one_transaction_takes() {
    let one = &chain()[0];
    let many = (1..=TOGETHER_MAX as u64 + 5).map(|id| {
        let ledger = ClosedLedger { id: LedgerId(id), ..one.ledger().clone() };
        Segment::new(ledger, MessageIndex(id), 0, 0)
    });
    let many: Vec<_> = many.flatten().collect();
    let rules =
        Rules { together: Together { size: u64::MAX, ..TOGETHER.together }, bytes_max: Some(0), ..TOGETHER };
    assert_eq!(due(&many, 0, &rules, 0).upload.len(), TOGETHER_MAX);
}

#[test]
fn a_strange_attempt_of_several_ledgers_is_given_up_for_all_of_them_at_once() {
    let mut chain = chain();
    let shared = Offload::Prepared(Attempt { together: Some(LedgerId(1)), ..attempt() });
    for segment in &mut chain[..3] {
        segment.offload = shared.clone();
    }
    let give_up: Vec<_> =
        ids(&[1, 2, 3]).into_iter().map(|ledger| (ledger, Change::Abandon(AttemptId(9)))).collect();
    assert_eq!(due(&chain, 0, &NOTHING, 0).changes, vec![give_up]);
    let mine = Rules { uploading: Some((LedgerId(1), LedgerId(3))), ..NOTHING };
    assert_eq!(due(&chain, 0, &mine, 0), Due::default());
}
