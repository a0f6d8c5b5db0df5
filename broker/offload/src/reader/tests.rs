//! Reading back over the simulated store: what comes, and by how many requests.

use super::*;
use crate::blob::sim::{Fault, Faults, SimBlobs};
use crate::format::attributes::Attributes;
use crate::format::block::Compression;
use crate::key::AttemptId;
use crate::writer::{Closed, ObjectWriter, Sourced};
use geminga_common::clock::SystemClock;
use geminga_common::ids::{MessageIndex, OwnerEpoch};

pub(super) struct Rig {
    pub(super) blobs: SimBlobs,
    faults: Faults,
    reader: Reader,
    pub(super) target: Target,
}

pub(super) fn entry(id: u64, bytes: usize) -> Entry {
    Entry { id: EntryId(id), crc: id as u32, header: [1; 32], payload: vec![id as u8; bytes].into() }
}

fn reader(blobs: &SimBlobs, room: Room, tasks: &TaskGroup, lane: Lane) -> Reader {
    let meters = Meters::new(SystemClock::shared());
    Reader::new(Arc::new(blobs.clone()), "c", room, tasks.clone(), lane, meters, None)
}

pub(super) async fn rig(entries: u64, bytes: usize, block_bytes: usize, cache: usize) -> Rig {
    let faults = Faults::default();
    let blobs = SimBlobs::new(faults.clone());
    let target = stored(&blobs, entries, block_bytes, |id| entry(id, bytes)).await;
    let room = Room { cache_bytes: cache, in_flight_bytes: 64 << 20 };
    let reader = reader(&blobs, room, &TaskGroup::new(), Lane::here());
    Rig { blobs, faults, reader, target }
}

/// An object of these entries.
pub(super) async fn stored(
    blobs: &SimBlobs,
    entries: u64,
    block_bytes: usize,
    entry: impl Fn(u64) -> Entry,
) -> Target {
    let attributes = Attributes {
        cluster: "c".into(),
        topic: None,
        topic_id: TopicId(1),
        ledger: LedgerId(2),
        first_index: MessageIndex(0),
        closed_ms: 0,
        owner_epoch: OwnerEpoch(1),
        attempt: 3,
        record: Bytes::new(),
    };
    let length = (0..entries).map(|id| entry(id).size() as u64).sum();
    let closed = Closed { entries, length };
    let mut writer = ObjectWriter::new(attributes, closed, block_bytes, Compression::None);
    let mut parts = vec![writer.begin()];
    for id in 0..entries {
        let sourced = Sourced { entry: entry(id), publish_ms: id, first_index: MessageIndex(id) };
        parts.extend(writer.push(&sourced).unwrap());
    }
    let (last, shape) = writer.finish().unwrap();
    parts.push(last);
    let object = ObjectRef { attempt: AttemptId(3), begun_ms: 0, shape, part: None };
    let target = Target { topic: TopicId(1), ledger: LedgerId(2), object };
    blobs.put(&object.key("c", target.topic, target.ledger), parts, u64::MAX).await.unwrap();
    target
}

impl Rig {
    async fn read(&self, first: u64, bytes: usize) -> Vec<Entry> {
        self.tried(first, u64::MAX >> 1, bytes).await.unwrap()
    }

    async fn tried(&self, first: u64, last: u64, bytes: usize) -> Result<Vec<Entry>, ObjectError> {
        self.reader.read(self.target, EntryId(first)..=EntryId(last), bytes, None, |read| read).await
    }
}

#[tokio::test]
async fn a_whole_ledger_comes_back_in_few_requests() {
    // 64 MiB in blocks of 64 KiB, read in windows that double as a topic's reader does.
    let rig = rig(4096, 16 << 10, 64 << 10, 256 << 20).await;
    let (mut next, mut window) = (0, 64 << 10);
    while next < 4096 {
        for read in rig.read(next, window).await {
            assert_eq!(read, entry(next, 16 << 10));
            next += 1;
        }
        window = (window * 2).min(8 << 20);
    }
    let reads = rig.blobs.reads();
    assert!(
        reads.len() <= 20,
        "{} requests for 64 MiB: {:?}",
        reads.len(),
        reads.iter().map(|r| r.1.end - r.1.start).collect::<Vec<_>>()
    );
    let size = rig.target.object.shape.size;
    let bytes: u64 = reads.iter().map(|(_, range)| range.end - range.start).sum();
    // What comes with the index ends somewhere in a block.
    assert!(bytes <= size + (64 << 10) + 100, "nothing is fetched twice: {bytes} of {size}");
}

