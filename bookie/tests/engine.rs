//! The running store on a real disk, through the in-process transport.

#![allow(clippy::unwrap_used)] // a test

use bytes::Bytes;
use geminga_bookie::{Bookie, Config, InProcess};
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::rpc::{Add, AddError, BookieRef, BookieRpc, IdRange, Read, ReadAnswer, ReadClass};
use geminga_common::clock::SystemClock;
use geminga_common::disk::RealDisk;
use geminga_common::disk::sim::SimDisk;
use geminga_common::ids::{BookieId, EntryId, LedgerId, MessageIndex, Term};
use geminga_common::tasks::TaskGroup;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

fn config(dir: &Path) -> Config {
    Config::new(BookieId::new("b1").unwrap(), dir.join("bookie"), "test")
}

struct Node {
    rpc: InProcess,
    bookie: Bookie,
    to: BookieRef,
    tasks: TaskGroup,
}

impl Node {
    fn start(config: Config) -> Self {
        let tasks = TaskGroup::new();
        let bookie = Bookie::open(config, RealDisk::shared(), SystemClock::shared(), &tasks).unwrap();
        let rpc = InProcess::new([bookie.clone()]);
        let to = rpc.refs().remove(0);
        Self { rpc, bookie, to, tasks }
    }

    async fn stop(self) {
        self.tasks.stop();
        assert_eq!(self.tasks.join(Duration::from_secs(10)).await, Vec::<String>::new());
    }

    fn send(&self, ledger: u64, term: u64, entries: Vec<Entry>) -> oneshot::Receiver<Result<(), AddError>> {
        let (tell, told) = oneshot::channel();
        let lac = entries.first().and_then(|e| e.id.previous());
        let add =
            Add { ledger: LedgerId(ledger), term: Term(term), lac, lafr: lac, attributes: None, entries };
        self.rpc.add(&self.to, add, Box::new(move |result| tell.send(result).unwrap()));
        told
    }

    async fn read(&self, ledger: u64, first: u64, last: u64) -> ReadAnswer {
        let (first, last) = (EntryId(first), EntryId(last));
        let read = Read { ledger: LedgerId(ledger), first, last, bytes_max: 1 << 20, class: ReadClass::Tail };
        self.rpc.read(&self.to, read).await
    }

    async fn read_all(&self, ledger: u64, count: u64) -> Vec<Entry> {
        let mut out: Vec<Entry> = Vec::new();
        while (out.len() as u64) < count {
            match self.read(ledger, out.len() as u64, count - 1).await {
                ReadAnswer::Found(entries) => out.extend(entries),
                other => panic!("entry {} of ledger {ledger}: {other:?}", out.len()),
            }
        }
        out
    }
}

fn entry(ledger: u64, id: u64, size: usize) -> Entry {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(id),
        timestamp_ms: 7,
        bytes_before: 0,
    };
    let payload: Vec<u8> = (0..size).map(|at| (at as u64 * 31 + id * 7 + ledger) as u8).collect();
    Entry::new(LedgerId(ledger), EntryId(id), header, Bytes::from(payload))
}

#[tokio::test]
async fn what_is_acknowledged_is_read_back_across_flush_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path());
    small.write_cache = 4 << 20;
    let node = Node::start(small.clone());
    let mut told = Vec::new();
    for id in 0..3000 {
        for ledger in 1..=3 {
            told.push(node.send(ledger, 1, vec![entry(ledger, id, 1000 + id as usize % 300)]));
        }
    }
    for answer in told {
        answer.await.unwrap().unwrap();
    }
    node.bookie.flush_soon();
    assert!(matches!(node.read(1, 3000, 3000).await, ReadAnswer::NotFound(_)));
    assert!(matches!(node.read(9, 0, 0).await, ReadAnswer::NotFound(_)));
    node.stop().await;
    for _ in 0..2 {
        let node = Node::start(small.clone());
        for ledger in 1..=3 {
            let entries = node.read_all(ledger, 3000).await;
            assert!(entries.iter().zip(0..).all(|(e, id)| *e == entry(ledger, id, 1000 + id as usize % 300)));
        }
        // A duplicate is fine, other bytes are not, wherever the first copy lies.
        node.send(2, 1, vec![entry(2, 5, 1005)]).await.unwrap().unwrap();
        let other = node.send(2, 1, vec![entry(2, 5, 6)]).await.unwrap();
        assert_eq!(other, Err(AddError::Conflict(EntryId(5))));
        node.stop().await;
    }
}

