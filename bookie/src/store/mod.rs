//! A store without its threads: one shard on its directories, and the single steps that threads (or a crash test) take.
//!
//! Owner: [`crate::Bookie`]. Locks, in this order: `tidy` (one of collecting, punching, merging, checking at a time), the manifest's, the
//! shard's. The shard's is held for admission and bookkeeping only, never across a disk call.

mod accept;
mod damage;
mod files;
mod keep;
mod leaving;
mod loss;
mod merge;
mod open;
mod promote;
mod room;
mod scrub;

use crate::Config;
use crate::format::journal::{batch_len, encode_batch};
use crate::format::losses::AcceptedLoss;
use crate::journal;
use crate::manifest::{Change, Content, JournalRow, Manifest, ManifestError};
use crate::mutant::{Mutant, active};
use crate::segments::{self, BlockCache, Segment, SegmentRow};
#[cfg(any(test, feature = "test-util"))]
use crate::shard::{Admitted, Op};
use crate::shard::{Answer, Batch, FlushPlan, JournalFile, Shard};
pub use accept::{Accepted, View};
pub(crate) use accept::{accept, read as accepted_losses, view};
pub use damage::{Damage, Progress};
pub(crate) use files::read_file;
use geminga_common::clock::Clock;
use geminga_common::disk::{AlignedBuf, Disk};
use geminga_common::error::Code;
use geminga_common::ids::Incarnation;
pub use loss::{Losses, Lost};
pub use open::{OpenError, Whose, whose};
pub(crate) use open::{Place, open_all, places};
use parking_lot::Mutex;
pub(crate) use promote::promote;
use room::Ballast;
pub(crate) use scrub::STEP;
use scrub::Scrub;
use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) type Locks = Arc<Vec<Box<dyn Any + Send + Sync>>>;

pub(crate) struct Store {
    pub(crate) config: Arc<Config>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) incarnation: Incarnation,
    /// Losses that were accepted, oldest first; of the whole store.
    pub(crate) accepted: Arc<[AcceptedLoss]>,
    pub(crate) shard: Mutex<Shard>,
    pub(crate) blocks: BlockCache,
    pub(crate) counts: Counts,
    place: Place,
    id: u64,
    boot: u64,
    /// Where the journal goes on if what is there is given up.
    resume_at: u64,
    manifest: Mutex<Option<Manifest>>,
    next_generation: AtomicU64,
    next_segment: AtomicU64,
    segment_dir: PathBuf,
    ballast: Mutex<Ballast>,
    tidy: Mutex<()>,
    /// Segments whose names were taken away since the last transaction, and files that are still there under other names.
    unlinked: Mutex<Vec<u64>>,
    leaving: Mutex<VecDeque<leaving::Leaving>>,
    scrub: Mutex<Scrub>,
    _locks: Locks,
}

/// What was done since the start.
#[derive(Default, Debug)]
pub(crate) struct Counts {
    pub(crate) journal_writes: AtomicU64,
    pub(crate) journal_bytes: AtomicU64,
    pub(crate) punched_bytes: AtomicU64,
    pub(crate) merged_segments: AtomicU64,
    pub(crate) removed_segments: AtomicU64,
    pub(crate) scrubbed_bytes: AtomicU64,
    pub(crate) scrub_passes: AtomicU64,
}

/// What is left to do after a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flushed {
    Nothing,
    Done,
    DiskFull,
    Failed,
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
}

impl Store {
    /// Starts so far; the same in all shards.
    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    fn prepare(&self, recycled: Option<JournalFile>, size: u64) -> io::Result<JournalFile> {
        let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
        journal::prepare(&*self.disk, &self.place, self.id, generation, recycled, size)
    }

    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn admit(&self, op: Op) -> Admitted {
        self.shard.lock().admit(op, self.clock.mono())
    }

    /// Encodes and writes a batch; durable when it returns.
    pub(crate) fn write(&self, batch: &Batch, buf: &mut AlignedBuf) -> io::Result<()> {
        let total = batch_len(batch.records_len);
        if buf.len() < total {
            *buf = AlignedBuf::zeroed(total.next_power_of_two());
        }
        encode_batch(buf.as_mut_slice(), self.id, batch.head, &batch.records, batch.records_len);
        let bytes = &buf.as_slice()[..total];
        self.counts.journal_writes.fetch_add(1, Ordering::Relaxed);
        self.counts.journal_bytes.fetch_add(total as u64, Ordering::Relaxed);
        match batch.file.write_all_at(bytes, batch.offset) {
            // Only the defect of that name asks again.
            Err(_) if active(Mutant::SyncRetried) => batch.file.write_all_at(bytes, batch.offset),
            other => other,
        }
    }

    /// Makes a journal file ready if one is wanted. Whether it was tried.
    pub(crate) fn prepare_once(&self) -> (bool, Vec<Answer>) {
        let Some(recycled) = self.shard.lock().wants_file() else { return (false, Vec::new()) };
        let size = self.config.journal_file_size;
        let made = match self.prepare(recycled.clone(), size) {
            Err(error) if is_full(&error) && self.release_ballast() => self.prepare(recycled, size),
            other => other,
        };
        match made.and_then(|file| self.list_file(file)) {
            Ok(file) => {
                self.shard.lock().add_spare(file);
                (true, Vec::new())
            }
            Err(error) if is_full(&error) => {
                tracing::error!(code = %Code::DISK_FULL, %error, "no room for a journal file");
                self.shard.lock().disk_full();
                (false, Vec::new())
            }
            Err(error) => {
                tracing::error!(code = %Code::DISK_FAILED, %error, "journal file cannot be made");
                (false, self.shard.lock().fail())
            }
        }
    }

