//! Blocks of offloaded ledgers on a disk of the broker's own, so that what was read once need not be asked for again: not by
//! the next reader, not by the next process. Off unless a directory is configured; then there is no thread, no file and no lock of it.
//!
//! It is a cache and nothing else. Whatever happens to it, a reader gets the object's own bytes: blocks are named by the attempt that
//! made their object, which is never made twice, and each is held against the checksum that the object's index has of it, as is
//! what comes from the store. A file that is damaged, cut short or gone, a disk that is full or broken costs requests, a figure with its
//! reason, and one line in the log; a crash at any time costs what was not written yet.
//!
//! | file | what it holds |
//! |---|---|
//! | `format.rs` | bytes of a file; pure |
//! | `shelf.rs` | what lies where, which file goes; pure |
//! | `writer.rs` | what is written, and when not |
//!
//! All of it runs in the [`Lane`]: files are read and written by threads of low priority, which are gone while nothing is read.

mod format;
mod shelf;
mod writer;

use crate::state::PartId;
use bytes::Bytes;
pub(crate) use format::INDEX;
use geminga_common::clock::{Clock, Mono};
use geminga_common::disk::{Disk, DiskFile, OpenMode};
use geminga_common::error::Code;
use geminga_common::lane::Lane;
use geminga_common::tasks::{OnFailure, TaskGroup};
use parking_lot::Mutex;
use shelf::{Key, Place, Shelf};
use std::any::Any;
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
#[cfg(test)]
pub(crate) use writer::QUEUE_MAX;
use writer::{Out, Queue};

/// Name of the file whose lock says that a directory is in use.
const LOCK: &str = "LOCK";
/// What the names of its files begin with.
const PREFIX: &str = "blocks-";
/// Files it has at most, about: so much of it goes at a time.
const FILES: u64 = 16;
/// Longest that a start waits for what lies in the files.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// Reads of files at a time. More would not make a disk faster, and each holds a thread.
const READS_MAX: usize = 4;
/// How long it is left alone after an error: a disk that is full or broken is not asked all the time.
pub(crate) const REST: Duration = Duration::from_secs(60);

/// Where it is and how large it may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Its directory, which nobody else uses.
    pub dir: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Percent of the file system that it leaves free.
    pub free_percent: u64,
    /// Longest that a reader waits for it: one that hangs must not hold what the store has.
    pub patience: Duration,
}

/// Why something of it was of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// What was read is not what was written.
    Damaged,
    /// A file cannot be read.
    Read,
    /// A file cannot be written, made or removed.
    Write,
    /// The file system has no room to spare.
    Room,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 4] = [Reason::Damaged, Reason::Read, Reason::Write, Reason::Room];

    /// As the metric names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::Damaged => "damaged",
            Reason::Read => "read",
            Reason::Write => "write",
            Reason::Room => "room",
        }
    }
}

/// What it has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Blocks and indexes that were read here instead of from the store.
    pub hits: u64,
    /// Those that were not here, or of no use.
    pub misses: u64,
    /// Bytes of what was.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Blocks and indexes that were not written, because writing was behind or rests after an error.
    pub left_out: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Errors, in the order of [`Reason::ALL`].
    pub errors: [u64; Reason::ALL.len()],
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    left_out: AtomicU64,
    errors: [AtomicU64; Reason::ALL.len()],
}

struct Shared {
    settings: Settings,
    file_bytes: u64,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    tasks: TaskGroup,
    lane: Lane,
    /// Kept for as long as the directory is used.
    _lock: Box<dyn Any + Send + Sync>,
    shelf: Mutex<Shelf>,
    queue: Mutex<Queue>,
    reads: Arc<Semaphore>,
    /// Until then nothing is read, because a read took too long.
    reads_rest_until: Mutex<Mono>,
    counts: Counts,
}

/// The disk cache of a process. Cloning shares it.
#[derive(Clone)]
pub struct DiskCache(Arc<Shared>);

impl DiskCache {
    /// Opens the directory, which is made if it is not there. What lies in its files is looked up, behind the caller's back where it
    /// takes longer than [`LOOK_MAX`]: until then it counts as missing.
    ///
    /// # Errors
    /// The directory cannot be made, read or locked.
    pub async fn open(
        settings: Settings,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        tasks: TaskGroup,
        lane: Lane,
    ) -> io::Result<Self> {
        let (group, own) = (tasks.clone(), lane.clone());
        let opened = lane.blocking(move || Self::opened(settings, disk, clock, group, own)).await;
        let (cache, numbers) = opened.map_err(io::Error::other)??;
        let looking = cache.clone();
        let mut looking = Box::pin(async move { looking.look_through(numbers).await });
        // The first readers are those that come right behind the start.
        if tokio::time::timeout(LOOK_MAX, &mut looking).await.is_err() {
            tasks.spawn("disk cache", OnFailure::Log, looking);
        }
        Ok(cache)
    }

