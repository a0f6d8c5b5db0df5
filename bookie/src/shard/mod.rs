//! The machine of a shard: ledger state, write cache, and what of it is journalled. No disk, no threads, no clock: operations go
//! in, batches and answers come out.
//!
//! Owner: whoever drives it, one caller at a time. Invariants:
//! - A batch holds records in the order of admission; answers leave in the order of batches, when all batches before are written.
//! - What is admitted is visible to reads; nothing is answered before it is durable.
//! - `mark` of a flush: every record of a batch below it is in the flushed entries and states.

mod admit;
pub(crate) mod cache;
mod flush;
#[cfg(test)]
mod tests;

use crate::Config;
use crate::format::journal::{BatchHead, Record, batch_len};
use crate::format::row::LedgerRow;
use crate::segments::SegmentSet;
use crate::space::Room;
use cache::{Cache, ENTRY_COST, Frozen};
pub(crate) use flush::FlushPlan;
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::{Add, AddDone, AddError, ControlError};
use geminga_common::clock::Mono;
use geminga_common::disk::DiskFile;
use geminga_common::ids::{EntryId, LedgerId, Term};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

pub(crate) type ControlDone = Box<dyn FnOnce(Result<(), ControlError>) + Send>;

/// Ledger ids are counters: one multiplication spreads them.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }
}

pub(crate) type IdMap<V> = HashMap<LedgerId, V, BuildHasherDefault<IdHasher>>;

/// Who is told.
pub(crate) enum Done {
    Add(AddDone),
    Control(ControlDone),
}

/// An answer to be given once no lock is held.
pub(crate) type Answer = (Done, Result<(), AddError>);

pub(crate) fn answer((done, result): Answer) {
    match done {
        Done::Add(done) => done(result),
        Done::Control(done) => done(result.map_err(|error| match error {
            AddError::StaleTerm(term) => ControlError::StaleTerm(term),
            AddError::Tombstoned => ControlError::Tombstoned,
            AddError::Unknown(why) => ControlError::Unknown(why),
            _ => ControlError::Failed,
        })),
    }
}

/// Something to admit. `copies`: entries of a closed ledger, taken whatever its term; no term changes.
pub(crate) enum Op {
    Add {
        add: Add,
        copies: bool,
        checked: Result<(), AddError>,
        stored: Option<Stored>,
        done: AddDone,
    },
    /// Answered once everything admitted before it is durable.
    Barrier {
        done: ControlDone,
    },
    Fence {
        ledger: LedgerId,
        term: Term,
        done: ControlDone,
    },
    Seal {
        ledger: LedgerId,
        last: Option<EntryId>,
        done: ControlDone,
    },
    Delete {
        ledger: LedgerId,
        done: ControlDone,
    },
    Watermark {
        to: LedgerId,
        done: ControlDone,
    },
}

impl Op {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Op::Add { add, .. } => 64 + add.entries.iter().map(cost).sum::<usize>(),
            _ => 64,
        }
    }

    pub(crate) fn refuse(self, error: AddError) -> Answer {
        match self {
            Op::Add { done, .. } => (Done::Add(done), Err(error)),
            Op::Fence { done, .. }
            | Op::Seal { done, .. }
            | Op::Delete { done, .. }
            | Op::Barrier { done }
            | Op::Watermark { done, .. } => (Done::Control(done), Err(error)),
        }
    }
}

/// What segments held of an add's ids when they were asked at this flush.
pub(crate) struct Stored {
    pub(crate) flushes: u64,
    pub(crate) crcs: BTreeMap<EntryId, u32>,
}

/// What became of an operation.
pub(crate) enum Admitted {
    /// Waits for its batch.
    Queued,
    /// Answered at once.
    Answered(Answer),
    /// Segments must be asked which of its ids they hold.
    Lookup(Op),
    /// No room now: offer it again after a flush or a new journal file.
    Blocked(Op),
}

pub(crate) fn cost(entry: &Entry) -> usize {
    entry.payload.len() + ENTRY_COST
}

