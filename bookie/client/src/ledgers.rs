//! [`Ledgers`]: what a managed ledger sees of the replication protocol. Metadata changes come as *plans* (conditions and
//! writes), so that the owner commits them together with its own topic record in one transaction.

pub(crate) mod client;
pub(crate) mod hedge;
mod ids;
pub mod read;
#[cfg(test)]
mod tests;

pub use client::{LedgerClient, Parts};
pub use ids::raise as raise_ids;

use crate::entry::{Entry, Header, Payload};
use crate::quorum::QuorumSpec;
use crate::record::{ClosedLedger, Fragment, LedgerAttributes};
use crate::rpc::{BookieRef, IdRange, ReadClass};
use futures::future::BoxFuture;
use geminga_common::ids::{EntryId, LedgerId, Term};
use geminga_common::metadata::{Compare, MetaError, Op, Revision};
use std::sync::Arc;

/// An entry to be appended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewEntry {
    /// Fixed header.
    pub header: Header,
    /// Payload.
    pub payload: Payload,
}

/// A ledger about to be created: commit `compares` and `ops`, then open its writer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreatePlan {
    /// The ledger.
    pub id: LedgerId,
    /// Its quorum.
    pub quorum: QuorumSpec,
    /// First fragment: the chosen ensemble.
    pub fragment: Fragment,
    /// Its attributes.
    pub attributes: Arc<LedgerAttributes>,
    /// Conditions: the record is absent, the id lies above the dead-id watermark.
    pub compares: Vec<Compare>,
    /// Writes: the open ledger record.
    pub ops: Vec<Op>,
}

/// A writer about to close: commit `compares` and `ops` (which remove the open record), and keep `closed`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClosePlan {
    /// What is to be kept of the ledger in its owner's record.
    pub closed: ClosedLedger,
    /// Conditions: the record is still open at this writer's term.
    pub compares: Vec<Compare>,
    /// Writes: the open record goes (or stays Closed with `repair` when some id is below its write quorum).
    pub ops: Vec<Op>,
}

/// Why a ledger could not be created.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CreateError {
    /// Too few writable bookies.
    #[error("{available} writable bookies, {needed} needed")]
    NotEnoughBookies {
        /// Writable now.
        available: usize,
        /// Needed by the ack quorum.
        needed: usize,
    },
}

/// Why appends failed; every one told by [`Progress`] is final for the writer.
#[derive(Clone, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum AppendError {
    /// A recoverer took over: outcomes of pending appends are decided by recovery.
    #[error("fenced: another owner recovers this ledger")]
    Fenced,
    /// Too few bookies take writes; pending outcomes are unknown.
    #[error("ack quorum not reachable")]
    NotEnoughBookies,
    /// This entry can never be stored.
    #[error("entry of {size} bytes is above the limit of {limit}")]
    TooLarge {
        /// Size in bytes.
        size: usize,
        /// Limit in bytes.
        limit: usize,
    },
    /// The store is full.
    #[error("disk is full")]
    DiskFull,
    /// The writer was closed.
    #[error("writer is closed")]
    Closed,
}

/// What to do about damage of the only copy there is.
const ONLY_COPY_DAMAGED: &str = "this is the only copy. Stop the server and put the file back from a copy, or run `geminga admin accept-loss`, \
     which tells what is lost and goes on without it";

/// Why a read failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// A quorum proves that the entry does not exist. For an id at or below the LAC this is an incident.
    #[error("entry {0} does not exist")]
    NoSuchEntry(EntryId),
    /// No holder could answer now; retry.
    #[error("entry {0} cannot be read now")]
    Unavailable(EntryId),
    /// It cannot be read, and neither can the only copy of it heal: what is damaged, in words.
    #[error("entry {0} cannot be read: {1}; {ONLY_COPY_DAMAGED}")]
    Damaged(EntryId, String),
    /// The only copy lost these entries, and that was accepted: they are gone for good.
    #[error("entries {} to {} are lost for good", .0.first, .0.last)]
    Lost(IdRange),
}

/// Why a recovery did not close its ledger.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecoverError {
    /// No record of the ledger: it was closed and folded, or deleted.
    #[error("ledger {0} has no record")]
    NoRecord(LedgerId),
    /// Undecided for now (too few answers): the ledger stays Recovering; retry with backoff.
    #[error("tail of ledger {0} cannot be decided yet")]
    Undecided(LedgerId),
    /// Undecided, and for good: the only copy of it is damaged, where, in words.
    #[error("tail of ledger {0} cannot be decided: {1}; {ONLY_COPY_DAMAGED}")]
    Damaged(LedgerId, String),
    /// Another recoverer is ahead.
    #[error("another recovery of ledger {0} is ahead")]
    Superseded(LedgerId),
    /// Metadata failed.
    #[error(transparent)]
    Metadata(#[from] MetaError),
}

/// Where a ledger's entries are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LedgerView {
    /// The ledger.
    pub id: LedgerId,
    /// Its quorum.
    pub quorum: QuorumSpec,
    /// Its fragments, first ids rising.
    pub fragments: Vec<Fragment>,
}

impl ClosedLedger {
    /// Where the entries of a closed ledger are.
    #[must_use]
    pub fn view(&self) -> LedgerView {
        LedgerView { id: self.id, quorum: self.quorum, fragments: self.fragments.clone() }
    }
}