    fn opened(
        settings: Settings,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        tasks: TaskGroup,
        lane: Lane,
    ) -> io::Result<(Self, Vec<u64>)> {
        disk.create_dir_all(&settings.dir)?;
        let lock = disk.lock(&settings.dir.join(LOCK))?;
        let names = disk.list(&settings.dir)?;
        let numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        let next = numbers.last().map_or(0, |last| last + 1);
        let shared = Shared {
            file_bytes: (settings.bytes / FILES).min(1 << 30),
            settings,
            disk,
            clock,
            tasks,
            lane,
            _lock: lock,
            shelf: Mutex::default(),
            queue: Mutex::new(Queue::new(Out::new(next))),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            reads_rest_until: Mutex::default(),
            counts: Counts::default(),
        };
        for number in &numbers {
            shared.adopt(*number);
        }
        shared.shrink();
        Ok((Self(Arc::new(shared)), numbers))
    }

    /// Finds what lies in files of an earlier process, the newest first.
    async fn look_through(&self, numbers: Vec<u64>) {
        for number in numbers.into_iter().rev() {
            let shared = self.0.clone();
            if self.0.lane.blocking(move || shared.look_at(number)).await.is_err() {
                return;
            }
        }
    }

    /// What it has done so far.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.0.counts;
        Figures {
            hits: get(&counts.hits),
            misses: get(&counts.misses),
            read_bytes: get(&counts.read_bytes),
            written_bytes: get(&counts.written_bytes),
            left_out: get(&counts.left_out),
            bytes: self.0.shelf.lock().bytes(),
            errors: [0, 1, 2, 3].map(|nth| get(&counts.errors[nth])),
        }
    }

    /// Whether all that was offered is written or left out.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.0.queue.lock().is_idle()
    }

    /// Reads blocks, or the index, of a ledger in an object, each with the bytes it must have: what `open` makes of those that are here,
    /// by their place among those wanted. What `open` refuses is damage and forgotten.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        part: PartId,
        wanted: Vec<(u32, u32)>,
        open: impl Fn(usize, Bytes) -> Option<T> + Send + 'static,
    ) -> Vec<Option<T>> {
        let found: Vec<_> = {
            let mut shelf = self.0.shelf.lock();
            wanted.iter().map(|(nth, _)| shelf.find((part, *nth))).collect()
        };
        let rests = self.0.clock.mono() < *self.0.reads_rest_until.lock();
        let read = if rests || found.iter().all(Option::is_none) {
            None
        } else {
            self.read_of(part, &wanted, found, open).await
        };
        let read = read.unwrap_or_else(|| wanted.iter().map(|_| None).collect());
        let hits = read.iter().flatten().count() as u64;
        let bytes =
            read.iter().zip(&wanted).filter(|(read, _)| read.is_some()).map(|(_, want)| u64::from(want.1));
        self.0.counts.read_bytes.fetch_add(bytes.sum(), Ordering::Relaxed);
        self.0.counts.hits.fetch_add(hits, Ordering::Relaxed);
        self.0.counts.misses.fetch_add(read.len() as u64 - hits, Ordering::Relaxed);
        read
    }

    /// The same of blocks whose places were found; `None` when it takes too long, or the process stops.
    async fn read_of<T: Send + 'static>(
        &self,
        part: PartId,
        wanted: &[(u32, u32)],
        found: Vec<Option<(Place, Arc<dyn DiskFile>)>>,
        open: impl Fn(usize, Bytes) -> Option<T> + Send + 'static,
    ) -> Option<Vec<Option<T>>> {
        let (shared, wanted) = (self.0.clone(), wanted.to_vec());
        let work = move || {
            let each = found.into_iter().zip(&wanted).enumerate();
            each.map(|(at, (found, (nth, length)))| {
                let (place, file) = found?;
                let other = || (Reason::Damaged, "it is not what the object's index tells".to_owned());
                let opened =
                    fetched(&*file, place, *length).and_then(|bytes| open(at, bytes).ok_or_else(other));
                opened.map_err(|(reason, what)| shared.useless((part, *nth), place, reason, &what)).ok()
            })
            .collect::<Vec<_>>()
        };
        let reading = async {
            // It is never closed; if it were, more would be read at a time. A read that hangs keeps its turn, and its thread.
            let turn = self.0.reads.clone().acquire_owned().await;
            let work = move || {
                let _turn = turn;
                work()
            };
            self.0.lane.blocking(work).await.ok()
        };
        match tokio::time::timeout(self.0.settings.patience, reading).await {
            Ok(read) => read,
            Err(_) => {
                *self.0.reads_rest_until.lock() = self.0.clock.mono() + REST;
                self.0.tell(Reason::Read, &"a read takes too long", "nothing is read there for a minute");
                None
            }
        }
    }
}

