//! An owner's commits against those of others, one by one.

use super::*;
use crate::plan::Plan;
use crate::world::Sim;
use geminga_common::rng::Rng;

/// What becomes of the first commit of an owner at epoch 2, when the record it read, of epoch 1, is written over by `other` before it.
fn first_commit_over(other: Topic) -> Option<u64> {
    let plan = Plan { windows: Vec::new(), ..Plan::new(&mut Rng::seeded(1)) };
    let sim = Sim::new(1, plan.clone(), false);
    let outcome = Rc::new(Cell::new(None));
    let told = outcome.clone();
    sim.start(0, move |cx| async move {
        let put = async |key: &str, value: Bytes| {
            let txn = Txn { compares: Vec::new(), ops: vec![Op::put(key, value)] };
            assert!(matches!(cx.meta(MetaOp::Txn(txn)).await, Ok(MetaReply::Txn(TxnOutcome::Committed(_)))));
            get_patiently(&cx, key).await.expect("just written").mod_revision
        };
        let me = Bytes::from_static(b"me");
        put(OWNER, me.clone()).await;
        let topic = Topic { epoch: 1, op_id: 11, ..Topic::default() };
        let revision = put(TOPIC, topic.encode()).await;
        put(TOPIC, other.encode()).await;
        let guard = Compare::ValueIs(OWNER.into(), me);
        let mut owner = Owner { topic, revision, ..Owner::new(&cx, 2, guard, no_bookies(&cx)) };
        let next = owner.topic.clone();
        let done = owner.commit(next, Vec::new(), Vec::new()).await;
        told.set(Some(done.map(|()| owner.topic.epoch)));
    });
    while outcome.get().is_none() && sim.step(10 * SECOND) {}
    let outcome = outcome.get().expect("the commit ends");
    assert_eq!(sim.w.borrow().check.broken, None);
    sim.clear();
    outcome
}

/// The record still bears the last owner's epoch: a repair's commit keeps it, and is none of an owner's (seed 1002305).
#[test]
fn a_first_commit_that_crosses_a_repair_is_made_over_it() {
    assert_eq!(first_commit_over(Topic { epoch: 1, op_id: 12, ..Topic::default() }), Some(2));
}

#[test]
fn a_first_commit_that_crosses_a_later_owners_is_not_made() {
    assert_eq!(first_commit_over(Topic { epoch: 3, op_id: 12, ..Topic::default() }), None);
}
