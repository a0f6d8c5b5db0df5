//! A store without threads, driven step by step: crash tests decide what runs when.

use crate::format::losses::may_lack;
use crate::mutant::{Mutant, active};
use crate::shard::{Admitted, Batch, Op, answer};
use crate::store::{Flushed, OpenError, Store, open_all};
use crate::{Config, Health, Room};
use geminga_bookie_client::entry::Entry;
use geminga_bookie_client::rpc::{
    Add, AddDone, ControlError, IdRange, LedgerStat, Presence, Read, ReadAnswer, Tail,
};
use geminga_common::clock::Clock;
use geminga_common::disk::{AlignedBuf, Disk};
use geminga_common::ids::{EntryId, Incarnation, LedgerId, Term};
use std::sync::Arc;

/// A store whose every step is the caller's. Dropping it is a crash.
pub struct Steps {
    stores: Vec<Store>,
    buf: AlignedBuf,
    /// Built and not yet written, with the shard each belongs to.
    batches: Vec<(usize, Batch)>,
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
            stores: open_all(config, disk, clock)?,
            buf: AlignedBuf::zeroed(4096),
            batches: Vec::new(),
        })
    }

    fn of(&self, ledger: LedgerId) -> &Store {
        &self.stores[(ledger.0 % self.stores.len() as u64) as usize]
    }

    /// Admits an add. False: there was no room, and `done` was told nothing.
    pub fn add(&mut self, add: Add, done: AddDone) -> bool {
        let ledger = add.ledger;
        let checked = self.of(ledger).check(&add);
        self.admit(ledger, Op::Add { add, copies: false, checked, stored: None, done })
    }

    /// Admits copies of entries of a closed ledger. False: there was no room, and `done` was told nothing.
    pub fn copies(&mut self, ledger: LedgerId, entries: Vec<Entry>, done: AddDone) -> bool {
        let add = Add { ledger, term: Term(0), lac: None, lafr: None, attributes: None, entries };
        let checked = self.of(ledger).check(&add);
        self.admit(ledger, Op::Add { add, copies: true, checked, stored: None, done })
    }

    /// Whether something of a ledger that counts on `incarnation` may be lost; `None`: this store never was that.
    #[must_use]
    pub fn may_lack(&self, incarnation: Incarnation, ledger: LedgerId) -> Option<bool> {
        may_lack(&self.of(ledger).accepted, incarnation, ledger)
    }

    /// Admits a fence.
    pub fn fence(&mut self, ledger: LedgerId, term: Term, done: ControlDone) {
        self.admit(ledger, Op::Fence { ledger, term, done });
    }

    /// Admits a seal.
    pub fn seal(&mut self, ledger: LedgerId, last: Option<EntryId>, done: ControlDone) {
        self.admit(ledger, Op::Seal { ledger, last, done });
    }

    /// Admits a deletion.
    pub fn delete(&mut self, ledger: LedgerId, done: ControlDone) {
        self.admit(ledger, Op::Delete { ledger, done });
    }

    /// Told once everything admitted to the shard of `ledger` so far is durable.
    pub fn barrier(&mut self, ledger: LedgerId, done: ControlDone) {
        self.admit(ledger, Op::Barrier { done });
    }

    /// Admits a dead-id watermark, in every shard.
    pub fn watermark(&mut self, to: LedgerId, done: ControlDone) {
        let all: Vec<ControlDone> = crate::engine::split(done, self.stores.len());
        for (store, done) in self.stores.iter().zip(all) {
            if let Admitted::Answered(told) = store.admit(Op::Watermark { to, done }) {
                answer(told);
            }
        }
    }

    fn admit(&mut self, ledger: LedgerId, op: Op) -> bool {
        match self.of(ledger).admit(op) {
            Admitted::Queued => true,
            Admitted::Answered(told) => {
                answer(told);
                true
            }
            Admitted::Lookup(op) => {
                let op = self.of(ledger).resolve(op);
                self.admit(ledger, op)
            }
            Admitted::Blocked(_) => false,
        }
    }

    /// Builds a batch that [`Steps::write`] will write, of the first shard that has one; false when there is none. Several may be
    /// outstanding.
    pub fn next_batch(&mut self) -> bool {
        let next = |(at, store): (usize, &Store)| Some((at, store.shard.lock().next_batch()?));
        let batch = self.stores.iter().enumerate().find_map(next);
        let built = batch.is_some();
        self.batches.extend(batch);
        built
    }

    /// Batches built and not yet written.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.batches.len()
    }

    /// Writes one of the outstanding batches, not only the first.
    pub fn write(&mut self, at: usize) {
        let (shard, batch) = self.batches.remove(at);
        let store = &self.stores[shard];
        let good = store.write(&batch, &mut self.buf).is_ok();
        let answers = store.shard.lock().written(batch.head.seq, good);
        answers.into_iter().for_each(answer);
        if !good {
            self.batches.retain(|(other, _)| *other != shard);
        }
    }

    /// Writes all there is, in order.
    pub fn write_all(&mut self) {
        while self.outstanding() > 0 || self.next_batch() {
            self.write(0);
        }
    }

    /// Writes the idle markers.
    pub fn idle(&mut self) {
        self.stores.iter().for_each(|store| store.shard.lock().mark_idle());
        self.write_all();
    }

    /// One flush of one shard (the others' turn comes with other numbers); true unless it failed or found no room.
    pub fn flush_one(&mut self, number: u64) -> bool {
        let at = (number % self.stores.len() as u64) as usize;
        let (flushed, answers) = self.stores[at].flush_once();
        answers.into_iter().for_each(answer);
        if flushed == Flushed::Done {
            let others = self.stores.iter().enumerate().filter(|(other, _)| *other != at);
            let shared = others.filter(|_| active(Mutant::MarkShared));
            shared.for_each(|(_, store)| store.adopt_mark());
        }
        self.stores[at].look();
        matches!(flushed, Flushed::Done | Flushed::Nothing)
    }

    /// A flush of every shard, and all that follows; true unless one failed or found no room.
    pub fn flush(&mut self) -> bool {
        let mut good = true;
        for number in 0..self.stores.len() as u64 {
            good &= self.flush_one(number);
        }
        self.collect() && good
    }

    /// Collection, holes, files on their way out, and forgetting what the watermark covers; true unless it failed.
    pub fn collect(&mut self) -> bool {
        self.keep_house(u32::MAX)
    }

    fn keep_house(&mut self, pieces: u32) -> bool {
        self.keep(|store| {
            store.collect()?;
            store.punch_some(u32::MAX)?;
            store.shrink_some(pieces)?;
            store.forget_covered()
        })
    }

    /// One merge, if one is worth it; true unless it failed.
    pub fn merge(&mut self) -> bool {
        self.keep(|store| store.merge_once().map(drop))
    }

    /// Checks this many bytes; true unless it failed.
    pub fn scrub(&mut self, bytes: u64) -> bool {
        self.keep(|store| store.scrub_some(bytes).map(drop))
    }

    fn keep(&mut self, step: impl Fn(&Store) -> std::io::Result<()>) -> bool {
        let mut good = true;
        for store in self.stores.iter().filter(|store| store.may_keep()) {
            if let Err(error) = step(store) {
                good = false;
                if error.kind() != std::io::ErrorKind::StorageFull {
                    let answers = store.shard.lock().fail();
                    answers.into_iter().for_each(answer);
                }
            }
            store.look();
        }
        good
    }

    /// Prepares a journal file per shard, if one is wanted.
    pub fn prepare(&mut self) {
        for store in &self.stores {
            let (_, answers) = store.prepare_once();
            answers.into_iter().for_each(answer);
        }
    }

    /// Reads.
    #[must_use]
    pub fn read(&self, read: Read) -> ReadAnswer {
        self.of(read.ledger).read(read)
    }

    /// The tail of a ledger, without fencing.
    ///
    /// # Errors
    /// A deleted ledger or a failed store.
    pub fn tail(&self, ledger: LedgerId, from: EntryId) -> Result<Tail, ControlError> {
        self.of(ledger).tail(ledger, from)
    }

    /// What is known of a ledger, durable or not: what is told to others waits for [`Steps::barrier`].
    ///
    /// # Errors
    /// A deleted ledger or a failed store.
    pub fn stat(&self, ledger: LedgerId) -> Result<LedgerStat, ControlError> {
        self.of(ledger).stat(ledger)
    }

    /// Which of these ids are there, durable or not: what is told to others waits for [`Steps::barrier`].
    ///
    /// # Errors
    /// A deleted ledger or a failed store.
    pub fn presence(&self, ledger: LedgerId, ids: IdRange) -> Result<Presence, ControlError> {
        self.of(ledger).presence(ledger, ids)
    }

    /// Starts of the store so far.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.stores.iter().map(Store::boot).max().unwrap_or(1)
    }

    /// What the store can do.
    #[must_use]
    pub fn health(&self) -> Health {
        let status = |status| self.stores.iter().any(|store| store.shard.lock().status == status);
        if status(crate::shard::Status::Failed) {
            Health::Failed
        } else if status(crate::shard::Status::DataLoss) {
            Health::DataLoss
        } else {
            Health::Serving
        }
    }

    /// What the fullest disk has room for.
    #[must_use]
    pub fn room(&self) -> Room {
        self.stores.iter().map(|store| store.shard.lock().room).max().unwrap_or_default()
    }

    /// What is stored and what was done, all shards together.
    #[must_use]
    pub fn figures(&self) -> crate::Figures {
        self.stores.iter().map(Store::figures).sum()
    }

    /// Incarnation of the store.
    #[must_use]
    pub fn incarnation(&self) -> geminga_common::ids::Incarnation {
        self.stores[0].incarnation
    }

    /// Segments there are.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.figures().segments as usize
    }

    /// As [`Steps::collect`], but no more than so many pieces of files are given back.
    #[cfg(test)]
    pub(crate) fn collect_slowly(&mut self, pieces: u32) -> bool {
        self.keep_house(pieces)
    }

    #[cfg(test)]
    pub(crate) fn first(&self) -> &Store {
        &self.stores[0]
    }
}
