//! Stored forms: round trips, golden bytes, refusals.

use super::*;
use geminga_common::ids::{BookieId, Incarnation};
use proptest::prelude::*;

fn bookie(n: u64) -> BookieRef {
    BookieRef { id: BookieId::new(&format!("bookie-{n}")).unwrap(), incarnation: Incarnation(n) }
}

fn sample() -> LedgerRecord {
    LedgerRecord {
        id: LedgerId(300),
        term: Term(2),
        state: LedgerState::Closed { last: Some(EntryId(9)), length: 1000 },
        quorum: QuorumSpec::new(3, 2, 1).unwrap(),
        fragments: vec![
            Fragment { first: EntryId(0), ensemble: vec![Some(bookie(1)), Some(bookie(2)), None] },
            Fragment { first: EntryId(4), ensemble: vec![Some(bookie(3)), Some(bookie(2)), Some(bookie(1))] },
        ],
        repair: vec![RepairRange { first: EntryId(0), last: Some(EntryId(3)), slot: 2 }],
        attributes: Arc::new(LedgerAttributes {
            kind: LedgerKind::CursorLog,
            owner: "b".into(),
            topic: TopicId(1),
            ordinal: 2,
            predecessor: Some(LedgerId(0)),
            owner_epoch: OwnerEpoch(3),
            first_index: MessageIndex(4),
        }),
        op_id: OpId(0x0102_0304_0506_0708),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Format 1. These bytes are in stores: they may be added to, never changed.
#[test]
fn golden_bytes() {
    let record = sample();
    let b1 = "0a130a08626f6f6b69652d31110100000000000000";
    let b2 = "0a130a08626f6f6b69652d32110200000000000000";
    let b3 = "0a130a08626f6f6b69652d33110300000000000000";
    let first = format!("1215{b1}1215{b2}1200");
    let second = format!("08041215{b3}1215{b2}1215{b1}");
    let shared = format!("08ac0210021803200a28e80732060803100218013a30{first}3a47{second}420410041802");
    let attributes = "080212016218012002280130033804";
    let golden = format!("01{shared}4a0f{attributes}510807060504030201");
    assert_eq!(hex(&record.encode()), golden);
    assert_eq!(hex(&record.closed().unwrap().encode()), format!("01{shared}"));
    assert_eq!(hex(&record.attributes.encode()), format!("01{attributes}"));
    assert_eq!(LedgerRecord::decode(&record.encode()), Ok(record));
}

#[test]
fn what_is_not_known_is_refused() {
    let good = sample().encode();
    let mut newer = good.to_vec();
    newer[0] = 2;
    assert_eq!(LedgerRecord::decode(&newer), Err(DecodeError::Version(Some(2))));
    assert_eq!(ClosedLedger::decode(&[]), Err(DecodeError::Version(None)));
    assert!(matches!(LedgerRecord::decode(&good[..good.len() - 3]), Err(DecodeError::Damaged(_))));
    let open = LedgerRecord { state: LedgerState::Open, ..sample() };
    assert_eq!(ClosedLedger::decode(&open.encode()), Err(DecodeError::Impossible("state")));
    let mut unordered = sample();
    unordered.fragments.swap(0, 1);
    assert_eq!(LedgerRecord::decode(&unordered.encode()), Err(DecodeError::Impossible("fragments")));
    let beyond =
        LedgerRecord { state: LedgerState::Closed { last: Some(EntryId(2)), length: 1 }, ..sample() };
    assert_eq!(LedgerRecord::decode(&beyond.encode()), Err(DecodeError::Impossible("last entry")));
}

#[test]
fn closing_ends_what_grows_and_drops_what_lies_beyond() {
    let range =
        |first, last: Option<u64>, slot| RepairRange { first: EntryId(first), last: last.map(EntryId), slot };
    let repair = [range(2, None, 0), range(9, None, 1), range(1, Some(8), 2), range(1, Some(3), 2)];
    let closed = close_repair(&repair, Some(EntryId(5)));
    assert_eq!(closed, [range(2, Some(5), 0), range(1, Some(3), 2), range(1, Some(5), 2)]);
    assert_eq!(close_repair(&repair, None), []);
}

prop_compose! {
    fn records()(e in 1..6_u32, w in 1..6_u32, a in 1..6_u32)(
        quorum in Just(QuorumSpec::new(e.max(w).max(a), w.max(a), a).unwrap()),
        id in any::<u64>(), term in any::<u64>(), op_id in any::<u64>(), last in proptest::option::of(0..1000_u64),
        steps in proptest::collection::vec((1..50_u64, proptest::collection::vec(proptest::option::of(any::<u64>()), 6)), 1..5),
        owner in ".{0,20}", state in 0..3, length in any::<u64>(), slot in 0..1_u32, predecessor in proptest::option::of(0..1000_u64),
    ) -> LedgerRecord {
        let mut first = 0;
        let fragments: Vec<Fragment> = steps.iter().map(|(step, slots)| {
            let ensemble = slots[..quorum.ensemble() as usize].iter().map(|n| n.map(bookie)).collect();
            let fragment = Fragment { first: EntryId(first), ensemble };
            first += step;
            fragment
        }).collect();
        let floor = fragments.last().unwrap().first.0;
        let last = last.map(|n| n + floor).or_else(|| floor.checked_sub(1)).map(EntryId);
        LedgerRecord {
            id: LedgerId(id),
            term: Term(term),
            state: [LedgerState::Open, LedgerState::Recovering, LedgerState::Closed { last, length }][state as usize],
            quorum,
            fragments,
            repair: vec![RepairRange { first: EntryId(0), last, slot }],
            attributes: Arc::new(LedgerAttributes {
                kind: LedgerKind::TopicData,
                owner,
                topic: TopicId(id),
                ordinal: term,
                predecessor: predecessor.map(LedgerId),
                owner_epoch: OwnerEpoch(op_id),
                first_index: MessageIndex(length),
            }),
            op_id: OpId(op_id),
        }
    }
}

proptest! {
    #[test]
    fn records_round_trip(record in records()) {
        prop_assert_eq!(LedgerAttributes::decode(&record.attributes.encode()), Ok((*record.attributes).clone()));
        if let Some(closed) = record.closed() {
            prop_assert_eq!(ClosedLedger::decode(&closed.encode()), Ok(closed));
        }
        prop_assert_eq!(LedgerRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = LedgerRecord::decode(&bytes);
        let _ = ClosedLedger::decode(&bytes);
        let mut framed = vec![1];
        framed.extend(bytes);
        let _ = LedgerRecord::decode(&framed);
    }
}
