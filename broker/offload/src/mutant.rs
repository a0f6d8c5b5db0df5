//! The museum: known bugs of peers that tests can bring back, to show that the exploration would catch them. Without feature
//! `museum` every question is a constant `false` and vanishes from the code.

/// A bug that can be brought back. Numbers are those of the reliability brief.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// 24: after a commit whose outcome is not known the uploader removes its object, which may be referenced (Pulsar #17512).
    RemoveAfterDoubt,
    /// 25: a commit that is told twice replaces the object by itself, and what was replaced counts as garbage (Redpanda #9597).
    CommitTwice,
    /// 25: bookie copies go as soon as an upload was begun, verified or not (Redpanda #29674).
    ReleaseUnverified,
    /// An upload in parts is begun before the record names its key: what a crash in between leaves is named by nobody.
    BeginUnnamed,
    /// Writes do not expire: what a paused broker had on its way lands after the sweep.
    WriteForever,
    /// The sweep comes as soon as the author stops, while its requests may be on their way.
    SweepUnsettled,
    /// An upload whose begin was answered by nobody is not looked for.
    ForgetUploads,
    /// 32: what metadata, read at an old revision, does not name is taken for garbage (NATS #7556).
    RemoveUnlisted,
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