#[tokio::test]
async fn fences_seals_and_deletions_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(config(dir.path()));
    node.send(1, 1, (0..10).map(|id| entry(1, id, 50)).collect()).await.unwrap().unwrap();
    node.send(2, 1, vec![entry(2, 0, 50)]).await.unwrap().unwrap();
    let tail = node.rpc.fence_tail(&node.to, LedgerId(1), Term(2), EntryId(4)).await.unwrap();
    assert_eq!((tail.present[0].first, tail.present[0].last), (EntryId(4), EntryId(9)));
    assert_eq!(tail.entries.len(), 6);
    assert!(tail.doubtful.is_empty());
    node.rpc.seal(&node.to, LedgerId(1), Some(EntryId(7))).await.unwrap();
    node.rpc.delete(&node.to, LedgerId(2)).await.unwrap();
    node.stop().await;
    let node = Node::start(config(dir.path()));
    assert_eq!(node.send(1, 1, vec![entry(1, 10, 9)]).await.unwrap(), Err(AddError::StaleTerm(Term(2))));
    let sealed = node.send(1, 2, vec![entry(1, 8, 50)]).await.unwrap();
    assert_eq!(sealed, Err(AddError::Sealed(Some(EntryId(7)))));
    assert_eq!(node.send(2, 5, vec![entry(2, 1, 50)]).await.unwrap(), Err(AddError::Tombstoned));
    assert_eq!(node.read_all(1, 8).await.len(), 8);
    assert!(matches!(node.read(1, 8, 9).await, ReadAnswer::NotFound(_)), "strays beyond the seal are gone");
    let stat = node.rpc.stat(&node.to, LedgerId(1)).await.unwrap();
    assert_eq!((stat.term, stat.sealed), (Term(2), Some(Some(EntryId(7)))));
    let wrong = BookieRef { incarnation: geminga_common::ids::Incarnation(1), ..node.to.clone() };
    assert!(node.rpc.stat(&wrong, LedgerId(1)).await.is_err());
    node.stop().await;
}

#[tokio::test]
async fn idling_is_silent_after_one_marker() {
    let disk = SimDisk::new();
    let tasks = TaskGroup::new();
    let config = config(Path::new("/sim"));
    let bookie = Bookie::open(config, Arc::new(disk.clone()), SystemClock::shared(), &tasks).unwrap();
    let (tell, told) = oneshot::channel();
    let entries = vec![entry(1, 0, 100)];
    let (ledger, term) = (LedgerId(1), Term(1));
    let add = Add { ledger, term, lac: None, lafr: None, attributes: None, entries };
    bookie.add(add, Box::new(move |result| tell.send(result).unwrap()));
    told.await.unwrap().unwrap();
    let after_add = disk.calls();
    // The marker comes 10 ms after the answer; far longer, nothing else may.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(disk.calls(), after_add + 1, "one marker and then nothing");
    tasks.stop();
    assert!(tasks.join(Duration::from_secs(10)).await.is_empty());
}

#[tokio::test]
async fn shards_share_the_work_and_remember_their_layout() {
    let dir = tempfile::tempdir().unwrap();
    let mut three = config(dir.path());
    three.shards = 3;
    three.more_data_dirs = vec![dir.path().join("second")];
    three.journal_dirs = vec![dir.path().join("journals")];
    three.journal_file_size_first = 8 << 20;
    let node = Node::start(three.clone());
    let mut told = Vec::new();
    for id in 0..200 {
        for ledger in 1..=7 {
            told.push(node.send(ledger, 1, vec![entry(ledger, id, 300)]));
        }
    }
    for answer in told {
        answer.await.unwrap().unwrap();
    }
    node.bookie.raise_watermark(LedgerId(0)).await.unwrap();
    node.bookie.delete(LedgerId(7)).await.unwrap();
    node.bookie.flush_soon();
    node.stop().await;
    let opened = |config: Config| {
        let tasks = TaskGroup::new();
        Bookie::open(config, RealDisk::shared(), SystemClock::shared(), &tasks).map(drop)
    };
    let fewer = Config { shards: 2, ..three.clone() };
    assert!(matches!(opened(fewer), Err(geminga_bookie::OpenError::Layout { shards: 3, data_dirs: 2, .. })));
    let node = Node::start(three.clone());
    for ledger in 1..=6 {
        assert_eq!(node.read_all(ledger, 200).await.len(), 200);
    }
    assert_eq!(node.send(7, 1, vec![entry(7, 300, 9)]).await.unwrap(), Err(AddError::Tombstoned));
    assert_eq!(
        node.send(0, 1, vec![entry(0, 0, 9)]).await.unwrap(),
        Err(AddError::Tombstoned),
        "below the mark"
    );
    node.stop().await;
    for shard in ["bookie/shard-0", "second/shard-1", "bookie/shard-2", "journals/shard-1"] {
        assert!(dir.path().join(shard).join("IDENTITY").exists(), "{shard}");
    }
}

