//! The machine by its table; claims that crash, lose answers and race at every step; other buckets.

use super::guard::{Guarded, Place, Standing};
use super::*;
use crate::blob::sim::{FAULTS, Fault, Faults, SimBlobs};
use crate::tests::world::DoubtfulMeta;
use futures::FutureExt as _;
use geminga_common::clock::ManualClock;
use geminga_common::metadata::MetadataStore as _;
use geminga_common::metadata::keys::Keys;
use geminga_common::metadata::memory::MemoryStore;
use geminga_common::rng::Rng;
use std::sync::Arc;

const CLUSTER: &str = "c";

/// One cluster's metadata, two buckets, and a process after another.
struct World {
    faults: Faults,
    meta: Arc<DoubtfulMeta>,
    buckets: [SimBlobs; 2],
    seed: u64,
}

impl World {
    fn new() -> Self {
        Self::with_numbers_from(1)
    }

    fn with_numbers_from(seed: u64) -> Self {
        let faults = Faults::default();
        let buckets = [SimBlobs::new(faults.clone()), SimBlobs::new(faults.clone())];
        let inner = Arc::new(MemoryStore::new(Arc::new(ManualClock::at_wall_ms(0))));
        Self { meta: Arc::new(DoubtfulMeta::new(inner, faults.clone())), faults, buckets, seed }
    }

    /// A new process with this bucket configured.
    fn process(&mut self, bucket: usize) -> Guarded {
        self.seed += 1;
        let place = Place { cluster: CLUSTER.to_owned(), here: format!("s3://b{bucket}") };
        let blobs = Arc::new(self.buckets[bucket].clone());
        let clock = Arc::new(ManualClock::at_wall_ms(1_000));
        Guarded::new(blobs, self.meta.clone(), clock, Rng::seeded(self.seed), place)
    }

    async fn recorded(&self) -> Option<Recorded> {
        let record = self.meta.get(&Keys::new(CLUSTER).object_store()).await.unwrap();
        record.map(|record| Recorded::decode(&record.value).unwrap())
    }

    async fn tag(&self, bucket: usize) -> Option<StoreId> {
        match look(&self.buckets[bucket].observer(), CLUSTER).await.unwrap() {
            InBucket::Is(tag) => Some(tag.id),
            InBucket::Nothing => None,
            InBucket::Unreadable(why) => panic!("{why}"),
        }
    }

    async fn lands(&self) {
        self.buckets.iter().for_each(SimBlobs::land);
        self.meta.land().await;
        self.buckets.iter().for_each(|bucket| bucket.wake(0));
        self.meta.wake().await;
    }

    /// What is confirmed lies in this bucket, and other buckets have nothing but an identity.
    async fn holds(&self, bucket: usize) {
        let recorded = self.recorded().await.expect("something is recorded");
        assert!(recorded.confirmed);
        assert_eq!(self.tag(bucket).await, Some(recorded.id));
        let other = 1 - bucket;
        assert_ne!(self.tag(other).await, Some(recorded.id), "two stores with one identity");
        assert!(self.buckets[other].observer().keys().iter().all(|key| key.ends_with("geminga.id")));
    }
}

fn tag(id: u128) -> InBucket {
    InBucket::Is(Tag { id: StoreId(id), cluster: "x".into(), made_ms: 0 })
}

fn refused(step: &Result<Standing, BlobError>) -> Option<&Refusal> {
    match step {
        Err(BlobError::Wrong(refusal)) => Some(refusal),
        _ => None,
    }
}

#[test]
fn the_table_holds() {
    let recorded = |confirmed, place: &str| {
        Some(Recorded { id: StoreId(1), confirmed, place: place.into(), made_ms: 0 })
    };
    let (none, here, there) = (None, recorded(false, "here"), recorded(false, "there"));
    let (confirmed, moved) = (recorded(true, "here"), recorded(true, "there"));
    let unreadable = InBucket::Unreadable(TagError::Damaged);
    for (recorded, bucket, wanted) in [
        (&none, InBucket::Nothing, "intend"),
        (&none, tag(1), "GM-6010"),
        (&here, InBucket::Nothing, "write 1"),
        (&here, tag(1), "confirm"),
        (&here, tag(2), "GM-6010"),
        (&there, InBucket::Nothing, "intend"),
        (&there, tag(1), "confirm"),
        (&there, tag(2), "GM-6010"),
        (&confirmed, InBucket::Nothing, "GM-6011"),
        (&confirmed, tag(1), "good"),
        (&confirmed, tag(2), "GM-6010"),
        (&moved, InBucket::Nothing, "GM-6011"),
        (&moved, tag(1), "good"),
        (&moved, tag(2), "GM-6010"),
        (&none, unreadable.clone(), "GM-4005"),
        (&confirmed, unreadable, "GM-4005"),
        (&confirmed, InBucket::Unreadable(TagError::Version(2)), "GM-6002"),
    ] {
        let step = decide(CLUSTER, "here", recorded.as_ref(), &bucket);
        let told = match &step {
            Step::Good => "good".to_owned(),
            Step::Intend => "intend".to_owned(),
            Step::Write(id) => format!("write {}", id.0),
            Step::Confirm => "confirm".to_owned(),
            Step::Refuse(refusal) => refusal.code().to_string(),
        };
        assert_eq!(told, wanted, "{recorded:?} {bucket:?}");
        if let (Step::Refuse(refusal), Some(recorded)) = (&step, recorded)
            && recorded.confirmed
            && !matches!(refusal, Refusal::Unreadable { .. })
        {
            let text = refusal.to_string();
            assert!(text.contains("here") && text.contains(&recorded.place), "both are named: {text}");
        }
    }
}