#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) row: LedgerRow,
    pub(crate) active: Cache,
    pub(crate) frozen: Option<Frozen>,
    /// In the list of ledgers that the next flush must take.
    pub(crate) changed: bool,
    /// The tombstone is in the manifest: from now on its bytes may go.
    pub(crate) buried: bool,
}

impl Ledger {
    pub(crate) fn get(&self, id: EntryId) -> Option<&Entry> {
        self.active.get(id).or_else(|| self.frozen.as_ref().and_then(|f| cache::find(f, id)))
    }

    /// Whether nothing of it is on its way to the manifest.
    pub(crate) fn settled(&self) -> bool {
        !self.changed && self.active.is_empty() && self.frozen.is_none()
    }

    /// The last id that counts: strays beyond the seal do not.
    pub(crate) fn visible(&self, id: EntryId) -> bool {
        !self.row.tombstone && self.row.sealed.is_none_or(|last| Some(id) <= last)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    Serving,
    DiskFull,
    /// A write or sync failed: nothing is taken or vouched for any more.
    Failed,
    /// Something acknowledged is missing.
    DataLoss,
}

/// A journal file as the machine knows it.
#[derive(Clone)]
pub(crate) struct JournalFile {
    pub(crate) generation: u64,
    /// The generation that it was made with and that its name tells: a recycled file keeps its name.
    pub(crate) made: u64,
    pub(crate) capacity: u64,
    pub(crate) file: Arc<dyn DiskFile>,
}

/// A batch to be written.
pub(crate) struct Batch {
    pub(crate) head: BatchHead,
    pub(crate) records: Vec<Record>,
    pub(crate) records_len: usize,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) offset: u64,
}

struct InFlight {
    written: bool,
    answers: Vec<Done>,
}

pub(crate) struct Shard {
    pub(crate) config: Arc<Config>,
    pub(crate) ledgers: IdMap<Ledger>,
    pub(crate) status: Status,
    pub(crate) segments: Arc<SegmentSet>,
    changed: Vec<LedgerId>,
    /// Records admitted and not in a batch; answers wait for the record with their number.
    pending: VecDeque<Record>,
    pending_bytes: usize,
    pending_answers: VecDeque<(u64, Done)>,
    admitted: u64,
    batched: u64,
    in_flight: VecDeque<InFlight>,
    next_seq: u64,
    durable: u64,
    current: Option<JournalFile>,
    used: u64,
    spares: VecDeque<JournalFile>,
    retired: Vec<(JournalFile, u64)>,
    free: Vec<JournalFile>,
    cache_bytes: usize,
    frozen_bytes: usize,
    flushing: bool,
    pub(crate) flushes: u64,
    dirty_since: Option<Mono>,
    journal_bytes: u64,
    idle_marked: bool,
    /// An add found no room for want of a journal file.
    starved: bool,
    /// Ledgers whose tombstones were committed since the last collection.
    pub(crate) buried: Vec<LedgerId>,
    /// No add is taken for a ledger up to here, whatever its term.
    pub(crate) dead_below: Option<LedgerId>,
    /// What of it is committed: state below may be forgotten.
    pub(crate) dead_below_durable: Option<LedgerId>,
    /// State may be there that the watermark covers.
    pub(crate) covered_due: bool,
    pub(crate) room: Room,
    /// Bytes that recoveries may still write while the disk is too full for others.
    recovery_left: u64,
    /// The same for what consumers acknowledge.
    cursors_left: u64,
}

