//! A repairer moves members in the record, under the owner's feet.

use super::*;
use geminga_bookie_client::record::RepairRange;
use geminga_bookie_client::rpc::{Add, BookieRef};
use std::sync::atomic::Ordering;

impl Rig {
    fn key(&self) -> String {
        self.deps.keys.topic(&TopicName::parse("persistent://public/default/story").unwrap())
    }

    async fn stored(&self) -> (State, u64, Revision) {
        let stored = self.meta.inner.get(&self.key()).await.unwrap().unwrap();
        let (state, op_id) = record::decode(&stored.value).unwrap();
        (state, op_id, stored.mod_revision)
    }

    /// What a repairer may do: `change` closed ledgers, by compare, and leave all else as it is.
    async fn repair(&self, change: impl FnMut(&mut ClosedLedger)) {
        let txn = self.repairs(change).await;
        assert!(matches!(self.meta.inner.txn(txn).await.unwrap(), TxnOutcome::Committed(_)));
    }

    /// The transaction of [`Rig::repair`], over the record as it is now.
    async fn repairs(&self, mut change: impl FnMut(&mut ClosedLedger)) -> Txn {
        let (mut state, op_id, revision) = self.stored().await;
        let changed = |s: &Segment| {
            let mut ledger = s.ledger().clone();
            change(&mut ledger);
            Segment::new(ledger, s.first_index, s.first_publish_ms, s.closed_ms).unwrap()
        };
        let segments = state.segments().iter().map(changed).collect();
        let open = state.open().cloned();
        assert!(state.set_chain(segments, open));
        let compares = vec![Compare::ModRevision(self.key(), revision)];
        let ops = vec![Op::put(self.key(), record::encode(&state, op_id))];
        Txn { compares, ops }
    }

    fn spare(&self) -> BookieRef {
        self.bookies.refs()[3].clone()
    }

    /// Slot 0 of every closed ledger goes to the spare bookie, with what it holds.
    async fn move_to_spare(&self) {
        let (spare, bookies) = (self.spare(), self.bookies.clone());
        self.repair(|ledger| {
            let old = ledger.fragments[0].ensemble[0].replace(spare.clone()).unwrap();
            let (id, last) = (ledger.id, ledger.last.unwrap().0);
            let entries = bookies.with_store(&old.id, |s| {
                (0..=last).filter_map(|e| s.entry(id, EntryId(e)).cloned()).collect::<Vec<_>>()
            });
            let (entries, term) = (entries.unwrap(), ledger.term);
            let add = Add { ledger: id, term, lac: None, lafr: None, attributes: None, entries };
            bookies.with_store(&spare.id, |s| s.add(&spare, add)).unwrap().unwrap();
        })
        .await;
    }

    async fn first_member(&self) -> Option<BookieRef> {
        self.stored().await.0.segments()[0].ledger().fragments[0].ensemble[0].clone()
    }