fn fetched(file: &dyn DiskFile, place: Place, length: u32) -> Result<Bytes, (Reason, String)> {
    if place.length != length {
        return Err((Reason::Damaged, format!("{} bytes instead of {length}", place.length)));
    }
    let mut bytes = vec![0; length as usize];
    match file.read_exact_at(&mut bytes, place.at) {
        Ok(()) => Ok(bytes.into()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err((Reason::Damaged, error.to_string()))
        }
        Err(error) => Err((Reason::Read, error.to_string())),
    }
}

/// The number of a file of the cache; `None` for what is none, which is never touched.
fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix(PREFIX).filter(|number| number.len() == 16)?;
    // Numbers that were never given would leave none for the next.
    u64::from_str_radix(number, 16).ok().filter(|number| name_of(*number) == name && *number < u64::MAX)
}

fn name_of(number: u64) -> String {
    format!("{PREFIX}{number:016x}")
}

impl Shared {
    fn path(&self, number: u64) -> PathBuf {
        self.settings.dir.join(name_of(number))
    }

    fn count(&self, reason: Reason) {
        self.counts.errors[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts and tells what cost a file, or a rest of writing.
    fn tell(&self, reason: Reason, what: &dyn Display, so: &str) {
        self.count(reason);
        tracing::warn!(
            code = %Code::DISK_CACHE_FAILED,
            dir = %self.settings.dir.display(),
            reason = reason.name(),
            "the disk cache of the object store: {what}; {so}"
        );
    }

    /// A block cannot be taken from its place: the store has it. Each file is told of once.
    fn useless(&self, key: Key, place: Place, reason: Reason, what: &str) {
        if self.shelf.lock().forget(key, place) {
            let what = format_args!("{} at {}: {what}", name_of(place.file), place.at).to_string();
            self.tell(reason, &what, "what cannot be used of this file is asked of the store");
        } else {
            self.count(reason);
        }
    }

    /// Takes a file of an earlier process in; one that cannot be opened is removed.
    fn adopt(&self, number: u64) {
        let opened = self.disk.open(&self.path(number), OpenMode::Read);
        match opened.and_then(|file| file.len().map(|bytes| (file, bytes))) {
            Ok((file, bytes)) => self.shelf.lock().add(number, file, bytes),
            Err(error) => {
                self.tell(Reason::Read, &error, "it is removed");
                self.remove(number);
            }
        }
    }

    /// Finds what lies in a file.
    fn look_at(&self, number: u64) {
        let Some((file, bytes)) = self.shelf.lock().file(number) else { return };
        let mut page = vec![0; format::PAGE];
        let mut at = 0;
        while at + format::PAGE as u64 <= bytes {
            if let Err(error) = file.read_exact_at(&mut page, at) {
                return self.tell(Reason::Read, &error, "the rest of this file is not used");
            }
            if at == 0 {
                if !format::is_known(&page) {
                    break;
                }
                at = format::PAGE as u64;
                continue;
            }
            // What a crash left half, at the end of a file.
            let Some(extent) = format::open(&page) else { return };
            if at + u64::from(extent.bytes) > bytes {
                return;
            }
            self.shelf.lock().holds(number, at, &extent);
            at += u64::from(extent.bytes);
        }
        if at == 0 {
            self.shelf.lock().remove(number);
            // A crash may leave a file without its first page.
            if bytes >= format::PAGE as u64 {
                let what = format!("{} is no file of this version", name_of(number));
                self.tell(Reason::Damaged, &what, "it is removed");
            }
            self.remove(number);
        }
    }

    /// Removes files until the rest fits.
    fn shrink(&self) {
        while self.shelf.lock().bytes() > self.settings.bytes {
            let Some(number) = self.shelf.lock().evict() else { return };
            self.remove(number);
        }
    }

    /// Removes a file that is on the shelf no more.
    fn remove(&self, number: u64) {
        match self.disk.remove(&self.path(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.tell(Reason::Write, &error, "the next start tries again");
            }
            _ => {}
        }
    }
}