#[tokio::test]
async fn readers_at_one_place_share_one_request() {
    let rig = rig(100, 1000, 10_000, 16 << 20).await;
    let reads = (0..50).map(|_| rig.read(42, 1));
    for read in futures::future::join_all(reads).await {
        assert_eq!(read, [entry(42, 1000)]);
    }
    assert_eq!(rig.blobs.reads().len(), 2, "the index and one block");
}

#[tokio::test]
async fn a_single_entry_costs_its_block() {
    let rig = rig(3000, 1000, 10_000, 16 << 20).await;
    rig.read(0, 1).await;
    assert_eq!(rig.blobs.reads().len(), 2, "the index and the first blocks");
    rig.read(2500, 1).await;
    let reads = rig.blobs.reads();
    assert_eq!(reads.len(), 1);
    assert!(reads[0].1.end - reads[0].1.start < 12_000, "{reads:?}");
}

#[tokio::test]
async fn the_cache_keeps_its_budget() {
    let rig = rig(2000, 10_000, 100_000, 1 << 20).await;
    let mut next = 0;
    while next < 2000 {
        next += rig.read(next, 200_000).await.len() as u64;
        let cached = rig.reader.figures().cached_bytes;
        assert!(cached <= (1 << 20) + 110_000, "{cached} bytes in memory");
    }
}

#[tokio::test]
async fn a_failure_is_an_error_of_its_read_alone() {
    for fault in [Fault::FailBefore, Fault::FailAfter] {
        for step in 0..2 {
            let rig = rig(10, 100, 200, 16 << 20).await;
            rig.faults.plan(Some((step, fault)));
            let failed = rig.tried(1, 9, 1).await;
            assert!(matches!(failed, Err(ObjectError::Blob(_))), "{failed:?}");
            // What failed is not remembered.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            let again = rig.tried(1, 9, 1).await;
            assert_eq!(again.unwrap(), [entry(1, 100)]);
        }
        // What is fetched beside the index is fetched again if that fails.
        let rig = rig(10, 100, 200, 16 << 20).await;
        rig.faults.plan(Some((1, fault)));
        assert_eq!(rig.read(0, 1).await, [entry(0, 100)]);
    }
}

