//! What callers in this process get of a store whose loss was accepted: those that count on what it was, and those that count on what it is.

#![allow(clippy::unwrap_used)] // a test

use bytes::Bytes;
use geminga_bookie::steps::Steps;
use geminga_bookie::{Bookie, Config, Health, InProcess, OpenError, accept_loss, view_loss};
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::rpc::{
    Add, AddError, BookieRef, BookieRpc as _, Doubt, IdRange, Read, ReadAnswer, ReadClass,
};
use geminga_common::clock::SystemClock;
use geminga_common::disk::Disk;
use geminga_common::disk::sim::SimDisk;
use geminga_common::ids::{BookieId, EntryId, Incarnation, LedgerId, MessageIndex, Term};
use geminga_common::tasks::TaskGroup;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LEDGER: LedgerId = LedgerId(4);
const OTHER: LedgerId = LedgerId(900);

fn config() -> Config {
    let mut config = Config::new(BookieId::new("b").unwrap(), "/d".into(), "c");
    config.ballast = 0;
    config.entry_bytes_max = 8 << 10;
    config.control_reserve = 4096;
    config.journal_file_size = 64 << 10;
    config.journal_file_size_first = 64 << 10;
    config.refuse_losses = true;
    config.only_copy = true;
    config
}

struct Server {
    rpc: InProcess,
    bookie: Bookie,
    tasks: TaskGroup,
}

impl Server {
    fn start(disk: &SimDisk) -> Result<Self, OpenError> {
        let tasks = TaskGroup::new();
        let bookie = Bookie::open(config(), Arc::new(disk.clone()), SystemClock::shared(), &tasks)?;
        Ok(Self { rpc: InProcess::new([bookie.clone()]), bookie, tasks })
    }

    fn me(&self) -> BookieRef {
        self.rpc.refs().remove(0)
    }

    async fn add(&self, to: &BookieRef, ledger: LedgerId, ids: std::ops::Range<u64>) -> Result<(), AddError> {
        for id in ids {
            let (tell, told) = tokio::sync::oneshot::channel();
            let (lac, entries) = (id.checked_sub(1).map(EntryId), vec![entry(ledger, id)]);
            let add = Add { ledger, term: Term(1), lac, lafr: None, attributes: None, entries };
            self.rpc.add(to, add, Box::new(move |result| drop(tell.send(result))));
            told.await.unwrap()?;
        }
        Ok(())
    }

    async fn read(&self, to: &BookieRef, ledger: LedgerId, first: u64, last: u64) -> ReadAnswer {
        let (first, last) = (EntryId(first), EntryId(last));
        self.rpc.read(to, Read { ledger, first, last, bytes_max: 1 << 20, class: ReadClass::Tail }).await
    }