impl Shard {
    pub(crate) fn new(config: Arc<Config>, segments: Arc<SegmentSet>, status: Status) -> Self {
        Self {
            recovery_left: config.recovery_reserve,
            cursors_left: config.cursor_reserve,
            config,
            ledgers: IdMap::default(),
            status,
            segments,
            changed: Vec::new(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            pending_answers: VecDeque::new(),
            admitted: 0,
            batched: 0,
            in_flight: VecDeque::new(),
            next_seq: 1,
            durable: 0,
            current: None,
            used: 0,
            spares: VecDeque::new(),
            retired: Vec::new(),
            free: Vec::new(),
            cache_bytes: 0,
            frozen_bytes: 0,
            flushing: false,
            flushes: 0,
            dirty_since: None,
            journal_bytes: 0,
            idle_marked: true,
            starved: false,
            buried: Vec::new(),
            dead_below: None,
            dead_below_durable: None,
            covered_due: false,
            room: Room::Open,
        }
    }

    /// Takes over from replay: batches go on at `seq`, in a file of this start's generation.
    pub(crate) fn begin(
        &mut self,
        seq: u64,
        current: JournalFile,
        retired: Vec<(JournalFile, u64)>,
        free: Vec<JournalFile>,
    ) {
        self.free = free;
        self.next_seq = seq;
        self.durable = seq - 1;
        self.used = 4096;
        self.current = Some(current);
        self.retired = retired;
        self.push(Record::ReplayStopped { seq });
    }

    /// Only for the defect of that name: goes on where replay stopped.
    pub(crate) fn append(
        &mut self,
        seq: u64,
        at: u64,
        current: JournalFile,
        retired: Vec<(JournalFile, u64)>,
    ) {
        self.begin(seq, current, retired, Vec::new());
        self.pending.clear();
        self.pending_bytes = 0;
        self.batched = self.admitted;
        self.used = at;
    }

    /// Above every batch of this start.
    pub(crate) fn resume_at(&self) -> u64 {
        self.next_seq + 1
    }

    /// The last batch that is durable with all before it.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    fn push(&mut self, record: Record) {
        self.pending_bytes += record.len();
        self.admitted += 1;
        self.pending.push_back(record);
    }

    /// Puts a ledger in the list of the next flush.
    pub(crate) fn touch(&mut self, id: LedgerId, now: Mono) {
        let ledger = self.ledgers.entry(id).or_default();
        if !ledger.changed {
            ledger.changed = true;
            self.changed.push(id);
        }
        self.dirty_since.get_or_insert(now);
    }

    /// Answers when the records admitted so far are durable.
    fn queue(&mut self, done: Done) -> Admitted {
        if !self.pending.is_empty() {
            self.pending_answers.push_back((self.admitted, done));
        } else if let Some(last) = self.in_flight.back_mut() {
            last.answers.push(done);
        } else {
            return Admitted::Answered((done, Ok(())));
        }
        Admitted::Queued
    }

    pub(crate) fn cached_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// What the disk has room for from now on. Whether that changed.
    pub(crate) fn set_room(&mut self, room: Room) -> bool {
        if room < Room::RecoveryOnly {
            self.recovery_left = self.config.recovery_reserve;
            self.cursors_left = self.config.cursor_reserve;
        }
        std::mem::replace(&mut self.room, room) != room
    }

    /// Whether records wait for a batch.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Asks for a marker that says how far the journal is durable, once after the last answer.
    pub(crate) fn mark_idle(&mut self) {
        if !self.idle_marked && self.pending.is_empty() && self.in_flight.is_empty() {
            self.idle_marked = true;
            self.push(Record::Idle);
        }
    }

    /// Whether an idle marker is still owed.
    pub(crate) fn owes_marker(&self) -> bool {
        !self.idle_marked && matches!(self.status, Status::Serving | Status::DiskFull)
    }

    /// The next batch to write; `None` when there is none, or no file for it.
    pub(crate) fn next_batch(&mut self) -> Option<Batch> {
        if self.pending.is_empty() || matches!(self.status, Status::Failed | Status::DataLoss) {
            return None;
        }
        let left = |s: &Self| s.current.as_ref().map_or(0, |c| c.capacity - s.used);
        if (batch_len(self.pending[0].len()) as u64) > left(self) || self.roll_is_better(left(self)) {
            self.roll()?;
        }
        let limit =
            (left(self) as usize).min(self.config.batch_bytes_max().max(self.pending[0].len() + 4096));
        let (mut records, mut len) = (Vec::with_capacity(self.pending.len()), 0);
        while let Some(record) = self.pending.front() {
            if !records.is_empty() && batch_len(len + record.len()) > limit {
                break;
            }
            len += record.len();
            records.extend(self.pending.pop_front());
        }
        self.pending_bytes -= len;
        self.batched += records.len() as u64;
        let mut answers = Vec::new();
        while self.pending_answers.front().is_some_and(|(at, _)| *at <= self.batched) {
            answers.extend(self.pending_answers.pop_front().map(|(_, done)| done));
        }
        let current = self.current.as_ref()?;
        let head = BatchHead { generation: current.generation, seq: self.next_seq, durable: self.durable };
        let batch = Batch { head, records_len: len, file: current.file.clone(), offset: self.used, records };
        self.used += batch_len(len) as u64;
        self.journal_bytes += batch_len(len) as u64;
        self.idle_marked = matches!(batch.records[..], [Record::Idle]);
        self.next_seq += 1;
        self.in_flight.push_back(InFlight { written: false, answers });
        Some(batch)
    }