#[tokio::test]
async fn where_a_topic_goes_on_is_fetched_before_its_reader_arrives() {
    // The object stands for its own successor under another attempt.
    let rig = rig(1024, 16 << 10, 64 << 10, 256 << 20).await;
    let object = ObjectRef { attempt: AttemptId(4), ..rig.target.object };
    let next = Target { object, ..rig.target };
    let keys = [rig.target, next].map(|target| target.object.key("c", target.topic, target.ledger));
    let whole = rig.blobs.range(&keys[0], 0..rig.target.object.shape.size).await.unwrap();
    rig.blobs.put(&keys[1], vec![whole], u64::MAX).await.unwrap();
    let mut at = 0;
    while at < 1024 {
        let ids = EntryId(at)..=EntryId(1023);
        let read = rig.reader.read(rig.target, ids, 1 << 20, Some(next), |read| read).await;
        at += read.unwrap().len() as u64;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let before = rig.blobs.reads();
    assert!(before.iter().any(|(key, _)| *key == keys[1]), "{before:?}");
    let ids = EntryId(0)..=EntryId(1023);
    let read = rig.reader.read(next, ids, 1 << 20, None, |read| read).await.unwrap();
    assert!(read.len() > 60, "a whole window is there at once: {}", read.len());
    let asked: u64 =
        before.iter().filter(|(key, _)| *key == keys[1]).map(|(_, range)| range.end - range.start).sum();
    assert!(asked <= object.shape.size + (64 << 10) + 100, "nothing is fetched twice: {asked}");
}

#[tokio::test]
async fn a_reader_that_is_given_less_than_it_asked_for_still_reads_on() {
    // It always asks for 8 MiB, as a topic does, and gets what is there: it ends before what it wanted.
    let rig = rig(4096, 16 << 10, 512 << 10, 128 << 20).await;
    rig.blobs.go_far();
    let mut next = 0;
    while next < 4096 {
        next += rig.read(next, 8 << 20).await.len() as u64;
    }
    let reads = rig.blobs.reads();
    let bytes: Vec<_> = reads.iter().map(|read| (read.1.end - read.1.start) >> 10).collect();
    assert!(reads.len() <= 12, "{} requests for 64 MiB: {bytes:?} KiB", reads.len());
}

#[tokio::test]
async fn a_reader_that_is_new_somewhere_does_not_wait_for_a_whole_window() {
    let rig = rig(4096, 16 << 10, 64 << 10, 256 << 20).await;
    rig.read(0, 1).await;
    drop(rig.blobs.reads());
    let read = rig.read(2000, 8 << 20).await;
    assert!(read.len() <= 70, "{} entries at once", read.len());
    let reads = rig.blobs.reads();
    assert_eq!(reads.len(), 1, "{reads:?}");
}

#[tokio::test]
async fn damage_is_an_error_and_never_an_entry() {
    let rig = rig(10, 100, 200, 16 << 20).await;
    let key = rig.blobs.keys().pop().unwrap();
    rig.blobs.tamper(&key, |bytes| bytes[80] ^= 1);
    let read = rig.tried(0, 9, 1).await;
    assert!(matches!(read, Err(ObjectError::Format { .. })), "{read:?}");
    let other = rig.tried(9, 9, 1).await;
    assert_eq!(other.unwrap(), [entry(9, 100)]);
}

#[tokio::test]
async fn all_readers_together_ask_for_no_more_than_the_bound_and_say_that_they_wait() {
    let rig = rig(4096, 16 << 10, 64 << 10, 256 << 20).await;
    rig.blobs.go_far();
    let bound = 16 << 20;
    let room = Room { cache_bytes: 256 << 20, in_flight_bytes: bound };
    let reader = reader(&rig.blobs, room, &TaskGroup::new(), Lane::here());
    let told = std::sync::atomic::AtomicU64::new(0);
    // Each begins at another MiB and reads on.
    let reads = (0..48).map(|nth| {
        let (reader, target, told) = (&reader, rig.target, &told);
        async move {
            let mut at = nth * 64;
            for _ in 0..4 {
                let ids = EntryId(at)..=EntryId(4095);
                at += reader.read(target, ids, 1 << 20, None, |read| read.len() as u64).await.unwrap();
                assert!(reader.figures().in_flight_bytes <= bound);
                told.fetch_max(reader.waits_for(target.topic).unwrap_or(0), Ordering::Relaxed);
            }
            at - nth * 64
        }
    });
    let read = futures::future::join_all(reads).await;
    assert!(read.iter().all(|entries| *entries >= 4), "every reader got on with each read: {read:?}");
    assert!(rig.blobs.most_under_way() <= bound, "{} bytes under way", rig.blobs.most_under_way());
    assert_eq!(told.into_inner(), bound, "a topic's wait is told with its bound");
    let left = reader.figures();
    assert!(left.waited > 0 && left.waiting == 0, "{left:?}");
    assert_eq!(reader.waits_for(rig.target.topic), None);
}

#[tokio::test]
async fn what_failed_leaves_nothing_under_way() {
    let rig = rig(100, 1000, 10_000, 16 << 20).await;
    rig.faults.plan(Some((0, Fault::FailBefore)));
    assert!(rig.tried(5, 9, 1).await.is_err());
    rig.faults.plan(Some((1, Fault::FailBefore)));
    assert!(rig.tried(5, 9, 1).await.is_err());
    assert_eq!(rig.reader.figures().in_flight_bytes, 0);
}

#[tokio::test]
async fn a_reader_of_the_past_works_on_no_thread_but_the_lanes() {
    let rig = rig(1024, 16 << 10, 64 << 10, 64 << 20).await;
    let tasks = TaskGroup::new();
    let lane = Lane::new(&tasks, "lane", 1).unwrap();
    let room = Room { cache_bytes: 64 << 20, in_flight_bytes: 64 << 20 };
    let reader = reader(&rig.blobs, room, &tasks, lane.clone());
    let theirs = lane.run(async { std::thread::current().id() }).await.unwrap();
    let mut at = 0;
    while at < 1024 {
        let ids = EntryId(at)..=EntryId(1023);
        let open = |read: Vec<Entry>| (std::thread::current().id(), read.len() as u64);
        let (opened_on, read) = reader.read(rig.target, ids, 1 << 20, None, open).await.unwrap();
        assert_eq!(opened_on, theirs);
        at += read;
    }
    reader.footer(rig.target).await.unwrap();
    assert_eq!(rig.blobs.threads(), [theirs].into(), "every request was sent from there");
    tasks.stop();
    assert_eq!(tasks.join(std::time::Duration::from_secs(20)).await, Vec::<String>::new());
    let late = reader.read(rig.target, EntryId(0)..=EntryId(1), 1, None, |read| read).await;
    assert!(matches!(late, Err(ObjectError::Stopped(_))), "{late:?}");
}