    async fn flushed(&self, segments: u64) {
        self.bookie.flush_soon();
        while self.bookie.figures().segments < segments {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn stop(self) {
        self.tasks.stop();
        drop((self.rpc, self.bookie));
        self.tasks.join(Duration::from_secs(5)).await;
    }
}

fn entry(ledger: LedgerId, id: u64) -> Entry {
    let first_index = MessageIndex(id);
    let header = Header { kind: Kind::Messages, messages: 1, first_index, timestamp_ms: 0, bytes_before: 0 };
    Entry::new(ledger, EntryId(id), header, Bytes::from(vec![id as u8; 100]))
}

fn segments(disk: &SimDisk) -> Vec<std::path::PathBuf> {
    let files = disk.files().into_iter().map(|(path, _)| path);
    files.filter(|path| path.extension().is_some_and(|is| is == "seg")).collect()
}

fn lose(disk: &SimDisk, path: &Path) {
    disk.remove(path).unwrap();
    disk.sync_dir(path.parent().unwrap()).unwrap();
}

fn accept(disk: &SimDisk, known: &[Incarnation]) -> Result<Incarnation, OpenError> {
    let accepted = accept_loss(config(), Arc::new(disk.clone()), SystemClock::shared(), known, None)?;
    assert!(!accepted.lost.is_empty());
    Ok(accepted.incarnation)
}

/// Entries 0 to 9 in one segment, 10 to 19 of the same ledger and all of another in a second, 20 to 29 in the journal.
async fn stored(disk: &SimDisk) -> BookieRef {
    let server = Server::start(disk).unwrap();
    let me = server.me();
    server.add(&me, LEDGER, 0..10).await.unwrap();
    server.flushed(1).await;
    server.add(&me, LEDGER, 10..20).await.unwrap();
    server.add(&me, OTHER, 0..3).await.unwrap();
    server.flushed(2).await;
    server.add(&me, LEDGER, 20..30).await.unwrap();
    server.stop().await;
    me
}

#[tokio::test]
async fn a_hole_reads_as_lost_for_those_who_count_on_what_was_and_takes_nothing() {
    let disk = SimDisk::new();
    let was = stored(&disk).await;
    lose(&disk, &segments(&disk)[0]);
    assert!(matches!(Server::start(&disk), Err(OpenError::Lost(_))));
    let is = accept(&disk, &[was.incarnation]).unwrap();
    let server = Server::start(&disk).unwrap();
    assert_ne!(is, was.incarnation);
    assert_eq!((server.bookie.incarnation(), *server.bookie.health().borrow()), (is, Health::Serving));
    assert_eq!(
        server.read(&was, LEDGER, 0, 19).await,
        ReadAnswer::Lost { last: EntryId(9) },
        "up to what is left"
    );
    assert_eq!(
        server.read(&was, LEDGER, 3, 5).await,
        ReadAnswer::Lost { last: EntryId(5) },
        "within what was asked"
    );
    let left = (10..30).map(|id| entry(LEDGER, id)).collect::<Vec<_>>();
    let ReadAnswer::Found(found) = server.read(&was, LEDGER, 10, 29).await else {
        panic!("what is left is lost")
    };
    assert_eq!(found[..], left[..found.len()]);
    let tail = server.rpc.fence_tail(&was, LEDGER, Term(2), EntryId(0)).await.unwrap();
    assert!(tail.lacks && tail.doubtful.is_empty(), "{tail:?}");
    assert_eq!(tail.present, [IdRange { first: EntryId(10), last: EntryId(29) }]);
    // The lost segment held nothing of the other: what is not there of it never was.
    let tail = server.rpc.fence_tail(&was, OTHER, Term(2), EntryId(0)).await.unwrap();
    assert!(!tail.lacks, "{tail:?}");
    assert!(matches!(server.read(&was, OTHER, 3, 3).await, ReadAnswer::NotFound(_)));
    // Whoever wrote to what was, writes nothing more; what is is a store like any other.
    assert_eq!(server.add(&was, LEDGER, 30..31).await, Err(AddError::WrongIncarnation));
    server.add(&server.me(), LedgerId(5), 0..3).await.unwrap();
    assert!(matches!(server.read(&server.me(), LedgerId(5), 3, 3).await, ReadAnswer::NotFound(_)));
    let stranger = BookieRef { incarnation: Incarnation(77), ..was.clone() };
    assert_eq!(server.read(&stranger, LEDGER, 10, 10).await, ReadAnswer::Unknown(Doubt::WrongIncarnation));
    server.stop().await;
    assert!(matches!(accept(&disk, &[]), Err(OpenError::NotLost)), "it is accepted");
}

#[tokio::test]
async fn a_second_loss_is_one_of_everything_before_and_the_first_is_remembered() {
    let disk = SimDisk::new();
    let first = stored(&disk).await;
    lose(&disk, &segments(&disk)[0]);
    let second = accept(&disk, &[first.incarnation]).unwrap();
    lose(&disk, Path::new("/d/manifest.redb"));
    // The manifest says how many losses are to be told, and the one record that is left tells them.
    lose(&disk, Path::new("/d/LOSSES"));
    let third = accept(&disk, &[first.incarnation]).unwrap();
    assert!(third != second && third != first.incarnation);
    let server = Server::start(&disk).unwrap();
    let former: Vec<Incarnation> =
        server.bookie.accepted_losses().iter().map(|loss| loss.incarnation).collect();
    assert_eq!(former, [first.incarnation, second]);
    assert!(server.bookie.accepted_losses()[1].lines[0].contains("manifest.redb"));
    assert_eq!(server.read(&first, LEDGER, 0, 19).await, ReadAnswer::Lost { last: EntryId(9) });
    assert!(matches!(server.read(&first, LEDGER, 29, 29).await, ReadAnswer::Found(_)));
    // After the loss of a manifest nothing is certain of any ledger.
    assert_eq!(server.read(&first, OTHER, 3, 3).await, ReadAnswer::Lost { last: EntryId(3) });
    server.stop().await;
    // Nobody can say any more what was accepted: refused, not forgotten.
    for path in ["/d/LOSSES", "/d/journal/LOSSES"] {
        lose(&disk, Path::new(path));
    }
    let Err(OpenError::Lost(losses)) = Server::start(&disk) else { panic!("it opens without LOSSES") };
    assert!(losses.to_string().contains("/d/LOSSES"), "{losses}");
}

#[tokio::test]
async fn a_look_changes_nothing_and_tells_what_is_left() {
    let disk = SimDisk::new();
    stored(&disk).await;
    let look =
        |disk: &SimDisk| view_loss(config(), Arc::new(disk.clone()), SystemClock::shared(), &mut |_, _| {});
    assert!(matches!(look(&disk), Err(OpenError::NotLost)));
    lose(&disk, &segments(&disk)[0]);
    let before = disk.files();
    let view = look(&disk).unwrap();
    assert_eq!(view.lost.len(), 1);
    let ids = IdRange { first: EntryId(0), last: EntryId(40) };
    assert_eq!(view.presence(LEDGER, ids).present, [IdRange { first: EntryId(10), last: EntryId(29) }]);
    assert_eq!(view.stat(LEDGER).unwrap().lac, Some(EntryId(28)));
    drop(view);
    assert_eq!(disk.files(), before);
    assert!(matches!(Server::start(&disk), Err(OpenError::Lost(_))));
}

/// Flipped bits in each segment, at every few bytes: until the loss is accepted no answer is a wrong one, and afterwards one entry is lost
/// at most, unless the bit told how long an entry is; each answer is the entry, or that it is lost.
#[tokio::test]
async fn whatever_bit_is_flipped_all_but_one_entry_is_given_back_once_that_is_accepted() {
    let sound = SimDisk::new();
    let was = stored(&sound).await;
    let stored: Vec<(LedgerId, u64)> =
        (0..30).map(|id| (LEDGER, id)).chain((0..3).map(|id| (OTHER, id))).collect();
    let (mut whole, mut short, mut more) = (0, 0, 0);
    for path in segments(&sound) {
        let len = sound.files().into_iter().find(|(file, _)| *file == path).unwrap().1;
        for byte in (0..len).step_by(11) {
            let disk = sound.fork();
            disk.flip(&path, byte, (byte % 8) as u8);
            let open = || Steps::open(config(), Arc::new(disk.clone()), SystemClock::shared()).unwrap();
            let read = |steps: &Steps, (ledger, id): (LedgerId, u64)| {
                let (first, class) = (EntryId(id), ReadClass::Tail);
                match steps.read(Read { ledger, first, last: first, bytes_max: 1, class }) {
                    ReadAnswer::Found(found) => {
                        assert_eq!(found[0], entry(ledger, id));
                        Some(true)
                    }
                    ReadAnswer::NotFound(_) => Some(false),
                    _ => None,
                }
            };
            let steps = open();
            assert!(stored.iter().all(|at| read(&steps, *at) != Some(false)), "byte {byte} is an absence");
            drop(steps);
            let before = disk.bytes(&path).unwrap();
            let accepted = accept_loss(
                config(),
                Arc::new(disk.clone()),
                SystemClock::shared(),
                &[was.incarnation],
                None,
            );
            accepted.unwrap_or_else(|error| panic!("byte {byte} of {}: {error}", path.display()));
            assert_eq!(disk.bytes(&path).unwrap(), before, "byte {byte}: the damaged file was changed");
            let steps = open();
            let mut lost = 0;
            for at in &stored {
                let answer = read(&steps, *at).unwrap_or_else(|| panic!("byte {byte}: {at:?} stays unknown"));
                if !answer {
                    lost += 1;
                    assert_eq!(steps.may_lack(was.incarnation, at.0), Some(true), "byte {byte}: {at:?}");
                }
            }
            match lost {
                0 => whole += 1,
                1 => short += 1,
                _ => more += 1,
            }
        }
    }
    // What is no entry, an entry, and the length of one: 4 of 156 bytes.
    assert!(whole > 5 && short > 100 && more * 20 < short, "{whole} {short} {more}");
}

#[tokio::test]
async fn a_damaged_entry_is_named_and_lost_alone_and_another_ledger_lacks_nothing() {
    let disk = SimDisk::new();
    let was = stored(&disk).await;
    let path = segments(&disk)[0].clone();
    // In the payload of the sixth of ten entries.
    disk.flip(&path, 16 + 5 * 156 + 100, 1);
    let server = Server::start(&disk).unwrap();
    assert_eq!(server.read(&was, LEDGER, 5, 5).await, ReadAnswer::Unknown(Doubt::Damaged));
    let told = server.rpc.only_copy_damaged(&was, LEDGER).unwrap();
    assert!(told.contains(path.to_str().unwrap()) && told.contains("offset 0"), "{told}");
    assert_eq!(server.rpc.only_copy_damaged(&was, OTHER), None);
    let tail = server.rpc.fence_tail(&was, LEDGER, Term(2), EntryId(0)).await.unwrap();
    assert!(!tail.doubtful.is_empty() && !tail.lacks, "{tail:?}");
    server.stop().await;
    let mut progress = Vec::new();
    let view = view_loss(config(), Arc::new(disk.clone()), SystemClock::shared(), &mut |done, all| {
        progress.push((done, all));
    });
    let view = view.unwrap();
    assert_eq!(view.lost[0].ledgers, [(LEDGER, LEDGER)]);
    assert!(view.lost[0].line().contains("1 entries in it are lost: 4:5"), "{:?}", view.lost);
    let all = IdRange { first: EntryId(0), last: EntryId(40) };
    let ids = |first, last| IdRange { first: EntryId(first), last: EntryId(last) };
    assert_eq!(view.presence(LEDGER, all).present, [ids(0, 4), ids(6, 29)]);
    assert!(progress.is_sorted() && progress.last().is_some_and(|(done, all)| done == all), "{progress:?}");
    drop(view);
    accept(&disk, &[was.incarnation]).unwrap();
    let server = Server::start(&disk).unwrap();
    assert_eq!(server.read(&was, LEDGER, 5, 9).await, ReadAnswer::Lost { last: EntryId(5) });
    let ReadAnswer::Found(found) = server.read(&was, LEDGER, 6, 29).await else { panic!("6 is intact") };
    assert_eq!(found[0], entry(LEDGER, 6));
    let tail = server.rpc.fence_tail(&was, LEDGER, Term(3), EntryId(0)).await.unwrap();
    assert!(tail.lacks && tail.doubtful.is_empty(), "{tail:?}");
    assert_eq!(tail.present, [ids(0, 4), ids(6, 29)]);
    assert!(!server.rpc.fence_tail(&was, OTHER, Term(2), EntryId(0)).await.unwrap().lacks);
    assert_eq!(server.rpc.only_copy_damaged(&was, LEDGER), None);
    server.stop().await;
    assert!(matches!(accept(&disk, &[]), Err(OpenError::NotLost)), "it is accepted");
}

#[tokio::test]
async fn a_store_that_was_served_damaged_can_still_be_accepted_as_it_is() {
    let disk = SimDisk::new();
    let was = stored(&disk).await;
    lose(&disk, Path::new("/d/journal/IDENTITY"));
    let tasks = TaskGroup::new();
    let damaged = Config { refuse_losses: false, ..config() };
    let bookie = Bookie::open(damaged, Arc::new(disk.clone()), SystemClock::shared(), &tasks).unwrap();
    assert_eq!((bookie.incarnation(), *bookie.health().borrow()), (was.incarnation, Health::DataLoss));
    tasks.stop();
    drop(bookie);
    tasks.join(Duration::from_secs(5)).await;
    let is = accept(&disk, &[was.incarnation]).unwrap();
    let server = Server::start(&disk).unwrap();
    assert_eq!((server.bookie.incarnation(), *server.bookie.health().borrow()), (is, Health::Serving));
    let ReadAnswer::Found(found) = server.read(&was, LEDGER, 0, 29).await else { panic!("all is there") };
    assert_eq!(found[0], entry(LEDGER, 0));
    assert_eq!(server.read(&was, LEDGER, 30, 30).await, ReadAnswer::Lost { last: EntryId(30) }, "who knows");
    server.stop().await;
}

/// Metadata take a store with fewer starts than they know of for an older copy: one that lost its count twice must not look like that.
#[tokio::test]
async fn starts_are_counted_on_from_what_others_know() {
    let disk = SimDisk::new();
    let mut known = stored(&disk).await.incarnation;
    let mut starts = 1;
    for _ in 0..3 {
        lose(&disk, Path::new("/d/IDENTITY"));
        lose(&disk, Path::new("/d/journal/IDENTITY"));
        let config = Config { known: Some(known), known_boot: starts, ..config() };
        let accepted =
            accept_loss(config, Arc::new(disk.clone()), SystemClock::shared(), &[known], None).unwrap();
        let server = Server::start(&disk).unwrap();
        assert_eq!(server.bookie.incarnation(), accepted.incarnation);
        assert!(server.bookie.boot() > starts, "{} starts, {starts} are known", server.bookie.boot());
        (known, starts) = (accepted.incarnation, server.bookie.boot());
        server.stop().await;
    }
}
