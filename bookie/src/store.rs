//! A store without its threads: opening, and the single steps that threads (or a crash test) take.
//!
//! Owner: [`crate::Bookie`]. Locks: the shard's is held for admission and bookkeeping only, never across a disk call.

use crate::format::identity::{Format, FormatError, Identity};
use crate::format::journal::{Record, batch_len, encode_batch};
use crate::journal;
use crate::manifest::{Content, Manifest, ManifestError};
use crate::mutant::Mutant;
use crate::segments::{self, BlockCache, Segment, SegmentSet};
use crate::shard::{Admitted, Answer, Batch, Ledger, Op, Shard, Status};
use crate::{Config, ConfigError};
use geminga_common::clock::Clock;
use geminga_common::disk::{AlignedBuf, Disk, OpenMode};
use geminga_common::ids::Incarnation;
use geminga_common::rng::Rng;
use parking_lot::Mutex;
use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is out of its range.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// Another process has it open.
    #[error("the store is in use by another process")]
    InUse,
    /// A newer version wrote it; nothing was changed.
    #[error("the store has format version {0}, newer than this program")]
    Newer(u32),
    /// It belongs to another cluster; nothing was changed.
    #[error("the store belongs to cluster {0}")]
    OtherCluster(String),
    /// The format file is damaged, or missing beside data; nothing was changed.
    #[error("the store's FORMAT file is damaged or missing")]
    Format,
    /// The disk failed.
    #[error("disk: {0}")]
    Disk(#[from] io::Error),
}

pub(crate) struct Store {
    pub(crate) config: Arc<Config>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) incarnation: Incarnation,
    pub(crate) shard: Mutex<Shard>,
    pub(crate) blocks: BlockCache,
    id: u64,
    boot: u64,
    manifest: Mutex<Option<Manifest>>,
    next_generation: AtomicU64,
    next_segment: AtomicU64,
    journal_dir: Arc<Path>,
    segment_dir: PathBuf,
    _lock: Box<dyn Any + Send + Sync>,
}

/// What is left to do after a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flushed {
    Nothing,
    Done,
    DiskFull,
    Failed,
}

fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = vec![0; file.len()?.min(1 << 16) as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// Replaces a small file; durable when it returns.
fn replace_file(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let unfinished = dir.join(format!("{name}.new"));
    match disk.remove(&unfinished) {
        // Gone for good before its name serves again: else a crash may rename what was left behind instead of what is written now.
        Ok(()) => disk.sync_dir(dir)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = disk.open(&unfinished, OpenMode::CreateNew)?;
    file.write_all_at(bytes, 0)?;
    file.sync_data()?;
    disk.rename(&unfinished, &dir.join(name))?;
    disk.sync_dir(dir)
}

struct Opening<'a> {
    config: &'a Config,
    disk: &'a dyn Disk,
    journal_dir: &'a Path,
}

impl Opening<'_> {
    fn format(&self) -> Result<Format, OpenError> {
        let dir = &self.config.data_dir;
        match read_file(self.disk, &dir.join("FORMAT"))? {
            Some(bytes) => match Format::decode(&bytes) {
                Err(FormatError::Newer(version)) => Err(OpenError::Newer(version)),
                Err(FormatError::Damaged) => Err(OpenError::Format),
                Ok(format) if format.cluster != self.config.cluster => {
                    Err(OpenError::OtherCluster(format.cluster))
                }
                Ok(format) => Ok(format),
            },
            None => {
                let names = self.disk.list(dir)?;
                if names.iter().any(|name| name == "manifest.redb") {
                    return Err(OpenError::Format);
                }
                self.fresh()
            }
        }
    }

    /// Formats a store: identities first, `FORMAT` last, so that a store with a `FORMAT` has an identity.
    fn fresh(&self) -> Result<Format, OpenError> {
        let mut rng = self.config.seed.map_or_else(Rng::from_system, Rng::seeded);
        let format = Format { store: rng.next_u64(), cluster: self.config.cluster.clone() };
        let incarnation = Incarnation(rng.next_u64() >> 1 | 1);
        let identity = Identity { store: format.store, incarnation, boot: 0, data_loss: false };
        self.write_identity(&identity)?;
        replace_file(self.disk, &self.config.data_dir, "FORMAT", &format.encode())?;
        Ok(format)
    }

    fn write_identity(&self, identity: &Identity) -> io::Result<()> {
        replace_file(self.disk, &self.config.data_dir, "IDENTITY", &identity.encode())?;
        replace_file(self.disk, self.journal_dir, "IDENTITY", &identity.encode())
    }

    /// The identity of the store, marked as having lost data unless both directories tell the same story.
    fn identity(&self, format: &Format) -> io::Result<Identity> {
        let read = |dir: &Path| -> io::Result<Option<Identity>> {
            let bytes = read_file(self.disk, &dir.join("IDENTITY"))?;
            let identity = bytes.and_then(|bytes| Identity::decode(&bytes));
            Ok(identity.filter(|identity| identity.store == format.store))
        };
        Ok(match (read(&self.config.data_dir)?, read(self.journal_dir)?) {
            (Some(a), Some(b)) => {
                // The data directory is written first: a crash leaves it one start ahead.
                let torn = a.boot == b.boot || a.boot == b.boot + 1;
                let sound = a.incarnation == b.incarnation && torn;
                let data_loss = a.data_loss || b.data_loss || !sound;
                if sound && a.boot > b.boot {
                    // Caught up first, so that they are never two apart.
                    replace_file(self.disk, self.journal_dir, "IDENTITY", &a.encode())?;
                }
                Identity { boot: a.boot.max(b.boot), data_loss, ..a }
            }
            (Some(one), None) | (None, Some(one)) => Identity { data_loss: true, ..one },
            (None, None) => {
                // Nobody can say which incarnation this was: it gets one that nobody relies on.
                let mut rng = self.config.seed.map_or_else(Rng::from_system, |s| Rng::seeded(s ^ 1));
                let incarnation = Incarnation(rng.next_u64() >> 1 | 1);
                Identity { store: format.store, incarnation, boot: 1 << 20, data_loss: true }
            }
        })
    }

    fn manifest(&self, identity: &mut Identity) -> Result<(Option<Manifest>, Content), OpenError> {
        let dir = &self.config.data_dir;
        let known = self.disk.list(dir)?.iter().any(|name| name == "manifest.redb");
        identity.data_loss |= identity.boot > 0 && !known;
        identity.data_loss &= !self.config.has(Mutant::IdentityIgnored);
        let empty = || Content { mark: 1, next_segment: 1, ..Content::default() };
        if identity.data_loss && !known {
            return Ok((None, empty()));
        }
        match Manifest::open(self.disk, &dir.join("manifest.redb")) {
            Ok((manifest, content)) => {
                // A directory that went back in time.
                identity.data_loss |= content.boot > identity.boot;
                Ok((Some(manifest), content))
            }
            Err(ManifestError::Io(error)) => Err(error.into()),
            Err(ManifestError::Damaged) => {
                identity.data_loss = true;
                Ok((None, empty()))
            }
        }
    }
}

