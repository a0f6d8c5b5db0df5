//! A store on a disk that fills up: it refuses adds, goes on fencing, sealing, deleting and reading, and takes adds again after a deletion
//! without a restart. On a simulated disk, and on a small real file system where one can be mounted.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test

use bytes::Bytes;
use geminga_bookie::{Bookie, Config, Health, OpenError, Room};
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::record::{LedgerAttributes, LedgerKind};
use geminga_bookie_client::rpc::{Add, AddError, ControlError, Read, ReadAnswer, ReadClass};
use geminga_common::clock::SystemClock;
use geminga_common::disk::sim::SimDisk;
use geminga_common::disk::{Disk, RealDisk};
use geminga_common::ids::{BookieId, EntryId, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId};
use geminga_common::tasks::TaskGroup;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const SIZE: usize = 16 << 10;

fn config(dir: &Path) -> Config {
    let mut config = Config::new(BookieId::new("b1").unwrap(), dir.join("bookie"), "test");
    config.entry_bytes_max = 64 << 10;
    config.journal_file_size = 512 << 10;
    config.journal_file_size_first = 512 << 10;
    config.write_cache = 1 << 20;
    config.ballast = 2 << 20;
    config.punch_bytes = 64 << 10;
    config
}

fn entry(ledger: u64, id: u64) -> Entry {
    let header = Header {
        kind: Kind::Messages,
        messages: 1,
        first_index: MessageIndex(id),
        timestamp_ms: 7,
        bytes_before: 0,
    };
    let payload: Vec<u8> = (0..SIZE).map(|at| (at as u64 * 31 + id * 7 + ledger) as u8).collect();
    Entry::new(LedgerId(ledger), EntryId(id), header, Bytes::from(payload))
}

async fn add(bookie: &Bookie, ledger: u64, term: u64, id: u64) -> Result<(), AddError> {
    add_of(bookie, ledger, term, id, None).await
}

/// As a broker writes down what consumers acknowledged.
async fn acknowledge(bookie: &Bookie, id: u64) -> Result<(), AddError> {
    let attributes = LedgerAttributes {
        kind: LedgerKind::CursorLog,
        owner: "bundle".to_owned(),
        topic: TopicId(1),
        ordinal: 0,
        predecessor: None,
        owner_epoch: OwnerEpoch(1),
        first_index: MessageIndex(0),
    };
    add_of(bookie, 5, 1, id, (id == 0).then(|| Arc::new(attributes))).await
}

async fn add_of(
    bookie: &Bookie,
    ledger: u64,
    term: u64,
    id: u64,
    attributes: Option<Arc<LedgerAttributes>>,
) -> Result<(), AddError> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let (entries, term) = (vec![entry(ledger, id)], Term(term));
    let add = Add { ledger: LedgerId(ledger), term, lac: None, lafr: None, attributes, entries };
    bookie.add(add, Box::new(move |result| tell.send(result).unwrap()));
    told.await.unwrap()
}

async fn holds(bookie: &Bookie, ledger: u64, id: u64) -> bool {
    let (first, last) = (EntryId(id), EntryId(id));
    let read = Read { ledger: LedgerId(ledger), first, last, bytes_max: 1, class: ReadClass::CatchUp };
    matches!(bookie.read(read).await, ReadAnswer::Found(found) if found[..] == [entry(ledger, id)])
}

/// Adds to two ledgers in turn until the store takes no more; how many each took.
async fn fill(bookie: &Bookie) -> (u64, bool) {
    let (mut id, mut seen_no_new) = (0, false);
    loop {
        seen_no_new |= *bookie.room().borrow() == Room::NoNewLedgers;
        for ledger in [1, 2] {
            match tokio::time::timeout(Duration::from_secs(60), add(bookie, ledger, 1, id)).await.unwrap() {
                Ok(()) => {}
                Err(AddError::DiskFull) => return (id, seen_no_new),
                Err(other) => panic!("{other}"),
            }
        }
        id += 1;
        assert!(id < 100_000, "the disk never fills up");
    }
}

