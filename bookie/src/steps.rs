//! A store without threads, driven step by step: crash tests decide what runs when.

use crate::segments::SegmentSet;
use crate::shard::{Admitted, Batch, Op, answer};
use crate::store::{Flushed, OpenError, Store};
use crate::{Config, Health};
use geminga_bookie_client::rpc::{Add, AddDone, ControlError, LedgerStat, Read, ReadAnswer, Tail};
use geminga_common::clock::Clock;
use geminga_common::disk::{AlignedBuf, Disk};
use geminga_common::ids::{EntryId, Incarnation, LedgerId, Term};
use std::sync::Arc;

/// A store whose every step is the caller's. Dropping it is a crash.
pub struct Steps {
    store: Store,
    buf: AlignedBuf,
    batches: Vec<Option<Batch>>,
}

/// Told when a control operation is durable or refused.
pub type ControlDone = Box<dyn FnOnce(Result<(), ControlError>) + Send>;

impl Steps {
    /// Opens a store.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: Config, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        Ok(Self {
            store: Store::open(config, disk, clock)?,
            buf: AlignedBuf::zeroed(4096),
            batches: Vec::new(),
        })
    }

    /// Admits an add. False: there was no room, and `done` was told nothing.
    pub fn add(&mut self, add: Add, done: AddDone) -> bool {
        let checked = self.store.check(&add);
        self.admit(Op::Add { add, checked, stored: None, done })
    }

    /// Admits a fence.
    pub fn fence(&mut self, ledger: LedgerId, term: Term, done: ControlDone) {
        self.admit(Op::Fence { ledger, term, done });
    }

    /// Admits a seal.
    pub fn seal(&mut self, ledger: LedgerId, last: Option<EntryId>, done: ControlDone) {
        self.admit(Op::Seal { ledger, last, done });
    }

    /// Admits a deletion.
    pub fn delete(&mut self, ledger: LedgerId, done: ControlDone) {
        self.admit(Op::Delete { ledger, done });
    }

    /// Told once everything admitted so far is durable.
    pub fn barrier(&mut self, done: ControlDone) {
        self.admit(Op::Barrier { done });
    }

    fn admit(&mut self, op: Op) -> bool {
        match self.store.admit(op) {
            Admitted::Queued => true,
            Admitted::Answered(told) => {
                answer(told);
                true
            }
            Admitted::Lookup(op) => {
                let op = self.store.resolve(op);
                self.admit(op)
            }
            Admitted::Blocked(_) => false,
        }
    }

    /// Builds a batch that [`Steps::write`] will write; false when there is none. Several may be outstanding.
    pub fn next_batch(&mut self) -> bool {
        let batch = self.store.shard.lock().next_batch();
        let built = batch.is_some();
        self.batches.extend(batch.map(Some));
        built
    }

    /// Batches built and not yet written.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.batches.len()
    }

    /// Writes one of the outstanding batches, not only the first.
    pub fn write(&mut self, at: usize) {
        let Some(batch) = self.batches.remove(at) else { return };
        let good = self.store.write(&batch, &mut self.buf).is_ok();
        let answers = self.store.shard.lock().written(batch.head.seq, good);
        answers.into_iter().for_each(answer);
        if !good {
            self.batches.clear();
        }
    }

    /// Writes all there is, in order.
    pub fn write_all(&mut self) {
        while self.outstanding() > 0 || self.next_batch() {
            self.write(0);
        }
    }

    /// Writes the idle marker.
    pub fn idle(&mut self) {
        self.store.shard.lock().mark_idle();
        self.write_all();
    }

    /// One flush, collection included; true unless it failed or found no room.
    pub fn flush(&mut self) -> bool {
        let (flushed, answers) = self.store.flush_once();
        answers.into_iter().for_each(answer);
        matches!(flushed, Flushed::Done | Flushed::Nothing)
    }

    /// Prepares a journal file if one is wanted.
    pub fn prepare(&mut self) {
        let (_, answers) = self.store.prepare_once();
        answers.into_iter().for_each(answer);
    }

    /// Reads.
    #[must_use]
    pub fn read(&self, read: Read) -> ReadAnswer {
        self.store.read(read)
    }

    /// The tail of a ledger, without fencing.
    ///
    /// # Errors
    /// A deleted ledger or a failed store.
    pub fn tail(&self, ledger: LedgerId, from: EntryId) -> Result<Tail, ControlError> {
        self.store.tail(ledger, from)
    }

    /// What is known of a ledger, durable or not: what is told to others waits for [`Steps::barrier`].
    ///
    /// # Errors
    /// A deleted ledger or a failed store.
    pub fn stat(&self, ledger: LedgerId) -> Result<LedgerStat, ControlError> {
        self.store.stat(ledger)
    }

    /// What the store can do.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.store.shard.lock().status {
            crate::shard::Status::Failed => Health::Failed,
            crate::shard::Status::DataLoss => Health::DataLoss,
            _ => Health::Serving,
        }
    }

    /// Incarnation of the store.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.store.incarnation
    }

    /// Segments there are.
    #[must_use]
    pub fn segments(&self) -> usize {
        let set: Arc<SegmentSet> = self.store.shard.lock().segments.clone();
        set.all.len()
    }
}
