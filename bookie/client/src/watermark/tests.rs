//! The order of the two keys, against a creator and a second controller that come at every possible moment.

use super::*;
use crate::quorum::QuorumSpec;
use crate::record::{Fragment, LedgerAttributes, LedgerKind, OpId};
use geminga_common::clock::ManualClock;
use geminga_common::ids::{BookieId, EntryId, Incarnation, MessageIndex, OwnerEpoch, Term, TopicId};
use geminga_common::metadata::memory::MemoryStore;
use std::sync::Arc;

fn store() -> MemoryStore {
    MemoryStore::new(Arc::new(ManualClock::at_wall_ms(0)))
}

fn keys() -> Keys {
    Keys::new("test")
}

fn record(id: u64, state: LedgerState) -> Bytes {
    let attributes = LedgerAttributes {
        kind: LedgerKind::TopicData,
        owner: "p/n/t".to_owned(),
        topic: TopicId(1),
        ordinal: 0,
        predecessor: None,
        owner_epoch: OwnerEpoch(1),
        first_index: MessageIndex(0),
    };
    let bookie = crate::rpc::BookieRef { id: BookieId::new("b").unwrap(), incarnation: Incarnation(1) };
    let record = LedgerRecord {
        id: LedgerId(id),
        term: Term(1),
        state,
        quorum: QuorumSpec::new(1, 1, 1).unwrap(),
        fragments: vec![Fragment { first: EntryId(0), ensemble: vec![Some(bookie)] }],
        repair: Vec::new(),
        attributes: Arc::new(attributes),
        op_id: OpId(1),
    };
    record.encode()
}

/// The transaction of a creator; whether the ledger is there.
async fn create(meta: &MemoryStore, id: u64) -> bool {
    let key = keys().ledger(LedgerId(id));
    let compares = vec![
        Compare::Absent(key.clone()),
        Compare::ValueBelow(keys().wm_create(), watermark_value(LedgerId(id))),
    ];
    let txn = Txn { compares, ops: vec![Op::put(key, record(id, LedgerState::Open))] };
    matches!(meta.txn(txn).await.unwrap(), TxnOutcome::Committed(_))
}

async fn value(meta: &MemoryStore, key: &str) -> Option<LedgerId> {
    decode(meta.get(key).await.unwrap().map(|record| record.value).as_ref())
}

async fn perform(meta: &MemoryStore, effect: Effect) -> Event {
    match effect {
        Effect::Get(key) => Event::Got(meta.get(&key).await.unwrap().map(|record| record.value)),
        Effect::List => {
            Event::Listed(lowest_living(&keys(), &list_all(meta, &keys().ledgers_prefix()).await.unwrap()))
        }
        Effect::Txn(txn) => Event::Txn(matches!(meta.txn(txn).await.unwrap(), TxnOutcome::Committed(_))),
        Effect::Done(_) => unreachable!("the machine has ended"),
    }
}

#[tokio::test]
async fn no_ledger_is_made_that_bookies_refuse() {
    let mut outcomes = (0, 0);
    for moment in 0..12 {
        let meta = store();
        let (mut machine, mut effect) = Raise::new(keys(), LedgerId(10));
        let (mut steps, mut created) = (0, false);
        let told = loop {
            if steps == moment {
                created = create(&meta, 7).await;
            }
            if let Effect::Done(to) = effect {
                break to;
            }
            let event = perform(&meta, effect).await;
            effect = machine.on(event);
            steps += 1;
        };
        let obeyed = value(&meta, &keys().wm()).await;
        assert_eq!(told, obeyed);
        assert!(!created || obeyed < Some(LedgerId(7)), "moment {moment}: made, and refused by bookies");
        if created { outcomes.0 += 1 } else { outcomes.1 += 1 }
    }
    assert!(outcomes.0 > 0 && outcomes.1 > 0, "{outcomes:?}: both orders were tried");
}

#[tokio::test]
async fn living_ledgers_hold_the_watermark_and_closed_ones_do_not() {
    let meta = store();
    let closed = LedgerState::Closed { last: None, length: 0 };
    for (id, state) in [(3, closed), (5, LedgerState::Recovering), (8, LedgerState::Open)] {
        let put = Op::put(keys().ledger(LedgerId(id)), record(id, state));
        meta.txn(Txn { compares: Vec::new(), ops: vec![put] }).await.unwrap();
    }
    assert_eq!(run(&meta, &keys(), LedgerId(6)).await, Ok(Some(LedgerId(4))));
    assert_eq!(value(&meta, &keys().wm_create()).await, Some(LedgerId(6)));
    assert_eq!(run(&meta, &keys(), LedgerId(2)).await, Ok(Some(LedgerId(4))), "never back");
    assert!(!create(&meta, 6).await && create(&meta, 9).await);
    let put = Op::put(keys().ledger(LedgerId(5)), record(5, closed));
    meta.txn(Txn { compares: Vec::new(), ops: vec![put] }).await.unwrap();
    assert_eq!(run(&meta, &keys(), LedgerId(20)).await, Ok(Some(LedgerId(7))));
    // What cannot be read may be alive.
    let put = Op::put(keys().ledger(LedgerId(8)), Bytes::from_static(b"rot"));
    meta.txn(Txn { compares: Vec::new(), ops: vec![put] }).await.unwrap();
    assert_eq!(run(&meta, &keys(), LedgerId(20)).await, Ok(Some(LedgerId(7))));
}

#[tokio::test]
async fn two_controllers_end_at_the_higher_mark() {
    // Every interleaving of their first eight steps.
    for order in 0..256_u32 {
        let meta = store();
        let mut both = [Raise::new(keys(), LedgerId(4)), Raise::new(keys(), LedgerId(9))].map(Some);
        let mut turn = 0;
        while both.iter().any(Option::is_some) {
            let wanted = (order >> (turn % 8) & 1) as usize;
            let at = if both[wanted].is_some() { wanted } else { 1 - wanted };
            turn += 1;
            let Some((mut machine, effect)) = both[at].take() else { continue };
            if !matches!(effect, Effect::Done(_)) {
                let next = machine.on(perform(&meta, effect).await);
                both[at] = Some((machine, next));
            }
        }
        let marks = (value(&meta, &keys().wm_create()).await, value(&meta, &keys().wm()).await);
        assert_eq!(marks, (Some(LedgerId(9)), Some(LedgerId(9))), "order {order:b}");
    }
}