async fn story(disk: Arc<dyn Disk>, dir: &Path) {
    let tasks = TaskGroup::new();
    let bookie = Bookie::open(config(dir), disk.clone(), SystemClock::shared(), &tasks).unwrap();
    let (count, seen_no_new) = fill(&bookie).await;
    println!("full after 2 x {count} entries: {:?}, {:?}", *bookie.room().borrow(), bookie.figures());
    assert!(seen_no_new, "placement was warned before anything was refused");
    assert!(count > 20 && *bookie.health().borrow() == Health::Serving);
    // A recovery still finds room for its write-backs, at a term of its own.
    if *bookie.room().borrow() == Room::RecoveryOnly {
        assert_eq!(add(&bookie, 3, 2, 0).await, Ok(()), "a write-back within the reserve");
    }
    for id in 0..3 {
        assert_eq!(acknowledge(&bookie, id).await, Ok(()), "acknowledgements are written down");
    }
    // Everything but adds goes on.
    let tail = bookie.fence_tail(LedgerId(1), Term(5), EntryId(count - 1)).await.unwrap();
    assert_eq!(tail.present[0].first, EntryId(count - 1));
    for other in 100..140 {
        bookie.fence_tail(LedgerId(other), Term(2), EntryId(0)).await.unwrap();
    }
    bookie.seal(LedgerId(2), Some(EntryId(count - 1))).await.unwrap();
    assert!(holds(&bookie, 1, 0).await && holds(&bookie, 2, count - 1).await);
    bookie.delete(LedgerId(1)).await.unwrap();
    assert_eq!(bookie.stat(LedgerId(1)).await.map(drop), Err(ControlError::Tombstoned));
    // Without a restart it takes adds again.
    let mut room = bookie.room();
    tokio::time::timeout(Duration::from_secs(30), room.wait_for(|room| *room < Room::RecoveryOnly))
        .await
        .unwrap()
        .unwrap();
    tokio::time::timeout(Duration::from_secs(30), async {
        while add(&bookie, 4, 1, 0).await == Err(AddError::DiskFull) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    assert!(holds(&bookie, 4, 0).await);
    for id in 0..count {
        assert!(holds(&bookie, 2, id).await, "entry {id} of the ledger that lives");
    }
    println!("after the deletion: {:?}", bookie.figures());
    tasks.stop();
    assert!(tasks.join(Duration::from_secs(30)).await.is_empty());
    // And after a restart all of it is there.
    drop(bookie);
    let tasks = TaskGroup::new();
    let bookie = Bookie::open(config(dir), disk, SystemClock::shared(), &tasks).unwrap();
    assert!(holds(&bookie, 2, count - 1).await && holds(&bookie, 4, 0).await && holds(&bookie, 5, 2).await);
    assert_eq!(bookie.stat(LedgerId(100)).await.unwrap().term, Term(2));
    tasks.stop();
    assert!(tasks.join(Duration::from_secs(30)).await.is_empty());
}

#[tokio::test]
async fn a_full_simulated_disk() {
    let disk = SimDisk::new();
    disk.capacity(Some(32 << 20));
    story(Arc::new(disk), Path::new("/sim")).await;
}

/// A file system of its own in a file, unmounted in the end.
struct Mounted {
    dir: tempfile::TempDir,
    at: PathBuf,
}

impl Mounted {
    /// `None` where that is not allowed, with the reason on stdout.
    fn small() -> Option<Self> {
        let dir = tempfile::tempdir().ok()?;
        let (image, at) = (dir.path().join("image"), dir.path().join("mount"));
        let disk = RealDisk;
        let made = disk
            .open(&image, geminga_common::disk::OpenMode::CreateNew)
            .and_then(|file| file.set_len(48 << 20));
        made.and_then(|()| disk.create_dir_all(&at)).ok()?;
        let run = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let ready = run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))
            && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        if !ready {
            println!("not possible here: a full real disk needs a loop image that can be mounted");
            return None;
        }
        Some(Self { dir, at })
    }

    fn remount(&self, how: &str) {
        let done = Command::new("mount").args(["-o", how]).arg(&self.at).status().unwrap();
        assert!(done.success(), "remount {how}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.at).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            println!("{} stays mounted", self.dir.path().display());
        }
    }
}

#[tokio::test]
async fn a_full_real_disk() {
    let Some(mounted) = Mounted::small() else { return };
    story(RealDisk::shared(), &mounted.at).await;
    // Mounted read-only it does not open, and says why.
    mounted.remount("remount,ro");
    let tasks = TaskGroup::new();
    let opened = Bookie::open(config(&mounted.at), RealDisk::shared(), SystemClock::shared(), &tasks);
    let error = opened.map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Disk(_)) && error.to_string().contains("read-only"), "{error}");
    mounted.remount("remount,rw");
    // A new store on a full disk says so, too.
    let rest = RealDisk.open(&mounted.at.join("rest"), geminga_common::disk::OpenMode::CreateNew).unwrap();
    let free = RealDisk.space(&mounted.at).unwrap().available;
    rest.allocate(free - (64 << 10)).unwrap();
    let opened =
        Bookie::open(config(&mounted.at.join("other")), RealDisk::shared(), SystemClock::shared(), &tasks);
    let error = opened.map(drop).unwrap_err().to_string();
    assert!(error.contains("full"), "{error}");
}