    /// Writes down that a journal file is ready, before it is used: one that is lost is missed then.
    fn list_file(&self, file: JournalFile) -> io::Result<JournalFile> {
        let listed = self.change(&Change { journal: vec![JournalRow::from(&file)], ..Change::default() });
        if listed.as_ref().is_err_and(is_full) {
            // Not to be used, and its room is wanted; the next start would take it over unused.
            let _best_effort = self.disk.remove(&journal::path(&self.place.journal_dir, file.made));
        }
        listed.map(|()| file)
    }

    /// Flushes what is in the cache.
    pub(crate) fn flush_once(&self) -> (Flushed, Vec<Answer>) {
        let Some(plan) = self.shard.lock().begin_flush() else { return (Flushed::Nothing, Vec::new()) };
        let result = match self.flush(&plan) {
            Err(error) if is_full(&error) && self.release_ballast() => self.flush(&plan),
            other => other,
        };
        match result {
            Ok(segments) => {
                let mut shard = self.shard.lock();
                let mut set = (*shard.segments).clone();
                set.all.extend(segments);
                shard.end_flush(plan, Arc::new(set));
                (Flushed::Done, Vec::new())
            }
            Err(error) if is_full(&error) => {
                tracing::error!(code = %Code::DISK_FULL, %error, "no room to flush");
                self.shard.lock().undo_flush(plan, self.clock.mono());
                (Flushed::DiskFull, Vec::new())
            }
            Err(error) => {
                tracing::error!(code = %Code::DISK_FAILED, %error, "flush failed: the store stops");
                (Flushed::Failed, self.shard.lock().fail_flush())
            }
        }
    }

    /// Ids for the two files that a flush or a merge may write.
    fn take_ids(&self) -> u64 {
        self.next_segment.fetch_add(2, Ordering::Relaxed)
    }

    fn flush(&self, plan: &FlushPlan) -> io::Result<Vec<Arc<Segment>>> {
        let id = self.take_ids();
        let rows = segments::flush(&*self.disk, &self.segment_dir, id, plan, &self.config)
            .inspect_err(|_| self.discard(id))?;
        let next = id + 2;
        let progress = (self.boot, self.scrub_position());
        let commit = |manifest: &Manifest| manifest.commit(plan, &rows, next, progress);
        let is_in = |content: &Content| {
            content.mark == plan.mark && rows.iter().all(|row| content.segments.contains(row))
        };
        self.transact(commit, is_in).inspect_err(|error| {
            if is_full(error) {
                self.discard(id);
            }
        })?;
        Ok(self.open_segments(rows))
    }

    fn open_segments(&self, rows: Vec<SegmentRow>) -> Vec<Arc<Segment>> {
        let open = |row| Arc::new(Segment::open(&*self.disk, &self.segment_dir, row));
        rows.into_iter().map(open).collect()
    }

    /// Removes files that were never committed. Their room is wanted; that it may fail changes nothing: the next start does it again.
    fn discard(&self, id: u64) {
        for id in [id, id + 1] {
            let _best_effort = self.disk.remove(&segments::path(&self.segment_dir, id));
        }
    }

    fn change(&self, change: &Change) -> io::Result<()> {
        let is_in = |content: &Content| {
            let listed = |id: &u64| content.segments.iter().any(|row| row.id == *id);
            !change.forget.iter().any(listed) && change.put.iter().all(|row| content.segments.contains(row))
        };
        // What is repeated does no harm, so only a change that shows is taken for done.
        let shows = !change.put.is_empty() || !change.forget.is_empty();
        self.transact(|manifest| manifest.change(change), |content| shows && is_in(content))
    }

    /// Runs a transaction. redb takes nothing more after an error: for want of room the manifest is opened anew, which also tells
    /// whether the transaction is in, and if not it is run again in the room of the ballast.
    fn transact(
        &self,
        body: impl Fn(&Manifest) -> io::Result<()>,
        is_in: impl Fn(&Content) -> bool,
    ) -> io::Result<()> {
        let mut slot = self.manifest.lock();
        loop {
            let manifest = slot.as_ref().ok_or_else(|| io::Error::other("no manifest"))?;
            let error = match body(manifest) {
                Err(error) if is_full(&error) => error,
                other => return other,
            };
            *slot = None;
            let path = self.place.data_dir.join("manifest.redb");
            let (manifest, content) = match Manifest::open(&*self.disk, &path) {
                Err(ManifestError::Io(again)) if is_full(&again) && self.release_ballast() => {
                    Manifest::open(&*self.disk, &path)
                }
                other => other,
            }
            .map_err(|_| io::Error::other("manifest does not reopen"))?;
            *slot = Some(manifest);
            if is_in(&content) {
                return Ok(());
            }
            if !self.release_ballast() {
                return Err(error);
            }
        }
    }

    /// The file of a segment.
    fn segment_path(&self, id: u64) -> PathBuf {
        segments::path(&self.segment_dir, id)
    }

    /// Whether segments and manifest may be changed.
    pub(crate) fn may_keep(&self) -> bool {
        self.shard.lock().intact()
    }

    /// Only for the defect of that name: the mark moves past what this shard has not flushed.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn adopt_mark(&self) {
        let shard = self.shard.lock();
        let (mark, durable, dead_below) = (shard.resume_at() - 1, shard.durable(), shard.dead_below_durable);
        drop(shard);
        let plan = FlushPlan { mark, durable, dead_below, ledgers: Vec::new(), spent: Vec::new() };
        let next = self.next_segment.load(Ordering::Relaxed);
        if let Some(manifest) = self.manifest.lock().as_ref() {
            let _defect = manifest.commit(&plan, &[], next, (self.boot, 0));
        }
    }
}
