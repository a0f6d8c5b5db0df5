//! The machine behind a loss of the only copy that somebody accepted. What it does otherwise is explored exhaustively elsewhere.

use super::state::{Effect, State, Verdict};
use crate::entry::{Entry, Header, Kind};
use crate::quorum::QuorumSpec;
use crate::record::{Fragment, LedgerAttributes, LedgerKind, LedgerRecord, LedgerState, OpId};
use crate::rpc::{BookieRef, IdRange, Tail};
use bytes::Bytes;
use geminga_common::ids::{
    BookieId, EntryId, Incarnation, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId,
};
use std::sync::Arc;

fn run(first: u64, last: u64) -> IdRange {
    IdRange { first: EntryId(first), last: EntryId(last) }
}

fn recovering(copies: u32) -> LedgerRecord {
    let bookie =
        |n: u32| BookieRef { id: BookieId::new(&format!("b{n}")).unwrap(), incarnation: Incarnation(1) };
    let attributes = LedgerAttributes {
        kind: LedgerKind::TopicData,
        owner: "t".to_owned(),
        topic: TopicId(1),
        ordinal: 0,
        predecessor: None,
        owner_epoch: OwnerEpoch(1),
        first_index: MessageIndex(0),
    };
    LedgerRecord {
        id: LedgerId(7),
        term: Term(2),
        state: LedgerState::Recovering,
        quorum: QuorumSpec::new(copies, copies, copies.div_ceil(2)).unwrap(),
        fragments: vec![Fragment {
            first: EntryId(0),
            ensemble: (0..copies).map(|n| Some(bookie(n))).collect(),
        }],
        repair: Vec::new(),
        attributes: Arc::new(attributes),
        op_id: OpId(0),
    }
}

fn tail(present: &[IdRange], doubtful: &[IdRange], lac: Option<u64>, lacks: bool) -> Tail {
    let (present, doubtful, lac) = (present.to_vec(), doubtful.to_vec(), lac.map(EntryId));
    Tail { lac, lafr: lac, present, doubtful, entries: Vec::new(), attributes: None, lacks }
}

fn entry(id: u64) -> Entry {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(id),
        timestamp_ms: 0,
        bytes_before: 100,
    };
    Entry::new(LedgerId(7), EntryId(id), header, Bytes::from_static(b"left"))
}

fn fenced(copies: u32) -> State {
    let mut out = Vec::new();
    let state = State::start(recovering(copies), &mut out);
    assert_eq!(out.len(), copies as usize, "all are fenced: {out:?}");
    state
}

#[test]
fn a_ledger_ends_behind_what_is_left_and_tells_what_is_known_to_be_lost() {
    let (mut state, mut out) = (fenced(1), Vec::new());
    state.on_tail(0, Ok(tail(&[run(0, 3), run(6, 8)], &[], Some(12), true)), &mut out);
    assert_eq!(out, [Effect::ReadLast(EntryId(8))]);
    out.clear();
    state.on_last(Some(entry(8)), &mut out);
    let [Effect::Close(closed)] = &out[..] else { panic!("not closed: {out:?}") };
    let length = 100 + entry(8).size() as u64;
    assert_eq!(closed.state, LedgerState::Closed { last: Some(EntryId(8)), length });
    assert_eq!((closed.fragments.clone(), closed.term), (recovering(1).fragments, Term(2)), "nothing moved");
    assert_eq!(state.lost(), Some(&[run(4, 5), run(9, 12)][..]));
}

#[test]
fn a_ledger_of_which_nothing_is_left_closes_empty() {
    let (mut state, mut out) = (fenced(1), Vec::new());
    state.on_tail(0, Ok(tail(&[], &[], None, true)), &mut out);
    let [Effect::Close(closed)] = &out[..] else { panic!("not closed: {out:?}") };
    assert_eq!(closed.state, LedgerState::Closed { last: None, length: 0 });
    assert_eq!(state.lost(), Some(&[][..]), "nobody knows of anything");
}

#[test]
fn bytes_that_are_there_and_do_not_check_are_not_given_up() {
    let (mut state, mut out) = (fenced(1), Vec::new());
    state.on_tail(0, Ok(tail(&[run(0, 3)], &[run(4, 6)], Some(6), true)), &mut out);
    assert_eq!(out, [Effect::Stop(Verdict::Undecided)]);
    let (mut state, mut out) = (fenced(1), Vec::new());
    state.on_tail(0, Ok(tail(&[run(0, 1), run(4, 6)], &[run(2, 3)], Some(6), true)), &mut out);
    assert_eq!(out, [Effect::ReadLast(EntryId(6))]);
    assert_eq!(state.lost(), Some(&[][..]), "2 and 3 may be put right");
}

#[test]
fn with_other_copies_it_is_one_that_knows_nothing() {
    let (mut state, mut out) = (fenced(3), Vec::new());
    state.on_tail(0, Ok(tail(&[run(0, 1)], &[], Some(1), true)), &mut out);
    state.on_tail(1, Ok(tail(&[run(0, 1)], &[], Some(1), true)), &mut out);
    state.on_tail(2, Ok(tail(&[run(0, 1)], &[], Some(1), false)), &mut out);
    assert_eq!(out, [Effect::Stop(Verdict::Undecided)], "one \"not found\" of three proves nothing");
    assert_eq!(state.lost(), None);
}
