//! Stories of small ledgers of a topic that go to the object store as one object.

use super::offloaded::{RULES, Story};
use super::*;
use crate::offload::fsck::{Finding, fsck};
use geminga_offload::blob::Blobs as _;
use geminga_offload::blob::sim::Fault;
use geminga_offload::state::{Change as OffloadChange, Offload};

impl Story {
    /// Entries 0 to 30 in three closed ledgers, an open one behind; the three are in the store alone, as one object.
    pub(super) async fn released_together(&self) -> (Owner, Vec<LedgerId>) {
        let mut owner = self.rig.open().await;
        owner.append(0..35).await;
        let ledgers: Vec<_> = owner.ml.stats().ledgers.iter().map(|l| l.id).take(3).collect();
        let objects = self.offload_together(&mut owner, &ledgers).await.unwrap();
        assert_eq!(objects.len(), 3);
        for ledger in &ledgers {
            self.release(&mut owner, *ledger).await.unwrap();
        }
        self.buried().await;
        (owner, ledgers)
    }

    async fn trim_first(&self, owner: &mut Owner, floor: LedgerId) {
        owner.ml.trim(Some(Position::new(floor, EntryId(0))), Retention::NONE);
        owner.until(|o| matches!(o, Output::Trimmed { .. }).then_some(())).await;
    }

    async fn findings(&self, whole: bool) -> (usize, Vec<Finding>) {
        let report = fsck(&self.rig.meta.inner, "test", "s3://here", &self.blobs, whole).await.unwrap();
        (report.referenced, report.findings)
    }

    async fn garbage(&self) -> usize {
        let prefix = self.rig.deps.keys.object_garbage_prefix();
        self.rig.meta.inner.list(&prefix, None, 10).await.unwrap().len()
    }
}

#[tokio::test]
async fn three_ledgers_in_one_object_read_back_when_bookies_have_none_of_them() {
    let mut story = Story::new();
    let (owner, ledgers) = story.released_together().await;
    let keys = story.blobs.keys();
    assert!(keys.len() == 1 && keys[0].contains(&format!("/{}-", ledgers[0])), "{keys:?}");
    story.forgets();
    let mut owner = story.reopened(owner).await;
    drop(story.blobs.reads());
    let all = owner.read_all(owner.ml.first_position()).await;
    assert_story(&all, 0, 35);
    let reads = story.blobs.reads();
    assert!(reads.len() <= 4, "each small ledger comes by one request: {reads:?}");
    // Searches and single entries find theirs in every ledger, with nothing in memory.
    for n in [0, 9, 10, 19, 20, 29] {
        story.forgets();
        owner = story.reopened(owner).await;
        let token = owner.ml.find_by_index(all[n].entry.header.first_index.0);
        assert_eq!(owner.found(token).await, Some(all[n].position), "entry {n}");
        let ReadOutcome::Pending(token) = owner.ml.read_at(&[all[n].position]) else { continue };
        assert_eq!(owner.result(token).await.unwrap(), [all[n].clone()], "entry {n}");
    }
}

#[tokio::test]
async fn the_object_stays_until_the_last_of_its_ledgers_has_left_the_topic() {
    let story = Story::new();
    let (mut owner, ledgers) = story.released_together().await;
    for floor in &ledgers[1..] {
        story.trim_first(&mut owner, *floor).await;
        assert_eq!(story.garbage().await, 0, "others name it still");
        story.sweep().await;
        assert_eq!(story.blobs.keys().len(), 1);
        assert_eq!(story.findings(true).await, (1, vec![]));
    }
    // What is left is read back, out of the middle of the object.
    let mut owner = story.reopened(owner).await;
    let rest = owner.read_all(owner.ml.first_position()).await;
    assert_story(&rest, 20, 15);
    let token = owner.ml.delete();
    owner.changed(token).await.unwrap();
    assert_eq!(story.garbage().await, 1, "one removal, however many ledgers there were");
    story.sweep().await;
    assert_eq!((story.blobs.keys().len(), story.garbage().await), (0, 0));
}

#[tokio::test]
async fn deletion_of_the_topic_frees_an_object_of_several_ledgers_once() {
    let story = Story::new();
    let (mut owner, _) = story.released_together().await;
    let token = owner.ml.delete();
    owner.changed(token).await.unwrap();
    assert_eq!(story.garbage().await, 1);
    story.sweep().await;
    assert_eq!((story.blobs.keys().len(), story.garbage().await), (0, 0));
}