#[tokio::test]
async fn a_lost_volume_is_noticed_and_a_promotion_gives_a_new_incarnation() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = config(dir.path());
    two.shards = 2;
    two.more_data_dirs = vec![dir.path().join("second")];
    let node = Node::start(two.clone());
    for ledger in 1..=2 {
        node.send(ledger, 1, vec![entry(ledger, 0, 300)]).await.unwrap().unwrap();
    }
    let before = node.bookie.incarnation();
    node.stop().await;
    std::fs::remove_dir_all(dir.path().join("second")).unwrap();
    let node = Node::start(two.clone());
    assert_eq!(*node.bookie.health().borrow(), geminga_bookie::Health::DataLoss);
    assert_eq!(node.bookie.incarnation(), before);
    assert!(matches!(node.read(1, 0, 0).await, ReadAnswer::Unknown(_)), "lost, not absent");
    assert!(matches!(node.read(2, 0, 0).await, ReadAnswer::Found(_)), "the other volume serves");
    assert!(matches!(node.read(2, 1, 1).await, ReadAnswer::Unknown(_)), "but proves no absence");
    assert_eq!(node.send(2, 1, vec![entry(2, 1, 9)]).await.unwrap(), Err(AddError::Failed));
    node.stop().await;
    let promote = || geminga_bookie::promote(two.clone(), RealDisk::shared(), SystemClock::shared());
    let after = promote().unwrap();
    assert_ne!(after, before);
    assert!(matches!(promote(), Err(geminga_bookie::OpenError::NotLost)));
    let node = Node::start(two.clone());
    assert_eq!(
        (node.bookie.incarnation(), *node.bookie.health().borrow()),
        (after, geminga_bookie::Health::Serving)
    );
    assert!(matches!(node.read(2, 0, 0).await, ReadAnswer::Found(_)));
    node.send(1, 1, vec![entry(1, 0, 300)]).await.unwrap().unwrap();
    node.stop().await;
}

