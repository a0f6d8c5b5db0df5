//! Reading back with a disk cache, over a simulated store and a simulated disk: what is right whatever happens to the disk, and how many
//! requests it costs.

use super::tests::{Rig, entry, rig, stored};
use super::*;
use crate::blob::sim::{Faults, SimBlobs};
use crate::disk_cache::{Figures as Disk, QUEUE_MAX, REST, Reason, Settings};
use crate::key::AttemptId;
use geminga_common::clock::{Clock, ManualClock};
use geminga_common::disk::sim::{Crash, SimDisk};
use geminga_common::disk::{Disk as Drive, DiskFile, OpenMode, Space};
use std::any::Any;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ENTRIES: u64 = 640;
const SIZE: usize = 16 << 10;
const MIB: u64 = 1 << 20;

/// A reader with a disk cache, as one process has it.
struct Process {
    reader: Reader,
    cache: DiskCache,
    clock: Arc<ManualClock>,
}

fn settings(bytes: u64) -> Settings {
    Settings { dir: "/cache".into(), bytes, free_percent: 1, patience: Duration::from_secs(60) }
}

async fn process(blobs: &SimBlobs, disk: impl Drive, bytes: u64) -> Process {
    let (clock, tasks) = (Arc::new(ManualClock::at_wall_ms(0)), TaskGroup::new());
    let shared: Arc<dyn Clock> = clock.clone();
    let opened =
        DiskCache::open(settings(bytes), Arc::new(disk), shared.clone(), tasks.clone(), Lane::here());
    let cache = opened.await.unwrap();
    let room = Room { cache_bytes: 32 << 20, in_flight_bytes: 64 << 20 };
    let meters = Meters::new(shared);
    let blobs = Arc::new(blobs.clone());
    let reader = Reader::new(blobs, "c", room, tasks, Lane::here(), meters, Some(cache.clone()));
    let process = Process { reader, cache, clock };
    process.settle().await;
    process
}

impl Process {
    /// Waits until nothing is under way.
    async fn settle(&self) {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        assert!(self.cache.is_idle());
    }

    /// Reads everything, and holds it against what was written; the requests it took.
    async fn read_all(&self, target: Target, entries: u64, size: usize) -> u64 {
        let before = self.reader.figures().requests;
        let mut at = 0;
        while at < entries {
            let ids = EntryId(at)..=EntryId(entries - 1);
            for read in self.reader.read(target, ids, 1 << 20, None, |read| read).await.unwrap() {
                assert!(read == entry(at, size), "entry {at} is another");
                at += 1;
            }
        }
        self.settle().await;
        self.reader.figures().requests - before
    }

    fn disk(&self) -> Disk {
        self.reader.figures().disk.unwrap()
    }

    fn errors(&self, reason: Reason) -> u64 {
        self.disk().errors[reason as usize]
    }
}

fn files(disk: &SimDisk) -> Vec<PathBuf> {
    let names = disk.files().into_iter().map(|(path, _)| path);
    names.filter(|path| path.to_string_lossy().contains("blocks-")).collect()
}

/// A ledger of 10 MiB, and a disk on which all of it lies.
async fn filled() -> (Rig, SimDisk) {
    let (rig, disk) = (rig(ENTRIES, SIZE, 64 << 10, 16 << 20).await, SimDisk::new());
    let process = process(&rig.blobs, disk.clone(), 64 * MIB).await;
    assert!(process.read_all(rig.target, ENTRIES, SIZE).await > 0);
    let told = process.disk();
    assert_eq!((told.hits, told.left_out, told.errors), (0, 0, [0; 4]));
    assert!(told.bytes > ENTRIES * SIZE as u64 && told.bytes == disk.used(), "{told:?}, {}", disk.used());
    (rig, disk.fork())
}

#[tokio::test]
async fn what_was_read_once_is_asked_for_no_more_by_the_next_process_either() {
    let (rig, disk) = filled().await;
    for _ in 0..2 {
        let process = process(&rig.blobs, disk.fork(), 64 * MIB).await;
        assert_eq!(process.read_all(rig.target, ENTRIES, SIZE).await, 0);
        let told = process.disk();
        assert_eq!((told.misses, told.written_bytes, told.errors), (0, 0, [0; 4]), "{told:?}");
        assert!(told.hits > 160 && told.read_bytes > ENTRIES * SIZE as u64, "{told:?}");
        process.reader.footer(rig.target).await.unwrap();
        assert_eq!(process.reader.figures().requests, 0);
    }
}

#[tokio::test]
async fn a_small_ledger_lies_there_with_its_index() {
    let (rig, disk) = (rig(10, 100, 200, 16 << 20).await, SimDisk::new());
    let first = process(&rig.blobs, disk.clone(), 64 * MIB).await;
    assert_eq!(first.read_all(rig.target, 10, 100).await, 1);
    let next = process(&rig.blobs, disk.fork(), 64 * MIB).await;
    assert_eq!(next.read_all(rig.target, 10, 100).await, 0);
}

