//! The room's list of known defects of stores in this field, which tests bring back to show that they would be caught.

use geminga_common::museum::Exhibit;
pub(crate) use geminga_common::museum::active;

/// A known defect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mutant {
    /// A store that lost data says `NotFound` (BK #2612).
    AmnesiacNotFound,
    /// A segment that cannot be read counts as lacking the entry (BK #2908).
    UnreadableNotFound,
    /// Terms do not survive a restart (BOOKKEEPER-500).
    FenceLost,
    /// Replay skips a bad batch and goes on (BK #3437).
    BadRecordSkipped,
    /// A failed sync is tried again and believed (ATC'20).
    SyncRetried,
    /// A checksum failure in the middle of the journal counts as its end (PAR).
    ChecksumTruncates,
    /// A duplicate is acknowledged before the first copy is durable.
    DuplicateAckedEarly,
    /// The mark passes what only some of the directories have flushed (BK #3329).
    MarkAheadOfFlush,
    /// What is listed as present may not be durable yet.
    ListedEarly,
    /// Writing goes on in a file that was replayed.
    ReplayedFileAppended,
    /// A segment whose footer does not check counts as one in which nothing lives (BK #4607).
    UnparsedCollected,
    /// Segments that a manifest does not list are removed (BK #870, #876).
    UnlistedRemoved,
    /// A merge leaves out what it cannot read.
    MergeSkipsBad,
    /// A tombstone is dropped before the dead-id watermark covers it (BK #4462).
    TombstoneForgotten,
    /// A flush of one shard moves the journal mark of the others (BK #3329).
    #[cfg_attr(
        not(any(test, feature = "test-util")),
        allow(dead_code, reason = "only a store that tests drive step by step has it")
    )]
    MarkShared,
    /// A directory that lost its identity is taken back as it is (BK #2305).
    IdentityMissingOk,
    /// A journal directory without files counts as a fresh one.
    JournalLossUnnoticed,
    /// A loss is accepted and nobody writes down which incarnation it befell.
    LossForgotten,
    /// A promoted store keeps the incarnation under which it lost data (BK #4812).
    IncarnationKept,
}

impl Exhibit for Mutant {}
