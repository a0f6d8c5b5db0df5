//! A shard begins to work: what the manifest and the journal know goes into the machine, and a journal of this start is begun.
//!
//! Owner of all that is changed: the store that is being made. Its start is counted, durably, before anything else is written; a replayed
//! file of the journal is never appended to; nothing is removed but what the manifest has let go of or never had.

use super::identity::write_identity;
use super::{Found, OpenError, Place, Purpose};
use crate::Config;
use crate::format::identity::Identity;
use crate::format::losses::AcceptedLoss;
use crate::manifest::{Change, Content, JournalRow};
use crate::mutant::{Mutant, active};
use crate::segments::{self, BlockCache, Segment, SegmentSet};
use crate::shard::{JournalFile, Ledger, Shard, Status};
use crate::store::files::replace_file;
use crate::store::room::Ballast;
use crate::store::scrub::Scrub;
use crate::store::{Counts, Locks, Store};
use geminga_common::clock::Clock;
use geminga_common::disk::{AlignedBuf, Disk};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Context = (Arc<Config>, Arc<dyn Disk>, Arc<dyn Clock>);

impl Store {
    pub(super) fn open(
        purpose: Purpose,
        (config, disk, clock): Context,
        (place, id, mut identity, accepted): (Place, u64, Identity, Arc<[AcceptedLoss]>),
        found: Found,
        locks: Locks,
    ) -> Result<Self, OpenError> {
        if purpose != Purpose::View {
            identity.boot += 1;
            write_identity(&*disk, &place, &identity)?;
        }
        let Found { manifest, content, segments, journal } = found;
        if purpose != Purpose::View {
            journal.tell_dropped(&place);
        }
        let replay = journal.replay(&*disk, &place)?;
        let status = if identity.data_loss { Status::DataLoss } else { Status::Serving };
        let store = Self {
            blocks: BlockCache::new(config.block_cache),
            incarnation: identity.incarnation,
            accepted,
            shard: Mutex::new(Shard::new(config.clone(), Arc::default(), status)),
            counts: Counts::default(),
            id,
            boot: identity.boot,
            resume_at: replay.resume_at,
            manifest: Mutex::new(manifest),
            next_generation: AtomicU64::new(identity.boot << 32),
            next_segment: AtomicU64::new(content.next_segment),
            segment_dir: place.data_dir.join("segments"),
            ballast: Mutex::new(Ballast::default()),
            tidy: Mutex::default(),
            unlinked: Mutex::default(),
            leaving: Mutex::default(),
            scrub: Mutex::new(Scrub::at(content.scrub)),
            _locks: locks,
            place,
            config,
            disk,
            clock,
        };
        let mark = content.mark;
        store.load(&content, segments, replay.records);
        if status == Status::Serving {
            store.remove_orphans(&content)?;
            let end = if active(Mutant::ReplayedFileAppended) { replay.end } else { None };
            store.start_journal((mark, replay.stopped), end, replay.files)?;
            if !identity.journaled {
                let identity = Identity { journaled: true, ..identity };
                replace_file(&*store.disk, &store.place.data_dir, "IDENTITY", &identity.encode())?;
            }
            store.adopt_ballast();
            store.look();
        }
        Ok(store)
    }

    /// Puts what the manifest and the journal know into the machine.
    fn load(
        &self,
        content: &Content,
        segments: Vec<Arc<Segment>>,
        records: Vec<crate::format::journal::Record>,
    ) {
        for block in &content.bad {
            let segment = segments.iter().find(|s| s.row.id == block.segment);
            segment.map(|segment| segment.mark_bad(block.offset));
        }
        for block in &content.let_go {
            if let Some(segment) = segments.iter().find(|s| s.row.id == block.segment) {
                segment.let_go(block.offset);
            }
        }
        let now = self.clock.mono();
        let mut shard = self.shard.lock();
        shard.segments = Arc::new(SegmentSet { all: segments });
        (shard.dead_below, shard.dead_below_durable) = (content.dead_below, content.dead_below);
        shard.covered_due = content.dead_below.is_some();
        for (id, row) in &content.ledgers {
            let ledger = Ledger { row: row.clone(), buried: row.tombstone, ..Ledger::default() };
            shard.ledgers.insert(*id, ledger);
            if row.tombstone && row.flushed.is_some() {
                // A crash may have come between the tombstone and the collection.
                shard.buried.push(*id);
            }
        }
        records.into_iter().for_each(|record| shard.replay(record, now));
    }

    /// A replayed file is never appended to: the first batch of a new one says where replay stopped.
    fn start_journal(
        &self,
        (mark, stopped): (u64, u64),
        end: Option<(usize, u64)>,
        mut files: Vec<(JournalFile, u64)>,
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
        let needed = files.iter().map(|(file, _)| file).chain([&first]).map(JournalRow::from).collect();
        self.change(&Change { journal: needed, files_of: Some(self.boot), ..Change::default() })?;
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

    /// Removes files that are known to be of no use: those that the manifest has let go of, and those of flushes and merges that were
    /// never committed (their entries are in the journal or in the inputs). Any other file stays, whatever a listing lacks. What was never
    /// committed goes at once: its name is taken again.
    fn remove_orphans(&self, content: &Content) -> io::Result<()> {
        let next = self.next_segment.load(Ordering::Relaxed);
        let listed = |id: u64| content.segments.iter().any(|row| row.id == id);
        let mut uncommitted = Vec::new();
        for name in self.disk.list(&self.segment_dir)? {
            match segments::id_of(&name) {
                Some(id) if listed(id) || content.forgotten.contains(&id) => {}
                Some(id) if id >= next || active(Mutant::UnlistedRemoved) => uncommitted.push(id),
                None if segments::is_gone(&name) => self.goes_on_leaving(&name),
                _ => {
                    tracing::warn!(name, "a file in the segment directory that nothing speaks of stays there")
                }
            }
        }
        self.leave(&content.forgotten, &[])?;
        for id in &uncommitted {
            self.drop_file(&self.segment_path(*id))?;
        }
        if uncommitted.is_empty() { Ok(()) } else { self.disk.sync_dir(&self.segment_dir) }
    }
}
