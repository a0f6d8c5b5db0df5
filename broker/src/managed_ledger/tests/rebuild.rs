//! Topics attached again from the bucket alone, over real objects of real ledgers; cut short at every write.

use super::offloaded::Story;
use super::*;
use crate::offload::rebuild::{Finding, Options, Plan, RebuildError, Target, apply, plan};
use geminga_common::error::Coded as _;
use geminga_common::metadata::list_all;
use geminga_offload::blob::Blobs;
use geminga_offload::blob::sim::{Faults, SimBlobs};
use geminga_offload::identity::{Recorded, StoreId, Tag};
use geminga_offload::key;
use std::sync::atomic::{AtomicUsize, Ordering};

const STORE: StoreId = StoreId(77);
const PLACE: &str = "s3://here";

/// Metadata that take so many transactions, and then none, or one more whose answer is lost.
struct Cut {
    inner: Arc<Doubtful>,
    left: AtomicUsize,
    is_done: bool,
}

impl MetadataStore for Cut {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>, MetaError>> {
        self.inner.get(key)
    }
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, MetaError>> {
        self.inner.list(prefix, after, limit)
    }
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, MetaError>> {
        Box::pin(async move {
            let left = self.left.load(Ordering::Relaxed);
            if left > 0 {
                self.left.store(left - 1, Ordering::Relaxed);
                return self.inner.txn(txn).await;
            }
            if self.is_done {
                let _lost = self.inner.txn(txn).await;
            }
            Err(MetaError::Unavailable("cut short".into()))
        })
    }
    fn watch<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<WatchStream, MetaError>> {
        self.inner.watch(prefix)
    }
    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, MetaError>> {
        self.inner.lease_grant(ttl)
    }
    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        self.inner.lease_keep_alive(lease)
    }
    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), MetaError>> {
        self.inner.lease_revoke(lease)
    }
}

/// A bucket with ledgers of 10 entries each, as a cluster left it that is no more.
async fn left(story: &Story, ledgers: usize) -> SimBlobs {
    drop(story.released(ledgers).await);
    claimed(story).await
}

/// The same with three ledgers in one object.
async fn left_together(story: &Story) -> SimBlobs {
    drop(story.released_together().await);
    claimed(story).await
}

async fn claimed(story: &Story) -> SimBlobs {
    let tag = Tag { id: STORE, cluster: "test".into(), made_ms: 5 };
    story.blobs.create(&key::identity("test"), tag.encode()).await.unwrap();
    story.blobs.observer()
}

async fn planned(meta: &dyn MetadataStore, blobs: &SimBlobs, options: &Options) -> Plan {
    plan(meta, "test", PLACE, blobs, options, &|_, _| {}).await.unwrap()
}

async fn carried_out(
    meta: Arc<dyn MetadataStore>,
    blobs: &SimBlobs,
    options: &Options,
) -> Result<Plan, RebuildError> {
    let mut plan = plan(&*meta, "test", PLACE, blobs, options, &|_, _| {}).await?;
    let target =
        Target { meta, cluster: "test".into(), place: PLACE.into(), adopt: Some(STORE), alone: false };
    let tasks = TaskGroup::new();
    let applied = apply(&target, &mut plan, &tasks).await;
    tasks.stop();
    applied.map(|()| plan)
}

async fn contents(blobs: &SimBlobs) -> Vec<(String, bytes::Bytes)> {
    let mut all = Vec::new();
    for listed in blobs.list("test", None, usize::MAX).await.unwrap() {
        all.push((listed.key.clone(), blobs.range(&listed.key, 0..listed.size).await.unwrap()));
    }
    all
}

/// A cluster without anything, with this bucket.
fn fresh(story: &Story) -> Story {
    let mut fresh = Story { rig: Rig::new(small()), blobs: story.blobs.clone(), faults: Faults::default() };
    fresh.forgets();
    fresh
}

fn kinds(plan: &Plan) -> Vec<String> {
    let kind = |finding: &Finding| {
        format!("{} {}", finding.code(), finding.to_string().split(':').next().unwrap_or_default())
    };
    plan.findings.iter().map(kind).collect()
}

#[tokio::test]
async fn cut_short_at_every_write_it_goes_on_and_everything_is_read_back() {
    let old = Story::new();
    cut_short_at_every_write(&old, left(&old, 3).await).await;
}

#[tokio::test]
async fn ledgers_that_share_an_object_are_attached_again_from_its_directory() {
    let old = Story::new();
    cut_short_at_every_write(&old, left_together(&old).await).await;
}