impl Store {
    pub(crate) fn open(
        config: Config,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        config.validate()?;
        let config = Arc::new(config);
        let (dir, journal_dir) = (config.data_dir.clone(), journal::dir(&config));
        let segment_dir = dir.join("segments");
        disk.create_dir_all(&dir)?;
        let lock = disk.lock(&dir.join("LOCK")).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::InUse,
            _ => OpenError::Disk(error),
        })?;
        if let Some(bytes) = read_file(&*disk, &dir.join("FORMAT"))?
            && let Err(FormatError::Newer(version)) = Format::decode(&bytes)
        {
            return Err(OpenError::Newer(version));
        }
        disk.create_dir_all(&journal_dir)?;
        disk.create_dir_all(&segment_dir)?;
        disk.sync_dir(&dir)?;
        if let Some(parent) = dir.parent() {
            disk.sync_dir(parent)?;
        }
        let opening = Opening { config: &config, disk: &*disk, journal_dir: &journal_dir };
        let format = opening.format()?;
        let mut identity = opening.identity(&format)?;
        let (manifest, content) = opening.manifest(&mut identity)?;
        identity.boot += 1;
        opening.write_identity(&identity)?;
        let marks = (content.mark, content.durable);
        let replay = journal::replay(&*disk, &journal_dir, format.store, marks, &config)?;
        if replay.damaged && !identity.data_loss {
            identity.data_loss = true;
            opening.write_identity(&identity)?;
        }
        let status = if identity.data_loss { Status::DataLoss } else { Status::Serving };
        let now = clock.mono();
        let open = |row| Arc::new(Segment::open(&*disk, &segment_dir, row));
        let segments = SegmentSet { all: content.segments.into_iter().map(open).collect() };
        let next_segment = content.next_segment;
        let mut shard = Shard::new(config.clone(), Arc::new(segments), status);
        for (id, row) in content.ledgers {
            shard.ledgers.insert(id, Ledger { row, ..Ledger::default() });
        }
        let mut rest = replay.records;
        rest.drain(..).for_each(|record: Record| shard.replay(record, now));
        let store = Self {
            blocks: BlockCache::new(config.block_cache),
            incarnation: identity.incarnation,
            shard: Mutex::new(shard),
            id: format.store,
            boot: identity.boot,
            manifest: Mutex::new(manifest),
            next_generation: AtomicU64::new(identity.boot << 32),
            next_segment: AtomicU64::new(next_segment),
            journal_dir,
            segment_dir,
            _lock: lock,
            config,
            disk,
            clock,
        };
        if status == Status::Serving {
            store.remove_orphans()?;
            let end = if store.config.has(Mutant::ReplayedFileAppended) { replay.end } else { None };
            store.start_journal((content.mark, replay.stopped), end, replay.files)?;
        }
        Ok(store)
    }

    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    /// A replayed file is never appended to: the first batch of a new one says where replay stopped.
    fn start_journal(
        &self,
        (mark, stopped): (u64, u64),
        end: Option<(usize, u64)>,
        mut files: Vec<(crate::shard::JournalFile, u64)>,
    ) -> io::Result<()> {
        if let Some((at, end)) = end {
            let (file, _) = files.remove(at);
            self.shard.lock().append(stopped, end, file, files);
            return Ok(());
        }
        let size = self.config.journal_file_size_first;
        let spent = files.extract_if(.., |(_, last)| *last < mark).map(|(file, _)| file);
        let mut free: Vec<_> = spent.collect();
        let first = self.prepare(free.pop(), size)?;
        self.shard.lock().begin(stopped, first, files, free);
        let mut buf = AlignedBuf::zeroed(4096);
        while let Some(batch) = { self.shard.lock().next_batch() } {
            let good = self.write(&batch, &mut buf).is_ok();
            let answers = self.shard.lock().written(batch.head.seq, good);
            answers.into_iter().for_each(crate::shard::answer);
            if !good {
                return Err(io::Error::other("the first journal write failed"));
            }
        }
        Ok(())
    }

    fn prepare(
        &self,
        recycled: Option<crate::shard::JournalFile>,
        size: u64,
    ) -> io::Result<crate::shard::JournalFile> {
        let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
        journal::prepare(&*self.disk, &self.journal_dir, self.id, generation, recycled, size)
    }

    /// Files of flushes that were never committed; their entries are still in the journal.
    fn remove_orphans(&self) -> io::Result<()> {
        let segments = self.shard.lock().segments.clone();
        let names = self.disk.list(&self.segment_dir)?;
        let known = |name: &String| {
            segments.all.iter().any(|s| segments::path(&self.segment_dir, s.row.id).ends_with(name))
        };
        for name in names.iter().filter(|name| name.ends_with(".seg") && !known(name)) {
            self.disk.remove(&self.segment_dir.join(name))?;
        }
        Ok(())
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
        match batch.file.write_all_at(bytes, batch.offset) {
            // Only the defect of that name asks again.
            Err(_) if self.config.has(Mutant::SyncRetried) => batch.file.write_all_at(bytes, batch.offset),
            other => other,
        }
    }

    /// Makes a journal file ready if one is wanted. Whether it was tried.
    pub(crate) fn prepare_once(&self) -> (bool, Vec<Answer>) {
        let Some(recycled) = self.shard.lock().wants_file() else { return (false, Vec::new()) };
        match self.prepare(recycled, self.config.journal_file_size) {
            Ok(file) => {
                self.shard.lock().add_spare(file);
                (true, Vec::new())
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::error!(%error, "no room for a journal file");
                self.shard.lock().disk_full();
                (false, Vec::new())
            }
            Err(error) => {
                tracing::error!(%error, "journal file cannot be made");
                (false, self.shard.lock().fail())
            }
        }
    }

    /// Flushes what is in the cache, and collects segments in which nothing lives.
    pub(crate) fn flush_once(&self) -> (Flushed, Vec<Answer>) {
        let Some(plan) = self.shard.lock().begin_flush() else { return (Flushed::Nothing, Vec::new()) };
        let id = self.next_segment.fetch_add(1, Ordering::Relaxed);
        let result = self.flush(&plan, id);
        match result {
            Ok(segment) => {
                let mut shard = self.shard.lock();
                let mut set = (*shard.segments).clone();
                set.all.extend(segment);
                shard.end_flush(plan, Arc::new(set));
                drop(shard);
                match self.collect() {
                    Ok(()) => (Flushed::Done, Vec::new()),
                    Err(error) => self.flush_failed(&error),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::error!(%error, "no room to flush");
                // The room it took is wanted; an uncommitted file is removed at the next start as well.
                let _best_effort = self.disk.remove(&segments::path(&self.segment_dir, id));
                self.shard.lock().undo_flush(plan, self.clock.mono());
                (Flushed::DiskFull, Vec::new())
            }
            Err(error) => self.flush_failed(&error),
        }
    }

    fn flush_failed(&self, error: &io::Error) -> (Flushed, Vec<Answer>) {
        tracing::error!(%error, "flush failed: the store stops");
        (Flushed::Failed, self.shard.lock().fail_flush())
    }

    fn flush(&self, plan: &crate::shard::FlushPlan, id: u64) -> io::Result<Option<Arc<Segment>>> {
        let row = segments::write(&*self.disk, &self.segment_dir, id, plan, &self.config)?;
        let mut slot = self.manifest.lock();
        let manifest = slot.as_ref().ok_or_else(|| io::Error::other("no manifest"))?;
        if let Err(error) = manifest.commit(plan, row.as_ref(), id + 1, self.boot, &self.config) {
            if error.kind() != io::ErrorKind::StorageFull {
                return Err(error);
            }
            // redb takes nothing more after an error; a new look also tells whether the transaction is in.
            *slot = None;
            let path = self.config.data_dir.join("manifest.redb");
            let opened = Manifest::open(&*self.disk, &path);
            let (manifest, content) = opened.map_err(|_| io::Error::other("manifest does not reopen"))?;
            *slot = Some(manifest);
            if content.mark != plan.mark || content.next_segment != id + 1 {
                return Err(error);
            }
        }
        Ok(row.map(|row| Arc::new(Segment::open(&*self.disk, &self.segment_dir, row))))
    }

    /// Removes segments in which no ledger lives: first from the manifest, then from the disk. A segment whose footer cannot be
    /// read is kept.
    fn collect(&self) -> io::Result<()> {
        let mut shard = self.shard.lock();
        let deleted = std::mem::take(&mut shard.deleted);
        if deleted.is_empty() {
            return Ok(());
        }
        let set = shard.segments.clone();
        drop(shard);
        let touched = |s: &&Arc<Segment>| deleted.iter().any(|l| s.row.ledgers.contains(l));
        let mut dead = Vec::new();
        for segment in set.all.iter().filter(touched) {
            let Ok(footer) = segment.footer() else {
                dead.extend(self.config.has(Mutant::GcTrustsDamage).then_some(segment.row.id));
                continue;
            };
            let shard = self.shard.lock();
            let gone = |l| shard.ledgers.get(l).is_some_and(|l| l.row.tombstone);
            if footer.runs.iter().all(|run| gone(&run.ledger)) {
                dead.push(segment.row.id);
            }
        }
        if dead.is_empty() {
            return Ok(());
        }
        if let Some(manifest) = self.manifest.lock().as_ref() {
            manifest.forget(&dead)?;
        }
        let mut shard = self.shard.lock();
        let mut set = (*shard.segments).clone();
        set.all.retain(|s| !dead.contains(&s.row.id));
        shard.segments = Arc::new(set);
        drop(shard);
        for id in dead {
            self.disk.remove(&segments::path(&self.segment_dir, id))?;
        }
        self.disk.sync_dir(&self.segment_dir)
    }
}