#[test]
fn an_identity_is_these_bytes() {
    let made =
        Tag { id: StoreId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10), cluster: "eu".into(), made_ms: 9 };
    let bytes = made.encode();
    let mut golden = b"GMSTORE1\x01\x00\x02\x00".to_vec();
    golden.extend((1..=16).rev());
    golden.extend([9, 0, 0, 0, 0, 0, 0, 0]);
    golden.extend(b"eu");
    golden.resize(188, 0);
    golden.extend(0x1a26_13de_u32.to_le_bytes());
    assert_eq!(bytes[..], golden[..]);
    assert_eq!(Tag::decode(&bytes), Ok(made));
    for at in 0..bytes.len() {
        let mut changed = bytes.to_vec();
        changed[at] ^= 0x10;
        assert!(Tag::decode(&changed).is_err(), "byte {at}");
        assert!(Tag::decode(&bytes[..at]).is_err(), "cut at {at}");
    }
    let long = Tag { id: StoreId(1), cluster: "ä".repeat(100), made_ms: 0 };
    assert_eq!(Tag::decode(&long.encode()).unwrap().cluster, "ä".repeat(64));
    let recorded = Recorded { id: StoreId(1 << 64 | 2), confirmed: true, place: "s3://b".into(), made_ms: 3 };
    let bytes = recorded.encode();
    assert_eq!(
        &bytes[..],
        b"\x08\x01\x11\x01\0\0\0\0\0\0\0\x19\x02\0\0\0\0\0\0\0\x20\x01\x2a\x06s3://b\x30\x03"
    );
    assert_eq!(Recorded::decode(&bytes), Ok(recorded));
    assert_eq!(Recorded::decode(&[8, 2]), Err(TagError::Version(2)));
    assert_eq!(Recorded::decode(&[]), Err(TagError::Damaged));
}

#[tokio::test]
async fn a_look_writes_nothing_and_the_first_use_claims() {
    let mut world = World::new();
    let process = world.process(0);
    assert_eq!(process.check().await, Ok(Standing::Unclaimed));
    assert_eq!((world.recorded().await, world.tag(0).await), (None, None));
    process.put("c/x", vec![], u64::MAX).await.unwrap();
    world.holds(0).await;
    assert_eq!(world.buckets[0].keys(), ["c/geminga.id", "c/x"]);
    let steps = world.faults.steps();
    process.size("c/x").await.unwrap();
    assert_eq!(world.faults.steps(), steps + 1, "what is confirmed is not asked for again");
    assert_eq!(world.process(0).check().await, Ok(Standing::Confirmed));
}

#[tokio::test]
async fn another_bucket_is_neither_read_nor_written() {
    let mut world = World::new();
    world.process(0).put("c/x", vec![], u64::MAX).await.unwrap();
    let wrong = world.process(1);
    let outcome = wrong.check().await;
    assert_eq!(refused(&outcome).map(Coded::code), Some(Code::OBJECT_STORE_EMPTY));
    let text = outcome.unwrap_err().to_string();
    assert!(text.starts_with("GM-6011: ") && text.contains("s3://b0") && text.contains("s3://b1"), "{text}");
    for outcome in [
        wrong.ready().await,
        wrong.put("c/y", vec![], u64::MAX).await,
        wrong.begin("c/y", u64::MAX).await.map(drop),
        wrong.create("c/y", Default::default()).await.map(drop),
        wrong.size("c/x").await.map(drop),
        wrong.small("c/x").await.map(drop),
        wrong.range("c/x", 0..0).await.map(drop),
        wrong.uploads("c").await.map(drop),
        wrong.list("c", None, 1).await.map(drop),
        wrong.remove("c/x").await,
    ] {
        assert!(matches!(outcome, Err(BlobError::Wrong(_))), "{outcome:?}");
    }
    assert_eq!(world.buckets[1].keys().len(), 0);
    // Another cluster's: its identity is there.
    let mut theirs = World::with_numbers_from(100);
    theirs.process(0).ready().await.unwrap();
    world.buckets[1] = theirs.buckets[0].clone();
    let outcome = world.process(1).check().await;
    assert_eq!(refused(&outcome).map(Coded::code), Some(Code::OBJECT_STORE_FOREIGN));
    // One without any metadata does not take it either.
    let mut fresh = World::new();
    fresh.buckets[0] = theirs.buckets[0].clone();
    let outcome = fresh.process(0).check().await;
    assert!(matches!(refused(&outcome), Some(Refusal::Taken { .. })));
    assert!(fresh.process(0).ready().await.is_err() && fresh.recorded().await.is_none());
}

