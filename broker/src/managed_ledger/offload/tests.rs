//! Which ledgers are due, by size, by age, by hand, and what happens to those on their way.

use super::super::state::Segment;
use super::*;
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::record::Fragment;
use geminga_common::ids::{OwnerEpoch, Term};
use geminga_offload::key::AttemptId;
use geminga_offload::state::{Attempt, ObjectRef};
use geminga_offload::writer::Shape;

const NOTHING: Rules =
    Rules { bytes_max: None, age_max_ms: None, lag_ms: 100, before: None, uploading: None };

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
    Attempt { id: AttemptId(9), begun_ms: 0, settled_ms: 0, owner_epoch: OwnerEpoch(1) }
}

fn object() -> ObjectRef {
    let shape = Shape { size: 1, footer_offset: 0, footer_crc: 0 };
    ObjectRef { attempt: AttemptId(9), begun_ms: 0, shape }
}

#[test]
fn by_size_the_oldest_beyond_the_threshold_go() {
    let due_over = |bytes| due(&chain(), 50, &Rules { bytes_max: Some(bytes), ..NOTHING }, 0).upload;
    // 450 bytes in all; ledger 4 and the open one are 150.
    assert_eq!(due_over(450), None);
    assert_eq!(due_over(449), Some(LedgerId(1)));
    let mut chain = chain();
    chain[0].offload = Offload::Released(object());
    let rules = Rules { bytes_max: Some(249), ..NOTHING };
    assert_eq!(due(&chain, 50, &rules, 0).upload, Some(LedgerId(2)));
    assert_eq!(due(&chain, 50, &Rules { bytes_max: Some(350), ..NOTHING }, 0).upload, None);
    assert_eq!(due(&chain, 0, &Rules { bytes_max: Some(0), ..NOTHING }, 0).upload, Some(LedgerId(2)));
}

#[test]
fn by_age_each_goes_in_its_time() {
    let rules = Rules { age_max_ms: Some(500), ..NOTHING };
    assert_eq!(due(&chain(), 0, &rules, 1499), Due { wake_ms: Some(1500), ..Due::default() });
    let now = due(&chain(), 0, &rules, 1500);
    assert_eq!((now.upload, now.wake_ms), (Some(LedgerId(1)), Some(2500)));
}

#[test]
fn by_hand_what_lies_before_goes_one_after_the_other() {
    let rules = Rules { before: Some(LedgerId(3)), ..NOTHING };
    assert_eq!(due(&chain(), 0, &rules, 0).upload, Some(LedgerId(1)));
    let busy = Rules { uploading: Some(LedgerId(1)), ..rules };
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
    assert_eq!((early.changes, early.wake_ms), (vec![give_up], Some(1100)));
    let mine = Rules { uploading: Some(LedgerId(2)), ..NOTHING };
    let late = due(&chain, 0, &mine, 1100);
    assert_eq!((late.changes, late.releases, late.wake_ms), (vec![], vec![LedgerId(1)], None));
}