#[tokio::test]
async fn a_flipped_bit_costs_a_request_and_is_written_anew() {
    let (rig, disk) = filled().await;
    for path in files(&disk) {
        let length = disk.bytes(&path).unwrap().len() as u64;
        // Heads of extents stay: what is told to lie there is not what lies there.
        for byte in (0..length).filter(|byte| byte % (48 << 10) == (20 << 10) + 2000) {
            disk.flip(&path, byte, 3);
        }
    }
    let second = process(&rig.blobs, disk.clone(), 64 * MIB).await;
    let asked = second.read_all(rig.target, ENTRIES, SIZE).await;
    assert!(asked > 0 && second.errors(Reason::Damaged) > 100, "{asked}, {:?}", second.disk());
    let third = process(&rig.blobs, disk.fork(), 64 * MIB).await;
    assert_eq!(third.read_all(rig.target, ENTRIES, SIZE).await, 0);
    assert_eq!(third.disk().errors, [0; 4]);
}

#[tokio::test]
async fn of_a_run_that_is_there_but_for_one_block_that_block_is_asked_for() {
    let (rig, disk) = filled().await;
    let (path, length) = disk.files().into_iter().max_by_key(|(_, length)| *length).unwrap();
    disk.flip(&path, length / 2, 0);
    drop(rig.blobs.reads());
    let process = process(&rig.blobs, disk, 64 * MIB).await;
    assert_eq!(process.read_all(rig.target, ENTRIES, SIZE).await, 1);
    let asked = rig.blobs.reads();
    assert!(asked[0].1.end - asked[0].1.start < 70 << 10, "{asked:?}");
    assert_eq!(process.errors(Reason::Damaged), 1);
}

#[tokio::test]
async fn files_that_are_cut_short_emptied_or_none_of_ours_cost_requests() {
    for kept in [0, 1, 4096, 5000, MIB, 3 * MIB + 17] {
        let (rig, disk) = filled().await;
        let cut = |path: &PathBuf| disk.open(path, OpenMode::ReadWrite).unwrap().set_len(kept).unwrap();
        // Once while it is in use, once before the start.
        let running = process(&rig.blobs, disk.clone(), 64 * MIB).await;
        files(&disk).iter().for_each(cut);
        assert!(running.read_all(rig.target, ENTRIES, SIZE).await > 0);
        assert!(running.errors(Reason::Damaged) > 0);
        let disk = disk.fork();
        for path in files(&disk) {
            disk.open(&path, OpenMode::ReadWrite).unwrap().set_len(kept).unwrap();
        }
        let started = process(&rig.blobs, disk.clone(), 64 * MIB).await;
        assert!(started.read_all(rig.target, ENTRIES, SIZE).await > 0, "{kept}");
    }
    let (rig, disk) = filled().await;
    disk.open(Path::new("/cache/notes"), OpenMode::CreateNew).unwrap();
    disk.open(Path::new("/cache/blocks-1"), OpenMode::CreateNew).unwrap();
    files(&disk).iter().for_each(|path| disk.flip(path, 8, 1));
    let process = process(&rig.blobs, disk.clone(), 64 * MIB).await;
    assert!(process.read_all(rig.target, ENTRIES, SIZE).await > 0, "files of another version are not read");
    assert!(process.errors(Reason::Damaged) > 0);
    let names = disk.list(Path::new("/cache")).unwrap();
    assert!(names.contains(&"notes".to_owned()) && names.contains(&"blocks-1".to_owned()), "{names:?}");
}

