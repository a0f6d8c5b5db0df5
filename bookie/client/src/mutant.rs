//! The room's list of known bugs that tests bring back, to show that the simulations would catch them.

use geminga_common::museum::Exhibit;
pub use geminga_common::museum::active;

/// A bug that can be brought back. Numbers are those of the reliability brief.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mutant {
    /// 1: a fence that answers without refusing the old writer (BookKeeper #2614).
    FenceWithoutTerm,
    /// 2: recovery starts below the last fragment when its bookies know no LAC (BookKeeper #2615).
    RecoverFromBelow,
    /// 3: "nothing here" of a bookie that lost its store is believed (BookKeeper #2612, #4812).
    TrustAmnesiac,
    /// 4: a recovery waits for every bookie, however long one hangs (BookKeeper #1067).
    WaitForAll,
    /// 7: a ledger's record is written over whatever is there (BOOKKEEPER-584).
    StaleWriter,
    /// 10: what a listing lacks is deleted (BookKeeper #870).
    GcByListing,
    /// 13: a checksum that fails ends a read instead of asking another holder (BookKeeper #4789).
    DamageEndsRead,
    /// 26: what a slow slot lacks is kept for it without bound (Pulsar #12169).
    LagUnbounded,
    /// 40: what is sent again was drained by the first sending (BookKeeper #4829).
    ResendDrained,
    /// One dead-id watermark for creators and bookies: raised after the scan, not before it (storage.md 1.4).
    OneWatermark,
    /// The owner's epoch is the revision at which it took over, which goes back when metadata is restored.
    EpochOfRevision,
    /// Recovery's write-backs tell the recoverer's own progress as LAC (storage.md 1.5 R5).
    ProgressAsLac,
    /// A store that lost data is let go of without asking whether others hold what it holds.
    ReleaseUnchecked,
    /// What a slow bookie acknowledged above the LAC counts for the one that takes its place.
    SlowKeepsAcks,
    /// What a slow bookie lacks when another takes its place is not recorded for repair.
    SlowOwesNothing,
    /// What a bookie lost that says so while the change by which it leaves is being committed is forgotten.
    LateLossForgotten,
    /// In a degraded ensemble entries wait for the vacant slot: the window counts from LAFR, which stands still (storage.md 1.6).
    WindowFromLafr,
}

impl Exhibit for Mutant {}
