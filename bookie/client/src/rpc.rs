//! [`BookieRpc`]: the seam between the ledger protocol and the bookies that store entries. Implementations: in-process
//! (`geminga-bookie`), in-memory ([`crate::memory`]), gRPC (with the cluster issue). One conformance suite holds for all.
//!
//! Every data call carries the incarnation it expects; a bookie of another incarnation answers `WrongIncarnation`, which counts
//! as *unknown*. Reads answer `Found | NotFound | Unknown`: every error path is `Unknown`, and only an intact index can prove
//! `NotFound`.

use crate::entry::Entry;
use crate::quorum::QuorumSpec;
use crate::record::LedgerAttributes;
use futures::future::BoxFuture;
use geminga_common::ids::{BookieId, EntryId, Incarnation, LedgerId, Term};
use std::fmt;
use std::sync::Arc;

/// A bookie's store: its stable name and the incarnation whose content counts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BookieRef {
    /// Stable name.
    pub id: BookieId,
    /// Incarnation of its store.
    pub incarnation: Incarnation,
}

impl fmt::Display for BookieRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.id, self.incarnation)
    }
}

/// Entries for one ledger, ids rising. Acknowledged as a whole, once every entry, the term and the attributes are durable.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Add {
    /// The ledger.
    pub ledger: LedgerId,
    /// The writer's term; below the bookie's term for this ledger it is refused.
    pub term: Term,
    /// Last entry known to be acknowledged; `None` before the first.
    pub lac: Option<EntryId>,
    /// Last entry known to be on all of its write quorum.
    pub lafr: Option<EntryId>,
    /// Who the ledger belongs to; on the first add to each bookie.
    pub attributes: Option<Arc<LedgerAttributes>>,
    /// The entries, ids rising; may be empty to carry a term or LAC alone.
    pub entries: Vec<Entry>,
}

/// Why an add was not stored, or may not have been.
#[derive(Clone, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum AddError {
    /// A recoverer with a higher term has been here: this writer is over.
    #[error("fenced by term {0}")]
    StaleTerm(Term),
    /// Another incarnation answers at this bookie's name.
    #[error("bookie has another incarnation")]
    WrongIncarnation,
    /// The ledger is sealed at `last` and the entry lies beyond.
    #[error("ledger is sealed at {0:?}")]
    Sealed(Option<EntryId>),
    /// The ledger has been deleted.
    #[error("ledger is deleted")]
    Tombstoned,
    /// The id holds other bytes: a protocol violation, nothing was overwritten.
    #[error("entry {0} already holds other bytes")]
    Conflict(EntryId),
    /// The bytes do not match their checksum.
    #[error("entry {0} fails its checksum")]
    Corrupt(EntryId),
    /// Entry too large for this store; it will never fit.
    #[error("entry {id} of {size} bytes is above this store's limit of {limit}")]
    TooLarge {
        /// The entry.
        id: EntryId,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// No room on disk.
    #[error("disk is full")]
    DiskFull,
    /// The store has failed (an fsync error, damage): it takes nothing any more.
    #[error("store has failed")]
    Failed,
    /// Not reached, timed out or shut down: the outcome is unknown.
    #[error("outcome unknown: {0}")]
    Unknown(&'static str),
}

/// Told once, from any thread, when an add is durable or refused. Must not block.
pub type AddDone = Box<dyn FnOnce(Result<(), AddError>) + Send>;

/// Who reads, so that a bookie can keep catch-up readers from slowing the tail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReadClass {
    /// Near the tail.
    Tail,
    /// Far behind.
    CatchUp,
    /// Repair and scrub.
    Repair,
}

/// A range read: the longest contiguous run from `first`, up to `last` and `bytes_max` (at least one entry).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Read {
    /// The ledger.
    pub ledger: LedgerId,
    /// First id wanted.
    pub first: EntryId,
    /// Last id wanted, inclusive.
    pub last: EntryId,
    /// Stop after this many payload bytes.
    pub bytes_max: usize,
    /// Who asks.
    pub class: ReadClass,
}

/// Proof that an intact index was asked: the only way to say `NotFound`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Proof(());

impl Proof {
    /// To be called by an index lookup that has checked that its shard is intact and the range undamaged, nowhere else.
    #[must_use]
    pub fn from_intact_index() -> Self {
        Self(())
    }
}

/// Why an answer is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Doubt {
    /// Reading failed or the bytes do not match their checksum.
    Damaged,
    /// The store lost data it once held.
    DataLoss,
    /// Another incarnation answers.
    WrongIncarnation,
    /// Not reached, timed out, or shut down.
    Unreachable,
}

/// The answer to a read.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ReadAnswer {
    /// A run of entries from the first id wanted on; never empty. The run may be shorter than asked for.
    Found(Vec<Entry>),
    /// The first id wanted was never stored here (provable).
    NotFound(Proof),
    /// Nothing can be said about the first id wanted.
    Unknown(Doubt),
    /// From the first id wanted up to this one nothing is here, and something was: the only copy lost it, and that was accepted for good.
    /// No proof that it was never written.
    Lost {
        /// Last id of what is lost, within what was asked for.
        last: EntryId,
    },
}

/// A closed range of ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IdRange {
    /// First id.
    pub first: EntryId,
    /// Last id, inclusive.
    pub last: EntryId,
}