/// What fails, and how.
type Broken = Arc<Mutex<Option<(&'static str, ErrorKind)>>>;

/// A disk some of whose calls fail.
struct Failing(SimDisk, Broken);

struct FailingFile(Arc<dyn DiskFile>, Broken);

fn meets(broken: &Broken, call: &str) -> io::Result<()> {
    let broken = *broken.lock();
    broken.filter(|(what, _)| *what == call).map_or(Ok(()), |(_, kind)| Err(kind.into()))
}

impl Drive for Failing {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        meets(&self.1, if mode == OpenMode::Read { "open" } else { "create" })?;
        Ok(Arc::new(FailingFile(self.0.open(path, mode)?, self.1.clone())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        meets(&self.1, "remove")?;
        self.0.remove(path)
    }
    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        panic!("a cache waits for no sync")
    }
    fn space(&self, dir: &Path) -> io::Result<Space> {
        meets(&self.1, "space")?;
        self.0.space(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        self.0.lock(path)
    }
}

impl DiskFile for FailingFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        meets(&self.1, "read")?;
        self.0.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        meets(&self.1, "write")?;
        self.0.write_all_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        panic!("a cache waits for no sync")
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

#[tokio::test]
async fn a_disk_that_is_full_or_broken_costs_requests_and_is_written_again_when_it_is_well() {
    for (call, kind, reason) in [
        ("write", ErrorKind::StorageFull, Reason::Room),
        ("write", ErrorKind::Other, Reason::Write),
        ("create", ErrorKind::ReadOnlyFilesystem, Reason::Write),
        ("open", ErrorKind::PermissionDenied, Reason::Write),
    ] {
        let (rig, disk) = (rig(ENTRIES, SIZE, 64 << 10, 16 << 20).await, SimDisk::new());
        let broken = Broken::default();
        let process = process(&rig.blobs, Failing(disk.clone(), broken.clone()), 64 * MIB).await;
        *broken.lock() = Some((call, kind));
        assert!(process.read_all(rig.target, ENTRIES, SIZE).await > 0);
        let told = process.disk();
        assert_eq!(
            (process.errors(reason), told.errors.iter().sum()),
            (1, 1),
            "{call}: asked once, then it rests"
        );
        assert!(told.left_out > 100 && told.written_bytes == 0, "{told:?}");
        *broken.lock() = None;
        process.clock.advance(REST);
        // Memory is smaller than the ledger: some of it is fetched again.
        for _ in 0..4 {
            process.reader.0.cache.lock().clear();
            process.read_all(rig.target, ENTRIES, SIZE).await;
        }
        let next = self::process(&rig.blobs, disk.fork(), 64 * MIB).await;
        // The index was in memory all the time; what comes beside it is the second.
        assert!(next.read_all(rig.target, ENTRIES, SIZE).await <= 2);
    }
}

#[tokio::test]
async fn a_disk_that_cannot_be_read_costs_requests() {
    let (rig, disk) = filled().await;
    let broken = Broken::default();
    let process = process(&rig.blobs, Failing(disk, broken.clone()), 64 * MIB).await;
    *broken.lock() = Some(("read", ErrorKind::Other));
    assert!(process.read_all(rig.target, ENTRIES, SIZE).await > 0);
    assert!(process.errors(Reason::Read) > 100, "{:?}", process.disk());
}

#[tokio::test]
#[allow(clippy::await_holding_lock)] // it is what hangs
async fn a_disk_that_hangs_is_left_alone() {
    let (rig, disk) = filled().await;
    let before = process(&rig.blobs, disk.fork(), 64 * MIB).await;
    let length = before.reader.footer(rig.target).await.unwrap().rows[7].length;
    let (broken, tasks, clock) = (Broken::default(), TaskGroup::new(), Arc::new(ManualClock::at_wall_ms(0)));
    let lane = Lane::new(&tasks, "lane", 1).unwrap();
    let settings = Settings { patience: Duration::from_millis(50), ..settings(64 * MIB) };
    let drive = Arc::new(Failing(disk, broken.clone()));
    let cache = DiskCache::open(settings, drive, clock.clone(), tasks.clone(), lane).await.unwrap();
    let part = rig.target.object.id();
    // Until it is known what lies there nothing is found, and so nothing is wrong with it.
    while cache.figures().errors[Reason::Damaged as usize] == 0 {
        assert_eq!(cache.read(part, vec![(5, 1)], |_, bytes| Some(bytes.len())).await, [None]);
        tokio::task::yield_now().await;
    }
    let hung = broken.lock();
    let begun = cache.figures();
    for _ in 0..9 {
        let read = cache.read(part, vec![(7, length), (8, length)], |_, bytes| Some(bytes.len())).await;
        assert_eq!(read, [None, None]);
    }
    let told = cache.figures();
    assert_eq!((told.errors[Reason::Read as usize], told.misses - begun.misses), (1, 18), "waited for once");
    drop(hung);
    tasks.stop();
    assert_eq!(tasks.join(Duration::from_secs(20)).await, Vec::<String>::new());
}

#[tokio::test]
async fn it_keeps_its_size_and_leaves_the_file_system_what_it_is_to_leave() {
    let (rig, disk) = (rig(ENTRIES, SIZE, 64 << 10, 16 << 20).await, SimDisk::new());
    let small = process(&rig.blobs, disk.clone(), 8 * MIB).await;
    small.read_all(rig.target, ENTRIES, SIZE).await;
    assert!(disk.used() <= 8 * MIB && disk.used() > 3 * MIB, "{} bytes", disk.used());
    assert_eq!((small.disk().bytes, small.disk().errors), (disk.used(), [0; 4]));
    // A smaller size is kept from the start on.
    let disk = disk.fork();
    let smaller = process(&rig.blobs, disk.clone(), 4 * MIB).await;
    assert!(smaller.disk().bytes == disk.used() && disk.used() <= 4 * MIB, "{} bytes", disk.used());
    // Others fill the disk: what they need is given back, and then nothing is written.
    let (rig, disk) = filled().await;
    let process = process(&rig.blobs, disk.clone(), 64 * MIB).await;
    disk.capacity(Some(disk.used() + MIB));
    let others = disk.open(Path::new("/others"), OpenMode::CreateNew).unwrap();
    others.write_all_at(&vec![1; MIB as usize], 0).unwrap();
    let grown = ObjectRef { attempt: AttemptId(4), ..rig.target.object };
    let target = Target { object: grown, ..rig.target };
    copied(&rig, target).await;
    process.read_all(target, ENTRIES, SIZE).await;
    let space = disk.space(Path::new("/cache")).unwrap();
    assert!(space.available >= space.total / 100, "{space:?}");
    disk.capacity(Some(MIB + 5000));
    process.reader.0.cache.lock().clear();
    process.read_all(rig.target, ENTRIES, SIZE).await;
    assert_eq!((process.errors(Reason::Room), process.disk().bytes, files(&disk).len()), (1, 0, 0));
}

/// The same bytes as the object of another attempt.
async fn copied(rig: &Rig, target: Target) {
    let keys = [rig.target, target].map(|target| target.object.key("c", target.topic, target.ledger));
    let whole = rig.blobs.range(&keys[0], 0..rig.target.object.shape.size).await.unwrap();
    rig.blobs.put(&keys[1], vec![whole], u64::MAX).await.unwrap();
}

#[tokio::test]
async fn bytes_of_another_object_are_never_served() {
    let (rig, disk) = filled().await;
    // Another attempt at the same ledger: nothing of the first is looked at.
    let other = Target { object: ObjectRef { attempt: AttemptId(4), ..rig.target.object }, ..rig.target };
    copied(&rig, other).await;
    let process = process(&rig.blobs, disk.fork(), 64 * MIB).await;
    assert!(process.read_all(other, ENTRIES, SIZE).await > 0);
    assert_eq!((process.disk().hits, process.disk().errors), (0, [0; 4]));
    // And if an attempt were ever made twice: same name, same lengths, other bytes.
    let blobs = SimBlobs::new(Faults::default());
    let other = |id| Entry { payload: vec![0xee; SIZE].into(), ..entry(id, 0) };
    let twin = stored(&blobs, ENTRIES, 64 << 10, other).await;
    let process = self::process(&blobs, disk.fork(), 64 * MIB).await;
    let read = process.reader.read(twin, EntryId(0)..=EntryId(ENTRIES - 1), 1 << 20, None, |read| read).await;
    assert!(read.unwrap().iter().all(|entry| entry.payload.iter().all(|byte| *byte == 0xee)));
    assert!(process.errors(Reason::Damaged) > 0);
}

#[tokio::test]
async fn whatever_a_crash_leaves_is_right_or_asked_for_again() {
    let (rig, blank) = (rig(64, 4 << 10, 16 << 10, 16 << 20).await, SimDisk::new());
    let disk = blank.fork();
    disk.record();
    process(&rig.blobs, disk.clone(), 64 * MIB).await.read_all(rig.target, 64, 4 << 10).await;
    let mut history = disk.history(&blank);
    let (mut states, mut asked) = (0, 0);
    loop {
        for crash in history.crashes(4, states).into_iter().chain([Crash::Kept]) {
            let process = process(&rig.blobs, history.disk(&crash), 64 * MIB).await;
            asked += u64::from(process.read_all(rig.target, 64, 4 << 10).await > 0);
            states += 1;
        }
        if !history.step() {
            break;
        }
    }
    assert!(states > 20 && asked > 5 && asked < states, "{asked} of {states}");
}

#[tokio::test]
async fn a_directory_has_one_process_and_what_is_behind_is_left_out() {
    let (rig, disk) = (rig(10, 100, 200, 16 << 20).await, SimDisk::new());
    let process = process(&rig.blobs, disk.clone(), 64 * MIB).await;
    let again =
        DiskCache::open(settings(MIB), Arc::new(disk), process.clock.clone(), TaskGroup::new(), Lane::here());
    assert_eq!(again.await.err().map(|error| error.kind()), Some(ErrorKind::WouldBlock));
    let offer =
        |nth| process.cache.offer(rig.target.object.id(), vec![(nth, Bytes::from_static(b"x"))], QUEUE_MAX);
    offer(1);
    offer(2);
    assert_eq!(process.disk().left_out, 1, "memory for one of the two");
    process.settle().await;
    offer(2);
    process.settle().await;
    assert_eq!(process.disk().left_out, 1);
}
