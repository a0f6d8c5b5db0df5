//! The bucket held against the metadata, over real topic records.

use super::offloaded::Story;
use super::*;
use crate::offload::fsck::{Finding, Report, fsck};
use geminga_common::metadata::list_all;
use geminga_offload::blob::Blobs;
use geminga_offload::blob::sim::Fault;
use geminga_offload::state::Garbage;

const STRANGER: &str = "test/202611/00/9/9-0000000000000009";

impl Story {
    async fn fsck(&self, whole: bool) -> Report {
        fsck(&self.rig.meta.inner, "test", "s3://here", &self.blobs, whole).await.unwrap()
    }

    /// Every finding without its particulars, in order.
    async fn kinds(&self, whole: bool) -> Vec<String> {
        let kind = |finding: &Finding| finding.to_string().split(':').next().unwrap_or_default().to_owned();
        self.fsck(whole).await.findings.iter().map(kind).collect()
    }
}

#[tokio::test]
async fn what_fits_is_counted_at_every_stage_of_an_offload() {
    let story = Story::new();
    let (mut owner, ledgers) = story.released(2).await;
    let dead = story.faults.plan(Some((1, Fault::CrashBefore)));
    tokio::select! {
        () = dead.cancelled() => {}
        outcome = story.offload(&mut owner, ledgers[2]) => panic!("it should die: {outcome:?}"),
    }
    story.faults.plan(None);
    let report = story.fsck(true).await;
    assert_eq!((report.referenced, report.under_way, report.to_be_removed), (2, 1, 0));
    assert_eq!(report.findings, []);
    // A second attempt replaces the first, which waits for its removal; a trimmed object does as well.
    story.offload(&mut owner, ledgers[2]).await.unwrap();
    owner.ml.trim(Some(Position::new(ledgers[1], EntryId(0))), Retention::NONE);
    owner.until(|o| matches!(o, Output::Trimmed { ledgers: 1, .. }).then_some(())).await;
    let report = story.fsck(true).await;
    assert_eq!((report.referenced, report.under_way, report.to_be_removed), (2, 0, 2));
    assert_eq!(report.findings, []);
    story.sweep().await;
    let report = story.fsck(true).await;
    assert_eq!((report.referenced, report.to_be_removed, report.findings), (2, 0, vec![]));
    let bytes: u64 = story.blobs.list("test", None, 9).await.unwrap().iter().map(|o| o.size).sum();
    assert_eq!(report.bytes, bytes);
}

#[tokio::test]
async fn what_differs_is_told_and_left_alone() {
    let story = Story::new();
    let (_owner, ledgers) = story.released(2).await;
    let keys = story.blobs.keys();
    let of = |ledger: LedgerId| {
        keys.iter().find(|key| key.contains(&format!("/{ledger}-"))).expect("it was offloaded").clone()
    };
    story.blobs.put(STRANGER, vec!["x".into()], u64::MAX).await.unwrap();
    story.blobs.begin(STRANGER, u64::MAX).await.unwrap();
    assert_eq!(story.kinds(false).await, ["unknown", "unknown upload"]);
    // A byte that changed is seen by reading alone, a size that changed at once.
    story.blobs.tamper(&of(ledgers[0]), |bytes| bytes[60] ^= 1);
    assert_eq!(story.kinds(false).await, ["unknown", "unknown upload"]);
    assert_eq!(story.kinds(true).await, ["damaged", "unknown", "unknown upload"]);
    story.blobs.tamper(&of(ledgers[0]), |bytes| bytes.truncate(70));
    assert_eq!(story.kinds(false).await, ["damaged", "unknown", "unknown upload"]);
    story.blobs.remove(&of(ledgers[1])).await.unwrap();
    let found = story.fsck(false).await.findings;
    let missing = found.iter().find_map(|finding| match finding {
        Finding::Missing { key, owner, on_bookies } => Some((key, owner.ledger, *on_bookies)),
        _ => None,
    });
    assert_eq!(missing, Some((&of(ledgers[1]), ledgers[1], false)));
    let left = story.blobs.keys();
    assert_eq!((left.len(), story.blobs.uploads_open()), (2, 1), "nothing was removed: {left:?}");
}

#[tokio::test]
async fn a_referenced_object_that_is_to_be_removed_and_a_record_that_cannot_be_read_are_told() {
    let story = Story::new();
    let (owner, ledgers) = story.released(1).await;
    let object = *owner.ml.state.segment(ledgers[0]).unwrap().offload.object().unwrap();
    let garbage = Garbage { attempt: object.attempt, begun_ms: object.begun_ms, not_before_ms: u64::MAX };
    let (meta, names) = (&story.rig.meta.inner, &story.rig.deps.keys);
    let condemned =
        Op::put(names.object_garbage(object.attempt.0), garbage.encode(owner.ml.state.topic_id, ledgers[0]));
    let newer = Op::put(names.object_garbage(1), vec![8, 2]);
    meta.txn(Txn { compares: vec![], ops: vec![condemned, newer] }).await.unwrap();
    let found = story.kinds(false).await;
    assert_eq!(found, ["unreadable record", "condemned"]);
    // A topic's record that a newer build wrote: its object is not told as missing, but as unknown, and why.
    let topic = list_all(meta, &names.all_topics_prefix()).await.unwrap().remove(0).key;
    let ops = vec![Op::put(topic, vec![8, 9]), Op::delete(names.object_garbage(object.attempt.0))];
    meta.txn(Txn { compares: vec![], ops }).await.unwrap();
    assert_eq!(story.kinds(false).await, ["unreadable record", "unreadable record", "unknown"]);
}