/// Something a writer waits for has happened. Opaque: hand it back to [`Writer::on_event`] on the owner's task.
#[derive(Debug)]
pub struct WriterEvent {
    /// Which ledger's writer it is for.
    pub ledger: LedgerId,
    pub(crate) kind: crate::writer::EventKind,
}

/// Called from any thread; must only queue the event for the owner's task.
pub type WriterEvents = Arc<dyn Fn(WriterEvent) + Send + Sync>;

/// Whether what an open ledger has acknowledged has all its copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copies {
    /// It has.
    Full,
    /// A slot is vacant: entries lack copies, and so will the next ones until a bookie is found for it.
    Vacant,
    /// No slot is vacant any more, but entries from before lack copies: repair makes up for them once the ledger is closed.
    RepairDue,
}

/// How far a writer has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Last acknowledged entry: everything up to it is durable on its ack quorum.
    pub lac: Option<EntryId>,
    /// Last entry that is on all of its write quorum, or recorded as due for repair. Before closing, give it up to 1 s to reach
    /// `lac`: what is missing then is recorded for repair.
    pub lafr: Option<EntryId>,
    /// Last entry handed out by `append`.
    pub last_sent: Option<EntryId>,
    /// A change of the ensemble is being committed: acks wait for it, and a close planned now would race with it.
    pub changing: bool,
    /// Whether all copies are there, as far as the record says.
    pub copies: Copies,
    /// Set once the writer can go no further.
    pub failed: Option<AppendError>,
}

impl Progress {
    /// Whether nothing is in flight: neither an append nor a change of the ensemble.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.lac == self.last_sent && !self.changing
    }
}

/// The single writer of an open ledger. Owned by one task; never blocks.
pub trait Writer: Send {
    /// The ledger.
    fn ledger(&self) -> LedgerId;
    /// Its fragments so far, for reading back.
    fn view(&self) -> LedgerView;
    /// Sends entries with the next ids; the answer is the first of them. Acknowledged when [`Progress::lac`] reaches them.
    ///
    /// # Errors
    /// The writer has failed or is closed: nothing was sent.
    fn append(&mut self, entries: Vec<NewEntry>) -> Result<EntryId, AppendError>;
    /// Takes an event in; tells the progress after it.
    fn on_event(&mut self, event: WriterEvent) -> Progress;
    /// The progress now.
    fn progress(&self) -> Progress;
    /// Members that `gone` points out are said to be dead or to have lost their store: asks them, and replaces those who do not
    /// answer as who they were, without waiting for the next append. What comes of it are events.
    fn probe(&mut self, gone: &dyn Fn(&BookieRef) -> bool);
    /// Stops intake and tells how to close at the LAC. Call it when drained or failed for lack of bookies; after `Fenced` the
    /// ledger is its recoverer's.
    ///
    /// # Errors
    /// [`AppendError::Fenced`] when this writer may not close.
    fn plan_close(&mut self) -> Result<ClosePlan, AppendError>;
}

/// A recovered ledger: closed, its record at `revision`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// What is to be kept of it in its owner's record.
    pub closed: ClosedLedger,
    /// Conditions and writes that fold the closed record into its owner's (they remove `l/{id}` unless repair is due).
    pub compares: Vec<Compare>,
    /// See `compares`.
    pub ops: Vec<Op>,
    /// The closed record's revision.
    pub revision: Revision,
    /// The term that closed it.
    pub term: Term,
    /// Header of the last entry, if there is one: the message index runs on from here.
    pub last_header: Option<Header>,
    /// Attributes as the bookies hold them.
    pub attributes: Option<Arc<LedgerAttributes>>,
    /// Entries that were acknowledged, as far as is known, and are gone for good, rising; also such beyond the end.
    pub lost: Vec<IdRange>,
}

/// The ledger protocol as seen by an owner of ledgers.
pub trait Ledgers: Send + Sync + 'static {
    /// A fresh id above `above`, from this process's leased block.
    fn allocate_id(&self, above: Option<LedgerId>) -> BoxFuture<'static, Result<LedgerId, MetaError>>;
    /// Chooses an ensemble. Nothing is written.
    ///
    /// # Errors
    /// Too few writable bookies.
    fn plan_create(&self, id: LedgerId, attributes: LedgerAttributes) -> Result<CreatePlan, CreateError>;
    /// The writer of a ledger whose plan was committed at `revision`.
    fn writer(&self, plan: CreatePlan, revision: Revision, events: WriterEvents) -> Box<dyn Writer>;
    /// Fences, recovers and closes a ledger. Idempotent; safe against a live writer and other recoverers.
    fn recover(&self, id: LedgerId) -> BoxFuture<'static, Result<Recovered, RecoverError>>;
    /// Reads a contiguous run from `first` up to `last`, checksums verified, at least one entry.
    fn read(
        &self,
        view: &LedgerView,
        first: EntryId,
        last: EntryId,
        bytes_max: usize,
        class: ReadClass,
    ) -> BoxFuture<'static, Result<Vec<Entry>, ReadError>>;
    /// Whether entries of this ledger were lost, or may have been, and that was accepted for good: what is left of it need not be all.
    fn may_lack(&self, _view: &LedgerView) -> bool {
        false
    }
    /// Deletes a tombstoned ledger from every bookie of its fragments; true once all have confirmed, or are given up for good.
    /// A bookie that merely cannot be reached has not.
    fn delete(&self, view: &LedgerView) -> BoxFuture<'static, bool>;
}