/// Waits for what the figures are to show.
async fn shows(bookie: &Bookie, done: impl Fn(&geminga_bookie::Figures) -> bool) {
    let limit = Duration::from_secs(20);
    let shown = async {
        while !done(&bookie.figures()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, shown).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_meets_damage_has_it_judged_and_copies_take_its_place() {
    let disk = SimDisk::new();
    let mut config = config(Path::new("/sim"));
    config.block_bytes = 900;
    config.ballast = 0;
    let open = |tasks: &TaskGroup| {
        Bookie::open(config.clone(), Arc::new(disk.clone()), SystemClock::shared(), tasks).unwrap()
    };
    let (tasks, ledger) = (TaskGroup::new(), LedgerId(1));
    let bookie = open(&tasks);
    let entries: Vec<Entry> = (0..20).map(|id| entry(1, id, 900)).collect();
    bookie.store_copies(ledger, entries).await.unwrap();
    bookie.flush_soon();
    shows(&bookie, |figures| figures.segments == 1).await;
    let (segment, _) =
        disk.files().into_iter().find(|(path, _)| path.extension().is_some_and(|e| e == "seg")).unwrap();
    disk.flip(&segment, 5200, 2);
    let mut damage = bookie.damage();
    assert_eq!(*damage.borrow(), 0);
    let read = async |bookie: &Bookie, id| {
        let (first, last) = (EntryId(id), EntryId(id));
        bookie.read(Read { ledger, first, last, bytes_max: 1, class: ReadClass::Tail }).await
    };
    let all = IdRange { first: EntryId(0), last: EntryId(19) };
    assert!(matches!(read(&bookie, 5).await, ReadAnswer::Unknown(_)));
    // No scrub is due for days.
    tokio::time::timeout(Duration::from_secs(20), damage.wait_for(|damage| *damage == 1))
        .await
        .unwrap()
        .unwrap();
    let held = bookie.presence(ledger, all).await.unwrap();
    assert_eq!(
        held.present.iter().map(|run| (run.first.0, run.last.0)).collect::<Vec<_>>(),
        [(0, 4), (6, 19)]
    );
    // A writer's word is not taken for what cannot be compared, a copy of a closed ledger is.
    let again = Add {
        ledger,
        term: Term(1),
        lac: None,
        lafr: None,
        attributes: None,
        entries: vec![entry(1, 5, 900)],
    };
    let (tell, told) = oneshot::channel();
    bookie.add(again, Box::new(move |result| tell.send(result).unwrap()));
    assert!(matches!(told.await.unwrap(), Err(AddError::Unknown(_))));
    bookie.store_copies(ledger, vec![entry(1, 5, 900)]).await.unwrap();
    assert_eq!(read(&bookie, 5).await, ReadAnswer::Found(vec![entry(1, 5, 900)]));
    for sorted in [false, true] {
        if sorted {
            bookie.flush_soon();
            shows(&bookie, |figures| figures.segments == 2).await;
        }
        assert_eq!(bookie.presence(ledger, all).await.unwrap().present, [all], "sorted to disk: {sorted}");
    }
    tasks.stop();
    assert!(tasks.join(Duration::from_secs(10)).await.is_empty());
    drop(bookie);
    let tasks = TaskGroup::new();
    let bookie = open(&tasks);
    assert_eq!(*bookie.damage().borrow(), 1, "remembered");
    assert_eq!(read(&bookie, 5).await, ReadAnswer::Found(vec![entry(1, 5, 900)]));
    assert_eq!(bookie.presence(ledger, all).await.unwrap().present, [all]);
    tasks.stop();
    assert!(tasks.join(Duration::from_secs(10)).await.is_empty());
}

#[tokio::test]
async fn a_recovery_writes_over_what_cannot_be_read() {
    let disk = SimDisk::new();
    let config = Config { block_bytes: 900, ballast: 0, ..config(Path::new("/sim")) };
    let tasks = TaskGroup::new();
    let bookie = Bookie::open(config, Arc::new(disk.clone()), SystemClock::shared(), &tasks).unwrap();
    let ledger = LedgerId(1);
    let add = async |term, entries| {
        let (tell, told) = oneshot::channel();
        let add = Add { ledger, term: Term(term), lac: None, lafr: None, attributes: None, entries };
        bookie.add(add, Box::new(move |result| tell.send(result).unwrap()));
        told.await.unwrap()
    };
    add(1, (0..20).map(|id| entry(1, id, 900)).collect()).await.unwrap();
    bookie.flush_soon();
    shows(&bookie, |figures| figures.segments == 1).await;
    let (segment, _) =
        disk.files().into_iter().find(|(path, _)| path.extension().is_some_and(|e| e == "seg")).unwrap();
    disk.flip(&segment, 5200, 2);
    let tail = bookie.fence_tail(ledger, Term(2), EntryId(3)).await.unwrap();
    assert_eq!(tail.doubtful, [IdRange { first: EntryId(5), last: EntryId(5) }]);
    assert!(matches!(
        add(1, vec![entry(1, 5, 900)]).await,
        Err(AddError::StaleTerm(Term(2)) | AddError::Unknown(_))
    ));
    add(2, vec![entry(1, 5, 900)]).await.unwrap();
    let tail = bookie.fence_tail(ledger, Term(3), EntryId(3)).await.unwrap();
    assert_eq!(
        (tail.doubtful.len(), tail.present),
        (0, vec![IdRange { first: EntryId(3), last: EntryId(19) }])
    );
    tasks.stop();
    assert!(tasks.join(Duration::from_secs(10)).await.is_empty());
}

#[tokio::test]
async fn a_bad_block_is_found_by_the_scrub_and_answers_unknown() {
    let disk = SimDisk::new();
    let mut config = config(Path::new("/sim"));
    config.scrub_period = Duration::from_secs(1);
    config.block_bytes = 900;
    config.ballast = 0;
    let open = |tasks: &TaskGroup| {
        Bookie::open(config.clone(), Arc::new(disk.clone()), SystemClock::shared(), tasks).unwrap()
    };
    let tasks = TaskGroup::new();
    let bookie = open(&tasks);
    let (tell, told) = oneshot::channel();
    let entries: Vec<Entry> = (0..20).map(|id| entry(1, id, 900)).collect();
    let (ledger, term) = (LedgerId(1), Term(1));
    let add = Add { ledger, term, lac: None, lafr: None, attributes: None, entries };
    bookie.add(add, Box::new(move |result| tell.send(result).unwrap()));
    told.await.unwrap().unwrap();
    bookie.flush_soon();
    shows(&bookie, |figures| figures.segments == 1).await;
    let segment =
        disk.files().into_iter().find(|(path, _)| path.extension().is_some_and(|e| e == "seg")).unwrap();
    disk.flip(&segment.0, 5200, 2);
    shows(&bookie, |figures| figures.bad_blocks == 1).await;
    let read = async |bookie: &Bookie, id| {
        let (first, last) = (EntryId(id), EntryId(id));
        bookie.read(Read { ledger, first, last, bytes_max: 1, class: ReadClass::Repair }).await
    };
    tasks.stop();
    assert!(tasks.join(Duration::from_secs(10)).await.is_empty());
    drop(bookie);
    // It is remembered, even when the bytes look sound again.
    disk.flip(&segment.0, 5200, 2);
    let tasks = TaskGroup::new();
    let bookie = open(&tasks);
    assert_eq!(bookie.figures().bad_blocks, 1);
    assert!(matches!(read(&bookie, 5).await, ReadAnswer::Unknown(_)));
    assert!(matches!(read(&bookie, 4).await, ReadAnswer::Found(_)));
    assert!(matches!(read(&bookie, 6).await, ReadAnswer::Found(_)));
    let stat = bookie.stat(ledger).await.unwrap();
    assert_eq!(
        stat.present.iter().map(|run| (run.first.0, run.last.0)).collect::<Vec<_>>(),
        [(0, 4), (6, 19)]
    );
    let tail = bookie.fence_tail(ledger, Term(2), EntryId(3)).await.unwrap();
    assert_eq!(tail.doubtful.iter().map(|run| (run.first.0, run.last.0)).collect::<Vec<_>>(), [(5, 5)]);
    tasks.stop();
    assert!(tasks.join(Duration::from_secs(10)).await.is_empty());
}

/// A stop that comes while a thread looks at something must not be slept over.
#[tokio::test]
async fn stopping_is_heard_whenever_it_comes() {
    let disk = SimDisk::new();
    for round in 0..100 {
        let tasks = TaskGroup::new();
        let small = Config {
            entry_bytes_max: 8 << 10,
            control_reserve: 8 << 10,
            journal_file_size: 64 << 10,
            journal_file_size_first: 64 << 10,
            batch_bytes: 3 << 10,
            write_cache: 64 << 10,
            ballast: 0,
            shards: 16,
            ..Config::new(BookieId::new("b1").unwrap(), "/d".into(), "c")
        };
        let bookie = Bookie::open(small, Arc::new(disk.clone()), SystemClock::shared(), &tasks).unwrap();
        let rpc = InProcess::new([bookie.clone()]);
        let node = Node { to: rpc.refs().remove(0), rpc, bookie, tasks };
        // What was written sets the flushers' deadlines: they look while the stop comes.
        let told: Vec<_> =
            (0..16).map(|shard| node.send(shard + 16, 1, vec![entry(shard + 16, round, 100)])).collect();
        for told in told {
            told.await.unwrap().unwrap();
        }
        let Node { tasks, .. } = node;
        tasks.stop();
        assert_eq!(tasks.join(Duration::from_secs(10)).await, Vec::<String>::new(), "round {round}");
    }
}