async fn cut_short_at_every_write(old: &Story, blobs: SimBlobs) {
    let before = contents(&blobs).await;
    let mut cuts = 0;
    for is_done in [false, true] {
        for writes in 0.. {
            let new = fresh(old);
            let cut = Cut { inner: new.rig.meta.clone(), left: AtomicUsize::new(writes), is_done };
            let first = carried_out(Arc::new(cut), &blobs, &Options::default()).await;
            let adopted = new.rig.meta.get(&new.rig.deps.keys.object_store()).await.unwrap();
            let topics =
                list_all(&*new.rig.meta, &new.rig.deps.keys.all_topics_prefix()).await.unwrap().len();
            assert!(adopted.is_none() || topics == 1, "adopted before all was attached");
            let plan = carried_out(new.rig.meta.clone(), &blobs, &Options::default()).await.unwrap();
            assert_eq!((kinds(&plan), plan.topics.len(), plan.topics[0].attached), (vec![], 1, true));
            let stored = new.rig.meta.get(&new.rig.deps.keys.object_store()).await.unwrap().unwrap();
            let recorded = Recorded::decode(&stored.value).unwrap();
            assert!(recorded.confirmed && recorded.id == STORE);
            let mut owner = new.rig.open().await;
            let all = owner.read_all(owner.ml.first_position()).await;
            assert_story(&all, 0, 30);
            let ledger = owner.append(30..31).await[0].ledger;
            assert!(ledger > all[29].position.ledger, "{ledger} after {}", all[29].position);
            let next = owner.read_all(owner.ml.first_position()).await;
            assert_story(&next, 0, 31);
            cuts += 1;
            if first.is_ok() {
                break;
            }
        }
    }
    assert!(cuts >= 12, "{cuts} cuts");
    assert_eq!(contents(&blobs).await, before, "the bucket was changed");
}

#[tokio::test]
async fn what_is_missing_spare_or_nameless_is_told_by_what_is_at_stake() {
    let old = Story::new();
    let blobs = left(&old, 3).await;
    let whole = contents(&blobs).await;
    let objects: Vec<_> = whole.iter().filter(|(key, _)| !key.ends_with("geminga.id")).collect();
    let meta = fresh(&old).rig.meta;
    let look = async |whole: bool| {
        let plan = planned(&*meta, &blobs, &Options { whole, ..Options::default() }).await;
        (kinds(&plan), plan.findings.iter().any(Finding::is_grave), plan.to_string())
    };
    // A name that is not the object's own.
    let stray = objects[0].0.replace("/1-", "/1-0");
    blobs.put(&stray, vec![objects[0].1.clone()], u64::MAX).await.unwrap();
    blobs.begin(&objects[0].0, u64::MAX).await.unwrap();
    let (told, grave, _) = look(false).await;
    assert_eq!(
        (told, grave),
        (vec!["GM-4015 unfinished upload".to_owned(), "GM-4014 spare".to_owned()], false)
    );
    blobs.remove(&stray).await.unwrap();
    geminga_offload::blob::end_uploads(&blobs, &objects[0].0).await.unwrap();
    // A block that has changed is seen by reading alone; an object that is gone leaves a hole.
    blobs.tamper(&objects[1].0, |bytes| bytes[60] ^= 1);
    assert_eq!(look(false).await.0, Vec::<String>::new());
    let (told, grave, _) = look(true).await;
    assert_eq!((told, grave), (vec!["GM-4012 damaged".to_owned(), "GM-4017 hole".to_owned()], true));
    blobs.remove(&objects[1].0).await.unwrap();
    let (told, _, text) = look(false).await;
    assert_eq!(told, ["GM-4017 hole"]);
    // Two messages in each entry.
    assert!(text.contains(": 20 messages between ledgers 1 and 3 "), "{text}");
    assert!(text.contains("+ persistent://public/default/story: 2 ledgers, 20 entries, "), "{text}");
}

