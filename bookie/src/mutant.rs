//! Known defects of stores in this field, which tests re-introduce to show that they would be caught. Without the feature
//! `museum` every question is answered `false` at compile time.

/// A known defect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mutant {
    /// A store that lost data says `NotFound` (BK #2612).
    AmnesiacNotFound,
    /// A segment that cannot be read counts as lacking the entry (BK #2908).
    UnreadableNotFound,
    /// Terms do not survive a restart (BOOKKEEPER-500).
    FenceLost,
    /// What a deleted ledger was is forgotten, its tombstone too (BK #4462).
    TombstoneForgotten,
    /// A segment whose footer cannot be read is collected (BK #4607).
    GcTrustsDamage,
    /// A store starts as sound whatever became of its identity or manifest (BK #2305).
    IdentityIgnored,
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
}

impl crate::Config {
    #[cfg(feature = "museum")]
    pub(crate) fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(feature = "museum"))]
    pub(crate) const fn has(&self, _: Mutant) -> bool {
        false
    }
}