    fn gets(&self) -> usize {
        self.meta.gets.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn what_a_repairer_moved_is_kept_by_every_later_change() {
    let rig = Rig::over(4, small());
    let mut owner = rig.open().await;
    owner.append(0..15).await;
    rig.move_to_spare().await;
    // A roll, a change of the record alone, a close.
    owner.append(15..25).await;
    assert_eq!(rig.first_member().await, Some(rig.spare()));
    rig.repair(|ledger| ledger.repair.push(RepairRange { first: EntryId(0), last: None, slot: 1 })).await;
    let token = owner.ml.set_properties(BTreeMap::from([("a".into(), "b".into())]));
    owner.changed(token).await.unwrap();
    rig.repair(|ledger| ledger.repair.clear()).await;
    let token = owner.ml.close();
    owner.changed(token).await.unwrap();
    let (state, ..) = rig.stored().await;
    assert_eq!(state.segments().len(), 3);
    assert_eq!(rig.first_member().await, Some(rig.spare()));
    assert!(state.segments().iter().all(|s| s.ledger().repair.is_empty()), "a healed range stays healed");
    assert_eq!(state.properties.len(), 1);
    let mut owner = rig.open().await;
    let first = owner.ml.first_position();
    assert_story(&owner.read_all(first).await, 0, 25);
}

#[tokio::test]
async fn a_new_owner_whose_first_write_crosses_a_repair_opens_over_it() {
    let mut rig = Rig::over(4, small());
    let mut before = rig.open().await;
    before.append(0..15).await;
    // The record bears the last owner's epoch and op id until the new one has taken in what that one left open.
    let range = RepairRange { first: EntryId(0), last: None, slot: 1 };
    let repair = rig.repairs(|ledger| ledger.repair.push(range)).await;
    *rig.meta.crosses.lock() = Some(repair);
    rig.deps.owner_epoch = OwnerEpoch(2);
    let mut owner = rig.open().await;
    assert!(rig.meta.crosses.lock().is_none(), "it has crossed");
    let (state, ..) = rig.stored().await;
    assert_eq!((state.writer_epoch, state.segments().len()), (OwnerEpoch(2), 2));
    assert_eq!(state.segments()[0].ledger().repair, [range], "the repair's commit stands");
    let first = owner.ml.first_position();
    assert_story(&owner.read_all(first).await, 0, 15);
}

#[tokio::test]
async fn an_answer_lost_before_a_repair_leaves_record_and_ledger_in_step() {
    let rig = Rig::over(4, small());
    let mut owner = rig.open().await;
    owner.append(0..10).await;
    let before = rig.stored().await.2;
    rig.meta.lose.lock().push(true);
    // The eleventh entry rolls: one ledger closes and the next opens in a transaction whose answer is lost.
    owner.send(10..11);
    let mut out = Vec::new();
    while rig.stored().await.2 == before {
        while let Ok(event) = owner.mailbox.try_recv() {
            owner.ml.on_event(event, &mut out);
        }
        tokio::task::yield_now().await;
    }
    assert!(out.is_empty(), "{out:?}");
    rig.move_to_spare().await;
    owner.acked(1).await;
    // The new ledger's writer knows its own record's revision, not the repairer's: it can close.
    owner.append(11..15).await;
    let token = owner.ml.roll_now();
    owner.changed(token).await.unwrap();
    assert_eq!(rig.first_member().await, Some(rig.spare()), "read back with the outcome");
    let first = owner.ml.first_position();
    assert_story(&owner.read_all(first).await, 0, 15);
}

#[tokio::test]
async fn a_tombstone_names_who_holds_the_ledger_by_now() {
    let rig = Rig::over(4, small());
    let mut owner = rig.open().await;
    let p = owner.append(0..15).await;
    rig.move_to_spare().await;
    rig.bookies.faults(&rig.spare().id, |f| f.down = true);
    owner.ml.trim(None, Retention::NONE);
    owner.until(|o| matches!(o, Output::Trimmed { .. }).then_some(())).await;
    let stored = rig.meta.get(&rig.deps.keys.tombstone(p[0].ledger)).await.unwrap().unwrap();
    let (gone, _) = record::decode_tombstone(&stored.value).unwrap();
    assert_eq!(gone.fragments[0].ensemble[0], Some(rig.spare()));
    // Deleting the topic, too.
    owner.append(15..25).await;
    let (state, ..) = rig.stored().await;
    let second = state.segments()[0].id();
    rig.bookies.faults(&rig.spare().id, |f| f.down = false);
    rig.move_to_spare().await;
    rig.bookies.faults(&rig.spare().id, |f| f.down = true);
    let token = owner.ml.delete();
    owner.changed(token).await.unwrap();
    let stored = rig.meta.get(&rig.deps.keys.tombstone(second)).await.unwrap().unwrap();
    let (gone, _) = record::decode_tombstone(&stored.value).unwrap();
    assert_eq!(gone.fragments[0].ensemble[0], Some(rig.spare()));
}

#[tokio::test]
async fn a_record_that_says_more_than_a_repair_may_is_not_adopted() {
    let rig = Rig::over(4, small());
    let mut owner = rig.open().await;
    owner.append(0..15).await;
    // Under our op id, and yet not a repair: a ledger has shrunk.
    rig.repair(|ledger| ledger.last = Some(EntryId(3))).await;
    owner.send(15..25);
    assert_eq!(owner.poisoned().await.1, PoisonReason::RecordLost);
}

/// All bookies but the spare lose what they hold of closed ledgers.
async fn only_the_spare_holds(rig: &Rig, owner: &mut Owner) {
    let token = owner.ml.roll_now();
    owner.changed(token).await.unwrap();
    rig.move_to_spare().await;
    owner.ml.cache.trim(owner.ml.end_position());
    rig.bookies.refs()[..3].iter().for_each(|b| rig.bookies.wipe(&b.id, true));
}

#[tokio::test]
async fn a_read_that_finds_no_holder_looks_where_the_ledger_is_by_now() {
    let rig = Rig::over(4, small());
    let mut owner = rig.open().await;
    let p = owner.append(0..15).await;
    let first = owner.ml.first_position();
    let gets = rig.gets();
    owner.ml.cache.trim(owner.ml.end_position());
    assert_story(&owner.read_all(first).await, 0, 15);
    assert_eq!(rig.gets(), gets, "a read that succeeds asks metadata nothing");
    only_the_spare_holds(&rig, &mut owner).await;
    let gets = rig.gets();
    let token = owner.ml.find_by_index(4);
    assert_eq!(owner.found(token).await, Some(p[2]));
    let ReadOutcome::Pending(token) = owner.ml.read_at(&[p[1], p[12]]) else { panic!("nothing is cached") };
    let points = owner.result(token).await.unwrap();
    assert_eq!(points.iter().map(|e| e.position).collect::<Vec<_>>(), [p[1], p[12]]);
    assert_story(&owner.read_all(first).await, 0, 15);
    assert_eq!(rig.gets(), gets + 1, "what one read has found all others know");
    // And it is adopted: the next change meets no surprise.
    assert_eq!(owner.ml.revision, rig.stored().await.2);
}

#[tokio::test]
async fn reads_that_fail_look_at_the_record_once_a_second_and_then_tell() {
    let rig = Rig::over(4, small());
    let mut owner = rig.open().await;
    owner.append(0..15).await;
    let token = owner.ml.roll_now();
    owner.changed(token).await.unwrap();
    owner.ml.cache.trim(owner.ml.end_position());
    rig.bookies.refs()[..3].iter().for_each(|b| rig.bookies.faults(&b.id, |f| f.down = true));
    let (first, gets) = (owner.ml.first_position(), rig.gets());
    let limit = ReadLimit { entries: 3, bytes: 1 << 20 };
    let mut now = rig.clock.mono();
    let until = now + Duration::from_millis(2500);
    let mut failed = 0;
    while now < until {
        let ReadOutcome::Pending(token) = owner.ml.read(first, limit, ReadClass::CatchUp) else { panic!() };
        assert_eq!(owner.result(token).await, Err(ReadError::Unavailable(first)));
        failed += 1;
        rig.clock.advance(Duration::from_millis(100));
        now = rig.clock.mono();
    }
    let looks = rig.gets() - gets;
    assert!((1..=3).contains(&looks), "{looks} looks for {failed} failed reads");
    assert!(failed > 10);
}