#[tokio::test]
async fn an_attempt_of_several_ledgers_of_a_dead_owner_is_given_up_as_a_whole_although_one_was_trimmed() {
    let story = Story::new();
    let mut owner = story.rig.open().await;
    owner.append(0..35).await;
    let ledgers: Vec<_> = owner.ml.stats().ledgers.iter().map(|l| l.id).take(3).collect();
    let dead = story.faults.plan(Some((1, Fault::CrashBefore)));
    tokio::select! {
        () = dead.cancelled() => {}
        outcome = story.offload_together(&mut owner, &ledgers) => panic!("it should die: {outcome:?}"),
    }
    story.faults.plan(None);
    let mut owner = story.reopened(owner).await;
    story.trim_first(&mut owner, ledgers[1]).await;
    assert_eq!(story.garbage().await, 0, "two ledgers name the attempt");
    let Offload::Prepared(attempt) = owner.ml.state.segment(ledgers[1]).unwrap().offload.clone() else {
        panic!("it is under way")
    };
    let alone = owner.ml.change_offload(vec![(ledgers[1], OffloadChange::Abandon(attempt.id))]);
    let refused = owner.changed(alone).await;
    assert!(matches!(refused, Err(ChangeError::Offload(_))), "{refused:?}");
    let due = owner.ml.offload_due(&RULES);
    assert_eq!(due.changes.len(), 1, "{due:?}");
    let token = owner.ml.change_offload(due.changes[0].clone());
    owner.changed(token).await.unwrap();
    assert_eq!(story.garbage().await, 1);
    story.offload_together(&mut owner, &ledgers[1..]).await.unwrap();
    story.sweep().await;
    let keys = story.blobs.keys();
    assert!(keys.len() == 1 && keys[0].contains(&format!("/{}-", ledgers[1])), "{keys:?}");
    assert_eq!(story.findings(true).await, (1, vec![]));
}

#[tokio::test]
async fn damage_is_told_of_the_ledger_that_has_it_and_loss_of_all() {
    let story = Story::new();
    let (owner, ledgers) = story.released_together().await;
    let key = story.blobs.keys().remove(0);
    let second = owner.ml.state.segment(ledgers[1]).unwrap().offload.object().unwrap().base() as usize;
    story.blobs.tamper(&key, |bytes| bytes[second + 60] ^= 1);
    let (good, findings) = story.findings(true).await;
    assert!(
        matches!(&findings[..], [Finding::Damaged { owner, .. }] if owner.ledger == ledgers[1]),
        "{findings:?}"
    );
    assert_eq!(good, 0);
    assert_eq!(story.findings(false).await, (1, vec![]), "its size is right");
    story.blobs.remove(&key).await.unwrap();
    let lost = story.findings(false).await.1;
    assert!(lost.len() == 3 && lost.iter().all(|f| matches!(f, Finding::Missing { .. })), "{lost:?}");
}

#[tokio::test]
async fn what_a_change_throws_away_is_recorded_although_a_repairer_wrote_before_it() {
    let story = Story::new();
    let mut owner = story.rig.open().await;
    owner.append(0..25).await;
    let ledgers: Vec<_> = owner.ml.stats().ledgers.iter().map(|l| l.id).take(2).collect();
    let dead = story.faults.plan(Some((1, Fault::CrashBefore)));
    tokio::select! {
        () = dead.cancelled() => {}
        outcome = story.offload_together(&mut owner, &ledgers) => panic!("it should die: {outcome:?}"),
    }
    story.faults.plan(None);
    let mut owner = story.reopened(owner).await;
    // As a repairer leaves it: our own last write, at another revision.
    let meta = &story.rig.meta.inner;
    let topics = story.rig.deps.keys.all_topics_prefix();
    let record = meta.list(&topics, None, 1).await.unwrap().remove(0);
    meta.txn(Txn { compares: vec![], ops: vec![Op::put(record.key, record.value)] }).await.unwrap();
    let due = owner.ml.offload_due(&RULES);
    let token = owner.ml.change_offload(due.changes[0].clone());
    owner.changed(token).await.unwrap();
    assert_eq!(story.garbage().await, 1);
    assert!(
        ledgers.iter().all(|ledger| owner.ml.state.segment(*ledger).unwrap().offload == Offload::Bookies)
    );
}