    /// Whether the next pending record has a place: room in the current file, or a spare one.
    pub(crate) fn can_write(&self) -> bool {
        let left = self.current.as_ref().map_or(0, |c| c.capacity - self.used);
        let fits = |record: &Record| batch_len(record.len()) as u64 <= left;
        self.pending.front().is_some_and(|record| fits(record) || !self.spares.is_empty())
    }

    fn roll_is_better(&self, left: u64) -> bool {
        let wanted = batch_len(self.pending_bytes.min(self.config.batch_bytes_max())) as u64;
        wanted > left && !self.spares.is_empty()
    }

    fn roll(&mut self) -> Option<()> {
        let next = self.spares.pop_front()?;
        let before = self.current.replace(next)?;
        self.retired.push((before, self.next_seq - 1));
        self.used = 4096;
        Some(())
    }

    /// Tells how the write of a batch went; gives the answers that are due.
    pub(crate) fn written(&mut self, seq: u64, good: bool) -> Vec<Answer> {
        if !good {
            self.status = Status::Failed;
        }
        if self.status == Status::Failed {
            let unknown = |done| (done, Err(AddError::Unknown("journal write failed")));
            let waiting = self.in_flight.drain(..).flat_map(|b| b.answers);
            let pending = self.pending_answers.drain(..).map(|(_, done)| done);
            let out = waiting.chain(pending).map(unknown).collect();
            self.pending.clear();
            return out;
        }
        let at = (seq - self.durable - 1) as usize;
        self.in_flight[at].written = true;
        let mut out = Vec::new();
        while self.in_flight.front().is_some_and(|b| b.written) {
            self.durable += 1;
            let answers = self.in_flight.pop_front().map(|b| b.answers).unwrap_or_default();
            out.extend(answers.into_iter().map(|done| (done, Ok(()))));
        }
        out
    }

    /// Gives back the answers that will never be due: the store is being stopped.
    pub(crate) fn abandon(&mut self) -> Vec<Answer> {
        let waiting = self.pending_answers.drain(..);
        waiting.map(|(_, done)| (done, Err(AddError::Unknown("shut down")))).collect()
    }

    /// Whether the cache, not the journal, keeps adds waiting.
    pub(crate) fn cache_is_tight(&self) -> bool {
        !self.needs_file() || self.cache_bytes > self.config.write_cache / 2
    }

    /// Stops for good after a failure outside the journal.
    pub(crate) fn fail(&mut self) -> Vec<Answer> {
        self.written(0, false)
    }

    /// Whether another file should be prepared.
    pub(crate) fn needs_file(&self) -> bool {
        let in_use = self.current.as_ref().is_some_and(|current| self.used > current.capacity / 8);
        (in_use || self.starved) && self.spares.is_empty() && self.status != Status::Failed
    }

    /// Whether another file should be prepared, and a recycled one to do it with.
    pub(crate) fn wants_file(&mut self) -> Option<Option<JournalFile>> {
        let wanted = self.needs_file().then(|| self.free.pop());
        self.starved = false;
        wanted
    }

    pub(crate) fn add_spare(&mut self, file: JournalFile) {
        self.spares.push_back(file);
        if self.status == Status::DiskFull && !self.flushing {
            self.status = Status::Serving;
        }
    }
}