/// What a bookie holds of a ledger's tail, answered after it durably refuses lower terms.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tail {
    /// Highest LAC this bookie was told.
    pub lac: Option<EntryId>,
    /// Highest LAFR this bookie was told.
    pub lafr: Option<EntryId>,
    /// Ids present at or above `from`, as runs, rising.
    pub present: Vec<IdRange>,
    /// Ids at or above `from` that may or may not be present (damage): neither found nor provably absent.
    pub doubtful: Vec<IdRange>,
    /// Of the present ids at or above `max(from, lac)`, the first, up to 1 MiB: what is below this bookie's LAC no recovery asks for,
    /// and the entry at the LAC is the last one of a ledger that went quiet.
    pub entries: Vec<Entry>,
    /// Attributes, if an add brought them.
    pub attributes: Option<Arc<LedgerAttributes>>,
    /// The only copy lost something, and that was accepted for good: of what is neither present nor doubtful nothing is proven, and
    /// nothing more will ever be known.
    pub lacks: bool,
}

/// Why a control call did not succeed.
#[derive(Clone, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum ControlError {
    /// Another recoverer is ahead.
    #[error("fenced by term {0}")]
    StaleTerm(Term),
    /// Another incarnation answers.
    #[error("bookie has another incarnation")]
    WrongIncarnation,
    /// The ledger has been deleted.
    #[error("ledger is deleted")]
    Tombstoned,
    /// The store has failed.
    #[error("store has failed")]
    Failed,
    /// Unknown outcome.
    #[error("outcome unknown: {0}")]
    Unknown(&'static str),
}

/// What a bookie knows of a ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LedgerStat {
    /// Highest term seen; 0 when the ledger is unknown here.
    pub term: Term,
    /// Last id when sealed.
    pub sealed: Option<Option<EntryId>>,
    /// Highest LAC told.
    pub lac: Option<EntryId>,
    /// Ids present, as runs.
    pub present: Vec<IdRange>,
    /// Attributes, if an add brought them.
    pub attributes: Option<Arc<LedgerAttributes>>,
}

/// Ids of a closed ledger that a bookie is to fetch from the other members of a fragment: those whose write set has the slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replicate {
    /// The ledger; closed, so that all ids up to its end are final.
    pub ledger: LedgerId,
    /// Its quorum.
    pub quorum: QuorumSpec,
    /// The slot that the bookie fills.
    pub slot: u32,
    /// The fragment's members: whom to fetch from.
    pub ensemble: Vec<Option<BookieRef>>,
    /// The ids, within the fragment and the ledger's end.
    pub ids: IdRange,
    /// Stop after this many bytes.
    pub bytes_max: u64,
}

/// What a replication did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replicated {
    /// Where the next call goes on; `None` when all ids are there.
    pub next: Option<EntryId>,
    /// Entries that were fetched and stored.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why a replication stopped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplicateError {
    /// No member could give this entry intact.
    #[error("no holder can give entry {0} now")]
    Unreadable(EntryId),
    /// The destination's store does not take the entries.
    #[error("the copies cannot be stored: {0}")]
    Store(AddError),
    /// The destination was not reached, or is another store.
    #[error(transparent)]
    Call(#[from] ControlError),
}

/// What a bookie durably holds of some ids.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Presence {
    /// Ids that are there and durable, as runs, rising.
    pub present: Vec<IdRange>,
    /// Ids of which nothing can be said: damage.
    pub doubtful: Vec<IdRange>,
}

/// Calls to bookies. Adds are pipelined: calls for one ledger reach one bookie in call order.
pub trait BookieRpc: Send + Sync + 'static {
    /// Stores entries; `done` is told when they are durable or refused. Never blocks.
    fn add(&self, to: &BookieRef, add: Add, done: AddDone);
    /// Reads a range.
    fn read(&self, to: &BookieRef, read: Read) -> BoxFuture<'static, ReadAnswer>;
    /// Durably refuses terms below `term`, then tells what is there from `from` on.
    fn fence_tail(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        term: Term,
        from: EntryId,
    ) -> BoxFuture<'static, Result<Tail, ControlError>>;
    /// Tells that the ledger is closed at `last` (`None`: closed empty). Idempotent; strays beyond are dropped.
    fn seal(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        last: Option<EntryId>,
    ) -> BoxFuture<'static, Result<(), ControlError>>;
    /// Deletes a ledger whose tombstone is committed. Idempotent, durable when answered.
    fn delete(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<(), ControlError>>;
    /// What the bookie knows of a ledger: durable when answered, so that a repair may count what is listed as held.
    fn stat(&self, to: &BookieRef, ledger: LedgerId) -> BoxFuture<'static, Result<LedgerStat, ControlError>>;
    /// Has the bookie fetch what it lacks of a closed ledger. Copies are stored whatever the ledger's term is here, and change no
    /// term. May take seconds.
    fn replicate(
        &self,
        to: &BookieRef,
        request: Replicate,
    ) -> BoxFuture<'static, Result<Replicated, ReplicateError>>;
    /// Whether something of a ledger on this store was lost, or may have been, and that was accepted for good: only where it is the only
    /// copy.
    fn may_lack(&self, _to: &BookieRef, _ledger: LedgerId) -> bool {
        false
    }
    /// Where something of a ledger on this store is known not to be readable, in words: only where it is the only copy, so that nobody can
    /// bring it back. Says why an answer was `Unknown`, and decides nothing.
    fn only_copy_damaged(&self, _to: &BookieRef, _ledger: LedgerId) -> Option<String> {
        None
    }
    /// Which of these ids the bookie durably holds: the proof that ends a repair.
    fn presence(
        &self,
        to: &BookieRef,
        ledger: LedgerId,
        ids: IdRange,
    ) -> BoxFuture<'static, Result<Presence, ControlError>>;
}