#[tokio::test]
async fn one_damaged_ledger_of_several_leaves_the_others_and_a_damaged_directory_none() {
    let old = Story::new();
    let blobs = left_together(&old).await;
    let (key, bytes) = contents(&blobs).await.into_iter().find(|(key, _)| key.contains("/1-")).unwrap();
    let meta = fresh(&old).rig.meta;
    let look = async || {
        let plan = planned(&*meta, &blobs, &Options { whole: true, ..Options::default() }).await;
        (kinds(&plan), plan.to_string())
    };
    let (told, text) = look().await;
    assert!(told.is_empty() && text.contains(": 3 ledgers, 30 entries, "), "{text}");
    // A byte of a block in the middle.
    let second = bytes.windows(8).enumerate().filter(|(_, at)| at == b"GMOBJECT").nth(1).unwrap().0;
    blobs.tamper(&key, |bytes| bytes[second + 60] ^= 1);
    let (told, text) = look().await;
    assert_eq!(told, ["GM-4012 damaged", "GM-4017 hole"]);
    assert!(text.contains(": 2 ledgers, 20 entries, "), "{text}");
    let at = bytes.len() - 60;
    blobs.tamper(&key, |bytes| bytes[at] ^= 1);
    assert_eq!(look().await.0, ["GM-4012 damaged"]);
}

#[tokio::test]
async fn a_topic_without_a_name_is_attached_under_the_one_that_is_given() {
    let mut old = Story::new();
    old.hides_names();
    let blobs = left(&old, 2).await;
    let new = fresh(&old);
    let plan = planned(&*new.rig.meta, &blobs, &Options::default()).await;
    assert_eq!((kinds(&plan), plan.topics.len()), (vec!["GM-4018 nameless".to_owned()], 0));
    let Finding::Nameless { topic, ledgers: 2, .. } = plan.findings[0] else { panic!("{plan}") };
    let name = TopicName::parse("persistent://public/default/story").unwrap();
    let options = Options { names: [(topic, name)].into(), whole: true };
    let plan = carried_out(new.rig.meta.clone(), &blobs, &options).await.unwrap();
    assert_eq!((kinds(&plan), plan.topics.len()), (vec![], 1));
    let mut owner = new.rig.open().await;
    assert_story(&owner.read_all(owner.ml.first_position()).await, 0, 20);
}

#[tokio::test]
async fn a_topic_that_is_there_is_left_alone_and_a_bucket_is_taken_over_by_its_name_only() {
    let old = Story::new();
    let blobs = left(&old, 2).await;
    let new = fresh(&old);
    // Somebody was here first: the same name, the same first id, other messages.
    let mut owner = new.rig.open().await;
    owner.append(100..105).await;
    drop(owner);
    let key = list_all(&*new.rig.meta, &new.rig.deps.keys.all_topics_prefix()).await.unwrap().remove(0);
    let plan = carried_out(new.rig.meta.clone(), &blobs, &Options::default()).await.unwrap();
    assert_eq!((kinds(&plan), plan.topics.len()), (vec!["GM-4018 not attached".to_owned()], 0));
    assert_eq!(new.rig.meta.get(&key.key).await.unwrap(), Some(key), "it was not touched");
    for adopt in [None, Some(StoreId(78))] {
        let meta = fresh(&old).rig.meta;
        let mut plan = planned(&*meta, &blobs, &Options::default()).await;
        assert_eq!(plan.to_adopt, Some(STORE));
        let target =
            Target { meta: meta.clone(), cluster: "test".into(), place: PLACE.into(), adopt, alone: true };
        let refused = apply(&target, &mut plan, &TaskGroup::new()).await.unwrap_err();
        assert_eq!(refused.code().to_string(), "GM-6010");
        assert!(refused.to_string().contains(&format!("--adopt {STORE}")), "{refused}");
        assert!(list_all(&*meta, "/").await.unwrap().is_empty(), "something was written");
    }
    // Metadata that name another store, brokers that run, a bucket of nobody.
    let meta = fresh(&old).rig.meta;
    let keys = Keys::new("test");
    let other = Recorded { id: StoreId(1), confirmed: true, place: "s3://there".into(), made_ms: 0 };
    let live = Op::put(keys.live_broker("a:1"), "x");
    meta.txn(Txn { compares: vec![], ops: vec![live] }).await.unwrap();
    let running = carried_out(meta.clone(), &blobs, &Options::default()).await.unwrap_err();
    assert_eq!((running.code().to_string(), running.to_string().contains("a:1")), ("GM-6013".into(), true));
    meta.txn(Txn { compares: vec![], ops: vec![Op::put(keys.object_store(), other.encode())] })
        .await
        .unwrap();
    let foreign = carried_out(meta, &blobs, &Options::default()).await.unwrap_err();
    assert_eq!(foreign.code().to_string(), "GM-6010");
    let nobodys =
        carried_out(fresh(&old).rig.meta, &SimBlobs::default(), &Options::default()).await.unwrap_err();
    assert_eq!(nobodys.code().to_string(), "GM-6011");
}