#[tokio::test]
async fn a_bucket_that_is_put_right_is_used_without_a_new_start_and_moved_content_is_the_same_store() {
    let mut world = World::new();
    world.process(0).put("c/x", vec!["x".into()], u64::MAX).await.unwrap();
    let process = world.process(1);
    assert!(process.size("c/x").await.is_err());
    for key in world.buckets[0].keys() {
        let bytes = world.buckets[0].small(&key).await.unwrap();
        world.buckets[1].put(&key, vec![bytes], u64::MAX).await.unwrap();
    }
    assert_eq!(process.size("c/x").await, Ok(1));
    assert_eq!(world.recorded().await.unwrap().place, "s3://b1", "it is called by its new name");
}

#[tokio::test]
async fn a_claim_survives_every_fault_at_every_step() {
    let mut met = 0;
    for fault in FAULTS {
        for at in 0.. {
            let mut world = World::new();
            let dead = world.faults.plan(Some((at, fault)));
            let first = world.process(0);
            let outcome = tokio::select! {
                biased;
                outcome = first.put("c/x", vec![], u64::MAX) => Some(outcome),
                () = dead.cancelled() => None,
            };
            let reached = world.faults.steps() > at;
            world.faults.plan(None);
            if outcome == Some(Ok(())) {
                world.holds(0).await;
            }
            // What was late or slept arrives before or behind the next process.
            if at % 2 == 0 {
                world.lands().await;
            }
            world
                .process(0)
                .put("c/x", vec![], u64::MAX)
                .await
                .unwrap_or_else(|e| panic!("{fault:?} at {at}: {e}"));
            world.lands().await;
            world.holds(0).await;
            world.process(0).ready().await.unwrap();
            if !reached {
                break;
            }
            met += 1;
        }
    }
    assert!(met >= 6 * 8, "{met} faults met");
}

#[tokio::test]
async fn a_claim_that_was_interrupted_binds_nobody_to_its_bucket() {
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::Asleep] {
        for at in 0..16 {
            let mut world = World::new();
            let dead = world.faults.plan(Some((at, fault)));
            let first = world.process(0);
            let done = tokio::select! {
                biased;
                outcome = first.ready() => outcome.is_ok(),
                () = dead.cancelled() => false,
            };
            world.faults.plan(None);
            let confirmed = world.recorded().await.is_some_and(|recorded| recorded.confirmed);
            let second = world.process(1).put("c/x", vec![], u64::MAX).await;
            assert!(!done || confirmed);
            assert_eq!(second.is_ok(), !confirmed, "{fault:?} at {at}: {second:?}");
            world.lands().await;
            world.holds(usize::from(!confirmed)).await;
            let back = world.process(0).check().await;
            assert_eq!(back.is_ok(), confirmed, "{fault:?} at {at}: {back:?}");
        }
    }
}

#[tokio::test]
async fn of_two_that_claim_at_once_one_store_is_confirmed() {
    // The first sleeps behind each of its steps in turn while the second goes through.
    for other in [0, 1] {
        for pause in 0..12 {
            let mut world = World::new();
            let (first, second) = (world.process(0), world.process(other));
            let going = first.put("c/x", vec![], u64::MAX).shared();
            for _ in 0..pause {
                let _either_way = futures::poll!(going.clone());
            }
            let ended = second.put("c/y", vec![], u64::MAX).await;
            let began = going.await;
            assert!(began.is_ok() || ended.is_ok(), "{other} {pause}: {began:?} {ended:?}");
            assert_eq!(began.is_ok() && ended.is_ok(), other == 0, "{other} {pause}: {began:?} {ended:?}");
            world.holds(if ended.is_ok() { other } else { 0 }).await;
        }
    }
}

#[tokio::test]
async fn all_who_wait_share_one_asking_and_its_reason() {
    let mut world = World::new();
    let _plan = world.faults.plan(Some((0, Fault::FailBefore)));
    let process = world.process(0);
    let outcomes = futures::future::join_all((0..50).map(|_| process.size("c/x"))).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(BlobError::Failed { .. }))), "{outcomes:?}");
    assert_eq!(world.faults.steps(), 1, "one asking");
    assert!(matches!(process.size("c/x").await, Err(BlobError::Absent(_))), "the next use asks again");
}
