//! The museum: known bugs of peers that tests can bring back, to show that the exploration would catch them. Without feature
//! `museum` every question is a constant `false` and vanishes from the code.

/// A bug that can be brought back. Numbers are those of the reliability brief.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// 1: a fence that answers without refusing the old writer (BookKeeper #2614).
    FenceWithoutTerm,
    /// 3: "nothing here" of a bookie that lost its store is believed (BookKeeper #2612, #4812).
    TrustAmnesiac,
    /// Recovery's write-backs tell the recoverer's own progress as LAC (storage.md 1.5 R5).
    ProgressAsLac,
}

#[cfg(feature = "museum")]
mod switch {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether the bug is back, on this thread.
    #[must_use]
    pub fn active(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }

    /// Brings a bug back on this thread, or none.
    pub fn set(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }
}

#[cfg(feature = "museum")]
pub use switch::{active, set};

/// Whether the bug is back: never in this build.
#[cfg(not(feature = "museum"))]
#[must_use]
pub const fn active(_: Mutant) -> bool {
    false
}
